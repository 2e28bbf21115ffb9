use crate::{InstanceNorm2d, InstanceNorm2dConfig, levels};
use burn::config::Config;
use burn::module::{Initializer, Module};
use burn::nn::PaddingConfig2d;
use burn::nn::conv::{Conv2d, Conv2dConfig, ConvTranspose2d, ConvTranspose2dConfig};
use burn::tensor::{Device, Tensor};
use sam_lst_sam_nn::{
    BatchNorm2d, BatchNorm2dConfig, convolve_same, pointwise_channels_last, upsample,
    upsample_channels_last,
};

/// Configuration of [`UNet`].
#[derive(Config, Debug, PartialEq)]
pub struct UNetConfig {
    /// Number of classes `K`, including the background.
    pub num_classes: usize,
    /// Channels of each level, finest first. Each level has half the size of the one above.
    #[config(default = "vec![32, 64, 128, 256, 512, 512]")]
    pub channels: Vec<usize>,
    /// Whether the network also predicts logits at coarser levels, which its training supervises.
    #[config(default = true)]
    pub deep_supervision: bool,
    /// Features from elsewhere that are added to those of levels on the way down, such as a
    /// foundation's; `None` or empty for a plain U-Net.
    #[config(default = "None")]
    pub features: Option<Vec<FeatureInput>>,
}

/// Features from elsewhere, at the size of a level of a [`UNet`].
#[derive(Config, Debug, Copy, PartialEq, Eq)]
pub struct FeatureInput {
    /// The level, from 0, the finest.
    pub level: usize,
    /// Channels of the features.
    pub channels: usize,
}

/// A U-Net in two dimensions with the choices of nnU-Net: two 3 x 3 convolutions at each level, each
/// followed by instance norm and leaky ReLU; strided convolutions downwards and transposed
/// convolutions upwards; deep supervision.
///
/// With the default channels, these are the levels that nnU-Net plans for slices of 224 x 224
/// pixels. Unlike there, the convolutions have no bias, since the norms after them would remove it.
#[derive(Module, Debug)]
pub struct UNet {
    /// Convolutions of each level on the way down, finest first.
    pub encoder: Vec<ConvBlock>,
    /// Levels on the way up, coarsest first.
    pub decoder: Vec<UpBlock>,
    /// 1 x 1 convolutions to the logits, finest first: of the finest level and, with deep
    /// supervision, of all coarser ones but the two coarsest.
    pub heads: Vec<Conv2d>,
    /// Adds features from elsewhere, in the order of the configuration.
    pub features: Vec<FeatureProjection>,
}

/// Brings features from elsewhere to the channels of a level: a 1 x 1 convolution and batch norm.
#[derive(Module, Debug)]
pub struct FeatureProjection {
    /// 1 x 1 convolution.
    pub projection: Conv2d,
    /// Norm after the convolution.
    pub norm: BatchNorm2d,
    level: usize,
}

/// Two 3 x 3 convolutions, each followed by instance norm and leaky ReLU.
#[derive(Module, Debug)]
pub struct ConvBlock {
    /// First convolution, which has the block's stride.
    pub conv1: Conv2d,
    /// Norm after the first convolution.
    pub norm1: InstanceNorm2d,
    /// Second convolution.
    pub conv2: Conv2d,
    /// Norm after the second convolution.
    pub norm2: InstanceNorm2d,
}

/// A level on the way up: enlarges the features of the coarser level and combines them with those of
/// its own level on the way down.
#[derive(Module, Debug)]
pub struct UpBlock {
    /// 2 x 2 transposed convolution with stride 2.
    pub upsample: ConvTranspose2d,
    /// Convolutions of the enlarged and the level's features.
    pub block: ConvBlock,
}

/// He et al., arXiv 1502.01852, for leaky ReLU, as in nnU-Net.
fn he_normal() -> Initializer {
    const NEGATIVE_SLOPE: f64 = 0.01;
    let gain = (2.0 / (1.0 + NEGATIVE_SLOPE * NEGATIVE_SLOPE)).sqrt();
    Initializer::KaimingNormal { gain, fan_out_only: false }
}

impl UNetConfig {
    /// Input pixels along one side of a pixel of the coarsest level. The size of the input must be a
    /// multiple of it.
    ///
    /// # Panics
    ///
    /// If there are no levels.
    pub fn stride(&self) -> usize {
        1 << (self.channels.len() - 1)
    }

    /// Levels whose logits are supervised.
    fn supervised_levels(&self) -> usize {
        if self.deep_supervision { self.channels.len().saturating_sub(2).max(1) } else { 1 }
    }

