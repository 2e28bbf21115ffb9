//! Medical image datasets, from files to training examples.
//!
//! - [`Volume`]: voxels `[slices, rows, columns]` with their [`Geometry`]; read from and written to
//!   NIfTI ([`read_nifti_image`], [`write_nifti`]), and the npz slices and `.npy.h5` volumes of the
//!   common preprocessing of Synapse.
//! - [`Image`]: intensities in one channel or three, read from NIfTI, DICOM or a picture
//!   ([`read_image`], [`read_labels`]).
//! - [`DatasetDescription`]: the layout, labels and splits of a dataset, built in for Synapse or a
//!   TOML file; [`Dataset`]: its cases by split.
//! - [`inspect`]: recognises the dataset in a folder and describes it.
//! - [`SliceStore`]: random access to single slices in bounded memory.
//! - [`Augmentation`]: how training varies slices: [`View`]s, chosen from (seed, epoch, index).
//! - [`resample`], [`rotate_nearest`]: the interpolation of scipy and torch.
//! - [`PhantomConfig`]: synthetic phantoms for demos and tests.
//!
//! Every reader checks the sizes in a file's header before it allocates memory. Every error names
//! the file and its cause.

mod augmentation;
mod cases;
mod dataset;
mod description;
mod dicom;
mod error;
mod grid;
mod hdf5;
mod image;
mod image_file;
mod inspection;
mod intensity;
mod labels;
mod nifti_file;
mod nifti_header;
mod npz;
mod orientation;
mod patients;
mod phantom;
mod picture;
mod pose;
mod prepare;
mod random;
mod raw;
mod recognition;
mod resample;
mod sha256;
mod store;
mod text_header;
mod view;
mod volume;
mod voxel_type;
mod write;

pub use augmentation::{Augmentation, IntensityChange};
pub use dataset::{Case, CaseFiles, CaseVolumes, Dataset};
pub use description::{
    Color, ColorError, DatasetDescription, FilesLayout, GeometryCheck, Layout, Organ,
    PreparedLayout, Split, SplitDescription, Validation,
};
pub use dicom::{
    SegmentationType, has_dicom_files, is_dicom, read_dicom_geometry, read_dicom_image,
    write_dicom_segmentation,
};
pub use error::{DatasetError, DescriptionError, ReadError, WriteError};
pub use hdf5::{read_h5_volume, write_h5_volume};
pub use image::{Image, map_channels};
pub use image_file::{
    read_geometry, read_image, read_label_numbers, read_labels, write_labels, write_map,
};
pub use inspection::{InspectedCase, Inspection, InspectionError, inspect};
pub use intensity::Intensity;
pub use labels::{IgnoredLabels, LabelMap, label_ranges};
pub use ndarray;
pub use nifti_file::{
    StoredVoxel, read_nifti_geometry, read_nifti_image, read_nifti_labels, write_nifti,
    write_nifti_labels,
};
pub use npz::{Slice, read_npz_slice, write_npz_slice};
pub use orientation::{Orientation, OrientationError, Side};
pub use phantom::PhantomConfig;
pub use pose::{Pose, PoseError, PoseValues};
pub use prepare::{PreparedCounts, prepare};
pub use random::epoch_order;
pub use recognition::{RecognitionError, RecognizedLayout, file_ending, recognize_layout};
pub use resample::{Grid, Interpolation, Pixel, resample};
pub use sha256::files_sha256;
pub use store::{SliceOrigin, SliceStore};
pub use view::{Degrees, DegreesError, Reflection, View, rotate_nearest};
pub use volume::{Geometry, MAX_VOXELS, Volume};
pub use write::replace_file;
