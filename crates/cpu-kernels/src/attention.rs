//! Attention within windows with decomposed relative positions, as SAM's image encoder has it, off the tape.
//!
//! A thread takes one head of one window at a time and some of its queries. It packs the keys and values, then for eight
//! queries computes the scores against all keys, their softmax and its product with the values, before it takes the next
//! eight: no more scores than these are ever in memory, and they stay in the cache.

use crate::elementwise::softmax_but_for_a_factor;
use crate::product::{
    Groups, VECTORS, in_groups, load_whole, multiply_add, panel_width, store, zeros,
};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Queries that a thread takes at a time, at most: each time it packs the keys and values anew.
const QUERIES_AT_ONCE: usize = 512;

/// `softmax(q k^T / sqrt(d) + q R_h + q R_w) v` for each head of each window.
#[derive(Debug, Clone, Copy)]
pub struct WindowAttention<'a> {
    /// Queries, keys and values, `[B, G, G, 3, heads, d]`.
    pub qkv: &'a [f32],
    /// Those of a token beyond the grid, which fills a window up, `[3, heads, d]`.
    pub padding: &'a [f32],
    /// Relative positions from a key's row to a query's, then from its column, `[2 s - 1, d]`, the most negative first.
    pub positions: [&'a [f32]; 2],
    /// Batch `B`.
    pub batch: usize,
    /// Side `G` of the grid of tokens.
    pub grid: usize,
    /// Side `s` of a window.
    pub side: usize,
    /// Number of heads.
    pub heads: usize,
    /// Width `d` of a head.
    pub head_dim: usize,
}

/// Some queries of a head of a window.
struct Task {
    image: usize,
    /// Row and column of the window's first token.
    origin: [usize; 2],
    head: usize,
    /// Of the window's tokens that lie on the grid.
    first: usize,
    count: usize,
}

impl WindowAttention<'_> {
    /// The attended values, `[B, G, G, heads, d]`.
    pub fn output(&self) -> Vec<f32> {
        let channels = self.heads * self.head_dim;
        let tokens = self.grid * self.grid;
        assert!(channels > 0 && tokens > 0 && self.side > 0, "{self:?}");
        assert_eq!(self.qkv.len(), self.batch * tokens * 3 * channels);
        assert_eq!(self.padding.len(), 3 * channels);
        for positions in self.positions {
            assert_eq!(positions.len(), (2 * self.side - 1) * self.head_dim);
        }
        let arch = Arch::new();
        let mut out = vec![0.0; self.batch * tokens * channels];
        let tasks = self.tasks();
        let found: Vec<Vec<f32>> = tasks
            .par_iter()
            .map(|task| {
                arch.dispatch(Head {
                    attention: self,
                    task,
                })
            })
            .collect();
        for (task, found) in tasks.iter().zip(&found) {
            let attended = found.chunks_exact(self.head_dim);
            for (token, attended) in self.tokens_of(task).zip(attended) {
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
                        for first in (0..rows * columns).step_by(QUERIES_AT_ONCE) {
                            tasks.push(Task {
                                image,
                                origin: [row, column],
                                head,
                                first,
                                count: QUERIES_AT_ONCE.min(rows * columns - first),
                            });
                        }
                    }
                }
            }
        }
        tasks
    }

    /// Rows and columns of a window that lie on the grid.
    fn extent(&self, origin: [usize; 2]) -> [usize; 2] {
        origin.map(|start| self.side.min(self.grid - start))
    }

    /// The queries' places in the window.
    fn places_of(&self, task: &Task) -> impl Iterator<Item = [usize; 2]> + use<> {
        let [_, columns] = self.extent(task.origin);
        (task.first..task.first + task.count).map(move |query| [query / columns, query % columns])
    }

    /// The queries' places on the grid.
    fn tokens_of(&self, task: &Task) -> impl Iterator<Item = usize> + use<> {
        let (origin, grid) = (task.origin, self.grid);
        self.places_of(task)
            .map(move |[row, column]| (origin[0] + row) * grid + origin[1] + column)
    }

    /// Queries, keys and values of all heads at a place in a window.
    fn token(&self, task: &Task, [row, column]: [usize; 2]) -> &[f32] {
        let [row, column] = [task.origin[0] + row, task.origin[1] + column];
        if row >= self.grid || column >= self.grid {
            return self.padding;
        }
        let token = (task.image * self.grid + row) * self.grid + column;
        &self.qkv[token * self.padding.len()..][..self.padding.len()]
    }
}

struct Head<'a> {
    attention: &'a WindowAttention<'a>,
    task: &'a Task,
}

