use burn::tensor::Tensor;

/// The order of queries, keys and values in the channels of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkvOrder {
    /// The queries of all heads, then the keys, then the values: `[3, heads, d]`, as in SAM.
    PartMajor,
    /// Query, key and value of one head after another: `[heads, 3, d]`, as in TinyViT.
    HeadMajor,
}

/// Splits a grid of tokens into windows of side `side`, applies `attend` to the windows, and
/// reassembles the grid. A grid that is not a multiple of the window is padded on the right and at
/// the bottom with the query, key and value that `padding` returns.
///
/// # Shapes
///
/// - qkv: `[B, G, G, 3 C]`
/// - padding: `[3 C]`
/// - `attend`: `[3, B * windows, heads, N, d]` to `[B * windows, heads, N, d]`
/// - output: `[B, G, G, C]`
pub fn attend_in_windows(
    qkv: Tensor<4>,
    side: usize,
    heads: usize,
    order: QkvOrder,
    padding: impl FnOnce() -> Tensor<1>,
    attend: impl FnOnce(Tensor<5>) -> Tensor<4>,
) -> Tensor<4> {
    let [batch, grid, _, width] = qkv.dims();
    let channels = width / 3;
    let head_dim = channels / heads;
    let padded = grid.next_multiple_of(side);
    let windows = padded / side;
    let qkv = pad(qkv, padded, padding); // [B, P, P, 3 C]
    let (parts, axes) = match order {
        QkvOrder::PartMajor => ([3, heads], [4, 0, 2, 5, 1, 3, 6]),
        QkvOrder::HeadMajor => ([heads, 3], [5, 0, 2, 4, 1, 3, 6]),
    };
    let qkv = qkv
        .reshape([batch * windows, side, windows, side, parts[0], parts[1], head_dim])
        .permute(axes) // [3, B * P / s, P / s, heads, s, s, d]
        .reshape([3, batch * windows * windows, heads, side * side, head_dim]);
    attend(qkv) // [B * windows, heads, N, d]
        .reshape([batch * windows, windows, heads, side, side, head_dim])
        .permute([0, 3, 1, 4, 2, 5]) // [B * P / s, s, P / s, s, heads, d]
        .reshape([batch, padded, padded, channels])
        .slice([0..batch, 0..grid, 0..grid]) // [B, G, G, C]
}

/// Pads `[B, G, G, 3 C]` on the right and at the bottom to `[B, P, P, 3 C]`.
fn pad(qkv: Tensor<4>, padded: usize, padding: impl FnOnce() -> Tensor<1>) -> Tensor<4> {
    let [batch, grid, _, width] = qkv.dims();
    if padded == grid {
        return qkv;
    }
    let padding = padding().reshape([1, 1, 1, width]);
    let right = padding.clone().expand([batch, grid, padded - grid, width]);
    let bottom = padding.expand([batch, padded - grid, padded, width]);
    Tensor::cat(vec![Tensor::cat(vec![qkv, right], 2), bottom], 1)
}
