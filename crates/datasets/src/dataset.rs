//! The cases in a dataset's folder, by split, and their volumes.

use crate::cases::{file_cases, prepared_cases};
use crate::dicom::StructureFiles;
use crate::grid::Grid;
use crate::image_file::{files_of, read_mask};
use crate::intensity::IntensityRange;
use crate::patients::Patients;
use crate::random::validation_order;
use crate::{
    DatasetDescription, DatasetError, Image, LabelMap, Layout, ReadError, Slice, Split, Validation,
    Volume, files_sha256, read_geometry, read_h5_volume, read_npz_slice,
};
use ndarray::{Array3, Axis};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A folder of cases with its description.
#[derive(Debug, Clone)]
pub struct Dataset {
    root: PathBuf,
    description: DatasetDescription,
    labels: LabelMap,
    cases: Vec<Case>,
}

/// One image volume of one patient, with its label volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// The case's name: the `{case}` in the names of its files.
    pub name: String,
    /// The patient's name: the case's name unless the description assigns another.
    pub patient: String,
    /// The split that the case belongs to.
    pub split: Split,
    /// The case's files.
    pub files: CaseFiles,
}

/// The files of a case.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CaseFiles {
    /// An image and a label file.
    Volumes {
        /// Intensities, a file for each channel.
        images: Vec<PathBuf>,
        /// Labels.
        label: PathBuf,
    },
    /// An image and one mask, or several, for each organ that the case has.
    Organs {
        /// Intensities, a file for each channel.
        images: Vec<PathBuf>,
        /// The masks with their classes.
        organs: Vec<(u8, PathBuf)>,
    },
    /// An image, and DICOM segmentations or a structure set, whose structures have names.
    Structures {
        /// Intensities, a file for each channel.
        images: Vec<PathBuf>,
        /// A DICOM file, or a folder with such files.
        structures: PathBuf,
    },
    /// One npz file per slice, in order.
    Slices(Vec<PathBuf>),
    /// One HDF5 volume.
    Hdf5(PathBuf),
}

impl CaseFiles {
    /// The paths of all files.
    pub fn paths(&self) -> Vec<&Path> {
        match self {
            Self::Volumes { images, label } => {
                images.iter().chain([label]).map(PathBuf::as_path).collect()
            }
            Self::Organs { images, organs } => {
                let organs = organs.iter().map(|(_, file)| file);
                images.iter().chain(organs).map(PathBuf::as_path).collect()
            }
            Self::Structures { images, structures } => {
                images.iter().chain([structures]).map(PathBuf::as_path).collect()
            }
            Self::Slices(slices) => slices.iter().map(PathBuf::as_path).collect(),
            Self::Hdf5(volume) => vec![volume],
        }
    }

    /// All files, also those that a path only stands for: the files of a folder in the order of their
    /// names, the voxels of a header.
    fn files(&self) -> Result<Vec<PathBuf>, ReadError> {
        let mut files = Vec::new();
        match self {
            Self::Volumes { .. } | Self::Organs { .. } | Self::Structures { .. } => {
                for path in self.paths() {
                    files.extend(files_of(path)?);
                }
            }
            Self::Slices(_) | Self::Hdf5(_) => {
                files.extend(self.paths().into_iter().map(Path::to_owned));
            }
        }
        Ok(files)
    }

    /// The SHA-256, in hexadecimal, of the concatenated contents of all files, which identifies the
    /// case wherever its files lie and whatever their times.
    ///
    /// # Errors
    ///
    /// [`ReadError::Io`] if a file cannot be read.
    pub fn sha256(&self) -> Result<String, ReadError> {
        files_sha256(self.files()?).map_err(|(file, source)| ReadError::Io { file, source })
    }
}

/// Image and label of a case.
#[derive(Debug, Clone, PartialEq)]
pub struct CaseVolumes {
    /// Intensities, normalised to `[0, 1]` as in the description.
    pub image: Image,
    /// Classes.
    pub label: Volume<u8>,
}

impl Dataset {
    /// Finds the cases in the folder `root`, without reading their volumes.
    ///
    /// # Errors
    ///
    /// [`DatasetError`] if the description is invalid or names a case that is not there, no case is
    /// found, a label is missing, or a patient is in two splits.
    pub fn open(
        root: impl AsRef<Path>,
        description: DatasetDescription,
    ) -> Result<Self, DatasetError> {
        let root = root.as_ref().to_owned();
        description.check().map_err(|source| DatasetError::Description {
            description: description.name.clone(),
            source,
        })?;
        let patients = Patients::new(&root, &description.split)?;
        let mut cases = match &description.layout {
            Layout::Files(layout) => file_cases(&root, layout, &description, &patients)?,
            Layout::Prepared(layout) => prepared_cases(&root, layout, &description, &patients)?,
        };
        cases.sort_by(|a, b| a.name.cmp(&b.name));
        hold_out_validation(&mut cases, &description.split.validation);
        check_patients(&cases)?;
        Ok(Self { labels: description.label_map(), root, description, cases })
    }

