//! How well does a predicted label volume agree with the true one?
//!
//! [`compare`] gives, for one class, the Dice similarity coefficient and the distances between the two surfaces, from
//! which every other measure follows: Hausdorff distance and its percentiles, average surface distance, surface Dice.
//! Distances are exact Euclidean ones between voxel centres, on the volume's spacing.
//!
//! A [`Protocol`] says what of that becomes a case's [`Score`], and what an absent organ scores; a [`Report`] is cases by
//! organs under one protocol.
//!
//! # The surface
//!
//! A voxel of a class lies on its surface if one of its six face neighbours is of another class or outside the volume.
//! That is medpy's definition at its default connectivity.
//!
//! # Absent classes
//!
//! A class that is missing from one of the volumes has no surface there and so no distance. That is a value of its own,
//! [`Presence`] and `None`, and never a number.

mod compare;
mod distance_transform;
mod protocol;
mod report;
mod surface;
mod volume;

pub use compare::{Comparison, Direction, Presence, SurfaceDistances, compare, compare_all};
pub use protocol::{DirectedDistances, Protocol, Score, ScoreError, StrictOptions};
pub use report::{CaseScores, Mean, Report};
pub use volume::{LabelVolume, VolumeError};
