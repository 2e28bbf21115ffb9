//! Convolution of channels-last images.
//!
//! Output and gradients are sums of products of runs with panels. In a channels-last image the
//! pixels under one row of the kernel are a run of consecutive values, at any position and any
//! stride, so nothing is unfolded: a pixel's run is multiplied with a panel of weights that are
//! packed in the same order. The input's gradient is a convolution of the output's gradient with
//! the reversed kernel; with a stride, there is one such convolution for each phase. The weight's
//! gradient is the sum, over all pixels, of the run times the output's gradient.
//!
//! No sum depends on the number of threads.

use crate::autodiff::{FlexTensor, Operation, apply, contiguous, shape, tensor, values};
use crate::buffer;
use crate::microkernel::{
    BlockKernel, add_outer_products, for_each_block, load, load_full, multiply_add, panel_width,
    store, zeros,
};
use burn::tensor::Tensor;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

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

/// Number of parts of the pixels that a weight gradient is summed over. Each part is summed in
/// order, then the parts are added in order.
const PARTS: usize = 8;
/// Number of pixels over which a weight gradient's sums stay in registers.
const PIXELS_PER_CHUNK: usize = 256;

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

    fn weight_count(&self) -> usize {
        self.channels * self.input[3] * self.kernel[0] * self.kernel[1]
    }

    /// The output. Weights are `[channels out, channels in, rows, columns]`.
    pub fn output(&self, input: &[f32], weight: &[f32]) -> Vec<f32> {
        assert_eq!(input.len(), self.input.iter().product::<usize>());
        assert_eq!(weight.len(), self.weight_count());
        let [kernel_rows, kernel_columns] = self.kernel;
        let channels_in = self.input[3];
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
            count: self.output_shape()[2],
        };
        let images = Images { values: input, shape: self.input };
        images.convolve(&[vec![phase]], self.output_shape())
    }

    /// The gradient of the input from that of the output.
    pub fn input_gradient(&self, weight: &[f32], gradient: &[f32]) -> Vec<f32> {
        let output_shape = self.output_shape();
        assert_eq!(gradient.len(), output_shape.iter().product::<usize>());
        assert_eq!(weight.len(), self.weight_count());
        let [_, rows, columns, _] = self.input;
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
        let [batch, rows, columns, _] = self.output_shape();
        assert_eq!(input.len(), self.input.iter().product::<usize>());
        assert_eq!(gradient.len(), self.output_shape().iter().product::<usize>());
        let part_rows = (batch * rows).div_ceil(PARTS);
        let parts: Vec<Vec<f32>> = gradient
            .par_chunks(part_rows * columns * self.channels)
            .enumerate()
            .map(|(part, gradient)| self.weight_gradient_part(input, gradient, part * part_rows))
            .collect();
        let mut parts = parts.into_iter();
        let mut sums = parts.next().unwrap_or_default();
        for part in parts {
            for (sum, value) in sums.iter_mut().zip(part) {
                *sum += value;
            }
        }
        let channels_in = self.input[3];
        let plane = self.kernel[0] * self.kernel[1];
        let mut weight_gradient = vec![0.0; self.weight_count()];
        weight_gradient.par_chunks_mut(channels_in * plane).enumerate().for_each(
            |(channel_out, out)| {
                for tap in 0..plane {
                    for (channel_in, out) in out.iter_mut().skip(tap).step_by(plane).enumerate() {
                        *out = sums[(tap * channels_in + channel_in) * self.channels + channel_out];
                    }
                }
            },
        );
        weight_gradient
    }

    /// The part of the weight's gradient from the gradient of some output rows, starting with
    /// `first_row`, counted over all images. Its layout is `[kernel rows, kernel columns, channels
    /// in, channels out]`.
    fn weight_gradient_part(&self, input: &[f32], gradient: &[f32], first_row: usize) -> Vec<f32> {
        let [batch, rows, columns, _] = self.output_shape();
        let arch = Arch::new();
        let [kernel_rows, kernel_columns] = self.kernel;
        let channels_in = self.input[3];
        let run = kernel_columns * channels_in;
        let part_rows = (batch * rows).div_ceil(PARTS);
        let chunk_rows = (PIXELS_PER_CHUNK / columns).clamp(1, part_rows);
        let images = Images { values: input, shape: self.input };
        let padding = -(self.padding as isize);
        let width = (columns - 1) * self.stride + kernel_columns;
        let mut sums = vec![0.0; kernel_rows * run * self.channels];
        let mut buffer = Vec::new();
        let chunks = gradient.chunks(chunk_rows * columns * self.channels);
        for (chunk, gradient) in chunks.enumerate() {
            let first = first_row + chunk * chunk_rows;
            let gradients: Vec<&[f32]> = gradient.chunks_exact(columns * self.channels).collect();
            // For each output row, the padded input rows under the kernel.
            let under_kernel = (first..first + gradients.len()).flat_map(|row| {
                let (image, row) = (row / rows, row % rows);
                (0..kernel_rows).map(move |kernel_row| {
                    (image, (row * self.stride + kernel_row) as isize + padding)
                })
            });
            let inputs = images.rows(&mut buffer, under_kernel, padding, width);
            for (kernel_row, sums) in sums.chunks_exact_mut(run * self.channels).enumerate() {
                let inputs: Vec<&[f32]> =
                    inputs[kernel_row..].iter().step_by(kernel_rows).copied().collect();
                arch.dispatch(OuterProducts {
                    inputs: &inputs,
                    gradients: &gradients,
                    step: self.stride * channels_in,
                    channels: self.channels,
                    sums,
                    start: 0,
                });
            }
        }
        sums
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
        let arch = Arch::new();
        let [_, rows, columns, channels] = shape;
        let mut out = buffer::zeros(shape.iter().product());
        out.par_chunks_mut(columns * channels).enumerate().for_each_init(
            Vec::new,
            |buffer, (row, out)| {
                let (image, row) = (row / rows, row % rows);
                for phase in &phases[row % phases.len()] {
                    if phase.is_empty() {
                        continue;
                    }
                    let rows = phase.rows(buffer, self, image, row / phases.len());
                    arch.dispatch(phase.output_row(&rows, self.shape[3], out, channels));
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

    /// The padded rows under the kernel at an output row; see [`Images::rows`].
    fn rows<'a>(
        &self,
        buffer: &'a mut Vec<f32>,
        images: Images<'a>,
        image: usize,
        row: usize,
    ) -> Vec<&'a [f32]> {
        let [kernel_rows, kernel_columns] = self.weights.kernel;
        let width = (self.count - 1) * self.stride + kernel_columns;
        let first = (row * self.stride) as isize + self.first_row;
        let rows = (0..kernel_rows).map(|kernel_row| (image, first + kernel_row as isize));
        images.rows(buffer, rows, self.first_column, width)
    }

    /// The kernel that computes an output row from these rows.
    fn output_row<'a>(
        &'a self,
        rows: &'a [&'a [f32]],
        channels_in: usize,
        out: &'a mut [f32],
        channels: usize,
    ) -> OutputRow<'a> {
        let [_, kernel_columns] = self.weights.kernel;
        OutputRow {
            rows,
            run: kernel_columns * channels_in,
            step: self.stride * channels_in,
            panels: &self.weights.values,
            out,
            count: self.count,
            out_column: self.out_column,
            out_step: self.out_step,
            channels,
        }
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
    let width = Arch::new().dispatch(PanelWidth);
    let [rows, columns] = kernel;
    let mut values = vec![0.0; channels_out.div_ceil(width) * rows * columns * channels_in * width];
    if !values.is_empty() {
        values.par_chunks_mut(rows * columns * channels_in * width).enumerate().for_each(
            |(panel, values)| {
                for (i, values) in values.chunks_exact_mut(width).enumerate() {
                    let (tap, channel_in) = (i / channels_in, i % channels_in);
                    let channels = panel * width..channels_out.min((panel + 1) * width);
                    for (value, channel_out) in values.iter_mut().zip(channels) {
                        *value = weight(tap / columns, tap % columns, channel_in, channel_out);
                    }
                }
            },
        );
    }
    PackedWeights { kernel, values }
}

