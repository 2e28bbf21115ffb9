//! Linear layer.

use crate::autodiff::{FlexTensor, Operation, apply, contiguous, shape, tensor, values};
use crate::buffer;
use crate::channel_sums::sum_rows;
use crate::microkernel::{
    BlockKernel, VECTORS, for_each_block, load, multiply_add, panel_width, store,
};
use crate::outer_products::{OuterProducts, PixelValues};
use burn::tensor::Tensor;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// A linear layer, `input * weight + bias`.
///
/// # Shapes
///
/// - input: `[N, inputs]`
/// - weight: `[inputs, outputs]`
/// - bias: `[outputs]`
/// - output: `[N, outputs]`
///
/// # Panics
///
/// If a tensor is not supported ([`is_supported`](crate::is_supported)), an axis is empty, or the
/// shapes do not match.
pub fn linear(input: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
    let ([rows, inputs], [weight_inputs, outputs]) = (input.dims(), weight.dims());
    assert_eq!(inputs, weight_inputs, "width of the input and rows of the weight");
    assert!(rows * inputs * outputs > 0, "an axis of the input or the weight is empty");
    match bias {
        Some(bias) => {
            assert_eq!(bias.dims(), [outputs], "one bias per output");
            apply(Linear, [input.into(), weight.into(), bias.into()])
        }
        None => apply(Linear, [input.into(), weight.into()]),
    }
}

#[derive(Debug, Clone, Copy)]
struct Linear;

/// The inputs are input, weight and, if there are three, bias.
impl<const N: usize> Operation<N> for Linear {
    /// Input if the weight requires a gradient, weight if the input does.
    type Saved = [Option<FlexTensor>; 2];

    fn forward(
        &self,
        inputs: [FlexTensor; N],
        requires_grad: [bool; N],
    ) -> (FlexTensor, Self::Saved) {
        let inputs = inputs.map(contiguous);
        let [input, weight, bias @ ..] = &inputs[..] else {
            unreachable!("a linear layer has an input and a weight");
        };
        let ([rows, inputs], [_, outputs]) = (shape(input), shape(weight));
        let matrix = Matrix { values: values(weight), transposed: false, inputs, outputs };
        let output = matrix.multiply(values(input), bias.first().map(values));
        let saved =
            [requires_grad[1].then(|| input.clone()), requires_grad[0].then(|| weight.clone())];
        (tensor(output, [rows, outputs]), saved)
    }

    fn backward(
        &self,
        [input, weight]: Self::Saved,
        gradient: FlexTensor,
        requires_grad: [bool; N],
    ) -> [Option<FlexTensor>; N] {
        let gradient = contiguous(gradient);
        let [rows, outputs] = shape(&gradient);
        let gradient = values(&gradient);
        let input_gradient = weight.map(|weight| {
            let [inputs, _] = shape(&weight);
            let transposed = Matrix {
                values: values(&weight),
                transposed: true,
                inputs: outputs,
                outputs: inputs,
            };
            tensor(transposed.multiply(gradient, None), [rows, inputs])
        });
        let weight_gradient = input.map(|input| {
            let [_, inputs] = shape(&input);
            let products = weight_gradient(values(&input), gradient, inputs);
            tensor(products.to_matrix(), [inputs, outputs])
        });
        let bias_gradient = requires_grad
            .get(2)
            .is_some_and(|&required| required)
            .then(|| tensor(sum_rows(gradient, outputs), [outputs]));
        let mut gradients = [input_gradient, weight_gradient, bias_gradient].into_iter();
        std::array::from_fn(|_| gradients.next().flatten())
    }
}

/// A linear layer without bias whose weight differs from image to image: the product of each pixel
/// with each mask's weights.
///
/// # Shapes
///
/// - input: `[B, N, inputs]`
/// - weight: `[B, outputs, inputs]`
/// - output: `[B, N, outputs]`
///
/// # Panics
///
/// If a tensor is not supported ([`is_supported`](crate::is_supported)), an axis is empty, or the
/// shapes do not match.
pub fn linear_by_image(input: Tensor<3>, weight: Tensor<3>) -> Tensor<3> {
    let ([batch, rows, inputs], [weight_batch, outputs, weight_inputs]) =
        (input.dims(), weight.dims());
    assert_eq!([batch, inputs], [weight_batch, weight_inputs], "images and width of the weight");
    let is_empty = batch * rows * inputs * outputs == 0;
    assert!(!is_empty, "an axis of the input or the weight is empty");
    apply(LinearByImage, [input.into(), weight.into()])
}

