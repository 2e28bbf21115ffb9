use crate::{Attention, AttentionConfig};
use burn::config::Config;
use burn::module::Module;
use burn::nn::{LayerNorm, LayerNormConfig};
use burn::tensor::{Device, Tensor};
use sam_lst_sam_nn::{Activation, BlockAdaptation, MlpBlock, MlpBlockConfig, Unadapted};

/// Configuration of [`Block`].
#[derive(Config, Debug)]
pub struct BlockConfig {
    /// Embedding width `C`.
    pub embed_dim: usize,
    /// Number of attention heads.
    pub num_heads: usize,
    /// Hidden width of the MLP as a multiple of `embed_dim`.
    pub mlp_ratio: usize,
    /// Grid size in tokens at which the position embeddings were trained.
    pub pretrained_grid: usize,
    /// Side of an attention window in tokens; `None` for global attention.
    #[config(default = "None")]
    pub window_size: Option<usize>,
}

/// A pre-norm transformer block: `x + attn(norm1(x))`, then `x + mlp(norm2(x))`.
#[derive(Module, Debug)]
pub struct Block {
    /// Norm before attention.
    pub norm1: LayerNorm,
    /// Windowed or global attention.
    pub attn: Attention,
    /// Norm before the MLP.
    pub norm2: LayerNorm,
    /// Feed-forward network with exact GELU.
    pub mlp: MlpBlock,
}

impl BlockConfig {
    /// Creates the block with random weights.
    ///
    /// # Panics
    ///
    /// As [`AttentionConfig::init`].
    pub fn init(&self, device: &Device) -> Block {
        let norm = LayerNormConfig::new(self.embed_dim).with_epsilon(1e-6);
        let hidden_dim = self.embed_dim * self.mlp_ratio;
        Block {
            norm1: norm.init(device),
            attn: AttentionConfig::new(self.embed_dim, self.num_heads, self.pretrained_grid)
                .with_window_size(self.window_size)
                .init(device),
            norm2: norm.init(device),
            mlp: MlpBlockConfig::new(self.embed_dim, hidden_dim, Activation::Gelu).init(device),
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
        let attended = self.attn.forward_adapted(self.norm1.forward(tokens.clone()), adaptation);
        let tokens = tokens + adaptation.attention(attended);
        let normed = self.norm2.forward(tokens.clone());
        let output = self.mlp.forward_adapted(normed.clone(), adaptation);
        tokens + adaptation.mlp(&normed, output)
    }
}
