//! Max-pooling of channels-last images by 3 x 3 windows with stride 2 and padding 1, as in a ResNet's stem.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Batch, rows, columns and channels of the output for those of the input.
pub fn output([batch, rows, columns, channels]: [usize; 4]) -> [usize; 4] {
    [batch, rows.div_ceil(2), columns.div_ceil(2), channels]
}

/// The windows' largest values, and which of the nine pixels has it: the first, where several do.
pub fn forward(input: &[f32], shape: [usize; 4]) -> (Vec<f32>, Vec<u8>) {
    let [_, rows, columns, channels] = shape;
    let [_, rows_out, columns_out, _] = output(shape);
    let arch = Arch::new();
    let mut largest = vec![f32::NEG_INFINITY; output(shape).iter().product()];
    let mut taps = vec![0; largest.len()];
    let row_values = columns_out * channels;
    largest
        .par_chunks_mut(row_values)
        .zip(taps.par_chunks_mut(row_values))
        .enumerate()
        .for_each(|(row, (largest, taps))| {
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

struct LargestOfRow<'a> {
    image: &'a [f32],
    /// Rows, columns, channels.
    shape: [usize; 3],
    /// Of the output.
    row: usize,
    largest: &'a mut [f32],
    taps: &'a mut [u8],
}

impl WithSimd for LargestOfRow<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let [rows, columns, channels] = self.shape;
        let seen = |window: usize, tap: u8, size: usize| {
            let pixel = (2 * window + usize::from(tap)).checked_sub(1);
            pixel.filter(|&pixel| pixel < size)
        };
        for tap in 0..9_u8 {
            let Some(row) = seen(self.row, tap / 3, rows) else {
                continue;
            };
            let values = &self.image[row * columns * channels..][..columns * channels];
            let largest = self.largest.chunks_exact_mut(channels);
            let windows = largest.zip(self.taps.chunks_exact_mut(channels));
            for (window, (largest, taps)) in windows.enumerate() {
                let Some(column) = seen(window, tap % 3, columns) else {
                    continue;
                };
                let values = &values[column * channels..][..channels];
                for ((largest, found), &value) in largest.iter_mut().zip(taps).zip(values) {
                    // A NaN is larger than any number, as in PyTorch.
                    let larger = value > *largest || value.is_nan();
                    *largest = if larger { value } else { *largest };
                    *found = if larger { tap } else { *found };
                }
            }
        }
    }
}

/// The gradient of the input, of `shape`, from that of the output.
pub fn backward(gradient: &[f32], taps: &[u8], shape: [usize; 4]) -> Vec<f32> {
    let [_, rows, columns, channels] = shape;
    let [_, rows_out, columns_out, _] = output(shape);
    let arch = Arch::new();
    let mut below = vec![0.0; shape.iter().product()];
    below
        .par_chunks_mut(columns * channels)
        .enumerate()
        .for_each(|(row, below)| {
            let image = row / rows * rows_out * columns_out * channels;
            let values = image..image + rows_out * columns_out * channels;
            arch.dispatch(GradientOfRow {
                gradient: &gradient[values.clone()],
                taps: &taps[values],
                shape: [rows_out, columns_out, channels],
                row: row % rows,
                below,
            });
        });
    below
}

struct GradientOfRow<'a> {
    gradient: &'a [f32],
    taps: &'a [u8],
    /// Rows, columns and channels of the output.
    shape: [usize; 3],
    /// Of the input.
    row: usize,
    below: &'a mut [f32],
}

impl WithSimd for GradientOfRow<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let [rows, columns, channels] = self.shape;
        for (column, below) in self.below.chunks_exact_mut(channels).enumerate() {
            for tap in 0..9_u8 {
                let row = window(self.row, usize::from(tap / 3), rows);
                let column = window(column, usize::from(tap % 3), columns);
                let (Some(row), Some(column)) = (row, column) else {
                    continue;
                };
                let start = (row * columns + column) * channels;
                let values = self.gradient[start..][..channels].iter();
                let taps = &self.taps[start..][..channels];
                for ((below, &gradient), &found) in below.iter_mut().zip(values).zip(taps) {
                    *below += if found == tap { gradient } else { 0.0 };
                }
            }
        }
    }
}

/// The window in which a pixel is at `tap`, along an axis.
fn window(pixel: usize, tap: usize, windows: usize) -> Option<usize> {
    let start = (pixel + 1).checked_sub(tap)?;
    (start.is_multiple_of(2) && start / 2 < windows).then_some(start / 2)
}
