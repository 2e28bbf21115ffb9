//! Depthwise convolution of channels-last images. It has no gradient.
//!
//! A pixel's channels are independent, so each vector of channels is a sum over the kernel's taps.
//! The kernel reads a few neighbouring pixels at once, so that a weight is loaded once for all of
//! them.

use crate::autodiff::{tensor, values, without_autodiff};
use crate::microkernel::{load, panel_width, store};
use burn::backend::Flex;
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
/// If a tensor is not supported
/// ([`is_supported_without_autodiff`](crate::is_supported_without_autodiff)), the shapes do not
/// match, or the stride is zero.
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
    let [input, weight] = [input, weight].map(without_autodiff);
    let bias = without_autodiff(bias);
    let convolution = Depthwise {
        input: values(&input),
        taps: &taps(values(&weight), side * side),
        bias: values(&bias),
        size: [rows, columns],
        channels,
        side,
        stride,
    };
    let [out_rows, out_columns] = convolution.output_size();
    let mut out = vec![0.0; batch * out_rows * out_columns * channels];
    let arch = Arch::new();
    out.par_chunks_mut(out_columns * channels).enumerate().for_each(|(row, out)| {
        arch.dispatch(OutputRow {
            convolution: &convolution,
            image: row / out_rows,
            row: row % out_rows,
            out,
        });
    });
    Tensor::from_primitive::<Flex>(tensor(out, [batch, out_rows, out_columns, channels]))
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
    /// Rows and columns of the input.
    size: [usize; 2],
    channels: usize,
    /// Side of the kernel.
    side: usize,
    stride: usize,
}

impl Depthwise<'_> {
    fn output_size(&self) -> [usize; 2] {
        self.size.map(|size| size.div_ceil(self.stride))
    }

    /// The input line under a tap at an output line, if it is not padding.
    fn input_line(&self, axis: usize, line: usize, tap: usize) -> Option<usize> {
        (line * self.stride + tap).checked_sub(self.side / 2).filter(|&line| line < self.size[axis])
    }
}

/// Output pixels computed at once.
const PIXELS: usize = 4;
/// Output pixels for which all channels are computed before the next: their input stays in the
/// cache.
const PIXELS_PER_TILE: usize = 16;

struct OutputRow<'a> {
    convolution: &'a Depthwise<'a>,
    image: usize,
    row: usize,
    out: &'a mut [f32],
}

impl WithSimd for OutputRow<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let channels = self.convolution.channels;
        let columns = self.out.len() / channels;
        let width = panel_width::<S>();
        for tile in (0..columns).step_by(PIXELS_PER_TILE) {
            let end = columns.min(tile + PIXELS_PER_TILE);
            for start in (0..channels).step_by(width) {
                let panel = start..channels.min(start + width);
                let mut column = tile;
                while column + PIXELS <= end {
                    self.pixels::<S, PIXELS>(simd, column, panel.clone());
                    column += PIXELS;
                }
                while column < end {
                    self.pixels::<S, 1>(simd, column, panel.clone());
                    column += 1;
                }
            }
        }
    }
}

impl OutputRow<'_> {
    /// Computes some channels of `R` pixels, starting with `column`.
    #[inline(always)]
    fn pixels<S: Simd, const R: usize>(&mut self, simd: S, column: usize, panel: Range<usize>) {
        let Depthwise { input, taps, bias, size, channels, side, .. } = *self.convolution;
        let mut sums = [load(simd, &bias[panel.clone()]); R];
        for tap_row in 0..side {
            let Some(row) = self.convolution.input_line(0, self.row, tap_row) else { continue };
            let row = (self.image * size[0] + row) * size[1];
            for tap_column in 0..side {
                let tap = (tap_row * side + tap_column) * channels;
                let weights = load(simd, &taps[tap..][panel.clone()]);
                for (pixel, sums) in sums.iter_mut().enumerate() {
                    let column = column + pixel;
                    let Some(column) = self.convolution.input_line(1, column, tap_column) else {
                        continue;
                    };
                    let values = load(simd, &input[(row + column) * channels..][panel.clone()]);
                    for ((sum, value), weight) in sums.iter_mut().zip(values).zip(weights) {
                        *sum = simd.mul_add_f32s(value, weight, *sum);
                    }
                }
            }
        }
        for (pixel, sums) in sums.iter().enumerate() {
            store(simd, sums, &mut self.out[(column + pixel) * channels..][panel.clone()]);
        }
    }
}
