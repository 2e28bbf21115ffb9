//! Attention within windows, with decomposed relative positions as in SAM's image encoder or with a
//! bias for each distance as in TinyViT. It has no gradient.
//!
//! A task is one head of one window and some of its queries. It packs the keys and values, then
//! computes, for eight queries at a time, the scores against all keys, their softmax and its
//! product with the values: only the scores of eight queries are in memory at once, and they stay
//! in the cache.

use crate::autodiff::{tensor, values, without_autodiff};
use crate::buffer;
use crate::math::unnormalized_softmax;
use crate::microkernel::{
    BlockKernel, VECTORS, for_each_block, load_full, multiply_add, panel_width, store, zeros,
};
use burn::backend::Flex;
use burn::tensor::Tensor;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Attention within windows with decomposed relative positions, `softmax(q k^T / sqrt(d) + q R_h +
/// q R_w) v` for each head. The scores are never stored in memory as a whole.
///
/// Windows of side `s` cover the grid starting at its first token; windows that extend beyond it
/// are filled with `padding`.
///
/// # Shapes
///
/// - qkv: `[B, G, G, 3 * heads * d]`
/// - padding: `[3 * heads * d]`
/// - positions, along the height and the width: `[2 s - 1, d]`
/// - output: `[B, G, G, heads * d]`
///
/// # Panics
///
/// If a tensor is not supported
/// ([`is_supported_without_autodiff`](crate::is_supported_without_autodiff)), or the shapes do not
/// match.
pub fn window_attention(
    qkv: Tensor<4>,
    padding: Tensor<1>,
    positions: [Tensor<2>; 2],
    heads: usize,
) -> Tensor<4> {
    let [batch, grid, columns, width] = qkv.dims();
    assert_eq!(grid, columns, "sides of a square grid");
    assert!(
        heads > 0 && width.is_multiple_of(3 * heads),
        "{width} channels are not queries, keys and values of {heads} heads"
    );
    let [length, head_dim] = positions[0].dims();
    let (qkv, padding) = (without_autodiff(qkv), without_autodiff(padding));
    let positions = positions.map(without_autodiff);
    let positions = positions.each_ref().map(values);
    for positions in positions {
        assert_eq!(positions.len(), length * head_dim);
    }
    let attention = WindowAttention {
        qkv: values(&qkv),
        padding: values(&padding),
        positions: Positions::Decomposed(positions),
        layout: Layout::PartMajor,
        batch,
        grid,
        side: length.div_ceil(2),
        heads,
        head_dim,
    };
    Tensor::from_primitive::<Flex>(tensor(attention.output(), [batch, grid, grid, width / 3]))
}

/// Attention within windows with a bias for each distance, `softmax(q k^T / sqrt(d) + bias[|dy|,
/// |dx|]) v` for each head. The scores are never stored in memory as a whole.
///
/// Windows of side `s` cover the grid starting at its first token; windows that extend beyond it
/// are filled with `padding`.
///
/// # Shapes
///
/// - qkv: `[B, G, G, heads * 3 * d]`, query, key and value head by head
/// - padding: `[heads * 3 * d]`
/// - biases: `[heads, s * s]`, that of `|dy|` rows and `|dx|` columns at `|dy| * s + |dx|`
/// - output: `[B, G, G, heads * d]`
///
/// # Panics
///
/// If a tensor is not supported
/// ([`is_supported_without_autodiff`](crate::is_supported_without_autodiff)), or the shapes do not
/// match.
pub fn biased_window_attention(qkv: Tensor<4>, padding: Tensor<1>, biases: Tensor<2>) -> Tensor<4> {
    let [batch, grid, columns, width] = qkv.dims();
    assert_eq!(grid, columns, "sides of a square grid");
    let [heads, distances] = biases.dims();
    let side = distances.isqrt();
    assert_eq!(side * side, distances, "distances within a square window");
    assert!(
        heads > 0 && width.is_multiple_of(3 * heads),
        "{width} channels are not queries, keys and values of {heads} heads"
    );
    let (qkv, padding) = (without_autodiff(qkv), without_autodiff(padding));
    let biases = without_autodiff(biases);
    let attention = WindowAttention {
        qkv: values(&qkv),
        padding: values(&padding),
        positions: Positions::Biases(values(&biases)),
        layout: Layout::HeadMajor,
        batch,
        grid,
        side,
        heads,
        head_dim: width / (3 * heads),
    };
    Tensor::from_primitive::<Flex>(tensor(attention.output(), [batch, grid, grid, width / 3]))
}