struct PanelWidth;

impl WithSimd for PanelWidth {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        panel_width::<S>()
    }
}

/// Computes an output row: each pixel is the sum, over the kernel's rows, of its run times the
/// panels.
struct OutputRow<'a> {
    /// The input rows under the kernel's rows, padded.
    rows: &'a [&'a [f32]],
    /// Number of values under a row of the kernel.
    run: usize,
    /// Values from the start of one pixel's run to that of the next.
    step: usize,
    panels: &'a [f32],
    out: &'a mut [f32],
    /// Number of pixels.
    count: usize,
    /// Column of the first pixel.
    out_column: usize,
    /// Columns from one pixel to the next.
    out_step: usize,
    channels: usize,
}

impl BlockKernel for OutputRow<'_> {
    #[inline(always)]
    fn block<S: Simd, const R: usize>(&mut self, simd: S, pixel: usize) {
        let width = panel_width::<S>();
        let panels = self.panels.chunks_exact(self.rows.len() * self.run * width);
        for (panel, weights) in panels.enumerate() {
            let mut sums = zeros::<S, R>(simd);
            let weights = weights.chunks_exact(self.run * width);
            for (row, weights) in self.rows.iter().zip(weights) {
                let runs: [&[f32]; R] =
                    std::array::from_fn(|i| &row[(pixel + i) * self.step..][..self.run]);
                multiply_add(simd, runs, weights, &mut sums);
            }
            let start = panel * width;
            let end = self.channels.min(start + width);
            for (i, sums) in sums.iter().enumerate() {
                let column = self.out_column + (pixel + i) * self.out_step;
                let out = &mut self.out[column * self.channels..][start..end];
                store(simd, sums, out);
            }
        }
    }
}

impl WithSimd for OutputRow<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        for_each_block(simd, self.count, &mut self);
    }
}

/// Adds up, over all pixels, each value of the run times each channel of the gradient.
struct OuterProducts<'a> {
    /// For each gradient row, the input row under one row of the kernel.
    inputs: &'a [&'a [f32]],
    gradients: &'a [&'a [f32]],
    /// Values from the start of one pixel's run to that of the next.
    step: usize,
    channels: usize,
    /// `[run, channels]`.
    sums: &'a mut [f32],
    /// First channel of the current panel.
    start: usize,
}

impl BlockKernel for OuterProducts<'_> {
    #[inline(always)]
    fn block<S: Simd, const R: usize>(&mut self, simd: S, first: usize) {
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
            if end - start == panel_width::<S>() {
                let columns = pixels.map(load_full::<S>);
                add_outer_products(simd, values, self.step, columns, &mut sums);
            } else {
                let columns = pixels.map(|pixel| load(simd, pixel));
                add_outer_products(simd, values, self.step, columns, &mut sums);
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
            for_each_block(simd, count, &mut self);
        }
    }
}
