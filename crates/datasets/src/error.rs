use crate::{LabelMap, Split};
use std::fmt;
use std::path::{Path, PathBuf};

/// An error from reading a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The operating system cannot open or read the file.
    #[error("cannot read {}: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The file does not have the expected format, or is damaged.
    #[error("cannot read {}: not a valid {expected}: {found}; {remedy}", file.display())]
    Format {
        /// The file.
        file: PathBuf,
        /// The expected format.
        expected: &'static str,
        /// What was found instead.
        found: String,
        /// What the user can do about it.
        remedy: &'static str,
    },
    /// The file ends before the last voxel.
    #[error(
        "cannot read {}: the file is truncated: its header declares {expected_bytes} bytes of \
         voxels, found {found_bytes}; copy or download it again",
        file.display()
    )]
    Truncated {
        /// The file.
        file: PathBuf,
        /// Bytes of voxels that the header declares.
        expected_bytes: u64,
        /// Bytes of voxels in the file.
        found_bytes: u64,
    },
    /// The header declares more voxels than the file can hold.
    #[error(
        "cannot read {}: its header declares {declared_bytes} bytes of voxels, but a file of its \
         size can hold at most {max_bytes}; copy or download it again",
        file.display()
    )]
    HeaderSize {
        /// The file.
        file: PathBuf,
        /// Bytes of voxels that the header declares.
        declared_bytes: u64,
        /// The most bytes of voxels that the file can hold.
        max_bytes: u64,
    },
    /// The file holds more bytes than its header declares.
    #[error(
        "cannot read {}: it continues after the {expected_bytes} bytes of voxels that its header \
         declares; copy it again or correct the header",
        file.display()
    )]
    TooLong {
        /// The file.
        file: PathBuf,
        /// Bytes of voxels that the header declares.
        expected_bytes: u64,
    },
    /// The array is larger than [`MAX_VOXELS`](crate::MAX_VOXELS).
    #[error(
        "cannot read {}: its {voxels} voxels exceed the limit of {}; crop or resample the volume",
        file.display(), crate::MAX_VOXELS
    )]
    TooManyVoxels {
        /// The file.
        file: PathBuf,
        /// Number of voxels that the header declares.
        voxels: u64,
    },
    /// The array has the wrong number of axes, or an axis of unsupported length.
    #[error(
        "cannot read {}: its array has shape {found:?}, expected {expected}; reshape or split the \
         array",
        file.display()
    )]
    Axes {
        /// The file.
        file: PathBuf,
        /// The array's shape, in the file's order of axes.
        found: Vec<u64>,
        /// The expected axes.
        expected: &'static str,
    },
    /// The voxels have a type that is neither an integer nor a float.
    #[error(
        "cannot read {}: voxel type {found} is not supported; convert the voxels to integers or \
         floats",
        file.display()
    )]
    VoxelType {
        /// The file.
        file: PathBuf,
        /// The voxel type.
        found: String,
    },
    /// A voxel spacing is not a positive number.
    #[error(
        "cannot read {}: voxel spacing must be positive and finite, found {found_mm:?} mm by its \
         header's {field}; correct the header or export the file again",
        file.display()
    )]
    Spacing {
        /// The file.
        file: PathBuf,
        /// Name of the header's fields that give the spacing.
        field: &'static str,
        /// Spacing along the file's three axes.
        found_mm: [f64; 3],
    },
    /// The header's geometry is not invertible or not finite.
    #[error(
        "cannot read {}: its header has no usable geometry: {found}; correct the header or export \
         the file again",
        file.display()
    )]
    Geometry {
        /// The file.
        file: PathBuf,
        /// Why the geometry is not usable.
        found: String,
    },
    /// A DICOM file or folder is not a series of slices that make a volume.
    #[error("cannot read {}: {found}; {remedy}", path.display())]
    Dicom {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        found: String,
        /// What to do.
        remedy: String,
    },
    /// The channels of an image are in several files, which do not fit together.
    #[error(
        "cannot read {} as a channel of the image {}: they have {found}; resample one to the grid of \
         the other, or correct `images` in `layout`",
        file.display(), first.display()
    )]
    Channel {
        /// The file.
        file: PathBuf,
        /// The file of the first channel.
        first: PathBuf,
        /// How they differ.
        found: String,
    },
    /// A file has several volumes, and nothing says which of them are channels.
    #[error(
        "cannot read {}: it has {channels} volumes along its fourth axis; if they are channels, name up \
         to three of them in the layout of the dataset description, as in `channels = [0, 1]`",
        file.display()
    )]
    FileChannels {
        /// The file.
        file: PathBuf,
        /// Number of volumes.
        channels: usize,
    },
    /// A file does not have a channel.
    #[error(
        "cannot read {}: channel {channel} does not exist, the file's {count} channels are numbered from \
         0; correct `channels` in the layout of the dataset description",
        file.display()
    )]
    NoChannel {
        /// The file.
        file: PathBuf,
        /// The channel.
        channel: usize,
        /// Number of channels of the file.
        count: usize,
    },
    /// The description chooses channels of NIfTI files, and the file is another.
    #[error(
        "cannot read {}: `channels` in the layout of the dataset description applies to NIfTI files \
         only; convert the file, or remove `channels`",
        file.display()
    )]
    NotNifti {
        /// The file.
        file: PathBuf,
    },
    /// Each channel has a file, and the name of the first does not show those of the others.
    #[error(
        "cannot find the other channels of {}: its name does not fit `images = \"{pattern}\"` of the \
         dataset description; name the files as in training",
        file.display()
    )]
    ChannelFiles {
        /// The file of the first channel.
        file: PathBuf,
        /// The pattern of the first channel.
        pattern: String,
    },
    /// A voxel is NaN or infinite.
    #[error(
        "cannot read {}: voxel ({}, {}, {}) is {value}, but image voxels must be finite; {}",
        file.display(), voxel[0], voxel[1], voxel[2], finite_remedy(*value)
    )]
    NonFinite {
        /// The file.
        file: PathBuf,
        /// The voxel's value.
        value: f64,
        /// Indices of the first such voxel along the file's own axes, from 0.
        voxel: [usize; 3],
    },
    /// A voxel has a label that is not in the dataset description.
    #[error(
        "cannot read {}: label {value} at voxel ({}, {}, {}) is not in the dataset description, \
         which has labels {expected}; {}",
        file.display(), voxel[0], voxel[1], voxel[2], label_remedy(*value)
    )]
    Label {
        /// The file.
        file: PathBuf,
        /// The label.
        value: f64,
        /// Indices of the first such voxel along the file's own axes, from 0.
        voxel: [usize; 3],
        /// The labels in the description.
        expected: Box<LabelMap>,
    },
    /// An npz or HDF5 file lacks an array.
    #[error(
        "cannot read {}: array `{name}` is missing, found {}; save the array under this name",
        file.display(), Names(found)
    )]
    MissingArray {
        /// The file.
        file: PathBuf,
        /// Name of the missing array.
        name: &'static str,
        /// Names of the arrays in the file.
        found: Vec<String>,
    },
    /// Image and label in one file have different shapes.
    #[error(
        "cannot read {}: `image` has shape {image:?} and `label` {label:?}; store both with the \
         same shape",
        file.display()
    )]
    ArrayShapes {
        /// The file.
        file: PathBuf,
        /// Shape of the image.
        image: Vec<usize>,
        /// Shape of the label.
        label: Vec<usize>,
    },
    /// A slice of a case has another shape than the case's first slice.
    #[error(
        "cannot read {}: its slice has shape {found:?}, but the first slice of the case, {}, has \
         {expected:?}; resample the slices of a case to one shape",
        file.display(), first.display()
    )]
    SliceShape {
        /// The file.
        file: PathBuf,
        /// Rows and columns of its slice.
        found: [usize; 2],
        /// The file of the first slice.
        first: PathBuf,
        /// Rows and columns of the first slice.
        expected: [usize; 2],
    },
}

