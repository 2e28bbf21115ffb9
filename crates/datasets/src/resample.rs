//! Slices at another size.
//!
//! Both grids are separable: along each axis an output pixel is a weighted sum of a few input pixels. For the cubic ones
//! rows are combined as wholes, the array is transposed, and rows are combined again, so that the inner loops run over
//! memory in order.

use ndarray::{Array2, ArrayView2};
use serde::{Deserialize, Serialize};

/// Where the pixels of the new size lie on those of the old.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grid {
    /// The centres of the corner pixels coincide: `scipy.ndimage.zoom`, with its spline prefilter and its constant
    /// border of zeros.
    CornerAligned,
    /// The outer edges of the corner pixels coincide: `torch.nn.functional.interpolate` with `align_corners=False`.
    HalfPixel,
}

/// How a pixel comes from its neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interpolation {
    /// The nearest alone: scipy's order 0, torch's `nearest-exact`. The only one for labels.
    Nearest,
    /// The nearest two along each axis: scipy's order 1, torch's `bilinear`.
    Linear,
    /// The nearest four: on corners scipy's order 3, a B-spline through the pixels; on half pixels torch's `bicubic`,
    /// a cubic convolution with a = -0.75.
    Cubic,
}

/// A number that pixels are made of. Integers are rounded and limited as scipy does. (Where a cubic lies halfway between
/// two integers, its last bit decides, and may decide otherwise than scipy's.)
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
// Conversions saturate; half rounds away from zero.
pixels!(
    f32: value => value as f32,
    f64: value => value,
    u8: value => (value + 0.5) as u8,
    u16: value => (value + 0.5) as u16,
    i16: value => value.round() as i16,
    i32: value => value.round() as i32,
);

