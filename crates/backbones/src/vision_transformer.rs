use crate::{Mlp, init};
use burn::config::Config;
use burn::module::{Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{LayerNorm, Linear};
use burn::tensor::{Device, Tensor};
use sam_lst_sam_nn::{attention, convolve, flatten_leading, layer_norm, linear};

/// Epsilon of the norms.
const EPSILON: f64 = 1e-6;

/// Configuration of [`VisionTransformer`].
#[derive(Config, Debug, PartialEq)]
pub struct VisionTransformerConfig {
    /// Channels of the input: 3 for an image.
    #[config(default = 3)]
    pub in_channels: usize,
    /// Side of a patch in pixels of the input.
    #[config(default = 16)]
    pub patch_size: usize,
    /// Grid size `G` of the position embeddings.
    #[config(default = 14)]
    pub grid: usize,
    /// Width `C` of the tokens.
    pub embed_dim: usize,
    /// Number of blocks.
    #[config(default = 12)]
    pub depth: usize,
    /// Number of attention heads; divides `embed_dim`.
    pub num_heads: usize,
}

impl VisionTransformerConfig {
    /// ViT-Tiny for images, timm's `vit_tiny_patch16_224`.
    pub fn tiny() -> Self {
        Self::new(192, 3)
    }

    /// Creates the network with random weights.
    ///
    /// # Panics
    ///
    /// If `num_heads` does not divide `embed_dim`, or a size is zero.
    pub fn init(&self, device: &Device) -> VisionTransformer {
        let Self { in_channels, patch_size, grid, embed_dim, depth, num_heads } = *self;
        assert!(
            num_heads > 0 && embed_dim.is_multiple_of(num_heads),
            "num_heads {num_heads} must divide embed_dim {embed_dim}"
        );
        assert!(patch_size > 0 && grid > 0, "patches and their grid have a size");
        let block = |_| TransformerBlock {
            norm1: init::layer_norm(embed_dim, EPSILON, device),
            attn: Attention {
                qkv: init::linear([embed_dim, 3 * embed_dim], device),
                proj: init::linear([embed_dim; 2], device),
                num_heads,
            },
            norm2: init::layer_norm(embed_dim, EPSILON, device),
            mlp: Mlp::init(embed_dim, device),
        };
        VisionTransformer {
            patch_embed: Conv2dConfig::new([in_channels, embed_dim], [patch_size; 2])
                .with_stride([patch_size; 2])
                .init(device),
            pos_embed: init::NORMAL.init([1, grid * grid, embed_dim], device),
            blocks: (0..depth).map(block).collect(),
            norm: init::layer_norm(embed_dim, EPSILON, device),
        }
    }
}

/// A Vision Transformer without class token and classifier.
#[derive(Module, Debug)]
pub struct VisionTransformer {
    /// Embedding of the patches.
    pub patch_embed: Conv2d,
    /// Position embeddings, `[1, G * G, C]`.
    pub pos_embed: Param<Tensor<3>>,
    /// Transformer blocks.
    pub blocks: Vec<TransformerBlock>,
    /// Norm after the blocks.
    pub norm: LayerNorm,
}

impl VisionTransformer {
    /// Computes the features of each patch.
    ///
    /// # Shapes
    ///
    /// - input: `[B, patch_size * G, patch_size * G, in_channels]`
    /// - output: `[B, G, G, C]`
    ///
    /// # Panics
    ///
    /// If the input does not have this shape.
    pub fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let conv = &self.patch_embed;
        let bias = conv.bias.as_ref().map(|bias| bias.val());
        let patches = convolve(input, conv.weight.val(), bias, conv.stride[0], 0);
        let [batch, height, width, channels] = patches.dims();
        let [_, positions, _] = self.pos_embed.dims();
        assert_eq!(
            height * width,
            positions,
            "a grid of {height} x {width} patches has position embeddings for {positions}"
        );
        let tokens = patches.reshape([batch, positions, channels]) + self.pos_embed.val();
        let tokens = self.blocks.iter().fold(tokens, |tokens, block| block.forward(tokens));
        layer_norm(&self.norm, EPSILON, tokens).reshape([batch, height, width, channels])
    }
}

/// A transformer block: `x + attn(norm1(x))`, then `x + mlp(norm2(x))`.
#[derive(Module, Debug)]
pub struct TransformerBlock {
    /// Norm before the attention.
    pub norm1: LayerNorm,
    /// Self-attention among all tokens.
    pub attn: Attention,
    /// Norm before the feed-forward network.
    pub norm2: LayerNorm,
    /// Feed-forward network.
    pub mlp: Mlp,
}

impl TransformerBlock {
    /// Applies the block.
    ///
    /// # Shapes
    ///
    /// - tokens, output: `[B, N, C]`
    ///
    /// # Panics
    ///
    /// If the last axis of `tokens` is not `C`.
    pub fn forward(&self, tokens: Tensor<3>) -> Tensor<3> {
        let attended = self.attn.forward(layer_norm(&self.norm1, EPSILON, tokens.clone()));
        let tokens = tokens + attended;
        let normed = layer_norm(&self.norm2, EPSILON, tokens.clone());
        tokens + self.mlp.forward(normed)
    }
}

/// Multi-head self-attention.
#[derive(Module, Debug)]
pub struct Attention {
    /// Queries, keys and values of all heads, `C -> 3 C`.
    pub qkv: Linear,
    /// Output projection, `C -> C`.
    pub proj: Linear,
    num_heads: usize,
}

impl Attention {
    /// Applies the layer.
    ///
    /// # Shapes
    ///
    /// - tokens, output: `[B, N, C]`
    ///
    /// # Panics
    ///
    /// If the last axis of `tokens` is not `C`.
    pub fn forward(&self, tokens: Tensor<3>) -> Tensor<3> {
        let shape @ [batch, count, width] = tokens.dims();
        let qkv = linear(&self.qkv, flatten_leading(tokens)).reshape([batch, count, 3 * width]);
        let [query, key, value] = [0, 1, 2].map(|part| qkv.clone().narrow(2, part * width, width));
        let attended = attention(query, key, value, self.num_heads);
        linear(&self.proj, flatten_leading(attended)).reshape(shape)
    }
}
