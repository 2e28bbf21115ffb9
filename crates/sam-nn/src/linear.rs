use burn::nn::Linear;
use burn::tensor::Tensor;

/// Applies a linear layer to the rows of a matrix.
///
/// # Shapes
///
/// - input: `[N, inputs]`, with the float type of the weight
/// - output: `[N, outputs]`
///
/// # Panics
///
/// If the last axis of the input is not `inputs`.
pub fn linear(layer: &Linear, input: Tensor<2>) -> Tensor<2> {
    if !sam_lst_cpu_kernels::is_supported(&input) {
        return layer.forward(input);
    }
    let bias = layer.bias.as_ref().map(|bias| bias.val());
    sam_lst_cpu_kernels::linear(input, layer.weight.val(), bias)
}

/// `input * weight + bias`, as a linear layer whose weight is given as a tensor.
///
/// On the CPU, a row of the output depends on its row of the input alone, to the last bit; in
/// Burn's own product it may also depend on the number of rows.
///
/// # Shapes
///
/// - input: `[N, inputs]`, with the float type of the weight
/// - weight: `[inputs, outputs]`
/// - bias: `[outputs]`
/// - output: `[N, outputs]`
///
/// # Panics
///
/// If the shapes do not match.
pub fn matrix_product(input: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
    if sam_lst_cpu_kernels::is_supported(&input) {
        return sam_lst_cpu_kernels::linear(input, weight, bias);
    }
    let product = input.matmul(weight);
    match bias {
        Some(bias) => product + bias.unsqueeze(),
        None => product,
    }
}
