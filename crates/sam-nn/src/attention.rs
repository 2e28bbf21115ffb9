use burn::tensor::Tensor;
use burn::tensor::activation::softmax;

/// Multi-head attention, `softmax(q k^T / sqrt(d)) v` for each head of width `d`.
///
/// # Shapes
///
/// - query: `[B, Tq, heads * d]`
/// - key, value: `[B, Tk, heads * d]`
/// - output: `[B, Tq, heads * d]`
///
/// # Panics
///
/// If the shapes do not match.
pub fn attention(query: Tensor<3>, key: Tensor<3>, value: Tensor<3>, heads: usize) -> Tensor<3> {
    if sam_lst_cpu_kernels::is_supported(&query) {
        return sam_lst_cpu_kernels::attention(query, key, value, heads);
    }
    let [batch, tokens, width] = query.dims();
    let head_dim = width / heads;
    let split = |input: Tensor<3>| {
        let [_, tokens, _] = input.dims();
        input.reshape([batch, tokens, heads, head_dim]).swap_dims(1, 2) // [B, heads, T, d]
    };
    // The queries are scaled instead of the scores, which have more elements.
    let query = split(query) * (head_dim as f64).powf(-0.5);
    let weights = softmax(query.matmul(split(key).swap_dims(2, 3)), 3); // [B, heads, Tq, Tk]
    weights.matmul(split(value)).swap_dims(1, 2).reshape([batch, tokens, width])
}
