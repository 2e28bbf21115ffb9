use burn::config::Config;
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor};
use sam_nn::{linear, rows};

/// Configuration of [`Attention`].
#[derive(Config, Debug)]
pub struct AttentionConfig {
    /// Embedding width `C`.
    pub embed_dim: usize,
    /// Number of heads; divides the internal width.
    pub num_heads: usize,
    /// Internal width as a fraction of `embed_dim`: `embed_dim / downsample_rate`.
    #[config(default = 1)]
    pub downsample_rate: usize,
}

/// Multi-head attention whose queries, keys and values may be narrower than the embedding.
#[derive(Module, Debug)]
pub struct Attention {
    /// Queries, `C -> internal`.
    pub q_proj: Linear,
    /// Keys, `C -> internal`.
    pub k_proj: Linear,
    /// Values, `C -> internal`.
    pub v_proj: Linear,
    /// Output, `internal -> C`.
    pub out_proj: Linear,
    num_heads: usize,
}

impl AttentionConfig {
    /// Creates the layer with random weights.
    ///
    /// # Panics
    ///
    /// If `num_heads` does not divide the internal width.
    pub fn init(&self, device: &Device) -> Attention {
        let internal_dim = self.embed_dim / self.downsample_rate;
        assert!(
            internal_dim > 0 && internal_dim.is_multiple_of(self.num_heads),
            "num_heads {} must divide the internal width {internal_dim}",
            self.num_heads
        );
        let into = LinearConfig::new(self.embed_dim, internal_dim);
        Attention {
            q_proj: into.init(device),
            k_proj: into.init(device),
            v_proj: into.init(device),
            out_proj: LinearConfig::new(internal_dim, self.embed_dim).init(device),
            num_heads: self.num_heads,
        }
    }
}

impl Attention {
    /// `out_proj(softmax(q k^T / sqrt(d)) v)` over each head.
    ///
    /// # Shapes
    ///
    /// - query: `[B, Tq, C]`
    /// - key, value: `[B, Tk, C]`
    /// - output: `[B, Tq, C]`
    ///
    /// # Panics
    ///
    /// If the shapes do not fit each other.
    pub fn forward(&self, query: Tensor<3>, key: Tensor<3>, value: Tensor<3>) -> Tensor<3> {
        let [batch, tokens, _] = query.dims();
        let query = self.split_heads(projected(&self.q_proj, query)); // [B, heads, Tq, d]
        let key = self.split_heads(projected(&self.k_proj, key)); // [B, heads, Tk, d]
        let value = self.split_heads(projected(&self.v_proj, value));
        let [_, heads, _, head_dim] = query.dims();

        // Scaled on the few queries or many, but never on the scores, which outnumber both.
        let query = query * (head_dim as f64).powf(-0.5);
        let weights = softmax(query.matmul(key.swap_dims(2, 3)), 3); // [B, heads, Tq, Tk]
        let attended =
            weights
                .matmul(value)
                .swap_dims(1, 2)
                .reshape([batch, tokens, heads * head_dim]);
        projected(&self.out_proj, attended)
    }

    fn split_heads(&self, input: Tensor<3>) -> Tensor<4> {
        let [batch, tokens, width] = input.dims();
        input
            .reshape([batch, tokens, self.num_heads, width / self.num_heads])
            .swap_dims(1, 2) // [B, heads, T, d]
    }
}

fn projected(layer: &Linear, input: Tensor<3>) -> Tensor<3> {
    let [batch, tokens, _] = input.dims();
    let [_, width] = layer.weight.dims();
    linear(layer, rows(input)).reshape([batch, tokens, width])
}
