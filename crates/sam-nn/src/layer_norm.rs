use burn::nn::LayerNorm;
use burn::tensor::Tensor;

/// Applies a layer norm. `epsilon` must be the layer's epsilon, which Burn's `LayerNorm` does not
/// expose.
///
/// # Shapes
///
/// - input, output: `[.., C]`
///
/// # Panics
///
/// If the last axis of the input is not `C`, the width of the layer.
pub fn layer_norm<const D: usize>(layer: &LayerNorm, epsilon: f64, input: Tensor<D>) -> Tensor<D> {
    match &layer.beta {
        // Without autodiff, Burn has a fused kernel.
        Some(beta) if input.is_autodiff() && sam_lst_cpu_kernels::is_supported(&input) => {
            sam_lst_cpu_kernels::layer_norm(input, [layer.gamma.val(), beta.val()], epsilon)
        }
        _ => layer.forward(input),
    }
}
