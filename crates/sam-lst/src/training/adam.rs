//! Adam and AdamW, as Burn has them, with one pass over the values on Burn's CPU backend: with large
//! networks, the passes of their single operations take as long as a fifth of a step.

use burn::optim::{
    Adam, AdamConfig, AdamState, AdamW, AdamWConfig, AdamWState, AdaptiveMomentumState,
    LearningRate, Optimizer,
};
use burn::tensor::{Device, Tensor};
use sam_lst_cpu_kernels::{AdamStep, adam_step, is_supported};

/// Adam (Kingma and Ba, arXiv 1412.6980).
#[derive(Clone)]
pub(super) struct FusedAdam {
    burn: Adam,
    betas: [f32; 2],
    epsilon: f32,
}

/// AdamW (Loshchilov and Hutter, arXiv 1711.05101).
#[derive(Clone)]
pub(super) struct FusedAdamW {
    burn: AdamW,
    betas: [f32; 2],
    epsilon: f32,
    weight_decay: f32,
}

impl FusedAdam {
    pub(super) fn new(betas: [f32; 2], epsilon: f32) -> Self {
        let [beta_1, beta_2] = betas;
        let config = AdamConfig::new().with_beta_1(beta_1).with_beta_2(beta_2);
        Self { burn: config.with_epsilon(epsilon).build(), betas, epsilon }
    }
}

impl FusedAdamW {
    pub(super) fn new(betas: [f32; 2], epsilon: f32, weight_decay: f32) -> Self {
        let [beta_1, beta_2] = betas;
        let config = AdamWConfig::new().with_beta_1(beta_1).with_beta_2(beta_2);
        let burn = config.with_epsilon(epsilon).with_weight_decay(weight_decay).build();
        Self { burn, betas, epsilon, weight_decay }
    }
}

impl Optimizer for FusedAdam {
    type State<const D: usize> = AdamState<D>;

    fn step<const D: usize>(
        &self,
        learning_rate: LearningRate,
        parameter: Tensor<D>,
        gradient: Tensor<D>,
        state: Option<AdamState<D>>,
    ) -> (Tensor<D>, Option<AdamState<D>>) {
        if !(is_supported(&parameter) && is_supported(&gradient)) {
            return self.burn.step(learning_rate, parameter, gradient, state);
        }
        let time = state.as_ref().map_or(0, |state| state.momentum.time) + 1;
        let [first, second] = self.betas.map(|beta| 1.0 - beta.powi(time as i32));
        let step = AdamStep {
            betas: self.betas,
            first_factor: second.sqrt() / first,
            first_divisor: 1.0,
            second_divisor: 1.0,
            epsilon: self.epsilon * second.sqrt(),
            decay: 1.0,
            learning_rate: learning_rate as f32,
        };
        let momentum = state.map(|state| state.momentum);
        let (parameter, momentum) = apply(step, time, parameter, gradient, momentum);
        (parameter, Some(AdamState::new(momentum)))
    }

    fn to_device<const D: usize>(state: AdamState<D>, device: &Device) -> AdamState<D> {
        Adam::to_device(state, device)
    }
}

impl Optimizer for FusedAdamW {
    type State<const D: usize> = AdamWState<D>;

    fn step<const D: usize>(
        &self,
        learning_rate: LearningRate,
        parameter: Tensor<D>,
        gradient: Tensor<D>,
        state: Option<AdamWState<D>>,
    ) -> (Tensor<D>, Option<AdamWState<D>>) {
        if !(is_supported(&parameter) && is_supported(&gradient)) {
            return self.burn.step(learning_rate, parameter, gradient, state);
        }
        let time = state.as_ref().map_or(0, |state| state.momentum.time) + 1;
        let [first_divisor, second_divisor] = self.betas.map(|beta| 1.0 - beta.powi(time as i32));
        let step = AdamStep {
            betas: self.betas,
            first_factor: 1.0,
            first_divisor,
            second_divisor,
            epsilon: self.epsilon,
            decay: (1.0 - learning_rate * f64::from(self.weight_decay)) as f32,
            learning_rate: learning_rate as f32,
        };
        let momentum = state.map(|state| state.momentum);
        let (parameter, momentum) = apply(step, time, parameter, gradient, momentum);
        (parameter, Some(AdamWState::new(momentum)))
    }

    fn to_device<const D: usize>(state: AdamWState<D>, device: &Device) -> AdamWState<D> {
        AdamW::to_device(state, device)
    }
}

/// Applies step number `time`, from 1, to a parameter and its moments.
fn apply<const D: usize>(
    step: AdamStep,
    time: usize,
    parameter: Tensor<D>,
    gradient: Tensor<D>,
    momentum: Option<AdaptiveMomentumState<D>>,
) -> (Tensor<D>, AdaptiveMomentumState<D>) {
    let moments = momentum.map(|momentum| [momentum.moment_1, momentum.moment_2]);
    let (parameter, [first, second]) = adam_step(step, parameter, gradient, moments);
    (parameter, AdaptiveMomentumState::new(time, first, second))
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::TensorData;

    fn values(seed: u32) -> Tensor<2> {
        let mut state = seed;
        let values: Vec<f32> = (0..7 * 11)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect();
        Tensor::from_data(TensorData::new(values, [7, 11]), &Device::flex())
    }

    /// The parameter after five steps, bit by bit.
    fn steps<O: Optimizer>(optimizer: &O) -> Vec<u32> {
        let mut parameter = values(0);
        let mut state = None;
        for step in 1..=5 {
            let rate = 1e-3 * f64::from(step);
            (parameter, state) = optimizer.step(rate, parameter, values(step), state);
        }
        parameter.into_data().iter::<f32>().map(f32::to_bits).collect()
    }

    #[test]
    fn steps_are_those_of_burn() {
        let adam = FusedAdam::new([0.9, 0.999], 1e-8);
        assert_eq!(steps(&adam), steps(&adam.burn));
        for weight_decay in [0.0, 0.1] {
            let adam_w = FusedAdamW::new([0.9, 0.99], 1e-6, weight_decay);
            assert_eq!(steps(&adam_w), steps(&adam_w.burn));
        }
    }

    #[test]
    fn tensors_that_share_a_buffer_are_not_overwritten() {
        let parameter = values(0);
        let before = parameter.clone();
        let adam_w = FusedAdamW::new([0.9, 0.999], 1e-8, 0.1);
        let gradient = values(1);
        let (after, state) = adam_w.step(0.1, parameter, gradient.clone(), None);
        let (kept_state, kept) = (state.clone(), after.clone());
        let (again, _) = adam_w.step(0.1, after, gradient.clone(), state);
        assert_eq!(before.into_data(), values(0).into_data());
        assert_eq!(gradient.clone().into_data(), values(1).into_data());
        let (repeated, _) = adam_w.step(0.1, kept, gradient, kept_state);
        assert_eq!(repeated.into_data(), again.into_data());
    }
}
