//! Segmentation metrics: how well a predicted label volume agrees with the true one.
//!
//! [`compare`] computes, for one class, the Dice similarity coefficient (DSC) and the distances
//! between the two surfaces. All other metrics follow from them: the Hausdorff distance and its
//! percentiles, the average surface distance, and surface Dice. Distances are exact Euclidean
//! distances between voxel centres on the volume's spacing. [`dice`] computes the DSC alone.
//!
//! A [`Protocol`] defines how a comparison becomes a case's [`Score`] and what an absent organ
//! scores. A [`Report`] holds the scores of cases by organs under one protocol.
//!
//! [`ErrorDetection`] says how well the uncertainty of voxels finds the incorrect ones.
//!
//! # Surfaces
//!
//! A voxel of a class lies on its surface if one of its six face neighbours is of another class or
//! outside the volume. This is medpy's definition at its default connectivity. A volume of one slice is
//! a picture, whose pixels have four neighbours, as for medpy's functions on a two-dimensional array.
//!
//! # Absent classes
//!
//! A class that is absent from one of the volumes has no surface there, so its distances are
//! undefined. This is represented by [`Presence`] and `None`, never by a special number.

mod compare;
mod distance_transform;
mod error_detection;
mod protocol;
mod report;
mod statistics;
mod surface;
mod volume;

pub use compare::{Comparison, Direction, Presence, SurfaceDistances, compare, compare_all, dice};
pub use error_detection::ErrorDetection;
pub use protocol::{DirectedDistances, Protocol, Score, ScoreError, StrictOptions};
pub use report::{CaseScores, Mean, Report};
pub use statistics::{mean, standard_deviation};
pub use volume::{LabelVolume, VolumeError};
