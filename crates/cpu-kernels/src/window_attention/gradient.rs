//! The gradients of queries, keys, values, padding and positions.
//!
//! With the weights `P = softmax(S)` and the gradient `O'` of the output, those of the values and of
//! the scores are `V' = P^T O'` and `S' = P * (O' V^T - rowsum(P * O' V^T))`. Queries and keys follow
//! from `S'`. Some tens of queries at a time, whose `P` and `S'` stay in the cache.

use super::head::{Head, KEY, QUERY, VALUE};
use super::{Positions, Task, WindowAttention};
use crate::buffer;
use crate::math::unnormalized_softmax;
use crate::microkernel::{
    BlockKernel, VECTORS, add_outer_products, for_each_block, load, multiply_add, panel_width,
    store, zeros,
};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Gradients of the inputs.
pub struct Gradients {
    /// `[B, G, G, 3 * heads * d]`.
    pub qkv: Vec<f32>,
    /// `[3 * heads * d]`, if required.
    pub padding: Option<Vec<f32>>,
    /// Of both tables of relative positions, or of the biases; empty if not required.
    pub positions: Vec<Vec<f32>>,
}

impl WindowAttention<'_> {
    /// The gradients, from that of the output.
    pub fn gradients(
        &self,
        gradient: &[f32],
        with_padding: bool,
        with_positions: bool,
    ) -> Gradients {
        let channels = self.check();
        let tokens = self.grid * self.grid;
        assert_eq!(gradient.len(), self.batch * tokens * channels);
        let arch = Arch::new();
        // All queries of a head in one task, so that gradients of keys are not sums over tasks.
        let tasks = self.tasks(usize::MAX);
        let parts: Vec<TaskGradients> = tasks
            .par_iter()
            .map(|task| {
                let kernel = Backward { attention: self, task, gradient, with_positions };
                arch.dispatch(kernel)
            })
            .collect();
        let mut qkv = buffer::zeros(self.qkv.len());
        let per_image = (tasks.len() / self.batch.max(1)).max(1);
        qkv.par_chunks_mut(tokens * 3 * channels)
            .zip(tasks.par_chunks(per_image).zip(parts.par_chunks(per_image)))
            .for_each(|(image, (tasks, parts))| {
                for (task, part) in tasks.iter().zip(parts) {
                    self.scatter(task, part, image);
                }
            });
        Gradients {
            qkv,
            padding: with_padding.then(|| self.padding_gradient(&tasks, &parts)),
            positions: if with_positions {
                self.position_gradients(&tasks, &parts)
            } else {
                Vec::new()
            },
        }
    }

    /// Writes the gradients of a task to the tokens of its image.
    fn scatter(&self, task: &Task, part: &TaskGradients, image: &mut [f32]) {
        let (width, head_dim) = (self.padding.len(), self.head_dim);
        let mut write = |token: usize, kind: usize, values: &[f32]| {
            let start = token * width + self.offset(task.head, kind);
            image[start..start + head_dim].copy_from_slice(values);
        };
        for (token, values) in self.tokens(task).zip(part.queries.chunks_exact(head_dim)) {
            write(token, QUERY, values);
        }
        for (kind, gradient) in [(KEY, &part.keys), (VALUE, &part.values)] {
            for (index, values) in gradient.chunks_exact(head_dim).enumerate() {
                if let Some(token) = self.token(task, index) {
                    write(token, kind, values);
                }
            }
        }
    }

    /// Index on the grid of a key of a window; `None` for padding.
    fn token(&self, task: &Task, index: usize) -> Option<usize> {
        let row = task.origin[0] + index / self.side;
        let column = task.origin[1] + index % self.side;
        (row < self.grid && column < self.grid).then_some(row * self.grid + column)
    }

    fn padding_gradient(&self, tasks: &[Task], parts: &[TaskGradients]) -> Vec<f32> {
        let head_dim = self.head_dim;
        let mut sums = vec![0.0; self.padding.len()];
        for (task, part) in tasks.iter().zip(parts) {
            for (kind, gradient) in [(KEY, &part.keys), (VALUE, &part.values)] {
                let sums = &mut sums[self.offset(task.head, kind)..][..head_dim];
                for (index, values) in gradient.chunks_exact(head_dim).enumerate() {
                    if self.token(task, index).is_none() {
                        add(values, sums);
                    }
                }
            }
        }
        sums
    }

    fn position_gradients(&self, tasks: &[Task], parts: &[TaskGradients]) -> Vec<Vec<f32>> {
        match self.positions {
            Positions::Decomposed(tables) => {
                let mut sums = tables.map(|table| vec![0.0; table.len()]);
                for part in parts {
                    for (sums, values) in sums.iter_mut().zip(&part.positions) {
                        add(values, sums);
                    }
                }
                sums.into()
            }
            Positions::Biases(biases) => {
                let mut sums = vec![0.0; biases.len()];
                let count = self.side * self.side;
                for (task, part) in tasks.iter().zip(parts) {
                    let sums = &mut sums[task.head * count..][..count];
                    add(&part.positions[0], sums);
                }
                vec![sums]
            }
        }
    }
}

