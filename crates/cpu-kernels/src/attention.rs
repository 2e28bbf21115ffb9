//! Multi-head attention.
//!
//! A task is one head of one image and some of its queries. It computes one query's scores at a
//! time, in vectors along the keys, so that scores are never stored in memory as a whole; the
//! gradient computes them again.

use crate::autodiff::{FlexTensor, Operation, apply, contiguous, shape, tensor, values};
use crate::buffer;
use crate::channel_sums::{add_parts, to_f32};
use crate::math::{LANES, fold_halves, unnormalized_softmax};
use burn::tensor::Tensor;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Multi-head attention, `softmax(q k^T / sqrt(d)) v` for each head of width `d`.
///
/// # Shapes
///
/// - query: `[B, Tq, heads * d]`
/// - key, value: `[B, Tk, heads * d]`
/// - output: `[B, Tq, heads * d]`
///
/// # Panics
///
/// If a tensor is not supported ([`is_supported`](crate::is_supported)), a size is zero, or the
/// shapes do not match.
pub fn attention(query: Tensor<3>, key: Tensor<3>, value: Tensor<3>, heads: usize) -> Tensor<3> {
    let [batch, queries, width] = query.dims();
    let [_, keys, _] = key.dims();
    assert_eq!(key.dims(), [batch, keys, width], "keys for the queries");
    assert_eq!(value.dims(), key.dims(), "a value for each key");
    assert!(
        heads > 0 && width > 0 && width.is_multiple_of(heads),
        "{width} channels are not those of {heads} heads"
    );
    assert!(batch * queries * keys > 0, "no queries or keys");
    apply(Attention { heads }, [query.into(), key.into(), value.into()])
}

#[derive(Debug, Clone, Copy)]
struct Attention {
    heads: usize,
}

impl Attention {
    fn heads<'a>(&self, [query, key, value]: &'a [FlexTensor; 3]) -> Heads<'a> {
        let [batch, queries, width] = shape(query);
        let [_, keys, _] = shape(key);
        Heads {
            query: values(query),
            key: values(key),
            value: values(value),
            batch,
            queries,
            keys,
            heads: self.heads,
            head_dim: width / self.heads,
        }
    }
}

impl Operation<3> for Attention {
    /// Queries, keys and values.
    type Saved = [FlexTensor; 3];

    fn forward(&self, inputs: [FlexTensor; 3], _: [bool; 3]) -> (FlexTensor, Self::Saved) {
        let inputs = inputs.map(contiguous);
        let output = self.heads(&inputs).output();
        (tensor(output, shape::<3>(&inputs[0])), inputs)
    }

    fn backward(
        &self,
        inputs: Self::Saved,
        gradient: FlexTensor,
        _: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        let gradient = contiguous(gradient);
        let gradients = self.heads(&inputs).gradients(values(&gradient));
        let mut shapes = inputs.iter().map(shape::<3>);
        gradients.map(|gradient| Some(tensor(gradient, shapes.next()?)))
    }
}

/// Maximum number of queries per task: each task packs the keys and values again.
const QUERIES_PER_TASK: usize = 512;

/// Queries, keys and values of all heads of all images.
#[derive(Clone, Copy)]
struct Heads<'a> {
    /// `[B, Tq, heads, d]`.
    query: &'a [f32],
    /// `[B, Tk, heads, d]`.
    key: &'a [f32],
    /// `[B, Tk, heads, d]`.
    value: &'a [f32],
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    head_dim: usize,
}

/// Some queries of one head of one image.
#[derive(Debug, Clone, Copy)]
struct Task {
    image: usize,
    head: usize,
    first: usize,
    count: usize,
}

