use crate::{Mlp, WindowAttention, init};
use burn::config::Config;
use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{LayerNorm, Linear};
use burn::tensor::{Device, Tensor};
use sam_lst_sam_nn::{convolve, layer_norm, linear};

/// Epsilon of the norms.
const EPSILON: f64 = 1e-5;

/// Configuration of [`Swin`].
#[derive(Config, Debug, PartialEq)]
pub struct SwinConfig {
    /// Width of the first stage; each stage has twice the width of the one before.
    #[config(default = 96)]
    pub embed_dim: usize,
    /// Number of blocks of each stage.
    #[config(default = "vec![2, 2, 6, 2]")]
    pub depths: Vec<usize>,
    /// Number of attention heads of each stage.
    #[config(default = "vec![3, 6, 12, 24]")]
    pub num_heads: Vec<usize>,
    /// Side of a window in tokens.
    #[config(default = 7)]
    pub window_size: usize,
}

impl SwinConfig {
    /// Swin-T, timm's `swin_tiny_patch4_window7_224`.
    pub fn tiny() -> Self {
        Self::new()
    }

    /// Width of a stage.
    pub fn width(&self, stage: usize) -> usize {
        self.embed_dim << stage
    }

    /// Input pixels along one side of a token of the last stage. The size of the input must be a
    /// multiple of it.
    ///
    /// # Panics
    ///
    /// If there are no stages.
    pub fn stride(&self) -> usize {
        4 << (self.depths.len() - 1)
    }

    /// Creates the network with random weights.
    ///
    /// # Panics
    ///
    /// If a size is zero, `depths` and `num_heads` have different lengths, or a stage's heads do
    /// not divide its width.
    pub fn init(&self, device: &Device) -> Swin {
        assert!(self.embed_dim > 0 && self.window_size > 0, "sizes are positive: {self:?}");
        assert!(
            !self.depths.is_empty() && self.depths.len() == self.num_heads.len(),
            "each stage has a depth and a number of heads: {self:?}"
        );
        let stages = self.depths.iter().zip(&self.num_heads).enumerate();
        let layers = stages.map(|(stage, (&depth, &heads))| SwinStage {
            projection: (stage > 0).then(|| PatchMerging::init(self.width(stage - 1), device)),
            blocks: SwinBlock::init_stage(
                self.width(stage),
                depth,
                heads,
                self.window_size,
                device,
            ),
        });
        let width = self.width(self.depths.len() - 1);
        Swin {
            patch_embed: Conv2dConfig::new([3, self.embed_dim], [4, 4])
                .with_stride([4, 4])
                .init(device),
            patch_norm: init::layer_norm(self.embed_dim, EPSILON, device),
            layers: layers.collect(),
            norm: init::layer_norm(width, EPSILON, device),
        }
    }
}

/// A Swin Transformer without its classifier.
#[derive(Module, Debug)]
pub struct Swin {
    /// Embedding of patches of 4 x 4 pixels.
    pub patch_embed: Conv2d,
    /// Norm of the embedded patches.
    pub patch_norm: LayerNorm,
    /// Stages, finest first.
    pub layers: Vec<SwinStage>,
    /// Norm after the last stage.
    pub norm: LayerNorm,
}

/// Blocks at one grid size.
#[derive(Module, Debug)]
pub struct SwinStage {
    /// Halves the grid and doubles the width; `None` in the first stage.
    pub projection: Option<PatchMerging>,
    /// The blocks; every second one has shifted windows.
    pub blocks: Vec<SwinBlock>,
}

impl Swin {
    /// Computes the features of each stage, finest first. Those of the last stage are normalised.
    ///
    /// # Shapes
    ///
    /// - image: `[B, S, S, 3]`, `S` a multiple of [`SwinConfig::stride`]
    /// - output: `[B, S / 4, S / 4, C]`, `[B, S / 8, S / 8, 2 C]`, ...
    ///
    /// # Panics
    ///
    /// If the image does not have 3 channels or its size does not fit.
    pub fn forward(&self, image: Tensor<4>) -> Vec<Tensor<4>> {
        let [_, height, width, _] = image.dims();
        let stride = 4 << (self.layers.len() - 1);
        assert!(
            height == width && height % stride == 0,
            "the image is square and its size a multiple of {stride}, found {height} x {width}"
        );
        let conv = &self.patch_embed;
        let bias = conv.bias.as_ref().map(|bias| bias.val());
        let patches = convolve(image, conv.weight.val(), bias, 4, 0);
        let mut tokens = layer_norm(&self.patch_norm, EPSILON, patches);
        let mut features = Vec::with_capacity(self.layers.len());
        for stage in &self.layers {
            if let Some(merging) = &stage.projection {
                tokens = merging.forward(tokens);
            }
            tokens = stage.blocks.iter().fold(tokens, |tokens, block| block.forward(tokens));
            features.push(tokens.clone());
        }
        features.pop();
        features.push(layer_norm(&self.norm, EPSILON, tokens));
        features
    }
}

