use crate::{Attention, AttentionConfig, ConvBn, ConvBnConfig};
use burn::config::Config;
use burn::module::Module;
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, FloatDType, Tensor};
use sam_lst_sam_nn::{cast_like, flatten_leading, gelu, linear};

/// Configuration of [`Block`].
#[derive(Config, Debug)]
pub struct BlockConfig {
    /// Width `C`.
    pub embed_dim: usize,
    /// Number of attention heads.
    pub num_heads: usize,
    /// Side of an attention window in tokens.
    pub window_size: usize,
    /// Hidden width of the MLP as a multiple of `embed_dim`.
    pub mlp_ratio: usize,
}

/// A transformer block of TinyViT: `x + attn(x)`, then `local_conv(x)`, then `x + mlp(x)`.
///
/// The depthwise convolution has neither a shortcut nor an activation.
#[derive(Module, Debug)]
pub struct Block {
    /// Attention within windows, which includes its norm.
    pub attn: Attention,
    /// Depthwise 3 x 3 convolution.
    pub local_conv: ConvBn,
    /// Feed-forward network, which includes its norm.
    pub mlp: Mlp,
}

impl BlockConfig {
    /// Creates the block with random weights.
    ///
    /// # Panics
    ///
    /// As [`AttentionConfig::init`].
    pub fn init(&self, device: &Device) -> Block {
        let width = self.embed_dim;
        Block {
            attn: AttentionConfig::new(width, self.num_heads, self.window_size).init(device),
            local_conv: ConvBnConfig::depthwise(width).init(device),
            mlp: Mlp {
                norm: LayerNormConfig::new(width).with_epsilon(1e-5).init(device),
                fc1: LinearConfig::new(width, self.mlp_ratio * width).init(device),
                fc2: LinearConfig::new(self.mlp_ratio * width, width).init(device),
            },
        }
    }
}

impl Block {
    /// Applies the block.
    ///
    /// # Shapes
    ///
    /// - tokens: `[B, G, G, C]`
    /// - output: `[B, G, G, C]`
    ///
    /// # Panics
    ///
    /// If the grid is not square or its last axis is not `C`.
    pub fn forward(&self, tokens: Tensor<4>) -> Tensor<4> {
        let tokens = tokens.clone() + self.attn.forward(tokens);
        let tokens = self.local_conv.forward(tokens);
        tokens.clone() + self.mlp.forward(tokens)
    }
}

/// The feed-forward network of a block: `fc2(gelu(fc1(norm(x))))`.
#[derive(Module, Debug)]
pub struct Mlp {
    /// Norm before the first layer.
    pub norm: LayerNorm,
    /// Expanding layer.
    pub fc1: Linear,
    /// Contracting layer.
    pub fc2: Linear,
}

impl Mlp {
    /// Applies the network to the last axis. It computes in the float type of the weights and
    /// returns the float type of the tokens.
    ///
    /// # Shapes
    ///
    /// - tokens, output: `[B, G, G, C]`
    ///
    /// # Panics
    ///
    /// If the last axis of `tokens` is not `C`.
    pub fn forward(&self, tokens: Tensor<4>) -> Tensor<4> {
        let shape = tokens.dims();
        let dtype = FloatDType::from(tokens.dtype());
        let normed = cast_like(self.norm.forward(tokens), &self.fc1.weight);
        let hidden = gelu(linear(&self.fc1, flatten_leading(normed)));
        linear(&self.fc2, hidden).reshape(shape).cast(dtype)
    }
}
