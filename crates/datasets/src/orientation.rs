//! Which way the axes of an array point in the patient.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How the axes of an array are chosen from those of a file.
///
/// Arrays are `[slices, rows, columns]`. In a description: `"stored"`, `"axial"`, or three letters such as `"LPS"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Orientation {
    /// As the file has them: its third axis counts slices, its first columns.
    Stored,
    /// Slices are counted along the patient's long axis, rows from front to back or back to front, columns across.
    /// Axes are exchanged where needed and never reversed, so a file that is stored axially, as Synapse's are, comes
    /// as it is stored.
    #[default]
    Axial,
    /// Columns, rows and slices are counted towards these sides, exchanging and reversing axes.
    Towards([Side; 3]),
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
    /// Axis of NIfTI's world (x to the right, y to the front, z to the head), and whether it points the other way.
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
        [
            Self::Left,
            Self::Right,
            Self::Posterior,
            Self::Anterior,
            Self::Superior,
            Self::Inferior,
        ]
        .into_iter()
        .find(|side| side.letter() == letter)
    }
}

/// A text that names no orientation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{found}` is no orientation; expected `stored`, `axial`, or the sides that columns, rows and slices are counted \
     towards, such as `LPS`"
)]
pub struct OrientationError {
    /// The text.
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
            .ok_or_else(|| OrientationError {
                found: text.to_owned(),
            })
    }
}

impl fmt::Display for Orientation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stored => f.write_str("stored"),
            Self::Axial => f.write_str("axial"),
            Self::Towards(sides) => sides
                .iter()
                .try_for_each(|side| write!(f, "{}", side.letter())),
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
