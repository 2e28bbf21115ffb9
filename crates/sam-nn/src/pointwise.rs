use crate::flatten_leading;
use burn::nn::conv::Conv2d;
use burn::tensor::Tensor;

/// Applies a 1 x 1 convolution with stride 1 to a channels-last tensor for which
/// [`sam_lst_cpu_kernels::is_supported`] is true. It is one product of pixels and weights.
///
/// # Shapes
///
/// - input: `[B, H, W, channels in]`
/// - output: `[B, H, W, channels out]`
///
/// # Panics
///
/// If the last axis of `input` is not the number of input channels, or no CPU kernel supports
/// `input`.
pub fn pointwise_channels_last(convolution: &Conv2d, input: Tensor<4>) -> Tensor<4> {
    let [batch, height, width, channels_in] = input.dims();
    let [channels_out, ..] = convolution.weight.dims();
    let matrix = convolution.weight.val().reshape([channels_out, channels_in]).transpose();
    let bias = convolution.bias.as_ref().map(|bias| bias.val());
    sam_lst_cpu_kernels::linear(flatten_leading(input), matrix, bias).reshape([
        batch,
        height,
        width,
        channels_out,
    ])
}
