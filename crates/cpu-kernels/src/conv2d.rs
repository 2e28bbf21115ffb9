//! Convolution of channels-last images.
//!
//! Output and gradients are sums of products of runs with panels. In a channels-last image the
//! pixels under one row of the kernel are a run of consecutive values, at any position and any
//! stride, so nothing is unfolded: a pixel's run is multiplied with a panel of weights that are
//! packed in the same order. The input's gradient is a convolution of the output's gradient with
//! the reversed kernel; with a stride, there is one such convolution for each phase. The weight's
//! gradient is the sum, over all pixels, of the run times the output's gradient.
//!
//! 3 x 3 convolutions of many channels with stride 1 have another algorithm, in `winograd.rs`.
//!
//! No sum depends on the number of threads.

use crate::autodiff::{FlexTensor, Operation, apply, contiguous, shape, tensor, values};
use crate::buffer;
use crate::microkernel::{
    BlockKernel, VECTORS, for_each_block, multiply_add, panel_vectors, store, zeros,
};
use crate::outer_products::{OuterProducts, PixelValues};
use crate::winograd;
use burn::tensor::Tensor;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// A convolution without bias, with the same stride and padding along both axes.
///
/// # Shapes
///
/// - input: `[B, H, W, channels in]`
/// - weight: `[channels out, channels in, kernel rows, kernel columns]`
/// - output: `[B, H', W', channels out]`
///
/// # Panics
///
/// If a tensor is not supported ([`is_supported`](crate::is_supported)), the shapes do not match, or
/// the kernel does not fit into the padded input.
pub fn conv2d(input: Tensor<4>, weight: Tensor<4>, stride: usize, padding: usize) -> Tensor<4> {
    let [channels, channels_in, kernel_rows, kernel_columns] = weight.dims();
    assert_eq!(input.dims()[3], channels_in, "channels of the input and of the weight");
    let convolution = Convolution {
        input: input.dims(),
        channels,
        kernel: [kernel_rows, kernel_columns],
        stride,
        padding,
    };
    apply(convolution, [input.into(), weight.into()])
}

impl Operation<2> for Convolution {
    /// Input and weight.
    type Saved = [FlexTensor; 2];

    fn forward(&self, inputs: [FlexTensor; 2], _: [bool; 2]) -> (FlexTensor, Self::Saved) {
        let [input, weight] = inputs.map(contiguous);
        let output = self.output(values(&input), values(&weight));
        (tensor(output, self.output_shape()), [input, weight])
    }

    fn backward(
        &self,
        [input, weight]: Self::Saved,
        gradient: FlexTensor,
        [input_requires_grad, weight_requires_grad]: [bool; 2],
    ) -> [Option<FlexTensor>; 2] {
        let gradient = contiguous(gradient);
        let gradient = values(&gradient);
        let input_gradient = input_requires_grad
            .then(|| tensor(self.input_gradient(values(&weight), gradient), self.input));
        let weight_gradient = weight_requires_grad.then(|| {
            let weight_gradient = self.weight_gradient(values(&input), gradient);
            tensor(weight_gradient, shape::<4>(&weight))
        });
        [input_gradient, weight_gradient]
    }
}

/// The geometry of a two-dimensional convolution without bias, with equal stride and padding along
/// both axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Convolution {
    /// Shape of the input: batch, rows, columns, channels.
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

/// Smallest number of output pixels of a task, of several rows if they are short: a task reads all
/// weights, and so many pixels make up for it.
const PIXELS_PER_TASK: usize = 64;

impl Convolution {
    /// Shape of the output: batch, rows, columns, channels.
    ///
    /// # Panics
    ///
    /// If the output is empty: an axis is empty, the stride is zero, or the kernel is larger than
    /// the padded input.
    pub fn output_shape(&self) -> [usize; 4] {
        let [batch, rows, columns, _] = self.input;
        let sizes = [&self.input[..], &self.kernel, &[self.channels, self.stride]].concat();
        assert!(!sizes.contains(&0), "an axis or the stride of a convolution is zero: {self:?}");
        let size = |size: usize, kernel| match (size + 2 * self.padding).checked_sub(kernel) {
            Some(last) => last / self.stride + 1,
            None => panic!("the kernel is larger than the padded input: {self:?}"),
        };
        let [kernel_rows, kernel_columns] = self.kernel;
        [batch, size(rows, kernel_rows), size(columns, kernel_columns), self.channels]
    }

