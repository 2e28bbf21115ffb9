//! Convolutions of channels-last images, and their gradients.
//!
//! All three are sums of products of runs with panels. In a channels-last image the pixels under one row of the kernel are a
//! run of consecutive values, wherever it lies and whatever the stride, so nothing is unfolded: a pixel's run is multiplied
//! with a panel of weights that are packed in the same order. The input's gradient is a convolution of the output's gradient
//! with the kernel turned round; with a stride, one for each phase of it. The weight's gradient sums, over all pixels, the
//! run times the output's gradient.
//!
//! No sum depends on the number of threads.

use crate::product::{
    Groups, add_outer_products, in_groups, load, load_whole, multiply_add, panel_width, store,
    zeros,
};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// A two-dimensional convolution without bias, with equal stride and padding along both axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Convolution {
    /// Batch, rows, columns and channels of the input.
    pub input: [usize; 4],
    /// Channels of the output.
    pub channels: usize,
    /// Rows and columns of the kernel.
    pub kernel: [usize; 2],
    /// Pixels from one output to the next.
    pub stride: usize,
    /// Zeros around the input.
    pub padding: usize,
}

/// Weights in the order in which they are used: for each panel of output channels, for each row of the kernel, for each value
/// of the run, the panel's channels.
struct Packed {
    kernel: [usize; 2],
    values: Vec<f32>,
}

/// Parts that the pixels of a weight gradient are summed in, each in order; then the parts in order.
const PARTS: usize = 8;
/// Pixels that a weight gradient's sums stay in registers for.
const PIXELS_AT_ONCE: usize = 256;

impl Convolution {
    /// Batch, rows, columns and channels of the output.
    ///
    /// # Panics
    ///
    /// If there is none: an axis is empty, the stride is zero, or the kernel is larger than the padded input.
    pub fn output(&self) -> [usize; 4] {
        let [batch, rows, columns, _] = self.input;
        let sizes = [&self.input[..], &self.kernel, &[self.channels, self.stride]].concat();
        assert!(!sizes.contains(&0), "no axis is empty: {self:?}");
        let size = |size: usize, kernel| match (size + 2 * self.padding).checked_sub(kernel) {
            Some(beyond) => beyond / self.stride + 1,
            None => panic!("the kernel is larger than the padded input: {self:?}"),
        };
        let [kernel_rows, kernel_columns] = self.kernel;
        [
            batch,
            size(rows, kernel_rows),
            size(columns, kernel_columns),
            self.channels,
        ]
    }

    fn weights(&self) -> usize {
        self.channels * self.input[3] * self.kernel[0] * self.kernel[1]
    }

    /// The output. Weights are `[channels out, channels in, rows, columns]`.
    pub fn forward(&self, input: &[f32], weight: &[f32]) -> Vec<f32> {
        assert_eq!(input.len(), self.input.iter().product::<usize>());
        assert_eq!(weight.len(), self.weights());
        let arch = Arch::new();
        let [kernel_rows, kernel_columns] = self.kernel;
        let channels_in = self.input[3];
        let packed = pack(
            arch,
            self.kernel,
            [channels_in, self.channels],
            |row, column, channel_in, channel_out| {
                let plane = channel_out * channels_in + channel_in;
                weight[(plane * kernel_rows + row) * kernel_columns + column]
            },
        );
        let padding = -(self.padding as isize);
        let phase = Phase {
            weights: packed,
            origin: padding,
            origin_column: padding,
            stride: self.stride,
            columns: (0, 1),
            count: self.output()[2],
        };
        let images = Images {
            values: input,
            shape: self.input,
        };
        images.seen_through(&[vec![phase]], self.output())
    }