impl WithSimd for Head<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
        let Self { attention, task } = self;
        let WindowAttention {
            side,
            heads,
            head_dim,
            ..
        } = *attention;
        let width = panel_width::<S>();
        let count = side * side;
        let part = |token: [usize; 2], part: usize| {
            let values = attention.token(task, token);
            &values[(part * heads + task.head) * head_dim..][..head_dim]
        };
        // Panels of keys, for each dimension of the head their values of it, times the scale of the scores.
        let scale = 1.0 / (head_dim as f32).sqrt();
        let padded = count.next_multiple_of(width);
        let mut keys = vec![0.0; padded * head_dim];
        // Panels of dimensions, for each key its values of them.
        let panels = head_dim.div_ceil(width);
        let mut values = vec![0.0; panels * count * width];
        for index in 0..count {
            let place = [index / side, index % side];
            let panel = &mut keys[index / width * width * head_dim..][..width * head_dim];
            for (packed, &value) in panel[index % width..]
                .iter_mut()
                .step_by(width)
                .zip(part(place, 1))
            {
                *packed = value * scale;
            }
            for (panel, value) in part(place, 2).chunks(width).enumerate() {
                values[(panel * count + index) * width..][..value.len()].copy_from_slice(value);
            }
        }
        let places: Vec<[usize; 2]> = attention.places_of(task).collect();
        let queries: Vec<&[f32]> = places.iter().map(|&place| part(place, 0)).collect();
        let transposed = attention
            .positions
            .map(|table| transposed_reversed(table, head_dim));
        let mut queries = Queries {
            side,
            head_dim,
            keys: &keys,
            values: &values,
            places: &places,
            queries: &queries,
            positions: transposed.each_ref().map(Vec::as_slice),
            padded,
            scores: Vec::new(),
            out: vec![0.0; task.count * head_dim],
        };
        in_groups(simd, task.count, &mut queries);
        queries.out
    }
}

/// `[L, d]` as `[d, L]`, the last row first.
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

struct Queries<'a> {
    side: usize,
    head_dim: usize,
    keys: &'a [f32],
    values: &'a [f32],
    places: &'a [[usize; 2]],
    queries: &'a [&'a [f32]],
    /// Relative positions, transposed, the most positive first.
    positions: [&'a [f32]; 2],
    /// Keys, filled up to whole panels.
    padded: usize,
    scores: Vec<f32>,
    out: Vec<f32>,
}

impl Queries<'_> {
    /// The products of a query with the relative positions of the keys' lines, its own being `line`, added up in `terms`.
    #[inline(always)]
    fn position_terms(&self, query: &[f32], axis: usize, line: usize, terms: &mut [f32]) {
        let length = 2 * self.side - 1;
        terms.fill(0.0);
        for (table, &value) in self.positions[axis].chunks_exact(length).zip(query) {
            for (term, position) in terms.iter_mut().zip(&table[self.side - 1 - line..]) {
                *term += value * position;
            }
        }
    }
}

impl Groups for Queries<'_> {
    #[inline(always)]
    fn group<S: Simd, const R: usize>(&mut self, simd: S, first: usize) {
        let width = panel_width::<S>();
        let (side, head_dim, padded) = (self.side, self.head_dim, self.padded);
        let count = side * side;
        let queries: [&[f32]; R] = std::array::from_fn(|row| self.queries[first + row]);

        let mut scores = std::mem::take(&mut self.scores);
        scores.resize(R * padded, 0.0);
        let mut terms = vec![0.0; 2 * side];
        for (row, query) in queries.iter().enumerate() {
            let [line, column] = self.places[first + row];
            let (by_row, by_column) = terms.split_at_mut(side);
            self.position_terms(query, 0, line, by_row);
            self.position_terms(query, 1, column, by_column);
            let scores = scores[row * padded..][..count].chunks_exact_mut(side);
            for (scores, &of_row) in scores.zip(by_row.iter()) {
                for (score, &of_column) in scores.iter_mut().zip(by_column.iter()) {
                    *score = of_row + of_column;
                }
            }
        }
        for (panel, keys) in self.keys.chunks_exact(width * head_dim).enumerate() {
            let start = |row: usize| row * padded + panel * width;
            let mut sums: [[S::f32s; VECTORS]; R] =
                std::array::from_fn(|row| load_whole::<S>(&scores[start(row)..][..width]));
            multiply_add(simd, queries, keys, &mut sums);
            for (row, sums) in sums.iter().enumerate() {
                store(simd, sums, &mut scores[start(row)..][..width]);
            }
        }
        let mut factors = [0.0; R];
        for (row, factor) in factors.iter_mut().enumerate() {
            *factor = softmax_but_for_a_factor(&mut scores[row * padded..][..count]);
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