/// Gradients of one head of one window.
struct TaskGradients {
    /// `[queries, d]`.
    queries: Vec<f32>,
    /// `[s * s, d]`.
    keys: Vec<f32>,
    /// `[s * s, d]`.
    values: Vec<f32>,
    /// Of both tables, `[2 s - 1, d]`, or of the head's biases, `[s * s]`.
    positions: [Vec<f32>; 2],
}

/// Computes the gradients of a task.
struct Backward<'a> {
    attention: &'a WindowAttention<'a>,
    task: &'a Task,
    /// That of the output of all tasks.
    gradient: &'a [f32],
    with_positions: bool,
}

/// Scores whose weights and gradients are in memory at once: two times a quarter of a megabyte.
const SCORES: usize = 1 << 16;

impl WithSimd for Backward<'_> {
    type Output = TaskGradients;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> TaskGradients {
        let Self { attention, task, gradient, with_positions } = self;
        let head = Head::new::<S>(attention, task);
        let (head_dim, count, padded) = (head.head_dim(), head.count, head.padded);
        let tokens = attention.grid * attention.grid;
        let channels = attention.heads * head_dim;
        let of_token = |token: usize| {
            let start = (task.image * tokens + token) * channels + task.head * head_dim;
            &gradient[start..start + head_dim]
        };
        let outputs: Vec<&[f32]> = attention.tokens(task).map(of_token).collect();
        let table_sizes = match attention.positions {
            _ if !with_positions => [0; 2],
            Positions::Decomposed(tables) => tables.map(<[f32]>::len),
            Positions::Biases(_) => [count, 0],
        };
        // A multiple of the block's rows, so that only the last chunk has a smaller block.
        let chunk = (SCORES / padded / 8).max(1) * 8;
        let mut kernel = Chunk {
            positions: attention.positions,
            values: head.panels_along_keys::<S>(VALUE, 1.0),
            keys: head.panels_along_dimensions::<S>(KEY, head.scale),
            queries: 0..0,
            outputs: &outputs,
            terms: vec![0.0; 2 * head.side()],
            weights: vec![0.0; chunk * padded],
            slopes: vec![0.0; chunk * padded],
            query_gradients: vec![0.0; task.count * head_dim],
            position_gradients: table_sizes.map(|size| vec![0.0; size]),
            head: &head,
        };
        let mut keys = vec![0.0; count * head_dim];
        let mut values = keys.clone();
        for first in (0..task.count).step_by(chunk) {
            kernel.queries = first..task.count.min(first + chunk);
            for_each_block(simd, kernel.queries.len(), &mut kernel);
            let products = [
                (&kernel.slopes, &head.queries, &mut keys),
                (&kernel.weights, &outputs, &mut values),
            ];
            for (factors, rows, sums) in products {
                let rows = &rows[kernel.queries.clone()];
                for_each_block(
                    simd,
                    count,
                    &mut OverQueries { factors, padded, rows, head_dim, sums },
                );
            }
        }
        for value in &mut keys {
            *value *= head.scale;
        }
        let Chunk { query_gradients, position_gradients, .. } = kernel;
        TaskGradients { queries: query_gradients, keys, values, positions: position_gradients }
    }
}