impl ReadError {
    /// Converts an operating system's error about a file.
    pub(crate) fn io(file: &Path) -> impl Fn(std::io::Error) -> Self + Copy {
        move |source| Self::Io { file: file.to_owned(), source }
    }
}

/// The remedy for a voxel that is not finite.
fn finite_remedy(value: f64) -> &'static str {
    if value.is_nan() {
        "set `fill_nan` in the dataset description to the intensity that voxels without a value get"
    } else {
        "replace it with a number"
    }
}

/// The remedy for a label that is not in the dataset description.
fn label_remedy(value: f64) -> &'static str {
    // The conversion saturates, so only integers from 0 to 65,535 survive it.
    if f64::from(value as u16) == value {
        "add it to an organ's labels or to ignored_labels, or set ignored_labels = \"others\""
    } else {
        "labels are whole numbers from 0 to 65535; an interpolation may have mixed them, so resample \
         labels by nearest neighbour, or choose the label file if this is an image"
    }
}

/// An error from writing a file. A previous file of that name is unchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The operating system cannot write the file.
    #[error("cannot write {}: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The format does not support this volume or file name.
    #[error("cannot write {}: {reason}", file.display())]
    Unsupported {
        /// The file.
        file: PathBuf,
        /// What the format does not support, and the remedy.
        reason: String,
    },
}

