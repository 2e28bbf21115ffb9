//! Batch normalisation of channels-last images, with what follows it in a residual block: the sum
//! with the shortcut, and ReLU.

use crate::Statistics;
use crate::autodiff::{
    FlexTensor, Input, Operation, apply, contiguous, into_values, shape, tensor, values,
};
use crate::buffer;
use crate::channel_sums::{add_parts, to_f32};
use burn::tensor::{Tensor, TensorData};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Mean and biased variance of each channel. Not tracked by autodiff.
///
/// # Shapes
///
/// - input: `[B, H, W, C]`
///
/// # Panics
///
/// If the input is not supported ([`is_supported`](crate::is_supported)).
pub fn moments(input: &Tensor<4>) -> Statistics {
    let [.., channels] = input.dims();
    let device = input.device().inner();
    let input = contiguous(Input::from(input.clone()).into_flex());
    let (mean, variance) = channel_moments(values(&input), channels);
    let tensor = |values: Vec<f32>| Tensor::from_data(TensorData::new(values, [channels]), &device);
    Statistics { mean: tensor(mean), variance: tensor(variance) }
}

/// Batch normalisation, `(input - mean) / sqrt(variance + epsilon) * weight + bias`, plus the
/// shortcut if there is one, then ReLU if `relu`.
///
/// With autodiff, the statistics must be the [`moments`] of the same input: the gradient takes into
/// account that they change with it.
///
/// # Shapes
///
/// - input, shortcut, output: `[B, H, W, C]`
/// - weight, bias: `[C]`
///
/// # Panics
///
/// If a tensor is not supported ([`is_supported`](crate::is_supported)), or the shapes do not
/// match.
pub fn batch_norm(
    input: Tensor<4>,
    statistics: &Statistics,
    [weight, bias]: [Tensor<1>; 2],
    epsilon: f64,
    shortcut: Option<Tensor<4>>,
    relu: bool,
) -> Tensor<4> {
    let [.., channels] = input.dims();
    assert_eq!(weight.dims(), [channels], "one weight per channel");
    assert_eq!(bias.dims(), [channels], "one bias per channel");
    let read = |tensor: &Tensor<1>| -> Vec<f32> { tensor.to_data().iter().collect() };
    let inverse = |variance: f32| inverse_deviation(f64::from(variance), epsilon);
    let norm = ChannelNorm {
        mean: read(&statistics.mean),
        inverse_deviation: read(&statistics.variance).into_iter().map(inverse).collect(),
    };
    assert_eq!(norm.mean.len(), channels, "one mean per channel");
    let norm = BatchNorm { norm, relu };
    match shortcut {
        Some(shortcut) => {
            assert_eq!(shortcut.dims(), input.dims(), "shapes of the shortcut and of the input");
            apply(norm, [input.into(), weight.into(), bias.into(), shortcut.into()])
        }
        None => apply(norm, [input.into(), weight.into(), bias.into()]),
    }
}

#[derive(Debug, Clone)]
struct BatchNorm {
    norm: ChannelNorm,
    relu: bool,
}

/// Without a shortcut, the inputs are input, weight and bias.
impl Operation<3> for BatchNorm {
    /// Input, weight and bias.
    type Saved = [FlexTensor; 3];

    fn forward(&self, inputs: [FlexTensor; 3], _: [bool; 3]) -> (FlexTensor, Self::Saved) {
        let inputs = inputs.map(contiguous);
        let [input, weight, bias] = &inputs;
        let affine = self.norm.coefficients(values(weight), values(bias));
        let output = apply_affine(values(input), &affine, None, self.negative_slope());
        (tensor(output, shape::<4>(input)), inputs)
    }

    fn backward(
        &self,
        [input, weight, bias]: Self::Saved,
        gradient: FlexTensor,
        _: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        let affine = self.norm.coefficients(values(&weight), values(&bias));
        let activation = self.relu.then_some((&affine, self.negative_slope()));
        self.gradients(&input, &weight, activation, &contiguous(gradient))
    }
}

/// With a shortcut, the inputs are input, weight, bias and shortcut.
impl Operation<4> for BatchNorm {
    /// Input, weight and, with ReLU, the output.
    type Saved = (FlexTensor, FlexTensor, Option<FlexTensor>);

    fn forward(&self, inputs: [FlexTensor; 4], _: [bool; 4]) -> (FlexTensor, Self::Saved) {
        let [input, weight, bias, shortcut] = inputs.map(contiguous);
        let affine = self.norm.coefficients(values(&weight), values(&bias));
        let slope = self.negative_slope();
        let output = apply_affine(values(&input), &affine, Some(values(&shortcut)), slope);
        let output = tensor(output, shape::<4>(&input));
        let rectified = self.relu.then(|| output.clone());
        (output, (input, weight, rectified))
    }