#[derive(Debug, Clone, Copy)]
struct LinearByImage;

impl Operation<2> for LinearByImage {
    /// Input and weight.
    type Saved = [FlexTensor; 2];

    fn forward(&self, inputs: [FlexTensor; 2], _: [bool; 2]) -> (FlexTensor, Self::Saved) {
        let [input, weight] = inputs.map(contiguous);
        let ([batch, rows, inputs], [_, outputs, _]) = (shape(&input), shape(&weight));
        let mut out = buffer::zeros(batch * rows * outputs);
        let weights = values(&weight).chunks_exact(outputs * inputs);
        let images = values(&input).chunks(rows * inputs).zip(out.chunks_mut(rows * outputs));
        for (weight, (image, out)) in weights.zip(images) {
            let matrix = Matrix { values: weight, transposed: true, inputs, outputs };
            matrix.multiply_into(image, None, out);
        }
        (tensor(out, [batch, rows, outputs]), [input, weight])
    }

    fn backward(
        &self,
        [input, weight]: Self::Saved,
        gradient: FlexTensor,
        [input_requires_grad, weight_requires_grad]: [bool; 2],
    ) -> [Option<FlexTensor>; 2] {
        let gradient = contiguous(gradient);
        let ([batch, rows, inputs], [_, outputs, _]) = (shape(&input), shape(&weight));
        let gradients = values(&gradient).chunks(rows * outputs);
        let input_gradient = input_requires_grad.then(|| {
            let mut out = buffer::zeros(batch * rows * inputs);
            let weights = values(&weight).chunks_exact(outputs * inputs);
            let images = gradients.clone().zip(out.chunks_mut(rows * inputs));
            for (weight, (gradient, out)) in weights.zip(images) {
                // From the gradient's width to the input's.
                let matrix =
                    Matrix { values: weight, transposed: false, inputs: outputs, outputs: inputs };
                matrix.multiply_into(gradient, None, out);
            }
            tensor(out, [batch, rows, inputs])
        });
        let weight_gradient = weight_requires_grad.then(|| {
            let images = values(&input).chunks(rows * inputs).zip(gradients);
            let by_image = images.flat_map(|(image, gradient)| {
                weight_gradient(image, gradient, inputs).to_transposed(1)
            });
            tensor(by_image.collect(), [batch, outputs, inputs])
        });
        [input_gradient, weight_gradient]
    }
}

/// Maximum number of rows per task: each task packs the matrix again.
const ROWS_PER_TASK: usize = 512;

/// Rows of a panel that are packed at once.
const PACKED_ROWS: usize = 64;

/// The right-hand side of a product.
#[derive(Clone, Copy)]
struct Matrix<'a> {
    values: &'a [f32],
    /// Whether `values` are `[outputs, inputs]` rather than `[inputs, outputs]`.
    transposed: bool,
    inputs: usize,
    outputs: usize,
}