/// What is added to the scores.
#[derive(Clone, Copy)]
enum Positions<'a> {
    /// Products of the query with relative positions, for a query's row minus the key's, then for
    /// its column minus the key's, `[2 s - 1, d]`, the most negative first.
    Decomposed([&'a [f32]; 2]),
    /// A bias for each head and distance, `[heads, s * s]`.
    Biases(&'a [f32]),
}

/// The order of queries, keys and values in the channels of a token.
#[derive(Clone, Copy)]
enum Layout {
    /// `[3, heads, d]`.
    PartMajor,
    /// `[heads, 3, d]`.
    HeadMajor,
}

/// Maximum number of queries per task: each task packs the keys and values again.
const QUERIES_PER_TASK: usize = 512;

/// The attention of all heads of all windows.
#[derive(Clone, Copy)]
struct WindowAttention<'a> {
    /// Queries, keys and values, `[B, G, G, 3 * heads * d]`.
    qkv: &'a [f32],
    /// Query, key and value of a token beyond the grid, `[3 * heads * d]`.
    padding: &'a [f32],
    positions: Positions<'a>,
    layout: Layout,
    /// Batch size `B`.
    batch: usize,
    /// Side `G` of the grid of tokens.
    grid: usize,
    /// Side `s` of a window.
    side: usize,
    /// Number of heads.
    heads: usize,
    /// Width `d` of a head.
    head_dim: usize,
}

/// Some queries of one head of one window.
struct Task {
    image: usize,
    /// Row and column of the window's first token.
    origin: [usize; 2],
    head: usize,
    /// Index of the first query among the window's tokens that lie on the grid.
    first: usize,
    /// Number of queries.
    count: usize,
}

impl WindowAttention<'_> {
    /// The attended values, `[B, G, G, heads, d]`.
    fn output(&self) -> Vec<f32> {
        let channels = self.heads * self.head_dim;
        let tokens = self.grid * self.grid;
        assert!(
            channels > 0 && tokens > 0 && self.side > 0,
            "heads of {} channels, a grid of side {} or windows of side {} are empty",
            self.head_dim,
            self.grid,
            self.side
        );
        assert_eq!(self.qkv.len(), self.batch * tokens * 3 * channels);
        assert_eq!(self.padding.len(), 3 * channels);
        let arch = Arch::new();
        let mut out = buffer::zeros(self.batch * tokens * channels);
        let tasks = self.tasks();
        let outputs: Vec<Vec<f32>> = tasks
            .par_iter()
            .map(|task| arch.dispatch(TaskKernel { attention: self, task }))
            .collect();
        for (task, output) in tasks.iter().zip(&outputs) {
            let attended = output.chunks_exact(self.head_dim);
            for (token, attended) in self.tokens(task).zip(attended) {
                let start = (task.image * tokens + token) * channels + task.head * self.head_dim;
                out[start..start + self.head_dim].copy_from_slice(attended);
            }
        }
        out
    }

    fn tasks(&self) -> Vec<Task> {
        let mut tasks = Vec::new();
        for image in 0..self.batch {
            for row in (0..self.grid).step_by(self.side) {
                for column in (0..self.grid).step_by(self.side) {
                    let [rows, columns] = self.extent([row, column]);
                    for head in 0..self.heads {
                        for first in (0..rows * columns).step_by(QUERIES_PER_TASK) {
                            tasks.push(Task {
                                image,
                                origin: [row, column],
                                head,
                                first,
                                count: QUERIES_PER_TASK.min(rows * columns - first),
                            });
                        }
                    }
                }
            }
        }
        tasks
    }

    /// Number of rows and columns of a window that lie on the grid.
    fn extent(&self, origin: [usize; 2]) -> [usize; 2] {
        origin.map(|start| self.side.min(self.grid - start))
    }

    /// Row and column of each query in its window.
    fn places(&self, task: &Task) -> impl Iterator<Item = [usize; 2]> + use<> {
        let [_, columns] = self.extent(task.origin);
        (task.first..task.first + task.count).map(move |query| [query / columns, query % columns])
    }

    /// Index of each query on the grid.
    fn tokens(&self, task: &Task) -> impl Iterator<Item = usize> + use<> {
        let (origin, grid) = (task.origin, self.grid);
        self.places(task).map(move |[row, column]| (origin[0] + row) * grid + origin[1] + column)
    }

    /// Queries, keys and values of all heads at a row and column of a window.
    fn token_qkv(&self, task: &Task, [row, column]: [usize; 2]) -> &[f32] {
        let [row, column] = [task.origin[0] + row, task.origin[1] + column];
        if row >= self.grid || column >= self.grid {
            return self.padding;
        }
        let token = (task.image * self.grid + row) * self.grid + column;
        &self.qkv[token * self.padding.len()..][..self.padding.len()]
    }
}

