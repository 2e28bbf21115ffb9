//! A dataset in words: where its files are, what its labels mean, who trains and who is held out.

use crate::{DatasetError, DescriptionError, LabelMap, Orientation};
use ndarray::Array3;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;

/// What a dataset is. [`DatasetDescription::synapse`] is built in; any other is a TOML file:
///
/// ```
/// # use datasets::DatasetDescription;
/// let description = DatasetDescription::from_toml(
///     r##"
///     name = "two organs in MRI"
///     orientation = "axial"
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
/// # Ok::<(), datasets::DatasetError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetDescription {
    /// What it is called, in reports and messages.
    pub name: String,
    /// Which way arrays are turned.
    #[serde(default)]
    pub orientation: Orientation,
    /// How intensities become `[0, 1]`.
    pub intensity: Intensity,
    /// Labels that are background, beside 0. A label that is neither here nor an organ's is an error.
    #[serde(default)]
    pub ignored_labels: Vec<u8>,
    /// Organs in the order in which reports show them; that of `organs` if empty.
    #[serde(default)]
    pub report_order: Vec<String>,
    /// Where the files are.
    pub layout: Layout,
    /// The organs: class 1, class 2, …
    pub organs: Vec<Organ>,
    /// Who trains, who validates, who is held out.
    #[serde(default)]
    pub split: SplitDescription,
}

/// An organ, or whatever else a class stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Organ {
    /// Its name, as reports print it.
    pub name: String,
    /// Its label numbers in the files. Predictions are written with the first.
    pub labels: Vec<u8>,
    /// Its colour in pictures; one of a built-in palette if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub color: Option<Color>,
}

/// An sRGB colour: `"#rrggbb"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Color(pub [u8; 3]);

/// A text that is no colour.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is no colour; expected one like `#c08040`")]
pub struct ColorError {
    /// The text.
    pub found: String,
}

impl TryFrom<String> for Color {
    type Error = ColorError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let byte = |at: usize| {
            let digits = text.get(at..at + 2)?;
            let hexadecimal = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            hexadecimal
                .then(|| u8::from_str_radix(digits, 16).ok())
                .flatten()
        };
        match (
            text.starts_with('#') && text.len() == 7,
            byte(1),
            byte(3),
            byte(5),
        ) {
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

/// How intensities become `[0, 1]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Intensity {
    /// From the first to the second value, which are 0 and 1; what lies outside is clipped. In a CT, Hounsfield units.
    Window([f32; 2]),
    /// From the first to the second percentile of each volume, for modalities without a scale, as MRI.
    Percentiles([f32; 2]),
    /// As they are.
    Stored,
}

impl Intensity {
    /// Applies it to a volume.
    pub fn apply(self, voxels: &mut Array3<f32>) {
        let [low, high] = match self {
            Self::Stored => return,
            Self::Window(window) => window,
            Self::Percentiles(percents) => percentiles(voxels, percents),
        };
        // A volume of one value everywhere has no contrast to keep.
        let range = if high > low { high - low } else { 1.0 };
        voxels.mapv_inplace(|voxel| (voxel.clamp(low, high) - low) / range);
    }

    fn check(self) -> Result<(), DescriptionError> {
        let ([low, high], limits) = match self {
            Self::Stored => return Ok(()),
            Self::Window(window) => (window, f32::MIN..=f32::MAX),
            Self::Percentiles(percents) => (percents, 0.0..=100.0),
        };
        if low < high && limits.contains(&low) && limits.contains(&high) {
            return Ok(());
        }
        Err(DescriptionError::Intensity {
            low: low.into(),
            high: high.into(),
        })
    }
}

/// The voxels at two percentiles, nearest rank.
fn percentiles(voxels: &Array3<f32>, percents: [f32; 2]) -> [f32; 2] {
    let mut values: Vec<f32> = voxels.iter().copied().collect();
    percents.map(|percent| {
        let rank = (f64::from(percent) / 100.0 * (values.len().saturating_sub(1)) as f64).round();
        match values.is_empty() {
            true => 0.0,
            false => {
                *values
                    .select_nth_unstable_by(rank as usize, f32::total_cmp)
                    .1
            }
        }
    })
}

/// Where the files are, below the dataset's folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// One image and one label volume a case, `.nii` or `.nii.gz`.
    Nifti(NiftiLayout),
    /// The common preprocessed form of Synapse: a slice a file for training, a volume a file for testing, named by lists.
    /// Intensities are `[0, 1]` and labels classes already, so `intensity` is `"stored"`, and `split.train` and
    /// `split.test` are left out.
    Prepared(PreparedLayout),
}