    fn backward(
        &self,
        (input, weight, rectified): Self::Saved,
        gradient: FlexTensor,
        [.., shortcut_requires_grad]: [bool; 4],
    ) -> [Option<FlexTensor>; 4] {
        // The shortcut needs the gradient of the sum in any case; the other gradients then start
        // from it.
        let sum_gradient = match &rectified {
            Some(output) => {
                let mut gradient = into_values(gradient);
                relu_gradient_in_place(&mut gradient, values(output));
                tensor(gradient, shape::<4>(output))
            }
            None => contiguous(gradient),
        };
        let [input_gradient, weight_gradient, bias_gradient] =
            self.gradients(&input, &weight, None, &sum_gradient);
        let shortcut_gradient = shortcut_requires_grad.then_some(sum_gradient);
        [input_gradient, weight_gradient, bias_gradient, shortcut_gradient]
    }
}

impl BatchNorm {
    fn negative_slope(&self) -> f32 {
        if self.relu { 0.0 } else { 1.0 }
    }

    /// The gradients of input, weight and bias. `activation` is that which followed directly.
    fn gradients(
        &self,
        input: &FlexTensor,
        weight: &FlexTensor,
        activation: Option<(&Affine, f32)>,
        gradient: &FlexTensor,
    ) -> [Option<FlexTensor>; 3] {
        let pixels = self.norm.pixels(values(input), values(gradient), activation);
        let mut input_gradient = buffer::zeros(values(gradient).len());
        let parameters = pixels.gradients(values(weight), 1, &mut input_gradient);
        let [weight, bias] = parameters.map(|sums| tensor(to_f32(sums), [self.norm.channels()]));
        [Some(tensor(input_gradient, shape::<4>(input))), Some(weight), Some(bias)]
    }
}

/// A scale and a shift for each channel.
pub(crate) type Affine = [Vec<f32>; 2];

/// The inverse standard deviation for a variance.
pub(crate) fn inverse_deviation(variance: f64, epsilon: f64) -> f32 {
    (1.0 / (variance + epsilon).sqrt()) as f32
}

/// The statistics by which each channel is normalised.
#[derive(Debug, Clone)]
pub(crate) struct ChannelNorm {
    pub mean: Vec<f32>,
    pub inverse_deviation: Vec<f32>,
}

impl ChannelNorm {
    fn channels(&self) -> usize {
        self.mean.len()
    }

    /// The normalisation as one scale and one shift per channel.
    pub fn coefficients(&self, weight: &[f32], bias: &[f32]) -> Affine {
        let scale = weight.iter().zip(&self.inverse_deviation);
        let scale: Vec<f32> = scale.map(|(weight, inverse)| weight * inverse).collect();
        let shift = bias.iter().zip(&self.mean).zip(&scale);
        let shift = shift.map(|((bias, mean), scale)| bias - mean * scale).collect();
        [scale, shift]
    }

    /// Pixels with the gradient of their normalisation or, if there is one, of the activation with a
    /// negative slope that followed it.
    pub fn pixels<'a>(
        &'a self,
        input: &'a [f32],
        gradient: &'a [f32],
        activation: Option<(&'a Affine, f32)>,
    ) -> Pixels<'a> {
        Pixels {
            input,
            gradient,
            activation: activation.map(|([scale, shift], negative_slope)| Activation {
                scale,
                shift,
                negative_slope,
            }),
            mean: &self.mean,
            inverse_deviation: &self.inverse_deviation,
        }
    }
}

/// Pixels per task. The sums of the tasks are added in order, independent of the number of threads.
const PIXELS: usize = 512;

/// Mean and biased variance of each channel.
pub(crate) fn channel_moments(input: &[f32], channels: usize) -> (Vec<f32>, Vec<f32>) {
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
    // Squares about the parts' means, shifted to the overall mean: no cancellation.
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

/// Computes the mean of each channel and the sum of squares about it.
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
        // The mean was rounded: correct for the remaining difference from it.
        let mut squares = vec![0.0; channels];
        let mut residuals = vec![0.0; channels];
        for pixel in self.values.chunks_exact(channels) {
            let sums = squares.iter_mut().zip(&mut residuals);
            for (((square, residual), &value), &mean) in sums.zip(pixel).zip(&mean) {
                let difference = value - mean;
                *square += difference * difference;
                *residual += difference;
            }
        }
        for (square, residual) in squares.iter_mut().zip(&mut residuals) {
            *residual *= scale;
            *square -= *residual * *residual / scale;
        }
        let mean = mean.into_iter().zip(residuals);
        let mean = mean.map(|(mean, residual)| f64::from(mean) + f64::from(residual));
        (mean.collect(), squares)
    }
}