/// Computes the output of a task, `[count, d]`.
struct TaskKernel<'a> {
    attention: &'a WindowAttention<'a>,
    task: &'a Task,
}

impl WithSimd for TaskKernel<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
        let Self { attention, task } = self;
        let WindowAttention { side, heads, head_dim, .. } = *attention;
        let width = panel_width::<S>();
        let count = side * side;
        // The query (part 0), key (1) or value (2) of a token.
        let part = |place: [usize; 2], part: usize| {
            let values = attention.token_qkv(task, place);
            let index = match attention.layout {
                Layout::PartMajor => part * heads + task.head,
                Layout::HeadMajor => task.head * 3 + part,
            };
            &values[index * head_dim..][..head_dim]
        };
        // Panels of keys: for each dimension of the head, the keys' values, times the scale of the
        // scores.
        let scale = 1.0 / (head_dim as f32).sqrt();
        let padded = count.next_multiple_of(width);
        let mut keys = vec![0.0; padded * head_dim];
        // Panels of dimensions of the head: for each key, its values.
        let panels = head_dim.div_ceil(width);
        let mut values = vec![0.0; panels * count * width];
        for index in 0..count {
            let place = [index / side, index % side];
            let panel = &mut keys[index / width * width * head_dim..][..width * head_dim];
            for (packed, &value) in
                panel[index % width..].iter_mut().step_by(width).zip(part(place, 1))
            {
                *packed = value * scale;
            }
            for (panel, value) in part(place, 2).chunks(width).enumerate() {
                values[(panel * count + index) * width..][..value.len()].copy_from_slice(value);
            }
        }
        let places: Vec<[usize; 2]> = attention.places(task).collect();
        let queries: Vec<&[f32]> = places.iter().map(|&place| part(place, 0)).collect();
        let tables = match attention.positions {
            Positions::Decomposed(tables) => {
                tables.map(|table| transposed_reversed(table, head_dim))
            }
            Positions::Biases(biases) => {
                let biases = &biases[task.head * count..][..count];
                [mirrored(biases, side), Vec::new()]
            }
        };
        let mut kernel = QueryKernel {
            side,
            head_dim,
            keys: &keys,
            values: &values,
            places: &places,
            queries: &queries,
            positions: match attention.positions {
                Positions::Decomposed(_) => {
                    Positions::Decomposed(tables.each_ref().map(Vec::as_slice))
                }
                Positions::Biases(_) => Positions::Biases(&tables[0]),
            },
            padded,
            scores: Vec::new(),
            out: vec![0.0; task.count * head_dim],
        };
        for_each_block(simd, task.count, &mut kernel);
        kernel.out
    }
}

/// Transposes `[L, d]` to `[d, L]`, last row first.
fn transposed_reversed(table: &[f32], width: usize) -> Vec<f32> {
    let length = table.len() / width;
    let mut transposed = vec![0.0; table.len()];
    for (row, values) in table.chunks_exact(width).rev().enumerate() {
        for (column, &value) in values.iter().enumerate() {
            transposed[column * length + row] = value;
        }
    }
    transposed
}

/// Mirrors each line of biases `[s, s]` for the distances 0 to `s - 1` to `[s, 2 s - 1]`, for the
/// differences `1 - s` to `s - 1`.
fn mirrored(biases: &[f32], side: usize) -> Vec<f32> {
    biases.chunks_exact(side).flat_map(|line| line[1..].iter().rev().chain(line)).copied().collect()
}