impl Matrix<'_> {
    /// `input * self + bias` with an input `[rows, inputs]`.
    fn multiply(self, input: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        assert!(self.inputs > 0, "the weight of a linear layer is empty");
        let mut out = buffer::zeros(input.len() / self.inputs * self.outputs);
        self.multiply_into(input, bias, &mut out);
        out
    }

    /// Writes `input * self + bias` to `out`.
    fn multiply_into(self, input: &[f32], bias: Option<&[f32]>, out: &mut [f32]) {
        let Self { inputs, outputs, .. } = self;
        assert!(inputs > 0 && outputs > 0, "the weight of a linear layer is empty");
        let rows = input.len() / inputs;
        assert_eq!(input.len(), rows * inputs, "whole rows of the input");
        assert_eq!(out.len(), rows * outputs, "whole rows of the output");
        assert_eq!(self.values.len(), inputs * outputs, "whole rows of the weight");
        assert!(bias.is_none_or(|bias| bias.len() == outputs), "one bias per output");
        let threads = rayon::current_num_threads();
        let task_rows = rows.div_ceil(threads).next_multiple_of(8).min(ROWS_PER_TASK);
        let arch = Arch::new();
        input
            .par_chunks(task_rows * inputs)
            .zip(out.par_chunks_mut(task_rows * outputs))
            .for_each(|(input, out)| arch.dispatch(Rows { input, matrix: self, bias, out }));
    }

    /// Packs `count` columns, starting with `first`, into a panel of `width` columns.
    #[inline(always)]
    fn pack(&self, first: usize, count: usize, width: usize, panel: &mut [f32]) {
        if self.transposed {
            // Some values of each column at a time, so that their place in the panel stays in the
            // cache until all columns are written.
            for (block, panel) in panel.chunks_mut(PACKED_ROWS * width).enumerate() {
                let columns = self.values[first * self.inputs..].chunks_exact(self.inputs);
                for (i, column) in columns.take(count).enumerate() {
                    let column = &column[block * PACKED_ROWS..];
                    for (packed, &value) in panel[i..].iter_mut().step_by(width).zip(column) {
                        *packed = value;
                    }
                }
            }
        } else {
            let rows = self.values.chunks_exact(self.outputs);
            for (packed, row) in panel.chunks_exact_mut(width).zip(rows) {
                packed[..count].copy_from_slice(&row[first..first + count]);
            }
        }
    }
}

/// The sums over all rows that are the gradient of the weight, from that of the output.
fn weight_gradient(input: &[f32], gradient: &[f32], inputs: usize) -> OuterProducts {
    let rows = input.len() / inputs;
    OuterProducts::new(&InputRows { input, inputs }, inputs, gradient, gradient.len() / rows)
}

/// The rows of the input.
struct InputRows<'a> {
    input: &'a [f32],
    inputs: usize,
}

impl PixelValues for InputRows<'_> {
    #[inline(always)]
    fn push_slices<'a>(
        &'a self,
        row: usize,
        inputs: Range<usize>,
        slices: &mut Vec<(usize, &'a [f32])>,
    ) {
        slices.push((0, &self.input[row * self.inputs..][inputs]));
    }
}

/// Some rows of the output.
struct Rows<'a> {
    input: &'a [f32],
    matrix: Matrix<'a>,
    bias: Option<&'a [f32]>,
    out: &'a mut [f32],
}

impl WithSimd for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = panel_width::<S>();
        let Matrix { inputs, outputs, .. } = self.matrix;
        let mut panel = vec![0.0; inputs * width];
        for first in (0..outputs).step_by(width) {
            let count = width.min(outputs - first);
            self.matrix.pack(first, count, width, &mut panel);
            let mut columns = Columns {
                input: self.input,
                inputs,
                panel: &panel,
                bias: self.bias.map_or(&[], |bias| &bias[first..first + count]),
                out: self.out,
                outputs,
                first,
                count,
            };
            for_each_block(simd, self.input.len() / inputs, &mut columns);
        }
    }
}

/// Some columns of these rows.
struct Columns<'a> {
    input: &'a [f32],
    inputs: usize,
    panel: &'a [f32],
    bias: &'a [f32],
    out: &'a mut [f32],
    outputs: usize,
    first: usize,
    count: usize,
}

impl BlockKernel for Columns<'_> {
    #[inline(always)]
    fn block<S: Simd, const R: usize>(&mut self, simd: S, first: usize) {
        let rows: [&[f32]; R] =
            std::array::from_fn(|row| &self.input[(first + row) * self.inputs..][..self.inputs]);
        let mut sums = [load::<S, VECTORS>(simd, self.bias); R];
        multiply_add(simd, rows, self.panel, &mut sums);
        for (row, sums) in sums.iter().enumerate() {
            let start = (first + row) * self.outputs + self.first;
            store(simd, sums, &mut self.out[start..start + self.count]);
        }
    }
}
