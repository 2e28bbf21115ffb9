//! Linear layers off the tape.

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
                weight,
                bias,
                inputs,
                outputs,
                out,
            });
        });
    out
}

struct Rows<'a> {
    input: &'a [f32],
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    inputs: usize,
    outputs: usize,
    out: &'a mut [f32],
}

impl WithSimd for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = panel_width::<S>();
        let mut panel = vec![0.0; self.inputs * width];
        for first in (0..self.outputs).step_by(width) {
            let count = width.min(self.outputs - first);
            let rows = self.weight.chunks_exact(self.outputs);
            for (packed, row) in panel.chunks_exact_mut(width).zip(rows) {
                packed[..count].copy_from_slice(&row[first..first + count]);
            }
            let mut columns = Columns {
                input: self.input,
                inputs: self.inputs,
                panel: &panel,
                bias: self.bias.map_or(&[], |bias| &bias[first..first + count]),
                out: self.out,
                outputs: self.outputs,
                first,
                count,
            };
            in_groups(simd, self.input.len() / self.inputs, &mut columns);
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
