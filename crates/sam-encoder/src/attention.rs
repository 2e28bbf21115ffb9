use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::module::attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{DType, Device, FloatDType, Int, Tensor};
use sam_lst_sam_nn::{
    AdaptedLayer, BlockAdaptation, QkvOrder, Unadapted, attend_in_windows, cast_like,
    flatten_leading, linear, resize_linear,
};

/// Configuration of [`Attention`].
#[derive(Config, Debug)]
pub struct AttentionConfig {
    /// Embedding width `C`.
    pub embed_dim: usize,
    /// Number of heads; divides `embed_dim`.
    pub num_heads: usize,
    /// Grid size in tokens at which the position embeddings were trained.
    pub pretrained_grid: usize,
    /// Side of a window in tokens; `None` for global attention.
    #[config(default = "None")]
    pub window_size: Option<usize>,
}

/// Multi-head self-attention, windowed or global, with decomposed relative position embeddings.
///
/// `softmax(q k^T / sqrt(d) + q R_h + q R_w) v`: the position terms use the *unscaled* query.
#[derive(Module, Debug)]
pub struct Attention {
    /// Queries, keys and values of all heads, `C -> 3 C`.
    pub qkv: Linear,
    /// Output projection, `C -> C`.
    pub proj: Linear,
    /// Relative position embeddings along the height, `[2 s - 1, d]`, for a window or a training
    /// grid of side `s`.
    pub rel_pos_h: Param<Tensor<2>>,
    /// Relative position embeddings along the width, `[2 s - 1, d]`.
    pub rel_pos_w: Param<Tensor<2>>,
    num_heads: usize,
    window_size: Option<usize>,
}