/// An invalid value in a dataset description.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DescriptionError {
    /// There are no organs.
    #[error("`organs` is empty; add at least one organ")]
    NoOrgans,
    /// There are more organs than one byte can number.
    #[error("`organs` has {count} entries, but the limit is 255; merge or remove organs")]
    TooManyOrgans {
        /// Number of organs.
        count: usize,
    },
    /// Two organs have the same name.
    #[error("two organs are named `{name}`; rename one of them")]
    DuplicateOrgan {
        /// The name.
        name: String,
    },
    /// An organ has no labels.
    #[error("organ `{name}` has no labels; add at least one label to its `labels`")]
    OrganWithoutLabel {
        /// The organ.
        name: String,
    },
    /// A label has two meanings.
    #[error("label {label} is assigned to {first} and to {second}; remove it from one of them")]
    DuplicateLabel {
        /// The label.
        label: u16,
        /// Its first meaning.
        first: String,
        /// Its second meaning.
        second: String,
    },
    /// `report_order` does not list each organ exactly once.
    #[error("`report_order` must list each organ exactly once, but `{name}` is {problem}")]
    ReportOrder {
        /// The name.
        name: String,
        /// What is wrong with the name.
        problem: &'static str,
    },
    /// An intensity range is empty or outside its limits.
    #[error(
        "`intensity` range {low} to {high} is invalid; give two finite numbers in ascending order \
         (percentiles from 0 to 100)"
    )]
    Intensity {
        /// Lower end of the range.
        low: f64,
        /// Upper end of the range.
        high: f64,
    },
    /// `fill_nan` is not a number.
    #[error("`fill_nan` must be a finite number, found {found}")]
    FillNan {
        /// The value.
        found: f32,
    },
    /// An image has no file or more than three.
    #[error(
        "`images` has {count} patterns; expected one for each channel, of which there are 1 to 3"
    )]
    Channels {
        /// Number of patterns.
        count: usize,
    },
    /// More than three channels of a file are chosen, or some where each channel has its own file.
    #[error(
        "`channels` names {channels} channels, and `images` has {files} patterns; expected up to three \
         channels of one file, or none where each channel has a file"
    )]
    FileChannels {
        /// Number of patterns.
        files: usize,
        /// Number of channels.
        channels: usize,
    },
    /// Folders of a split and the layout do not fit.
    #[error("`{{split}}` in the layout and `split.folders` belong together: {problem}")]
    SplitFolders {
        /// What is wrong.
        problem: &'static str,
    },
    /// `split.patient_pattern` is not a regular expression with a group.
    #[error(
        "`split.patient_pattern = \"{pattern}\"` is invalid: {reason}; expected a regular expression \
         whose first group is the patient, such as \"^(p[0-9]+)_\""
    )]
    PatientPattern {
        /// The pattern.
        pattern: String,
        /// Why it is invalid.
        reason: String,
    },
    /// A path pattern does not contain `{case}`, or contains it twice in one name.
    #[error(
        "`{key} = \"{pattern}\"` must contain `{{case}}`, at most once in the name of a folder or file"
    )]
    Pattern {
        /// The key.
        key: &'static str,
        /// The pattern.
        pattern: String,
    },
    /// A setting has no effect in the prepared layout.
    #[error(
        "`{key}` has no effect in the prepared layout, whose list files define the splits and \
         whose intensities are in [0, 1] already; remove `split.train` and `split.test`, and set \
         `intensity = \"stored\"`"
    )]
    UnusedSetting {
        /// The setting.
        key: &'static str,
    },
    /// A case is in two splits.
    #[error("case {case} is in two splits, {first} and {second}; remove it from one of them")]
    CaseInTwoSplits {
        /// The case.
        case: String,
        /// One of its splits.
        first: Split,
        /// The other split.
        second: Split,
    },
    /// The validation fraction is not between 0 and 1.
    #[error("`split.validation.fraction` must be between 0 and 1, both excluded, found {found}")]
    Fraction {
        /// The fraction.
        found: f64,
    },
}