/// Paths with one `{case}` each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NiftiLayout {
    /// Such as `img/img{case}.nii.gz`.
    pub images: String,
    /// Such as `label/label{case}.nii.gz`.
    pub labels: String,
}

/// Folders and lists of the preprocessed form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PreparedLayout {
    /// Folder of `caseNNNN_sliceDDD.npz`.
    pub train_slices: String,
    /// Folder of `caseNNNN.npy.h5`.
    pub test_volumes: String,
    /// Names of training slices, a line each, without `.npz`.
    pub train_list: String,
    /// Names of test volumes, a line each, without `.npy.h5`.
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

/// A part of a dataset's cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Its loss is minimised.
    Train,
    /// It chooses the best checkpoint.
    Validation,
    /// It is scored at the end.
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

/// Who trains, who validates, who is held out.
///
/// Lists say what the cases found in the folder are for; a listed case need not be there.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SplitDescription {
    /// Cases that train; every case that is not held out, if empty.
    pub train: Vec<String>,
    /// Cases that are scored at the end.
    pub test: Vec<String>,
    /// Cases taken from training to choose the best checkpoint.
    #[serde(skip_serializing_if = "Validation::is_none")]
    pub validation: Validation,
    /// The patient of a case, where it is not the case itself. No patient may be in two splits.
    pub patients: BTreeMap<String, String>,
}

/// Who validates.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Validation {
    /// A share of the training patients, at least one, drawn by a seed.
    Fraction {
        /// The share, between 0 and 1.
        fraction: f64,
        /// Draws the patients.
        seed: u64,
    },
    /// These cases.
    Cases {
        /// Their names.
        cases: Vec<String>,
    },
    /// Nobody.
    #[default]
    #[serde(skip_deserializing)]
    None,
}

impl Validation {
    /// The cases that validate by name.
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
    /// Synapse (BTCV abdomen) as downloaded: 30 CTs, eight organs, the usual 18 training and 12 test cases.
    pub fn synapse() -> Self {
        let organs: [(&str, u8, [u8; 3]); 8] = [
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
            orientation: Orientation::Axial,
            intensity: Intensity::Window([-125.0, 275.0]),
            // Oesophagus, vena cava, portal and splenic veins, adrenal glands.
            ignored_labels: vec![5, 9, 10, 12, 13],
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
            layout: Layout::Nifti(NiftiLayout {
                images: "RawData/Training/img/img{case}.nii.gz".to_owned(),
                labels: "RawData/Training/label/label{case}.nii.gz".to_owned(),
            }),
            organs: organs
                .map(|(name, label, color)| Organ {
                    name: name.to_owned(),
                    labels: vec![label],
                    color: Some(Color(color)),
                })
                .into(),
            split: SplitDescription {
                test: names(&[
                    "0001", "0002", "0003", "0004", "0008", "0022", "0025", "0029", "0032", "0035",
                    "0036", "0038",
                ]),
                ..SplitDescription::default()
            },
        }
    }

    /// Synapse in its common preprocessed form, as `prepare_synapse` and the published pipelines write it.
    pub fn synapse_prepared() -> Self {
        let mut description = Self {
            orientation: Orientation::Stored,
            intensity: Intensity::Stored,
            ignored_labels: Vec::new(),
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
    /// [`DatasetError::Toml`] for a text that is not TOML, an unknown key or a missing one;
    /// [`DatasetError::Description`] for what makes no sense.
    pub fn from_toml(text: &str) -> Result<Self, DatasetError> {
        Self::from_toml_of(text, Path::new("description"))
    }

    /// Reads a description from a TOML file.
    ///
    /// # Errors
    ///
    /// As [`Self::from_toml`], and [`DatasetError::Read`] if the file cannot be read.
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
        description
            .check()
            .map_err(|source| DatasetError::Description {
                description: file.display().to_string(),
                source,
            })?;
        Ok(description)
    }

    /// The description as a TOML file has it.
    ///
    /// # Panics
    ///
    /// Never: every description can be written.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("a description is plain data")
    }

    /// From the files' labels to classes.
    pub fn label_map(&self) -> LabelMap {
        let labels: Vec<Vec<u8>> = self
            .organs
            .iter()
            .map(|organ| organ.labels.clone())
            .collect();
        LabelMap::new(&labels, &self.ignored_labels)
    }

    /// Number of classes, the background included.
    pub fn classes(&self) -> usize {
        self.organs.len() + 1
    }

    /// The organs' classes, in the order in which reports show them.
    pub fn report_classes(&self) -> Vec<u8> {
        let class = |name: &String| self.organs.iter().position(|organ| organ.name == *name);
        let places: Vec<usize> = match self.report_order.is_empty() {
            true => (0..self.organs.len()).collect(),
            false => self.report_order.iter().filter_map(class).collect(),
        };
        places.into_iter().map(|place| place as u8 + 1).collect() // at most 255, checked
    }

