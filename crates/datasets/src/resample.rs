//! Resampling of slices to another size.
//!
//! Both grids are separable: along each axis an output pixel is a weighted sum of a few input
//! pixels. Cubic interpolation combines whole rows, transposes the array, and combines rows again,
//! so that the inner loops access memory in order.

use ndarray::{Array2, ArrayView2};
use serde::{Deserialize, Serialize};

/// The position of the output pixels on the input's grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grid {
    /// The centres of the corner pixels coincide: `scipy.ndimage.zoom`, with its spline prefilter
    /// and its constant border of zeros.
    CornerAligned,
    /// The outer edges of the corner pixels coincide: `torch.nn.functional.interpolate` with
    /// `align_corners=False`.
    HalfPixel,
}

/// The interpolation between pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interpolation {
    /// The nearest pixel: scipy's order 0, torch's `nearest-exact`. The only choice for labels.
    Nearest,
    /// The nearest two pixels along each axis: scipy's order 1, torch's `bilinear`.
    Linear,
    /// The nearest four pixels along each axis: with [`Grid::CornerAligned`] scipy's order 3, a
    /// B-spline through the pixels; with [`Grid::HalfPixel`] torch's `bicubic`, a cubic convolution
    /// with a = -0.75.
    Cubic,
}

/// A pixel's number type. Integers are rounded and clamped as in scipy. (Where a cubic
/// interpolation is halfway between two integers, its last bit decides, and scipy's result may
/// differ by 1.)
pub trait Pixel: Copy + Default + Send + Sync + sealed::Sealed {
    #[doc(hidden)]
    fn to_f64(self) -> f64;
    #[doc(hidden)]
    fn from_f64(value: f64) -> Self;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! pixels {
    ($($type:ty: $value:ident => $convert:expr),* $(,)?) => {
        $(
            impl sealed::Sealed for $type {}
            impl Pixel for $type {
                fn to_f64(self) -> f64 {
                    self.into()
                }
                fn from_f64($value: f64) -> Self {
                    $convert
                }
            }
        )*
    };
}
// Conversions saturate; halves round away from zero.
pixels!(
    f32: value => value as f32,
    f64: value => value,
    u8: value => (value + 0.5) as u8,
    u16: value => (value + 0.5) as u16,
    i16: value => value.round() as i16,
    i32: value => value.round() as i32,
);

/// Resamples a slice to `size` (rows, columns).
///
/// # Shapes
///
/// - input: `[rows, columns]`
/// - output: `size`
///
/// # Panics
///
/// If a side of the input or output is zero.
pub fn resample<T: Pixel>(
    pixels: ArrayView2<'_, T>,
    size: [usize; 2],
    interpolation: Interpolation,
    grid: Grid,
) -> Array2<T> {
    let (rows, columns) = pixels.dim();
    assert!(
        rows > 0 && columns > 0 && size[0] > 0 && size[1] > 0,
        "cannot resample from {rows} x {columns} to {} x {}: sides must be positive",
        size[0],
        size[1]
    );
    if [rows, columns] == size && grid == Grid::HalfPixel {
        return pixels.to_owned();
    }
    if interpolation == Interpolation::Nearest {
        let [from_row, from_column] =
            [(rows, size[0]), (columns, size[1])].map(|(from, to)| nearest_indices(from, to, grid));
        return Array2::from_shape_fn((size[0], size[1]), |(row, column)| {
            match (from_row[row], from_column[column]) {
                (Some(row), Some(column)) => pixels[(row, column)],
                _ => T::default(),
            }
        });
    }
    if interpolation == Interpolation::Linear {
        return linear(pixels, size, grid);
    }
    let matrix =
        Matrix { values: pixels.iter().map(|pixel| pixel.to_f64()).collect(), rows, columns };
    let resampled = matrix.cubic(size[0], grid).transposed().cubic(size[1], grid).transposed();
    let values = resampled.values.into_iter().map(T::from_f64).collect();
    Array2::from_shape_vec((size[0], size[1]), values).expect("rows x columns values")
}

/// Linear interpolation along both axes. The four neighbours are multiplied and added in scipy's
/// order, so that results halfway between two integers, where the last bit decides, round as in
/// scipy.
fn linear<T: Pixel>(pixels: ArrayView2<'_, T>, size: [usize; 2], grid: Grid) -> Array2<T> {
    let (rows, columns) = pixels.dim();
    let [by_row, by_column] =
        [(rows, size[0]), (columns, size[1])].map(|(from, to)| linear_taps(from, to, grid));
    Array2::from_shape_fn((size[0], size[1]), |(row, column)| {
        let (Some((top, row_weights)), Some((left, column_weights))) =
            (by_row[row], by_column[column])
        else {
            return T::default();
        };
        let mut sum = 0.0;
        for (row, row_weight) in top.into_iter().zip(row_weights) {
            for (column, column_weight) in left.into_iter().zip(column_weights) {
                sum += pixels[(row, column)].to_f64() * row_weight * column_weight;
            }
        }
        T::from_f64(sum)
    })
}

/// For each output pixel along an axis the two input indices around it and their weights, `None`
/// outside the input.
fn linear_taps(from: usize, to: usize, grid: Grid) -> Vec<Option<([usize; 2], [f64; 2])>> {
    (0..to)
        .map(|i| {
            let position = match grid {
                Grid::CornerAligned => corner_aligned(i, from, to)?,
                Grid::HalfPixel => f64::from(half_pixel(i, from, to).max(0.0)),
            };
            let start = position.floor();
            let t = position - start;
            let first = start as usize;
            Some(([first, (first + 1).min(from - 1)], [1.0 - t, t]))
        })
        .collect()
}

/// For each output pixel along an axis the nearest input index, `None` outside the input.
fn nearest_indices(from: usize, to: usize, grid: Grid) -> Vec<Option<usize>> {
    (0..to)
        .map(|i| match grid {
            Grid::CornerAligned => {
                let position = corner_aligned(i, from, to)?;
                Some((position + 0.5).floor() as usize)
            }
            Grid::HalfPixel => {
                // In single precision as in torch, so that ties round to the same side.
                let scale = from as f32 / to as f32;
                Some((((i as f32 + 0.5) * scale) as usize).min(from - 1))
            }
        })
        .collect()
}

/// Position of output pixel `i` on the input's grid; `None` where rounding puts it outside, which
/// scipy fills with zeros.
fn corner_aligned(i: usize, from: usize, to: usize) -> Option<f64> {
    let step = if to > 1 { (from - 1) as f64 / (to - 1) as f64 } else { 1.0 };
    let position = i as f64 * step;
    (position <= (from - 1) as f64).then_some(position)
}

/// Position of output pixel `i` on the input's grid, in single precision as in torch.
fn half_pixel(i: usize, from: usize, to: usize) -> f32 {
    let scale = from as f32 / to as f32;
    scale * (i as f32 + 0.5) - 0.5
}

/// The input indices of an output pixel and their weights; `None` outside the input.
type Taps = Option<([usize; 4], [f64; 4])>;

fn cubic_taps(from: usize, to: usize, grid: Grid) -> Vec<Taps> {
    let last = from as isize - 1;
    let clamped = |index: isize| index.clamp(0, last) as usize;
    // Mirrored about the centre of the last pixel.
    let mirrored = |index: isize| match last {
        0 => 0,
        _ => {
            let index = index.rem_euclid(2 * last);
            index.min(2 * last - index) as usize
        }
    };
    (0..to)
        .map(|i| match grid {
            Grid::CornerAligned => {
                let position = corner_aligned(i, from, to)?;
                let start = position.floor();
                let indices = [-1, 0, 1, 2].map(|step| mirrored(start as isize + step));
                Some((indices, b_spline(position - start)))
            }
            Grid::HalfPixel => {
                let position = half_pixel(i, from, to);
                let start = position.floor();
                let indices = [-1, 0, 1, 2].map(|step| clamped(start as isize + step));
                Some((indices, cubic_convolution(f64::from(position - start))))
            }
        })
        .collect()
}

/// Weights of the cubic B-spline at distances 1 + t, t, 1 - t and 2 - t.
fn b_spline(t: f64) -> [f64; 4] {
    let s = 1.0 - t;
    let near = |x: f64| (x * x * (x - 2.0) * 3.0 + 4.0) / 6.0;
    let (before, at, after) = (s * s * s / 6.0, near(t), near(s));
    [before, at, after, 1.0 - before - at - after]
}

/// Weights of the cubic convolution at distances 1 + t, t, 1 - t and 2 - t (Keys, *Cubic
/// convolution interpolation for digital image processing*, 1981, with a = -0.75).
fn cubic_convolution(t: f64) -> [f64; 4] {
    const A: f64 = -0.75;
    let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f64| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    [far(1.0 + t), near(t), near(1.0 - t), far(2.0 - t)]
}

/// A row-major matrix.
struct Matrix {
    values: Vec<f64>,
    rows: usize,
    columns: usize,
}

impl Matrix {
    /// Interpolates along the columns, to `to` rows.
    fn cubic(mut self, to: usize, grid: Grid) -> Self {
        if grid == Grid::CornerAligned {
            self.prefilter();
        }
        let columns = self.columns;
        let mut values = vec![0.0; to * columns];
        let taps = cubic_taps(self.rows, to, grid);
        for (out, taps) in values.chunks_exact_mut(columns).zip(taps) {
            let Some((indices, w)) = taps else { continue };
            let [a, b, c, d] = indices.map(|row| &self.values[row * columns..][..columns]);
            let inputs = a.iter().zip(b).zip(c).zip(d);
            for (out, (((a, b), c), d)) in out.iter_mut().zip(inputs) {
                *out = w[0] * a + w[1] * b + w[2] * c + w[3] * d;
            }
        }
        Self { values, rows: to, columns }
    }

