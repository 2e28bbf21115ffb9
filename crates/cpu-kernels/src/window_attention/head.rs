//! One head of one window, packed for the products of its queries with all keys.

use super::{Positions, Task, WindowAttention};
use crate::microkernel::{VECTORS, load_full, multiply_add, panel_width, store};
use pulp::Simd;

/// The query, the key and the value in the channels of a token.
pub const QUERY: usize = 0;
pub const KEY: usize = 1;
pub const VALUE: usize = 2;

/// What the scores of a task's queries are computed from.
pub struct Head<'a> {
    attention: &'a WindowAttention<'a>,
    task: &'a Task,
    /// Factor of the products of queries and keys.
    pub scale: f32,
    /// Row and column of each query in the window.
    pub places: Vec<[usize; 2]>,
    pub queries: Vec<&'a [f32]>,
    /// Panels of keys, times the scale: for each dimension of the head, the keys' values.
    keys: Vec<f32>,
    /// Relative positions, transposed, the most positive first, or the mirrored biases of the head.
    tables: [Vec<f32>; 2],
    /// Number of keys.
    pub count: usize,
    /// Number of keys, rounded up to whole panels.
    pub padded: usize,
}

impl<'a> Head<'a> {
    #[inline(always)]
    pub fn new<S: Simd>(attention: &'a WindowAttention<'a>, task: &'a Task) -> Self {
        let WindowAttention { side, head_dim, .. } = *attention;
        let count = side * side;
        let places: Vec<[usize; 2]> = attention.places(task).collect();
        let tables = match attention.positions {
            Positions::Decomposed(tables) => {
                tables.map(|table| transposed_reversed(table, head_dim))
            }
            Positions::Biases(biases) => {
                [mirrored(&biases[task.head * count..][..count], side), Vec::new()]
            }
        };
        let mut head = Self {
            attention,
            task,
            scale: 1.0 / (head_dim as f32).sqrt(),
            queries: Vec::with_capacity(places.len()),
            places,
            keys: Vec::new(),
            tables,
            count,
            padded: count.next_multiple_of(panel_width::<S>()),
        };
        head.queries.extend(head.places.iter().map(|&place| part(attention, task, place, QUERY)));
        head.keys = head.panels_along_keys::<S>(KEY, head.scale);
        head
    }

    pub fn side(&self) -> usize {
        self.attention.side
    }

    pub fn head_dim(&self) -> usize {
        self.attention.head_dim
    }

    /// Key or value at an index in the window.
    #[inline(always)]
    fn part(&self, index: usize, kind: usize) -> &'a [f32] {
        let side = self.attention.side;
        part(self.attention, self.task, [index / side, index % side], kind)
    }

    /// Panels of keys or values, times `scale`: for each dimension of the head, those of a panel's
    /// width of keys.
    #[inline(always)]
    pub fn panels_along_keys<S: Simd>(&self, kind: usize, scale: f32) -> Vec<f32> {
        let (width, head_dim) = (panel_width::<S>(), self.head_dim());
        let mut panels = vec![0.0; self.padded * head_dim];
        for index in 0..self.count {
            let panel = &mut panels[index / width * width * head_dim..][..width * head_dim];
            let packed = panel[index % width..].iter_mut().step_by(width);
            for (packed, &value) in packed.zip(self.part(index, kind)) {
                *packed = value * scale;
            }
        }
        panels
    }

    /// Panels of a panel's width of dimensions of the head, times `scale`: for each key, its values.
    #[inline(always)]
    pub fn panels_along_dimensions<S: Simd>(&self, kind: usize, scale: f32) -> Vec<f32> {
        let (width, count) = (panel_width::<S>(), self.count);
        let mut panels = vec![0.0; self.head_dim().div_ceil(width) * count * width];
        for index in 0..count {
            for (panel, values) in self.part(index, kind).chunks(width).enumerate() {
                let packed = &mut panels[(panel * count + index) * width..];
                for (packed, &value) in packed.iter_mut().zip(values) {
                    *packed = value * scale;
                }
            }
        }
        panels
    }

    /// Writes the scores of `R` queries against all keys to `scores`, `[R, padded]`. `terms` is
    /// scratch space of `2 s` values.
    #[inline(always)]
    pub fn scores<S: Simd, const R: usize>(
        &self,
        simd: S,
        first: usize,
        terms: &mut [f32],
        scores: &mut [f32],
    ) {
        let queries: [&[f32]; R] = std::array::from_fn(|row| self.queries[first + row]);
        for (row, query) in queries.iter().enumerate() {
            let scores = &mut scores[row * self.padded..][..self.count];
            self.position_scores(query, self.places[first + row], terms, scores);
        }
        self.add_products(simd, queries, &self.keys, scores);
    }

    /// Adds the products of `R` rows with all keys or values, in
    /// [`panels_along_keys`](Self::panels_along_keys), to `sums`, `[R, padded]`.
    #[inline(always)]
    pub fn add_products<S: Simd, const R: usize>(
        &self,
        simd: S,
        rows: [&[f32]; R],
        panels: &[f32],
        sums: &mut [f32],
    ) {
        let width = panel_width::<S>();
        for (panel, keys) in panels.chunks_exact(width * self.head_dim()).enumerate() {
            let start = |row: usize| row * self.padded + panel * width;
            let mut local: [[S::f32s; VECTORS]; R] =
                std::array::from_fn(|row| load_full::<S, VECTORS>(&sums[start(row)..][..width]));
            multiply_add(simd, rows, keys, &mut local);
            for (row, local) in local.iter().enumerate() {
                store(simd, local, &mut sums[start(row)..][..width]);
            }
        }
    }

    /// Writes the position terms of a query's scores, given its row and column in the window.
    #[inline(always)]
    fn position_scores(
        &self,
        query: &[f32],
        [own_row, own_column]: [usize; 2],
        terms: &mut [f32],
        scores: &mut [f32],
    ) {
        let side = self.side();
        let lines = scores.chunks_exact_mut(side);
        match self.attention.positions {
            Positions::Decomposed(_) => {
                let (by_row, by_column) = terms.split_at_mut(side);
                self.position_terms(query, &self.tables[0], own_row, by_row);
                self.position_terms(query, &self.tables[1], own_column, by_column);
                for (scores, &row_term) in lines.zip(by_row.iter()) {
                    for (score, &column_term) in scores.iter_mut().zip(by_column.iter()) {
                        *score = row_term + column_term;
                    }
                }
            }
            Positions::Biases(_) => {
                for (row, scores) in lines.enumerate() {
                    let biases = &self.tables[0][own_row.abs_diff(row) * (2 * side - 1)..];
                    scores.copy_from_slice(&biases[side - 1 - own_column..][..side]);
                }
            }
        }
    }

    /// Writes to `terms` the products of a query with the relative positions of the keys' rows or
    /// columns, given the query's own row or column.
    #[inline(always)]
    fn position_terms(&self, query: &[f32], table: &[f32], own: usize, terms: &mut [f32]) {
        let side = self.side();
        terms.fill(0.0);
        for (line, &value) in table.chunks_exact(2 * side - 1).zip(query) {
            for (term, position) in terms.iter_mut().zip(&line[side - 1 - own..]) {
                *term += value * position;
            }
        }
    }
}

/// The query, key or value of the task's head at a row and column of the window.
#[inline(always)]
fn part<'a>(
    attention: &'a WindowAttention<'a>,
    task: &Task,
    place: [usize; 2],
    kind: usize,
) -> &'a [f32] {
    &attention.token_qkv(task, place)[attention.offset(task.head, kind)..][..attention.head_dim]
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
