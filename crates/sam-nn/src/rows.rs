use burn::tensor::Tensor;

/// Folds all axes but the last into one, `[.., C] -> [N, C]`, for a linear layer.
///
/// Left to itself, a linear layer takes the leading axes as a batch of small products, which is slower than one large.
pub fn rows<const D: usize>(input: Tensor<D>) -> Tensor<2> {
    let shape = input.dims();
    let width = shape[D - 1];
    let count = shape[..D - 1].iter().product::<usize>();
    input.reshape([count, width])
}