/// `scale * input + shift` by channel, plus `shortcut` if there is one; then negative values are
/// multiplied by `negative_slope`: 0 for ReLU, 1 for none.
fn apply_affine(
    input: &[f32],
    affine: &Affine,
    shortcut: Option<&[f32]>,
    negative_slope: f32,
) -> Vec<f32> {
    let mut output = buffer::zeros(input.len());
    write_affine(input, affine, shortcut, negative_slope, &mut output);
    output
}

/// As [`apply_affine`], into `output`.
pub(crate) fn write_affine(
    input: &[f32],
    [scale, shift]: &Affine,
    shortcut: Option<&[f32]>,
    negative_slope: f32,
    output: &mut [f32],
) {
    let channels = scale.len();
    let arch = Arch::new();
    output.par_chunks_mut(PIXELS * channels).enumerate().for_each(|(part, output)| {
        let start = part * PIXELS * channels;
        let input = &input[start..][..output.len()];
        let shortcut = shortcut.map(|shortcut| &shortcut[start..][..output.len()]);
        arch.dispatch(WriteAffine { input, scale, shift, shortcut, negative_slope, output });
    });
}

/// Computes some pixels of [`apply_affine`].
struct WriteAffine<'a> {
    input: &'a [f32],
    scale: &'a [f32],
    shift: &'a [f32],
    shortcut: Option<&'a [f32]>,
    negative_slope: f32,
    output: &'a mut [f32],
}

impl WithSimd for WriteAffine<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (channels, slope) = (self.scale.len(), self.negative_slope);
        let pixels = self.output.chunks_exact_mut(channels);
        for (output, (i, input)) in pixels.zip(self.input.chunks_exact(channels).enumerate()) {
            let lines = input.iter().zip(self.scale).zip(self.shift);
            let values = lines.map(|((&value, &scale), &shift)| value * scale + shift);
            match self.shortcut {
                Some(shortcut) => {
                    let shortcut = &shortcut[i * channels..][..channels];
                    for ((output, value), &shortcut) in output.iter_mut().zip(values).zip(shortcut)
                    {
                        *output = activated(value + shortcut, slope);
                    }
                }
                None => {
                    for (output, value) in output.iter_mut().zip(values) {
                        *output = activated(value, slope);
                    }
                }
            }
        }
    }
}

/// Leaky ReLU: a negative value times `negative_slope`. A NaN stays NaN, as in Burn and PyTorch, and
/// with a slope of 0 negative infinity becomes 0.
#[inline(always)]
fn activated(value: f32, negative_slope: f32) -> f32 {
    // Adding 0 makes -0 0.
    if value < 0.0 { negative_slope * value.max(f32::MIN) + 0.0 } else { value }
}

/// The gradient of [`activated`] with respect to `value`, times `gradient`.
#[inline(always)]
fn activated_gradient(gradient: f32, value: f32, negative_slope: f32) -> f32 {
    if value > 0.0 { gradient } else { negative_slope * gradient }
}

/// Values per task of the gradient of ReLU.
const RELU_VALUES: usize = 64 * 1024;

/// Replaces the gradient of ReLU's output by that of its input: the same where the output is
/// positive, else 0.
fn relu_gradient_in_place(gradient: &mut [f32], output: &[f32]) {
    let arch = Arch::new();
    gradient
        .par_chunks_mut(RELU_VALUES)
        .zip(output.par_chunks(RELU_VALUES))
        .for_each(|(gradient, output)| arch.dispatch(ReluGradient { gradient, output }));
}

struct ReluGradient<'a> {
    gradient: &'a mut [f32],
    output: &'a [f32],
}

impl WithSimd for ReluGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (gradient, &output) in self.gradient.iter_mut().zip(self.output) {
            *gradient = activated_gradient(*gradient, output, 0.0);
        }
    }
}

/// Pixels of a normalisation by the batch's own statistics, and the gradient of what followed it.
#[derive(Clone, Copy)]
pub(crate) struct Pixels<'a> {
    input: &'a [f32],
    /// The gradient of the activation's output if there is one, else of the normalisation's.
    gradient: &'a [f32],
    activation: Option<Activation<'a>>,
    mean: &'a [f32],
    inverse_deviation: &'a [f32],
}

/// An activation that followed the normalisation directly. Its input is computed again, so it need
/// not be saved.
#[derive(Clone, Copy)]
struct Activation<'a> {
    /// Those of [`apply_affine`].
    scale: &'a [f32],
    shift: &'a [f32],
    negative_slope: f32,
}

