//! 3 x 3 convolution with stride 1 in fewer products (Winograd's algorithm F(2 x 2, 3 x 3), Lavin and
//! Gray, arXiv 1509.09308).
//!
//! The output is divided into tiles of 2 x 2 pixels. A tile depends on 4 x 4 pixels of the input;
//! with a linear transform of these and of the weight, 16 products for each pair of channels give a
//! tile instead of 36. The input's gradient is such a convolution as well, and the weight's gradient
//! sums the 16 products over the tiles before one inverse transform.
//!
//! No sum depends on the number of threads.

use crate::buffer;
use crate::microkernel::{
    BlockKernel, VECTORS, for_each_block, load, load_full, multiply_add, panel_vectors,
    panel_width, store, zeros,
};
use crate::outer_products::{TILE_ROWS, Tile, pack_tiles};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Values of a transformed tile.
const POSITIONS: usize = 16;
/// Channels of the input and of the output from which on the transforms cost less than they save.
pub const SMALLEST_CHANNELS: usize = 32;

/// Channels-last images that are convolved with zeros around them, and the tiles of the output.
#[derive(Debug, Clone, Copy)]
struct Tiling {
    /// Batch, rows, columns and channels of the input.
    input: [usize; 4],
    /// Rows and columns of the output.
    output: [usize; 2],
    padding: usize,
}

impl Tiling {
    fn new(input: [usize; 4], padding: usize) -> Self {
        let [_, rows, columns, _] = input;
        Self { input, output: [rows + 2 * padding - 2, columns + 2 * padding - 2], padding }
    }

    /// Number of tiles along the columns and along the rows of an image.
    fn tiles(&self) -> [usize; 2] {
        self.output.map(|size| size.div_ceil(2))
    }

    /// The four by four pixels of the input that a tile depends on: the first value of each, or
    /// `None` outside the image.
    #[inline(always)]
    fn pixels(&self, image: usize, tile_row: usize, tile_column: usize) -> [Option<usize>; 16] {
        let [_, rows, columns, channels] = self.input;
        std::array::from_fn(|i| {
            let row = (2 * tile_row + i / 4).checked_sub(self.padding)?;
            let column = (2 * tile_column + i % 4).checked_sub(self.padding)?;
            (row < rows && column < columns)
                .then(|| ((image * rows + row) * columns + column) * channels)
        })
    }
}

/// The transformed weight, `[panel of output channels, position, input channel, output channel]`.
struct TransformedWeight {
    channels_in: usize,
    channels_out: usize,
    values: Vec<f32>,
}

impl TransformedWeight {
    /// `weight` gives the nine taps of an input and an output channel.
    fn new(
        channels_in: usize,
        channels_out: usize,
        weight: impl Fn(usize, usize) -> [f32; 9] + Sync,
    ) -> Self {
        let (_, width) = panel_vectors(channels_out);
        let size = channels_in * width;
        let mut values = vec![0.0; channels_out.div_ceil(width) * POSITIONS * size];
        values.par_chunks_mut(POSITIONS * size).enumerate().for_each(|(panel, values)| {
            for channel_in in 0..channels_in {
                for lane in 0..width.min(channels_out - panel * width) {
                    let taps = weight(channel_in, panel * width + lane);
                    for (position, value) in weight_to_tile(taps).into_iter().enumerate() {
                        values[position * size + channel_in * width + lane] = value;
                    }
                }
            }
        });
        Self { channels_in, channels_out, values }
    }
}

/// `G g G^T`: a 3 x 3 kernel as 4 x 4 factors.
#[inline(always)]
fn weight_to_tile(taps: [f32; 9]) -> [f32; 16] {
    let line = |[a, b, c]: [f32; 3]| {
        let (even, odd) = (0.5 * (a + c), 0.5 * b);
        [a, even + odd, even - odd, c]
    };
    let rows: [[f32; 4]; 3] =
        std::array::from_fn(|row| line([taps[3 * row], taps[3 * row + 1], taps[3 * row + 2]]));
    let columns: [[f32; 4]; 4] =
        std::array::from_fn(|column| line([rows[0][column], rows[1][column], rows[2][column]]));
    std::array::from_fn(|i| columns[i % 4][i / 4])
}