    /// The gradient of the input from that of the output.
    pub fn input_gradient(&self, weight: &[f32], gradient: &[f32]) -> Vec<f32> {
        let output = self.output();
        assert_eq!(gradient.len(), output.iter().product::<usize>());
        assert_eq!(weight.len(), self.weights());
        let arch = Arch::new();
        let [kernel_rows, kernel_columns] = self.kernel;
        let [_, rows, columns, channels_in] = self.input;
        // Along an axis, the inputs at `phase + stride * i` are reached from the kernel's positions `first + stride * j`, from
        // the last to the first of them by consecutive outputs.
        let taps = |phase: usize, kernel: usize| -> (Vec<usize>, isize) {
            let first = (phase + self.padding) % self.stride;
            let taps: Vec<usize> = (first..kernel).step_by(self.stride).rev().collect();
            let last = taps.first().copied().unwrap_or(first);
            let origin = (phase + self.padding) as isize - last as isize;
            (taps, origin / self.stride as isize)
        };
        let phases: Vec<Vec<Phase>> = (0..self.stride.min(rows))
            .map(|row_phase| {
                let (tap_rows, origin) = taps(row_phase, kernel_rows);
                (0..self.stride.min(columns))
                    .map(|column_phase| {
                        let (tap_columns, origin_column) = taps(column_phase, kernel_columns);
                        let weights = pack(
                            arch,
                            [tap_rows.len(), tap_columns.len()],
                            [self.channels, channels_in],
                            |row, column, channel_out, channel_in| {
                                let plane = channel_out * channels_in + channel_in;
                                let row = plane * kernel_rows + tap_rows[row];
                                weight[row * kernel_columns + tap_columns[column]]
                            },
                        );
                        Phase {
                            weights,
                            origin,
                            origin_column,
                            stride: 1,
                            columns: (column_phase, self.stride),
                            count: (columns - column_phase).div_ceil(self.stride),
                        }
                    })
                    .collect()
            })
            .collect();
        let images = Images {
            values: gradient,
            shape: output,
        };
        images.seen_through(&phases, self.input)
    }

    /// The gradient of the weight, `[channels out, channels in, rows, columns]`, from that of the output.
    pub fn weight_gradient(&self, input: &[f32], gradient: &[f32]) -> Vec<f32> {
        let [_, rows, columns, _] = self.output();
        assert_eq!(input.len(), self.input.iter().product::<usize>());
        assert_eq!(gradient.len(), self.output().iter().product::<usize>());
        let arch = Arch::new();
        let [kernel_rows, kernel_columns] = self.kernel;
        let channels_in = self.input[3];
        let run = kernel_columns * channels_in;
        let all_rows = self.input[0] * rows;
        let part_rows = all_rows.div_ceil(PARTS);
        let rows_at_once = (PIXELS_AT_ONCE / columns).clamp(1, part_rows);
        let images = Images {
            values: input,
            shape: self.input,
        };
        let padding = -(self.padding as isize);
        let width = (columns - 1) * self.stride + kernel_columns;
        let parts: Vec<Vec<f32>> = gradient
            .par_chunks(part_rows * columns * self.channels)
            .enumerate()
            .map(|(part, gradient)| {
                let mut sums = vec![0.0; kernel_rows * run * self.channels];
                let mut buffer = Vec::new();
                let chunks = gradient.chunks(rows_at_once * columns * self.channels);
                for (chunk, gradient) in chunks.enumerate() {
                    let first = part * part_rows + chunk * rows_at_once;
                    let gradients: Vec<&[f32]> =
                        gradient.chunks_exact(columns * self.channels).collect();
                    // For each output row, the padded input rows that it sees.
                    buffer.clear();
                    for i in 0..gradients.len() {
                        let (image, row) = ((first + i) / rows, (first + i) % rows);
                        for kernel_row in 0..kernel_rows {
                            let row = (row * self.stride + kernel_row) as isize + padding;
                            images.push_row(&mut buffer, image, row, padding, width);
                        }
                    }
                    let inputs: Vec<&[f32]> = buffer.chunks_exact(width * channels_in).collect();
                    for (kernel_row, sums) in sums.chunks_exact_mut(run * self.channels).enumerate()
                    {
                        let seen: Vec<&[f32]> = inputs[kernel_row..]
                            .iter()
                            .step_by(kernel_rows)
                            .copied()
                            .collect();
                        arch.dispatch(OuterProducts {
                            inputs: &seen,
                            gradients: &gradients,
                            step: self.stride * channels_in,
                            channels: self.channels,
                            sums,
                            start: 0,
                        });
                    }
                }
                sums
            })
            .collect();
        let mut parts = parts.into_iter();
        let mut sums = parts.next().unwrap_or_default();
        for part in parts {
            for (sum, value) in sums.iter_mut().zip(part) {
                *sum += value;
            }
        }
        let plane = kernel_rows * kernel_columns;
        let mut weight_gradient = vec![0.0; self.weights()];
        weight_gradient
            .par_chunks_mut(channels_in * plane)
            .enumerate()
            .for_each(|(channel_out, out)| {
                for tap in 0..plane {
                    for (channel_in, out) in out.iter_mut().skip(tap).step_by(plane).enumerate() {
                        *out = sums[(tap * channels_in + channel_in) * self.channels + channel_out];
                    }
                }
            });
        weight_gradient
    }
}

