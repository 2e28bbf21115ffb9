//! The cases in a dataset's folder, by split, and their volumes.

use crate::description::{CASE_PLACEHOLDER, ORGAN_PLACEHOLDER};
use crate::dicom::{StructureFiles, is_dicom};
use crate::image_file::{files_of, read_mask};
use crate::intensity::IntensityRange;
use crate::patients::Patients;
use crate::random::validation_order;
use crate::{
    DatasetDescription, DatasetError, FilesLayout, Geometry, GeometryCheck, Image, LabelMap,
    Layout, Orientation, PreparedLayout, ReadError, Slice, Split, SplitDescription, Validation,
    Volume, files_sha256, read_geometry, read_h5_volume, read_labels, read_npz_slice,
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
                let label = self.read_on_grid(&images[0], &image, label, |orientation| {
                    read_labels(label, orientation, &self.labels, self.description.label_colors())
                })?;
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

    /// Reads a label volume on the grid of its image, by the headers or by the order of the voxels.
    fn read_on_grid(
        &self,
        image: &Path,
        image_volume: &Image,
        label: &Path,
        read: impl FnOnce(Orientation) -> Result<Volume<u8>, ReadError>,
    ) -> Result<Volume<u8>, DatasetError> {
        let label_volume = match self.description.geometry {
            GeometryCheck::Check => {
                let label_volume = read(self.description.orientation)?;
                if image_volume.geometry().is_some() != label_volume.geometry().is_some() {
                    return Err(DatasetError::OneGeometry {
                        image: image.to_owned(),
                        label: label.to_owned(),
                    });
                }
                label_volume
            }
            GeometryCheck::TrustVoxels => {
                on_grid_of((image, image_volume), (label, read(Orientation::Stored)?))?
            }
        };
        check_grids(
            (image, image_volume.shape(), image_volume.geometry()),
            (label, label_volume.shape(), label_volume.geometry()),
        )?;
        Ok(label_volume)
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
        for (class, file) in organs {
            let mask = self.read_on_grid(image, image_volume, file, |orientation| {
                read_mask(file, orientation)
            })?;
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

/// Places a label volume, in the order of its file, on the grid of an image whose file has its voxels
/// in the same order.
fn on_grid_of(
    (image, image_volume): (&Path, &Image),
    (label, label_volume): (&Path, Volume<u8>),
) -> Result<Volume<u8>, DatasetError> {
    let shape = label_volume.shape();
    let placed = match image_volume.geometry() {
        Some(geometry) => label_volume.into_order_of(geometry),
        None => Some(label_volume),
    };
    placed.ok_or_else(|| DatasetError::Shapes {
        image: image.to_owned(),
        image_shape: image_volume.shape(),
        label: label.to_owned(),
        label_shape: shape,
    })
}

/// Checks that two volumes are on the same grid.
///
/// # Errors
///
/// [`DatasetError::Shapes`] or [`DatasetError::Geometries`], naming both files.
pub fn check_one_grid<T, U>(
    (image, image_volume): (&Path, &Volume<T>),
    (label, label_volume): (&Path, &Volume<U>),
) -> Result<(), DatasetError> {
    check_grids(
        (image, image_volume.shape(), image_volume.geometry()),
        (label, label_volume.shape(), label_volume.geometry()),
    )
}

fn check_grids(
    (image, image_shape, of_image): (&Path, [usize; 3], Option<&Geometry>),
    (label, label_shape, of_label): (&Path, [usize; 3], Option<&Geometry>),
) -> Result<(), DatasetError> {
    if image_shape != label_shape {
        return Err(DatasetError::Shapes {
            image: image.to_owned(),
            image_shape,
            label: label.to_owned(),
            label_shape,
        });
    }
    match (of_image, of_label) {
        (Some(of_image), Some(of_label)) if !of_image.is_same_grid(of_label) => {
            Err(DatasetError::Geometries {
                image: image.to_owned(),
                label: label.to_owned(),
                distance_mm: of_image.max_corner_distance_mm(of_label),
            })
        }
        _ => Ok(()),
    }
}

fn new_case(
    name: String,
    split: Split,
    files: CaseFiles,
    patients: &Patients,
) -> Result<Case, DatasetError> {
    Ok(Case { patient: patients.of(&name)?, name, split, files })
}

fn file_cases(
    root: &Path,
    layout: &FilesLayout,
    description: &DatasetDescription,
    patients: &Patients,
) -> Result<Vec<Case>, DatasetError> {
    let split = &description.split;
    let validation_cases = split.validation.cases();
    let images = &layout.images[0];
    let mut names = matching_names(root, images)?;
    // A pattern such as `{case}.nii` also matches the label files beside the images.
    let file = |pattern: &str, name: &str| pattern.replace(CASE_PLACEHOLDER, name);
    let label_files: BTreeSet<String> =
        names.iter().map(|name| file(&layout.labels, name)).collect();
    // With one pattern for both, a folder has image and labels of its case.
    if layout.labels != *images {
        names.retain(|name| !label_files.contains(&file(images, name)));
    }
    if names.is_empty() {
        return Err(DatasetError::NoCases { pattern: root.join(images) });
    }
    check_names(root, split, &names)?;
    let mut cases = Vec::with_capacity(names.len());
    for name in names {
        let assigned = if split.test.contains(&name) {
            Split::Test
        } else if validation_cases.contains(&name) {
            Split::Validation
        } else if split.train.is_empty() || split.train.contains(&name) {
            Split::Train
        } else {
            continue; // `split.train` excludes it
        };
        let images: Vec<PathBuf> =
            layout.images.iter().map(|pattern| root.join(file(pattern, &name))).collect();
        let label = root.join(file(&layout.labels, &name));
        let files = if layout.has_organ_files() {
            let organs = organ_files(description, &label, &name)?;
            CaseFiles::Organs { images, organs }
        } else if label.is_dir() || (label.is_file() && is_dicom(&label)) {
            CaseFiles::Structures { images, structures: label }
        } else if label.is_file() {
            CaseFiles::Volumes { images, label }
        } else {
            return Err(DatasetError::MissingLabel { case: name, label });
        };
        cases.push(new_case(name, assigned, files, patients)?);
    }
    Ok(cases)
}

/// The masks of a case's organs, by a pattern with `{organ}`. An organ without a file is absent from the
/// case.
fn organ_files(
    description: &DatasetDescription,
    pattern: &Path,
    case: &str,
) -> Result<Vec<(u8, PathBuf)>, DatasetError> {
    let pattern = pattern.to_string_lossy();
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for class in 1..description.classes() as u8 {
        let before = found.len();
        for name in description.organ_file_names(class) {
            let file = PathBuf::from(pattern.replace(ORGAN_PLACEHOLDER, &name));
            if file.is_file() {
                found.push((class, file));
            }
        }
        if found.len() == before {
            missing.push(description.organ(class).name.as_str());
        }
    }
    if !missing.is_empty() && !found.is_empty() {
        log::warn!("case {case} has no file of {}; taken as absent", missing.join(", "));
    }
    if found.is_empty() {
        let first = description.organ_file_names(1).swap_remove(0);
        let expected = PathBuf::from(pattern.replace(ORGAN_PLACEHOLDER, &first));
        return Err(DatasetError::NoOrganFiles { case: case.to_owned(), expected });
    }
    Ok(found)
}

/// The values of a pattern's `{case}` in the names of the files in `root`.
fn matching_names(root: &Path, pattern: &str) -> Result<BTreeSet<String>, ReadError> {
    let (before, after) = pattern.split_once(CASE_PLACEHOLDER).unwrap_or((pattern, ""));
    let (folder, prefix) = before.rsplit_once('/').unwrap_or(("", before));
    let (suffix, below) = match after.split_once('/') {
        Some((suffix, below)) => (suffix, Some(below)),
        None => (after, None),
    };
    let folder = root.join(folder);
    let io = ReadError::io(&folder);
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(&folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        let Ok(file_name) = entry.file_name().into_string() else {
            continue; // patterns are UTF-8, so none matches
        };
        let name = file_name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(suffix));
        let exists = |name: &str| match below {
            Some(below) => entry.path().join(below.replace(CASE_PLACEHOLDER, name)).exists(),
            // A pattern that ends with the case's name is one of folders.
            None => !suffix.is_empty() || entry.path().is_dir(),
        };
        match name {
            // Hidden files, such as the `._img0001.nii.gz` in some archives, are not cases.
            Some(name) if !name.is_empty() && exists(name) && !file_name.starts_with('.') => {
                names.insert(name.to_owned());
            }
            _ => {}
        }
    }
    Ok(names)
}

fn prepared_cases(
    root: &Path,
    layout: &PreparedLayout,
    description: &DatasetDescription,
    patients: &Patients,
) -> Result<Vec<Case>, DatasetError> {
    let [train_list, test_list] =
        [&layout.train_list, &layout.test_list].map(|list| root.join(list));
    let validation_cases = description.split.validation.cases();
    let mut slices: BTreeMap<String, BTreeMap<u64, PathBuf>> = BTreeMap::new();
    let mut cases = Vec::new();
    let mut lines = 0;
    if train_list.is_file() {
        for name in read_list(&train_list)? {
            lines += 1;
            let name = without_ending(&name, &[".npz"]).to_owned();
            let Some((case, slice)) = slice_of_case(&name) else {
                return Err(DatasetError::ListLine {
                    list: train_list.clone(),
                    line: name,
                    expected: "case0005_slice000",
                });
            };
            let file = root.join(&layout.train_slices).join(format!("{name}.npz"));
            check_listed(&train_list, &name, &file)?;
            if let Some(first) = slices.entry(case).or_default().insert(slice, file) {
                let first = first.file_stem().unwrap_or_default().display().to_string();
                return Err(DatasetError::ListedTwice { list: train_list, first, second: name });
            }
        }
    }
    for (case, files) in slices {
        let split = if validation_cases.contains(&case) { Split::Validation } else { Split::Train };
        let files = CaseFiles::Slices(files.into_values().collect());
        cases.push(new_case(case, split, files, patients)?);
    }
    if test_list.is_file() {
        for name in read_list(&test_list)? {
            lines += 1;
            const ENDINGS: [&str; 3] = [".npy.h5", ".h5", ".hdf5"];
            let name = without_ending(&name, &ENDINGS).to_owned();
            let case = case_name(&name);
            let folder = root.join(&layout.test_volumes);
            let files = ENDINGS.map(|ending| folder.join(format!("{name}{ending}")));
            let file = files.iter().find(|file| file.is_file()).unwrap_or(&files[0]).clone();
            check_listed(&test_list, &name, &file)?;
            if let Some(first) = cases.iter().find(|other| other.name == case) {
                if first.split == Split::Test {
                    let first = name.clone();
                    return Err(DatasetError::ListedTwice { list: test_list, first, second: name });
                }
                return Err(DatasetError::Description {
                    description: test_list.display().to_string(),
                    source: crate::DescriptionError::CaseInTwoSplits {
                        case: case.to_owned(),
                        first: first.split,
                        second: Split::Test,
                    },
                });
            }
            cases.push(new_case(case.to_owned(), Split::Test, CaseFiles::Hdf5(file), patients)?);
        }
    }
    if lines == 0 {
        return Err(DatasetError::NoCases { pattern: train_list });
    }
    let names = cases.iter().map(|case| case.name.clone()).collect();
    check_names(root, &description.split, &names)?;
    Ok(cases)
}

/// A name without one of these endings.
fn without_ending<'a>(name: &'a str, endings: &[&str]) -> &'a str {
    endings.iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(name)
}

