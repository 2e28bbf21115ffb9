//! Sums of outer products, the gradient of a weight: over all pixels, each of the values that a
//! pixel's output was computed from, times each channel of the output's gradient.
//!
//! The sums are divided into blocks that stay in a core's cache. For some pixels at a time, the
//! values are packed in the order of their use, so that no stride between them wastes the cache.
//!
//! No sum depends on the number of threads.

use crate::microkernel::{
    BlockKernel, VECTORS, add_outer_products, for_each_block, load, load_full, panel_vectors,
    store, zeros,
};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Pixels whose values are packed at once. With a power of two, the tiles would be a power of two
/// apart, and compete for the same lines of the cache.
const CHUNK: usize = 120;
/// Rows of a tile of sums.
pub const TILE_ROWS: usize = 8;
/// Largest number of rows of a block of sums.
const BLOCK_ROWS: usize = 512;
/// Largest number of columns of a block of sums.
const BLOCK_COLUMNS: usize = 256;
/// Number of tasks to aim at. Where there are fewer blocks, the pixels are divided into parts, each
/// with sums of its own.
const TASKS: usize = 16;

/// The values that outer products are computed from: for each pixel, a number of rows.
pub trait PixelValues: Sync {
    /// Appends the values of these rows of a pixel in slices, each with its first row, counted from
    /// the start of `rows`. Rows in none of the slices are zero.
    fn push_slices<'a>(
        &'a self,
        pixel: usize,
        rows: Range<usize>,
        slices: &mut Vec<(usize, &'a [f32])>,
    );
}

/// Sums of outer products in blocks.
pub struct OuterProducts {
    columns: usize,
    plan: Plan,
    /// For each block, row by row of blocks, the tiles of each part.
    blocks: Vec<Vec<Vec<f32>>>,
}

/// How the sums are divided.
#[derive(Clone, Copy)]
struct Plan {
    pixels: usize,
    rows: usize,
    /// Rows of a block, whole tiles.
    block_rows: usize,
    column_blocks: usize,
    /// Columns of a block, whole panels.
    block_columns: usize,
    /// Columns of a panel.
    width: usize,
    /// Pixels of a part, whole chunks.
    part_pixels: usize,
}

impl OuterProducts {
    /// The sums over all pixels of a gradient, `[pixels, columns]`, and of as many pixels of
    /// `values`.
    pub fn new(values: &impl PixelValues, rows: usize, gradient: &[f32], columns: usize) -> Self {
        let pixels = gradient.len() / columns;
        assert_eq!(gradient.len(), pixels * columns, "whole pixels of the gradient");
        let arch = Arch::new();
        let (vectors, width) = panel_vectors(columns);
        let balanced = |count: usize, largest: usize, unit: usize| {
            count.div_ceil(count.div_ceil(largest)).next_multiple_of(unit)
        };
        let block_rows = balanced(rows, BLOCK_ROWS, TILE_ROWS);
        let block_columns = balanced(columns, BLOCK_COLUMNS, width);
        let [row_blocks, column_blocks] =
            [rows.div_ceil(block_rows), columns.div_ceil(block_columns)];
        let parts = TASKS.div_ceil(row_blocks * column_blocks);
        let part_pixels = pixels.div_ceil(parts).next_multiple_of(CHUNK);
        let plan =
            Plan { pixels, rows, block_rows, column_blocks, block_columns, width, part_pixels };
        let parts = pixels.div_ceil(part_pixels);
        let tiles: Vec<Vec<f32>> = (0..row_blocks * column_blocks * parts)
            .into_par_iter()
            .map(|task| {
                let block = Block {
                    values,
                    gradient,
                    columns,
                    plan,
                    block: task / parts,
                    part: task % parts,
                };
                if vectors == 1 {
                    arch.dispatch(Panels::<_, 1>(block))
                } else {
                    arch.dispatch(Panels::<_, VECTORS>(block))
                }
            })
            .collect();
        let mut tiles = tiles.into_iter();
        let blocks =
            (0..row_blocks * column_blocks).map(|_| tiles.by_ref().take(parts).collect()).collect();
        Self { columns, plan, blocks }
    }

    /// The sums as a matrix, `[rows, columns]`.
    pub fn to_matrix(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.plan.rows * self.columns];
        out.par_chunks_mut(TILE_ROWS * self.columns).enumerate().for_each(|(tile, out)| {
            for (row, out) in out.chunks_exact_mut(self.columns).enumerate() {
                for (panel, out) in out.chunks_mut(self.plan.width).enumerate() {
                    self.add_sums(tile * TILE_ROWS + row, panel, out);
                }
            }
        });
        out
    }

    /// The sums with the columns first and the rows in another order, `[columns, rows]`: row
    /// `inner * outer_count + outer` of the result is row `outer * inner_count + inner` here.
    pub fn to_transposed(&self, outer_count: usize) -> Vec<f32> {
        let Plan { rows, width, .. } = self.plan;
        let inner_count = rows / outer_count;
        let mut out = vec![0.0; rows * self.columns];
        out.par_chunks_mut(width * rows).enumerate().for_each(|(panel, out)| {
            let mut sums = vec![0.0; width];
            for inner in 0..inner_count {
                for outer in 0..outer_count {
                    sums.fill(0.0);
                    self.add_sums(outer * inner_count + inner, panel, &mut sums);
                    let to = out[inner * outer_count + outer..].iter_mut().step_by(rows);
                    for (to, &sum) in to.zip(&sums) {
                        *to = sum;
                    }
                }
            }
        });
        out
    }

    /// Adds the sums of a row and of a panel of columns.
    fn add_sums(&self, row: usize, panel: usize, out: &mut [f32]) {
        let Plan { block_rows, column_blocks, block_columns, width, .. } = self.plan;
        let block_panels = block_columns / width;
        let block = row / block_rows * column_blocks + panel / block_panels;
        let (row, panel) = (row % block_rows, panel % block_panels);
        let tile = panel * (block_rows / TILE_ROWS) + row / TILE_ROWS;
        let start = (tile * TILE_ROWS + row % TILE_ROWS) * width;
        for part in &self.blocks[block] {
            for (out, &sum) in out.iter_mut().zip(&part[start..]) {
                *out += sum;
            }
        }
    }
}

