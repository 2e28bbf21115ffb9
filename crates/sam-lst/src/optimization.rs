use burn::optim::{AdamConfig, AdamWConfig, ModuleOptimizer};
use serde::{Deserialize, Serialize};

/// How the ladder is optimised: the rule of a step, and the learning rate of each.
///
/// ```
/// use sam_lst::OptimizationConfig;
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
    /// The rule of a step.
    pub optimizer: OptimizerConfig,
    /// The learning rate of each step.
    pub schedule: WarmupPolynomial,
}

/// The rule of an optimizer's step. Its defaults are PyTorch's, which are not Burn's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum OptimizerConfig {
    /// Adam (Kingma and Ba, arXiv 1412.6980).
    Adam {
        /// Decay of the two moments.
        betas: [f32; 2],
        /// Added to the root of the second moment.
        epsilon: f32,
    },
    /// AdamW (Loshchilov and Hutter, arXiv 1711.05101), on everything that trains, gate and norms too.
    AdamW {
        /// Decay of the two moments.
        betas: [f32; 2],
        /// Added to the root of the second moment.
        epsilon: f32,
        /// Decoupled decay of the weights.
        weight_decay: f32,
    },
}

/// A learning rate that rises linearly, then falls as a power of what is left.
///
/// Step `i`, from 0, has `base * (i + 1) / warmup_steps` while `i < warmup_steps`, and
/// `base * (1 - (i - warmup_steps) / total) ^ power` from then on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WarmupPolynomial {
    /// The largest rate.
    pub base: f64,
    /// Steps until it is reached.
    pub warmup_steps: u64,
    /// The decay's exponent: 0 keeps the rate, 1 is a straight line to zero.
    pub power: f64,
}

/// A setting of the optimisation that cannot be.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("`{field}` must be {expected}, found {found}")]
pub struct OptimizationError {
    /// The setting.
    pub field: &'static str,
    /// Its value.
    pub found: f64,
    /// What was expected.
    pub expected: &'static str,
}

const BETAS: [f32; 2] = [0.9, 0.999];
const EPSILON: f32 = 1e-8;

impl OptimizationConfig {
    /// The released code's: AdamW with a weight decay of 0.1, a rate that rises to 1e-3 over 250 steps and then falls with
    /// the power 0.9.
    pub fn released() -> Self {
        Self {
            optimizer: OptimizerConfig::AdamW {
                betas: BETAS,
                epsilon: EPSILON,
                weight_decay: 0.1,
            },
            schedule: WarmupPolynomial {
                base: 1e-3,
                warmup_steps: 250,
                power: 0.9,
            },
        }
    }

    /// The paper's: Adam, with the same rates.
    pub fn paper() -> Self {
        Self {
            optimizer: OptimizerConfig::Adam {
                betas: BETAS,
                epsilon: EPSILON,
            },
            ..Self::released()
        }
    }

    /// Checks every value, before anything is computed.
    ///
    /// # Errors
    ///
    /// The first value that cannot be.
    pub fn validate(&self) -> Result<(), OptimizationError> {
        let ([beta_1, beta_2], epsilon, weight_decay) = match self.optimizer {
            OptimizerConfig::Adam { betas, epsilon } => (betas, epsilon, 0.0),
            OptimizerConfig::AdamW {
                betas,
                epsilon,
                weight_decay,
            } => (betas, epsilon, weight_decay),
        };
        let require = |holds: bool, field, found: f64, expected| match holds {
            true => Ok(()),
            false => Err(OptimizationError {
                field,
                found,
                expected,
            }),
        };
        for beta in [beta_1, beta_2] {
            let holds = (0.0..1.0).contains(&beta);
            require(holds, "betas", beta.into(), "at least 0 and below 1")?;
        }
        for (field, found) in [("epsilon", epsilon.into()), ("base", self.schedule.base)] {
            let holds = f64::is_finite(found) && found > 0.0;
            require(holds, field, found, "positive")?;
        }
        for (field, found) in [
            ("weight_decay", weight_decay.into()),
            ("power", self.schedule.power),
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
            Self::Adam { betas, epsilon } => AdamConfig::new()
                .with_beta_1(betas[0])
                .with_beta_2(betas[1])
                .with_epsilon(epsilon)
                .init(),
            Self::AdamW {
                betas,
                epsilon,
                weight_decay,
            } => AdamWConfig::new()
                .with_beta_1(betas[0])
                .with_beta_2(betas[1])
                .with_epsilon(epsilon)
                .with_weight_decay(weight_decay)
                .init(),
        }
    }
}

impl WarmupPolynomial {
    /// The rate of step `step`, from 0, of `total_steps`.
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
        // A run shorter than its warm-up, and one longer than it said.
        assert!(schedule.at(9, 10) > 0.0);
        assert_eq!(schedule.at(400, 100), 0.0);
        let constant = WarmupPolynomial {
            warmup_steps: 0,
            power: 0.0,
            ..schedule
        };
        assert_eq!([0, 50, 99].map(|step| constant.at(step, 100)), [1e-3; 3]);
    }

    #[test]
    fn values_that_cannot_be_are_named() {
        assert_eq!(OptimizationConfig::released().validate(), Ok(()));
        assert_eq!(OptimizationConfig::paper().validate(), Ok(()));
        let text = |change: &dyn Fn(&mut OptimizationConfig)| {
            let mut config = OptimizationConfig::released();
            change(&mut config);
            config.validate().expect_err("it cannot be").to_string()
        };
        assert_eq!(
            text(&|c| c.schedule.base = 0.0),
            "`base` must be positive, found 0"
        );
        assert!(text(&|c| c.schedule.base = f64::NAN).starts_with("`base`"));
        assert!(text(&|c| c.schedule.power = -1.0).starts_with("`power`"));
        let adam = |betas, epsilon| OptimizerConfig::Adam { betas, epsilon };
        assert!(text(&|c| c.optimizer = adam([0.9, 1.0], 1e-8)).starts_with("`betas`"));
        assert!(text(&|c| c.optimizer = adam(BETAS, 0.0)).starts_with("`epsilon`"));
    }
}
