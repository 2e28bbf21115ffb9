use crate::{Attention, AttentionConfig, ConvBn, ConvBnConfig};
use burn::config::Config;
use burn::module::Module;
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, FloatDType, Tensor};
use sam_lst_sam_nn::{
    AdaptedLayer, BlockAdaptation, Unadapted, cast_like, flatten_leading, gelu, linear,
};

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
        self.forward_adapted(tokens, &Unadapted)
    }

    /// [`forward`](Self::forward) with what a fine-tuning method adds.
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn forward_adapted(
        &self,
        tokens: Tensor<4>,
        adaptation: &impl BlockAdaptation,
    ) -> Tensor<4> {
        let tokens = adaptation.input(tokens);
        let attended = self.attn.forward_adapted(tokens.clone(), adaptation);
        let tokens = self.local_conv.forward(tokens + adaptation.attention(attended));
        tokens.clone() + self.mlp.forward_adapted(tokens, adaptation)
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
        self.forward_adapted(tokens, &Unadapted)
    }

    /// [`forward`](Self::forward) with adapted layers.
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn forward_adapted(
        &self,
        tokens: Tensor<4>,
        adaptation: &impl BlockAdaptation,
    ) -> Tensor<4> {
        let shape = tokens.dims();
        let dtype = FloatDType::from(tokens.dtype());
        let normed = self.norm.forward(tokens);
        let input = flatten_leading(cast_like(normed.clone(), &self.fc1.weight));
        let hidden = linear(&self.fc1, input.clone());
        let hidden = gelu(adaptation.linear(AdaptedLayer::MlpHidden, &input, hidden));
        let output = linear(&self.fc2, hidden.clone());
        let output = adaptation.linear(AdaptedLayer::MlpOutput, &hidden, output);
        adaptation.mlp(&normed, output.reshape(shape).cast(dtype))
    }
}
