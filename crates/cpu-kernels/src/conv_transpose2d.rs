//! Transposed convolution of channels-last images.

use crate::autodiff::{FlexTensor, Operation, apply, contiguous, shape, tensor, values};
use crate::channel_sums::sum_rows;
use crate::conv2d::Convolution;
use burn::tensor::Tensor;
use rayon::prelude::*;

/// A transposed convolution without padding, with the same stride along both axes.
///
/// # Shapes
///
/// - input: `[B, H, W, channels in]`
/// - weight: `[channels in, channels out, kernel rows, kernel columns]`
/// - bias: `[channels out]`
/// - output: `[B, (H - 1) * stride + kernel rows, (W - 1) * stride + kernel columns, channels out]`
///
/// # Panics
///
/// If a tensor is not supported ([`is_supported`](crate::is_supported)), an axis is empty, the stride
/// is zero, or the shapes do not match.
pub fn conv_transpose2d(
    input: Tensor<4>,
    weight: Tensor<4>,
    bias: Tensor<1>,
    stride: usize,
) -> Tensor<4> {
    let [batch, rows, columns, channels] = input.dims();
    let [channels_in, channels_out, kernel_rows, kernel_columns] = weight.dims();
    assert_eq!(channels, channels_in, "channels of the input and of the weight");
    assert_eq!(bias.dims(), [channels_out], "one bias per channel");
    assert!(batch * rows * columns * channels > 0, "an empty image");
    let size = |size: usize, kernel: usize| (size - 1) * stride + kernel;
    let transposed = ConvTranspose2d(Convolution {
        input: [batch, size(rows, kernel_rows), size(columns, kernel_columns), channels_out],
        channels,
        kernel: [kernel_rows, kernel_columns],
        stride,
        padding: 0,
    });
    apply(transposed, [input.into(), weight.into(), bias.into()])
}

/// A transposed convolution without padding is the gradient of a convolution's input, and the
/// gradient of its input is that convolution.
#[derive(Debug, Clone, Copy)]
struct ConvTranspose2d(Convolution);

impl Operation<3> for ConvTranspose2d {
    /// Input if the weight requires a gradient, and weight.
    type Saved = (Option<FlexTensor>, FlexTensor);

    fn forward(
        &self,
        inputs: [FlexTensor; 3],
        [_, weight_requires_grad, _]: [bool; 3],
    ) -> (FlexTensor, Self::Saved) {
        let [input, weight, bias] = inputs.map(contiguous);
        let mut output = self.0.input_gradient(values(&weight), values(&input));
        add_bias(&mut output, values(&bias));
        (tensor(output, self.0.input), (weight_requires_grad.then_some(input), weight))
    }

    fn backward(
        &self,
        (input, weight): Self::Saved,
        gradient: FlexTensor,
        [input_requires_grad, _, bias_requires_grad]: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        let gradient = contiguous(gradient);
        let gradient = values(&gradient);
        let input_gradient = input_requires_grad
            .then(|| tensor(self.0.output(gradient, values(&weight)), self.0.output_shape()));
        let weight_gradient = input.map(|input| {
            let weight_gradient = self.0.weight_gradient(gradient, values(&input));
            tensor(weight_gradient, shape::<4>(&weight))
        });
        let channels = self.0.input[3];
        let bias_gradient =
            bias_requires_grad.then(|| tensor(sum_rows(gradient, channels), [channels]));
        [input_gradient, weight_gradient, bias_gradient]
    }
}

/// Pixels per task.
const PIXELS: usize = 512;

/// Adds a bias to each pixel.
fn add_bias(image: &mut [f32], bias: &[f32]) {
    image.par_chunks_mut(PIXELS * bias.len()).for_each(|pixels| {
        for pixel in pixels.chunks_exact_mut(bias.len()) {
            for (value, &bias) in pixel.iter_mut().zip(bias) {
                *value += bias;
            }
        }
    });
}
