use burn::nn::LayerNorm;
use burn::tensor::Tensor;

/// Applies a layer norm whose epsilon is `epsilon`, which Burn's layer keeps to itself.
///
/// # Shapes
///
/// - input, output: `[.., C]`
///
/// # Panics
///
/// If the last axis of the input is not the layer's.
pub fn layer_norm<const D: usize>(layer: &LayerNorm, epsilon: f64, input: Tensor<D>) -> Tensor<D> {
    match &layer.beta {
        // Off the tape Burn has a kernel of its own.
        Some(beta) if input.is_autodiff() && cpu_kernels::serves(&input) => {
            cpu_kernels::layer_norm(input, [layer.gamma.val(), beta.val()], epsilon)
        }
        _ => layer.forward(input),
    }
}
