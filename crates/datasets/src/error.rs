use crate::{LabelMap, Split};
use std::fmt;
use std::path::{Path, PathBuf};

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The operating system could not open or read the file.
    #[error("cannot read {}: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file is not of the format that its place in the dataset asks for, or is damaged.
    #[error("{} is not a readable {expected}: {found}", file.display())]
    Format {
        /// The file.
        file: PathBuf,
        /// The format that was expected.
        expected: &'static str,
        /// What was found instead.
        found: String,
    },
    /// The file ends before its voxels do.
    #[error(
        "{} is truncated: its header announces {expected_bytes} bytes of voxels, found {found_bytes}; \
         copy or download it again",
        file.display()
    )]
    Truncated {
        /// The file.
        file: PathBuf,
        /// Bytes of voxels that the header announces.
        expected_bytes: u64,
        /// Bytes of voxels that are there.
        found_bytes: u64,
    },
    /// The header announces more voxels than the file can hold.
    #[error(
        "the header of {} announces {announced_bytes} bytes of voxels, but a file of its size can hold at most \
         {possible_bytes}",
        file.display()
    )]
    HeaderSize {
        /// The file.
        file: PathBuf,
        /// Bytes of voxels that the header announces.
        announced_bytes: u64,
        /// The most that the file can hold.
        possible_bytes: u64,
    },
    /// The file holds more than its header announces.
    #[error("{} goes on after the {expected_bytes} bytes of voxels that its header announces", file.display())]
    TooLong {
        /// The file.
        file: PathBuf,
        /// Bytes of voxels that the header announces.
        expected_bytes: u64,
    },
    /// The array is larger than [`MAX_VOXELS`](crate::MAX_VOXELS).
    #[error("{} holds {voxels} voxels; at most {} are read", file.display(), crate::MAX_VOXELS)]
    TooManyVoxels {
        /// The file.
        file: PathBuf,
        /// Voxels announced.
        voxels: u64,
    },
    /// The array has another number of axes.
    #[error("{}: an array of shape {found:?}, expected {expected}", file.display())]
    Axes {
        /// The file.
        file: PathBuf,
        /// The shape found, in the file's order.
        found: Vec<u64>,
        /// The axes that were expected.
        expected: &'static str,
    },
    /// Voxels of a type that is no plain number.
    #[error("{}: voxels of type {found}; integers and floats are read", file.display())]
    VoxelType {
        /// The file.
        file: PathBuf,
        /// The type found.
        found: String,
    },
    /// A voxel spacing is not a positive number.
    #[error("{}: voxel spacing must be positive and finite, found {found_mm:?} mm", file.display())]
    Spacing {
        /// The file.
        file: PathBuf,
        /// Spacing along the file's three axes.
        found_mm: [f64; 3],
    },
    /// The header's geometry is not invertible or not finite.
    #[error("{}: the header gives no usable geometry: {found}", file.display())]
    Geometry {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        found: String,
    },
    /// A voxel that is not a number, or infinite.
    #[error("{}: voxel {voxel:?} is {value}; image voxels must be finite", file.display())]
    NonFinite {
        /// The file.
        file: PathBuf,
        /// The value.
        value: f64,
        /// The first such voxel, counted from 0 along the file's own axes.
        voxel: [usize; 3],
    },
    /// A label that the dataset's description does not know.
    #[error("{}: voxel {voxel:?} has label {value}; the description knows {expected}", file.display())]
    Label {
        /// The file.
        file: PathBuf,
        /// The value.
        value: f64,
        /// The first such voxel, counted from 0 along the file's own axes.
        voxel: [usize; 3],
        /// The labels that it knows.
        expected: Box<LabelMap>,
    },
    /// An npz or HDF5 file lacks an array.
    #[error("{} has no array `{name}`; it has {}", file.display(), Names(found))]
    MissingArray {
        /// The file.
        file: PathBuf,
        /// The array that was expected.
        name: &'static str,
        /// The arrays that it has.
        found: Vec<String>,
    },
    /// Image and label of one file have different shapes.
    #[error("{}: `image` has shape {image:?} and `label` {label:?}; they must be equal", file.display())]
    ArrayShapes {
        /// The file.
        file: PathBuf,
        /// Shape of the image.
        image: Vec<usize>,
        /// Shape of the label.
        label: Vec<usize>,
    },
}

impl ReadError {
    /// What the operating system said of a file.
    pub(crate) fn io(file: &Path) -> impl Fn(std::io::Error) -> Self + Copy {
        move |source| Self::Io {
            file: file.to_owned(),
            source,
        }
    }
}

/// Why a file could not be written. What was there before is still there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The operating system could not write the file.
    #[error("cannot write {}: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The format cannot hold this.
    #[error("cannot write {}: {reason}", file.display())]
    Unsupported {
        /// The file.
        file: PathBuf,
        /// What the format cannot hold.
        reason: String,
    },
}

