use burn::module::Module;
use burn::nn::PaddingConfig2d;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::{Device, Tensor};
use sam_lst_sam_nn::{BatchNorm2d, BatchNorm2dConfig, convolve_same};

/// A convolution without bias, initialised as by default in PyTorch, a batch norm, and ReLU where
/// the network says so. Channels are the last axis.
#[derive(Module, Debug)]
pub struct ConvNorm {
    /// The convolution, padded by half its kernel's side.
    pub conv: Conv2d,
    /// Norm after the convolution.
    pub norm: BatchNorm2d,
}

impl ConvNorm {
    /// Creates the layer with random weights.
    pub(crate) fn init(
        channels: [usize; 2],
        kernel: usize,
        stride: usize,
        device: &Device,
    ) -> Self {
        let pad = kernel / 2;
        Self {
            conv: Conv2dConfig::new(channels, [kernel; 2])
                .with_stride([stride; 2])
                .with_padding(PaddingConfig2d::Explicit(pad, pad, pad, pad))
                .with_bias(false)
                .init(device),
            norm: BatchNorm2dConfig::new(channels[1]).init(device),
        }
    }

    /// Applies the layer, and ReLU if `rectify` is set.
    ///
    /// # Shapes
    ///
    /// - input: `[B, H, W, channels in]`
    /// - output: `[B, H / stride, W / stride, channels out]`
    ///
    /// # Panics
    ///
    /// If the last axis of `input` is not the number of input channels.
    pub fn forward(&self, input: Tensor<4>, rectify: bool) -> Tensor<4> {
        self.norm.forward_channels_last(convolve_same(&self.conv, input), None, rectify)
    }
}

/// Two 3 x 3 convolutions, each followed by batch norm and ReLU. Channels are the last axis.
#[derive(Module, Debug)]
pub struct DoubleConv {
    /// First convolution, which has the block's stride.
    pub conv1: ConvNorm,
    /// Second convolution.
    pub conv2: ConvNorm,
}

impl DoubleConv {
    /// Creates the block with random weights.
    pub(crate) fn init(
        [channels_in, channels_out]: [usize; 2],
        stride: usize,
        device: &Device,
    ) -> Self {
        Self {
            conv1: ConvNorm::init([channels_in, channels_out], 3, stride, device),
            conv2: ConvNorm::init([channels_out; 2], 3, 1, device),
        }
    }

    /// Applies the block.
    ///
    /// # Shapes
    ///
    /// - input: `[B, H, W, channels in]`
    /// - output: `[B, H / stride, W / stride, channels out]`
    ///
    /// # Panics
    ///
    /// If the last axis of `input` is not the number of input channels.
    pub fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        self.conv2.forward(self.conv1.forward(input, true), true)
    }
}