    /// Whether Winograd's algorithm applies and its transforms cost less than they save.
    fn has_fewer_products(&self) -> bool {
        let smallest = winograd::SMALLEST_CHANNELS;
        self.kernel == [3, 3]
            && self.stride == 1
            && self.padding <= 2
            && self.input[3].min(self.channels) >= smallest
    }

    fn weight_count(&self) -> usize {
        self.channels * self.input[3] * self.kernel[0] * self.kernel[1]
    }

    /// The output. Weights are `[channels out, channels in, rows, columns]`.
    pub fn output(&self, input: &[f32], weight: &[f32]) -> Vec<f32> {
        let output_shape = self.output_shape();
        assert_eq!(input.len(), self.input.iter().product::<usize>());
        assert_eq!(weight.len(), self.weight_count());
        let [kernel_rows, kernel_columns] = self.kernel;
        let channels_in = self.input[3];
        if self.has_fewer_products() {
            let weight = |channel_in, channel_out| {
                let plane = channel_out * channels_in + channel_in;
                *weight[9 * plane..].first_chunk::<9>().expect("nine taps")
            };
            return winograd::convolve(input, self.input, self.padding, self.channels, weight);
        }
        let weights = pack(
            self.kernel,
            [channels_in, self.channels],
            |row, column, channel_in, channel_out| {
                let plane = channel_out * channels_in + channel_in;
                weight[(plane * kernel_rows + row) * kernel_columns + column]
            },
        );
        let padding = -(self.padding as isize);
        let phase = Phase {
            weights,
            first_row: padding,
            first_column: padding,
            stride: self.stride,
            out_column: 0,
            out_step: 1,
            count: output_shape[2],
        };
        let images = Images { values: input, shape: self.input };
        images.convolve(&[vec![phase]], output_shape)
    }

    /// The gradient of the input from that of the output.
    pub fn input_gradient(&self, weight: &[f32], gradient: &[f32]) -> Vec<f32> {
        let output_shape = self.output_shape();
        assert_eq!(gradient.len(), output_shape.iter().product::<usize>());
        assert_eq!(weight.len(), self.weight_count());
        let [_, rows, columns, channels_in] = self.input;
        if self.has_fewer_products() {
            let weight = |channel_out, channel_in| {
                let plane = channel_out * channels_in + channel_in;
                let mut taps = *weight[9 * plane..].first_chunk::<9>().expect("nine taps");
                taps.reverse();
                taps
            };
            let padding = 2 - self.padding;
            return winograd::convolve(gradient, output_shape, padding, channels_in, weight);
        }
        let phases: Vec<Vec<Phase>> = (0..self.stride.min(rows))
            .map(|row_phase| {
                (0..self.stride.min(columns))
                    .map(|column_phase| self.gradient_phase(weight, row_phase, column_phase))
                    .collect()
            })
            .collect();
        let images = Images { values: gradient, shape: output_shape };
        images.convolve(&phases, self.input)
    }

    /// The convolution of the output's gradient that computes the input's gradient at rows
    /// `row_phase + stride * i` and columns `column_phase + stride * j`.
    fn gradient_phase(&self, weight: &[f32], row_phase: usize, column_phase: usize) -> Phase {
        let [kernel_rows, kernel_columns] = self.kernel;
        let [_, _, columns, channels_in] = self.input;
        let (tap_rows, first_row) = self.gradient_taps(row_phase, kernel_rows);
        let (tap_columns, first_column) = self.gradient_taps(column_phase, kernel_columns);
        let weights = pack(
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
            first_row,
            first_column,
            stride: 1,
            out_column: column_phase,
            out_step: self.stride,
            count: (columns - column_phase).div_ceil(self.stride),
        }
    }

