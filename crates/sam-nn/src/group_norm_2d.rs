use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor, assert_shape};

/// Configuration of [`GroupNorm2d`].
#[derive(Config, Debug)]
pub struct GroupNorm2dConfig {
    /// Channels `C`.
    pub channels: usize,
    /// Groups of channels; divides `channels`.
    #[config(default = 32)]
    pub groups: usize,
    /// Added to the variance.
    #[config(default = 1e-5)]
    pub epsilon: f64,
}

/// Group normalisation (Wu and He, arXiv 1803.08494) of channels-last images.
#[derive(Module, Debug)]
pub struct GroupNorm2d {
    /// Scale, `[C]`.
    pub weight: Param<Tensor<1>>,
    /// Shift, `[C]`.
    pub bias: Param<Tensor<1>>,
    groups: usize,
    epsilon: f64,
}

impl GroupNorm2dConfig {
    /// Creates the layer with scale 1 and shift 0.
    ///
    /// # Panics
    ///
    /// If `groups` does not divide `channels`.
    pub fn init(&self, device: &Device) -> GroupNorm2d {
        let Self { channels, groups, epsilon } = *self;
        assert!(
            groups > 0 && channels.is_multiple_of(groups),
            "{groups} groups do not divide {channels} channels"
        );
        GroupNorm2d {
            weight: Initializer::Ones.init([channels], device),
            bias: Initializer::Zeros.init([channels], device),
            groups,
            epsilon,
        }
    }
}

impl GroupNorm2d {
    /// Normalises each group of channels of each image by its mean and biased variance, and applies
    /// ReLU if `rectify` is set.
    ///
    /// # Shapes
    ///
    /// - input, output: `[B, H, W, C]`
    ///
    /// # Panics
    ///
    /// If the last axis of `input` is not `C`.
    pub fn forward(&self, input: Tensor<4>, rectify: bool) -> Tensor<4> {
        let [channels] = self.weight.dims();
        assert_shape!(input, [_, _, _, channels]);
        if sam_lst_cpu_kernels::is_supported(&input) {
            let parameters = [self.weight.val(), self.bias.val()];
            let slope = if rectify { 0.0 } else { 1.0 };
            return sam_lst_cpu_kernels::group_norm(
                input,
                self.groups,
                parameters,
                self.epsilon,
                slope,
            );
        }
        let shape @ [batch, height, width, _] = input.dims();
        let members = channels / self.groups;
        let input = input.reshape([batch, height * width, self.groups, members]);
        let mean = |values: Tensor<4>| values.mean_dim(1).mean_dim(3);
        let centred = input.clone() - mean(input);
        let variance = mean(centred.clone().square());
        let [weight, bias] =
            [&self.weight, &self.bias].map(|p| p.val().reshape([1, 1, self.groups, members]));
        // One scale for each channel of each image, which is far smaller than the image.
        let scale = variance.add_scalar(self.epsilon).sqrt().recip() * weight;
        let output = (centred * scale + bias).reshape(shape);
        if rectify { relu(output) } else { output }
    }
}
