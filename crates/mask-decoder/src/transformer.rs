use crate::{Attention, AttentionConfig, MaskDecoderConfig};
use burn::config::Config;
use burn::module::Module;
use burn::nn::{LayerNorm, LayerNormConfig};
use burn::tensor::{Device, Tensor};
use sam_lst_sam_nn::{Activation, MlpBlock, MlpBlockConfig, layer_norm};

/// SAM's number of blocks.
pub(crate) const SAM_DEPTH: usize = 2;
/// SAM's number of attention heads.
pub(crate) const SAM_NUM_HEADS: usize = 8;
/// SAM's hidden width of the blocks' MLPs.
pub(crate) const SAM_MLP_DIM: usize = 2048;

/// Cross-attention is half as wide as the embedding.
const CROSS_DOWNSAMPLE_RATE: usize = 2;
/// Epsilon of all norms.
const EPSILON: f64 = 1e-5;

fn norm_config(width: usize) -> LayerNormConfig {
    LayerNormConfig::new(width).with_epsilon(EPSILON)
}

fn normalize(layer: &LayerNorm, input: Tensor<3>) -> Tensor<3> {
    layer_norm(layer, EPSILON, input)
}

/// Configuration of [`TwoWayTransformer`].
#[derive(Config, Debug, PartialEq)]
pub struct TwoWayTransformerConfig {
    /// Embedding width `C`.
    pub embed_dim: usize,
    /// Number of blocks; 2 in SAM.
    #[config(default = "SAM_DEPTH")]
    pub depth: usize,
    /// Number of attention heads; 8 in SAM.
    #[config(default = "SAM_NUM_HEADS")]
    pub num_heads: usize,
    /// Hidden width of the blocks' MLPs; 2048 in SAM.
    #[config(default = "SAM_MLP_DIM")]
    pub mlp_dim: usize,
}

/// A transformer in which tokens attend to the image and the image attends to the tokens.
#[derive(Module, Debug)]
pub struct TwoWayTransformer {
    /// Two-way blocks.
    pub layers: Vec<TwoWayBlock>,
    /// Final attention of the tokens to the image.
    pub final_attn_token_to_image: Attention,
    /// Norm of the tokens after the final attention.
    pub norm_final_attn: LayerNorm,
}

impl TwoWayTransformerConfig {
    /// The configuration of the transformer inside a mask decoder.
    pub(crate) fn of_decoder(decoder: &MaskDecoderConfig) -> Self {
        Self {
            embed_dim: decoder.embed_dim,
            depth: decoder.depth,
            num_heads: decoder.num_heads,
            mlp_dim: decoder.mlp_dim,
        }
    }

    /// Creates the transformer with random weights.
    ///
    /// # Panics
    ///
    /// If `num_heads` does not divide half of `embed_dim`.
    pub fn init(&self, device: &Device) -> TwoWayTransformer {
        let block = TwoWayBlockConfig::new(self.embed_dim, self.num_heads, self.mlp_dim);
        TwoWayTransformer {
            layers: (0..self.depth)
                .map(|index| block.clone().with_is_first(index == 0).init(device))
                .collect(),
            final_attn_token_to_image: AttentionConfig::new(self.embed_dim, self.num_heads)
                .with_downsample_rate(CROSS_DOWNSAMPLE_RATE)
                .init(device),
            norm_final_attn: norm_config(self.embed_dim).init(device),
        }
    }
}

impl TwoWayTransformer {
    /// Applies all blocks and the final attention of the tokens to the image.
    ///
    /// # Shapes
    ///
    /// - image: `[B, P, C]`, image embedding plus dense prompt embedding
    /// - image_positions: `[B, P, C]`, or `[1, P, C]` for the whole batch
    /// - tokens: `[B, T, C]`
    /// - output: tokens `[B, T, C]` and image `[B, P, C]`
    ///
    /// # Panics
    ///
    /// If the shapes do not match.
    pub fn forward(
        &self,
        image: Tensor<3>,
        image_positions: Tensor<3>,
        tokens: Tensor<3>,
    ) -> (Tensor<3>, Tensor<3>) {
        let (queries, keys) =
            self.layers.iter().fold((tokens.clone(), image), |(queries, keys), layer| {
                layer.forward(queries, keys, tokens.clone(), image_positions.clone())
            });
        let attended = self.final_attn_token_to_image.forward(
            queries.clone() + tokens,
            keys.clone() + image_positions,
            keys.clone(),
        );
        (normalize(&self.norm_final_attn, queries + attended), keys)
    }
}