    /// Along one axis, the kernel positions that connect the inputs `phase + stride * i` to
    /// outputs, in the order of these outputs, and the first of the outputs for `i = 0`.
    ///
    /// The positions are `first + stride * j`; from the last to the first, their outputs are
    /// consecutive.
    fn gradient_taps(&self, phase: usize, kernel: usize) -> (Vec<usize>, isize) {
        let first = (phase + self.padding) % self.stride;
        let taps: Vec<usize> = (first..kernel).step_by(self.stride).rev().collect();
        let last = taps.first().copied().unwrap_or(first);
        let origin = (phase + self.padding) as isize - last as isize;
        (taps, origin / self.stride as isize)
    }

    /// The gradient of the weight, `[channels out, channels in, rows, columns]`, from that of the
    /// output.
    pub fn weight_gradient(&self, input: &[f32], gradient: &[f32]) -> Vec<f32> {
        assert_eq!(input.len(), self.input.iter().product::<usize>());
        assert_eq!(gradient.len(), self.output_shape().iter().product::<usize>());
        if self.has_fewer_products() {
            let Self { input: shape, padding, channels, .. } = *self;
            return winograd::weight_gradient(input, shape, padding, gradient, channels);
        }
        let [kernel_rows, kernel_columns] = self.kernel;
        let taps = kernel_rows * kernel_columns;
        let values = UnderKernel { convolution: *self, output: self.output_shape(), input };
        OuterProducts::new(&values, taps * self.input[3], gradient, self.channels)
            .to_transposed(taps)
    }
}

/// For each pixel of the output, the values of the padded input under the kernel, `[kernel rows,
/// kernel columns, channels]`.
struct UnderKernel<'a> {
    convolution: Convolution,
    output: [usize; 4],
    input: &'a [f32],
}

impl PixelValues for UnderKernel<'_> {
    #[inline(always)]
    fn push_slices<'a>(
        &'a self,
        pixel: usize,
        values: Range<usize>,
        slices: &mut Vec<(usize, &'a [f32])>,
    ) {
        let Convolution { input: shape, kernel: [_, kernel_columns], stride, padding, .. } =
            self.convolution;
        let [_, rows, columns, channels] = shape;
        let [_, out_rows, out_columns, _] = self.output;
        let (out_row, column) = (pixel / out_columns, pixel % out_columns);
        let (image, out_row) = (out_row / out_rows, out_row % out_rows);
        let run = kernel_columns * channels;
        for kernel_row in values.start / run..values.end.div_ceil(run) {
            let row = out_row * stride + kernel_row;
            if row < padding || row - padding >= rows {
                continue;
            }
            // Both ranges count from the first value of the kernel's row.
            let start = kernel_row * run;
            let wanted = values.start.max(start) - start..values.end.min(start + run) - start;
            let inside = padding.saturating_sub(column * stride) * channels
                ..(columns + padding).saturating_sub(column * stride).min(kernel_columns)
                    * channels;
            let [from, to] = [wanted.start.max(inside.start), wanted.end.min(inside.end)];
            if from < to {
                let row = (image * rows + row - padding) * columns;
                let first = (row + column * stride) * channels + from - padding * channels;
                slices.push((start + from - values.start, &self.input[first..first + to - from]));
            }
        }
    }
}

/// Channels-last images.
#[derive(Clone, Copy)]
struct Images<'a> {
    values: &'a [f32],
    /// Batch, rows, columns, channels.
    shape: [usize; 4],
}

impl<'a> Images<'a> {
    /// Images of `shape`, row `i` of each computed by `phases[i % phases.len()]`.
    fn convolve(self, phases: &[Vec<Phase>], shape: [usize; 4]) -> Vec<f32> {
        let [_, rows, columns, channels] = shape;
        let mut out = buffer::zeros(shape.iter().product());
        // Rows that the same phase computes share the weights that a core's cache holds.
        let phase_rows = phases.len();
        let task_rows = phase_rows * PIXELS_PER_TASK.div_ceil(columns);
        out.par_chunks_mut(task_rows * columns * channels).enumerate().for_each_init(
            Vec::new,
            |buffer, (task, out)| {
                let first_row = task * task_rows;
                let of_task = first_row..first_row + out.len() / (columns * channels);
                for (index, phases) in phases.iter().enumerate() {
                    let row_phases = of_task.clone().filter(|row| row % rows % phase_rows == index);
                    let of_phase: Vec<usize> = row_phases.collect();
                    for phase in phases.iter().filter(|phase| !phase.is_empty()) {
                        let under_kernel = of_phase.iter().flat_map(|row| {
                            phase.rows_under_kernel(row / rows, row % rows / phase_rows)
                        });
                        let inputs =
                            self.rows(buffer, under_kernel, phase.first_column, phase.width());
                        let starts: Vec<usize> = of_phase
                            .iter()
                            .map(|row| ((row - first_row) * columns + phase.out_column) * channels)
                            .collect();
                        phase.compute(&inputs, self.shape[3], &starts, out, channels);
                    }
                }
            },
        );
        out
    }