/// Why a description of a dataset makes no sense.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DescriptionError {
    /// No organ is named.
    #[error("`organs` is empty; name at least one")]
    NoOrgans,
    /// More organs than labels of one byte can count.
    #[error("{count} organs; at most 255 can be told apart")]
    TooManyOrgans {
        /// Their number.
        count: usize,
    },
    /// Two organs have one name.
    #[error("two organs are called `{name}`")]
    OrganTwice {
        /// The name.
        name: String,
    },
    /// An organ without labels.
    #[error("organ `{name}` has no labels")]
    OrganWithoutLabel {
        /// The organ.
        name: String,
    },
    /// A label with two meanings.
    #[error("label {label} is given to {first} and to {second}")]
    LabelTwice {
        /// The label.
        label: u8,
        /// Its first meaning.
        first: String,
        /// Its second.
        second: String,
    },
    /// `report_order` does not name each organ once.
    #[error("`report_order` must name each organ once; `{name}` is {problem}")]
    ReportOrder {
        /// The name.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// An intensity range that is empty.
    #[error("`intensity` must go from a lower to a higher finite number, found {low} to {high}")]
    Intensity {
        /// Its lower end.
        low: f64,
        /// Its upper end.
        high: f64,
    },
    /// A path pattern without exactly one `{case}`.
    #[error("`{key} = \"{pattern}\"` must contain `{{case}}` exactly once")]
    Pattern {
        /// The key.
        key: &'static str,
        /// The pattern.
        pattern: String,
    },
    /// A setting that would do nothing in the prepared layout.
    #[error(
        "`{key}` has no part in the prepared layout: its lists say who trains and who tests, and its intensities are \
         in [0, 1]; leave out `split.train` and `split.test`, and write `intensity = \"stored\"`"
    )]
    Prepared {
        /// The setting.
        key: &'static str,
    },
    /// A case in two splits.
    #[error("case {case} is in two splits, {first} and {second}")]
    CaseInTwoSplits {
        /// The case.
        case: String,
        /// A split that has it.
        first: Split,
        /// Another.
        second: Split,
    },
    /// A share of the patients that is none.
    #[error("`split.validation.fraction` must lie between 0 and 1, found {found}")]
    Fraction {
        /// The fraction.
        found: f64,
    },
}

/// Why a dataset cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatasetError {
    /// A file could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A file could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A description file that is not TOML, or has unknown keys.
    #[error("{}: {source}", file.display())]
    Toml {
        /// The file.
        file: PathBuf,
        /// What is wrong, and where.
        source: Box<toml::de::Error>,
    },
    /// A description that makes no sense.
    #[error("{description}: {source}")]
    Description {
        /// The description's file or name.
        description: String,
        /// What is wrong with it.
        source: DescriptionError,
    },
    /// No file of the dataset was found.
    #[error("no case found: nothing matches {}", pattern.display())]
    NoCases {
        /// The pattern, with its folder.
        pattern: PathBuf,
    },
    /// A case has an image and no label.
    #[error("case {case} has an image and no label: {} is missing", label.display())]
    MissingLabel {
        /// The case.
        case: String,
        /// Where the label was expected.
        label: PathBuf,
    },
    /// A list file names something that is not there.
    #[error("{} names {name}, but {} is missing", list.display(), file.display())]
    ListedFileMissing {
        /// The list.
        list: PathBuf,
        /// What it names.
        name: String,
        /// The file that was expected.
        file: PathBuf,
    },
    /// A line of a list file that is no slice's or case's name.
    #[error("{}: `{line}` is not a name like {expected}", list.display())]
    ListLine {
        /// The list.
        list: PathBuf,
        /// The line.
        line: String,
        /// A name as expected.
        expected: &'static str,
    },
    /// A split without cases.
    #[error("the {split} split of {} is empty; its cases are {}", root.display(), Names(cases))]
    EmptySplit {
        /// The split.
        split: Split,
        /// The dataset's folder.
        root: PathBuf,
        /// All cases of the dataset.
        cases: Vec<String>,
    },
    /// A patient in two splits.
    #[error(
        "patient {patient} is in two splits: case {} is in {}, case {} in {}",
        cases[0], splits[0], cases[1], splits[1]
    )]
    PatientInTwoSplits {
        /// The patient.
        patient: String,
        /// Two cases of theirs.
        cases: [String; 2],
        /// The splits of these.
        splits: [Split; 2],
    },
    /// Image and label have different shapes.
    #[error(
        "image and label have different shapes: {} is {image_shape:?}, {} is {label_shape:?} \
         (slices, rows, columns)",
        image.display(), label.display()
    )]
    Shapes {
        /// The image.
        image: PathBuf,
        /// Its shape.
        image_shape: [usize; 3],
        /// The label.
        label: PathBuf,
        /// Its shape.
        label_shape: [usize; 3],
    },
    /// Image and label lie at different places in space.
    #[error(
        "image and label lie at different places: corners of {} and {} are up to {distance_mm:.3} mm apart",
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
    /// A kept slice file is not what was written.
    #[error("{} is damaged: {found}; delete it, it is made again", file.display())]
    Store {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        found: String,
    },
}

/// Some names for a message.
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