/// Channels-last images.
#[derive(Clone, Copy)]
struct Images<'a> {
    values: &'a [f32],
    /// Batch, rows, columns, channels.
    shape: [usize; 4],
}

impl Images<'_> {
    /// Makes images of `shape`: their rows by one list of phases after the other.
    fn seen_through(self, phases: &[Vec<Phase>], shape: [usize; 4]) -> Vec<f32> {
        let arch = Arch::new();
        let [_, rows, columns, channels] = shape;
        let mut out = vec![0.0; shape.iter().product()];
        out.par_chunks_mut(columns * channels)
            .enumerate()
            .for_each_init(Vec::new, |buffer, (row, out)| {
                let (image, row) = (row / rows, row % rows);
                for phase in &phases[row % phases.len()] {
                    if phase.push_rows(buffer, self, image, row / phases.len()) {
                        arch.dispatch(phase.row(buffer, self.shape[3], out, channels));
                    }
                }
            });
        out
    }

    /// Appends `width` pixels of a row, from column `first` on, zeros outside.
    fn push_row(&self, out: &mut Vec<f32>, image: usize, row: isize, first: isize, width: usize) {
        let [_, rows, columns, channels] = self.shape;
        let end = out.len() + width * channels;
        let Some(row) = usize::try_from(row).ok().filter(|&row| row < rows) else {
            out.resize(end, 0.0);
            return;
        };
        let left = usize::try_from(-first).unwrap_or(0).min(width);
        out.resize(out.len() + left * channels, 0.0);
        let from = usize::try_from(first).unwrap_or(0).min(columns);
        let count = (columns - from).min(width - left);
        let start = ((image * rows + row) * columns + from) * channels;
        out.extend_from_slice(&self.values[start..start + count * channels]);
        out.resize(end, 0.0);
    }
}

/// A convolution that makes some pixels of an output row: those of every `stride`-th column of a gradient, or all.
struct Phase {
    weights: Packed,
    /// The first row seen from output row 0, and the first column.
    origin: isize,
    origin_column: isize,
    stride: usize,
    /// First output column, and the step to the next.
    columns: (usize, usize),
    /// Number of output columns.
    count: usize,
}

impl Phase {
    /// Puts the padded rows that an output row sees into `buffer`. False if nothing reaches its pixels.
    fn push_rows(
        &self,
        buffer: &mut Vec<f32>,
        images: Images<'_>,
        image: usize,
        row: usize,
    ) -> bool {
        let [kernel_rows, kernel_columns] = self.weights.kernel;
        buffer.clear();
        let width = (self.count - 1) * self.stride + kernel_columns;
        for kernel_row in 0..kernel_rows {
            let row = (row * self.stride + kernel_row) as isize + self.origin;
            images.push_row(buffer, image, row, self.origin_column, width);
        }
        kernel_rows * kernel_columns > 0
    }

    /// What makes an output row of these rows.
    fn row<'a>(
        &'a self,
        rows: &'a [f32],
        channels_in: usize,
        out: &'a mut [f32],
        channels: usize,
    ) -> RunsTimesPanels<'a> {
        let [kernel_rows, kernel_columns] = self.weights.kernel;
        RunsTimesPanels {
            rows,
            kernel_rows,
            run: kernel_columns * channels_in,
            step: self.stride * channels_in,
            panels: &self.weights.values,
            out,
            count: self.count,
            first: self.columns.0,
            out_step: self.columns.1,
            channels,
        }
    }
}

