use burn::config::Config;
use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{LayerNorm, Linear};
use burn::tensor::{Device, Tensor, assert_shape};
use sam_lst_backbones::{Swin, SwinBlock, SwinConfig, init};
use sam_lst_sam_nn::{convolve_same, flatten_leading, layer_norm, linear};

/// Epsilon of the norms.
const EPSILON: f64 = 1e-5;

/// Configuration of [`SwinUNet`].
#[derive(Config, Debug, PartialEq)]
pub struct SwinUNetConfig {
    /// Number of classes `K`, including the background.
    pub num_classes: usize,
    /// The encoder. The decoder mirrors it. The published network has two blocks in each stage,
    /// where Swin-T has six in the third.
    #[config(default = "SwinConfig::tiny().with_depths(vec![2; 4])")]
    pub encoder: SwinConfig,
}

impl SwinUNetConfig {
    /// Creates the network with random weights.
    ///
    /// # Panics
    ///
    /// If there are fewer than two stages or a number is invalid.
    pub fn init(&self, device: &Device) -> SwinUNet {
        let SwinConfig { embed_dim, depths, num_heads, window_size } = &self.encoder;
        assert!(depths.len() >= 2, "at least two stages, found {depths:?}");
        assert!(self.num_classes > 0, "at least one class");
        let stage = |stage: usize| {
            let width = self.encoder.width(stage);
            let (depth, heads) = (depths[stage], num_heads[stage]);
            SwinUpStage {
                expand: PatchExpand::init(2 * width, 2, width, device),
                concat: init::linear([2 * width, width], device),
                blocks: SwinBlock::init_stage(width, depth, heads, *window_size, device),
            }
        };
        SwinUNet {
            encoder: self.encoder.init(device),
            decoder: (0..depths.len() - 1).rev().map(stage).collect(),
            norm: init::layer_norm(*embed_dim, EPSILON, device),
            expand: PatchExpand::init(*embed_dim, 4, *embed_dim, device),
            head: Conv2dConfig::new([*embed_dim, self.num_classes], [1, 1])
                .with_bias(false)
                .init(device),
        }
    }
}

/// Swin-Unet (Cao et al., arXiv 2105.05537): a Swin Transformer, and a decoder of Swin Transformer
/// blocks with skip connections.
///
/// The encoder is timm's `swin_tiny_patch4_window7_224`. The released code trains
/// with stochastic depth, which is not built here.
#[derive(Module, Debug)]
pub struct SwinUNet {
    /// The encoder.
    pub encoder: Swin,
    /// Stages of the decoder, coarsest first.
    pub decoder: Vec<SwinUpStage>,
    /// Norm after the decoder.
    pub norm: LayerNorm,
    /// Enlarges four times, to the input's size.
    pub expand: PatchExpand,
    /// 1 x 1 convolution to the logits, without bias.
    pub head: Conv2d,
}

/// A stage of the decoder: doubles the grid, adds the skip connection and applies its blocks.
#[derive(Module, Debug)]
pub struct SwinUpStage {
    /// Doubles the grid and halves the width.
    pub expand: PatchExpand,
    /// Projection of the enlarged features and those of the skip connection, `2 C -> C`.
    pub concat: Linear,
    /// The blocks.
    pub blocks: Vec<SwinBlock>,
}

/// Enlarges a grid: a linear layer whose output is spread over `factor x factor` tokens, and a
/// norm.
#[derive(Module, Debug)]
pub struct PatchExpand {
    /// Projection without bias, `C in -> factor^2 C`.
    pub expand: Linear,
    /// Norm of each new token.
    pub norm: LayerNorm,
    factor: usize,
}

impl PatchExpand {
    fn init(width_in: usize, factor: usize, width: usize, device: &Device) -> Self {
        Self {
            expand: init::linear_without_bias([width_in, factor * factor * width], device),
            norm: init::layer_norm(width, EPSILON, device),
            factor,
        }
    }

    /// Applies the layer.
    ///
    /// # Shapes
    ///
    /// - tokens: `[B, G, G, C in]`
    /// - output: `[B, factor * G, factor * G, C]`
    ///
    /// # Panics
    ///
    /// If the last axis of `tokens` is not `C in`.
    pub fn forward(&self, tokens: Tensor<4>) -> Tensor<4> {
        let [batch, height, width, _] = tokens.dims();
        let factor = self.factor;
        let expanded = linear(&self.expand, flatten_leading(tokens));
        let channels = expanded.dims()[1] / (factor * factor);
        let spread = expanded
            .reshape([batch, height, width, factor, factor, channels])
            .permute([0, 1, 3, 2, 4, 5])
            .reshape([batch, factor * height, factor * width, channels]);
        layer_norm(&self.norm, EPSILON, spread)
    }
}

impl SwinUpStage {
    /// Applies the stage.
    ///
    /// # Shapes
    ///
    /// - coarse: `[B, G, G, 2 C]`
    /// - skip, output: `[B, 2 G, 2 G, C]`
    ///
    /// # Panics
    ///
    /// If the shapes do not match.
    pub fn forward(&self, coarse: Tensor<4>, skip: Tensor<4>) -> Tensor<4> {
        let shape = skip.dims();
        let both = Tensor::cat(vec![self.expand.forward(coarse), skip], 3);
        let tokens = linear(&self.concat, flatten_leading(both)).reshape(shape);
        self.blocks.iter().fold(tokens, |tokens, block| block.forward(tokens))
    }
}

impl SwinUNet {
    /// Predicts the logits of each class.
    ///
    /// # Shapes
    ///
    /// - image: `[B, 3, S, S]`, `S` a multiple of [`SwinConfig::stride`]
    /// - output: `[B, K, S, S]`
    ///
    /// # Panics
    ///
    /// If the image does not have 3 channels or its size does not fit.
    pub fn forward(&self, image: Tensor<4>) -> Tensor<4> {
        assert_shape!(image, [_, 3, _, _]);
        let mut skips = self.encoder.forward(image.permute([0, 2, 3, 1]));
        let mut tokens = skips.pop().expect("an encoder has stages");
        for (stage, skip) in self.decoder.iter().zip(skips.into_iter().rev()) {
            tokens = stage.forward(tokens, skip);
        }
        let tokens = layer_norm(&self.norm, EPSILON, tokens);
        convolve_same(&self.head, self.expand.forward(tokens)).permute([0, 3, 1, 2])
    }
}
