//! Batch normalisation of channels-last images, with what follows it in a residual block: the short cut's sum and ReLU.

use crate::channel_sums::{in_64_bits, narrow};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Pixels that a thread takes at a time. The sums of so many are combined in their order, whatever the number of threads.
const PIXELS: usize = 512;

/// Mean and biased variance of each channel.
pub fn moments(input: &[f32], channels: usize) -> (Vec<f32>, Vec<f32>) {
    let arch = Arch::new();
    let parts: Vec<(Vec<f64>, Vec<f32>)> = input
        .par_chunks(PIXELS * channels)
        .map(|values| arch.dispatch(PartMoments { values, channels }))
        .collect();
    let pixels = (input.len() / channels) as f64;
    let mut mean = vec![0.0; channels];
    let mut squares = vec![0.0; channels];
    let count = |part: usize| PIXELS.min(input.len() / channels - part * PIXELS) as f64;
    for (part, (part_mean, _)) in parts.iter().enumerate() {
        for (mean, &part_mean) in mean.iter_mut().zip(part_mean) {
            *mean += part_mean * count(part) / pixels;
        }
    }
    // Squares about the parts' means, moved to the mean of all: nothing cancels.
    for (part, (part_mean, part_squares)) in parts.iter().enumerate() {
        for (channel, squares) in squares.iter_mut().enumerate() {
            let shift = part_mean[channel] - mean[channel];
            *squares += f64::from(part_squares[channel]) + count(part) * shift * shift;
        }
    }
    let variance = squares.into_iter().map(|squares| (squares / pixels) as f32);
    let variance = variance.collect();
    (mean.into_iter().map(|mean| mean as f32).collect(), variance)
}

/// Mean, and sum of squares about it.
struct PartMoments<'a> {
    values: &'a [f32],
    channels: usize,
}

impl WithSimd for PartMoments<'_> {
    type Output = (Vec<f64>, Vec<f32>);

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Self::Output {
        let channels = self.channels;
        let mut mean = vec![0.0; channels];
        for pixel in self.values.chunks_exact(channels) {
            for (mean, &value) in mean.iter_mut().zip(pixel) {
                *mean += value;
            }
        }
        let scale = 1.0 / (self.values.len() / channels) as f32;
        for mean in &mut mean {
            *mean *= scale;
        }
        // The mean was rounded: what is left about it is taken off.
        let mut squares = vec![0.0; channels];
        let mut rests = vec![0.0; channels];
        for pixel in self.values.chunks_exact(channels) {
            let sums = squares.iter_mut().zip(&mut rests);
            for (((square, rest), &value), &mean) in sums.zip(pixel).zip(&mean) {
                let difference = value - mean;
                *square += difference * difference;
                *rest += difference;
            }
        }
        for (square, rest) in squares.iter_mut().zip(&mut rests) {
            *rest *= scale;
            *square -= *rest * *rest / scale;
        }
        let mean = mean.into_iter().zip(rests);
        let mean = mean.map(|(mean, rest)| f64::from(mean) + f64::from(rest));
        (mean.collect(), squares)
    }
}

/// `scale * input + shift` by channel, plus `shortcut` if there is one, then ReLU if asked for.
pub fn apply(
    input: &[f32],
    scale: &[f32],
    shift: &[f32],
    shortcut: Option<&[f32]>,
    relu: bool,
) -> Vec<f32> {
    let channels = scale.len();
    let arch = Arch::new();
    let floor = if relu { 0.0 } else { f32::NEG_INFINITY };
    let mut output = vec![0.0; input.len()];
    output
        .par_chunks_mut(PIXELS * channels)
        .enumerate()
        .for_each(|(part, output)| {
            let start = part * PIXELS * channels;
            let input = &input[start..][..output.len()];
            let shortcut = shortcut.map(|shortcut| &shortcut[start..][..output.len()]);
            arch.dispatch(Affine {
                input,
                scale,
                shift,
                shortcut,
                floor,
                output,
            });
        });
    output
}

struct Affine<'a> {
    input: &'a [f32],
    scale: &'a [f32],
    shift: &'a [f32],
    shortcut: Option<&'a [f32]>,
    floor: f32,
    output: &'a mut [f32],
}