impl Heads<'_> {
    fn output(&self) -> Vec<f32> {
        let arch = Arch::new();
        let tasks = self.tasks();
        let outputs: Vec<Vec<f32>> = tasks
            .par_iter()
            .map(|&task| arch.dispatch(Forward { head: Head::new(self, task) }))
            .collect();
        self.gather(&outputs, self.queries)
    }

    /// Gradients of queries, keys and values.
    fn gradients(&self, gradient: &[f32]) -> [Vec<f32>; 3] {
        let arch = Arch::new();
        let tasks = self.tasks();
        let parts: Vec<[Vec<f32>; 3]> = tasks
            .par_iter()
            .map(|&task| {
                let gradient = self.rows(gradient, self.queries, task);
                arch.dispatch(Backward { head: Head::new(self, task), gradient })
            })
            .collect();
        let (query, mut keys): (Vec<_>, Vec<_>) =
            parts.into_iter().map(|[query, key, value]| (query, [key, value])).unzip();
        // The tasks of one head of one image follow one another.
        let per_head = keys.len() / (self.batch * self.heads);
        let [key, value] = [0, 1].map(|which| {
            let sums: Vec<Vec<f32>> = keys
                .par_chunks_mut(per_head)
                .map(|parts| match parts {
                    [part] => std::mem::take(&mut part[which]),
                    _ => {
                        let length = parts[0][which].len();
                        to_f32(add_parts(parts.iter().map(|part| &part[which]), length))
                    }
                })
                .collect();
            self.gather(&sums, self.keys)
        });
        [self.gather(&query, self.queries), key, value]
    }

    /// Brings rows of padded width, as many parts for each head of each image, into the order
    /// `[B, tokens, heads, d]`. All parts of a head but the last have [`QUERIES_PER_TASK`] rows.
    fn gather(&self, parts: &[Vec<f32>], tokens: usize) -> Vec<f32> {
        let Self { batch, heads, head_dim, .. } = *self;
        let per_head = parts.len() / (batch * heads);
        let rows_per_part = if per_head == 1 { tokens } else { QUERIES_PER_TASK };
        let mut out = buffer::zeros(batch * tokens * heads * head_dim);
        out.par_chunks_mut(tokens * heads * head_dim).enumerate().for_each(|(image, out)| {
            let of_rows = out.par_chunks_mut(rows_per_part * heads * head_dim).enumerate();
            of_rows.for_each(|(index, out)| {
                for head in 0..heads {
                    let part = &parts[(image * heads + head) * per_head + index];
                    let rows = part.chunks_exact(head_dim.next_multiple_of(LANES));
                    let tokens = out[head * head_dim..].chunks_mut(heads * head_dim);
                    for (token, row) in tokens.zip(rows) {
                        copy_row(&row[..head_dim], &mut token[..head_dim]);
                    }
                }
            });
        });
        out
    }

    fn tasks(&self) -> Vec<Task> {
        let mut tasks = Vec::new();
        for image in 0..self.batch {
            for head in 0..self.heads {
                for first in (0..self.queries).step_by(QUERIES_PER_TASK) {
                    let count = QUERIES_PER_TASK.min(self.queries - first);
                    tasks.push(Task { image, head, first, count });
                }
            }
        }
        tasks
    }

    /// The rows of a task's head, from `[B, tokens, heads, d]`.
    fn rows(&self, from: &[f32], tokens: usize, task: Task) -> Rows {
        let Self { heads, head_dim, .. } = *self;
        let start = (task.image * tokens + task.first) * heads + task.head;
        let width = head_dim.next_multiple_of(LANES);
        let mut values = vec![0.0; task.count * width];
        let stored = from[start * head_dim..].chunks(heads * head_dim);
        for (row, stored) in values.chunks_exact_mut(width).zip(stored) {
            copy_row(&stored[..head_dim], row);
        }
        Rows { values, width }
    }
}

/// Copies a row of a head, which is too short to be worth a call of the system's copy.
#[inline(always)]
fn copy_row(from: &[f32], to: &mut [f32]) {
    let (blocks, rest) = from.as_chunks::<LANES>();
    let (to_blocks, to_rest) = to.split_at_mut(blocks.len() * LANES);
    for (to, block) in to_blocks.as_chunks_mut::<LANES>().0.iter_mut().zip(blocks) {
        *to = *block;
    }
    for (to, value) in to_rest.iter_mut().zip(rest) {
        *to = *value;
    }
}

/// One head of one image, packed. Widths and numbers of keys are padded with zeros to a multiple of
/// [`LANES`].
struct Head {
    /// Scaled by `1 / sqrt(d)`.
    queries: Rows,
    keys: Packed,
    values: Packed,
    scale: f32,
}

/// Rows of a head, `[rows, width]`, padded with zeros.
struct Rows {
    values: Vec<f32>,
    width: usize,
}

impl Rows {
    fn iter(&self) -> std::slice::ChunksExact<'_, f32> {
        self.values.chunks_exact(self.width)
    }
}

/// Keys or values in both orders.
struct Packed {
    rows: Rows,
    /// For each dimension, the keys' values.
    lines: Vec<f32>,
    count: usize,
}

impl Packed {
    fn new(rows: Rows, head_dim: usize) -> Self {
        let count = rows.iter().len();
        let stride = Self::stride(count);
        let mut lines = vec![0.0; head_dim * stride];
        for (index, row) in rows.iter().enumerate() {
            for (line, &value) in lines.chunks_exact_mut(stride).zip(row) {
                line[index] = value;
            }
        }
        Self { rows, lines, count }
    }

    /// From one line to the next. Lines that are a power of two apart would share few lines of the
    /// cache.
    fn stride(count: usize) -> usize {
        count.next_multiple_of(LANES) + LANES
    }

