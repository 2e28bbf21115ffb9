//! Layer normalisation over the last axis.

use crate::autodiff::{FlexTensor, Operation, apply, contiguous, into_values, tensor_like, values};
use crate::buffer;
use crate::channel_sums::{add_parts, to_f32};
use burn::tensor::Tensor;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Layer normalisation over the last axis:
/// `(x - mean) / sqrt(variance + epsilon) * weight + bias`.
///
/// # Shapes
///
/// - input, output: `[.., C]`
/// - weight, bias: `[C]`
///
/// # Panics
///
/// If a tensor is not supported ([`is_supported`](crate::is_supported)), or the shapes do not
/// match.
pub fn layer_norm<const D: usize>(
    input: Tensor<D>,
    [weight, bias]: [Tensor<1>; 2],
    epsilon: f64,
) -> Tensor<D> {
    let channels = input.dims()[D - 1];
    assert_eq!(weight.dims(), [channels], "one weight per channel");
    assert_eq!(bias.dims(), [channels], "one bias per channel");
    let norm = LayerNorm { epsilon: epsilon as f32 };
    apply(norm, [input.into(), weight.into(), bias.into()])
}

#[derive(Debug, Clone, Copy)]
struct LayerNorm {
    epsilon: f32,
}

impl LayerNorm {
    fn rows<'a>(&self, input: &'a FlexTensor, weight: &'a FlexTensor) -> Rows<'a> {
        Rows { input: values(input), weight: values(weight), epsilon: self.epsilon }
    }
}

impl Operation<3> for LayerNorm {
    /// Input and weight.
    type Saved = [FlexTensor; 2];

    fn forward(&self, inputs: [FlexTensor; 3], _: [bool; 3]) -> (FlexTensor, Self::Saved) {
        let [input, weight, bias] = inputs.map(contiguous);
        let output = self.rows(&input, &weight).normalize(values(&bias));
        (tensor_like(output, &input), [input, weight])
    }

    fn backward(
        &self,
        [input, weight]: Self::Saved,
        gradient: FlexTensor,
        [_, weight_requires_grad, bias_requires_grad]: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        let mut gradient = into_values(gradient);
        let needs_affine = weight_requires_grad || bias_requires_grad;
        let affine = self.rows(&input, &weight).gradients(&mut gradient, needs_affine);
        let [weight_gradient, bias_gradient] = match affine {
            Some(affine) => affine.map(|gradient| Some(tensor_like(gradient, &weight))),
            None => [None, None],
        };
        [Some(tensor_like(gradient, &input)), weight_gradient, bias_gradient]
    }
}

/// Rows per task. The sums of the tasks are added in order, independent of the number of threads.
const ROWS: usize = 128;
/// Lanes of a sum, since the compiler may not reorder one running sum into several.
const LANES: usize = 16;

/// Rows of `weight.len()` values to normalise.
#[derive(Debug, Clone, Copy)]
struct Rows<'a> {
    input: &'a [f32],
    /// Scale by channel.
    weight: &'a [f32],
    /// Added to the variance.
    epsilon: f32,
}

impl Rows<'_> {
    /// The normalised rows, with a shift by channel.
    fn normalize(&self, bias: &[f32]) -> Vec<f32> {
        let channels = self.channels();
        assert_eq!(bias.len(), channels, "one bias per channel");
        let arch = Arch::new();
        let mut output = buffer::zeros(self.input.len());
        output
            .par_chunks_mut(ROWS * channels)
            .zip(self.input.par_chunks(ROWS * channels))
            .for_each(|(output, input)| {
                arch.dispatch(Forward { rows: Rows { input, ..*self }, bias, output });
            });
        output
    }

    /// Replaces the gradient of the output by that of the input; with `affine`, returns those of
    /// weight and bias.
    fn gradients(&self, gradient: &mut [f32], affine: bool) -> Option<[Vec<f32>; 2]> {
        let channels = self.channels();
        assert_eq!(gradient.len(), self.input.len(), "one gradient per value");
        let arch = Arch::new();
        let parts: Vec<[Vec<f32>; 2]> = gradient
            .par_chunks_mut(ROWS * channels)
            .zip(self.input.par_chunks(ROWS * channels))
            .map(|(gradient, input)| {
                arch.dispatch(Backward { rows: Rows { input, ..*self }, gradient, affine })
            })
            .collect();
        let total =
            |which: usize| to_f32(add_parts(parts.iter().map(|part| &part[which]), channels));
        affine.then(|| [total(0), total(1)])
    }

    fn channels(&self) -> usize {
        let channels = self.weight.len();
        assert!(
            channels > 0 && self.input.len().is_multiple_of(channels),
            "whole rows of channels"
        );
        channels
    }

    fn iter(&self) -> std::slice::ChunksExact<'_, f32> {
        self.input.chunks_exact(self.weight.len())
    }
}

