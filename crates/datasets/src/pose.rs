//! Small changes of position that keep a slice upright.

use crate::random::next_below;
use ndarray::{Array2, ArrayView2};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A small affine transformation: a rotation about the centre, a scaling, and a shift, in this order.
///
/// Positions are relative to the sides of the slice, so the same pose moves a slice and the features
/// that a network computed from it, whatever the sizes of their grids. A slice that is not square is
/// moved as if it had been resampled to a square.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "PoseValues", into = "PoseValues")]
pub struct Pose {
    degrees: i8,
    scale_percent: u8,
    /// Down and to the right.
    shift_percent: [i8; 2],
}

/// The values of a [`Pose`] that may be out of range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoseValues {
    /// Degrees by which the content turns from the rows' axis to the columns' axis, at most
    /// [`Pose::MAX_DEGREES`] in both directions.
    pub degrees: i8,
    /// Size of the content afterwards, in percent, in [`Pose::SCALE_PERCENT`].
    pub scale_percent: u8,
    /// Shift of the content along rows and columns, in percent of the slice's side, at most
    /// [`Pose::MAX_SHIFT_PERCENT`] in both directions.
    pub shift_percent: [i8; 2],
}

/// A pose out of range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid pose {found:?}; expected at most 15 degrees, a scale of 80 to 125 percent, and shifts of \
     at most 10 percent"
)]
pub struct PoseError {
    /// The invalid values.
    pub found: PoseValues,
}

/// What a pixel beyond the edge is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outside {
    Zero,
    Edge,
}

/// Four pixels and their weights in the interpolation of one pixel.
type Corners = [(usize, f32); 4];

impl Pose {
    /// Largest rotation in degrees.
    pub const MAX_DEGREES: i8 = 15;
    /// Smallest and largest scale in percent.
    pub const SCALE_PERCENT: [u8; 2] = [80, 125];
    /// Poses of [`at_inference`](Self::at_inference).
    pub const MAX_AT_INFERENCE: usize = 8;
    /// Largest shift in percent of the slice's side.
    pub const MAX_SHIFT_PERCENT: i8 = 10;

    /// The first `count` of eight small poses in which a trained network may see a slice besides the
    /// slice as it is: pairs that turn, scale and shift in opposite directions.
    ///
    /// # Panics
    ///
    /// If `count` is more than [`MAX_AT_INFERENCE`](Self::MAX_AT_INFERENCE).
    pub fn at_inference(count: usize) -> Vec<Self> {
        assert!(count <= Self::MAX_AT_INFERENCE, "at most eight poses");
        let pose =
            |degrees, scale_percent, shift_percent| Self { degrees, scale_percent, shift_percent };
        let poses = [
            pose(5, 106, [0, 0]),
            pose(-5, 94, [0, 0]),
            pose(5, 94, [0, 0]),
            pose(-5, 106, [0, 0]),
            pose(0, 112, [2, 0]),
            pose(0, 90, [-2, 0]),
            pose(10, 100, [0, 2]),
            pose(-10, 100, [0, -2]),
        ];
        poses[..count].to_vec()
    }

    /// Samples a pose. Each value is equally probable, of the scales their logarithm.
    pub(crate) fn draw(generator: &mut ChaCha8Rng) -> Self {
        let mut up_to = |limit: i8| {
            let count = 2 * i64::from(limit) + 1;
            (next_below(generator, count as u64) as i64 - i64::from(limit)) as i8
        };
        let degrees = up_to(Self::MAX_DEGREES);
        let shift_percent = [(); 2].map(|()| up_to(Self::MAX_SHIFT_PERCENT));
        let [smallest, largest] = Self::SCALE_PERCENT.map(f64::from);
        let share = f64::from(up_to(100)) / 200.0 + 0.5;
        let scale_percent = (smallest * (largest / smallest).powf(share)).round() as u8;
        Self { degrees, scale_percent, shift_percent }
    }