    /// `width` pixels of each row, given by its image and its index, starting with column `first`;
    /// zeros outside the images. The rows are copied to `buffer` if one of them is padded.
    fn rows(
        self,
        buffer: &'a mut Vec<f32>,
        rows: impl Iterator<Item = (usize, isize)> + Clone,
        first: isize,
        width: usize,
    ) -> Vec<&'a [f32]> {
        let inside = rows.clone().map(|(image, row)| self.row_inside(image, row, first, width));
        if let Some(inside) = inside.collect() {
            return inside;
        }
        buffer.clear();
        for (image, row) in rows {
            self.push_row(buffer, image, row, first, width);
        }
        buffer.chunks_exact(width * self.shape[3]).collect()
    }

    /// `width` pixels of a row, starting with column `first`, if all are inside the image.
    fn row_inside(self, image: usize, row: isize, first: isize, width: usize) -> Option<&'a [f32]> {
        let [_, rows, columns, channels] = self.shape;
        let row = usize::try_from(row).ok().filter(|&row| row < rows)?;
        let first = usize::try_from(first).ok().filter(|&first| first + width <= columns)?;
        let start = ((image * rows + row) * columns + first) * channels;
        Some(&self.values[start..start + width * channels])
    }

    /// Appends `width` pixels of a row, starting with column `first`; zeros outside the image.
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

/// A convolution that computes some pixels of an output row: all of them, or, for the gradient of a
/// convolution with a stride, every `stride`-th.
struct Phase {
    weights: PackedWeights,
    /// First input row under the kernel at output row 0.
    first_row: isize,
    /// First input column under the kernel at the first output column.
    first_column: isize,
    /// Input pixels from one output to the next.
    stride: usize,
    /// First output column.
    out_column: usize,
    /// Step to the next output column.
    out_step: usize,
    /// Number of output columns.
    count: usize,
}

impl Phase {
    /// Whether no kernel position contributes to these pixels: they stay zero.
    fn is_empty(&self) -> bool {
        self.weights.kernel.contains(&0)
    }

    /// Image and index of each of the rows under the kernel at an output row.
    fn rows_under_kernel(
        &self,
        image: usize,
        row: usize,
    ) -> impl Iterator<Item = (usize, isize)> + Clone {
        let [kernel_rows, _] = self.weights.kernel;
        let first = (row * self.stride) as isize + self.first_row;
        (0..kernel_rows).map(move |kernel_row| (image, first + kernel_row as isize))
    }

    /// Number of columns under the kernel at all output columns.
    fn width(&self) -> usize {
        (self.count - 1) * self.stride + self.weights.kernel[1]
    }

    /// Computes output rows, given for each its rows under the kernel and the first value in `out`.
    fn compute(
        &self,
        rows: &[&[f32]],
        channels_in: usize,
        starts: &[usize],
        out: &mut [f32],
        channels: usize,
    ) {
        match panel_vectors(channels) {
            (1, _) => self.compute_panels::<1>(rows, channels_in, starts, out, channels),
            _ => self.compute_panels::<VECTORS>(rows, channels_in, starts, out, channels),
        }
    }

    fn compute_panels<const V: usize>(
        &self,
        rows: &[&[f32]],
        channels_in: usize,
        starts: &[usize],
        out: &mut [f32],
        channels: usize,
    ) {
        let [kernel_rows, kernel_columns] = self.weights.kernel;
        Arch::new().dispatch(OutputRows::<V> {
            rows,
            kernel_rows,
            run: kernel_columns * channels_in,
            step: self.stride * channels_in,
            weights: &self.weights.values,
            out,
            starts,
            count: self.count,
            out_step: self.out_step * channels,
            channels,
            first_channel: 0,
            next: [0, 0],
        });
    }
}