impl AttentionConfig {
    /// Creates the layer with random projections and zero relative position embeddings.
    ///
    /// # Panics
    ///
    /// If `num_heads` does not divide `embed_dim`.
    pub fn init(&self, device: &Device) -> Attention {
        assert!(
            self.num_heads > 0 && self.embed_dim.is_multiple_of(self.num_heads),
            "num_heads {} must divide embed_dim {}",
            self.num_heads,
            self.embed_dim
        );
        let side = self.window_size.unwrap_or(self.pretrained_grid);
        let table = [2 * side - 1, self.embed_dim / self.num_heads];
        Attention {
            qkv: LinearConfig::new(self.embed_dim, 3 * self.embed_dim).init(device),
            proj: LinearConfig::new(self.embed_dim, self.embed_dim).init(device),
            rel_pos_h: Initializer::Zeros.init(table, device),
            rel_pos_w: Initializer::Zeros.init(table, device),
            num_heads: self.num_heads,
            window_size: self.window_size,
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
        let dtype = FloatDType::from(tokens.dtype());
        let tokens = cast_like(tokens, &self.qkv.weight);
        let [batch, grid, width, channels] = tokens.dims();
        assert_eq!(
            grid,
            width,
            "Attention expects a square grid [B, G, G, C], found {:?}",
            tokens.dims()
        );
        let side = self.window_size.unwrap_or(grid);
        // SAM pads the tokens with zeros *before* `qkv`, so the query, key and value of a padding
        // token are the bias. Padding `qkv` with the bias afterwards gives the same result without
        // multiplying zeros. The outputs of padding tokens are dropped before `proj`.
        let tokens = flatten_leading(tokens);
        let layer = AdaptedLayer::Qkv { order: QkvOrder::PartMajor, heads: self.num_heads };
        let qkv = adaptation.linear(layer, &tokens, linear(&self.qkv, tokens.clone()));
        let qkv = qkv.reshape([batch, grid, grid, 3 * channels]);
        let attended = if sam_lst_cpu_kernels::is_supported(&qkv) {
            sam_lst_cpu_kernels::window_attention(
                qkv,
                self.qkv_bias(),
                [&self.rel_pos_h, &self.rel_pos_w]
                    .map(|table| resize_linear(table.val(), 2 * side - 1)),
                self.num_heads,
            )
        } else {
            attend_in_windows(
                qkv,
                side,
                self.num_heads,
                QkvOrder::PartMajor,
                || self.qkv_bias(),
                |qkv| self.attend(qkv, side),
            )
        }; // [B, G, G, C]
        linear(&self.proj, flatten_leading(attended))
            .reshape([batch, grid, grid, channels])
            .cast(dtype)
    }

    fn qkv_bias(&self) -> Tensor<1> {
        match &self.qkv.bias {
            Some(bias) => bias.val(),
            None => unreachable!("AttentionConfig::init creates qkv with a bias"),
        }
    }

    /// Attention among the tokens of each window of side `side`.
    ///
    /// The position terms are folded into the product of query and key, so that the position bias
    /// `[.., N, N]`, which would take as much memory as the scores at an input of 1024, is never
    /// materialised. The `2 s` position terms of a query are appended to its `d` values, and two
    /// one-hot vectors, which select the terms of the key's row and column, are appended to each
    /// key.
    ///
    /// # Shapes
    ///
    /// - qkv: `[3, B, heads, N, d]`
    /// - output: `[B, heads, N, d]`
    fn attend(&self, qkv: Tensor<5>, side: usize) -> Tensor<4> {
        let [_, batch, heads, tokens, head_dim] = qkv.dims();
        let [query, key, value] =
            [0, 1, 2].map(|i| qkv.clone().narrow(0, i, 1).squeeze_dim::<4>(0)); // [B, heads, N, d]
        let device = query.device();

        let grid = [batch * heads, side, side, head_dim];
        let by_row = query.clone().reshape(grid); // [B * heads, s, s, d]
        let by_column = by_row.clone().swap_dims(1, 2);
        let terms = [batch, heads, tokens, side];
        let row_terms = position_terms(by_row, self.rel_pos_h.val()).reshape(terms);
        let column_terms =
            position_terms(by_column, self.rel_pos_w.val()).swap_dims(1, 2).reshape(terms);
        let scale = (head_dim as f64).powf(-0.5);
        // [B, heads, N, d + 2 s]
        let query = Tensor::cat(vec![query * scale, row_terms, column_terms], 3);

        let selectors = key_selectors(side, &device)
            .cast(FloatDType::from(key.dtype()))
            .reshape([1, 1, tokens, 2 * side])
            .expand([batch, heads, tokens, 2 * side]);
        let key = Tensor::cat(vec![key, selectors], 3); // [B, heads, N, d + 2 s]

        scaled_attention(query, key, value)
    }
}

/// `softmax(q k^T) v`; the query is already scaled.
///
/// # Shapes
///
/// - query, key: `[B, heads, N, e]`
/// - value, output: `[B, heads, N, d]`
fn scaled_attention(query: Tensor<4>, key: Tensor<4>, value: Tensor<4>) -> Tensor<4> {
    let [.., width] = query.dims();
    if query.dtype() == DType::F32 {
        let options = AttentionModuleOptions { scale: Some(1.0), ..Default::default() };
        return attention(query, key, value, None, None, options);
    }
    // Burn's fused attention kernels, which do not materialise the scores, support only the default
    // scale `1 / sqrt(e)`, so the query is multiplied by its inverse. They round to 16 bits, so
    // they are not used for 32-bit inputs.
    let query = query * (width as f64).sqrt();
    attention(query, key, value, None, None, Default::default())
}

/// The products of each query with the relative position embeddings from its line `y` to each line
/// `k` of keys, `R[y, k] = table[y - k + s - 1]`. A line is a row or a column of the window.
///
/// # Shapes
///
/// - query: `[B, s, s, d]`, lines along the second axis
/// - table: `[L, d]`, resized to `[2 s - 1, d]`
/// - output: `[B, s, s, s]`, the last axis over the lines of the keys
fn position_terms(query: Tensor<4>, table: Tensor<2>) -> Tensor<4> {
    let [batch, side, _, head_dim] = query.dims();
    let offsets: Vec<i64> = (0..side as i64)
        .flat_map(|line| (0..side as i64).map(move |key| line - key + side as i64 - 1))
        .collect();
    let offsets = Tensor::<1, Int>::from_data(offsets.as_slice(), &query.device());
    let table = resize_linear(table, 2 * side - 1)
        .select(0, offsets)
        .reshape([side, side, head_dim]) // [line, key, d]
        .swap_dims(1, 2) // [line, d, key]
        .cast(FloatDType::from(query.dtype()));
    query
        .swap_dims(0, 1)
        .reshape([side, batch * side, head_dim])
        .matmul(table)
        .reshape([side, batch, side, side])
        .swap_dims(0, 1)
}

/// Two one-hot vectors per key, for its row and its column: `[N, 2 s]`.
fn key_selectors(side: usize, device: &Device) -> Tensor<2> {
    let unit = Tensor::<2>::eye(side, device);
    let rows = unit.clone().reshape([side, 1, side]).expand([side; 3]);
    let columns = unit.reshape([1, side, side]).expand([side; 3]);
    Tensor::cat(vec![rows, columns], 2).reshape([side * side, 2 * side])
}
