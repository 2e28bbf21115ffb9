//! Medical images from files to what training sees.
//!
//! - [`Volume`]: voxels `[slices, rows, columns]` with their [`Geometry`]; from NIfTI ([`read_nifti_image`]), from the
//!   npz slices and `.npy.h5` volumes of the common preprocessing, and back.
//! - [`DatasetDescription`]: a dataset in words, built in for Synapse or a TOML file; [`Dataset`]: its cases by split.
//! - [`SliceStore`]: single slices in any order, in bounded memory.
//! - [`View`]: the 44 ways in which training sees a slice, drawn from (seed, epoch, index).
//! - [`resample`], [`rotate_nearest`]: scipy's and torch's geometry.
//! - [`PhantomConfig`]: made-up patients for demos and tests.
//!
//! Every reader checks what a file claims before it takes memory for it, and says which file is wrong, and how.

mod dataset;
mod description;
mod error;
mod hdf5;
mod labels;
mod nifti_file;
mod npz;
mod orientation;
mod phantom;
mod prepare;
mod random;
mod raw;
mod resample;
mod store;
mod view;
mod volume;
mod voxel_type;
mod write;

pub use dataset::{Case, CaseFiles, CaseVolumes, Dataset, check_one_grid};
pub use description::{
    Color, ColorError, DatasetDescription, Intensity, Layout, NiftiLayout, Organ, PreparedLayout,
    Split, SplitDescription, Validation,
};
pub use error::{DatasetError, DescriptionError, ReadError, WriteError};
pub use hdf5::{read_h5_volume, write_h5_volume};
pub use labels::LabelMap;
pub use ndarray;
pub use nifti_file::{
    StoredVoxel, read_nifti_geometry, read_nifti_image, read_nifti_labels, write_nifti,
};
pub use npz::{Slice, read_npz_slice, write_npz_slice};
pub use orientation::{Orientation, OrientationError, Side};
pub use phantom::PhantomConfig;
pub use prepare::{Prepared, prepare};
pub use random::epoch_order;
pub use resample::{Grid, Interpolation, Pixel, resample};
pub use store::{SliceOrigin, SliceStore};
pub use view::{Degrees, DegreesError, Reflection, View, rotate_nearest};
pub use volume::{Geometry, MAX_VOXELS, Volume};
pub use write::replace_file;