impl WithSimd for Affine<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (channels, floor) = (self.scale.len(), self.floor);
        let pixels = self.output.chunks_exact_mut(channels);
        for (output, (i, input)) in pixels.zip(self.input.chunks_exact(channels).enumerate()) {
            let lines = input.iter().zip(self.scale).zip(self.shift);
            let values = lines.map(|((&value, &scale), &shift)| value * scale + shift);
            match self.shortcut {
                Some(shortcut) => {
                    let shortcut = &shortcut[i * channels..][..channels];
                    for ((output, value), &shortcut) in output.iter_mut().zip(values).zip(shortcut)
                    {
                        *output = at_least(value + shortcut, floor);
                    }
                }
                None => {
                    for (output, value) in output.iter_mut().zip(values) {
                        *output = at_least(value, floor);
                    }
                }
            }
        }
    }
}

/// The larger; a NaN stays one, as in Burn's and PyTorch's ReLU.
#[inline(always)]
fn at_least(value: f32, floor: f32) -> f32 {
    if value < floor { floor } else { value }
}

/// What the gradients of a normalisation by a batch's own statistics are computed from.
#[derive(Debug, Clone, Copy)]
pub struct Normalized<'a> {
    /// What was normalised.
    pub input: &'a [f32],
    /// Its channels' means.
    pub mean: &'a [f32],
    /// Its channels' inverse deviations.
    pub inverse_deviation: &'a [f32],
    /// The scale that followed.
    pub weight: &'a [f32],
    /// What [`apply`] took, scale and shift, if ReLU followed: where it passed is computed again, so that the output need not
    /// be kept.
    pub rectified: Option<[&'a [f32]; 2]>,
}

/// Gradients of a normalisation.
#[derive(Debug, Clone, PartialEq)]
pub struct NormGradients {
    /// Of what was normalised.
    pub input: Vec<f32>,
    /// Of the scale.
    pub weight: Vec<f32>,
    /// Of the shift.
    pub bias: Vec<f32>,
}

/// The gradient below ReLU: the output's where the output is positive.
pub fn below_relu(gradient: &[f32], output: &[f32]) -> Vec<f32> {
    let arch = Arch::new();
    let mut below = vec![0.0; gradient.len()];
    below
        .par_chunks_mut(64 * 1024)
        .zip(gradient.par_chunks(64 * 1024))
        .zip(output.par_chunks(64 * 1024))
        .for_each(|((below, gradient), output)| {
            arch.dispatch(BelowRelu {
                gradient,
                output,
                below,
            });
        });
    below
}

struct BelowRelu<'a> {
    gradient: &'a [f32],
    output: &'a [f32],
    below: &'a mut [f32],
}

impl WithSimd for BelowRelu<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let values = self.gradient.iter().zip(self.output);
        for (below, (&gradient, &output)) in self.below.iter_mut().zip(values) {
            *below = passed(gradient, output);
        }
    }
}

#[inline(always)]
fn passed(gradient: f32, output: f32) -> f32 {
    if output > 0.0 { gradient } else { 0.0 }
}

