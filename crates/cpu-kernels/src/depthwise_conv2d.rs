//! Depthwise convolution of channels-last images.
//!
//! A pixel's channels are independent, so each vector of channels is a sum over the kernel's taps.
//! The kernel reads a few neighbouring pixels at once, so that a weight is loaded once for all of
//! them. It reads them from a copy of the lines under the kernel: a line is then read from memory
//! once per band, from its start to its end, which the processor prefetches, and the copy has the
//! padding.
//!
//! With stride 1, the gradient of the input is the same convolution with the kernel turned by 180
//! degrees.

use crate::autodiff::{FlexTensor, Operation, apply, contiguous, shape, tensor, values};
use crate::buffer;
use crate::channel_sums::{add_parts, sum_rows, to_f32};
use crate::microkernel::{Sums, VECTORS, load, load_full, panel_width, store};
use burn::tensor::Tensor;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// A depthwise convolution with bias, with the same stride along both axes and a padding of half
/// the kernel's side.
///
/// # Shapes
///
/// - input: `[B, H, W, C]`
/// - weight: `[C, 1, k, k]`, `k` odd
/// - bias: `[C]`
/// - output: `[B, ceil(H / stride), ceil(W / stride), C]`
///
/// # Panics
///
/// If a tensor is not supported ([`is_supported`](crate::is_supported)), an axis is empty, the shapes
/// do not match, or the stride is zero.
pub fn depthwise_conv2d(
    input: Tensor<4>,
    weight: Tensor<4>,
    bias: Tensor<1>,
    stride: usize,
) -> Tensor<4> {
    let ([batch, rows, columns, channels], weight_shape) = (input.dims(), weight.dims());
    let side = weight_shape[3];
    assert!(
        weight_shape == [channels, 1, side, side] && side % 2 == 1 && stride > 0,
        "a weight {weight_shape:?} with stride {stride} for {channels} channels"
    );
    assert_eq!(bias.dims(), [channels], "one bias per channel");
    assert!(batch * rows * columns * channels > 0, "an empty image");
    apply(DepthwiseConv { stride }, [input.into(), weight.into(), bias.into()])
}

#[derive(Debug, Clone, Copy)]
struct DepthwiseConv {
    stride: usize,
}

impl Operation<3> for DepthwiseConv {
    /// The input, if the weight's gradient is required; the weight; and the input's shape.
    type Saved = (Option<FlexTensor>, FlexTensor, [usize; 4]);

    fn forward(
        &self,
        inputs: [FlexTensor; 3],
        [_, weight_gradient, _]: [bool; 3],
    ) -> (FlexTensor, Self::Saved) {
        let [input, weight, bias] = inputs.map(contiguous);
        let size @ [batch, rows, columns, channels] = shape::<4>(&input);
        let side = shape::<4>(&weight)[3];
        let geometry = Geometry { size: [rows, columns], channels, side, stride: self.stride };
        let convolution = Depthwise {
            input: values(&input),
            taps: &taps(values(&weight), side * side),
            bias: values(&bias),
            geometry,
        };
        let [out_rows, out_columns] = geometry.output_size();
        let output = tensor(convolution.output(batch), [batch, out_rows, out_columns, channels]);
        (output, (weight_gradient.then_some(input), weight, size))
    }

    fn backward(
        &self,
        (input, weight, size): Self::Saved,
        gradient: FlexTensor,
        [input_gradient, _, bias_gradient]: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        let gradient = contiguous(gradient);
        let gradient = values(&gradient);
        let [batch, rows, columns, channels] = size;
        let weight_shape = shape::<4>(&weight);
        let side = weight_shape[3];
        let taps = taps(values(&weight), side * side);
        let geometry = Geometry { size: [rows, columns], channels, side, stride: self.stride };
        let of_input = || {
            if self.stride > 1 {
                return tensor(geometry.input_gradient(batch, gradient, &taps), size);
            }
            let turned: Vec<f32> = taps.chunks_exact(channels).rev().flatten().copied().collect();
            let bias = &vec![0.0; channels];
            let convolution = Depthwise { input: gradient, taps: &turned, bias, geometry };
            tensor(convolution.output(batch), size)
        };
        let of_weight = |input: &FlexTensor| {
            let taps = geometry.weight_gradient(batch, values(input), gradient);
            let mut weights = vec![0.0; taps.len()];
            for (tap, values) in taps.chunks_exact(channels).enumerate() {
                for (channel, &value) in values.iter().enumerate() {
                    weights[channel * side * side + tap] = value;
                }
            }
            tensor(weights, weight_shape)
        };
        let of_bias = || tensor(sum_rows(gradient, channels), [channels]);
        [input_gradient.then(of_input), input.as_ref().map(of_weight), bias_gradient.then(of_bias)]
    }
}

/// Values of a part of the weight gradient's sums.
const VALUES_PER_PART: usize = 1 << 18;

/// The sizes of a convolution.
#[derive(Clone, Copy)]
struct Geometry {
    /// Rows and columns of the input.
    size: [usize; 2],
    channels: usize,
    /// Side of the kernel.
    side: usize,
    stride: usize,
}