    /// Replaces the values by the coefficients of the cubic B-spline through them, each column
    /// mirrored about its ends (Unser, Aldroubi and Eden, *B-spline signal processing*, IEEE Trans.
    /// Signal Process. 41 (1993)): a recursion down the rows and one up.
    fn prefilter(&mut self) {
        const POLE: f64 = -0.267_949_192_431_122_7; // sqrt(3) - 2
        const GAIN: f64 = 6.0; // (1 - pole) (1 - 1 / pole)
        let (rows, columns) = (self.rows, self.columns);
        if rows < 2 {
            return;
        }
        // The mirrored sum that starts the recursion down.
        let mirror_weight = POLE.powi(rows as i32 - 1);
        let mut first = vec![0.0; columns];
        let mut add = |row: usize, weight: f64| {
            let values = &self.values[row * columns..][..columns];
            first.iter_mut().zip(values).for_each(|(sum, value)| *sum += weight * value);
        };
        add(0, 1.0);
        add(rows - 1, mirror_weight);
        let mut weight = POLE;
        for row in 1..rows - 1 {
            add(row, weight);
            add(rows - 1 - row, weight * mirror_weight);
            weight *= POLE;
            // Further terms are below double precision.
            if weight.abs() < 1e-20 {
                break;
            }
        }
        let scale = GAIN / (1.0 - mirror_weight * mirror_weight);
        for (value, sum) in self.values.iter_mut().zip(first) {
            *value = sum * scale;
        }
        for row in 1..rows {
            let (above, here) = self.values.split_at_mut(row * columns);
            let above = &above[(row - 1) * columns..];
            for (value, above) in here[..columns].iter_mut().zip(above) {
                *value = GAIN * *value + POLE * above;
            }
        }
        let (above, last) = self.values.split_at_mut((rows - 1) * columns);
        for (value, above) in last.iter_mut().zip(&above[(rows - 2) * columns..]) {
            *value = (POLE * above + *value) * POLE / (POLE * POLE - 1.0);
        }
        for row in (0..rows - 1).rev() {
            let (here, below) = self.values.split_at_mut((row + 1) * columns);
            for (value, below) in here[row * columns..].iter_mut().zip(&below[..columns]) {
                *value = POLE * (below - *value);
            }
        }
    }

    fn transposed(self) -> Self {
        // A tile spans a few cache lines along both axes.
        const TILE: usize = 16;
        let (rows, columns) = (self.rows, self.columns);
        let mut values = vec![0.0; rows * columns];
        for row in (0..rows).step_by(TILE) {
            for column in (0..columns).step_by(TILE) {
                for r in row..(row + TILE).min(rows) {
                    for c in column..(column + TILE).min(columns) {
                        values[c * rows + r] = self.values[r * columns + c];
                    }
                }
            }
        }
        Self { values, rows: columns, columns: rows }
    }
}