/// Mean and inverse deviation of a row.
#[inline(always)]
fn moments(row: &[f32], epsilon: f32) -> [f32; 2] {
    let count = row.len() as f32;
    let [mean] = sums(row, row, |value, _| [value]);
    let mean = mean / count;
    let [squares] = sums(row, row, |value, _| [(value - mean) * (value - mean)]);
    [mean, 1.0 / (squares / count + epsilon).sqrt()]
}

/// Sums, over two rows' values, of `N` functions.
#[inline(always)]
fn sums<const N: usize>(a: &[f32], b: &[f32], of: impl Fn(f32, f32) -> [f32; N]) -> [f32; N] {
    let mut lanes = [[0.0; LANES]; N];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            let values = of(a[lane], b[lane]);
            for (lanes, value) in lanes.iter_mut().zip(values) {
                lanes[lane] += value;
            }
        }
    }
    let mut total = lanes.map(|lanes| lanes.into_iter().sum());
    for (&a, &b) in a_rest.iter().zip(b_rest) {
        for (total, value) in total.iter_mut().zip(of(a, b)) {
            *total += value;
        }
    }
    total
}

/// Normalises some rows.
struct Forward<'a> {
    rows: Rows<'a>,
    bias: &'a [f32],
    output: &'a mut [f32],
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { rows, bias, output } = self;
        let outputs = output.chunks_exact_mut(rows.weight.len());
        for (output, row) in outputs.zip(rows.iter()) {
            let [mean, inverse] = moments(row, rows.epsilon);
            let values = row.iter().zip(rows.weight).zip(bias);
            for (output, ((&value, &weight), &bias)) in output.iter_mut().zip(values) {
                *output = (value - mean) * inverse * weight + bias;
            }
        }
    }
}

/// Computes the gradients of some rows.
struct Backward<'a> {
    rows: Rows<'a>,
    /// That of the output, replaced by that of the input.
    gradient: &'a mut [f32],
    affine: bool,
}

impl WithSimd for Backward<'_> {
    /// Sums, by channel, of the gradient times the normalised value, and of the gradient.
    type Output = [Vec<f32>; 2];

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Self::Output {
        let Self { rows, gradient, affine } = self;
        let channels = rows.weight.len();
        let mut weight_gradient = vec![0.0; if affine { channels } else { 0 }];
        let mut bias_gradient = weight_gradient.clone();
        for (row, gradient) in rows.iter().zip(gradient.chunks_exact_mut(channels)) {
            let [mean, inverse] = moments(row, rows.epsilon);
            let sums_by_channel = weight_gradient.iter_mut().zip(&mut bias_gradient);
            for ((weight_gradient, bias_gradient), (&value, &gradient)) in
                sums_by_channel.zip(row.iter().zip(&*gradient))
            {
                *weight_gradient += gradient * (value - mean) * inverse;
                *bias_gradient += gradient;
            }
            // The gradient of the normalised row; below, that of the row.
            for (gradient, &weight) in gradient.iter_mut().zip(rows.weight) {
                *gradient *= weight;
            }
            let [sum, product] =
                sums(gradient, row, |gradient, value| [gradient, gradient * (value - mean)]);
            let count = channels as f32;
            let (mean_gradient, slope) = (sum / count, product * inverse * inverse / count);
            for (gradient, &value) in gradient.iter_mut().zip(row) {
                *gradient = (*gradient - mean_gradient - (value - mean) * slope) * inverse;
            }
        }
        [weight_gradient, bias_gradient]
    }
}
