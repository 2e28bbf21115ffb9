use burn::nn::Linear;
use burn::tensor::Tensor;

/// Applies a linear layer to rows.
///
/// # Shapes
///
/// - input: `[N, inputs]`, of the weight's type
/// - output: `[N, outputs]`
///
/// # Panics
///
/// If the input has another width than the layer's.
pub fn linear(layer: &Linear, input: Tensor<2>) -> Tensor<2> {
    if !cpu_kernels::serves(&input) {
        return layer.forward(input);
    }
    let bias = layer.bias.as_ref().map(|bias| bias.val());
    cpu_kernels::linear(input, layer.weight.val(), bias)
}
