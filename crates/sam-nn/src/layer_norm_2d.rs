use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::tensor::{Device, Tensor, assert_shape};

/// Configuration of [`LayerNorm2d`].
#[derive(Config, Debug)]
pub struct LayerNorm2dConfig {
    /// Channels `C`.
    pub channels: usize,
    /// Added to the variance. SAM uses 1e-6.
    #[config(default = 1e-6)]
    pub epsilon: f64,
}

/// Layer normalisation over the channels of each pixel of a `[B, C, H, W]` tensor, SAM's
/// `LayerNorm2d`.
///
/// `y = (x - mean_c(x)) / sqrt(var_c(x) + epsilon) * weight + bias`
#[derive(Module, Debug)]
pub struct LayerNorm2d {
    /// Scale, `[C]`.
    pub weight: Param<Tensor<1>>,
    /// Shift, `[C]`.
    pub bias: Param<Tensor<1>>,
    epsilon: f64,
}

impl LayerNorm2dConfig {
    /// Creates the layer with scale 1 and shift 0.
    pub fn init(&self, device: &Device) -> LayerNorm2d {
        LayerNorm2d {
            weight: Initializer::Ones.init([self.channels], device),
            bias: Initializer::Zeros.init([self.channels], device),
            epsilon: self.epsilon,
        }
    }
}

impl LayerNorm2d {
    /// Normalises each pixel over its channels.
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
        let centered = input.clone() - input.mean_dim(1); // [B, C, H, W]
        let variance = (centered.clone() * centered.clone()).mean_dim(1); // [B, 1, H, W]
        let normed = centered / (variance + self.epsilon).sqrt();
        let per_channel = [1, channels, 1, 1];
        normed * self.weight.val().reshape(per_channel) + self.bias.val().reshape(per_channel)
    }

    /// [`forward`](Self::forward) on a channels-last tensor `[B, H, W, C]` for which
    /// [`sam_lst_cpu_kernels::is_supported`] is true.
    ///
    /// # Panics
    ///
    /// If the last axis of `input` is not `C`, or no CPU kernel supports `input`.
    pub fn forward_channels_last(&self, input: Tensor<4>) -> Tensor<4> {
        sam_lst_cpu_kernels::layer_norm(input, [self.weight.val(), self.bias.val()], self.epsilon)
    }
}