impl Normalized<'_> {
    /// Gradients from that of the output.
    pub fn gradients(&self, gradient: &[f32]) -> NormGradients {
        let channels = self.mean.len();
        let arch = Arch::new();
        let part = |start: usize, length: usize| Part {
            input: &self.input[start..start + length],
            gradient: &gradient[start..start + length],
            rectified: self.rectified,
            mean: self.mean,
            inverse_deviation: self.inverse_deviation,
        };
        let size = PIXELS * channels;
        let parts: Vec<(Vec<f32>, Vec<f32>)> = gradient
            .par_chunks(size)
            .enumerate()
            .map(|(i, gradient)| arch.dispatch(GradientSums(part(i * size, gradient.len()))))
            .collect();
        let bias = in_64_bits(parts.iter().map(|(sums, _)| sums), channels);
        let weight = in_64_bits(parts.iter().map(|(_, products)| products), channels);
        let pixels = (gradient.len() / channels) as f64;
        // input gradient = scale * gradient + slope * input + offset
        let coefficients: Vec<[f32; 3]> = (0..channels)
            .map(|channel| {
                let inverse_deviation = f64::from(self.inverse_deviation[channel]);
                let scale = f64::from(self.weight[channel]) * inverse_deviation;
                let slope = -scale * weight[channel] / pixels * inverse_deviation;
                let offset =
                    -scale * bias[channel] / pixels - slope * f64::from(self.mean[channel]);
                [scale, slope, offset].map(|value| value as f32)
            })
            .collect();
        let column = |i: usize| -> Vec<f32> { coefficients.iter().map(|c| c[i]).collect() };
        let columns = [0, 1, 2].map(column);
        let mut input = vec![0.0; gradient.len()];
        input.par_chunks_mut(size).enumerate().for_each(|(i, out)| {
            let part = part(i * size, out.len());
            let [scale, slope, offset] = &columns;
            arch.dispatch(InputGradient {
                part,
                scale,
                slope,
                offset,
                out,
            });
        });
        NormGradients {
            input,
            weight: narrow(weight),
            bias: narrow(bias),
        }
    }
}

#[derive(Clone, Copy)]
struct Part<'a> {
    input: &'a [f32],
    gradient: &'a [f32],
    rectified: Option<[&'a [f32]; 2]>,
    mean: &'a [f32],
    inverse_deviation: &'a [f32],
}

/// By channel, the gradient's sum, and its sum times the normalised input.
struct GradientSums<'a>(Part<'a>);

impl WithSimd for GradientSums<'_> {
    type Output = (Vec<f32>, Vec<f32>);

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Self::Output {
        let part = self.0;
        let channels = part.mean.len();
        let mut sums = vec![0.0; channels];
        let mut products = vec![0.0; channels];
        let inputs = part.input.chunks_exact(channels);
        for (gradient, input) in part.gradient.chunks_exact(channels).zip(inputs) {
            let sums = sums.iter_mut().zip(&mut products).zip(part.mean);
            let values = gradient.iter().zip(input);
            match part.rectified {
                Some([scale, shift]) => {
                    for ((((sum, product), &mean), (&gradient, &input)), (&scale, &shift)) in
                        sums.zip(values).zip(scale.iter().zip(shift))
                    {
                        let gradient = passed(gradient, input * scale + shift);
                        *sum += gradient;
                        *product += gradient * (input - mean);
                    }
                }
                None => {
                    for (((sum, product), &mean), (&gradient, &input)) in sums.zip(values) {
                        *sum += gradient;
                        *product += gradient * (input - mean);
                    }
                }
            }
        }
        for (product, &inverse_deviation) in products.iter_mut().zip(part.inverse_deviation) {
            *product *= inverse_deviation;
        }
        (sums, products)
    }
}

/// `scale * gradient + slope * input + offset` by channel.
struct InputGradient<'a> {
    part: Part<'a>,
    scale: &'a [f32],
    slope: &'a [f32],
    offset: &'a [f32],
    out: &'a mut [f32],
}

impl WithSimd for InputGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let part = self.part;
        let channels = part.mean.len();
        let gradients = part.gradient.chunks_exact(channels);
        let pixels = gradients.zip(part.input.chunks_exact(channels));
        let outs = self.out.chunks_exact_mut(channels);
        for (out, (gradient, input)) in outs.zip(pixels) {
            let values = gradient.iter().zip(input);
            let lines = self.slope.iter().zip(self.offset);
            let lines = out.iter_mut().zip(self.scale).zip(lines);
            match part.rectified {
                Some([applied_scale, shift]) => {
                    let applied = applied_scale.iter().zip(shift);
                    for ((((out, &scale), (&slope, &offset)), (&gradient, &input)), applied) in
                        lines.zip(values).zip(applied)
                    {
                        let gradient = passed(gradient, input * applied.0 + applied.1);
                        *out = scale * gradient + slope * input + offset;
                    }
                }
                None => {
                    for (((out, &scale), (&slope, &offset)), (&gradient, &input)) in
                        lines.zip(values)
                    {
                        *out = scale * gradient + slope * input + offset;
                    }
                }
            }
        }
    }
}
