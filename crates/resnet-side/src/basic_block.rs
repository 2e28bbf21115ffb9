use crate::{BatchNorm2d, BatchNorm2dConfig};
use burn::config::Config;
use burn::module::{Initializer, Module};
use burn::nn::PaddingConfig2d;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};

/// Creates a convolution without bias, initialised as in torchvision (He et al., arXiv 1502.01852,
/// with the fan-out).
pub(crate) fn conv(
    [channels_in, channels_out]: [usize; 2],
    kernel: usize,
    stride: usize,
    device: &Device,
) -> Conv2d {
    let pad = kernel / 2;
    Conv2dConfig::new([channels_in, channels_out], [kernel, kernel])
        .with_stride([stride, stride])
        .with_padding(PaddingConfig2d::Explicit(pad, pad, pad, pad))
        .with_bias(false)
        .with_initializer(Initializer::KaimingNormal {
            gain: std::f64::consts::SQRT_2,
            fan_out_only: true,
        })
        .init(device)
}

/// Applies a convolution from [`conv`] to a channels-last tensor `[B, H, W, C]` for which
/// [`sam_lst_cpu_kernels::is_supported`] is true.
pub(crate) fn conv_channels_last(conv: &Conv2d, input: Tensor<4>) -> Tensor<4> {
    let ([stride, _], [kernel, _]) = (conv.stride, conv.kernel_size);
    sam_lst_cpu_kernels::conv2d(input, conv.weight.val(), stride, kernel / 2)
}

/// Configuration of [`BasicBlock`].
#[derive(Config, Debug)]
pub struct BasicBlockConfig {
    /// Channels of input and output.
    pub channels: [usize; 2],
    /// Stride of the first convolution.
    #[config(default = 1)]
    pub stride: usize,
}

/// Two 3 x 3 convolutions with a shortcut connection:
/// `relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))`.
#[derive(Module, Debug)]
pub struct BasicBlock {
    /// First convolution, which has the block's stride.
    pub conv1: Conv2d,
    /// Norm after the first convolution.
    pub bn1: BatchNorm2d,
    /// Second convolution.
    pub conv2: Conv2d,
    /// Norm after the second convolution.
    pub bn2: BatchNorm2d,
    /// Projection of the shortcut; `None` if the block changes neither channels nor size.
    pub downsample: Option<Downsample>,
}

/// The projection shortcut of a block that changes channels or size: a strided 1 x 1 convolution
/// and a norm.
#[derive(Module, Debug)]
pub struct Downsample {
    /// Strided 1 x 1 convolution.
    pub conv: Conv2d,
    /// Norm after the convolution.
    pub norm: BatchNorm2d,
}

impl BasicBlockConfig {
    /// Creates the block with random weights.
    pub fn init(&self, device: &Device) -> BasicBlock {
        let [channels_in, channels_out] = self.channels;
        let norm = BatchNorm2dConfig::new(channels_out);
        let needs_projection = self.stride != 1 || channels_in != channels_out;
        BasicBlock {
            conv1: conv(self.channels, 3, self.stride, device),
            bn1: norm.init(device),
            conv2: conv([channels_out; 2], 3, 1, device),
            bn2: norm.init(device),
            downsample: needs_projection.then(|| Downsample {
                conv: conv(self.channels, 1, self.stride, device),
                norm: norm.init(device),
            }),
        }
    }
}

impl BasicBlock {
    /// Applies the block.
    ///
    /// # Shapes
    ///
    /// - input: `[B, input channels, H, W]`
    /// - output: `[B, output channels, H / stride, W / stride]`
    ///
    /// # Panics
    ///
    /// If the second axis of `input` is not the number of input channels.
    pub fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let shortcut = match &self.downsample {
            Some(Downsample { conv, norm }) => norm.forward(conv.forward(input.clone())),
            None => input.clone(),
        };
        let residual = relu(self.bn1.forward(self.conv1.forward(input)));
        let residual = self.bn2.forward(self.conv2.forward(residual));
        relu(residual + shortcut)
    }

    /// [`forward`](Self::forward) on a channels-last tensor `[B, H, W, C]` for which
    /// [`sam_lst_cpu_kernels::is_supported`] is true.
    pub(crate) fn forward_channels_last(&self, input: Tensor<4>) -> Tensor<4> {
        let shortcut = match &self.downsample {
            Some(Downsample { conv, norm }) => {
                let projected = conv_channels_last(conv, input.clone());
                norm.forward_channels_last(projected, None, false)
            }
            None => input.clone(),
        };
        let residual = conv_channels_last(&self.conv1, input);
        let residual = self.bn1.forward_channels_last(residual, None, true);
        let residual = conv_channels_last(&self.conv2, residual);
        self.bn2.forward_channels_last(residual, Some(shortcut), true)
    }
}
