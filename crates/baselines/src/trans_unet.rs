use crate::attention_gate::AttentionGate;
use crate::conv_block::{ConvNorm, DoubleConv};
use burn::config::Config;
use burn::module::Module;
use burn::nn::PaddingConfig2d;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::{Device, Tensor, assert_shape};
use sam_lst_backbones::{ResNetV2, ResNetV2Config, VisionTransformer, VisionTransformerConfig};
use sam_lst_sam_nn::{convolve_same, double_aligned};

/// What the decoder of [`TransUNet`] gets from the finer levels of the encoder.
#[derive(Config, Debug, Copy, PartialEq, Eq)]
pub enum SkipConnections {
    /// Nothing.
    None,
    /// The features of the three finer levels.
    Plain,
    /// The same after [attention gates](AttentionGate).
    Gated,
}

/// Configuration of [`TransUNet`] and of the networks that its paper compares it with.
#[derive(Config, Debug, PartialEq)]
pub struct TransUNetConfig {
    /// Number of classes `K`, including the background.
    pub num_classes: usize,
    /// The ResNet.
    #[config(default = "ResNetV2Config::new()")]
    pub resnet: ResNetV2Config,
    /// Number of transformer blocks after the ResNet; without any, the decoder reads the ResNet's
    /// features.
    #[config(default = 12)]
    pub depth: usize,
    /// Width of the transformer's tokens.
    #[config(default = 768)]
    pub embed_dim: usize,
    /// Number of attention heads; divides `embed_dim`.
    #[config(default = 12)]
    pub num_heads: usize,
    /// Skip connections from the ResNet to the decoder.
    #[config(default = "SkipConnections::Plain")]
    pub skips: SkipConnections,
    /// Channels of the decoder at its input's size.
    #[config(default = 512)]
    pub neck_channels: usize,
    /// Channels of the decoder's levels, coarsest first. Each level doubles the size.
    #[config(default = "[256, 128, 64, 16]")]
    pub decoder_channels: [usize; 4],
}

impl TransUNetConfig {
    /// "R50-ViT-CUP" in the paper: the network without skip connections.
    pub fn r50_vit(num_classes: usize) -> Self {
        Self::new(num_classes).with_skips(SkipConnections::None)
    }

    /// "R50-U-Net": the network without transformer.
    pub fn r50_unet(num_classes: usize) -> Self {
        Self::new(num_classes).with_depth(0)
    }

    /// "R50-AttnUNet": the network without transformer, with attention gates.
    pub fn r50_attention_unet(num_classes: usize) -> Self {
        Self::r50_unet(num_classes).with_skips(SkipConnections::Gated)
    }

    /// Creates the network with random weights for an input of `input_size` x `input_size` pixels.
    ///
    /// # Panics
    ///
    /// If `input_size` is not a positive multiple of 16 or a number is invalid.
    pub fn init(&self, input_size: usize, device: &Device) -> TransUNet {
        assert!(
            input_size > 0 && input_size.is_multiple_of(16),
            "the size of the input is a positive multiple of 16, found {input_size}"
        );
        let features = self.resnet.out_channels();
        let transformer = VisionTransformerConfig::new(self.embed_dim, self.num_heads)
            .with_in_channels(features)
            .with_patch_size(1)
            .with_grid(input_size / 16)
            .with_depth(self.depth);
        let encoded = if self.depth > 0 { self.embed_dim } else { features };
        let width = self.resnet.width;
        let levels = std::iter::zip(
            [self.neck_channels].into_iter().chain(self.decoder_channels),
            self.decoder_channels,
        );
        // Channels of the skip connections, coarsest first; the finest level has none.
        let skips = [8 * width, 4 * width, width, 0];
        let decoder = levels.zip(skips).map(|((coarser, channels), skip)| {
            let skip = if self.skips == SkipConnections::None { 0 } else { skip };
            let is_gated = self.skips == SkipConnections::Gated && skip > 0;
            UpsampledBlock {
                gate: is_gated.then(|| AttentionGate::init(coarser, skip, device)),
                block: DoubleConv::init([coarser + skip, channels], 1, device),
            }
        });
        let [.., last] = self.decoder_channels;
        TransUNet {
            resnet: self.resnet.init(device),
            transformer: (self.depth > 0).then(|| transformer.init(device)),
            neck: ConvNorm::init([encoded, self.neck_channels], 3, 1, device),
            decoder: decoder.collect(),
            head: Conv2dConfig::new([last, self.num_classes], [3, 3])
                .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
                .init(device),
            has_skips: self.skips != SkipConnections::None,
        }
    }
}

/// TransUNet (Chen et al., arXiv 2102.04306): a ResNet50, a Vision Transformer on its features, and
/// a decoder that doubles the size four times, with skip connections from the ResNet.
///
/// The encoder is timm's `vit_base_r50_s16_224`, without its class token. The released code
/// trains with dropout, which is not built here.
#[derive(Module, Debug)]
pub struct TransUNet {
    /// ResNet to 1/16 of the input's size.
    pub resnet: ResNetV2,
    /// Transformer on the ResNet's features.
    pub transformer: Option<VisionTransformer>,
    /// 3 x 3 convolution before the decoder.
    pub neck: ConvNorm,
    /// Levels of the decoder, coarsest first.
    pub decoder: Vec<UpsampledBlock>,
    /// 3 x 3 convolution to the logits.
    pub head: Conv2d,
    has_skips: bool,
}

/// A level of the decoder: doubles the size bilinearly, then two convolutions of the enlarged
/// features and those of the skip connection.
#[derive(Module, Debug)]
pub struct UpsampledBlock {
    /// Gate of the skip connection.
    pub gate: Option<AttentionGate>,
    /// The convolutions.
    pub block: DoubleConv,
}

impl UpsampledBlock {
    /// Applies the level.
    ///
    /// # Shapes
    ///
    /// - coarse: `[B, H, W, channels in]`
    /// - skip: `[B, 2 H, 2 W, channels]`
    /// - output: `[B, 2 H, 2 W, channels out]`
    ///
    /// # Panics
    ///
    /// If the shapes do not match.
    pub fn forward(&self, coarse: Tensor<4>, skip: Option<Tensor<4>>) -> Tensor<4> {
        let enlarged = double_aligned(coarse);
        let Some(skip) = skip else { return self.block.forward(enlarged) };
        let skip = match &self.gate {
            Some(gate) => gate.forward(enlarged.clone(), skip),
            None => skip,
        };
        self.block.forward(Tensor::cat(vec![enlarged, skip], 3))
    }
}

impl TransUNet {
    /// Predicts the logits of each class.
    ///
    /// # Shapes
    ///
    /// - image: `[B, 3, S, S]`, `S` the size that the network was created for
    /// - output: `[B, K, S, S]`
    ///
    /// # Panics
    ///
    /// If the image does not have this shape.
    pub fn forward(&self, image: Tensor<4>) -> Tensor<4> {
        assert_shape!(image, [_, 3, _, _]);
        let [stem, fine, middle, coarse] = self.resnet.forward(image.permute([0, 2, 3, 1]));
        let encoded = match &self.transformer {
            Some(transformer) => transformer.forward(coarse),
            None => coarse,
        };
        let skips = [Some(middle), Some(fine), Some(stem), None];
        let mut features = self.neck.forward(encoded, true);
        for (level, skip) in self.decoder.iter().zip(skips) {
            features = level.forward(features, skip.filter(|_| self.has_skips));
        }
        convolve_same(&self.head, features).permute([0, 3, 1, 2])
    }
}