    /// Moves an image: bilinear interpolation, zero outside the slice.
    ///
    /// # Shapes
    ///
    /// - input, output: `[rows, columns]`
    pub fn image(self, pixels: ArrayView2<'_, f32>) -> Array2<f32> {
        let pixels = pixels.as_standard_layout();
        let values = pixels.as_slice().expect("in standard layout");
        let (rows, columns) = pixels.dim();
        let sources = self.sources([rows, columns]);
        let corners = corners(&sources, [rows, columns], Outside::Zero);
        let moved = corners.map(|corners| interpolate(values, &corners)).collect();
        Array2::from_shape_vec((rows, columns), moved).expect("a value for each pixel")
    }

    /// Moves labels: the nearest neighbour, zero outside the slice.
    ///
    /// # Shapes
    ///
    /// - input, output: `[rows, columns]`
    pub fn nearest<T: Copy + Default>(self, pixels: ArrayView2<'_, T>) -> Array2<T> {
        let (rows, columns) = pixels.dim();
        let sources = self.sources([rows, columns]);
        let inside = |position: f64, side: usize| {
            let index = (position + 0.5).floor();
            (0.0..side as f64).contains(&index).then_some(index as usize)
        };
        Array2::from_shape_fn((rows, columns), |(row, column)| {
            let [row, column] = sources.of(row, column);
            match (inside(row, rows), inside(column, columns)) {
                (Some(row), Some(column)) => pixels[(row, column)],
                _ => T::default(),
            }
        })
    }

    /// Moves back what a network computed from a moved slice, so that it lies on the slice as it was:
    /// bilinear interpolation, zero where the slice was moved out of the picture.
    ///
    /// # Shapes
    ///
    /// - values: `[C, rows, columns]`, where `sides` is `[rows, columns]`
    ///
    /// # Panics
    ///
    /// If there are not as many values as such a number of channels has.
    pub fn move_back(self, values: &mut [f32], sides: [usize; 2]) {
        let sources = self.sources(sides).inverse();
        move_channels(values, corners(&sources, sides, Outside::Zero).enumerate());
    }

    /// Moves features that a network computed from a slice, as [`image`](Self::image) moves the
    /// slice. Beyond the edge, features are those at the edge.
    ///
    /// A pixel of the grid may hold the features of a square of `packed` x `packed` pixels, as
    /// PyTorch's `pixel_unshuffle` arranges them: `C` channels on a grid of `G packed` x `G packed`.
    ///
    /// # Shapes
    ///
    /// - features: `[C packed packed, G, G]`, where `G` is `grid`
    ///
    /// # Panics
    ///
    /// If there are not as many values as such a number of channels has.
    pub fn move_features(self, features: &mut [f32], grid: usize, packed: usize) {
        let side = grid * packed;
        let index = |index: usize| {
            let [row, column] = [index / side, index % side];
            let within = (row % packed) * packed + column % packed;
            (within * grid + row / packed) * grid + column / packed
        };
        let sources = self.sources([side, side]);
        let corners = corners(&sources, [side, side], Outside::Edge).enumerate();
        let packed = corners.map(|(pixel, corners)| {
            (index(pixel), corners.map(|(pixel, weight)| (index(pixel), weight)))
        });
        move_channels(features, packed);
    }

    /// Where the content of each pixel comes from.
    fn sources(self, sides: [usize; 2]) -> Sources {
        let scale = f64::from(self.scale_percent) / 100.0;
        let (sin, cos) = f64::from(self.degrees).to_radians().sin_cos();
        let [rows, columns] = sides.map(|side| side as f64);
        let axis = |[down, right]: [f64; 2], side: f64| {
            let step = [down / scale / rows, right / scale / columns].map(|step| step * side);
            // From the centre of the first pixel, in sides of the slice.
            let first = [0.5 / rows, 0.5 / columns];
            let from_centre =
                [0, 1].map(|axis| first[axis] - 0.5 - f64::from(self.shift_percent[axis]) / 100.0);
            let first = (down * from_centre[0] + right * from_centre[1]) / scale + 0.5;
            (step, first * side - 0.5)
        };
        let (row, first_row) = axis([cos, sin], rows);
        let (column, first_column) = axis([-sin, cos], columns);
        Sources { steps: [row, column], first: [first_row, first_column] }
    }
}

