use burn::config::Config;
use burn::module::{Initializer, Module};
use burn::nn::PaddingConfig2d;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};
use sam_lst_sam_nn::{BatchNorm2d, BatchNorm2dConfig, convolve_same};

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

/// Configuration of [`ResidualBlock`].
#[derive(Config, Debug)]
pub struct ResidualBlockConfig {
    /// Channels of input and output.
    pub channels: [usize; 2],
    /// Stride of the block.
    #[config(default = 1)]
    pub stride: usize,
    /// For a bottleneck of three convolutions, its output channels divided by those between the
    /// convolutions; `None` for a block of two.
    #[config(default = "None")]
    pub bottleneck_expansion: Option<usize>,
}

/// Convolutions with a shortcut connection, torchvision's `BasicBlock` or `Bottleneck`.
///
/// Two 3 x 3 convolutions, `relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))`, or a bottleneck:
/// a 1 x 1 convolution to fewer channels, a 3 x 3 and a 1 x 1 convolution.
#[derive(Module, Debug)]
pub struct ResidualBlock {
    /// First convolution, which has the stride of a block of two.
    pub conv1: Conv2d,
    /// Norm after the first convolution.
    pub bn1: BatchNorm2d,
    /// Second convolution, which has the stride of a bottleneck.
    pub conv2: Conv2d,
    /// Norm after the second convolution.
    pub bn2: BatchNorm2d,
    /// Third convolution of a bottleneck.
    pub conv3: Option<Conv2d>,
    /// Norm after the third convolution.
    pub bn3: Option<BatchNorm2d>,
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

impl ResidualBlockConfig {
    /// Creates the block with random weights.
    pub fn init(&self, device: &Device) -> ResidualBlock {
        let Self { channels: [channels_in, channels_out], stride, bottleneck_expansion } = *self;
        let bottleneck = bottleneck_expansion.is_some();
        let norm = |channels| BatchNorm2dConfig::new(channels).init(device);
        let middle = channels_out / bottleneck_expansion.unwrap_or(1);
        let (kernel, [first, second]) =
            if bottleneck { (1, [1, stride]) } else { (3, [stride, 1]) };
        let needs_projection = stride != 1 || channels_in != channels_out;
        ResidualBlock {
            conv1: conv([channels_in, middle], kernel, first, device),
            bn1: norm(middle),
            conv2: conv([middle; 2], 3, second, device),
            bn2: norm(middle),
            conv3: bottleneck.then(|| conv([middle, channels_out], 1, 1, device)),
            bn3: bottleneck.then(|| norm(channels_out)),
            downsample: needs_projection.then(|| Downsample {
                conv: conv(self.channels, 1, stride, device),
                norm: norm(channels_out),
            }),
        }
    }
}

impl ResidualBlock {
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
        let residual = match (&self.conv3, &self.bn3) {
            (Some(conv3), Some(bn3)) => bn3.forward(conv3.forward(relu(residual))),
            _ => residual,
        };
        relu(residual + shortcut)
    }

    /// [`forward`](Self::forward) on a channels-last tensor `[B, H, W, C]` for which
    /// [`sam_lst_cpu_kernels::is_supported`] is true.
    pub(crate) fn forward_channels_last(&self, input: Tensor<4>) -> Tensor<4> {
        let shortcut = match &self.downsample {
            Some(Downsample { conv, norm }) => {
                let projected = convolve_same(conv, input.clone());
                norm.forward_channels_last(projected, None, false)
            }
            None => input.clone(),
        };
        let residual = convolve_same(&self.conv1, input);
        let residual = self.bn1.forward_channels_last(residual, None, true);
        let residual = convolve_same(&self.conv2, residual);
        match (&self.conv3, &self.bn3) {
            (Some(conv3), Some(bn3)) => {
                let residual = self.bn2.forward_channels_last(residual, None, true);
                let residual = convolve_same(conv3, residual);
                bn3.forward_channels_last(residual, Some(shortcut), true)
            }
            _ => self.bn2.forward_channels_last(residual, Some(shortcut), true),
        }
    }
}