impl Pixels<'_> {
    /// Writes the gradient of the input and returns those of weight and bias. Groups of `members`
    /// channels have the same statistics.
    pub fn gradients(
        &self,
        weight: &[f32],
        members: usize,
        input_gradient: &mut [f32],
    ) -> [Vec<f64>; 2] {
        let channels = self.mean.len();
        let arch = Arch::new();
        let size = PIXELS * channels;
        let part = |i: usize, length: usize| Self {
            input: &self.input[i * size..][..length],
            gradient: &self.gradient[i * size..][..length],
            ..*self
        };
        let parts: Vec<(Vec<f32>, Vec<f32>)> = self
            .gradient
            .par_chunks(size)
            .enumerate()
            .map(|(i, gradient)| arch.dispatch(GradientSums(part(i, gradient.len()))))
            .collect();
        let bias_gradient = add_parts(parts.iter().map(|(sums, _)| sums), channels);
        let weight_gradient = add_parts(parts.iter().map(|(_, products)| products), channels);
        let values = (self.gradient.len() / channels * members) as f64;
        // Means over each group: of the gradient of the normalised input, and of its product with
        // the normalised input.
        let group_mean = |sums: &[f64], group: usize| {
            let channels = group * members..(group + 1) * members;
            channels.map(|channel| f64::from(weight[channel]) * sums[channel]).sum::<f64>() / values
        };
        // input gradient = scale * gradient + slope * input + offset
        let coefficients: Vec<[f32; 3]> = (0..channels)
            .map(|channel| {
                let inverse_deviation = f64::from(self.inverse_deviation[channel]);
                let scale = f64::from(weight[channel]) * inverse_deviation;
                let product = group_mean(&weight_gradient, channel / members);
                let slope = -inverse_deviation * inverse_deviation * product;
                let mean = group_mean(&bias_gradient, channel / members);
                let offset = -inverse_deviation * mean - slope * f64::from(self.mean[channel]);
                [scale, slope, offset].map(|value| value as f32)
            })
            .collect();
        let column = |i: usize| -> Vec<f32> { coefficients.iter().map(|c| c[i]).collect() };
        let columns = [0, 1, 2].map(column);
        input_gradient.par_chunks_mut(size).enumerate().for_each(|(i, out)| {
            let pixels = part(i, out.len());
            let [scale, slope, offset] = &columns;
            arch.dispatch(InputGradient { pixels, scale, slope, offset, out });
        });
        [weight_gradient, bias_gradient]
    }
}

/// Sums, by channel, the gradient, and the gradient times the normalised input.
struct GradientSums<'a>(Pixels<'a>);

impl WithSimd for GradientSums<'_> {
    type Output = (Vec<f32>, Vec<f32>);

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Self::Output {
        let pixels = self.0;
        let channels = pixels.mean.len();
        let mut sums = vec![0.0; channels];
        let mut products = vec![0.0; channels];
        let inputs = pixels.input.chunks_exact(channels);
        for (gradient, input) in pixels.gradient.chunks_exact(channels).zip(inputs) {
            let sums = sums.iter_mut().zip(&mut products).zip(pixels.mean);
            let values = gradient.iter().zip(input);
            match pixels.activation {
                Some(Activation { scale, shift, negative_slope }) => {
                    for ((((sum, product), &mean), (&gradient, &input)), (&scale, &shift)) in
                        sums.zip(values).zip(scale.iter().zip(shift))
                    {
                        let value = input * scale + shift;
                        let gradient = activated_gradient(gradient, value, negative_slope);
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
        for (product, &inverse_deviation) in products.iter_mut().zip(pixels.inverse_deviation) {
            *product *= inverse_deviation;
        }
        (sums, products)
    }
}

/// `scale * gradient + slope * input + offset` by channel.
struct InputGradient<'a> {
    pixels: Pixels<'a>,
    scale: &'a [f32],
    slope: &'a [f32],
    offset: &'a [f32],
    out: &'a mut [f32],
}

impl WithSimd for InputGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let pixels = self.pixels;
        let channels = pixels.mean.len();
        let gradients = pixels.gradient.chunks_exact(channels);
        let pairs = gradients.zip(pixels.input.chunks_exact(channels));
        let outs = self.out.chunks_exact_mut(channels);
        for (out, (gradient, input)) in outs.zip(pairs) {
            let values = gradient.iter().zip(input);
            let lines = self.slope.iter().zip(self.offset);
            let lines = out.iter_mut().zip(self.scale).zip(lines);
            match pixels.activation {
                Some(Activation { scale: activation_scale, shift, negative_slope }) => {
                    let affine = activation_scale.iter().zip(shift);
                    for ((((out, &scale), (&slope, &offset)), (&gradient, &input)), affine) in
                        lines.zip(values).zip(affine)
                    {
                        let value = input * affine.0 + affine.1;
                        let gradient = activated_gradient(gradient, value, negative_slope);
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
