//! The attended values.

use super::head::{Head, VALUE};
use super::{Task, WindowAttention};
use crate::math::unnormalized_softmax;
use crate::microkernel::{
    BlockKernel, VECTORS, for_each_block, multiply_add, panel_width, store, zeros,
};
use pulp::{Simd, WithSimd};

/// Computes the output of a task, `[count, d]`.
pub struct Forward<'a> {
    pub attention: &'a WindowAttention<'a>,
    pub task: &'a Task,
}

impl WithSimd for Forward<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
        let Self { attention, task } = self;
        let head = Head::new::<S>(attention, task);
        let mut kernel = Queries {
            values: head.panels_along_dimensions::<S>(VALUE, 1.0),
            terms: vec![0.0; 2 * head.side()],
            scores: Vec::new(),
            out: vec![0.0; task.count * head.head_dim()],
            head,
        };
        for_each_block(simd, task.count, &mut kernel);
        kernel.out
    }
}

/// Attends to all keys and values from a block of queries.
struct Queries<'a> {
    head: Head<'a>,
    /// Panels of values.
    values: Vec<f32>,
    terms: Vec<f32>,
    scores: Vec<f32>,
    out: Vec<f32>,
}

impl BlockKernel for Queries<'_> {
    #[inline(always)]
    fn block<S: Simd, const R: usize>(&mut self, simd: S, first: usize) {
        let width = panel_width::<S>();
        let Self { head, values, terms, scores, out } = self;
        let (count, padded, head_dim) = (head.count, head.padded, head.head_dim());
        scores.resize(R * padded, 0.0);
        head.scores::<S, R>(simd, first, terms, scores);
        let mut factors = [0.0; R];
        for (row, factor) in factors.iter_mut().enumerate() {
            *factor = unnormalized_softmax(&mut scores[row * padded..][..count]);
        }
        let weights: [&[f32]; R] = std::array::from_fn(|row| &scores[row * padded..][..count]);
        for (panel, values) in values.chunks_exact(count * width).enumerate() {
            let mut sums = zeros::<S, R, VECTORS>(simd);
            multiply_add(simd, weights, values, &mut sums);
            let columns = panel * width..head_dim.min((panel + 1) * width);
            for (row, sums) in sums.iter().enumerate() {
                let factor = simd.splat_f32s(factors[row]);
                let sums = sums.map(|sum| simd.mul_f32s(sum, factor));
                store(simd, &sums, &mut out[(first + row) * head_dim..][columns.clone()]);
            }
        }
    }
}