/// The case and the number in the name of a slice: `case0005_slice000` is slice 0 of case 0005,
/// `case_002_sliceED_3` of other datasets slice 3 of case 002_ED.
fn slice_of_case(name: &str) -> Option<(String, u64)> {
    let (case, slice) = name.rsplit_once("_slice")?;
    let part = slice.trim_end_matches(|c: char| c.is_ascii_digit());
    let number = slice[part.len()..].parse().ok()?;
    let case = case_name(case);
    let part = part.trim_matches('_');
    let separator = if part.is_empty() { "" } else { "_" };
    (!case.is_empty()).then(|| (format!("{case}{separator}{part}"), number))
}

/// The name of a case in a list file: without "case", if a number follows.
fn case_name(name: &str) -> &str {
    let number = name.strip_prefix("case").map(|rest| rest.trim_start_matches('_'));
    number.filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit())).unwrap_or(name)
}

/// The lines of a list file that are not empty.
fn read_list(list: &Path) -> Result<Vec<String>, ReadError> {
    let text = std::fs::read_to_string(list).map_err(ReadError::io(list))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    Ok(lines.map(str::to_owned).collect())
}

fn check_listed(list: &Path, name: &str, file: &Path) -> Result<(), DatasetError> {
    if file.is_file() {
        return Ok(());
    }
    Err(DatasetError::ListedFileMissing {
        list: list.to_owned(),
        name: name.to_owned(),
        file: file.to_owned(),
    })
}

/// Checks that every case that a split names exists.
fn check_names(
    root: &Path,
    split: &SplitDescription,
    cases: &BTreeSet<String>,
) -> Result<(), DatasetError> {
    match split.names().find(|(_, name)| !split.partial && !cases.contains(*name)) {
        None => Ok(()),
        Some((key, name)) => Err(DatasetError::UnknownCase {
            key,
            name: name.clone(),
            root: root.to_owned(),
            cases: cases.iter().cloned().collect(),
        }),
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
