//! The views of a slice that training draws: itself, four reflections, thirty-nine rotations.

use crate::random::{Purpose, below};
use ndarray::{Array2, ArrayView2, Axis};
use serde::{Deserialize, Serialize};
use std::fmt;

/// One of a finite set of ways to look at a slice, so that a frozen network's embedding of each is computed once.
///
/// With probability 1/2 the released code rotates by a multiple of 90 degrees and flips along an axis, which is always a
/// [`Reflection`]; else with probability 1/2 it rotates by a whole number of degrees in [-20, 19]; else it does nothing.
/// These are 1 + 4 + 39 = 44 views, since a rotation by 0 degrees is the identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum View {
    /// As it is.
    Identity,
    /// Mirrored.
    Reflection(Reflection),
    /// Rotated about its centre within its frame: -20 to 19 degrees, not 0.
    Rotation(Degrees),
}

/// The four mirror images of a square.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reflection {
    /// The last row first.
    Rows,
    /// The last column first.
    Columns,
    /// Rows become columns.
    Transpose,
    /// Rows become columns, both reversed.
    AntiTranspose,
}

/// A whole angle that a view is rotated by: -20 to 19, not 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "i8", into = "i8")]
pub struct Degrees(i8);

/// An angle that no view is rotated by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("views rotate by -20 to 19 whole degrees, not 0; found {found}")]
pub struct DegreesError {
    /// The angle.
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
    /// Number of views.
    pub const COUNT: usize = 44;

    /// All views: the identity, the reflections, then rotations by ascending angle.
    pub fn all() -> impl Iterator<Item = Self> {
        let rotations = (-20..20).filter_map(|angle| Degrees::try_from(angle).ok());
        std::iter::once(Self::Identity)
            .chain(Reflection::ALL.map(Self::Reflection))
            .chain(rotations.map(Self::Rotation))
    }

    /// The view that example `index` of an epoch is seen in, with the released code's probabilities: each reflection
    /// 1/8, each rotation 1/160, the identity 1/4 + 1/160.
    pub fn draw(seed: u64, epoch: u64, index: u64) -> Self {
        match below(160, Purpose::View, seed, epoch, index) {
            draw @ 0..80 => Self::Reflection(Reflection::ALL[(draw / 20) as usize]),
            draw @ 80..120 => match Degrees::try_from((draw - 80) as i8 - 20) {
                Ok(degrees) => Self::Rotation(degrees),
                Err(_) => Self::Identity,
            },
            _ => Self::Identity,
        }
    }

    /// What the view shows: nearest neighbours, zeros where a rotation brings in what lies outside. A transposition
    /// exchanges the lengths of the sides.
    ///
    /// # Shapes
    ///
    /// `[rows, columns]` in, the same out, or `[columns, rows]` for the two transpositions.
    pub fn apply<T: Copy + Default>(self, pixels: ArrayView2<'_, T>) -> Array2<T> {
        match self {
            Self::Identity => pixels.to_owned(),
            Self::Reflection(reflection) => {
                let mut seen = pixels;
                let (reversed, transposed): (&[usize], bool) = match reflection {
                    Reflection::Rows => (&[0], false),
                    Reflection::Columns => (&[1], false),
                    Reflection::Transpose => (&[], true),
                    Reflection::AntiTranspose => (&[0, 1], true),
                };
                reversed
                    .iter()
                    .for_each(|&axis| seen.invert_axis(Axis(axis)));
                let seen = if transposed {
                    seen.reversed_axes()
                } else {
                    seen
                };
                seen.as_standard_layout().into_owned()
            }
            Self::Rotation(Degrees(degrees)) => rotate_nearest(pixels, f64::from(degrees)),
        }
    }
}

impl Reflection {
    /// All four.
    pub const ALL: [Self; 4] = [
        Self::Rows,
        Self::Columns,
        Self::Transpose,
        Self::AntiTranspose,
    ];
}

/// Short and usable in a file name: `identity`, `rows`, `rotate-7`.
impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity => f.write_str("identity"),
            Self::Reflection(Reflection::Rows) => f.write_str("rows"),
            Self::Reflection(Reflection::Columns) => f.write_str("columns"),
            Self::Reflection(Reflection::Transpose) => f.write_str("transpose"),
            Self::Reflection(Reflection::AntiTranspose) => f.write_str("anti-transpose"),
            Self::Rotation(Degrees(degrees)) => write!(f, "rotate{degrees:+}"),
        }
    }
}

/// Rotates about the centre within the same frame, nearest neighbour, zeros outside:
/// `scipy.ndimage.rotate(pixels, degrees, order=0, reshape=False)`.
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
    let nearest = |place: f64, side: usize| -> Option<usize> {
        (0.0..=side as f64 - 1.0)
            .contains(&place)
            .then(|| (place + 0.5).floor() as usize)
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
