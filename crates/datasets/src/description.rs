//! Dataset descriptions: file layout, labels, intensities and splits.

use crate::image_file::read_channels;
use crate::intensity::IntensityRange;
use crate::patients::patient_regex;
use crate::{
    DatasetError, DescriptionError, IgnoredLabels, Image, Intensity, LabelMap, Orientation,
    ReadError,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};

/// Describes a dataset. [`DatasetDescription::synapse`] is built in; other datasets are described
/// in TOML files:
///
/// ```
/// # use sam_lst_datasets::DatasetDescription;
/// let description = DatasetDescription::from_toml(
///     r##"
///     name = "two organs in MRI"
///     orientation = "LPS"
///     intensity = { percentiles = [0.5, 99.5] }
///     ignored_labels = [3]
///
///     [layout.nifti]
///     images = "mri/{case}/t2.nii.gz"
///     labels = "mri/{case}/organs.nii.gz"
///
///     [[organs]]
///     name = "liver"
///     labels = [1]
///     color = "#c08040"
///
///     [[organs]]
///     name = "kidneys"
///     labels = [2, 5]
///
///     [split]
///     test = ["0007", "0011"]
///     validation = { fraction = 0.2, seed = 1 }
///     "##,
/// )?;
/// assert_eq!(description.label_map().classes(), 3);
/// # Ok::<(), sam_lst_datasets::DatasetError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetDescription {
    /// The dataset's name in reports and messages.
    pub name: String,
    /// The orientation of the arrays, whatever the files' own; by default [`Orientation::LPS`].
    #[serde(default)]
    pub orientation: Orientation,
    /// Whether the header of a label volume must place it on its image.
    #[serde(default, skip_serializing_if = "GeometryCheck::is_default")]
    pub geometry: GeometryCheck,
    /// The intensity of voxels that have none (NaN), in the files' unit; without it, such a voxel is
    /// an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fill_nan: Option<f32>,
    /// How intensities are normalised to `[0, 1]`.
    pub intensity: Intensity,
    /// Labels that are background, in addition to 0.
    #[serde(default)]
    pub ignored_labels: IgnoredLabels,
    /// Organ names in the order of reports; if empty, the order of `organs`.
    #[serde(default)]
    pub report_order: Vec<String>,
    /// The layout of the dataset's files.
    pub layout: Layout,
    /// The organs, which are classes 1, 2, …
    pub organs: Vec<Organ>,
    /// The training, validation and test cases.
    #[serde(default)]
    pub split: SplitDescription,
}

/// Whether the header of a label volume must place it on its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GeometryCheck {
    /// Corners that are apart are an error.
    #[default]
    Check,
    /// The label's header is not read: its voxels, in the order of the file, are those of the image.
    TrustVoxels,
}

impl GeometryCheck {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// An organ, or any other structure that is a class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Organ {
    /// The organ's name in reports.
    pub name: String,
    /// The organ's label numbers in the files. Predictions are written with the first. Where the layout
    /// has one file per organ, they may be absent; predictions then have the number of the class.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<u16>,
    /// Where the layout has one file per organ, the names that stand for `{organ}` in its files, by
    /// default the organ's name with `_` for each space; where labels are DICOM segmentations or
    /// structure sets, the names of the structures, by default the organ's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<String>,
    /// The organ's colour in pictures; if `None`, a colour of the built-in palette.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub color: Option<Color>,
}

impl Organ {
    /// An organ with one label, without a colour or files of its own.
    pub fn new(name: impl Into<String>, label: u16) -> Self {
        Self { name: name.into(), labels: vec![label], color: None, files: Vec::new() }
    }
}

/// An sRGB colour: `"#rrggbb"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Color(pub [u8; 3]);

/// An invalid colour.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid colour `{found}`; expected `#rrggbb`, such as `#c08040`")]
pub struct ColorError {
    /// The invalid text.
    pub found: String,
}

impl TryFrom<String> for Color {
    type Error = ColorError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let byte = |at: usize| {
            let digits = text.get(at..at + 2)?;
            let hexadecimal = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            hexadecimal.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
        };
        match (text.starts_with('#') && text.len() == 7, byte(1), byte(3), byte(5)) {
            (true, Some(red), Some(green), Some(blue)) => Ok(Self([red, green, blue])),
            _ => Err(ColorError { found: text }),
        }
    }
}

