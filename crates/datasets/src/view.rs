//! The views of a slice that augment training.

use crate::pose::Pose;
use ndarray::{Array2, ArrayView2, Axis};
use serde::{Deserialize, Serialize};
use std::fmt;

/// An augmentation of a slice.
///
/// The set of published views is finite, so that a frozen network's embedding of each can be computed
/// once. With probability 1/2 the released code rotates by a multiple of 90 degrees and flips along an
/// axis, which is always a [`Reflection`]; otherwise with probability 1/2 it rotates by a whole
/// number of degrees in [-20, 19]; otherwise it leaves the slice unchanged. These are 1 + 4 + 39 =
/// 44 views, since a rotation by 0 degrees is the identity. A [`Pose`] needs no embedding of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum View {
    /// The unchanged slice.
    Identity,
    /// A mirror image.
    Reflection(Reflection),
    /// A rotation about the centre by -20 to 19 degrees, not 0; the size stays the same.
    Rotation(Degrees),
    /// A small change of position.
    Pose(Pose),
}

/// The four mirror images of a square.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reflection {
    /// Reverses the order of the rows.
    Rows,
    /// Reverses the order of the columns.
    Columns,
    /// Exchanges rows and columns.
    Transpose,
    /// Exchanges rows and columns, and reverses both.
    AntiTranspose,
}

/// The angle of a [`View::Rotation`] in whole degrees: -20 to 19, not 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "i8", into = "i8")]
pub struct Degrees(i8);

/// An angle that is not that of a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid rotation by {found} degrees; expected -20 to 19, not 0")]
pub struct DegreesError {
    /// The invalid angle.
    pub found: i8,
}

impl TryFrom<i8> for Degrees {
    type Error = DegreesError;

    fn try_from(degrees: i8) -> Result<Self, Self::Error> {
        match degrees {
            -20..=-1 | 1..=19 => Ok(Self(degrees)),
            found => Err(DegreesError { found }),
        }
    }
}

impl From<Degrees> for i8 {
    fn from(degrees: Degrees) -> Self {
        degrees.0
    }
}

impl View {
    /// Number of published views.
    pub const COUNT: usize = 44;

    /// The published views: the identity, the reflections, then rotations by ascending angle.
    pub fn all() -> impl Iterator<Item = Self> {
        let rotations = (-20..20).filter_map(|angle| Degrees::try_from(angle).ok());
        std::iter::once(Self::Identity)
            .chain(Reflection::ALL.map(Self::Reflection))
            .chain(rotations.map(Self::Rotation))
    }

    /// The view that the foundation sees: the identity in place of a pose, whose features are moved
    /// instead.
    pub fn encoded(self) -> Self {
        match self {
            Self::Pose(_) => Self::Identity,
            other => other,
        }
    }

    /// The pose, if this is one.
    pub fn pose(self) -> Option<Pose> {
        match self {
            Self::Pose(pose) => Some(pose),
            _ => None,
        }
    }

    /// Applies the view to an image. Rotations take the nearest neighbour, poses interpolate; both
    /// have zero outside the slice.
    ///
    /// # Shapes
    ///
    /// - input: `[rows, columns]`
    /// - output: `[rows, columns]`, or `[columns, rows]` for the two transpositions
    pub fn apply_to_image(self, pixels: ArrayView2<'_, f32>) -> Array2<f32> {
        match self {
            Self::Pose(pose) => pose.image(pixels),
            other => other.apply(pixels),
        }
    }

    /// Applies the view to labels. Rotations and poses take the nearest neighbour, and zero outside the
    /// slice.
    ///
    /// # Shapes
    ///
    /// - input: `[rows, columns]`
    /// - output: `[rows, columns]`, or `[columns, rows]` for the two transpositions
    pub fn apply<T: Copy + Default>(self, pixels: ArrayView2<'_, T>) -> Array2<T> {
        match self {
            Self::Identity => pixels.to_owned(),
            Self::Reflection(reflection) => {
                let mut reflected = pixels;
                let (reversed, transposed): (&[usize], bool) = match reflection {
                    Reflection::Rows => (&[0], false),
                    Reflection::Columns => (&[1], false),
                    Reflection::Transpose => (&[], true),
                    Reflection::AntiTranspose => (&[0, 1], true),
                };
                reversed.iter().for_each(|&axis| reflected.invert_axis(Axis(axis)));
                let reflected = if transposed { reflected.reversed_axes() } else { reflected };
                reflected.as_standard_layout().into_owned()
            }
            Self::Rotation(Degrees(degrees)) => rotate_nearest(pixels, f64::from(degrees)),
            Self::Pose(pose) => pose.nearest(pixels),
        }
    }
}

impl Reflection {
    /// All reflections.
    pub const ALL: [Self; 4] = [Self::Rows, Self::Columns, Self::Transpose, Self::AntiTranspose];
}

/// A short name that is valid in file names: `identity`, `rows`, `rotate-7`.
impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity => f.write_str("identity"),
            Self::Reflection(Reflection::Rows) => f.write_str("rows"),
            Self::Reflection(Reflection::Columns) => f.write_str("columns"),
            Self::Reflection(Reflection::Transpose) => f.write_str("transpose"),
            Self::Reflection(Reflection::AntiTranspose) => f.write_str("anti-transpose"),
            Self::Rotation(Degrees(degrees)) => write!(f, "rotate{degrees:+}"),
            Self::Pose(pose) => pose.fmt(f),
        }
    }
}

/// Rotates a slice about its centre, with the nearest neighbour, zero outside the slice, and the
/// same size: `scipy.ndimage.rotate(pixels, degrees, order=0, reshape=False)`.
pub fn rotate_nearest<T: Copy + Default>(pixels: ArrayView2<'_, T>, degrees: f64) -> Array2<T> {
    let (rows, columns) = pixels.dim();
    let (sin, cos) = degrees.to_radians().sin_cos();
    let (sin, cos) = match degrees.rem_euclid(360.0) {
        0.0 => (0.0, 1.0),
        90.0 => (1.0, 0.0),
        180.0 => (0.0, -1.0),
        270.0 => (-1.0, 0.0),
        _ => (sin, cos),
    };
    let centre = [rows, columns].map(|side| (side as f64 - 1.0) / 2.0);
    let offset = [
        centre[0] - (cos * centre[0] + sin * centre[1]),
        centre[1] - (-sin * centre[0] + cos * centre[1]),
    ];
    let nearest = |position: f64, side: usize| -> Option<usize> {
        (0.0..=side as f64 - 1.0).contains(&position).then(|| (position + 0.5).floor() as usize)
    };
    Array2::from_shape_fn((rows, columns), |(row, column)| {
        let [row, column] = [row as f64, column as f64];
        let from_row = nearest(offset[0] + row * cos + column * sin, rows);
        let from_column = nearest(offset[1] + row * -sin + column * cos, columns);
        match (from_row, from_column) {
            (Some(row), Some(column)) => pixels[(row, column)],
            _ => T::default(),
        }
    })
}