/// An affine map from the pixels of a moved slice to positions in the slice, in pixels.
struct Sources {
    /// For rows and columns of the position: its change from row to row and from column to column.
    steps: [[f64; 2]; 2],
    /// The position of the first pixel.
    first: [f64; 2],
}

impl Sources {
    /// The map from positions in the slice to pixels of the moved slice.
    fn inverse(&self) -> Self {
        let [[a, b], [c, d]] = self.steps;
        let determinant = a * d - b * c;
        let steps = [[d, -b], [-c, a]].map(|row| row.map(|value| value / determinant));
        let first = steps.map(|[row, column]| -row * self.first[0] - column * self.first[1]);
        Self { steps, first }
    }

    fn of(&self, row: usize, column: usize) -> [f64; 2] {
        [0, 1].map(|axis| {
            let [of_row, of_column] = self.steps[axis];
            self.first[axis] + of_row * row as f64 + of_column * column as f64
        })
    }
}

/// For each pixel of a moved slice, the pixels that it is interpolated from.
fn corners(
    sources: &Sources,
    sides: [usize; 2],
    outside: Outside,
) -> impl Iterator<Item = Corners> + '_ {
    let [rows, columns] = sides;
    (0..rows * columns).map(move |pixel| {
        let position = sources.of(pixel / columns, pixel % columns);
        let axis = |axis: usize| {
            let lower = position[axis].floor();
            let share = (position[axis] - lower) as f32;
            [(lower, 1.0 - share), (lower + 1.0, share)].map(|(index, weight)| {
                let last = sides[axis] as f64 - 1.0;
                let is_inside = (0.0..=last).contains(&index);
                let weight = if is_inside || outside == Outside::Edge { weight } else { 0.0 };
                (index.clamp(0.0, last) as usize, weight)
            })
        };
        let [rows, others] = [axis(0), axis(1)];
        [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(row, column)| {
            let (row, row_weight) = rows[row];
            let (column, weight) = others[column];
            (row * columns + column, row_weight * weight)
        })
    })
}

/// Interpolates each channel in place. `moves` has each pixel of a channel once, with the pixels that
/// it is interpolated from.
fn move_channels(values: &mut [f32], moves: impl Iterator<Item = (usize, Corners)>) {
    let moves: Vec<(usize, Corners)> = moves.collect();
    assert!(values.len().is_multiple_of(moves.len()), "values of whole channels");
    let mut source = vec![0.0; moves.len()];
    for channel in values.chunks_exact_mut(moves.len()) {
        source.copy_from_slice(channel);
        for (pixel, corners) in &moves {
            channel[*pixel] = interpolate(&source, corners);
        }
    }
}

fn interpolate(values: &[f32], corners: &Corners) -> f32 {
    corners.iter().map(|&(pixel, weight)| values[pixel] * weight).sum()
}

impl TryFrom<PoseValues> for Pose {
    type Error = PoseError;

    fn try_from(values: PoseValues) -> Result<Self, PoseError> {
        let PoseValues { degrees, scale_percent, shift_percent } = values;
        let within = |value: i8, limit: i8| (-limit..=limit).contains(&value);
        let [smallest, largest] = Self::SCALE_PERCENT;
        let is_valid = within(degrees, Self::MAX_DEGREES)
            && (smallest..=largest).contains(&scale_percent)
            && shift_percent.iter().all(|&shift| within(shift, Self::MAX_SHIFT_PERCENT));
        if !is_valid {
            return Err(PoseError { found: values });
        }
        Ok(Self { degrees, scale_percent, shift_percent })
    }
}

impl From<Pose> for PoseValues {
    fn from(Pose { degrees, scale_percent, shift_percent }: Pose) -> Self {
        Self { degrees, scale_percent, shift_percent }
    }
}

/// `pose+5x110-3+2`: the rotation, the scale, the shifts.
impl fmt::Display for Pose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [rows, columns] = self.shift_percent;
        write!(f, "pose{:+}x{}{rows:+}{columns:+}", self.degrees, self.scale_percent)
    }
}