impl From<Color> for String {
    fn from(Color([red, green, blue]): Color) -> Self {
        format!("#{red:02x}{green:02x}{blue:02x}")
    }
}

/// The layout of the files in the dataset's folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// An image and its labels in files of their own for each case: NIfTI files, folders of DICOM
    /// series, pictures.
    #[serde(alias = "nifti")]
    Files(FilesLayout),
    /// The common preprocessed form of Synapse: one file per slice for training and one file per
    /// volume for testing, named in list files. Intensities are in `[0, 1]` and labels are classes
    /// already, so `intensity` must be `"stored"`, and `split.train` and `split.test` must be
    /// absent.
    Prepared(PreparedLayout),
}

/// Where the files of each case are: path patterns that contain `{case}`, at most once in a folder's or file's name:
/// `{case}/{case}_t1.nii.gz` is one. With `{split}`, cases lie in a folder for each split, whose names are
/// [`SplitDescription::folders`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilesLayout {
    /// Pattern of the images, such as `img/img{case}.nii.gz`; of folders, if each has a DICOM series. A
    /// list of up to three patterns, if each channel has a file of its own; of two channels, the third
    /// is their mean.
    #[serde(deserialize_with = "one_or_many", serialize_with = "one_if_single")]
    pub images: Vec<String>,
    /// Which channels of a NIfTI file with several (a fourth axis) are the image's, up to three, counted
    /// from 0; empty for files with one. Of two channels, the third is their mean.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub channels: Vec<usize>,
    /// Pattern of the labels, such as `label/label{case}.nii.gz`; of DICOM files or folders of them, if
    /// they are segmentations (SEG) or structure sets (RTSTRUCT), which may be in the folder of the
    /// image's series. With `{organ}`, each organ has files
    /// of its own, in which every voxel that is not 0 belongs to it: `{case}/organs/{organ}.nii.gz`.
    pub labels: String,
    /// Label numbers of the colours of masks, such as `{ "#ff0000" = 1 }`; empty if the pixels of masks
    /// are label numbers. The background is black unless it is listed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub label_colors: BTreeMap<Color, u16>,
}

/// A list, or a single text for a list of one.
fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a path pattern, or a list of one for each channel")]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(one) => vec![one],
        OneOrMany::Many(many) => many,
    })
}

fn one_if_single<S: Serializer>(texts: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    match texts {
        [one] => one.serialize(serializer),
        many => many.serialize(serializer),
    }
}

impl FilesLayout {
    /// Whether each organ has files of its own.
    pub fn has_organ_files(&self) -> bool {
        self.labels.contains(ORGAN_PLACEHOLDER)
    }
}

/// Folders and list files of the preprocessed form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PreparedLayout {
    /// Folder of `caseNNNN_sliceDDD.npz`.
    pub train_slices: String,
    /// Folder of `caseNNNN.npy.h5`.
    pub test_volumes: String,
    /// List file of the training slices, one name per line, without `.npz`.
    pub train_list: String,
    /// List file of the test volumes, one name per line, without `.npy.h5`.
    pub test_list: String,
}

impl Default for PreparedLayout {
    fn default() -> Self {
        Self {
            train_slices: "train_npz".to_owned(),
            test_volumes: "test_vol_h5".to_owned(),
            train_list: "lists/lists_Synapse/train.txt".to_owned(),
            test_list: "lists/lists_Synapse/test_vol.txt".to_owned(),
        }
    }
}

/// A subset of a dataset's cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Training minimises the loss on these cases.
    Train,
    /// Scores on these cases select the best checkpoint.
    Validation,
    /// These cases are scored at the end.
    Test,
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "training",
            Self::Validation => "validation",
            Self::Test => "test",
        })
    }
}