/// `G^T u G`, the adjoint of [`weight_to_tile`].
#[inline(always)]
fn tile_to_weight(tile: [f32; 16]) -> [f32; 9] {
    let line = |[a, b, c, d]: [f32; 4]| [a + 0.5 * (b + c), 0.5 * (b - c), 0.5 * (b + c) + d];
    let rows: [[f32; 3]; 4] = std::array::from_fn(|row| {
        line([tile[4 * row], tile[4 * row + 1], tile[4 * row + 2], tile[4 * row + 3]])
    });
    let columns: [[f32; 3]; 3] = std::array::from_fn(|column| {
        line([rows[0][column], rows[1][column], rows[2][column], rows[3][column]])
    });
    std::array::from_fn(|i| columns[i % 3][i / 3])
}

/// `B^T d B`: the 4 x 4 pixels that a tile depends on.
#[inline(always)]
fn input_to_tile<S: Simd>(simd: S, pixels: &mut [S::f32s; 16]) {
    // Along each row, then along each column.
    for (first, step) in ROWS.into_iter().chain(COLUMNS) {
        let [a, b, c, d] = line(pixels, first, step);
        pixels[first] = simd.sub_f32s(a, c);
        pixels[first + step] = simd.add_f32s(b, c);
        pixels[first + 2 * step] = simd.sub_f32s(c, b);
        pixels[first + 3 * step] = simd.sub_f32s(b, d);
    }
}

/// First value of each row of a 4 x 4 tile, and the step to the next.
const ROWS: [(usize, usize); 4] = [(0, 1), (4, 1), (8, 1), (12, 1)];
/// First value of each column of a 4 x 4 tile, and the step to the next.
const COLUMNS: [(usize, usize); 4] = [(0, 4), (1, 4), (2, 4), (3, 4)];

/// A row or a column of a 4 x 4 tile.
#[inline(always)]
fn line<T: Copy>(tile: &[T; 16], first: usize, step: usize) -> [T; 4] {
    [tile[first], tile[first + step], tile[first + 2 * step], tile[first + 3 * step]]
}

/// `A^T m A`: the 2 x 2 pixels of a tile.
#[inline(always)]
fn tile_to_output<S: Simd>(simd: S, tile: &[S::f32s; 16]) -> [S::f32s; 4] {
    let mut rows = [simd.splat_f32s(0.0); 8];
    for row in 0..4 {
        let [a, b, c, d] = line(tile, 4 * row, 1);
        rows[row] = simd.add_f32s(simd.add_f32s(a, b), c);
        rows[4 + row] = simd.sub_f32s(simd.sub_f32s(b, c), d);
    }
    let [a, b, c, d, e, f, g, h] = rows;
    [
        simd.add_f32s(simd.add_f32s(a, b), c),
        simd.add_f32s(simd.add_f32s(e, f), g),
        simd.sub_f32s(simd.sub_f32s(b, c), d),
        simd.sub_f32s(simd.sub_f32s(f, g), h),
    ]
}

/// `A y A^T`, the adjoint of [`tile_to_output`].
#[inline(always)]
fn output_to_tile<S: Simd>(simd: S, [a, b, c, d]: [S::f32s; 4]) -> [S::f32s; 16] {
    let zero = simd.splat_f32s(0.0);
    let mut tile = [zero; 16];
    // The columns of the 4 x 2 intermediate result.
    let [sum_0, sum_1] = [simd.add_f32s(a, c), simd.add_f32s(b, d)];
    let [difference_0, difference_1] = [simd.sub_f32s(a, c), simd.sub_f32s(b, d)];
    let [negative_0, negative_1] = [simd.sub_f32s(zero, c), simd.sub_f32s(zero, d)];
    let left = [a, sum_0, difference_0, negative_0];
    let right = [b, sum_1, difference_1, negative_1];
    for row in 0..4 {
        tile[4 * row] = left[row];
        tile[4 * row + 1] = simd.add_f32s(left[row], right[row]);
        tile[4 * row + 2] = simd.sub_f32s(left[row], right[row]);
        tile[4 * row + 3] = simd.sub_f32s(zero, right[row]);
    }
    tile
}

