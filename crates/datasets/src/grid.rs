//! Labels on the grid of another volume of the same case.

use crate::image_file::read_labels;
use crate::{
    DatasetDescription, DatasetError, Geometry, GeometryCheck, Image, LabelMap, Layout,
    Orientation, ReadError, Volume,
};
use std::path::Path;

/// The grid of a volume, with the file that errors name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid<'a> {
    file: &'a Path,
    shape: [usize; 3],
    geometry: Option<&'a Geometry>,
}

impl<'a> Grid<'a> {
    pub fn of_image(file: &'a Path, image: &'a Image) -> Self {
        Self { file, shape: image.shape(), geometry: image.geometry() }
    }

    pub fn of_volume<T>(file: &'a Path, volume: &'a Volume<T>) -> Self {
        Self { file, shape: volume.shape(), geometry: volume.geometry() }
    }

    /// Reads a label volume on this grid, by the headers or by the order of the voxels, as the
    /// description says. `read` reads the volume in an orientation.
    pub fn read(
        &self,
        description: &DatasetDescription,
        label: &Path,
        read: impl FnOnce(Orientation) -> Result<Volume<u8>, ReadError>,
    ) -> Result<Volume<u8>, DatasetError> {
        let check = match description.layout {
            Layout::Files(_) => description.geometry,
            // Its arrays have no header to check.
            Layout::Prepared(_) => GeometryCheck::TrustVoxels,
        };
        let stored = check == GeometryCheck::TrustVoxels;
        let volume = read(if stored { Orientation::Stored } else { description.orientation })?;
        let shape = volume.shape();
        let wrong_shape = || DatasetError::Shapes {
            image: self.file.to_owned(),
            image_shape: self.shape,
            label: label.to_owned(),
            label_shape: shape,
        };
        let volume = match (check, self.geometry) {
            (GeometryCheck::TrustVoxels, Some(geometry)) => {
                volume.into_order_of(geometry).ok_or_else(wrong_shape)?
            }
            (GeometryCheck::TrustVoxels, None) => volume.without_geometry(),
            (GeometryCheck::Check, _) => volume,
        };
        if volume.shape() != self.shape {
            return Err(wrong_shape());
        }
        match (self.geometry, volume.geometry()) {
            (Some(own), Some(of_label)) if !own.is_same_grid(of_label) => {
                Err(DatasetError::Geometries {
                    image: self.file.to_owned(),
                    label: label.to_owned(),
                    distance_mm: own.max_corner_distance_mm(of_label),
                })
            }
            (Some(_), None) | (None, Some(_)) => Err(DatasetError::OneGeometry {
                image: self.file.to_owned(),
                label: label.to_owned(),
            }),
            _ => Ok(volume),
        }
    }
}

impl DatasetDescription {
    /// Reads the labels of a file as classes, in the description's orientation, on the grid of another
    /// volume of the same case, whose file is `other`.
    ///
    /// # Errors
    ///
    /// [`DatasetError::Read`] if the file cannot be read; [`DatasetError::Shapes`],
    /// [`DatasetError::Geometries`] or [`DatasetError::OneGeometry`], naming both files, if it lies on
    /// another grid. With [`GeometryCheck::TrustVoxels`], and in the preprocessed form, which has no
    /// headers, only the shapes must agree.
    pub fn read_labels_on_grid<T>(
        &self,
        file: impl AsRef<Path>,
        (other, volume): (&Path, &Volume<T>),
    ) -> Result<Volume<u8>, DatasetError> {
        self.read_labels_on(&Grid::of_volume(other, volume), file.as_ref(), &self.label_map())
    }

    pub(crate) fn read_labels_on(
        &self,
        grid: &Grid<'_>,
        file: &Path,
        labels: &LabelMap,
    ) -> Result<Volume<u8>, DatasetError> {
        let colors = self.label_colors();
        grid.read(self, file, |orientation| read_labels(file, orientation, labels, colors))
    }
}