/// Assigns cases to splits.
///
/// A name that no case in the folder has is an error, unless the split is [`partial`](Self::partial).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SplitDescription {
    /// The names that stand for `{split}` in the layout, such as `{ train = "train", test = "test" }`;
    /// lists of training and test cases must then be absent. If cases of two splits have equal names,
    /// all cases are named with their folder, as `train_0001`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub folders: BTreeMap<Split, String>,
    /// Training cases; if empty, all cases that are in no other split.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub train: Vec<String>,
    /// Test cases, which are scored at the end.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<String>,
    /// Validation cases, taken from training to select the best checkpoint.
    #[serde(skip_serializing_if = "Validation::is_none")]
    pub validation: Validation,
    /// Patient by case, for cases whose patient is not named like the case. No patient may be in
    /// two splits.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub patients: BTreeMap<String, String>,
    /// A CSV file in the dataset's folder with the patient of each case, in two columns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patient_table: Option<String>,
    /// A regular expression whose first group is the patient in a case's name: `"^(p[0-9]+)_"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patient_pattern: Option<String>,
    /// Whether named cases may be missing from the folder, as in a download of a part of a dataset.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

impl SplitDescription {
    /// The names of cases, with the setting that contains them.
    pub(crate) fn names(&self) -> impl Iterator<Item = (&'static str, &String)> {
        let lists = [
            ("split.train", self.train.as_slice()),
            ("split.test", &self.test),
            ("split.validation.cases", self.validation.cases()),
        ];
        let listed =
            lists.into_iter().flat_map(|(key, names)| names.iter().map(move |name| (key, name)));
        listed.chain(self.patients.keys().map(|name| ("split.patients", name)))
    }
}

/// The validation cases.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Validation {
    /// A random fraction of the training patients, at least one.
    Fraction {
        /// The fraction, between 0 and 1.
        fraction: f64,
        /// Seed of the random choice.
        seed: u64,
    },
    /// Explicit cases.
    Cases {
        /// Names of the cases.
        cases: Vec<String>,
    },
    /// No validation.
    #[default]
    #[serde(skip_deserializing)]
    None,
}

impl Validation {
    /// The explicit validation cases.
    pub(crate) fn cases(&self) -> &[String] {
        match self {
            Self::Cases { cases } => cases,
            _ => &[],
        }
    }

    fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }
}

impl DatasetDescription {
    /// Describes Synapse (BTCV abdomen) as downloaded: 30 CTs, eight organs, the usual 18 training
    /// and 12 test cases.
    pub fn synapse() -> Self {
        let organs: [(&str, u16, [u8; 3]); 8] = [
            ("spleen", 1, [0xe6, 0x4b, 0x4b]),
            ("right kidney", 2, [0x4c, 0xaf, 0x50]),
            ("left kidney", 3, [0x9c, 0xcc, 0x65]),
            ("gallbladder", 4, [0xff, 0xd5, 0x4f]),
            ("liver", 6, [0xb0, 0x7a, 0x4f]),
            ("stomach", 7, [0x4f, 0xc3, 0xf7]),
            ("aorta", 8, [0xff, 0x70, 0x43]),
            ("pancreas", 11, [0xba, 0x68, 0xc8]),
        ];
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Self {
            name: "synapse".to_owned(),
            geometry: GeometryCheck::Check,
            fill_nan: None,
            // That of the published files, whose slices show the back up.
            orientation: Orientation::LAS,
            intensity: Intensity::Window([-125.0, 275.0]),
            // Oesophagus, vena cava, portal and splenic veins, adrenal glands.
            ignored_labels: IgnoredLabels::Listed(vec![5, 9, 10, 12, 13]),
            report_order: names(&[
                "aorta",
                "gallbladder",
                "left kidney",
                "right kidney",
                "liver",
                "pancreas",
                "spleen",
                "stomach",
            ]),
            layout: Layout::Files(FilesLayout {
                images: vec!["RawData/Training/img/img{case}.nii.gz".to_owned()],
                channels: Vec::new(),
                labels: "RawData/Training/label/label{case}.nii.gz".to_owned(),
                label_colors: BTreeMap::new(),
            }),
            organs: organs
                .map(|(name, label, color)| Organ {
                    name: name.to_owned(),
                    labels: vec![label],
                    files: Vec::new(),
                    color: Some(Color(color)),
                })
                .into(),
            split: SplitDescription {
                test: names(&[
                    "0001", "0002", "0003", "0004", "0008", "0022", "0025", "0029", "0032", "0035",
                    "0036", "0038",
                ]),
                partial: true,
                ..SplitDescription::default()
            },
        }
    }

