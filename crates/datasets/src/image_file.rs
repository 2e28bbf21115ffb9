//! Images in any format: NIfTI files, and folders of DICOM series.

use crate::nifti_file::read_nifti_image_filled;
use crate::{
    Geometry, Orientation, ReadError, Volume, read_dicom_geometry, read_dicom_image,
    read_nifti_geometry,
};
use std::path::Path;

/// Reads the intensities of a NIfTI file ([`read_nifti_image`](crate::read_nifti_image)), or of the
/// DICOM series in a folder ([`read_dicom_image`]).
///
/// # Errors
///
/// [`ReadError`], as these functions.
pub fn read_image(
    path: impl AsRef<Path>,
    orientation: Orientation,
) -> Result<Volume<f32>, ReadError> {
    read_image_filled(path.as_ref(), orientation, None)
}

/// As [`read_image`]; voxels of a NIfTI file that are NaN become `fill`, if it is given.
pub(crate) fn read_image_filled(
    path: &Path,
    orientation: Orientation,
    fill: Option<f32>,
) -> Result<Volume<f32>, ReadError> {
    if path.is_dir() {
        read_dicom_image(path, orientation)
    } else {
        read_nifti_image_filled(path, orientation, fill)
    }
}

/// Reads the geometry of an image without its voxels.
///
/// # Errors
///
/// [`ReadError`], as [`read_image`].
pub fn read_geometry(
    path: impl AsRef<Path>,
    orientation: Orientation,
) -> Result<Geometry, ReadError> {
    let path = path.as_ref();
    if path.is_dir() {
        read_dicom_geometry(path, orientation)
    } else {
        read_nifti_geometry(path, orientation)
    }
}