/// Brings a slice to `size` (rows, columns).
///
/// # Shapes
///
/// `[rows, columns]` to `size`.
///
/// # Panics
///
/// If a side is zero, before or after.
pub fn resample<T: Pixel>(
    pixels: ArrayView2<'_, T>,
    size: [usize; 2],
    interpolation: Interpolation,
    grid: Grid,
) -> Array2<T> {
    let (rows, columns) = pixels.dim();
    assert!(
        rows > 0 && columns > 0 && size[0] > 0 && size[1] > 0,
        "sides must not be empty, found {rows} x {columns} to {} x {}",
        size[0],
        size[1]
    );
    if [rows, columns] == size && grid == Grid::HalfPixel {
        return pixels.to_owned();
    }
    if interpolation == Interpolation::Nearest {
        let [from_row, from_column] =
            [(rows, size[0]), (columns, size[1])].map(|(from, to)| nearest(from, to, grid));
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
    let values = Rows {
        values: pixels.iter().map(|pixel| pixel.to_f64()).collect(),
        count: rows,
        width: columns,
    };
    let resampled = values
        .cubic(size[0], grid)
        .transposed()
        .cubic(size[1], grid)
        .transposed();
    let values = resampled.values.into_iter().map(T::from_f64).collect();
    Array2::from_shape_vec((size[0], size[1]), values).expect("rows of one width")
}

/// The four neighbours are multiplied and added in scipy's order: halfway between two integers, where the last bit
/// decides, its integers come out.
fn linear<T: Pixel>(pixels: ArrayView2<'_, T>, size: [usize; 2], grid: Grid) -> Array2<T> {
    let (rows, columns) = pixels.dim();
    let [by_row, by_column] =
        [(rows, size[0]), (columns, size[1])].map(|(from, to)| neighbours(from, to, grid));
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

/// For each output place the two input places around it with their weights, or none outside.
fn neighbours(from: usize, to: usize, grid: Grid) -> Vec<Option<([usize; 2], [f64; 2])>> {
    (0..to)
        .map(|i| {
            let place = match grid {
                Grid::CornerAligned => corner_aligned(i, from, to)?,
                Grid::HalfPixel => f64::from(half_pixel(i, from, to).max(0.0)),
            };
            let start = place.floor();
            let t = place - start;
            let first = start as usize;
            Some(([first, (first + 1).min(from - 1)], [1.0 - t, t]))
        })
        .collect()
}

/// For each output place its nearest input place, or none outside.
fn nearest(from: usize, to: usize, grid: Grid) -> Vec<Option<usize>> {
    (0..to)
        .map(|i| match grid {
            Grid::CornerAligned => {
                let place = corner_aligned(i, from, to)?;
                Some((place + 0.5).floor() as usize)
            }
            Grid::HalfPixel => {
                // In single precision, as torch, so that ties fall to the same side.
                let scale = from as f32 / to as f32;
                Some((((i as f32 + 0.5) * scale) as usize).min(from - 1))
            }
        })
        .collect()
}

/// Place of output `i` among the inputs; none where rounding puts it outside, which scipy fills with zeros.
fn corner_aligned(i: usize, from: usize, to: usize) -> Option<f64> {
    let step = if to > 1 {
        (from - 1) as f64 / (to - 1) as f64
    } else {
        1.0
    };
    let place = i as f64 * step;
    (place <= (from - 1) as f64).then_some(place)
}

/// Place of output `i` among the inputs, in single precision, as torch.
fn half_pixel(i: usize, from: usize, to: usize) -> f32 {
    let scale = from as f32 / to as f32;
    scale * (i as f32 + 0.5) - 0.5
}

/// The input places that an output place is made of, with their weights; none outside.
type Taps = Option<([usize; 4], [f64; 4])>;

fn cubic_taps(from: usize, to: usize, grid: Grid) -> Vec<Taps> {
    let last = from as isize - 1;
    let clamped = |place: isize| place.clamp(0, last) as usize;
    // Mirrored about the centre of the last pixel.
    let mirrored = |place: isize| match last {
        0 => 0,
        _ => {
            let place = place.rem_euclid(2 * last);
            place.min(2 * last - place) as usize
        }
    };
    (0..to)
        .map(|i| match grid {
            Grid::CornerAligned => {
                let place = corner_aligned(i, from, to)?;
                let start = place.floor();
                let places = [-1, 0, 1, 2].map(|step| mirrored(start as isize + step));
                Some((places, b_spline(place - start)))
            }
            Grid::HalfPixel => {
                let place = half_pixel(i, from, to);
                let start = place.floor();
                let places = [-1, 0, 1, 2].map(|step| clamped(start as isize + step));
                Some((places, cubic_convolution(f64::from(place - start))))
            }
        })
        .collect()
}

/// The cubic B-spline at distances 1 + t, t, 1 - t and 2 - t.
fn b_spline(t: f64) -> [f64; 4] {
    let s = 1.0 - t;
    let near = |x: f64| (x * x * (x - 2.0) * 3.0 + 4.0) / 6.0;
    let (before, at, after) = (s * s * s / 6.0, near(t), near(s));
    [before, at, after, 1.0 - before - at - after]
}

/// Keys, *Cubic convolution interpolation for digital image processing*, 1981, with a = -0.75.
fn cubic_convolution(t: f64) -> [f64; 4] {
    const A: f64 = -0.75;
    let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f64| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    [far(1.0 + t), near(t), near(1.0 - t), far(2.0 - t)]
}

/// An array by rows.
struct Rows {
    values: Vec<f64>,
    count: usize,
    width: usize,
}

impl Rows {
    fn cubic(mut self, to: usize, grid: Grid) -> Self {
        if grid == Grid::CornerAligned {
            self.prefilter();
        }
        let mut values = vec![0.0; to * self.width];
        let taps = cubic_taps(self.count, to, grid);
        for (out, taps) in values.chunks_exact_mut(self.width).zip(taps) {
            let Some((places, w)) = taps else { continue };
            let [a, b, c, d] = places.map(|place| &self.values[place * self.width..][..self.width]);
            let inputs = a.iter().zip(b).zip(c).zip(d);
            for (out, (((a, b), c), d)) in out.iter_mut().zip(inputs) {
                *out = w[0] * a + w[1] * b + w[2] * c + w[3] * d;
            }
        }
        Self {
            values,
            count: to,
            width: self.width,
        }
    }

    /// From values to the coefficients of the cubic B-spline through them, each column mirrored about its ends (Unser,
    /// Aldroubi and Eden, *B-spline signal processing*, IEEE Trans. Signal Process. 41 (1993)): a recursion down the
    /// rows and one up.
    fn prefilter(&mut self) {
        const POLE: f64 = -0.267_949_192_431_122_7; // sqrt(3) - 2
        const GAIN: f64 = 6.0; // (1 - pole) (1 - 1 / pole)
        let (count, width) = (self.count, self.width);
        if count < 2 {
            return;
        }
        // The mirrored sum that starts the recursion down.
        let around = POLE.powi(count as i32 - 1);
        let mut first = vec![0.0; width];
        let mut add = |row: usize, weight: f64| {
            let values = &self.values[row * width..][..width];
            first
                .iter_mut()
                .zip(values)
                .for_each(|(sum, value)| *sum += weight * value);
        };
        add(0, 1.0);
        add(count - 1, around);
        let mut weight = POLE;
        for row in 1..count - 1 {
            add(row, weight);
            add(count - 1 - row, weight * around);
            weight *= POLE;
            // Beyond what a sum of doubles can show.
            if weight.abs() < 1e-20 {
                break;
            }
        }
        let scale = GAIN / (1.0 - around * around);
        for (value, sum) in self.values.iter_mut().zip(first) {
            *value = sum * scale;
        }
        for row in 1..count {
            let (above, here) = self.values.split_at_mut(row * width);
            let above = &above[(row - 1) * width..];
            for (value, above) in here[..width].iter_mut().zip(above) {
                *value = GAIN * *value + POLE * above;
            }
        }
        let (above, last) = self.values.split_at_mut((count - 1) * width);
        for (value, above) in last.iter_mut().zip(&above[(count - 2) * width..]) {
            *value = (POLE * above + *value) * POLE / (POLE * POLE - 1.0);
        }
        for row in (0..count - 1).rev() {
            let (here, below) = self.values.split_at_mut((row + 1) * width);
            for (value, below) in here[row * width..].iter_mut().zip(&below[..width]) {
                *value = POLE * (below - *value);
            }
        }
    }

    fn transposed(self) -> Self {
        // Tiles of a few cache lines each way.
        const TILE: usize = 16;
        let (count, width) = (self.count, self.width);
        let mut values = vec![0.0; count * width];
        for row in (0..count).step_by(TILE) {
            for column in (0..width).step_by(TILE) {
                for r in row..(row + TILE).min(count) {
                    for c in column..(column + TILE).min(width) {
                        values[c * count + r] = self.values[r * width + c];
                    }
                }
            }
        }
        Self {
            values,
            count: width,
            width: count,
        }
    }
}