impl Geometry {
    fn output_size(&self) -> [usize; 2] {
        self.size.map(|size| size.div_ceil(self.stride))
    }

    /// The input's row or column under a tap at an output's row or column.
    fn source(&self, output: usize, tap: usize, axis: usize) -> Option<usize> {
        let source = (output * self.stride + tap).checked_sub(self.side / 2)?;
        (source < self.size[axis]).then_some(source)
    }

    /// The gradient of the input, for strides above 1. A task is a row of the input.
    fn input_gradient(&self, batch: usize, gradient: &[f32], taps: &[f32]) -> Vec<f32> {
        let Self { size: [rows, columns], channels, side, stride } = *self;
        let [out_rows, out_columns] = self.output_size();
        let mut out = buffer::zeros(batch * rows * columns * channels);
        let arch = Arch::new();
        out.par_chunks_mut(columns * channels).enumerate().for_each(|(line, out)| {
            let (image, row) = (line / rows, line % rows);
            for tap_row in 0..side {
                let Some(distance) = (row + side / 2).checked_sub(tap_row) else { continue };
                let out_row = distance / stride;
                if !distance.is_multiple_of(stride) || out_row >= out_rows {
                    continue;
                }
                let start = (image * out_rows + out_row) * out_columns * channels;
                let gradient = &gradient[start..start + out_columns * channels];
                for (tap_column, weights) in taps[tap_row * side * channels..][..side * channels]
                    .chunks_exact(channels)
                    .enumerate()
                {
                    arch.dispatch(|| {
                        for (column, gradient) in gradient.chunks_exact(channels).enumerate() {
                            if let Some(source) = self.source(column, tap_column, 1) {
                                let out = &mut out[source * channels..][..channels];
                                add_products(gradient, weights, out);
                            }
                        }
                    });
                }
            }
        });
        out
    }

    /// The gradient of the weights, `[k * k, C]`. A task is some output rows of an image.
    fn weight_gradient(&self, batch: usize, input: &[f32], gradient: &[f32]) -> Vec<f32> {
        let Self { size: [rows, columns], channels, side, .. } = *self;
        let [out_rows, out_columns] = self.output_size();
        let lines: Vec<usize> = (0..batch * out_rows).collect();
        let lines_per_part = (VALUES_PER_PART / (out_columns * channels)).max(1);
        let arch = Arch::new();
        let parts: Vec<Vec<f32>> = lines
            .par_chunks(lines_per_part)
            .map(|lines| {
                let mut sums = vec![0.0; side * side * channels];
                for &line in lines {
                    let (image, row) = (line / out_rows, line % out_rows);
                    let gradient = &gradient[line * out_columns * channels..];
                    let gradient = &gradient[..out_columns * channels];
                    for tap in 0..side * side {
                        let Some(source) = self.source(row, tap / side, 0) else { continue };
                        let start = (image * rows + source) * columns * channels;
                        let input = &input[start..start + columns * channels];
                        let sums = &mut sums[tap * channels..][..channels];
                        arch.dispatch(|| {
                            for (column, gradient) in gradient.chunks_exact(channels).enumerate() {
                                if let Some(source) = self.source(column, tap % side, 1) {
                                    let input = &input[source * channels..][..channels];
                                    add_products(gradient, input, sums);
                                }
                            }
                        });
                    }
                }
                sums
            })
            .collect();
        to_f32(add_parts(parts.iter(), side * side * channels))
    }
}

/// Adds the products of values to as many sums.
#[inline(always)]
fn add_products(a: &[f32], b: &[f32], sums: &mut [f32]) {
    for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
        *sum = a.mul_add(*b, *sum);
    }
}

/// Transposes weights `[C, k * k]` to `[k * k, C]`.
fn taps(weight: &[f32], count: usize) -> Vec<f32> {
    let channels = weight.len() / count;
    let mut taps = vec![0.0; weight.len()];
    for (channel, weights) in weight.chunks_exact(count).enumerate() {
        for (tap, &value) in weights.iter().enumerate() {
            taps[tap * channels + channel] = value;
        }
    }
    taps
}

struct Depthwise<'a> {
    /// `[B, H, W, C]`.
    input: &'a [f32],
    /// Weights, `[k * k, C]`.
    taps: &'a [f32],
    bias: &'a [f32],
    geometry: Geometry,
}

impl Depthwise<'_> {
    fn output(&self, batch: usize) -> Vec<f32> {
        let channels = self.geometry.channels;
        let [out_rows, out_columns] = self.geometry.output_size();
        let mut out = buffer::zeros(batch * out_rows * out_columns * channels);
        let arch = Arch::new();
        let images = out.par_chunks_mut(out_rows * out_columns * channels).enumerate();
        images.for_each(|(image, out)| {
            let of_bands = out.par_chunks_mut(ROWS_PER_BAND * out_columns * channels).enumerate();
            of_bands.for_each_init(
                || Lines::new(self),
                |lines, (band, out)| {
                    lines.clear();
                    for (row, out) in out.chunks_exact_mut(out_columns * channels).enumerate() {
                        let row = band * ROWS_PER_BAND + row;
                        lines.read(self, image, row);
                        arch.dispatch(OutputRow { convolution: self, lines, row, out });
                    }
                },
            );
        });
        out
    }
}