/// The output of a convolution with `padding`. `weight` gives the nine taps of an input and an
/// output channel, row by row.
pub fn convolve(
    input: &[f32],
    shape: [usize; 4],
    padding: usize,
    channels_out: usize,
    weight: impl Fn(usize, usize) -> [f32; 9] + Sync,
) -> Vec<f32> {
    let tiling = Tiling::new(shape, padding);
    let [batch, _, _, channels_in] = shape;
    let weight = TransformedWeight::new(channels_in, channels_out, weight);
    let [rows, columns] = tiling.output;
    let [tile_rows, tile_columns] = tiling.tiles();
    let mut out = buffer::zeros(batch * rows * columns * channels_out);
    let batch_tiles = if channels_in + channels_out <= 256 { 32 } else { 64 };
    let task_rows = (batch_tiles / tile_columns).clamp(1, tile_rows);
    let row_size = columns * channels_out;
    let tasks: Vec<(usize, usize, &mut [f32])> = out
        .chunks_mut(rows * row_size)
        .enumerate()
        .flat_map(|(image, out)| {
            let tasks = out.chunks_mut(2 * task_rows * row_size).enumerate();
            tasks.map(move |(task, out)| (image, task * task_rows, out))
        })
        .collect();
    let arch = Arch::new();
    tasks.into_par_iter().for_each_init(Vec::new, |scratch, (image, first_row, out)| {
        arch.dispatch(TileRows {
            input,
            tiling: &tiling,
            weight: &weight,
            image,
            first_row,
            out,
            batch_tiles,
            scratch,
        });
    });
    out
}

/// Computes some rows of tiles of an image.
struct TileRows<'a> {
    input: &'a [f32],
    tiling: &'a Tiling,
    weight: &'a TransformedWeight,
    image: usize,
    first_row: usize,
    out: &'a mut [f32],
    batch_tiles: usize,
    scratch: &'a mut Vec<f32>,
}

impl WithSimd for TileRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = panel_width::<S>();
        let TransformedWeight { channels_in, channels_out, .. } = *self.weight;
        let padded_out = channels_out.next_multiple_of(width);
        let [_, columns] = self.tiling.output;
        let [_, tile_columns] = self.tiling.tiles();
        let rows = self.out.len() / (columns * channels_out);
        let tiles = rows.div_ceil(2) * tile_columns;
        let capacity = self.batch_tiles;
        self.scratch.resize(POSITIONS * capacity * (channels_in + padded_out), 0.0);
        let (transformed, products) = self.scratch.split_at_mut(POSITIONS * capacity * channels_in);
        for first in (0..tiles).step_by(capacity) {
            let count = capacity.min(tiles - first);
            for tile in 0..count {
                let (row, column) = ((first + tile) / tile_columns, (first + tile) % tile_columns);
                let pixels = self.tiling.pixels(self.image, self.first_row + row, column);
                let step = capacity * channels_in;
                let out = &mut transformed[tile * channels_in..];
                transform_input(simd, self.input, pixels, channels_in, step, out);
            }
            let panels = padded_out / width;
            for (position, panel) in (0..POSITIONS).flat_map(|i| (0..panels).map(move |p| (i, p))) {
                let first_channel = panel * width;
                let size = channels_in * width;
                let panel = &self.weight.values[(panel * POSITIONS + position) * size..][..size];
                let rows = &transformed[position * capacity * channels_in..];
                let out = &mut products[position * capacity * padded_out + first_channel..];
                let mut kernel = Products { rows, channels_in, panel, out, out_step: padded_out };
                for_each_block(simd, count, &mut kernel);
            }
            for tile in 0..count {
                let (row, column) = ((first + tile) / tile_columns, (first + tile) % tile_columns);
                let step = capacity * padded_out;
                let products = &products[tile * padded_out..];
                for channel in (0..channels_out).step_by(S::F32_LANES) {
                    let mut values = [simd.splat_f32s(0.0); POSITIONS];
                    for (position, value) in values.iter_mut().enumerate() {
                        [*value] = load_full::<S, 1>(&products[position * step + channel..]);
                    }
                    let end = channels_out.min(channel + S::F32_LANES);
                    for (i, value) in tile_to_output(simd, &values).into_iter().enumerate() {
                        let (row, column) = (2 * row + i / 2, 2 * column + i % 2);
                        if row < rows && column < columns {
                            let start = (row * columns + column) * channels_out;
                            store(simd, &[value], &mut self.out[start + channel..start + end]);
                        }
                    }
                }
            }
        }
    }
}