/// Computes weights, gradients of scores and gradients of queries for some queries.
struct Chunk<'a> {
    head: &'a Head<'a>,
    positions: Positions<'a>,
    /// Panels of values, along the keys.
    values: Vec<f32>,
    /// Panels of scaled keys, along the dimensions of the head.
    keys: Vec<f32>,
    /// The queries, of those of the task.
    queries: Range<usize>,
    /// Gradients of the outputs of all queries.
    outputs: &'a [&'a [f32]],
    terms: Vec<f32>,
    /// `[queries, padded]`.
    weights: Vec<f32>,
    /// Gradients of the scores, `[queries, padded]`.
    slopes: Vec<f32>,
    query_gradients: Vec<f32>,
    position_gradients: [Vec<f32>; 2],
}

impl BlockKernel for Chunk<'_> {
    #[inline(always)]
    fn block<S: Simd, const R: usize>(&mut self, simd: S, offset: usize) {
        let head = self.head;
        let (count, padded, head_dim) = (head.count, head.padded, head.head_dim());
        let first = self.queries.start + offset;
        let of_block = offset * padded..(offset + R) * padded;
        let weights = &mut self.weights[of_block.clone()];
        head.scores::<S, R>(simd, first, &mut self.terms, weights);
        for weights in weights.chunks_exact_mut(padded) {
            let (weights, padding) = weights.split_at_mut(count);
            let factor = unnormalized_softmax(weights);
            for weight in weights {
                *weight *= factor;
            }
            padding.fill(0.0);
        }
        // The gradient of the weights; then, in place, that of the scores.
        let slopes = &mut self.slopes[of_block];
        slopes.fill(0.0);
        let outputs: [&[f32]; R] = std::array::from_fn(|row| self.outputs[first + row]);
        head.add_products(simd, outputs, &self.values, slopes);
        for (slopes, weights) in slopes.chunks_exact_mut(padded).zip(weights.chunks_exact(padded)) {
            let mean = product(simd, slopes, weights);
            for (slope, weight) in slopes.iter_mut().zip(weights) {
                *slope = weight * (*slope - mean);
            }
        }
        let rows: [&[f32]; R] = std::array::from_fn(|row| &slopes[row * padded..][..count]);
        let width = panel_width::<S>();
        for (panel, keys) in self.keys.chunks_exact(count * width).enumerate() {
            let mut sums = zeros::<S, R, VECTORS>(simd);
            multiply_add(simd, rows, keys, &mut sums);
            let columns = panel * width..head_dim.min((panel + 1) * width);
            for (row, sums) in sums.iter().enumerate() {
                let out = &mut self.query_gradients[(first + row) * head_dim..][columns.clone()];
                store(simd, sums, out);
            }
        }
        for (row, slopes) in rows.into_iter().enumerate() {
            let query = first + row;
            let out = &mut self.query_gradients[query * head_dim..][..head_dim];
            let tables = &mut self.position_gradients;
            match self.positions {
                Positions::Decomposed(positions) => {
                    add_decomposed(head, query, slopes, positions, &mut self.terms, out, tables);
                }
                Positions::Biases(_) => {
                    add_biases(head, query, slopes, &mut tables[0]);
                }
            }
        }
    }
}