/// Packs weights into panels. `weight` tells the one of (row, column, channel in, channel out).
fn pack(
    arch: Arch,
    kernel: [usize; 2],
    [channels_in, channels_out]: [usize; 2],
    weight: impl Fn(usize, usize, usize, usize) -> f32 + Sync,
) -> Packed {
    let width = arch.dispatch(PanelWidth);
    let [rows, columns] = kernel;
    let mut values = vec![0.0; channels_out.div_ceil(width) * rows * columns * channels_in * width];
    if !values.is_empty() {
        values
            .par_chunks_mut(rows * columns * channels_in * width)
            .enumerate()
            .for_each(|(panel, values)| {
                for (i, values) in values.chunks_exact_mut(width).enumerate() {
                    let (tap, channel_in) = (i / channels_in, i % channels_in);
                    let channels = panel * width..channels_out.min((panel + 1) * width);
                    for (value, channel_out) in values.iter_mut().zip(channels) {
                        *value = weight(tap / columns, tap % columns, channel_in, channel_out);
                    }
                }
            });
    }
    Packed { kernel, values }
}

struct PanelWidth;

impl WithSimd for PanelWidth {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        panel_width::<S>()
    }
}

/// One output row: each pixel is the sum, over the kernel's rows, of its run times the panels.
struct RunsTimesPanels<'a> {
    /// As many rows as the kernel has, one after the other.
    rows: &'a [f32],
    kernel_rows: usize,
    /// Values under a row of the kernel.
    run: usize,
    /// Values from one pixel's run to the next one's.
    step: usize,
    panels: &'a [f32],
    out: &'a mut [f32],
    /// Pixels, the first one's column, columns to the next.
    count: usize,
    first: usize,
    out_step: usize,
    channels: usize,
}

impl Groups for RunsTimesPanels<'_> {
    #[inline(always)]
    fn group<S: Simd, const R: usize>(&mut self, simd: S, pixel: usize) {
        let width = panel_width::<S>();
        let row_values = self.rows.len() / self.kernel_rows;
        let panels = self
            .panels
            .chunks_exact(self.kernel_rows * self.run * width);
        for (panel, weights) in panels.enumerate() {
            let mut sums = zeros::<S, R>(simd);
            let weights = weights.chunks_exact(self.run * width);
            for (row, weights) in self.rows.chunks_exact(row_values).zip(weights) {
                let runs: [&[f32]; R] =
                    std::array::from_fn(|i| &row[(pixel + i) * self.step..][..self.run]);
                multiply_add(simd, runs, weights, &mut sums);
            }
            let start = panel * width;
            let end = self.channels.min(start + width);
            for (i, sums) in sums.iter().enumerate() {
                let column = self.first + (pixel + i) * self.out_step;
                let out = &mut self.out[column * self.channels..][start..end];
                store(simd, sums, out);
            }
        }
    }
}

impl WithSimd for RunsTimesPanels<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        in_groups(simd, self.count, &mut self);
    }
}

/// Adds, over all pixels, each value of the run times each channel of the gradient.
struct OuterProducts<'a> {
    /// The row that each gradient row sees through one row of the kernel.
    inputs: &'a [&'a [f32]],
    gradients: &'a [&'a [f32]],
    /// Values from one pixel's run to the next one's.
    step: usize,
    channels: usize,
    /// Value of the run, then channel.
    sums: &'a mut [f32],
    /// First channel of the panel that is summed.
    start: usize,
}

impl Groups for OuterProducts<'_> {
    #[inline(always)]
    fn group<S: Simd, const R: usize>(&mut self, simd: S, first: usize) {
        let start = self.start;
        let end = self.channels.min(start + panel_width::<S>());
        let mut sums = zeros::<S, R>(simd);
        for (i, sums) in sums.iter_mut().enumerate() {
            *sums = load(simd, &self.sums[(first + i) * self.channels..][start..end]);
        }
        for (input, gradient) in self.inputs.iter().zip(self.gradients) {
            let values = &input[first..];
            let pixels = gradient.chunks_exact(self.channels);
            let pixels = pixels.map(|pixel| &pixel[start..end]);
            match end - start == panel_width::<S>() {
                true => {
                    let columns = pixels.map(load_whole::<S>);
                    add_outer_products(simd, values, self.step, columns, &mut sums);
                }
                false => {
                    let columns = pixels.map(|pixel| load(simd, pixel));
                    add_outer_products(simd, values, self.step, columns, &mut sums);
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            let out = &mut self.sums[(first + i) * self.channels..][start..end];
            store(simd, sums, out);
        }
    }
}

impl WithSimd for OuterProducts<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let count = self.sums.len() / self.channels;
        for start in (0..self.channels).step_by(panel_width::<S>()) {
            self.start = start;
            in_groups(simd, count, &mut self);
        }
    }
}