/// Transforms the pixels of a tile; the values of the positions are `step` apart in `out`.
#[inline(always)]
fn transform_input<S: Simd>(
    simd: S,
    input: &[f32],
    pixels: [Option<usize>; 16],
    channels: usize,
    step: usize,
    out: &mut [f32],
) {
    for channel in (0..channels).step_by(S::F32_LANES) {
        let end = channels.min(channel + S::F32_LANES);
        let mut values = [simd.splat_f32s(0.0); POSITIONS];
        for (value, pixel) in values.iter_mut().zip(pixels) {
            if let Some(start) = pixel {
                [*value] = load::<S, 1>(simd, &input[start + channel..start + end]);
            }
        }
        input_to_tile(simd, &mut values);
        for (position, value) in values.into_iter().enumerate() {
            store(simd, &[value], &mut out[position * step + channel..position * step + end]);
        }
    }
}

/// The products of transformed tiles with a panel of the transformed weight.
struct Products<'a> {
    rows: &'a [f32],
    channels_in: usize,
    panel: &'a [f32],
    out: &'a mut [f32],
    out_step: usize,
}

impl BlockKernel for Products<'_> {
    #[inline(always)]
    fn block<S: Simd, const R: usize>(&mut self, simd: S, first: usize) {
        let rows: [&[f32]; R] = std::array::from_fn(|row| {
            &self.rows[(first + row) * self.channels_in..][..self.channels_in]
        });
        let mut sums = zeros::<S, R, VECTORS>(simd);
        multiply_add(simd, rows, self.panel, &mut sums);
        for (row, sums) in sums.iter().enumerate() {
            let out = &mut self.out[(first + row) * self.out_step..][..panel_width::<S>()];
            store(simd, sums, out);
        }
    }
}

/// Channels of the input, and of the output, of a block of sums.
const BLOCK_CHANNELS: usize = 64;
/// Tiles that are transformed at once.
const CHUNK: usize = 60;
/// Number of tasks to aim at.
const TASKS: usize = 16;

/// The gradient of the weight, `[channels out, channels in, 3, 3]`, from that of the output.
pub fn weight_gradient(
    input: &[f32],
    shape: [usize; 4],
    padding: usize,
    gradient: &[f32],
    channels_out: usize,
) -> Vec<f32> {
    let tiling = Tiling::new(shape, padding);
    let [batch, _, _, channels_in] = shape;
    let [tile_rows, tile_columns] = tiling.tiles();
    let tiles = batch * tile_rows * tile_columns;
    let [blocks_in, blocks_out] =
        [channels_in, channels_out].map(|channels| channels.div_ceil(BLOCK_CHANNELS));
    let blocks = blocks_in * blocks_out;
    let parts = TASKS.div_ceil(blocks).min(tiles.div_ceil(CHUNK));
    let part_tiles = tiles.div_ceil(parts);
    let arch = Arch::new();
    let sums: Vec<Vec<f32>> = (0..blocks * parts)
        .into_par_iter()
        .map(|task| {
            let (block, part) = (task / parts, task % parts);
            let channels = |block: usize, count: usize| {
                block * BLOCK_CHANNELS..count.min((block + 1) * BLOCK_CHANNELS)
            };
            arch.dispatch(GradientBlock {
                input,
                gradient,
                tiling: &tiling,
                channels_out,
                rows: channels(block % blocks_in, channels_in),
                columns: channels(block / blocks_in, channels_out),
                tiles: part * part_tiles..tiles.min((part + 1) * part_tiles),
            })
        })
        .collect();
    let (_, width) = panel_vectors(channels_out);
    let mut out = vec![0.0; channels_out * channels_in * 9];
    out.par_chunks_mut(channels_in * 9).enumerate().for_each(|(channel_out, out)| {
        let (block_out, column) = (channel_out / BLOCK_CHANNELS, channel_out % BLOCK_CHANNELS);
        for (channel_in, out) in out.chunks_exact_mut(9).enumerate() {
            let (block_in, row) = (channel_in / BLOCK_CHANNELS, channel_in % BLOCK_CHANNELS);
            let block = block_out * blocks_in + block_in;
            let sums = &sums[block * parts..(block + 1) * parts];
            let tile = column / width * (BLOCK_CHANNELS / TILE_ROWS) + row / TILE_ROWS;
            let start = (tile * TILE_ROWS + row % TILE_ROWS) * width + column % width;
            let tile = std::array::from_fn(|position| {
                let start = position * BLOCK_CHANNELS * BLOCK_CHANNELS + start;
                sums.iter().map(|sums| sums[start]).sum()
            });
            out.copy_from_slice(&tile_to_weight(tile));
        }
    });
    out
}