/// Output rows per task. The first copies all lines under the kernel, the others only new ones.
const ROWS_PER_BAND: usize = 8;

/// Copies of the input lines under the kernel, padded with zeros on all sides.
struct Lines {
    /// Padded line `i`, counted from the first line of padding, is at `i % side`.
    values: Vec<f32>,
    /// Values of a padded line.
    length: usize,
    /// The padded lines that have been read, of which the last `side` are here.
    present: Range<usize>,
}

impl Lines {
    fn new(convolution: &Depthwise<'_>) -> Self {
        let Geometry { size, channels, side, .. } = convolution.geometry;
        let length = (size[1] + side - 1) * channels;
        Self { values: vec![0.0; side * length], length, present: 0..0 }
    }

    fn clear(&mut self) {
        self.present = 0..0;
    }

    /// Copies the lines under the kernel at an output row that are not here yet. Rows are read from
    /// the first to the last.
    fn read(&mut self, convolution: &Depthwise<'_>, image: usize, row: usize) {
        let Geometry { size: [rows, columns], channels, side, stride } = convolution.geometry;
        let margin = side / 2;
        let first = row * stride;
        for line in first.max(self.present.end)..first + side {
            let copy = &mut self.values[line % side * self.length..][..self.length];
            let copy = &mut copy[margin * channels..][..columns * channels];
            match line.checked_sub(margin).filter(|&line| line < rows) {
                Some(line) => {
                    let start = (image * rows + line) * columns * channels;
                    copy.copy_from_slice(&convolution.input[start..start + columns * channels]);
                }
                None => copy.fill(0.0),
            }
        }
        self.present = first..first + side;
    }
}

/// Output pixels computed at once. All their channels are computed before the next pixels: the
/// input is read in the order in which it lies in memory.
const PIXELS: usize = 4;

struct OutputRow<'a> {
    convolution: &'a Depthwise<'a>,
    lines: &'a Lines,
    row: usize,
    out: &'a mut [f32],
}

impl WithSimd for OutputRow<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let channels = self.convolution.geometry.channels;
        let columns = self.out.len() / channels;
        let width = panel_width::<S>();
        let mut column = 0;
        while column < columns {
            let block = column + PIXELS <= columns;
            for start in (0..channels).step_by(width) {
                let panel = start..channels.min(start + width);
                if block {
                    self.pixels::<S, PIXELS>(simd, column, panel);
                } else {
                    self.pixels::<S, 1>(simd, column, panel);
                }
            }
            column += if block { PIXELS } else { 1 };
        }
    }
}

impl OutputRow<'_> {
    /// Computes some channels of `R` pixels, starting with `column`.
    #[inline(always)]
    fn pixels<S: Simd, const R: usize>(&mut self, simd: S, column: usize, panel: Range<usize>) {
        let channels = self.convolution.geometry.channels;
        let bias = load(simd, &self.convolution.bias[panel.clone()]);
        let sums = if panel.len() == panel_width::<S>() {
            self.sums::<S, R>(simd, column, panel.start, bias, |values| load_full::<S, _>(values))
        } else {
            let count = panel.len();
            let load_some = |values: &[f32]| load(simd, &values[..count]);
            self.sums::<S, R>(simd, column, panel.start, bias, load_some)
        };
        for (pixel, sums) in sums.iter().enumerate() {
            store(simd, sums, &mut self.out[(column + pixel) * channels..][panel.clone()]);
        }
    }

    /// The sums over the kernel's taps, of channels that begin with `first`.
    #[inline(always)]
    fn sums<S: Simd, const R: usize>(
        &self,
        simd: S,
        column: usize,
        first: usize,
        bias: [S::f32s; VECTORS],
        panel_of: impl Fn(&[f32]) -> [S::f32s; VECTORS],
    ) -> Sums<S, R> {
        let Depthwise { taps, geometry: Geometry { channels, side, stride, .. }, .. } =
            *self.convolution;
        let mut sums = [bias; R]; // stay in registers
        for (tap_row, taps) in taps.chunks_exact(side * channels).enumerate() {
            let line = (self.row * stride + tap_row) % side * self.lines.length;
            let line = &self.lines.values[line..][..self.lines.length];
            let line = &line[column * stride * channels..];
            for (tap_column, weights) in taps.chunks_exact(channels).enumerate() {
                let weights = panel_of(&weights[first..]);
                for r in 0..R {
                    let values = panel_of(&line[(r * stride + tap_column) * channels + first..]);
                    for v in 0..VECTORS {
                        sums[r][v] = simd.mul_add_f32s(values[v], weights[v], sums[r][v]);
                    }
                }
            }
        }
        sums
    }
}