    /// Creates the network with random weights, from nnU-Net's distributions.
    ///
    /// # Panics
    ///
    /// If there are fewer than two levels, a number is zero, or features are for a level that does
    /// not exist.
    pub fn init(&self, device: &Device) -> UNet {
        let channels = &self.channels;
        levels::check(self.num_classes, channels);
        let project = |input: &FeatureInput| FeatureProjection {
            projection: Conv2dConfig::new([input.channels, channels[input.level]], [1, 1])
                .with_bias(false)
                .init(device),
            norm: BatchNorm2dConfig::new(channels[input.level]).init(device),
            level: input.level,
        };
        let first = ConvBlock::init([3, channels[0]], 1, device);
        let pairs = channels.windows(2);
        let others = pairs.map(|pair| ConvBlock::init([pair[0], pair[1]], 2, device));
        let up = |pair: &[usize]| UpBlock::init(pair[0], pair[1], device);
        let head = |&channels: &usize| {
            let mut head = Conv2dConfig::new([channels, self.num_classes], [1, 1])
                .with_initializer(he_normal())
                .init(device);
            head.bias = Some(Initializer::Zeros.init([self.num_classes], device));
            head
        };
        UNet {
            encoder: std::iter::once(first).chain(others).collect(),
            decoder: channels.windows(2).rev().map(up).collect(),
            heads: channels[..self.supervised_levels()].iter().map(head).collect(),
            features: self.features.iter().flatten().map(project).collect(),
        }
    }
}

impl ConvBlock {
    fn init([channels_in, channels_out]: [usize; 2], stride: usize, device: &Device) -> Self {
        let conv = |channels_in, stride| {
            Conv2dConfig::new([channels_in, channels_out], [3, 3])
                .with_stride([stride, stride])
                .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
                .with_bias(false)
                .with_initializer(he_normal())
                .init(device)
        };
        let norm = InstanceNorm2dConfig::new(channels_out);
        Self {
            conv1: conv(channels_in, stride),
            norm1: norm.init(device),
            conv2: conv(channels_out, 1),
            norm2: norm.init(device),
        }
    }

    /// Applies the block.
    ///
    /// # Shapes
    ///
    /// - input: `[B, channels in, H, W]`
    /// - output: `[B, channels out, H / stride, W / stride]`
    ///
    /// # Panics
    ///
    /// If the second axis of `input` is not the number of input channels.
    pub fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let hidden = self.norm1.forward(self.conv1.forward(input));
        self.norm2.forward(self.conv2.forward(hidden))
    }

    /// [`forward`](Self::forward) on a channels-last tensor for which
    /// [`sam_lst_cpu_kernels::is_supported`] is true.
    fn forward_channels_last(&self, input: Tensor<4>) -> Tensor<4> {
        let conv = |conv: &Conv2d, input| {
            sam_lst_cpu_kernels::conv2d(input, conv.weight.val(), conv.stride[0], 1)
        };
        let hidden = self.norm1.forward_channels_last(conv(&self.conv1, input));
        self.norm2.forward_channels_last(conv(&self.conv2, hidden))
    }
}

impl UpBlock {
    /// `channels` of the level, and of the coarser one.
    fn init(channels: usize, coarser: usize, device: &Device) -> Self {
        let mut upsample = ConvTranspose2dConfig::new([coarser, channels], [2, 2])
            .with_stride([2, 2])
            .with_initializer(he_normal())
            .init(device);
        upsample.bias = Some(Initializer::Zeros.init([channels], device));
        Self { upsample, block: ConvBlock::init([2 * channels, channels], 1, device) }
    }

    /// Combines the features of the coarser level with those of this level on the way down.
    ///
    /// # Shapes
    ///
    /// - coarse: `[B, channels of the coarser level, H, W]`
    /// - skip: `[B, C, 2 H, 2 W]`
    /// - output: `[B, C, 2 H, 2 W]`
    ///
    /// # Panics
    ///
    /// If the shapes do not match.
    pub fn forward(&self, coarse: Tensor<4>, skip: Tensor<4>) -> Tensor<4> {
        let enlarged = upsample(&self.upsample, coarse);
        self.block.forward(Tensor::cat(vec![enlarged, skip], 1))
    }

    fn forward_channels_last(&self, coarse: Tensor<4>, skip: Tensor<4>) -> Tensor<4> {
        let enlarged = upsample_channels_last(&self.upsample, coarse);
        self.block.forward_channels_last(Tensor::cat(vec![enlarged, skip], 3))
    }
}

impl UNet {
    /// Predicts the logits of each class.
    ///
    /// # Shapes
    ///
    /// - image: `[B, 3, S, S]`, `S` a multiple of [`UNetConfig::stride`]
    /// - output: `[B, K, S, S]`
    ///
    /// # Panics
    ///
    /// If the image does not have 3 channels or its size does not fit.
    pub fn forward(&self, image: Tensor<4>) -> Tensor<4> {
        self.forward_with_features(image, Vec::new())
    }