    /// Describes Synapse in its common preprocessed form, which `prepare_synapse` and the published
    /// pipelines write.
    pub fn synapse_prepared() -> Self {
        let mut description = Self {
            orientation: Orientation::Stored,
            intensity: Intensity::Stored,
            ignored_labels: IgnoredLabels::default(),
            layout: Layout::Prepared(PreparedLayout::default()),
            split: SplitDescription::default(),
            ..Self::synapse()
        };
        for (class, organ) in (1..).zip(&mut description.organs) {
            organ.labels = vec![class];
        }
        description
    }

    /// Reads a description from TOML.
    ///
    /// # Errors
    ///
    /// [`DatasetError::Toml`] for a text that is not TOML, an unknown key or a missing key;
    /// [`DatasetError::Description`] for an invalid value.
    pub fn from_toml(text: &str) -> Result<Self, DatasetError> {
        Self::from_toml_of(text, Path::new("description"))
    }

    /// Reads a description from a TOML file.
    ///
    /// # Errors
    ///
    /// The errors of [`Self::from_toml`], and [`DatasetError::Read`] if the file cannot be read.
    pub fn from_file(file: impl AsRef<Path>) -> Result<Self, DatasetError> {
        let file = file.as_ref();
        let text = std::fs::read_to_string(file).map_err(crate::ReadError::io(file))?;
        Self::from_toml_of(&text, file)
    }

    fn from_toml_of(text: &str, file: &Path) -> Result<Self, DatasetError> {
        let description: Self = toml::from_str(text).map_err(|source| DatasetError::Toml {
            file: file.to_owned(),
            source: Box::new(source),
        })?;
        description.check().map_err(|source| DatasetError::Description {
            description: file.display().to_string(),
            source,
        })?;
        Ok(description)
    }

