use burn::config::Config;
use burn::module::{Flag, Initializer, Module, Param, RunningState};
use burn::tensor::activation::relu;
use burn::tensor::module::{batch_norm, batch_norm_train};
use burn::tensor::{Device, Tensor, assert_shape};
use sam_lst_cpu_kernels::Statistics;

/// Configuration of [`BatchNorm2d`].
#[derive(Config, Debug)]
pub struct BatchNorm2dConfig {
    /// Channels `C`.
    pub channels: usize,
    /// Added to the variance.
    #[config(default = 1e-5)]
    pub epsilon: f64,
    /// Weight of the current batch in the update of the running statistics.
    #[config(default = 0.1)]
    pub momentum: f64,
}

/// Batch normalisation over a `[B, C, H, W]` tensor, as PyTorch computes it.
///
/// Unlike Burn's batch norm, it stores the *unbiased* variance in the running statistics (the batch
/// itself is normalised by the biased variance), so that a network trained here evaluates exactly
/// like one trained in PyTorch.
///
/// Batch statistics are used on a device with autodiff; running statistics are used without
/// autodiff or if the layer is frozen.
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
    /// Normalises each channel, with batch statistics when training and running statistics
    /// otherwise.
    ///
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
        let [batch, _, height, width] = input.dims();
        let result = batch_norm_train(input, self.weight.val(), self.bias.val(), self.epsilon);
        self.update(result.mean, result.variance, batch * height * width);
        result.output
    }

    /// Updates the running statistics with the mean and the biased variance of a batch of `samples`
    /// values per channel.
    fn update(&self, mean: Tensor<1>, variance: Tensor<1>, samples: usize) {
        let device = mean.device();
        let samples = samples as f64;
        // A single sample has no unbiased variance. PyTorch raises an error for such a batch; here
        // the biased variance is used.
        let unbiased = samples / (samples - 1.0).max(1.0);
        let blend = |running: Tensor<1>, new: Tensor<1>| {
            running.to_device(&device) * (1.0 - self.momentum) + new.detach() * self.momentum
        };
        let mean = blend(self.running_mean.value_sync(), mean);
        let variance = blend(self.running_var.value_sync(), variance * unbiased);
        self.running_mean.update(mean.detach());
        self.running_var.update(variance.detach());
    }

    /// [`forward`](Self::forward) on a channels-last tensor; then adds `shortcut`, if any, and
    /// applies ReLU if `rectify` is set.
    ///
    /// # Shapes
    ///
    /// - input, shortcut, output: `[B, H, W, C]`
    ///
    /// # Panics
    ///
    /// If the last axis of `input` is not `C`, or the shortcut has another shape.
    pub fn forward_channels_last(
        &self,
        input: Tensor<4>,
        shortcut: Option<Tensor<4>>,
        rectify: bool,
    ) -> Tensor<4> {
        if !sam_lst_cpu_kernels::is_supported(&input) {
            let output = self.forward(input.permute([0, 3, 1, 2])).permute([0, 2, 3, 1]);
            return add_and_rectify(output, shortcut, rectify);
        }
        let [batch, height, width, _] = input.dims();
        let parameters = [self.weight.val(), self.bias.val()];
        let is_training = input.is_autodiff() && self.training.is_enabled();
        let statistics = if is_training {
            let statistics = sam_lst_cpu_kernels::moments(&input);
            let Statistics { mean, variance } = statistics.clone();
            self.update(mean, variance, batch * height * width);
            statistics
        } else {
            let device = input.device().inner();
            let running = |value: &RunningState<Tensor<1>>| value.value().to_device(&device);
            Statistics { mean: running(&self.running_mean), variance: running(&self.running_var) }
        };
        if is_training || !input.is_autodiff() {
            let epsilon = self.epsilon;
            return sam_lst_cpu_kernels::batch_norm(
                input,
                &statistics,
                parameters,
                epsilon,
                shortcut,
                rectify,
            );
        }
        // A frozen layer with autodiff: the statistics are constants, which the kernel's gradient
        // does not support.
        let constant = |values: Tensor<1>| Tensor::from_inner(values).reshape([1, 1, 1, -1]);
        let [weight, bias] = parameters.map(|values| values.reshape([1, 1, 1, -1]));
        let deviation = constant(statistics.variance.add_scalar(self.epsilon).sqrt());
        let output = (input - constant(statistics.mean)) / deviation * weight + bias;
        add_and_rectify(output, shortcut, rectify)
    }
}

fn add_and_rectify(output: Tensor<4>, shortcut: Option<Tensor<4>>, rectify: bool) -> Tensor<4> {
    let output = match shortcut {
        Some(shortcut) => output + shortcut,
        None => output,
    };
    if rectify { relu(output) } else { output }
}
