use burn::config::Config;
use burn::module::{Flag, Initializer, Module, Param, RunningState};
use burn::tensor::module::{batch_norm, batch_norm_train};
use burn::tensor::{Device, Tensor, assert_shape};

/// Configuration of [`BatchNorm2d`].
#[derive(Config, Debug)]
pub struct BatchNorm2dConfig {
    /// Channels `C`.
    pub channels: usize,
    /// Added to the variance.
    #[config(default = 1e-5)]
    pub epsilon: f64,
    /// Share of the new batch in the running statistics.
    #[config(default = 0.1)]
    pub momentum: f64,
}

/// Batch normalisation over a `[B, C, H, W]` tensor, as PyTorch computes it.
///
/// Unlike Burn's own layer it keeps the *unbiased* variance in the running statistics (the batch itself is normalised
/// by the biased one), so that a network trained here evaluates as one trained in PyTorch does.
///
/// Batch statistics are used on an autodiff device, running statistics off it or where the layer is frozen.
#[derive(Module, Debug)]
pub struct BatchNorm2d {
    /// Scale, `[C]`.
    pub weight: Param<Tensor<1>>,
    /// Shift, `[C]`.
    pub bias: Param<Tensor<1>>,
    /// Running mean, `[C]`.
    pub running_mean: RunningState<Tensor<1>>,
    /// Running unbiased variance, `[C]`.
    pub running_var: RunningState<Tensor<1>>,
    training: Param<Flag>,
    epsilon: f64,
    momentum: f64,
}

impl BatchNorm2dConfig {
    /// Creates the layer with scale 1, shift 0, running mean 0 and variance 1.
    pub fn init(&self, device: &Device) -> BatchNorm2d {
        let shape = [self.channels];
        BatchNorm2d {
            weight: Initializer::Ones.init(shape, device),
            bias: Initializer::Zeros.init(shape, device),
            running_mean: RunningState::new(Tensor::zeros(shape, device)),
            running_var: RunningState::new(Tensor::ones(shape, device)),
            training: Param::from_bool(true),
            epsilon: self.epsilon,
            momentum: self.momentum,
        }
    }
}

impl BatchNorm2d {
    /// # Shapes
    ///
    /// - input: `[B, C, H, W]`
    /// - output: `[B, C, H, W]`
    ///
    /// # Panics
    ///
    /// If the second axis of `input` is not `C`.
    pub fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let [channels] = self.weight.dims();
        assert_shape!(input, [_, channels, _, _]);
        if input.is_autodiff() && self.training.is_enabled() {
            self.forward_train(input)
        } else {
            let device = input.device();
            batch_norm(
                input,
                self.weight.val(),
                self.bias.val(),
                self.running_mean.value().to_device(&device),
                self.running_var.value().to_device(&device),
                self.epsilon,
            )
        }
    }

    fn forward_train(&self, input: Tensor<4>) -> Tensor<4> {
        let device = input.device();
        let [batch, _, height, width] = input.dims();
        let samples = (batch * height * width) as f64;
        let result = batch_norm_train(input, self.weight.val(), self.bias.val(), self.epsilon);

        // A single sample has no unbiased variance; PyTorch refuses such a batch, we keep the biased one.
        let unbiased = samples / (samples - 1.0).max(1.0);
        let blend = |running: Tensor<1>, new: Tensor<1>| {
            running.to_device(&device) * (1.0 - self.momentum) + new.detach() * self.momentum
        };
        let mean = blend(self.running_mean.value_sync(), result.mean);
        let variance = blend(self.running_var.value_sync(), result.variance * unbiased);
        self.running_mean.update(mean.detach());
        self.running_var.update(variance.detach());
        result.output
    }
}