/// Configuration of [`TwoWayBlock`].
#[derive(Config, Debug)]
pub struct TwoWayBlockConfig {
    /// Embedding width `C`.
    pub embed_dim: usize,
    /// Number of attention heads.
    pub num_heads: usize,
    /// Hidden width of the MLP.
    pub mlp_dim: usize,
    /// Whether this is the first block. Its self-attention replaces the tokens instead of adding to
    /// them, and uses no position embeddings, because its input tokens are the position embeddings.
    #[config(default = false)]
    pub is_first: bool,
}

/// A block of self-attention of the tokens, attention of tokens to image, an MLP on the tokens, and
/// attention of image to tokens, each followed by a norm.
#[derive(Module, Debug)]
pub struct TwoWayBlock {
    /// Self-attention of the tokens.
    pub self_attn: Attention,
    /// Norm after the self-attention.
    pub norm1: LayerNorm,
    /// Attention of the tokens to the image.
    pub cross_attn_token_to_image: Attention,
    /// Norm after the attention of the tokens to the image.
    pub norm2: LayerNorm,
    /// Feed-forward network of the tokens, with ReLU.
    pub mlp: MlpBlock,
    /// Norm after the feed-forward network.
    pub norm3: LayerNorm,
    /// Norm after the attention of the image to the tokens.
    pub norm4: LayerNorm,
    /// Attention of the image to the tokens.
    pub cross_attn_image_to_token: Attention,
    is_first: bool,
}

impl TwoWayBlockConfig {
    /// Creates the block with random weights.
    ///
    /// # Panics
    ///
    /// If `num_heads` does not divide half of `embed_dim`.
    pub fn init(&self, device: &Device) -> TwoWayBlock {
        let attention = AttentionConfig::new(self.embed_dim, self.num_heads);
        let cross = attention.clone().with_downsample_rate(CROSS_DOWNSAMPLE_RATE);
        let norm = norm_config(self.embed_dim);
        TwoWayBlock {
            self_attn: attention.init(device),
            norm1: norm.init(device),
            cross_attn_token_to_image: cross.init(device),
            norm2: norm.init(device),
            mlp: MlpBlockConfig::new(self.embed_dim, self.mlp_dim, Activation::Relu).init(device),
            norm3: norm.init(device),
            norm4: norm.init(device),
            cross_attn_image_to_token: cross.init(device),
            is_first: self.is_first,
        }
    }
}

impl TwoWayBlock {
    /// Applies the block.
    ///
    /// # Shapes
    ///
    /// - queries, query_positions: `[B, T, C]`, the tokens
    /// - keys: `[B, P, C]`, the image
    /// - key_positions: `[B, P, C]`, or `[1, P, C]` for the whole batch
    /// - output: queries `[B, T, C]` and keys `[B, P, C]`
    ///
    /// # Panics
    ///
    /// If the shapes do not match.
    pub fn forward(
        &self,
        queries: Tensor<3>,
        keys: Tensor<3>,
        query_positions: Tensor<3>,
        key_positions: Tensor<3>,
    ) -> (Tensor<3>, Tensor<3>) {
        let queries = if self.is_first {
            self.self_attn.forward(queries.clone(), queries.clone(), queries)
        } else {
            let positioned = queries.clone() + query_positions.clone();
            queries.clone() + self.self_attn.forward(positioned.clone(), positioned, queries)
        };
        let queries = normalize(&self.norm1, queries);

        let positioned_keys = keys.clone() + key_positions;
        let attended = self.cross_attn_token_to_image.forward(
            queries.clone() + query_positions.clone(),
            positioned_keys.clone(),
            keys.clone(),
        );
        let queries = normalize(&self.norm2, queries + attended);
        let queries = normalize(&self.norm3, queries.clone() + self.mlp.forward(queries));

        let attended = self.cross_attn_image_to_token.forward(
            positioned_keys,
            queries.clone() + query_positions,
            queries.clone(),
        );
        (queries, normalize(&self.norm4, keys + attended))
    }
}