/// Weights in the order of their use: for each panel of output channels, for each row of the
/// kernel, for each value of the run, the panel's channels.
struct PackedWeights {
    kernel: [usize; 2],
    values: Vec<f32>,
}

/// Packs weights into panels. `weight` returns the weight at (row, column, channel in, channel
/// out).
fn pack(
    kernel: [usize; 2],
    [channels_in, channels_out]: [usize; 2],
    weight: impl Fn(usize, usize, usize, usize) -> f32 + Sync,
) -> PackedWeights {
    let (_, width) = panel_vectors(channels_out);
    let [rows, columns] = kernel;
    let mut values = vec![0.0; channels_out.div_ceil(width) * rows * columns * channels_in * width];
    if !values.is_empty() {
        values.par_chunks_mut(rows * columns * channels_in * width).enumerate().for_each(
            |(panel, values)| {
                let channels = panel * width..channels_out.min((panel + 1) * width);
                // The taps of a pair of channels are neighbours, so their lines are still in the
                // cache when the next tap is read.
                for channel_in in 0..channels_in {
                    for tap in 0..rows * columns {
                        let values = &mut values[(tap * channels_in + channel_in) * width..];
                        for (value, channel_out) in values.iter_mut().zip(channels.clone()) {
                            *value = weight(tap / columns, tap % columns, channel_in, channel_out);
                        }
                    }
                }
            },
        );
    }
    PackedWeights { kernel, values }
}

/// Computes pixels of some output rows: each is the sum, over the kernel's rows, of its run times
/// the panels.
struct OutputRows<'a, const V: usize> {
    /// For each output row, the input rows under the kernel's rows, padded.
    rows: &'a [&'a [f32]],
    kernel_rows: usize,
    /// Number of values under a row of the kernel.
    run: usize,
    /// Values from the start of one pixel's run to that of the next.
    step: usize,
    weights: &'a [f32],
    out: &'a mut [f32],
    /// For each output row, the first value of its first pixel.
    starts: &'a [usize],
    /// Number of pixels in a row.
    count: usize,
    /// Values from one output pixel to the next.
    out_step: usize,
    channels: usize,
    /// First channel of the current panel.
    first_channel: usize,
    /// The next pixel, as row and column.
    next: [usize; 2],
}

impl<const V: usize> BlockKernel for OutputRows<'_, V> {
    #[inline(always)]
    fn block<S: Simd, const R: usize>(&mut self, simd: S, _: usize) {
        let width = V * S::F32_LANES;
        let pixels: [[usize; 2]; R] = std::array::from_fn(|_| {
            let pixel @ [row, column] = self.next;
            self.next = if column + 1 == self.count { [row + 1, 0] } else { [row, column + 1] };
            pixel
        });
        let mut sums = zeros::<S, R, V>(simd);
        let panel = &self.weights[self.first_channel * self.kernel_rows * self.run..];
        let weights = panel.chunks_exact(self.run * width).take(self.kernel_rows);
        for (kernel_row, weights) in weights.enumerate() {
            let runs = pixels.map(|[row, column]| {
                &self.rows[row * self.kernel_rows + kernel_row][column * self.step..][..self.run]
            });
            multiply_add(simd, runs, weights, &mut sums);
        }
        let end = self.channels.min(self.first_channel + width);
        for ([row, column], sums) in pixels.iter().zip(&sums) {
            let out = &mut self.out[self.starts[*row] + column * self.out_step..];
            store(simd, sums, &mut out[self.first_channel..end]);
        }
    }
}

impl<const V: usize> WithSimd for OutputRows<'_, V> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let pixels = self.starts.len() * self.count;
        for first_channel in (0..self.channels).step_by(V * S::F32_LANES) {
            self.first_channel = first_channel;
            self.next = [0, 0];
            for_each_block(simd, pixels, &mut self);
        }
    }
}
