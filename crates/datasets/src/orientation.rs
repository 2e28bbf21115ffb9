//! The orientation of an array in the patient.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Selects which axes of a file become the slices, rows and columns of an array.
///
/// Arrays are `[slices, rows, columns]`. In a description: three letters such as `"LPS"`,
/// `"stored"`, or `"axial"`. Files that store one patient in different orders give the same array
/// only with three letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Orientation {
    /// The file's order: its third axis is slices, its second rows, its first columns.
    Stored,
    /// Axial slices: slices along the patient's long axis, rows from front to back or back to
    /// front, columns between left and right. Axes are exchanged where needed but never reversed,
    /// so a slice may lie mirrored or upside down, as in its file. The default of version 0.1.0,
    /// which its ladders ask for.
    Axial,
    /// Columns, rows and slices run towards these sides; axes are exchanged and reversed where
    /// needed.
    Towards([Side; 3]),
}

impl Orientation {
    /// Axial slices with the patient's front up, as DICOM stores them and radiologists look at them:
    /// columns run to the left, rows to the back, slices to the head. The default.
    pub const LPS: Self = Self::Towards([Side::Left, Side::Posterior, Side::Superior]);
    /// Axial slices with the patient's back up: columns run to the left, rows to the front, slices to
    /// the head.
    pub const LAS: Self = Self::Towards([Side::Left, Side::Anterior, Side::Superior]);
}

impl Default for Orientation {
    fn default() -> Self {
        Self::LPS
    }
}

/// A side of the patient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// Left.
    Left,
    /// Right.
    Right,
    /// Back.
    Posterior,
    /// Front.
    Anterior,
    /// Towards the head.
    Superior,
    /// Towards the feet.
    Inferior,
}

impl Side {
    /// The axis in NIfTI's world coordinates (x to the right, y to the front, z to the head), and
    /// whether the side is in its negative direction.
    pub(crate) fn world_axis(self) -> (usize, bool) {
        match self {
            Self::Right => (0, false),
            Self::Left => (0, true),
            Self::Anterior => (1, false),
            Self::Posterior => (1, true),
            Self::Superior => (2, false),
            Self::Inferior => (2, true),
        }
    }

    /// The side in a direction of an axis in NIfTI's world coordinates.
    pub(crate) fn towards(axis: usize, negative: bool) -> Self {
        let all = [
            Self::Right,
            Self::Left,
            Self::Anterior,
            Self::Posterior,
            Self::Superior,
            Self::Inferior,
        ];
        all[2 * axis + usize::from(negative)]
    }

    fn letter(self) -> char {
        match self {
            Self::Left => 'L',
            Self::Right => 'R',
            Self::Posterior => 'P',
            Self::Anterior => 'A',
            Self::Superior => 'S',
            Self::Inferior => 'I',
        }
    }

    fn from_letter(letter: char) -> Option<Self> {
        [Self::Left, Self::Right, Self::Posterior, Self::Anterior, Self::Superior, Self::Inferior]
            .into_iter()
            .find(|side| side.letter() == letter)
    }
}

/// Its first letter.
impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.letter())
    }
}

/// An invalid orientation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid orientation `{found}`; expected the sides towards which columns, rows and slices run, \
     such as `LPS`, or `stored` or `axial`"
)]
pub struct OrientationError {
    /// The invalid text.
    pub found: String,
}

impl FromStr for Orientation {
    type Err = OrientationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "stored" => return Ok(Self::Stored),
            "axial" => return Ok(Self::Axial),
            _ => {}
        }
        let sides: Option<Vec<Side>> = text.chars().map(Side::from_letter).collect();
        sides
            .and_then(|sides| <[Side; 3]>::try_from(sides).ok())
            .filter(|sides| {
                let axes = sides.map(|side| side.world_axis().0);
                (0..3).all(|axis| axes.contains(&axis))
            })
            .map(Self::Towards)
            .ok_or_else(|| OrientationError { found: text.to_owned() })
    }
}

impl fmt::Display for Orientation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stored => f.write_str("stored"),
            Self::Axial => f.write_str("axial"),
            Self::Towards(sides) => {
                sides.iter().try_for_each(|side| write!(f, "{}", side.letter()))
            }
        }
    }
}

impl TryFrom<String> for Orientation {
    type Error = OrientationError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Orientation> for String {
    fn from(orientation: Orientation) -> Self {
        orientation.to_string()
    }
}
