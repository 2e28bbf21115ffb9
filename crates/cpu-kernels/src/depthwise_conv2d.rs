//! Depthwise convolution of channels-last images. It has no gradient.
//!
//! A pixel's channels are independent, so each vector of channels is a sum over the kernel's taps.
//! The kernel reads a few neighbouring pixels at once, so that a weight is loaded once for all of
//! them. It reads them from a copy of the lines under the kernel: a line is then read from memory
//! once per band, from its start to its end, which the processor prefetches, and the copy has the
//! padding.

use crate::autodiff::{tensor, values, without_autodiff};
use crate::buffer;
use crate::microkernel::{Sums, VECTORS, load, load_full, panel_width, store};
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
/// ([`is_supported_without_autodiff`](crate::is_supported_without_autodiff)), an axis is empty, the
/// shapes do not match, or the stride is zero.
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
    let mut out = buffer::zeros(batch * out_rows * out_columns * channels);
    let arch = Arch::new();
    let images = out.par_chunks_mut(out_rows * out_columns * channels).enumerate();
    images.for_each(|(image, out)| {
        let of_bands = out.par_chunks_mut(ROWS_PER_BAND * out_columns * channels).enumerate();
        of_bands.for_each_init(
            || Lines::new(&convolution),
            |lines, (band, out)| {
                lines.clear();
                for (row, out) in out.chunks_exact_mut(out_columns * channels).enumerate() {
                    let row = band * ROWS_PER_BAND + row;
                    lines.read(&convolution, image, row);
                    arch.dispatch(OutputRow { convolution: &convolution, lines, row, out });
                }
            },
        );
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
        let Depthwise { size, channels, side, .. } = *convolution;
        let length = (size[1] + side - 1) * channels;
        Self { values: vec![0.0; side * length], length, present: 0..0 }
    }

    fn clear(&mut self) {
        self.present = 0..0;
    }

    /// Copies the lines under the kernel at an output row that are not here yet. Rows are read from
    /// the first to the last.
    fn read(&mut self, convolution: &Depthwise<'_>, image: usize, row: usize) {
        let Depthwise { input, size: [rows, columns], channels, side, stride, .. } = *convolution;
        let margin = side / 2;
        let first = row * stride;
        for line in first.max(self.present.end)..first + side {
            let copy = &mut self.values[line % side * self.length..][..self.length];
            let copy = &mut copy[margin * channels..][..columns * channels];
            match line.checked_sub(margin).filter(|&line| line < rows) {
                Some(line) => {
                    let start = (image * rows + line) * columns * channels;
                    copy.copy_from_slice(&input[start..start + columns * channels]);
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
        let channels = self.convolution.channels;
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
        let channels = self.convolution.channels;
        let bias = load(simd, &self.convolution.bias[panel.clone()]);
        let sums = if panel.len() == panel_width::<S>() {
            self.sums::<S, R>(simd, column, panel.start, bias, |values| load_full::<S>(values))
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
        let Depthwise { taps, channels, side, stride, .. } = *self.convolution;
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
