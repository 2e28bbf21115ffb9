//! Max-pooling of channels-last images, as in a ResNet's stem.

use crate::autodiff::{FlexTensor, Operation, apply, contiguous, tensor, values};
use crate::buffer;
use burn::tensor::Tensor;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::sync::Arc;

/// Max-pooling over 3 x 3 windows with stride 2 and padding 1.
///
/// # Shapes
///
/// - input: `[B, H, W, C]`
/// - output: `[B, ceil(H / 2), ceil(W / 2), C]`
///
/// # Panics
///
/// If the input is not supported ([`is_supported`](crate::is_supported)).
pub fn max_pool(input: Tensor<4>) -> Tensor<4> {
    let pool = MaxPool { input: input.dims() };
    apply(pool, [input.into()])
}

#[derive(Debug, Clone, Copy)]
struct MaxPool {
    /// Shape of the input: batch, rows, columns, channels.
    input: [usize; 4],
}

impl Operation<1> for MaxPool {
    /// For each output, which of the nine pixels of its window is the largest.
    type Saved = Arc<Vec<u8>>;

    fn forward(&self, [input]: [FlexTensor; 1], _: [bool; 1]) -> (FlexTensor, Self::Saved) {
        let (largest, taps) = self.output(values(&contiguous(input)));
        (tensor(largest, self.output_shape()), Arc::new(taps))
    }

    fn backward(
        &self,
        taps: Self::Saved,
        gradient: FlexTensor,
        _: [bool; 1],
    ) -> [Option<FlexTensor>; 1] {
        let input_gradient = self.input_gradient(values(&contiguous(gradient)), &taps);
        [Some(tensor(input_gradient, self.input))]
    }
}

impl MaxPool {
    fn output_shape(&self) -> [usize; 4] {
        let [batch, rows, columns, channels] = self.input;
        [batch, rows.div_ceil(2), columns.div_ceil(2), channels]
    }

    /// The largest value of each window, and which of its nine pixels holds it: the first in case
    /// of a tie.
    fn output(&self, input: &[f32]) -> (Vec<f32>, Vec<u8>) {
        let [_, rows, columns, channels] = self.input;
        let [_, rows_out, columns_out, _] = self.output_shape();
        let arch = Arch::new();
        let mut largest = vec![f32::NEG_INFINITY; self.output_shape().iter().product()];
        let mut taps = vec![0; largest.len()];
        let row_values = columns_out * channels;
        let outputs = largest.par_chunks_mut(row_values).zip(taps.par_chunks_mut(row_values));
        outputs.enumerate().for_each(|(row, (largest, taps))| {
            let image = &input[row / rows_out * rows * columns * channels..];
            arch.dispatch(LargestOfRow {
                image: &image[..rows * columns * channels],
                shape: [rows, columns, channels],
                row: row % rows_out,
                largest,
                taps,
            });
        });
        (largest, taps)
    }

    /// The gradient of the input from that of the output.
    fn input_gradient(&self, gradient: &[f32], taps: &[u8]) -> Vec<f32> {
        let [_, rows, columns, channels] = self.input;
        let [_, rows_out, columns_out, _] = self.output_shape();
        let arch = Arch::new();
        let mut input_gradient = buffer::zeros(self.input.iter().product());
        let out = input_gradient.par_chunks_mut(columns * channels);
        out.enumerate().for_each(|(row, out)| {
            let image = row / rows * rows_out * columns_out * channels;
            let values = image..image + rows_out * columns_out * channels;
            arch.dispatch(GradientOfRow {
                gradient: &gradient[values.clone()],
                taps: &taps[values],
                shape: [rows_out, columns_out, channels],
                row: row % rows,
                out,
            });
        });
        input_gradient
    }
}

/// Computes a row of the output.
struct LargestOfRow<'a> {
    image: &'a [f32],
    /// Rows, columns, channels.
    shape: [usize; 3],
    /// Row of the output.
    row: usize,
    largest: &'a mut [f32],
    taps: &'a mut [u8],
}

impl WithSimd for LargestOfRow<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let [rows, columns, channels] = self.shape;
        let pixel_at = |window: usize, tap: u8, size: usize| {
            let pixel = (2 * window + usize::from(tap)).checked_sub(1);
            pixel.filter(|&pixel| pixel < size)
        };
        for tap in 0..9_u8 {
            let Some(row) = pixel_at(self.row, tap / 3, rows) else {
                continue;
            };
            let values = &self.image[row * columns * channels..][..columns * channels];
            let largest = self.largest.chunks_exact_mut(channels);
            let windows = largest.zip(self.taps.chunks_exact_mut(channels));
            for (window, (largest, taps)) in windows.enumerate() {
                let Some(column) = pixel_at(window, tap % 3, columns) else {
                    continue;
                };
                let values = &values[column * channels..][..channels];
                for ((largest, largest_tap), &value) in largest.iter_mut().zip(taps).zip(values) {
                    // A NaN is larger than any number, as in PyTorch.
                    let larger = value > *largest || value.is_nan();
                    *largest = if larger { value } else { *largest };
                    *largest_tap = if larger { tap } else { *largest_tap };
                }
            }
        }
    }
}

/// Computes a row of the input's gradient.
struct GradientOfRow<'a> {
    gradient: &'a [f32],
    taps: &'a [u8],
    /// Rows, columns and channels of the output.
    shape: [usize; 3],
    /// Row of the input.
    row: usize,
    out: &'a mut [f32],
}

impl WithSimd for GradientOfRow<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let [rows, columns, channels] = self.shape;
        for (column, out) in self.out.chunks_exact_mut(channels).enumerate() {
            for tap in 0..9_u8 {
                let row = window(self.row, usize::from(tap / 3), rows);
                let column = window(column, usize::from(tap % 3), columns);
                let (Some(row), Some(column)) = (row, column) else {
                    continue;
                };
                let start = (row * columns + column) * channels;
                let values = self.gradient[start..][..channels].iter();
                let taps = &self.taps[start..][..channels];
                for ((out, &gradient), &largest_tap) in out.iter_mut().zip(values).zip(taps) {
                    *out += if largest_tap == tap { gradient } else { 0.0 };
                }
            }
        }
    }
}

/// Along an axis, the window that has a pixel at `tap`.
fn window(pixel: usize, tap: usize, windows: usize) -> Option<usize> {
    let start = (pixel + 1).checked_sub(tap)?;
    (start.is_multiple_of(2) && start / 2 < windows).then_some(start / 2)
}