    /// The dataset's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The dataset's description.
    pub fn description(&self) -> &DatasetDescription {
        &self.description
    }

    /// All cases, sorted by name.
    pub fn all_cases(&self) -> &[Case] {
        &self.cases
    }

    /// The cases of a split, sorted by name.
    ///
    /// # Errors
    ///
    /// [`DatasetError::EmptySplit`] if the split has no cases.
    pub fn cases(&self, split: Split) -> Result<Vec<&Case>, DatasetError> {
        let cases: Vec<&Case> = self.cases.iter().filter(|case| case.split == split).collect();
        if cases.is_empty() {
            return Err(DatasetError::EmptySplit {
                split,
                root: self.root.clone(),
                cases: self.cases.iter().map(|case| case.name.clone()).collect(),
            });
        }
        Ok(cases)
    }

    /// Whether all of some cases have a voxel spacing, by the headers of their images.
    ///
    /// # Errors
    ///
    /// [`DatasetError`] if an image cannot be read.
    pub fn has_spacing(&self, cases: &[&Case]) -> Result<bool, DatasetError> {
        for case in cases {
            let has_spacing = match &case.files {
                CaseFiles::Volumes { images, .. }
                | CaseFiles::Organs { images, .. }
                | CaseFiles::Structures { images, .. } => {
                    read_geometry(&images[0], self.description.orientation)?.is_some()
                }
                CaseFiles::Slices(_) | CaseFiles::Hdf5(_) => false,
            };
            if !has_spacing {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads the volumes of a case. A warning is logged for intensities that do not fit
    /// `intensity`.
    ///
    /// # Errors
    ///
    /// [`DatasetError`], naming the file, if a file cannot be read or is invalid, or image and
    /// label are not on the same grid.
    pub fn read(&self, case: &Case) -> Result<CaseVolumes, DatasetError> {
        Ok(self.read_with_range(case)?.0)
    }

    /// Reads the volumes of a case, and the range of its intensities before they were normalised.
    pub(crate) fn read_with_range(
        &self,
        case: &Case,
    ) -> Result<(CaseVolumes, IntensityRange), DatasetError> {
        let (image, label) = match &case.files {
            CaseFiles::Volumes { images, label } => {
                let image = self.description.read_stored_image(images)?;
                let grid = Grid::of_image(&images[0], &image);
                let label = self.description.read_labels_on(&grid, label, &self.labels)?;
                (image, label)
            }
            CaseFiles::Organs { images, organs } => {
                let image = self.description.read_stored_image(images)?;
                let label = self.read_organs(&images[0], &image, organs)?;
                (image, label)
            }
            CaseFiles::Structures { images, structures } => {
                let image = self.description.read_stored_image(images)?;
                let label = self.read_structures(&images[0], &image, structures)?;
                (image, label)
            }
            CaseFiles::Slices(files) => self.read_slices(files)?,
            CaseFiles::Hdf5(file) => {
                let (image, label) = read_h5_volume(file, &self.labels)?;
                (image.into(), label)
            }
        };
        let range = IntensityRange::of(image.slices(), self.description.intensity);
        let file = case.files.paths().first().map_or(self.root.as_path(), |file| file);
        let image = self.description.normalize(image, &range, file);
        Ok((CaseVolumes { image, label }, range))
    }

    /// Reads the masks of the organs into one label volume. Where masks overlap, the first organ stays,
    /// and a warning is logged.
    fn read_organs(
        &self,
        image: &Path,
        image_volume: &Image,
        organs: &[(u8, PathBuf)],
    ) -> Result<Volume<u8>, DatasetError> {
        let mut classes = Overlay::new(image_volume.shape());
        let grid = Grid::of_image(image, image_volume);
        for (class, file) in organs {
            let mask =
                grid.read(&self.description, file, |orientation| read_mask(file, orientation))?;
            classes.add(*class, mask.voxels().iter().map(|&inside| inside != 0));
        }
        Ok(image_volume.with_voxels(classes.finish(image)))
    }

    /// Reads the structures of DICOM files into one label volume, each as the organ of its name.
    fn read_structures(
        &self,
        image: &Path,
        image_volume: &Image,
        path: &Path,
    ) -> Result<Volume<u8>, DatasetError> {
        let files = StructureFiles::open(path)?;
        let names = files.names();
        let organs = self.description.structures_of_organs(&names);
        let listed: BTreeSet<&str> = organs.iter().flatten().copied().collect();
        let unknown = names.iter().find(|name| !listed.contains(*name));
        if let Some(name) = unknown.filter(|_| self.description.ignored_labels.are_listed()) {
            return Err(DatasetError::UnknownStructure {
                path: path.to_owned(),
                name: (*name).to_owned(),
                organs: self.description.organs.iter().map(|organ| organ.name.clone()).collect(),
            });
        }
        let missing = (1..).zip(&organs).filter(|(_, names)| names.is_empty());
        let missing: Vec<&str> =
            missing.map(|(class, _)| &*self.description.organ(class).name).collect();
        if !missing.is_empty() {
            let missing = missing.join(", ");
            log::warn!("{}: it has no structure {missing}; taken as absent", path.display());
        }
        let geometry = image_volume.geometry().ok_or_else(|| DatasetError::NoGeometry {
            image: image.to_owned(),
            structures: path.to_owned(),
        })?;
        let mut classes = Overlay::new(image_volume.shape());
        for (class, names) in (1..).zip(&organs) {
            for name in names {
                classes.add(class, files.mask(name, geometry)?.into_iter());
            }
        }
        Ok(image_volume.with_voxels(classes.finish(path)))
    }

    /// Reads one slice of a training case in the prepared layout.
    pub(crate) fn read_slice(&self, file: &Path) -> Result<Slice, ReadError> {
        read_npz_slice(file, &self.labels)
    }

    /// Reads the slices of a case and stacks them into volumes.
    fn read_slices(&self, files: &[PathBuf]) -> Result<(Image, Volume<u8>), ReadError> {
        let slices =
            files.iter().map(|file| self.read_slice(file)).collect::<Result<Vec<_>, _>>()?;
        let (rows, columns) = slices.first().map_or((0, 0), |slice| slice.label.dim());
        let mut image = Array3::zeros((slices.len(), rows, columns));
        let mut label = Array3::zeros((slices.len(), rows, columns));
        for (i, (slice, file)) in slices.iter().zip(files).enumerate() {
            if slice.label.dim() != (rows, columns) {
                return Err(ReadError::SliceShape {
                    file: file.clone(),
                    found: slice.label.dim().into(),
                    first: files[0].clone(),
                    expected: [rows, columns],
                });
            }
            image.index_axis_mut(Axis(0), i).assign(&slice.image.index_axis(Axis(0), 0));
            label.index_axis_mut(Axis(0), i).assign(&slice.label);
        }
        Ok((Volume::new(image, None).into(), Volume::new(label, None)))
    }
}

/// A label volume to which masks are added. Where masks overlap, the first stays.
struct Overlay {
    classes: Array3<u8>,
    overlaps: usize,
}

impl Overlay {
    fn new(shape: [usize; 3]) -> Self {
        Self { classes: Array3::zeros(shape), overlaps: 0 }
    }

    /// Adds the mask of a class, in the order of the voxels.
    fn add(&mut self, class: u8, mask: impl Iterator<Item = bool>) {
        for (of_voxel, inside) in self.classes.iter_mut().zip(mask) {
            match *of_voxel {
                _ if !inside => {}
                0 => *of_voxel = class,
                other => self.overlaps += usize::from(other != class),
            }
        }
    }

    /// The volume. A warning that names `file` is logged if masks overlap.
    fn finish(self, file: &Path) -> Array3<u8> {
        if self.overlaps > 0 {
            log::warn!(
                "{}: {} voxels are in the masks of several organs; each belongs to the first of them in \
                 the dataset description",
                file.display(),
                self.overlaps
            );
        }
        self.classes
    }
}

/// Moves a random fraction of the training patients to the validation split.
fn hold_out_validation(cases: &mut [Case], validation: &Validation) {
    let Validation::Fraction { fraction, seed } = *validation else {
        return;
    };
    let patients: BTreeSet<String> = cases
        .iter()
        .filter(|case| case.split == Split::Train)
        .map(|case| case.patient.clone())
        .collect();
    let count = (fraction * patients.len() as f64).round().max(1.0) as usize;
    let patients: Vec<String> = patients.into_iter().collect();
    let held_out: BTreeSet<&String> = validation_order(seed, patients.len())
        .into_iter()
        .take(count)
        .map(|i| &patients[i])
        .collect();
    for case in cases.iter_mut().filter(|case| case.split == Split::Train) {
        if held_out.contains(&case.patient) {
            case.split = Split::Validation;
        }
    }
}

/// Checks that no patient is in two splits.
fn check_patients(cases: &[Case]) -> Result<(), DatasetError> {
    let mut first_of: BTreeMap<&str, &Case> = BTreeMap::new();
    for case in cases {
        let first = first_of.entry(&case.patient).or_insert(case);
        if first.split != case.split {
            return Err(DatasetError::PatientInTwoSplits {
                patient: case.patient.clone(),
                cases: [first.name.clone(), case.name.clone()],
                splits: [first.split, case.split],
            });
        }
    }
    Ok(())
}