/// A Swin Transformer block: `x + attn(norm1(x))`, then `x + mlp(norm2(x))`.
#[derive(Module, Debug)]
pub struct SwinBlock {
    /// Norm before the attention.
    pub norm1: LayerNorm,
    /// Self-attention within windows.
    pub attn: WindowAttention,
    /// Norm before the feed-forward network.
    pub norm2: LayerNorm,
    /// Feed-forward network.
    pub mlp: Mlp,
    window_size: usize,
    is_shifted: bool,
}

impl SwinBlock {
    /// Creates the blocks of a stage with random weights; every second one has shifted windows.
    ///
    /// # Panics
    ///
    /// If `num_heads` does not divide `width`.
    pub fn init_stage(
        width: usize,
        depth: usize,
        num_heads: usize,
        window_size: usize,
        device: &Device,
    ) -> Vec<Self> {
        let block = |index: usize| Self {
            norm1: init::layer_norm(width, EPSILON, device),
            attn: WindowAttention::init(width, num_heads, window_size, device),
            norm2: init::layer_norm(width, EPSILON, device),
            mlp: Mlp::init(width, device),
            window_size,
            is_shifted: !index.is_multiple_of(2),
        };
        (0..depth).map(block).collect()
    }

    /// Applies the block. On a grid that fits into one window, windows are not shifted.
    ///
    /// # Shapes
    ///
    /// - tokens, output: `[B, G, G, C]`
    ///
    /// # Panics
    ///
    /// If the grid is not square or its last axis is not `C`.
    pub fn forward(&self, tokens: Tensor<4>) -> Tensor<4> {
        let [_, grid, ..] = tokens.dims();
        let is_shifted = self.is_shifted && grid > self.window_size;
        let shift = if is_shifted { self.window_size / 2 } else { 0 };
        let normed = layer_norm(&self.norm1, EPSILON, tokens.clone());
        let tokens = tokens + self.attn.forward(normed, shift);
        let normed = layer_norm(&self.norm2, EPSILON, tokens.clone());
        tokens + self.mlp.forward(normed)
    }
}

/// Concatenates the channels of each 2 x 2 tokens, normalises them and halves their number.
#[derive(Module, Debug)]
pub struct PatchMerging {
    /// Norm of the concatenated channels.
    pub norm: LayerNorm,
    /// Projection without bias, `4 C -> 2 C`.
    pub reduction: Linear,
}

impl PatchMerging {
    fn init(width: usize, device: &Device) -> Self {
        Self {
            norm: init::layer_norm(4 * width, EPSILON, device),
            reduction: init::linear_without_bias([4 * width, 2 * width], device),
        }
    }

    /// Applies the layer.
    ///
    /// # Shapes
    ///
    /// - tokens: `[B, 2 G, 2 G, C]`
    /// - output: `[B, G, G, 2 C]`
    ///
    /// # Panics
    ///
    /// If the grid's size is odd or the last axis of `tokens` is not `C`.
    pub fn forward(&self, tokens: Tensor<4>) -> Tensor<4> {
        let [batch, height, width, channels] = tokens.dims();
        let [height, width] = [height / 2, width / 2];
        // As published: the column varies slower than the row among the four tokens.
        let merged = tokens
            .reshape([batch, height, 2, width, 2, channels])
            .permute([0, 1, 3, 4, 2, 5])
            .reshape([batch * height * width, 4 * channels]);
        let normed = layer_norm(&self.norm, EPSILON, merged);
        linear(&self.reduction, normed).reshape([batch, height, width, 2 * channels])
    }
}