/// Attends to all keys and values from a block of queries.
struct QueryKernel<'a> {
    side: usize,
    head_dim: usize,
    /// Panels of keys.
    keys: &'a [f32],
    /// Panels of values.
    values: &'a [f32],
    /// Row and column of each query in the window.
    places: &'a [[usize; 2]],
    queries: &'a [&'a [f32]],
    /// Relative positions, transposed, the most positive first, or the mirrored biases of the head.
    positions: Positions<'a>,
    /// Number of keys, rounded up to whole panels.
    padded: usize,
    scores: Vec<f32>,
    out: Vec<f32>,
}

impl QueryKernel<'_> {
    /// Writes the position terms of a query's scores, given its row and column in the window, to
    /// `scores`. `terms` is scratch space of `2 s` values.
    #[inline(always)]
    fn position_scores(
        &self,
        query: &[f32],
        [own_row, own_column]: [usize; 2],
        terms: &mut [f32],
        scores: &mut [f32],
    ) {
        let side = self.side;
        let lines = scores.chunks_exact_mut(side);
        match self.positions {
            Positions::Decomposed([rows, columns]) => {
                let (by_row, by_column) = terms.split_at_mut(side);
                self.position_terms(query, rows, own_row, by_row);
                self.position_terms(query, columns, own_column, by_column);
                for (scores, &row_term) in lines.zip(by_row.iter()) {
                    for (score, &column_term) in scores.iter_mut().zip(by_column.iter()) {
                        *score = row_term + column_term;
                    }
                }
            }
            Positions::Biases(biases) => {
                for (row, scores) in lines.enumerate() {
                    let biases = &biases[own_row.abs_diff(row) * (2 * side - 1)..];
                    scores.copy_from_slice(&biases[side - 1 - own_column..][..side]);
                }
            }
        }
    }

    /// Writes to `terms` the products of a query with the relative positions of the keys' rows or
    /// columns, given the query's own row or column.
    #[inline(always)]
    fn position_terms(&self, query: &[f32], positions: &[f32], own: usize, terms: &mut [f32]) {
        let length = 2 * self.side - 1;
        terms.fill(0.0);
        for (table, &value) in positions.chunks_exact(length).zip(query) {
            for (term, position) in terms.iter_mut().zip(&table[self.side - 1 - own..]) {
                *term += value * position;
            }
        }
    }
}

impl BlockKernel for QueryKernel<'_> {
    #[inline(always)]
    fn block<S: Simd, const R: usize>(&mut self, simd: S, first: usize) {
        let width = panel_width::<S>();
        let (side, head_dim, padded) = (self.side, self.head_dim, self.padded);
        let count = side * side;
        let queries: [&[f32]; R] = std::array::from_fn(|row| self.queries[first + row]);

        let mut scores = std::mem::take(&mut self.scores);
        scores.resize(R * padded, 0.0);
        let mut terms = vec![0.0; 2 * side];
        for (row, query) in queries.iter().enumerate() {
            let scores = &mut scores[row * padded..][..count];
            self.position_scores(query, self.places[first + row], &mut terms, scores);
        }
        for (panel, keys) in self.keys.chunks_exact(width * head_dim).enumerate() {
            let start = |row: usize| row * padded + panel * width;
            let mut sums: [[S::f32s; VECTORS]; R] =
                std::array::from_fn(|row| load_full::<S>(&scores[start(row)..][..width]));
            multiply_add(simd, queries, keys, &mut sums);
            for (row, sums) in sums.iter().enumerate() {
                store(simd, sums, &mut scores[start(row)..][..width]);
            }
        }
        let mut factors = [0.0; R];
        for (row, factor) in factors.iter_mut().enumerate() {
            *factor = unnormalized_softmax(&mut scores[row * padded..][..count]);
        }
        let weights: [&[f32]; R] = std::array::from_fn(|row| &scores[row * padded..][..count]);
        for (panel, values) in self.values.chunks_exact(count * width).enumerate() {
            let mut sums = zeros::<S, R>(simd);
            multiply_add(simd, weights, values, &mut sums);
            let columns = panel * width..head_dim.min((panel + 1) * width);
            for (row, sums) in sums.iter().enumerate() {
                let factor = simd.splat_f32s(factors[row]);
                let sums = sums.map(|sum| simd.mul_f32s(sum, factor));
                let out = &mut self.out[(first + row) * head_dim..][columns.clone()];
                store(simd, &sums, out);
            }
        }
        self.scores = scores;
    }
}