/// Adds what the position terms of a query's scores contribute to the gradients of the query and, if
/// they are not empty, of the tables.
#[inline(always)]
fn add_decomposed(
    head: &Head<'_>,
    query: usize,
    slopes: &[f32],
    positions: [&[f32]; 2],
    terms: &mut [f32],
    gradient: &mut [f32],
    tables: &mut [Vec<f32>; 2],
) {
    let (side, head_dim) = (head.side(), head.head_dim());
    // The sums over the columns of each row of keys, and over the rows of each column.
    let (by_row, by_column) = terms.split_at_mut(side);
    by_column.fill(0.0);
    for (line, sum) in slopes.chunks_exact(side).zip(by_row.iter_mut()) {
        *sum = line.iter().sum();
        add(line, by_column);
    }
    for (axis, sums) in [by_row, by_column].into_iter().enumerate() {
        let own = head.places[query][axis];
        for (key, &sum) in sums.iter().enumerate() {
            let position = (own + side - 1 - key) * head_dim;
            add_multiple(sum, &positions[axis][position..position + head_dim], gradient);
            if !tables[axis].is_empty() {
                let table = &mut tables[axis][position..position + head_dim];
                add_multiple(sum, head.queries[query], table);
            }
        }
    }
}

/// Adds the gradients of a query's scores to those of the biases, if these are not empty.
#[inline(always)]
fn add_biases(head: &Head<'_>, query: usize, slopes: &[f32], biases: &mut [f32]) {
    if biases.is_empty() {
        return;
    }
    let side = head.side();
    let [own_row, own_column] = head.places[query];
    for (row, line) in slopes.chunks_exact(side).enumerate() {
        let biases = &mut biases[own_row.abs_diff(row) * side..][..side];
        for (column, slope) in line.iter().enumerate() {
            biases[own_column.abs_diff(column)] += slope;
        }
    }
}

/// Adds to each key's sums the queries' rows times the queries' factors of that key.
struct OverQueries<'a> {
    /// `[queries, padded]`.
    factors: &'a [f32],
    padded: usize,
    /// `[queries, d]`.
    rows: &'a [&'a [f32]],
    head_dim: usize,
    /// `[keys, d]`.
    sums: &'a mut [f32],
}

impl BlockKernel for OverQueries<'_> {
    #[inline(always)]
    fn block<S: Simd, const R: usize>(&mut self, simd: S, first: usize) {
        let width = panel_width::<S>();
        for start in (0..self.head_dim).step_by(width) {
            let columns = start..self.head_dim.min(start + width);
            let at = |row: usize| (first + row) * self.head_dim;
            let mut sums = std::array::from_fn(|row| {
                load::<S, VECTORS>(simd, &self.sums[at(row)..][columns.clone()])
            });
            let rows = self.rows.iter().map(|row| load(simd, &row[columns.clone()]));
            add_outer_products::<S, R, _>(
                simd,
                &self.factors[first..],
                self.padded,
                rows,
                &mut sums,
            );
            for (row, sums) in sums.iter().enumerate() {
                store(simd, sums, &mut self.sums[at(row)..][columns.clone()]);
            }
        }
    }
}

/// Adds values to as many sums.
#[inline(always)]
fn add(values: &[f32], sums: &mut [f32]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += value;
    }
}

/// Adds `factor * values` to as many sums.
#[inline(always)]
fn add_multiple(factor: f32, values: &[f32], sums: &mut [f32]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum = factor.mul_add(*value, *sum);
    }
}

/// The product of two rows whose length is a multiple of the vectors' lanes.
#[inline(always)]
fn product<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let (a, _) = S::as_simd_f32s(a);
    let (b, _) = S::as_simd_f32s(b);
    let zero = simd.splat_f32s(0.0);
    let sum = a.iter().zip(b).fold(zero, |sum, (&a, &b)| simd.mul_add_f32s(a, b, sum));
    simd.reduce_sum_f32s(sum)
}
