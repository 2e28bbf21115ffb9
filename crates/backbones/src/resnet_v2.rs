use burn::config::Config;
use burn::module::{Initializer, Module};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::pool::MaxPool2dConfig;
use burn::tensor::activation::relu;
use burn::tensor::ops::PadMode;
use burn::tensor::{Device, Tensor};
use sam_lst_sam_nn::{GroupNorm2d, GroupNorm2dConfig, convolve};

/// Configuration of [`ResNetV2`].
#[derive(Config, Debug, PartialEq)]
pub struct ResNetV2Config {
    /// Number of blocks of each stage.
    #[config(default = "[3, 4, 9]")]
    pub blocks: [usize; 3],
    /// Channels of the stem; the stages have 4, 8 and 16 times as many.
    #[config(default = 64)]
    pub width: usize,
    /// Groups of channels of each norm; divides `width`.
    #[config(default = 32)]
    pub groups: usize,
}

impl ResNetV2Config {
    /// Channels of the output.
    pub fn out_channels(&self) -> usize {
        16 * self.width
    }

    /// Creates the network with random weights.
    ///
    /// # Panics
    ///
    /// If a stage has no blocks, or `groups` does not divide `width`.
    pub fn init(&self, device: &Device) -> ResNetV2 {
        let Self { blocks, width, groups } = *self;
        assert!(
            blocks.iter().all(|&count| count > 0),
            "each stage has at least one block, found {blocks:?}"
        );
        let norm = |channels| GroupNorm2dConfig::new(channels).with_groups(groups).init(device);
        let stages = [0, 1, 2].map(|stage| {
            let channels = (4 * width) << stage;
            let block = |index| {
                let stride = if index == 0 && stage > 0 { 2 } else { 1 };
                let channels_in = match (index, stage) {
                    (0, 0) => width,
                    (0, _) => channels / 2,
                    _ => channels,
                };
                Bottleneck::init([channels_in, channels], stride, &norm, device)
            };
            Stage { blocks: (0..blocks[stage]).map(block).collect() }
        });
        ResNetV2 {
            stem: Stem { conv: conv([3, width], 7, 2, device), norm: norm(width) },
            stages: stages.into(),
        }
    }
}

/// A ResNet with weight standardisation and group norm, without its last stage and the classifier.
/// Images are padded as in TensorFlow.
#[derive(Module, Debug)]
pub struct ResNetV2 {
    /// 7 x 7 convolution with stride 2.
    pub stem: Stem,
    /// Stages at 1/4, 1/8 and 1/16 of the input's size.
    pub stages: Vec<Stage>,
}

/// The first convolution, with its norm.
#[derive(Module, Debug)]
pub struct Stem {
    /// 7 x 7 convolution with stride 2.
    pub conv: Conv2d,
    /// Norm after the convolution.
    pub norm: GroupNorm2d,
}

/// Blocks at one size.
#[derive(Module, Debug)]
pub struct Stage {
    /// The blocks; the first halves the size, but for the first stage's.
    pub blocks: Vec<Bottleneck>,
}

/// 1 x 1, 3 x 3 and 1 x 1 convolutions with norms, and a shortcut connection.
#[derive(Module, Debug)]
pub struct Bottleneck {
    /// Projection of the shortcut; `None` if the block changes neither channels nor size.
    pub projection: Option<Shortcut>,
    /// 1 x 1 convolution to a quarter of the channels.
    pub conv1: Conv2d,
    /// Norm after the first convolution.
    pub norm1: GroupNorm2d,
    /// 3 x 3 convolution, which has the block's stride.
    pub conv2: Conv2d,
    /// Norm after the second convolution.
    pub norm2: GroupNorm2d,
    /// 1 x 1 convolution to all channels.
    pub conv3: Conv2d,
    /// Norm after the third convolution.
    pub norm3: GroupNorm2d,
}

/// The projection shortcut of a block: a strided 1 x 1 convolution and a norm.
#[derive(Module, Debug)]
pub struct Shortcut {
    /// Strided 1 x 1 convolution.
    pub conv: Conv2d,
    /// Norm after the convolution.
    pub norm: GroupNorm2d,
}

impl ResNetV2 {
    /// Computes the features of the stem and of the stages, finest first.
    ///
    /// # Shapes
    ///
    /// - image: `[B, S, S, 3]`, `S` a multiple of 16
    /// - output: `[B, S / 2, S / 2, w]`, `[B, S / 4, S / 4, 4 w]`, `[B, S / 8, S / 8, 8 w]`,
    ///   `[B, S / 16, S / 16, 16 w]`
    ///
    /// # Panics
    ///
    /// If the image does not have 3 channels or its size is not a multiple of 16.
    pub fn forward(&self, image: Tensor<4>) -> [Tensor<4>; 4] {
        let [_, height, width, _] = image.dims();
        assert!(
            height % 16 == 0 && width % 16 == 0,
            "the size of the image is a multiple of 16, found {height} x {width}"
        );
        let stem = self.stem.norm.forward(standardized_conv(&self.stem.conv, image), true);
        let apply = |stage: &Stage, input| {
            stage.blocks.iter().fold(input, |input, block| block.forward(input))
        };
        let fine = apply(&self.stages[0], max_pool(stem.clone()));
        let middle = apply(&self.stages[1], fine.clone());
        let coarse = apply(&self.stages[2], middle.clone());
        [stem, fine, middle, coarse]
    }
}

