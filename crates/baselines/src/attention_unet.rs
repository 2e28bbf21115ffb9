use crate::attention_gate::AttentionGate;
use crate::conv_block::DoubleConv;
use crate::levels;
use burn::config::Config;
use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig, ConvTranspose2d, ConvTranspose2dConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};
use sam_lst_sam_nn::{BatchNorm2d, BatchNorm2dConfig, convolve_same, upsample_3x3};

/// Configuration of [`AttentionUNet`].
#[derive(Config, Debug, PartialEq)]
pub struct AttentionUNetConfig {
    /// Number of classes `K`, including the background.
    pub num_classes: usize,
    /// Channels of each level, finest first. Each level has half the size of the one above.
    #[config(default = "vec![64, 128, 256, 512, 1024]")]
    pub channels: Vec<usize>,
}

/// A U-Net with batch norm whose skip connections pass [attention gates](AttentionGate).
#[derive(Module, Debug)]
pub struct AttentionUNet {
    /// Convolutions of each level on the way down, finest first.
    pub encoder: Vec<DoubleConv>,
    /// Levels on the way up, coarsest first.
    pub decoder: Vec<GatedUpBlock>,
    /// 1 x 1 convolution to the logits.
    pub head: Conv2d,
}

/// A level on the way up: enlarges the features of the coarser level and combines them with those
/// of its own level on the way down, which pass a gate.
#[derive(Module, Debug)]
pub struct GatedUpBlock {
    /// 3 x 3 transposed convolution with stride 2, without bias.
    pub upsample: ConvTranspose2d,
    /// Norm after the transposed convolution.
    pub norm: BatchNorm2d,
    /// Gate of the skip connection.
    pub gate: AttentionGate,
    /// Convolutions of the gated and the enlarged features.
    pub block: DoubleConv,
}

impl AttentionUNetConfig {
    /// Input pixels along one side of a pixel of the coarsest level. The size of the input must be
    /// a multiple of it.
    ///
    /// # Panics
    ///
    /// If there are no levels.
    pub fn stride(&self) -> usize {
        1 << (self.channels.len() - 1)
    }

    /// Creates the network with random weights.
    ///
    /// # Panics
    ///
    /// If there are fewer than two levels, or a number is zero.
    pub fn init(&self, device: &Device) -> AttentionUNet {
        let channels = &self.channels;
        levels::check(self.num_classes, channels);
        let first = DoubleConv::init([3, channels[0]], 1, device);
        let others =
            channels.windows(2).map(|pair| DoubleConv::init([pair[0], pair[1]], 2, device));
        AttentionUNet {
            encoder: std::iter::once(first).chain(others).collect(),
            decoder: channels
                .windows(2)
                .rev()
                .map(|pair| GatedUpBlock::init(pair[0], pair[1], device))
                .collect(),
            head: Conv2dConfig::new([channels[0], self.num_classes], [1, 1]).init(device),
        }
    }
}

impl GatedUpBlock {
    /// `channels` of the level, and of the coarser one.
    fn init(channels: usize, coarser: usize, device: &Device) -> Self {
        Self {
            upsample: ConvTranspose2dConfig::new([coarser, channels], [3, 3])
                .with_stride([2, 2])
                .with_padding([1, 1])
                .with_padding_out([1, 1])
                .with_bias(false)
                .init(device),
            norm: BatchNorm2dConfig::new(channels).init(device),
            gate: AttentionGate::init(channels, channels, device),
            block: DoubleConv::init([2 * channels, channels], 1, device),
        }
    }

    /// Combines the features of the coarser level with those of this level on the way down.
    ///
    /// # Shapes
    ///
    /// - coarse: `[B, H, W, channels of the coarser level]`
    /// - skip, output: `[B, 2 H, 2 W, C]`
    ///
    /// # Panics
    ///
    /// If the shapes do not match.
    pub fn forward(&self, coarse: Tensor<4>, skip: Tensor<4>) -> Tensor<4> {
        let enlarged = upsample_3x3(&self.upsample, coarse);
        let enlarged = relu(self.norm.forward_channels_last(enlarged, None, false));
        let gated = self.gate.forward(enlarged.clone(), skip);
        self.block.forward(Tensor::cat(vec![gated, enlarged], 3))
    }
}

impl AttentionUNet {
    /// Predicts the logits of each class.
    ///
    /// # Shapes
    ///
    /// - image: `[B, 3, S, S]`, `S` a multiple of [`AttentionUNetConfig::stride`]
    /// - output: `[B, K, S, S]`
    ///
    /// # Panics
    ///
    /// If the image does not have 3 channels or its size does not fit.
    pub fn forward(&self, image: Tensor<4>) -> Tensor<4> {
        levels::check_image(&image, self.decoder.len());
        let mut features = image.permute([0, 2, 3, 1]);
        let mut skips = Vec::with_capacity(self.encoder.len());
        for block in &self.encoder {
            features = block.forward(features);
            skips.push(features.clone());
        }
        skips.pop();
        for (block, skip) in self.decoder.iter().zip(skips.into_iter().rev()) {
            features = block.forward(features, skip);
        }
        convolve_same(&self.head, features).permute([0, 3, 1, 2])
    }
}