    /// As [`forward`](Self::forward), with the features of the configuration's
    /// [inputs](UNetConfig::features).
    ///
    /// # Shapes
    ///
    /// - image: `[B, 3, S, S]`, `S` a multiple of [`UNetConfig::stride`]
    /// - features: of each input `[B, S / 2^level, S / 2^level, channels]`
    /// - output: `[B, K, S, S]`
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward), and if the features do not have these shapes.
    pub fn forward_with_features(&self, image: Tensor<4>, features: Vec<Tensor<4>>) -> Tensor<4> {
        self.logits(image, features, 1).remove(0)
    }

    /// Predicts the logits of each supervised level, finest first. Without deep supervision there is
    /// one.
    ///
    /// # Shapes
    ///
    /// - image: `[B, 3, S, S]`, `S` a multiple of [`UNetConfig::stride`]
    /// - output: `[B, K, S, S]`, `[B, K, S / 2, S / 2]`, ...
    ///
    /// # Panics
    ///
    /// If the image does not have 3 channels or its size does not fit.
    pub fn forward_supervised(&self, image: Tensor<4>) -> Vec<Tensor<4>> {
        self.forward_supervised_with_features(image, Vec::new())
    }

    /// As [`forward_supervised`](Self::forward_supervised), with features as in
    /// [`forward_with_features`](Self::forward_with_features).
    ///
    /// # Panics
    ///
    /// As [`forward_with_features`](Self::forward_with_features).
    pub fn forward_supervised_with_features(
        &self,
        image: Tensor<4>,
        features: Vec<Tensor<4>>,
    ) -> Vec<Tensor<4>> {
        self.logits(image, features, self.heads.len())
    }

    /// The logits of the finest `levels`.
    fn logits(&self, image: Tensor<4>, features: Vec<Tensor<4>>, levels: usize) -> Vec<Tensor<4>> {
        levels::check_image(&image, self.decoder.len());
        assert_eq!(features.len(), self.features.len(), "features for each input of the network");
        let [batch, _, height, width] = image.dims();
        for (input, features) in self.features.iter().zip(&features) {
            let channels = input.projection.weight.dims()[1];
            let size = [height, width].map(|side| side >> input.level);
            assert_eq!(features.dims(), [batch, size[0], size[1], channels], "features");
        }
        let heads = &self.heads[..levels];
        if sam_lst_cpu_kernels::is_supported(&image) {
            let image = image.permute([0, 2, 3, 1]);
            let down = |level, input, block: &ConvBlock| {
                self.add_features(level, block.forward_channels_last(input), &features)
            };
            let features = self.levels(image, down, UpBlock::forward_channels_last);
            let logits = heads.iter().zip(features).map(|(head, features)| {
                pointwise_channels_last(head, features).permute([0, 3, 1, 2])
            });
            return logits.collect();
        }
        let down = |level, input, block: &ConvBlock| {
            let output = block.forward(input).permute([0, 2, 3, 1]);
            self.add_features(level, output, &features).permute([0, 3, 1, 2])
        };
        let features = self.levels(image, down, UpBlock::forward);
        heads.iter().zip(features).map(|(head, features)| head.forward(features)).collect()
    }

    /// Adds the features from elsewhere that enter a level to its own, `[B, H, W, C]`.
    fn add_features(&self, level: usize, own: Tensor<4>, features: &[Tensor<4>]) -> Tensor<4> {
        let of_level = self.features.iter().zip(features).filter(|(input, _)| input.level == level);
        of_level.fold(own, |sum, (input, features)| {
            let projected = convolve_same(&input.projection, features.clone());
            sum + input.norm.forward_channels_last(projected, None, false)
        })
    }

    /// The features of each level on the way up, finest first.
    fn levels(
        &self,
        image: Tensor<4>,
        down: impl Fn(usize, Tensor<4>, &ConvBlock) -> Tensor<4>,
        up: impl Fn(&UpBlock, Tensor<4>, Tensor<4>) -> Tensor<4>,
    ) -> Vec<Tensor<4>> {
        let mut skips = Vec::with_capacity(self.encoder.len());
        let mut features = image;
        for (level, block) in self.encoder.iter().enumerate() {
            features = down(level, features, block);
            skips.push(features.clone());
        }
        skips.pop();
        let mut levels = Vec::with_capacity(self.decoder.len());
        for (block, skip) in self.decoder.iter().zip(skips.into_iter().rev()) {
            features = up(block, features, skip);
            levels.push(features.clone());
        }
        levels.reverse();
        levels
    }
}
