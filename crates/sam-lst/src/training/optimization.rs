use super::adam::{FusedAdam, FusedAdamW};
use crate::model::{InvalidSetting, require};
use burn::optim::ModuleOptimizer;
use serde::{Deserialize, Serialize};

/// Optimizer and learning rate schedule.
///
/// ```
/// use sam_lst::training::OptimizationConfig;
///
/// let config = OptimizationConfig::released();
/// let mut optimizer = config.optimizer.init();
/// for step in 0..3 {
///     let learning_rate = config.schedule.at(step, 1000);
///     // … ladder = optimizer.step(learning_rate, ladder, gradients);
///     # let _ = (&mut optimizer, learning_rate);
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizationConfig {
    /// The optimizer.
    pub optimizer: OptimizerConfig,
    /// The learning rate schedule.
    pub schedule: WarmupPolynomial,
}

/// The optimizer. Epsilon and weight decay default to PyTorch's values, which differ from Burn's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum OptimizerConfig {
    /// Adam (Kingma and Ba, arXiv 1412.6980).
    Adam {
        /// Decay rates of the two moments.
        betas: [f32; 2],
        /// Added to the square root of the second moment.
        epsilon: f32,
    },
    /// AdamW (Loshchilov and Hutter, arXiv 1711.05101). Weight decay applies to every trained
    /// parameter, including the gate and norms.
    AdamW {
        /// Decay rates of the two moments.
        betas: [f32; 2],
        /// Added to the square root of the second moment.
        epsilon: f32,
        /// Decoupled weight decay.
        weight_decay: f32,
    },
}

/// Linear warm-up followed by polynomial decay.
///
/// The learning rate of step `i`, from 0, is `base * (i + 1) / warmup_steps` while `i < warmup_steps`,
/// and `base * (1 - (i - warmup_steps) / total) ^ power` afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WarmupPolynomial {
    /// The highest learning rate.
    pub base: f64,
    /// Number of warm-up steps.
    pub warmup_steps: u64,
    /// Exponent of the decay: 0 is constant, 1 is linear.
    pub power: f64,
}

const BETAS: [f32; 2] = [0.9, 0.999];
const EPSILON: f32 = 1e-8;

impl OptimizationConfig {
    /// The settings of the released code: AdamW with a weight decay of 0.1, a warm-up to 1e-3 over 250
    /// steps, then decay with the power 0.9.
    pub fn released() -> Self {
        Self {
            optimizer: OptimizerConfig::AdamW { betas: BETAS, epsilon: EPSILON, weight_decay: 0.1 },
            schedule: WarmupPolynomial { base: 1e-3, warmup_steps: 250, power: 0.9 },
        }
    }

    /// The settings of the paper: Adam, with the same schedule.
    pub fn paper() -> Self {
        Self {
            optimizer: OptimizerConfig::Adam { betas: BETAS, epsilon: EPSILON },
            ..Self::released()
        }
    }

    /// Checks every value, before anything is computed.
    ///
    /// # Errors
    ///
    /// The first invalid value.
    pub fn validate(&self) -> Result<(), InvalidSetting> {
        let ([beta_1, beta_2], epsilon, weight_decay) = match self.optimizer {
            OptimizerConfig::Adam { betas, epsilon } => (betas, epsilon, 0.0),
            OptimizerConfig::AdamW { betas, epsilon, weight_decay } => {
                (betas, epsilon, weight_decay)
            }
        };
        for beta in [beta_1, beta_2] {
            let holds = (0.0..1.0).contains(&beta);
            require(holds, "optimization.optimizer.betas", beta, "at least 0 and below 1")?;
        }
        for (field, found) in [
            ("optimization.optimizer.epsilon", epsilon.into()),
            ("optimization.schedule.base", self.schedule.base),
        ] {
            let holds = f64::is_finite(found) && found > 0.0;
            require(holds, field, found, "positive")?;
        }
        for (field, found) in [
            ("optimization.optimizer.weight_decay", weight_decay.into()),
            ("optimization.schedule.power", self.schedule.power),
        ] {
            let holds = f64::is_finite(found) && found >= 0.0;
            require(holds, field, found, "0 or positive")?;
        }
        Ok(())
    }
}

impl OptimizerConfig {
    /// Creates the optimizer, without state.
    pub fn init(&self) -> ModuleOptimizer {
        match *self {
            Self::Adam { betas, epsilon } => FusedAdam::new(betas, epsilon).into(),
            Self::AdamW { betas, epsilon, weight_decay } => {
                FusedAdamW::new(betas, epsilon, weight_decay).into()
            }
        }
    }
}

impl WarmupPolynomial {
    /// The learning rate of step `step`, from 0, of `total_steps`.
    pub fn at(&self, step: u64, total_steps: u64) -> f64 {
        match step.checked_sub(self.warmup_steps) {
            None => self.base * (step + 1) as f64 / self.warmup_steps as f64,
            Some(after) => {
                let left = 1.0 - after as f64 / total_steps.max(1) as f64;
                self.base * left.max(0.0).powf(self.power)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_falls_and_stays_positive_until_the_end() {
        let schedule = OptimizationConfig::released().schedule;
        assert_eq!(schedule.at(0, 18_400), 1e-3 / 250.0);
        assert_eq!(schedule.at(124, 18_400), 0.5e-3);
        assert_eq!(schedule.at(249, 18_400), 1e-3);
        assert_eq!(schedule.at(250, 18_400), 1e-3);
        let half: f64 = 1e-3 * 0.5_f64.powf(0.9);
        assert!((schedule.at(250 + 9_200, 18_400) - half).abs() < 1e-12);
        assert!(schedule.at(18_399, 18_400) > 0.0);
        // Fewer steps than the warm-up, and a step after the last.
        assert!(schedule.at(9, 10) > 0.0);
        assert_eq!(schedule.at(400, 100), 0.0);
        let constant = WarmupPolynomial { warmup_steps: 0, power: 0.0, ..schedule };
        assert_eq!([0, 50, 99].map(|step| constant.at(step, 100)), [1e-3; 3]);
    }

    #[test]
    fn invalid_values_are_reported() {
        assert_eq!(OptimizationConfig::released().validate(), Ok(()));
        assert_eq!(OptimizationConfig::paper().validate(), Ok(()));
        let text = |change: &dyn Fn(&mut OptimizationConfig)| {
            let mut config = OptimizationConfig::released();
            change(&mut config);
            config.validate().expect_err("invalid").to_string()
        };
        assert_eq!(
            text(&|c| c.schedule.base = 0.0),
            "`optimization.schedule.base` is 0; expected positive"
        );
        assert!(text(&|c| c.schedule.base = f64::NAN).starts_with("`optimization.schedule.base`"));
        assert!(text(&|c| c.schedule.power = -1.0).starts_with("`optimization.schedule.power`"));
        let adam = |betas, epsilon| OptimizerConfig::Adam { betas, epsilon };
        assert!(
            text(&|c| c.optimizer = adam([0.9, 1.0], 1e-8))
                .starts_with("`optimization.optimizer.betas`")
        );
        assert!(
            text(&|c| c.optimizer = adam(BETAS, 0.0))
                .starts_with("`optimization.optimizer.epsilon`")
        );
    }
}