    /// Writes the description as TOML.
    ///
    /// # Panics
    ///
    /// Never: every description can be written.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("a description is plain data")
    }

    /// Reads an image in the description's orientation, with intensities in `[0, 1]` by its
    /// `intensity`, as [`Dataset::read`](crate::Dataset::read) does. A warning is logged for intensities
    /// that do not fit.
    ///
    /// Where each channel has a file, `file` is that of the first, and the others are those that
    /// `images` names for the same case.
    ///
    /// # Errors
    ///
    /// [`ReadError`], as [`read_image`](crate::read_image); and [`ReadError::ChannelFiles`] if the
    /// name of `file` is not that of a first channel.
    pub fn read_image(&self, file: impl AsRef<Path>) -> Result<Image, ReadError> {
        let file = file.as_ref();
        let image = self.read_stored_image(&self.channel_files(file)?)?;
        let range = IntensityRange::of(image.slices(), self.intensity);
        Ok(self.normalize(image, &range, file))
    }

    /// The files of all channels of an image, by the file of the first.
    fn channel_files(&self, first: &Path) -> Result<Vec<PathBuf>, ReadError> {
        let patterns = match &self.layout {
            Layout::Files(layout) => layout.images.as_slice(),
            Layout::Prepared(_) => &[],
        };
        if patterns.len() < 2 {
            return Ok(vec![first.to_owned()]);
        }
        let unknown =
            || ReadError::ChannelFiles { file: first.to_owned(), pattern: patterns[0].clone() };
        let name = first.file_name().unwrap_or_default().to_string_lossy();
        let paths: Vec<(&str, &str)> = patterns
            .iter()
            .map(|pattern| pattern.rsplit_once('/').unwrap_or(("", pattern)))
            .collect();
        let are_distinct = paths.iter().collect::<BTreeSet<_>>().len() == paths.len();
        // Channels of one folder lie in one folder, wherever that is.
        if are_distinct && paths.iter().all(|(folder, _)| *folder == paths[0].0) {
            // Without a placeholder, the case is in the name of a folder.
            let case = match paths[0].1 == name {
                true => String::new(),
                false => case_of(paths[0].1, &name).ok_or_else(unknown)?,
            };
            let file = |name: &str| first.with_file_name(name.replace(CASE_PLACEHOLDER, &case));
            return Ok(paths.iter().map(|(_, name)| file(name)).collect());
        }
        // Otherwise the folders must be those of the patterns.
        let found = |split: &str| {
            let pattern = patterns[0].replace(SPLIT_PLACEHOLDER, split);
            let root = first.ancestors().nth(pattern.split('/').count())?;
            let below = first.strip_prefix(root).ok()?.iter().map(|name| name.to_str());
            let case = case_of(&pattern, &below.collect::<Option<Vec<_>>>()?.join("/"))?;
            let file = |pattern: &String| {
                let file =
                    pattern.replace(SPLIT_PLACEHOLDER, split).replace(CASE_PLACEHOLDER, &case);
                root.join(file)
            };
            Some(patterns.iter().map(file).collect())
        };
        let mut splits = self.split.folders.values();
        match self.split.folders.is_empty() {
            true => found(""),
            false => splits.find_map(|split| found(split)),
        }
        .ok_or_else(unknown)
    }

    /// Reads an image in the description's orientation, with the intensities of its files, one for each
    /// channel.
    pub(crate) fn read_stored_image(&self, files: &[PathBuf]) -> Result<Image, ReadError> {
        read_channels(files, self.file_channels(), self.orientation, self.fill_nan)
    }

    /// The channels to read of a file with several; empty for files with one.
    pub(crate) fn file_channels(&self) -> &[usize] {
        match &self.layout {
            Layout::Files(layout) => &layout.channels,
            Layout::Prepared(_) => &[],
        }
    }

    /// Label numbers of the colours of masks.
    pub fn label_colors(&self) -> &BTreeMap<Color, u16> {
        const NONE: &BTreeMap<Color, u16> = &BTreeMap::new();
        match &self.layout {
            Layout::Files(layout) => &layout.label_colors,
            Layout::Prepared(_) => NONE,
        }
    }

    /// Normalises the image of a file and logs a warning if its intensities do not fit.
    pub(crate) fn normalize(&self, mut image: Image, range: &IntensityRange, file: &Path) -> Image {
        self.warn_of_intensities(range, image.shape()[0], file);
        image.channels_mut().for_each(|mut channel| self.intensity.apply(&mut channel));
        image
    }

    /// Logs a warning if the intensities of a file do not fit.
    pub(crate) fn warn_of_intensities(&self, range: &IntensityRange, slices: usize, file: &Path) {
        if let Some(warning) = range.implausible(self.intensity, slices) {
            log::warn!("{}: {warning}", file.display());
        }
    }

    /// The map from the files' labels to classes.
    pub fn label_map(&self) -> LabelMap {
        let labels = (1..).zip(&self.organs).map(|(class, organ)| match organ.labels.as_slice() {
            [] => vec![class], // the files are the organs' own
            labels => labels.to_vec(),
        });
        let labels: Vec<Vec<u16>> = labels.collect();
        LabelMap::new(&labels, &self.ignored_labels)
    }

    /// Number of classes, including the background.
    pub fn classes(&self) -> usize {
        self.organs.len() + 1
    }

    /// The organs' classes in the order of reports.
    pub fn report_classes(&self) -> Vec<u8> {
        let index = |name: &String| self.organs.iter().position(|organ| organ.name == *name);
        let indices: Vec<usize> = if self.report_order.is_empty() {
            (0..self.organs.len()).collect()
        } else {
            self.report_order.iter().filter_map(index).collect()
        };
        indices.into_iter().map(|index| index as u8 + 1).collect() // at most 255 organs
    }

    /// The names that stand for `{organ}` in the files of a class, where each organ has its own.
    pub(crate) fn organ_file_names(&self, class: u8) -> Vec<String> {
        let organ = self.organ(class);
        match organ.files.as_slice() {
            [] => vec![organ.name.replace(' ', "_")],
            files => files.to_vec(),
        }
    }

    /// For each organ, those of some structures' names that are its own: the name of the organ or one of
    /// its `files`, whatever their case and whether words are separated by spaces, `_` or `-`.
    pub(crate) fn structures_of_organs<'a>(&self, names: &BTreeSet<&'a str>) -> Vec<Vec<&'a str>> {
        let of_organ = |organ: &Organ| {
            let own: Vec<String> = match organ.files.as_slice() {
                [] => vec![plain_name(&organ.name)],
                files => files.iter().map(|name| plain_name(name)).collect(),
            };
            names.iter().copied().filter(|name| own.contains(&plain_name(name))).collect()
        };
        self.organs.iter().map(of_organ).collect()
    }

    /// The organ of a class.
    ///
    /// # Panics
    ///
    /// If the class does not exist or is the background.
    pub fn organ(&self, class: u8) -> &Organ {
        &self.organs[usize::from(class) - 1]
    }

    /// The colour of an organ's class in pictures.
    ///
    /// # Panics
    ///
    /// If the class does not exist or is the background.
    pub fn color(&self, class: u8) -> Color {
        // Hues a golden angle apart differ clearly from the previous few.
        self.organ(class).color.unwrap_or_else(|| hue(f32::from(class - 1) * 137.508))
    }

    /// Checks the constraints that the types do not express.
    ///
    /// # Errors
    ///
    /// [`DescriptionError`] for the first invalid value.
    pub fn check(&self) -> Result<(), DescriptionError> {
        if self.organs.is_empty() {
            return Err(DescriptionError::NoOrgans);
        }
        if self.organs.len() > 255 {
            return Err(DescriptionError::TooManyOrgans { count: self.organs.len() });
        }
        self.intensity.check()?;
        if let Some(fill) = self.fill_nan.filter(|fill| !fill.is_finite()) {
            return Err(DescriptionError::FillNan { found: fill });
        }
        self.check_labels()?;
        self.check_report_order()?;
        match &self.layout {
            Layout::Files(layout) => {
                if !(1..=3).contains(&layout.images.len()) {
                    return Err(DescriptionError::Channels { count: layout.images.len() });
                }
                let (files, channels) = (layout.images.len(), layout.channels.len());
                if channels > 3 || (channels > 0 && files > 1) {
                    return Err(DescriptionError::FileChannels { files, channels });
                }
                self.check_split_folders(layout)?;
                let images = layout.images.iter().map(|pattern| ("images", pattern));
                for (key, pattern) in images.chain([("labels", &layout.labels)]) {
                    let in_name = |name: &str| name.matches(CASE_PLACEHOLDER).count();
                    let names = pattern.split('/').map(in_name);
                    if !pattern.contains(CASE_PLACEHOLDER) || names.clone().any(|count| count > 1) {
                        return Err(DescriptionError::Pattern { key, pattern: pattern.clone() });
                    }
                }
            }
            Layout::Prepared(_) => {
                for (key, unused) in [
                    ("intensity", self.intensity == Intensity::Stored),
                    ("split.train", self.split.train.is_empty()),
                    ("split.test", self.split.test.is_empty()),
                    ("split.folders", self.split.folders.is_empty()),
                ] {
                    if !unused {
                        return Err(DescriptionError::UnusedSetting { key });
                    }
                }
            }
        }
        self.check_split()
    }

    fn check_split_folders(&self, layout: &FilesLayout) -> Result<(), DescriptionError> {
        let mut patterns = layout.images.iter().chain([&layout.labels]);
        let split = &self.split;
        let problem = if split.folders.is_empty() {
            let is_used = patterns.any(|pattern| pattern.contains(SPLIT_PLACEHOLDER));
            is_used.then_some(
                "name the folders, as in `folders = { train = \"train\", test = \"test\" }`",
            )
        } else if !patterns.all(|pattern| pattern.contains(SPLIT_PLACEHOLDER)) {
            Some("write `{split}` for the folder in `images` and in `labels`")
        } else if !(split.train.is_empty() && split.test.is_empty()) {
            Some("the folders assign the cases, so remove `split.train` and `split.test`")
        } else if !split.folders.contains_key(&Split::Train) {
            Some("name the folder of the training cases, as in `folders = { train = \"train\" }`")
        } else if split.folders.values().collect::<BTreeSet<_>>().len() < split.folders.len() {
            Some("two splits have the same folder")
        } else {
            None
        };
        problem.map_or(Ok(()), |problem| Err(DescriptionError::SplitFolders { problem }))
    }

    fn check_labels(&self) -> Result<(), DescriptionError> {
        let mut meanings: HashMap<u16, String> = HashMap::from([(0, "the background".to_owned())]);
        let ignored = self.ignored_labels.listed().iter();
        let ignored = ignored.map(|&label| (label, "the ignored labels".to_owned()));
        let organs = self.organs.iter().flat_map(|organ| {
            organ.labels.iter().map(|&label| (label, format!("`{}`", organ.name)))
        });
        for (label, meaning) in ignored.chain(organs) {
            if let Some(first) = meanings.insert(label, meaning.clone()) {
                return Err(DescriptionError::DuplicateLabel { label, first, second: meaning });
            }
        }
        for (i, organ) in self.organs.iter().enumerate() {
            let has_files =
                matches!(&self.layout, Layout::Files(layout) if layout.has_organ_files());
            if organ.labels.is_empty() && !has_files {
                return Err(DescriptionError::OrganWithoutLabel { name: organ.name.clone() });
            }
            if self.organs[..i].iter().any(|other| other.name == organ.name) {
                return Err(DescriptionError::DuplicateOrgan { name: organ.name.clone() });
            }
        }
        Ok(())
    }

    fn check_report_order(&self) -> Result<(), DescriptionError> {
        if self.report_order.is_empty() {
            return Ok(());
        }
        let problem =
            |name: &str, problem| DescriptionError::ReportOrder { name: name.to_owned(), problem };
        for (i, name) in self.report_order.iter().enumerate() {
            if !self.organs.iter().any(|organ| organ.name == *name) {
                return Err(problem(name, "not an organ"));
            }
            if self.report_order[..i].contains(name) {
                return Err(problem(name, "listed twice"));
            }
        }
        match self.organs.iter().find(|organ| !self.report_order.contains(&organ.name)) {
            Some(organ) => Err(problem(&organ.name, "missing")),
            None => Ok(()),
        }
    }

    fn check_split(&self) -> Result<(), DescriptionError> {
        if let Validation::Fraction { fraction, .. } = self.split.validation
            && !(fraction > 0.0 && fraction < 1.0)
        {
            return Err(DescriptionError::Fraction { found: fraction });
        }
        self.split.patient_pattern.as_deref().map(patient_regex).transpose()?;
        let mut splits: HashMap<&str, Split> = HashMap::new();
        for (split, cases) in [
            (Split::Train, self.split.train.as_slice()),
            (Split::Validation, self.split.validation.cases()),
            (Split::Test, &self.split.test),
        ] {
            for case in cases {
                match splits.insert(case, split) {
                    Some(first) if first != split => {
                        return Err(DescriptionError::CaseInTwoSplits {
                            case: case.clone(),
                            first,
                            second: split,
                        });
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// A name of an organ or structure for comparison: whatever its case and what separates its words.
pub(crate) fn plain_name(name: &str) -> String {
    name.trim().to_lowercase().replace(['_', '-'], " ")
}

/// Placeholder of a case's name in path patterns.
pub(crate) const CASE_PLACEHOLDER: &str = "{case}";
/// Placeholder of a split's folder in path patterns.
pub(crate) const SPLIT_PLACEHOLDER: &str = "{split}";
/// Placeholder of an organ's files in path patterns.
pub(crate) const ORGAN_PLACEHOLDER: &str = "{organ}";

/// The case in a path that has a pattern with its placeholder.
pub(crate) fn case_of(pattern: &str, path: &str) -> Option<String> {
    let (before, after) = pattern.split_once(CASE_PLACEHOLDER)?;
    let name = path.strip_prefix(before)?.split('/').next()?;
    let case = name.strip_suffix(after.split('/').next()?)?;
    let is_whole = pattern.replace(CASE_PLACEHOLDER, case) == path;
    (is_whole && !case.is_empty()).then(|| case.to_owned())
}

/// A colour of this hue in degrees, light enough to be visible on a CT.
fn hue(degrees: f32) -> Color {
    let channel = |offset: f32| {
        let k = (offset + degrees / 30.0).rem_euclid(12.0);
        let value = 0.6 - 0.35 * (k - 3.0).min(9.0 - k).clamp(-1.0, 1.0);
        (255.0 * value) as u8
    };
    Color([channel(0.0), channel(8.0), channel(4.0)])
}
