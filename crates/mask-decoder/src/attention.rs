use burn::config::Config;
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use sam_lst_sam_nn::{attention, flatten_leading, linear};

/// Configuration of [`Attention`].
#[derive(Config, Debug)]
pub struct AttentionConfig {
    /// Embedding width `C`.
    pub embed_dim: usize,
    /// Number of heads; divides the internal width.
    pub num_heads: usize,
    /// Divisor of `embed_dim` that gives the internal width, `embed_dim / downsample_rate`.
    #[config(default = 1)]
    pub downsample_rate: usize,
}

/// Multi-head attention whose internal width may be smaller than the embedding width.
#[derive(Module, Debug)]
pub struct Attention {
    /// Query projection, `C -> internal`.
    pub q_proj: Linear,
    /// Key projection, `C -> internal`.
    pub k_proj: Linear,
    /// Value projection, `C -> internal`.
    pub v_proj: Linear,
    /// Output projection, `internal -> C`.
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
        let input_proj = LinearConfig::new(self.embed_dim, internal_dim);
        Attention {
            q_proj: input_proj.init(device),
            k_proj: input_proj.init(device),
            v_proj: input_proj.init(device),
            out_proj: LinearConfig::new(internal_dim, self.embed_dim).init(device),
            num_heads: self.num_heads,
        }
    }
}

impl Attention {
    /// Computes `out_proj(softmax(q k^T / sqrt(d)) v)`, with the softmax per head of width `d`.
    ///
    /// # Shapes
    ///
    /// - query: `[B, Tq, C]`
    /// - key, value: `[B, Tk, C]`
    /// - output: `[B, Tq, C]`
    ///
    /// # Panics
    ///
    /// If the shapes do not match.
    pub fn forward(&self, query: Tensor<3>, key: Tensor<3>, value: Tensor<3>) -> Tensor<3> {
        let query = project(&self.q_proj, query);
        let key = project(&self.k_proj, key);
        let value = project(&self.v_proj, value);
        project(&self.out_proj, attention(query, key, value, self.num_heads))
    }
}

fn project(layer: &Linear, input: Tensor<3>) -> Tensor<3> {
    let [batch, tokens, _] = input.dims();
    let [_, width] = layer.weight.dims();
    linear(layer, flatten_leading(input)).reshape([batch, tokens, width])
}
