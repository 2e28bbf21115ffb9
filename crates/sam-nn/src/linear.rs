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
