//! Linear layers and their gradients.

use crate::channel_sums::{in_64_bits, narrow};
use crate::convolution::Convolution;
use crate::product::{Groups, in_groups, load, multiply_add, panel_width, store};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Rows that a thread takes at a time, at most: each time it packs the weights anew.
const ROWS_AT_ONCE: usize = 512;

/// `input * weight + bias`, with an input `[rows, inputs]` and a weight `[inputs, outputs]`.
pub fn linear(input: &[f32], weight: &[f32], bias: Option<&[f32]>, outputs: usize) -> Vec<f32> {
    assert!(
        outputs > 0 && weight.len() >= outputs,
        "a weight has columns and rows"
    );
    let inputs = weight.len() / outputs;
    assert_eq!(weight.len(), inputs * outputs, "a whole number of rows");
    let weight = Weight {
        values: weight,
        turned: false,
        inputs,
        outputs,
    };
    weight.multiply(input, bias)
}

/// A matrix that rows are multiplied with.
#[derive(Clone, Copy)]
struct Weight<'a> {
    values: &'a [f32],
    /// Whether it lies as `[outputs, inputs]`, and not as `[inputs, outputs]`.
    turned: bool,
    inputs: usize,
    outputs: usize,
}

impl Weight<'_> {
    fn multiply(self, input: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let Self {
            inputs, outputs, ..
        } = self;
        let rows = input.len() / inputs;
        assert_eq!(input.len(), rows * inputs, "a whole number of rows");
        assert!(
            bias.is_none_or(|bias| bias.len() == outputs),
            "one bias an output"
        );
        let threads = rayon::current_num_threads();
        let at_once = rows.div_ceil(threads).next_multiple_of(8).min(ROWS_AT_ONCE);
        let arch = Arch::new();
        let mut out = vec![0.0; rows * outputs];
        input
            .par_chunks(at_once * inputs)
            .zip(out.par_chunks_mut(at_once * outputs))
            .for_each(|(input, out)| {
                arch.dispatch(Rows {
                    input,
                    weight: self,
                    bias,
                    out,
                });
            });
        out
    }

    /// Packs `count` columns from `first` on into a panel of `width`.
    #[inline(always)]
    fn pack(&self, first: usize, count: usize, width: usize, panel: &mut [f32]) {
        match self.turned {
            false => {
                let rows = self.values.chunks_exact(self.outputs);
                for (packed, row) in panel.chunks_exact_mut(width).zip(rows) {
                    packed[..count].copy_from_slice(&row[first..first + count]);
                }
            }
            true => {
                let columns = self.values[first * self.inputs..].chunks_exact(self.inputs);
                for (place, column) in columns.take(count).enumerate() {
                    for (packed, &value) in panel[place..].iter_mut().step_by(width).zip(column) {
                        *packed = value;
                    }
                }
            }
        }
    }
}

/// The gradient of the input from that of the output.
pub fn input_gradient(weight: &[f32], gradient: &[f32], inputs: usize) -> Vec<f32> {
    assert!(
        inputs > 0 && weight.len().is_multiple_of(inputs),
        "a whole number of rows"
    );
    let weight = Weight {
        values: weight,
        turned: true,
        inputs: weight.len() / inputs,
        outputs: inputs,
    };
    weight.multiply(gradient, None)
}

/// The gradient of the weight, `[inputs, outputs]`, from that of the output.
pub fn weight_gradient(input: &[f32], gradient: &[f32], inputs: usize) -> Vec<f32> {
    let rows = input.len() / inputs;
    // The rows as those of an image whose lines are long enough to be summed in registers.
    let columns = 1 << rows.trailing_zeros().min(8);
    let convolution = Convolution {
        input: [1, rows / columns, columns, inputs],
        channels: gradient.len() / rows,
        kernel: [1, 1],
        stride: 1,
        padding: 0,
    };
    let turned = convolution.weight_gradient(input, gradient); // [outputs, inputs]
    let outputs = turned.len() / inputs;
    let mut of_weight = vec![0.0; turned.len()];
    for (output, row) in turned.chunks_exact(inputs).enumerate() {
        for (value, &found) in of_weight[output..].iter_mut().step_by(outputs).zip(row) {
            *value = found;
        }
    }
    of_weight
}

/// Adds a bias to each row.
pub fn add_bias(rows: &mut [f32], bias: &[f32]) {
    rows.par_chunks_mut(ROWS_AT_ONCE * bias.len())
        .for_each(|rows| {
            for row in rows.chunks_exact_mut(bias.len()) {
                for (value, &bias) in row.iter_mut().zip(bias) {
                    *value += bias;
                }
            }
        });
}

/// The gradient of the bias from that of the output.
pub fn bias_gradient(gradient: &[f32], outputs: usize) -> Vec<f32> {
    let parts: Vec<Vec<f32>> = gradient
        .par_chunks(ROWS_AT_ONCE * outputs)
        .map(|rows| {
            let mut sums = vec![0.0; outputs];
            for row in rows.chunks_exact(outputs) {
                for (sum, &value) in sums.iter_mut().zip(row) {
                    *sum += value;
                }
            }
            sums
        })
        .collect();
    narrow(in_64_bits(&parts, outputs))
}

struct Rows<'a> {
    input: &'a [f32],
    weight: Weight<'a>,
    bias: Option<&'a [f32]>,
    out: &'a mut [f32],
}

impl WithSimd for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = panel_width::<S>();
        let Weight {
            inputs, outputs, ..
        } = self.weight;
        let mut panel = vec![0.0; inputs * width];
        for first in (0..outputs).step_by(width) {
            let count = width.min(outputs - first);
            self.weight.pack(first, count, width, &mut panel);
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
            in_groups(simd, self.input.len() / inputs, &mut columns);
        }
    }
}

/// Some columns of the output.
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

impl Groups for Columns<'_> {
    #[inline(always)]
    fn group<S: Simd, const R: usize>(&mut self, simd: S, first: usize) {
        let rows: [&[f32]; R] =
            std::array::from_fn(|row| &self.input[(first + row) * self.inputs..][..self.inputs]);
        let mut sums = [load(simd, self.bias); R];
        multiply_add(simd, rows, self.panel, &mut sums);
        for (row, sums) in sums.iter().enumerate() {
            let start = (first + row) * self.outputs + self.first;
            store(simd, sums, &mut self.out[start..start + self.count]);
        }
    }
}
