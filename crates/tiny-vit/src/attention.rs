use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::activation::softmax;
use burn::tensor::{Device, FloatDType, Int, Tensor};
use sam_lst_sam_nn::{
    AdaptedLayer, BlockAdaptation, QkvOrder, Unadapted, attend_in_windows, cast_like,
    flatten_leading, linear,
};

/// Configuration of [`Attention`].
#[derive(Config, Debug)]
pub struct AttentionConfig {
    /// Width `C`.
    pub embed_dim: usize,
    /// Number of heads; divides `embed_dim`.
    pub num_heads: usize,
    /// Side of a window in tokens.
    pub window_size: usize,
}

/// Multi-head self-attention within windows, with a norm before it and a learned bias for each
/// distance between two tokens.
///
/// `softmax(q k^T / sqrt(d) + bias[|dy|, |dx|]) v`. A grid that is not a multiple of the window is
/// padded on the right and at the bottom with zeros *before* the norm, so a padding token is the
/// norm's bias; padding tokens are attended to.
#[derive(Module, Debug)]
pub struct Attention {
    /// Norm before the attention.
    pub norm: LayerNorm,
    /// Query, key and value of each head, `C -> heads * 3 d`: head by head, unlike SAM's.
    pub qkv: Linear,
    /// Output projection, `C -> C`.
    pub proj: Linear,
    /// Bias of the scores for each distance, `[heads, s * s]`: that of `|dy|` rows and `|dx|`
    /// columns is at `|dy| * s + |dx|`.
    pub attention_biases: Param<Tensor<2>>,
    num_heads: usize,
    window_size: usize,
}

impl AttentionConfig {
    /// Creates the layer with random projections and zero biases.
    ///
    /// # Panics
    ///
    /// If `num_heads` does not divide `embed_dim`, or `window_size` is zero.
    pub fn init(&self, device: &Device) -> Attention {
        let Self { embed_dim, num_heads, window_size } = *self;
        assert!(
            num_heads > 0 && embed_dim.is_multiple_of(num_heads),
            "num_heads {num_heads} must divide embed_dim {embed_dim}"
        );
        assert!(window_size > 0, "window_size must be positive");
        Attention {
            norm: LayerNormConfig::new(embed_dim).with_epsilon(1e-5).init(device),
            qkv: LinearConfig::new(embed_dim, 3 * embed_dim).init(device),
            proj: LinearConfig::new(embed_dim, embed_dim).init(device),
            attention_biases: Initializer::Zeros
                .init([num_heads, window_size * window_size], device),
            num_heads,
            window_size,
        }
    }
}

impl Attention {
    /// Applies the layer. It computes in the float type of the weights and returns the float type
    /// of the tokens.
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

    /// [`forward`](Self::forward) with adapted queries, keys and values.
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn forward_adapted(
        &self,
        tokens: Tensor<4>,
        adaptation: &impl BlockAdaptation,
    ) -> Tensor<4> {
        let [batch, grid, width, channels] = tokens.dims();
        assert_eq!(
            grid,
            width,
            "Attention expects a square grid [B, G, G, C], found {:?}",
            tokens.dims()
        );
        let dtype = FloatDType::from(tokens.dtype());
        let normed = cast_like(self.norm.forward(tokens), &self.qkv.weight);
        let normed = flatten_leading(normed);
        let qkv = self.qkv(&normed, adaptation).reshape([batch, grid, grid, 3 * channels]);
        let attended = if sam_lst_cpu_kernels::is_supported(&qkv) {
            sam_lst_cpu_kernels::biased_window_attention(
                qkv,
                self.padding_qkv(adaptation),
                self.attention_biases.val(),
            )
        } else {
            attend_in_windows(
                qkv,
                self.window_size,
                self.num_heads,
                QkvOrder::HeadMajor,
                || self.padding_qkv(adaptation),
                |qkv| self.attend(qkv),
            )
        }; // [B, G, G, C]
        linear(&self.proj, flatten_leading(attended))
            .reshape([batch, grid, grid, channels])
            .cast(dtype)
    }

    fn qkv(&self, normed: &Tensor<2>, adaptation: &impl BlockAdaptation) -> Tensor<2> {
        let layer = AdaptedLayer::Qkv { order: QkvOrder::HeadMajor, heads: self.num_heads };
        adaptation.linear(layer, normed, linear(&self.qkv, normed.clone()))
    }

    /// Query, key and value of a padding token: the norm's bias, since the norm of zeros is zero.
    fn padding_qkv(&self, adaptation: &impl BlockAdaptation) -> Tensor<1> {
        let Some(token) = &self.norm.beta else {
            unreachable!("LayerNormConfig creates a norm with a bias by default");
        };
        let token = cast_like(token.val().unsqueeze::<2>(), &self.qkv.weight);
        self.qkv(&token, adaptation).squeeze_dim(0)
    }

    /// Attention among the tokens of each window.
    ///
    /// # Shapes
    ///
    /// - qkv: `[3, B, heads, N, d]`
    /// - output: `[B, heads, N, d]`
    fn attend(&self, qkv: Tensor<5>) -> Tensor<4> {
        let [.., head_dim] = qkv.dims();
        let [query, key, value] =
            [0, 1, 2].map(|i| qkv.clone().narrow(0, i, 1).squeeze_dim::<4>(0)); // [B, heads, N, d]
        let scale = (head_dim as f64).powf(-0.5);
        let scores = (query * scale).matmul(key.swap_dims(2, 3)); // [B, heads, N, N]
        let biases = self.biases().cast(FloatDType::from(scores.dtype()));
        softmax(scores + biases, 3).matmul(value)
    }

    /// The bias of each pair of tokens of a window, `[1, heads, N, N]`.
    fn biases(&self) -> Tensor<4> {
        let side = self.window_size as i64;
        let places = || (0..side).flat_map(|row| (0..side).map(move |column| (row, column)));
        let distances: Vec<i64> = places()
            .flat_map(|(row, column)| {
                places().map(move |(key_row, key_column)| {
                    (row - key_row).abs() * side + (column - key_column).abs()
                })
            })
            .collect();
        let biases = self.attention_biases.val();
        let distances = Tensor::<1, Int>::from_data(distances.as_slice(), &biases.device());
        let tokens = self.window_size * self.window_size;
        biases.select(1, distances).reshape([1, self.num_heads, tokens, tokens])
    }
}