    /// The organ of a class.
    ///
    /// # Panics
    ///
    /// If there is no such class, or it is the background.
    pub fn organ(&self, class: u8) -> &Organ {
        &self.organs[usize::from(class) - 1]
    }

    /// The colour of an organ's class in pictures.
    ///
    /// # Panics
    ///
    /// As [`Self::organ`].
    pub fn color(&self, class: u8) -> Color {
        // Hues a golden angle apart are never close to the last few.
        self.organ(class)
            .color
            .unwrap_or_else(|| hue(f32::from(class - 1) * 137.508))
    }

    /// Checks what a type cannot.
    ///
    /// # Errors
    ///
    /// [`DescriptionError`] says what makes no sense.
    pub fn check(&self) -> Result<(), DescriptionError> {
        if self.organs.is_empty() {
            return Err(DescriptionError::NoOrgans);
        }
        if self.organs.len() > 255 {
            return Err(DescriptionError::TooManyOrgans {
                count: self.organs.len(),
            });
        }
        self.intensity.check()?;
        self.check_labels()?;
        self.check_report_order()?;
        match &self.layout {
            Layout::Nifti(layout) => {
                for (key, pattern) in [("images", &layout.images), ("labels", &layout.labels)] {
                    if pattern.matches(CASE).count() != 1 {
                        return Err(DescriptionError::Pattern {
                            key,
                            pattern: pattern.clone(),
                        });
                    }
                }
            }
            Layout::Prepared(_) => {
                for (key, unused) in [
                    ("intensity", self.intensity == Intensity::Stored),
                    ("split.train", self.split.train.is_empty()),
                    ("split.test", self.split.test.is_empty()),
                ] {
                    if !unused {
                        return Err(DescriptionError::Prepared { key });
                    }
                }
            }
        }
        self.check_split()
    }

    fn check_labels(&self) -> Result<(), DescriptionError> {
        let mut meanings: HashMap<u8, String> = HashMap::from([(0, "the background".to_owned())]);
        let ignored = self
            .ignored_labels
            .iter()
            .map(|&label| (label, "the ignored labels".to_owned()));
        let organs = self.organs.iter().flat_map(|organ| {
            organ
                .labels
                .iter()
                .map(|&label| (label, format!("`{}`", organ.name)))
        });
        for (label, meaning) in ignored.chain(organs) {
            if let Some(first) = meanings.insert(label, meaning.clone()) {
                return Err(DescriptionError::LabelTwice {
                    label,
                    first,
                    second: meaning,
                });
            }
        }
        for (i, organ) in self.organs.iter().enumerate() {
            if organ.labels.is_empty() {
                return Err(DescriptionError::OrganWithoutLabel {
                    name: organ.name.clone(),
                });
            }
            if self.organs[..i]
                .iter()
                .any(|other| other.name == organ.name)
            {
                return Err(DescriptionError::OrganTwice {
                    name: organ.name.clone(),
                });
            }
        }
        Ok(())
    }

    fn check_report_order(&self) -> Result<(), DescriptionError> {
        if self.report_order.is_empty() {
            return Ok(());
        }
        let problem = |name: &str, problem| DescriptionError::ReportOrder {
            name: name.to_owned(),
            problem,
        };
        for (i, name) in self.report_order.iter().enumerate() {
            if !self.organs.iter().any(|organ| organ.name == *name) {
                return Err(problem(name, "no organ"));
            }
            if self.report_order[..i].contains(name) {
                return Err(problem(name, "there twice"));
            }
        }
        match self
            .organs
            .iter()
            .find(|organ| !self.report_order.contains(&organ.name))
        {
            Some(organ) => Err(problem(&organ.name, "not there")),
            None => Ok(()),
        }
    }

    fn check_split(&self) -> Result<(), DescriptionError> {
        if let Validation::Fraction { fraction, .. } = self.split.validation
            && !(fraction > 0.0 && fraction < 1.0)
        {
            return Err(DescriptionError::Fraction { found: fraction });
        }
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

/// Stands for a case's name in a path.
pub(crate) const CASE: &str = "{case}";

/// A colour of this hue in degrees, light enough to be seen on a CT.
fn hue(degrees: f32) -> Color {
    let channel = |offset: f32| {
        let k = (offset + degrees / 30.0).rem_euclid(12.0);
        let value = 0.6 - 0.35 * (k - 3.0).min(9.0 - k).clamp(-1.0, 1.0);
        (255.0 * value) as u8
    };
    Color([channel(0.0), channel(8.0), channel(4.0)])
}