/// A block of sums: some channels of the input with some of the output's gradient, over some tiles.
struct GradientBlock<'a> {
    input: &'a [f32],
    gradient: &'a [f32],
    tiling: &'a Tiling,
    channels_out: usize,
    rows: Range<usize>,
    columns: Range<usize>,
    tiles: Range<usize>,
}

impl WithSimd for GradientBlock<'_> {
    /// `[position, panel of columns, tile of rows, row, column]`.
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
        let width = panel_width::<S>();
        let (panels, row_tiles) = (BLOCK_CHANNELS / width, BLOCK_CHANNELS / TILE_ROWS);
        let mut sums = vec![0.0; POSITIONS * BLOCK_CHANNELS * BLOCK_CHANNELS];
        let mut transformed = vec![0.0; POSITIONS * BLOCK_CHANNELS];
        let mut values = vec![0.0; POSITIONS * BLOCK_CHANNELS * CHUNK];
        let mut gradients = vec![0.0; POSITIONS * BLOCK_CHANNELS * CHUNK];
        for first in self.tiles.clone().step_by(CHUNK) {
            let count = CHUNK.min(self.tiles.end - first);
            for tile in 0..count {
                self.transform_values(simd, first + tile, &mut transformed);
                pack_tiles(&transformed, tile, values.chunks_exact_mut(CHUNK * TILE_ROWS));
                self.pack_gradient(simd, first + tile, tile, &mut gradients);
            }
            for (i, tile) in sums.chunks_exact_mut(TILE_ROWS * width).enumerate() {
                let (panel, row_tile) = (i / row_tiles, i % row_tiles);
                if panel % panels * width >= self.columns.len()
                    || row_tile * TILE_ROWS >= self.rows.len()
                {
                    continue; // beyond the last channel
                }
                let row_tile = panel / panels * row_tiles + row_tile;
                let values = &values[row_tile * CHUNK * TILE_ROWS..];
                let gradients = &gradients[panel * CHUNK * width..][..count * width];
                for_each_block(simd, TILE_ROWS, &mut Tile::<VECTORS> { values, gradients, tile });
            }
        }
        sums
    }
}

impl GradientBlock<'_> {
    /// Image, row and column of a tile.
    #[inline(always)]
    fn position(&self, tile: usize) -> [usize; 3] {
        let [tile_rows, tile_columns] = self.tiling.tiles();
        let (row, column) = (tile / tile_columns, tile % tile_columns);
        [row / tile_rows, row % tile_rows, column]
    }

    /// Transforms the input under a tile: `[position, row]`.
    #[inline(always)]
    fn transform_values<S: Simd>(&self, simd: S, tile: usize, out: &mut [f32]) {
        let [image, row, column] = self.position(tile);
        let pixels = self.tiling.pixels(image, row, column);
        let pixels = pixels.map(|start| Some(start? + self.rows.start));
        transform_input(simd, self.input, pixels, self.rows.len(), BLOCK_CHANNELS, out);
    }

    /// Transforms the gradient of a tile and packs it as `[position, panel, tile, column]`.
    #[inline(always)]
    fn pack_gradient<S: Simd>(&self, simd: S, tile: usize, slot: usize, out: &mut [f32]) {
        let width = panel_width::<S>();
        let [image, row, column] = self.position(tile);
        let [rows, columns] = self.tiling.output;
        let pixels: [Option<usize>; 4] = std::array::from_fn(|i| {
            let (row, column) = (2 * row + i / 2, 2 * column + i % 2);
            (row < rows && column < columns)
                .then(|| ((image * rows + row) * columns + column) * self.channels_out)
        });
        let step = BLOCK_CHANNELS * CHUNK;
        for offset in (0..self.columns.len()).step_by(S::F32_LANES) {
            let channel = self.columns.start + offset;
            let end = self.columns.end.min(channel + S::F32_LANES);
            let mut values = [simd.splat_f32s(0.0); 4];
            for (value, pixel) in values.iter_mut().zip(pixels) {
                if let Some(start) = pixel {
                    [*value] = load::<S, 1>(simd, &self.gradient[start + channel..start + end]);
                }
            }
            let start = (offset / width * CHUNK + slot) * width + offset % width;
            for (position, value) in output_to_tile(simd, values).into_iter().enumerate() {
                store(simd, &[value], &mut out[position * step + start..][..S::F32_LANES]);
            }
        }
    }
}