/// An error that makes a dataset unusable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatasetError {
    /// A file cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A file cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A description file is not TOML, or has unknown or missing keys.
    #[error("cannot read {}: {source}", file.display())]
    Toml {
        /// The file.
        file: PathBuf,
        /// The TOML error, with its position.
        source: Box<toml::de::Error>,
    },
    /// A dataset description has an invalid value.
    #[error("cannot use {description}: {source}")]
    Description {
        /// The file that has the value, or the description's name.
        description: String,
        /// The invalid value.
        source: DescriptionError,
    },
    /// The folder has no cases.
    #[error(
        "cannot find any case at {}; check the dataset folder and the paths in `layout`",
        pattern.display()
    )]
    NoCases {
        /// The path pattern or list file, with its folder.
        pattern: PathBuf,
    },
    /// A case has an image but no label.
    #[error(
        "cannot read case {case}: its image has no label file, expected {}; add the label or \
         remove the image",
        label.display()
    )]
    MissingLabel {
        /// The case.
        case: String,
        /// The expected label file.
        label: PathBuf,
    },
    /// A list file names a file that does not exist.
    #[error(
        "cannot read {}: it names {name}, but {} is missing; add the file or remove the line",
        list.display(), file.display()
    )]
    ListedFileMissing {
        /// The list file.
        list: PathBuf,
        /// The listed name.
        name: String,
        /// The expected file.
        file: PathBuf,
    },
    /// A list file names a slice or a case twice.
    #[error("cannot read {}: it names {first} and {second}, which are the same; remove one of them",
        list.display()
    )]
    ListedTwice {
        /// The list file.
        list: PathBuf,
        /// One of the lines.
        first: String,
        /// The other line.
        second: String,
    },
    /// A line of a list file is not the name of a slice or case.
    #[error(
        "cannot read {}: `{line}` is not a name like {expected}; correct or remove the line",
        list.display()
    )]
    ListLine {
        /// The list file.
        list: PathBuf,
        /// The line.
        line: String,
        /// An example of a valid name.
        expected: &'static str,
    },
    /// The description names a case that the folder does not contain.
    #[error(
        "`{key}` names case {name}, but {} has only the cases {}; correct the name, or set \
         split.partial = true if a part of the dataset is missing on purpose",
        root.display(), Names(cases)
    )]
    UnknownCase {
        /// The setting that names the case.
        key: &'static str,
        /// The name.
        name: String,
        /// The dataset's folder.
        root: PathBuf,
        /// All cases in the folder.
        cases: Vec<String>,
    },
    /// A split has no cases.
    #[error(
        "cannot use the {split} split of {}: it is empty, and the dataset's cases are {}; assign \
         cases to it in `split` or in the list files",
        root.display(), Names(cases)
    )]
    EmptySplit {
        /// The split.
        split: Split,
        /// The dataset's folder.
        root: PathBuf,
        /// All cases of the dataset.
        cases: Vec<String>,
    },
    /// A case has no patient.
    #[error(
        "cannot assign case {case} to a patient: {source_of_patients}; without its patient, cases of \
         one patient may come into two splits"
    )]
    NoPatient {
        /// The case.
        case: String,
        /// Where its patient was looked for.
        source_of_patients: String,
    },
    /// A table of patients cannot be used.
    #[error("cannot read {}: {found}; expected a line with a case and its patient for each case, such as scan_01,P7", file.display())]
    PatientTable {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        found: String,
    },
    /// A patient is in two splits.
    #[error(
        "patient {patient} is in two splits: case {} is in {}, case {} in {}; assign all cases of \
         a patient to one split",
        cases[0], splits[0], cases[1], splits[1]
    )]
    PatientInTwoSplits {
        /// The patient.
        patient: String,
        /// Two of the patient's cases.
        cases: [String; 2],
        /// The splits of these cases.
        splits: [Split; 2],
    },
    /// A case has an image but no file of any organ.
    #[error(
        "cannot read case {case}: its image has no organ files, expected files such as {}; add them, \
         or correct `labels` in `layout` or `files` of the organs",
        expected.display()
    )]
    NoOrganFiles {
        /// The case.
        case: String,
        /// The expected file of the first organ.
        expected: PathBuf,
    },
    /// A DICOM segmentation or structure set has a structure that is not described.
    #[error(
        "cannot read {}: its structure `{name}` is not in the dataset description, which has {}; add \
         it to an organ's `files`, or set ignored_labels = \"others\"",
        path.display(), Names(organs)
    )]
    UnknownStructure {
        /// The file or folder.
        path: PathBuf,
        /// The structure.
        name: String,
        /// The described organs.
        organs: Vec<String>,
    },
    /// DICOM labels need an image with a place in the patient.
    #[error(
        "cannot place the structures of {} on {}, which has no position in the patient; give the \
         image in DICOM or NIfTI",
        structures.display(), image.display()
    )]
    NoGeometry {
        /// The image.
        image: PathBuf,
        /// The structures.
        structures: PathBuf,
    },
    /// Image and label have different shapes.
    #[error(
        "cannot pair volumes of different shapes: {} is {image_shape:?}, {} is {label_shape:?} \
         (slices, rows, columns); resample one to the grid of the other",
        image.display(), label.display()
    )]
    Shapes {
        /// The image.
        image: PathBuf,
        /// Shape of the image.
        image_shape: [usize; 3],
        /// The label.
        label: PathBuf,
        /// Shape of the label.
        label_shape: [usize; 3],
    },
    /// Image and label have different positions in space.
    #[error(
        "cannot pair volumes at different positions: corners of {} and {} are up to \
         {distance_mm:.3} mm apart; resample one to the grid of the other or, if their voxels \
         correspond in order and only a header is wrong, set `geometry = \"trust_voxels\"` in the \
         dataset description",
        image.display(), label.display()
    )]
    Geometries {
        /// The image.
        image: PathBuf,
        /// The label.
        label: PathBuf,
        /// The largest distance between corresponding corners.
        distance_mm: f64,
    },
    /// The preprocessed form has one channel.
    #[error(
        "cannot convert case {case} to the preprocessed form: it has {channels} channels, and that form \
         has one; train on the dataset as it is"
    )]
    PreparedChannels {
        /// The case.
        case: String,
        /// Number of its channels.
        channels: usize,
    },
    /// Only one of image and label has a position in space.
    #[error(
        "cannot pair {} with {}: only one of them has a position in the patient, so the order of their \
         voxels may differ; convert the other, or set `geometry = \"trust_voxels\"` in the dataset \
         description if their voxels correspond in order",
        image.display(), label.display()
    )]
    OneGeometry {
        /// The image.
        image: PathBuf,
        /// The label.
        label: PathBuf,
    },
    /// A file of cached slices is damaged.
    #[error(
        "cannot read cached slices {}: {found}; delete the file and it will be created again",
        file.display()
    )]
    SliceCache {
        /// The file.
        file: PathBuf,
        /// What is wrong with the file.
        found: String,
    },
}

/// The first few of a list of names, for a message.
struct Names<'a>(&'a [String]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 12;
        if self.0.is_empty() {
            return f.write_str("none");
        }
        f.write_str(&self.0[..self.0.len().min(SHOWN)].join(", "))?;
        if self.0.len() > SHOWN {
            write!(f, " and {} more", self.0.len() - SHOWN)?;
        }
        Ok(())
    }
}
