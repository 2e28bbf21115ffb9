use crate::{Attention, AttentionConfig};
use burn::config::Config;
use burn::module::Module;
use burn::nn::{LayerNorm, LayerNormConfig};
use burn::tensor::{Device, Tensor};
use sam_nn::{Activation, Mlp, MlpConfig, layer_norm};

/// Cross attention is half as wide as the embedding.
const CROSS_DOWNSAMPLE_RATE: usize = 2;
/// Of every norm.
const EPSILON: f64 = 1e-5;

fn norm_config(width: usize) -> LayerNormConfig {
    LayerNormConfig::new(width).with_epsilon(EPSILON)
}

fn normed(layer: &LayerNorm, input: Tensor<3>) -> Tensor<3> {
    layer_norm(layer, EPSILON, input)
}

/// Configuration of [`TwoWayTransformer`].
#[derive(Config, Debug, PartialEq)]
pub struct TwoWayTransformerConfig {
    /// Embedding width `C`.
    pub embed_dim: usize,
    /// Number of blocks.
    #[config(default = 2)]
    pub depth: usize,
    /// Number of attention heads.
    #[config(default = 8)]
    pub num_heads: usize,
    /// Hidden width of the blocks' MLP.
    #[config(default = 2048)]
    pub mlp_dim: usize,
}

/// Lets tokens attend to the image and the image to the tokens.
#[derive(Module, Debug)]
pub struct TwoWayTransformer {
    /// Two-way blocks.
    pub layers: Vec<TwoWayBlock>,
    /// Last look of the tokens at the image.
    pub final_attn_token_to_image: Attention,
    /// Norm of the tokens after it.
    pub norm_final_attn: LayerNorm,
}

impl TwoWayTransformerConfig {
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
    /// # Shapes
    ///
    /// - image: `[B, P, C]`, image embedding plus dense prompt
    /// - image_positions: `[B, P, C]`, or `[1, P, C]` for all
    /// - tokens: `[B, T, C]`
    /// - output: tokens `[B, T, C]` and image `[B, P, C]`
    ///
    /// # Panics
    ///
    /// If the shapes do not fit each other.
    pub fn forward(
        &self,
        image: Tensor<3>,
        image_positions: Tensor<3>,
        tokens: Tensor<3>,
    ) -> (Tensor<3>, Tensor<3>) {
        let (queries, keys) =
            self.layers
                .iter()
                .fold((tokens.clone(), image), |(queries, keys), layer| {
                    layer.forward(queries, keys, tokens.clone(), image_positions.clone())
                });
        let attended = self.final_attn_token_to_image.forward(
            queries.clone() + tokens,
            keys.clone() + image_positions,
            keys.clone(),
        );
        (normed(&self.norm_final_attn, queries + attended), keys)
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
    /// In the first block the self attention replaces the tokens and adds no positions: they are the positions.
    #[config(default = false)]
    pub is_first: bool,
}

/// Self attention of the tokens, tokens to image, MLP on the tokens, image to tokens; a norm after each.
#[derive(Module, Debug)]
pub struct TwoWayBlock {
    /// Self attention of the tokens.
    pub self_attn: Attention,
    /// Norm after it.
    pub norm1: LayerNorm,
    /// Tokens attend to the image.
    pub cross_attn_token_to_image: Attention,
    /// Norm after it.
    pub norm2: LayerNorm,
    /// Feed-forward network of the tokens, with ReLU.
    pub mlp: Mlp,
    /// Norm after it.
    pub norm3: LayerNorm,
    /// Norm of the image after it attended to the tokens.
    pub norm4: LayerNorm,
    /// The image attends to the tokens.
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
        let cross = attention
            .clone()
            .with_downsample_rate(CROSS_DOWNSAMPLE_RATE);
        let norm = norm_config(self.embed_dim);
        TwoWayBlock {
            self_attn: attention.init(device),
            norm1: norm.init(device),
            cross_attn_token_to_image: cross.init(device),
            norm2: norm.init(device),
            mlp: MlpConfig::new(self.embed_dim, self.mlp_dim, Activation::Relu).init(device),
            norm3: norm.init(device),
            norm4: norm.init(device),
            cross_attn_image_to_token: cross.init(device),
            is_first: self.is_first,
        }
    }
}

impl TwoWayBlock {
    /// # Shapes
    ///
    /// - queries, query_positions: `[B, T, C]`, the tokens
    /// - keys: `[B, P, C]`, the image
    /// - key_positions: `[B, P, C]`, or `[1, P, C]` for all
    /// - output: queries `[B, T, C]` and keys `[B, P, C]`
    ///
    /// # Panics
    ///
    /// If the shapes do not fit each other.
    pub fn forward(
        &self,
        queries: Tensor<3>,
        keys: Tensor<3>,
        query_positions: Tensor<3>,
        key_positions: Tensor<3>,
    ) -> (Tensor<3>, Tensor<3>) {
        let queries = if self.is_first {
            self.self_attn
                .forward(queries.clone(), queries.clone(), queries)
        } else {
            let placed = queries.clone() + query_positions.clone();
            queries.clone() + self.self_attn.forward(placed.clone(), placed, queries)
        };
        let queries = normed(&self.norm1, queries);

        let placed_keys = keys.clone() + key_positions;
        let attended = self.cross_attn_token_to_image.forward(
            queries.clone() + query_positions.clone(),
            placed_keys.clone(),
            keys.clone(),
        );
        let queries = normed(&self.norm2, queries + attended);
        let queries = normed(&self.norm3, queries.clone() + self.mlp.forward(queries));

        let attended = self.cross_attn_image_to_token.forward(
            placed_keys,
            queries.clone() + query_positions,
            queries.clone(),
        );
        (queries, normed(&self.norm4, keys + attended))
    }
}