/// A block of sums over a part of the pixels.
#[derive(Clone, Copy)]
struct Block<'a, P> {
    values: &'a P,
    gradient: &'a [f32],
    columns: usize,
    plan: Plan,
    block: usize,
    part: usize,
}

/// Computes a block in panels of this number of vectors.
struct Panels<'a, P, const V: usize>(Block<'a, P>);

impl<P: PixelValues, const V: usize> WithSimd for Panels<'_, P, V> {
    /// Tiles `[panel of columns, tile of rows, row, column]`.
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
        let Self(block) = self;
        let Plan { pixels, rows, block_rows, column_blocks, block_columns, width, part_pixels } =
            block.plan;
        let first_row = block.block / column_blocks * block_rows;
        let first_column = block.block % column_blocks * block_columns;
        let rows = first_row..rows.min(first_row + block_rows);
        let columns = first_column..block.columns.min(first_column + block_columns);
        let end = pixels.min((block.part + 1) * part_pixels);
        let mut sums = vec![0.0; block_rows * block_columns];
        let mut values = vec![0.0; block_rows * CHUNK];
        let mut gradients = vec![0.0; CHUNK * block_columns];
        let mut slices = Vec::new();
        let mut gathered = vec![0.0; block_rows];
        for first in (block.part * part_pixels..end).step_by(CHUNK) {
            let count = CHUNK.min(end - first);
            for pixel in 0..count {
                slices.clear();
                block.values.push_slices(first + pixel, rows.clone(), &mut slices);
                pack_values(&slices, rows.len(), pixel, &mut gathered, &mut values);
                let gradient = &block.gradient[(first + pixel) * block.columns..][columns.clone()];
                let panels = gradients.chunks_exact_mut(CHUNK * width);
                for (columns, panel) in gradient.chunks(width).zip(panels) {
                    store(simd, &load::<S, V>(simd, columns), &mut panel[pixel * width..][..width]);
                }
            }
            let tiles = sums.chunks_exact_mut(TILE_ROWS * width);
            let gradients = gradients.chunks_exact(CHUNK * width);
            let pairs = gradients.flat_map(|gradients| {
                values.chunks_exact(CHUNK * TILE_ROWS).map(move |values| (gradients, values))
            });
            for (tile, (gradients, values)) in tiles.zip(pairs) {
                let gradients = &gradients[..count * width];
                for_each_block(simd, TILE_ROWS, &mut Tile::<V> { values, gradients, tile });
            }
        }
        sums
    }
}

/// Packs the values of a pixel's rows as `[tile, pixel, row]`. `gathered` is overwritten.
#[inline(always)]
fn pack_values(
    slices: &[(usize, &[f32])],
    rows: usize,
    pixel: usize,
    gathered: &mut [f32],
    out: &mut [f32],
) {
    const TILE: usize = CHUNK * TILE_ROWS;
    let is_whole_tiles =
        |&(row, slice): &(usize, &[f32])| (row | slice.len()).is_multiple_of(TILE_ROWS);
    let count: usize = slices.iter().map(|(_, slice)| slice.len()).sum();
    if count == rows && slices.iter().all(is_whole_tiles) {
        for &(row, slice) in slices {
            pack_tiles(slice, pixel, out.chunks_exact_mut(TILE).skip(row / TILE_ROWS));
        }
        return;
    }
    gathered.fill(0.0);
    for &(row, slice) in slices {
        gathered[row..row + slice.len()].copy_from_slice(slice);
    }
    pack_tiles(gathered, pixel, out.chunks_exact_mut(TILE));
}

/// Packs a pixel's values in whole tiles, each `[pixel, row]`.
#[inline(always)]
pub fn pack_tiles<'a>(values: &[f32], pixel: usize, tiles: impl Iterator<Item = &'a mut [f32]>) {
    for (tile, values) in tiles.zip(values.as_chunks::<TILE_ROWS>().0) {
        let (pixels, _) = tile.as_chunks_mut::<TILE_ROWS>();
        pixels[pixel] = *values;
    }
}

/// Adds the outer products of some pixels to a tile of sums, `[rows, width]`.
pub struct Tile<'a, const V: usize> {
    /// `[pixels, rows]`
    pub values: &'a [f32],
    /// `[pixels, width]`
    pub gradients: &'a [f32],
    /// The sums so far.
    pub tile: &'a mut [f32],
}

impl<const V: usize> BlockKernel for Tile<'_, V> {
    #[inline(always)]
    fn block<S: Simd, const R: usize>(&mut self, simd: S, first: usize) {
        let width = V * S::F32_LANES;
        let tile = &mut self.tile[first * width..];
        let mut sums = zeros::<S, R, V>(simd);
        for (sums, tile) in sums.iter_mut().zip(tile.chunks_exact(width)) {
            *sums = load_full::<S, V>(tile);
        }
        let columns = self.gradients.chunks_exact(width).map(load_full::<S, V>);
        add_outer_products(simd, &self.values[first..], TILE_ROWS, columns, &mut sums);
        for (sums, tile) in sums.iter().zip(tile.chunks_exact_mut(width)) {
            store(simd, sums, tile);
        }
    }
}
