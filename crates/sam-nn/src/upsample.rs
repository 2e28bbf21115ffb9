use crate::flatten_leading;
use burn::nn::conv::ConvTranspose2d;
use burn::tensor::Tensor;

/// Applies a 2 x 2 transposed convolution with stride 2 to a channels-last tensor for which
/// [`sam_lst_cpu_kernels::is_supported`] is true.
///
/// # Shapes
///
/// - input: `[B, H, W, C]`
/// - output: `[B, 2 H, 2 W, O]`
///
/// # Panics
///
/// If the last axis of `input` is not `C`, or no CPU kernel supports `input`.
pub fn upsample_channels_last(conv: &ConvTranspose2d, input: Tensor<4>) -> Tensor<4> {
    let weight = conv.weight.val(); // [C, O, 2, 2]
    let bias = match &conv.bias {
        Some(bias) => bias.val(),
        None => Tensor::zeros([weight.dims()[1]], &input.device().inner()),
    };
    sam_lst_cpu_kernels::conv_transpose2d(input, weight, bias, 2)
}

/// A 2 x 2 transposed convolution with stride 2. Its windows do not overlap, so it is a single
/// product, and so is each of its gradients.
///
/// # Shapes
///
/// - input: `[B, C, H, W]`
/// - output: `[B, O, 2 H, 2 W]`
///
/// # Panics
///
/// If the second axis of `input` is not `C`.
pub fn upsample(conv: &ConvTranspose2d, input: Tensor<4>) -> Tensor<4> {
    let [batch, channels, height, width] = input.dims();
    let weight = conv.weight.val(); // [C, O, 2, 2]
    let [expected, channels_out, ..] = weight.dims();
    assert_eq!(channels, expected, "expected {expected} channels, found {:?}", input.dims());
    let pixels = flatten_leading(input.permute([0, 2, 3, 1])); // [B H W, C]
    let weight = weight.reshape([channels as i32, -1]); // [C, O 2 2]
    let windows: Tensor<6> =
        pixels.matmul(weight).reshape([batch, height, width, channels_out, 2, 2]);
    let output =
        windows.permute([0, 3, 1, 4, 2, 5]).reshape([batch, channels_out, 2 * height, 2 * width]);
    match &conv.bias {
        Some(bias) => output + bias.val().reshape([1, -1, 1, 1]),
        None => output,
    }
}