impl Bottleneck {
    fn init(
        [channels_in, channels]: [usize; 2],
        stride: usize,
        norm: &impl Fn(usize) -> GroupNorm2d,
        device: &Device,
    ) -> Self {
        let middle = channels / 4;
        Self {
            projection: (channels_in != channels || stride != 1).then(|| Shortcut {
                conv: conv([channels_in, channels], 1, stride, device),
                norm: norm(channels),
            }),
            conv1: conv([channels_in, middle], 1, 1, device),
            norm1: norm(middle),
            conv2: conv([middle; 2], 3, stride, device),
            norm2: norm(middle),
            conv3: conv([middle, channels], 1, 1, device),
            norm3: norm(channels),
        }
    }

    /// Applies the block.
    ///
    /// # Shapes
    ///
    /// - input: `[B, H, W, channels in]`
    /// - output: `[B, H / stride, W / stride, channels]`
    ///
    /// # Panics
    ///
    /// If the last axis of `input` is not the number of input channels.
    pub fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let shortcut = match &self.projection {
            Some(Shortcut { conv, norm }) => {
                norm.forward(standardized_conv(conv, input.clone()), false)
            }
            None => input.clone(),
        };
        let hidden = self.norm1.forward(standardized_conv(&self.conv1, input), true);
        let hidden = self.norm2.forward(standardized_conv(&self.conv2, hidden), true);
        relu(self.norm3.forward(standardized_conv(&self.conv3, hidden), false) + shortcut)
    }
}

/// A convolution without bias, initialised as in timm (He et al., arXiv 1502.01852, with the
/// fan-out).
fn conv(
    [channels_in, channels_out]: [usize; 2],
    kernel: usize,
    stride: usize,
    device: &Device,
) -> Conv2d {
    Conv2dConfig::new([channels_in, channels_out], [kernel; 2])
        .with_stride([stride; 2])
        .with_bias(false)
        .with_initializer(Initializer::KaimingNormal {
            gain: std::f64::consts::SQRT_2,
            fan_out_only: true,
        })
        .init(device)
}

/// Applies a convolution whose weights are normalised for each output channel to mean 0 and
/// deviation 1 (Qiao et al., *Weight Standardization*, arXiv 1903.10520).
fn standardized_conv(conv: &Conv2d, input: Tensor<4>) -> Tensor<4> {
    const EPSILON: f64 = 1e-8;
    let weight = conv.weight.val();
    let shape @ [channels_out, ..] = weight.dims();
    let weight: Tensor<2> = weight.reshape([channels_out as i32, -1]);
    let weight = standardized(weight, EPSILON).reshape(shape);
    let ([kernel, _], [stride, _]) = (conv.kernel_size, conv.stride);
    if stride == 1 {
        return convolve(input, weight, None, 1, kernel / 2);
    }
    convolve(pad_same(input, kernel, stride), weight, None, stride, 0)
}

/// Normalises each row to mean 0 and deviation 1.
fn standardized(rows: Tensor<2>, epsilon: f64) -> Tensor<2> {
    if sam_lst_cpu_kernels::is_supported(&rows) {
        let ([_, width], device) = (rows.dims(), rows.device().inner());
        let unchanged = [Tensor::ones([width], &device), Tensor::zeros([width], &device)];
        return sam_lst_cpu_kernels::layer_norm(rows, unchanged, epsilon);
    }
    let centred = rows.clone() - rows.mean_dim(1);
    let variance = centred.clone().square().mean_dim(1);
    centred / variance.add_scalar(epsilon).sqrt()
}

/// Zeros on each side of one axis, before and after it, that TensorFlow's `SAME` padding adds.
fn same_padding(size: usize, kernel: usize, stride: usize) -> (usize, usize) {
    let total = ((size.div_ceil(stride) - 1) * stride + kernel).saturating_sub(size);
    (total / 2, total - total / 2)
}

fn pad_same(input: Tensor<4>, kernel: usize, stride: usize) -> Tensor<4> {
    let [_, height, width, _] = input.dims();
    let [rows, columns] = [height, width].map(|size| same_padding(size, kernel, stride));
    if rows == (0, 0) && columns == (0, 0) {
        return input;
    }
    input.pad([rows, columns, (0, 0)], PadMode::Constant(0.0))
}

/// Max-pooling over 3 x 3 windows with stride 2 of values that are not negative, padded as in
/// TensorFlow: `[B, H, W, C]` to `[B, H / 2, W / 2, C]`.
fn max_pool(input: Tensor<4>) -> Tensor<4> {
    // Zeros do not change a maximum of values that are not negative.
    let padded = pad_same(input, 3, 2).permute([0, 3, 1, 2]);
    let pool = MaxPool2dConfig::new([3, 3]).with_strides([2, 2]).init();
    pool.forward(padded).permute([0, 2, 3, 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_larger_at_the_end() {
        assert_eq!(same_padding(224, 7, 2), (2, 3));
        assert_eq!(same_padding(112, 3, 2), (0, 1));
        assert_eq!(same_padding(56, 1, 2), (0, 0));
        assert_eq!(same_padding(7, 3, 2), (1, 1));
    }

    #[test]
    fn features_have_the_documented_shapes() {
        let device = Device::flex();
        let config = ResNetV2Config::new().with_blocks([1, 2, 1]).with_width(8).with_groups(4);
        let features = config.init(&device).forward(Tensor::ones([2, 32, 64, 3], &device));
        let shapes = features.map(|features| features.dims());
        assert_eq!(shapes, [[2, 16, 32, 8], [2, 8, 16, 32], [2, 4, 8, 64], [2, 2, 4, 128]]);
        assert_eq!(config.out_channels(), 128);
    }
}