    /// Writes the products of a row with all keys to `products`.
    #[inline(always)]
    fn multiply(&self, row: &[f32], products: &mut [f32]) {
        products.fill(0.0);
        for (line, &value) in self.lines.chunks_exact(Self::stride(self.count)).zip(row) {
            add_multiple(value, line, products);
        }
    }

    /// Adds the rows times their weights to `sum`.
    #[inline(always)]
    fn add_weighted(&self, weights: &[f32], sum: &mut [f32]) {
        for (row, &weight) in self.rows.iter().zip(weights) {
            add_multiple(weight, row, sum);
        }
    }
}

impl Head {
    fn new(heads: &Heads<'_>, task: Task) -> Self {
        let Heads { keys: count, head_dim, .. } = *heads;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let mut queries = heads.rows(heads.query, heads.queries, task);
        for value in &mut queries.values {
            *value *= scale;
        }
        let whole = Task { first: 0, count, ..task };
        let packed = |from| Packed::new(heads.rows(from, count, whole), head_dim);
        Self { queries, keys: packed(heads.key), values: packed(heads.value), scale }
    }

    /// Scratch space with one value for each key.
    fn scratch(&self) -> Vec<f32> {
        vec![0.0; self.keys.count.next_multiple_of(LANES)]
    }

    /// Writes a query's weights of the keys to `weights`; those of the padding are 0.
    #[inline(always)]
    fn weights(&self, query: &[f32], weights: &mut [f32]) {
        self.keys.multiply(query, weights);
        weights[self.keys.count..].fill(f32::NEG_INFINITY);
        let factor = unnormalized_softmax(weights);
        for weight in weights {
            *weight *= factor;
        }
    }
}

/// Adds `factor * values` to as many sums, a multiple of [`LANES`].
#[inline(always)]
fn add_multiple(factor: f32, values: &[f32], sums: &mut [f32]) {
    let (sums, _) = sums.as_chunks_mut::<LANES>();
    for (sums, values) in sums.iter_mut().zip(values.as_chunks::<LANES>().0) {
        // All are read before one is written; the compiler does not know that they do not overlap.
        let added: [f32; LANES] =
            std::array::from_fn(|lane| factor.mul_add(values[lane], sums[lane]));
        *sums = added;
    }
}

/// The product of two rows whose length is a multiple of [`LANES`].
#[inline(always)]
fn product(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    for (a, b) in a.as_chunks::<LANES>().0.iter().zip(b.as_chunks::<LANES>().0) {
        for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane = a.mul_add(*b, *lane);
        }
    }
    fold_halves(lanes, |a, b| a + b)
}

/// Computes the output of a task, rows of padded width.
struct Forward {
    head: Head,
}

impl WithSimd for Forward {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Vec<f32> {
        let Self { head } = self;
        let mut weights = head.scratch();
        let mut output = vec![0.0; head.queries.values.len()];
        let outputs = output.chunks_exact_mut(head.queries.width);
        for (query, output) in head.queries.iter().zip(outputs) {
            head.weights(query, &mut weights);
            head.values.add_weighted(&weights, output);
        }
        output
    }
}

/// Computes the gradients of a task's queries, and its share of those of the keys and values: rows
/// of padded width.
struct Backward {
    head: Head,
    /// That of the output.
    gradient: Rows,
}

impl WithSimd for Backward {
    type Output = [Vec<f32>; 3];

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> [Vec<f32>; 3] {
        let Self { head, gradient } = self;
        let width = head.queries.width;
        let mut weights = head.scratch();
        let mut slopes = head.scratch();
        let mut query_gradient = vec![0.0; head.queries.values.len()];
        let mut key_gradient = vec![0.0; head.keys.rows.values.len()];
        let mut value_gradient = key_gradient.clone();
        let queries = head.queries.iter().zip(query_gradient.chunks_exact_mut(width));
        for ((query, query_gradient), gradient) in queries.zip(gradient.iter()) {
            head.weights(query, &mut weights);
            // The gradient of the weights; below, in place, that of the scores.
            head.values.multiply(gradient, &mut slopes);
            let mean = product(&weights, &slopes);
            for (slope, weight) in slopes.iter_mut().zip(&weights) {
                *slope = weight * (*slope - mean);
            }
            head.keys.add_weighted(&slopes, query_gradient);
            for value in query_gradient {
                *value *= head.scale;
            }
            let keys = key_gradient.chunks_exact_mut(width);
            let values = value_gradient.chunks_exact_mut(width);
            for ((key, value), (slope, weight)) in keys.zip(values).zip(slopes.iter().zip(&weights))
            {
                add_multiple(*slope, query, key); // the queries are scaled already
                add_multiple(*weight, gradient, value);
            }
        }
        [query_gradient, key_gradient, value_gradient]
    }
}
