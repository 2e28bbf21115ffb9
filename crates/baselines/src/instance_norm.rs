use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::tensor::activation::leaky_relu;
use burn::tensor::{Device, Tensor, assert_shape};

/// Configuration of [`InstanceNorm2d`].
#[derive(Config, Debug)]
pub struct InstanceNorm2dConfig {
    /// Channels `C`.
    pub channels: usize,
    /// Added to the variance.
    #[config(default = 1e-5)]
    pub epsilon: f64,
    /// What leaky ReLU multiplies negative values by.
    #[config(default = 0.01)]
    pub negative_slope: f64,
}

/// Instance normalisation with a scale and a shift for each channel (Ulyanov et al., arXiv
/// 1607.08022), followed by leaky ReLU.
#[derive(Module, Debug)]
pub struct InstanceNorm2d {
    /// Scale, `[C]`.
    pub weight: Param<Tensor<1>>,
    /// Shift, `[C]`.
    pub bias: Param<Tensor<1>>,
    epsilon: f64,
    negative_slope: f64,
}

impl InstanceNorm2dConfig {
    /// Creates the layer with scale 1 and shift 0.
    pub fn init(&self, device: &Device) -> InstanceNorm2d {
        InstanceNorm2d {
            weight: Initializer::Ones.init([self.channels], device),
            bias: Initializer::Zeros.init([self.channels], device),
            epsilon: self.epsilon,
            negative_slope: self.negative_slope,
        }
    }
}

impl InstanceNorm2d {
    /// Normalises each channel of each image by its mean and biased variance, and applies leaky
    /// ReLU.
    ///
    /// # Shapes
    ///
    /// - input, output: `[B, C, H, W]`
    ///
    /// # Panics
    ///
    /// If the second axis of `input` is not `C`.
    pub fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let [channels] = self.weight.dims();
        assert_shape!(input, [_, channels, _, _]);
        let [batch, channels, height, width] = input.dims();
        let pixels = input.reshape([batch, channels, height * width]);
        let centred = pixels.clone() - pixels.mean_dim(2);
        let variance = centred.clone().powi_scalar(2).mean_dim(2);
        let normalised = centred / variance.add_scalar(self.epsilon).sqrt();
        let [weight, bias] = [&self.weight, &self.bias].map(|p| p.val().reshape([1, -1, 1]));
        let output = normalised * weight + bias;
        leaky_relu(output.reshape([batch, channels, height, width]), self.negative_slope)
    }

    /// [`forward`](Self::forward) on a channels-last tensor `[B, H, W, C]` for which
    /// [`sam_lst_cpu_kernels::is_supported`] is true.
    pub(crate) fn forward_channels_last(&self, input: Tensor<4>) -> Tensor<4> {
        let [channels] = self.weight.dims();
        sam_lst_cpu_kernels::group_norm(
            input,
            channels,
            [self.weight.val(), self.bias.val()],
            self.epsilon,
            self.negative_slope as f32,
        )
    }
}
