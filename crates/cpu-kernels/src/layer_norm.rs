//! Layer normalisation over the last axis, and its gradients.

use crate::channel_sums::{in_64_bits, narrow};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Rows that a thread takes at a time. The sums of so many are combined in their order, whatever the number of threads.
const ROWS: usize = 128;
/// Sums run in so many lanes, since the compiler may not reorder one running sum into several.
const LANES: usize = 16;

/// Rows of `weight.len()` values, each brought to mean 0 and variance 1, then scaled and shifted.
#[derive(Debug, Clone, Copy)]
pub struct LayerNorm<'a> {
    /// What is normalised.
    pub input: &'a [f32],
    /// Scale by channel.
    pub weight: &'a [f32],
    /// Added to the variance.
    pub epsilon: f32,
}

/// The gradients that were wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerNormGradients {
    /// Of what was normalised.
    pub input: Vec<f32>,
    /// Of scale and shift, if wanted.
    pub affine: Option<[Vec<f32>; 2]>,
}

impl LayerNorm<'_> {
    /// The normalised rows, with a shift by channel.
    pub fn forward(&self, bias: &[f32]) -> Vec<f32> {
        let channels = self.channels();
        assert_eq!(bias.len(), channels, "a shift by channel");
        let arch = Arch::new();
        let mut output = vec![0.0; self.input.len()];
        output
            .par_chunks_mut(ROWS * channels)
            .zip(self.input.par_chunks(ROWS * channels))
            .for_each(|(output, input)| {
                arch.dispatch(Forward {
                    norm: LayerNorm { input, ..*self },
                    bias,
                    output,
                });
            });
        output
    }

    /// Gradients from that of the output; those of scale and shift only if asked for.
    pub fn gradients(&self, gradient: &[f32], affine: bool) -> LayerNormGradients {
        let channels = self.channels();
        assert_eq!(gradient.len(), self.input.len(), "a gradient a value");
        let arch = Arch::new();
        let mut input_gradient = vec![0.0; self.input.len()];
        let parts: Vec<[Vec<f32>; 2]> = input_gradient
            .par_chunks_mut(ROWS * channels)
            .zip(self.input.par_chunks(ROWS * channels))
            .zip(gradient.par_chunks(ROWS * channels))
            .map(|((out, input), gradient)| {
                arch.dispatch(Backward {
                    norm: LayerNorm { input, ..*self },
                    gradient,
                    affine,
                    out,
                })
            })
            .collect();
        let total =
            |which: usize| narrow(in_64_bits(parts.iter().map(|part| &part[which]), channels));
        LayerNormGradients {
            input: input_gradient,
            affine: affine.then(|| [total(0), total(1)]),
        }
    }

    fn channels(&self) -> usize {
        let channels = self.weight.len();
        assert!(
            channels > 0 && self.input.len().is_multiple_of(channels),
            "whole rows of channels"
        );
        channels
    }

    fn rows(&self) -> std::slice::ChunksExact<'_, f32> {
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

/// Sums of `N` functions of two rows' values.
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

struct Forward<'a> {
    norm: LayerNorm<'a>,
    bias: &'a [f32],
    output: &'a mut [f32],
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { norm, bias, output } = self;
        let outputs = output.chunks_exact_mut(norm.weight.len());
        for (output, row) in outputs.zip(norm.rows()) {
            let [mean, inverse] = moments(row, norm.epsilon);
            let values = row.iter().zip(norm.weight).zip(bias);
            for (output, ((&value, &weight), &bias)) in output.iter_mut().zip(values) {
                *output = (value - mean) * inverse * weight + bias;
            }
        }
    }
}

struct Backward<'a> {
    norm: LayerNorm<'a>,
    gradient: &'a [f32],
    affine: bool,
    out: &'a mut [f32],
}

impl WithSimd for Backward<'_> {
    /// Sums, by channel, of the gradient times the normalised value, and of the gradient.
    type Output = [Vec<f32>; 2];

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Self::Output {
        let Self {
            norm,
            gradient,
            affine,
            out,
        } = self;
        let channels = norm.weight.len();
        let mut of_weight = vec![0.0; if affine { channels } else { 0 }];
        let mut of_bias = of_weight.clone();
        let gradients = gradient.chunks_exact(channels);
        let rows = norm.rows().zip(gradients);
        for (out, (row, gradient)) in out.chunks_exact_mut(channels).zip(rows) {
            let [mean, inverse] = moments(row, norm.epsilon);
            // First the gradient above scale and shift, then, in place, that of the row.
            for ((out, &gradient), &weight) in out.iter_mut().zip(gradient).zip(norm.weight) {
                *out = gradient * weight;
            }
            let [sum, product] = sums(out, row, |gradient, value| {
                [gradient, gradient * (value - mean)]
            });
            let count = channels as f32;
            let (mean_gradient, slope) = (sum / count, product * inverse * inverse / count);
            for (out, &value) in out.iter_mut().zip(row) {
                *out = (*out - mean_gradient - (value - mean) * slope) * inverse;
            }
            let sums = of_weight.iter_mut().zip(&mut of_bias);
            for ((of_weight, of_bias), (&value, &gradient)) in sums.zip(row.iter().zip(gradient)) {
                *of_weight += gradient * (value - mean) * inverse;
                *of_bias += gradient;
            }
        }
        [of_weight, of_bias]
    }
}
