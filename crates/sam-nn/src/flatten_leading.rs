use burn::tensor::Tensor;

/// Flattens all axes but the last into one, `[.., C] -> [N, C]`, for a linear layer.
///
/// Burn's linear layer treats the leading axes as a batch of small products, which is slower than
/// one large product.
pub fn flatten_leading<const D: usize>(input: Tensor<D>) -> Tensor<2> {
    let shape = input.dims();
    let width = shape[D - 1];
    let count = shape[..D - 1].iter().product::<usize>();
    input.reshape([count, width])
}
