use burn::config::Config;
use burn::module::{Initializer, Module};
use burn::nn::PaddingConfig2d;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::{Device, FloatDType, Tensor};
use sam_lst_sam_nn::{cast_like, pointwise_channels_last};

/// The epsilon of TinyViT's batch norms.
pub const BATCH_NORM_EPSILON: f64 = 1e-5;

/// Configuration of [`ConvBn`]. The padding is half the kernel's side.
#[derive(Config, Debug)]
pub struct ConvBnConfig {
    /// Channels of input and output.
    pub channels: [usize; 2],
    /// Side of the kernel; odd.
    #[config(default = 1)]
    pub kernel: usize,
    /// Pixels from one output to the next.
    #[config(default = 1)]
    pub stride: usize,
    /// Groups of channels: 1, or as many as channels for a depthwise convolution.
    #[config(default = 1)]
    pub groups: usize,
}

impl ConvBnConfig {
    /// A depthwise 3 x 3 convolution.
    pub(crate) fn depthwise(channels: usize) -> Self {
        Self::new([channels; 2]).with_kernel(3).with_groups(channels)
    }

    /// Creates the layer with random weights and zero bias.
    pub fn init(&self, device: &Device) -> ConvBn {
        let pad = self.kernel / 2;
        let initializer =
            Initializer::KaimingNormal { gain: std::f64::consts::SQRT_2, fan_out_only: false };
        let mut c = Conv2dConfig::new(self.channels, [self.kernel; 2])
            .with_stride([self.stride; 2])
            .with_padding(PaddingConfig2d::Explicit(pad, pad, pad, pad))
            .with_groups(self.groups)
            .with_initializer(initializer)
            .init(device);
        c.bias = Some(Initializer::Zeros.init([self.channels[1]], device));
        ConvBn { c }
    }
}

/// A convolution and the batch norm after it, TinyViT's `Conv2d_BN`, as one convolution with bias.
#[derive(Module, Debug)]
pub struct ConvBn {
    /// The convolution; the batch norm is folded into its weight and bias.
    pub c: Conv2d,
}

impl ConvBn {
    /// Applies the layer. It computes in the float type of the weights and returns the float type
    /// of the input.
    ///
    /// # Shapes
    ///
    /// - input: `[B, H, W, channels in]`
    /// - output: `[B, ceil(H / stride), ceil(W / stride), channels out]`
    ///
    /// # Panics
    ///
    /// If the last axis of `input` is not the number of input channels.
    pub fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let dtype = FloatDType::from(input.dtype());
        let input = cast_like(input, &self.c.weight);
        let output = if sam_lst_cpu_kernels::is_supported(&input) {
            self.forward_channels_last(input)
        } else {
            self.c.forward(input.permute([0, 3, 1, 2])).permute([0, 2, 3, 1])
        };
        output.cast(dtype)
    }

    /// The same with channels-last kernels, on the CPU.
    fn forward_channels_last(&self, input: Tensor<4>) -> Tensor<4> {
        let weight = self.c.weight.val();
        let [channels_out, _, kernel, _] = weight.dims();
        let [stride, _] = self.c.stride;
        if kernel == 1 && self.c.groups == 1 {
            return pointwise_channels_last(&self.c, input);
        }
        let bias = self.bias();
        if self.c.groups > 1 {
            return sam_lst_cpu_kernels::depthwise_conv2d(input, weight, bias, stride);
        }
        let output = sam_lst_cpu_kernels::conv2d(input, weight, stride, kernel / 2);
        output + bias.reshape([1, 1, 1, channels_out])
    }

    fn bias(&self) -> Tensor<1> {
        match &self.c.bias {
            Some(bias) => bias.val(),
            None => unreachable!("ConvBnConfig::init creates the convolution with a bias"),
        }
    }
}

/// The parameters and running statistics of a batch norm, one value per channel.
#[derive(Debug, Clone, Copy)]
pub struct BatchNorm<'a> {
    /// Scale.
    pub weight: &'a [f32],
    /// Shift.
    pub bias: &'a [f32],
    /// Running mean.
    pub mean: &'a [f32],
    /// Running variance.
    pub variance: &'a [f32],
}

/// Folds a batch norm into the convolution before it, which has no bias: scales `weight`,
/// `[channels out, ..]`, in place and returns the bias.
///
/// `w' = w * gamma / sqrt(variance + epsilon)`, `b' = beta - mean * gamma / sqrt(variance +
/// epsilon)`, each computed in 64 bits and rounded once.
///
/// # Panics
///
/// If the norm has no channels, its tensors have different lengths, or `weight` does not hold as
/// many values for each channel.
pub fn fold_batch_norm(weight: &mut [f32], norm: BatchNorm<'_>) -> Vec<f32> {
    let channels = norm.weight.len();
    assert!(
        channels > 0
            && [norm.bias, norm.mean, norm.variance].iter().all(|values| values.len() == channels)
            && weight.len().is_multiple_of(channels),
        "cannot fold a batch norm of {channels} channels with {} shifts, {} means and {} variances \
         into {} weights",
        norm.bias.len(),
        norm.mean.len(),
        norm.variance.len(),
        weight.len()
    );
    let per_channel = weight.len() / channels;
    (0..channels)
        .map(|channel| {
            let deviation = (f64::from(norm.variance[channel]) + BATCH_NORM_EPSILON).sqrt();
            let scale = f64::from(norm.weight[channel]) / deviation;
            for value in &mut weight[channel * per_channel..][..per_channel] {
                *value = (f64::from(*value) * scale) as f32;
            }
            (f64::from(norm.bias[channel]) - f64::from(norm.mean[channel]) * scale) as f32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folding_scales_each_channel_and_shifts_its_bias() {
        let mut weight = [1.0, 2.0, 3.0, 4.0];
        let norm = BatchNorm {
            weight: &[2.0, 1.0],
            bias: &[0.5, -1.0],
            mean: &[3.0, 0.0],
            variance: &[4.0 - 1e-5, 1.0 - 1e-5],
        };
        let bias = fold_batch_norm(&mut weight, norm);
        assert_eq!(weight, [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(bias, [-2.5, -1.0]);
        let norm = BatchNorm { variance: &[1.0 - 1e-5, 0.25 - 1e-5], ..norm };
        let bias = fold_batch_norm(&mut weight, norm);
        assert_eq!(weight, [2.0, 4.0, 6.0, 8.0]);
        assert_eq!(bias, [-5.5, -1.0]);
    }

    #[test]
    #[should_panic(expected = "2 channels with 2 shifts, 1 means")]
    fn folding_a_norm_of_another_width_panics() {
        let norm =
            BatchNorm { weight: &[1.0; 2], bias: &[0.0; 2], mean: &[0.0], variance: &[1.0; 2] };
        fold_batch_norm(&mut [0.0; 4], norm);
    }
}
