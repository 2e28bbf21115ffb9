use crate::{flatten_leading, matrix_product};
use burn::nn::conv::{Conv2d, ConvTranspose2d};
use burn::tensor::Tensor;
use burn::tensor::module::{conv_transpose2d, conv2d};
use burn::tensor::ops::{ConvOptions, ConvTransposeOptions};

/// A convolution of a channels-last image with the same stride and padding along both axes.
///
/// # Shapes
///
/// - input: `[B, H, W, channels in]`
/// - weight: `[channels out, channels in, k, k]`
/// - bias: `[channels out]`
/// - output: `[B, (H + 2 padding - k) / stride + 1, .., channels out]`, rounded down
///
/// # Panics
///
/// If the shapes do not match, or the kernel does not fit into the padded input.
pub fn convolve(
    input: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    stride: usize,
    padding: usize,
) -> Tensor<4> {
    let [channels_out, channels_in, kernel, _] = weight.dims();
    if kernel == 1 && stride == 1 && padding == 0 {
        let [batch, height, width, _] = input.dims();
        let matrix = weight.reshape([channels_out, channels_in]).transpose();
        let output = matrix_product(flatten_leading(input), matrix, bias);
        return output.reshape([batch, height, width, channels_out]);
    }
    if sam_lst_cpu_kernels::is_supported(&input) {
        let output = sam_lst_cpu_kernels::conv2d(input, weight, stride, padding);
        return match bias {
            Some(bias) => output + bias.reshape([1, 1, 1, channels_out]),
            None => output,
        };
    }
    let options = ConvOptions::new([stride; 2], [padding; 2], [1, 1], 1);
    conv2d(input.permute([0, 3, 1, 2]), weight, bias, options).permute([0, 2, 3, 1])
}

/// Applies a convolution with a square kernel of odd side to a channels-last image, which is padded
/// by half the kernel's side.
///
/// # Shapes
///
/// - input: `[B, H, W, channels in]`
/// - output: `[B, ceil(H / stride), ceil(W / stride), channels out]`
///
/// # Panics
///
/// If the last axis of `input` is not the number of input channels.
pub fn convolve_same(conv: &Conv2d, input: Tensor<4>) -> Tensor<4> {
    let bias = conv.bias.as_ref().map(|bias| bias.val());
    convolve(input, conv.weight.val(), bias, conv.stride[0], conv.kernel_size[0] / 2)
}

/// Applies a 3 x 3 transposed convolution with stride 2, padding 1 and output padding 1 to a
/// channels-last image.
///
/// On the CPU, it is a convolution of the image with zeros between its pixels.
///
/// # Shapes
///
/// - input: `[B, H, W, channels in]`
/// - output: `[B, 2 H, 2 W, channels out]`
///
/// # Panics
///
/// If the last axis of `input` is not the number of input channels.
pub fn upsample_3x3(conv: &ConvTranspose2d, input: Tensor<4>) -> Tensor<4> {
    let weight = conv.weight.val(); // [channels in, channels out, 3, 3]
    let bias = conv.bias.as_ref().map(|bias| bias.val());
    if !sam_lst_cpu_kernels::is_supported(&input) {
        let options = ConvTransposeOptions::new([2, 2], [1, 1], [1, 1], [1, 1], 1);
        let output = conv_transpose2d(input.permute([0, 3, 1, 2]), weight, bias, options);
        return output.permute([0, 2, 3, 1]);
    }
    let [batch, height, width, channels] = input.dims();
    let beside = input.zeros_like().reshape([batch, height, width, 1, channels]);
    let pixels = input.reshape([batch, height, width, 1, channels]);
    let rows =
        Tensor::cat(vec![pixels, beside], 3).reshape([batch, height, 1, 2 * width, channels]);
    let below = rows.zeros_like();
    let spaced = Tensor::cat(vec![rows, below], 2);
    let spaced = spaced.reshape([batch, 2 * height, 2 * width, channels]);
    convolve(spaced, weight.swap_dims(0, 1).flip([2, 3]), bias, 1, 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::nn::PaddingConfig2d;
    use burn::nn::conv::{Conv2dConfig, ConvTranspose2dConfig};
    use burn::tensor::{Device, Distribution, Tolerance};

    fn random(shape: [usize; 4], device: &Device) -> Tensor<4> {
        Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
    }

    fn equal(ours: Tensor<4>, burns: Tensor<4>) {
        let burns = burns.permute([0, 2, 3, 1]).into_data();
        ours.into_data().assert_approx_eq::<f32>(&burns, Tolerance::absolute(1e-5));
    }

    #[test]
    fn convolutions_equal_burns() {
        let device = Device::flex();
        let image = random([2, 5, 9, 7], &device);
        let channels_last = image.clone().permute([0, 2, 3, 1]);
        for (kernel, stride) in [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)] {
            let pad = kernel / 2;
            let conv = Conv2dConfig::new([5, 4], [kernel; 2])
                .with_stride([stride; 2])
                .with_padding(PaddingConfig2d::Explicit(pad, pad, pad, pad))
                .init(&device);
            equal(convolve_same(&conv, channels_last.clone()), conv.forward(image.clone()));
        }
        let conv = ConvTranspose2dConfig::new([5, 4], [3, 3])
            .with_stride([2, 2])
            .with_padding([1, 1])
            .with_padding_out([1, 1])
            .init(&device);
        equal(upsample_3x3(&conv, channels_last), conv.forward(image));
    }
}
