//! Scores of predictions, whoever made them.

use crate::{CacheError, Segmenter, SideEncoder};
use datasets::{
    Case, Dataset, DatasetDescription, DatasetError, Orientation, ReadError, Side, Volume,
    WriteError, check_one_grid, read_nifti_labels, replace_file,
};
use metrics::{Protocol, Report, ScoreError};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What [`evaluate_folders`] found.
#[derive(Debug, Clone, PartialEq)]
pub struct FolderEvaluation {
    /// One for each protocol.
    pub reports: Vec<Report>,
    /// Label files without a prediction. They have no part in the reports.
    pub unpredicted: Vec<PathBuf>,
}

/// Why predictions cannot be scored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvaluationError {
    /// A file is wrong, or prediction and label do not lie on one grid.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The embedding cache cannot be read any more.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A case cannot be scored.
    #[error("{case}: {source}")]
    Score {
        /// The case.
        case: String,
        /// Why.
        source: ScoreError,
    },
    /// A folder without NIfTI files.
    #[error("{} has no .nii or .nii.gz file", folder.display())]
    NoFiles {
        /// The folder.
        folder: PathBuf,
    },
    /// A prediction without a label.
    #[error(
        "no label for {}: {} has no file of that name, and none with the same number",
        prediction.display(), labels.display()
    )]
    NoLabel {
        /// The prediction.
        prediction: PathBuf,
        /// The folder of labels.
        labels: PathBuf,
    },
    /// Two files with one number, so that it is unclear which belong together.
    #[error("{} and {} have the same number; name predictions as their labels are", first.display(), second.display())]
    SameNumber {
        /// A file.
        first: PathBuf,
        /// Another.
        second: PathBuf,
    },
}

impl From<ReadError> for EvaluationError {
    fn from(error: ReadError) -> Self {
        Self::Dataset(error.into())
    }
}

/// Writes reports as `PREFIX-reference.csv`, `.json` and `.md`, and `PREFIX-strict` likewise; returns the files' names.
///
/// # Errors
///
/// [`WriteError`], naming the file.
pub fn write_reports(
    reports: &[Report],
    prefix: impl AsRef<Path>,
) -> Result<Vec<PathBuf>, WriteError> {
    let mut files = Vec::new();
    for report in reports {
        for (extension, text) in [
            ("csv", report.to_csv()),
            ("json", report.to_json()),
            ("md", report.to_markdown()),
        ] {
            let (prefix, protocol) = (prefix.as_ref().display(), report.protocol().name());
            let file = PathBuf::from(format!("{prefix}-{protocol}.{extension}"));
            replace_file(&file, "report", |beside| std::fs::write(beside, text)).map_err(
                |source| WriteError::Io {
                    file: file.clone(),
                    source,
                },
            )?;
            files.push(file);
        }
    }
    Ok(files)
}

/// Scores a folder of predicted label volumes against a folder of true ones, `.nii` or `.nii.gz`, whose label numbers are
/// those of `description`.
///
/// A prediction belongs to the label of the same file name or, where there is none, of the same number: that of
/// `label0001.nii.gz` and `case0001_pred.nii.gz` is 1. `progress` is told how many of how many are done.
///
/// # Errors
///
/// [`EvaluationError`] if a prediction has no label, a file is wrong, or the two do not lie on one grid.
pub fn evaluate_folders(
    predictions: impl AsRef<Path>,
    labels: impl AsRef<Path>,
    description: &DatasetDescription,
    protocols: &[Protocol],
    mut progress: impl FnMut(usize, usize),
) -> Result<FolderEvaluation, EvaluationError> {
    let classes = description.report_classes();
    let map = description.label_map();
    let mut evaluation = FolderEvaluation {
        reports: empty_reports(description, protocols),
        unpredicted: Vec::new(),
    };
    let (pairs, unpredicted) = pairs(predictions.as_ref(), labels.as_ref())?;
    evaluation.unpredicted = unpredicted;
    // Programs store axes in their own order; distances do not depend on it.
    let orientation = Orientation::Towards([Side::Right, Side::Anterior, Side::Superior]);
    progress(0, pairs.len());
    for (i, (prediction, label)) in pairs.iter().enumerate() {
        let predicted = read_nifti_labels(prediction, orientation, &map)?;
        let truth = read_nifti_labels(label, orientation, &map)?;
        check_one_grid((prediction, &predicted), (label, &truth))?;
        score(
            &mut evaluation.reports,
            &stem(label),
            &predicted,
            &truth,
            &classes,
        )?;
        progress(i + 1, pairs.len());
    }
    Ok(evaluation)
}

impl<S: SideEncoder> Segmenter<'_, S> {
    /// Segments cases of a dataset and scores them, under each protocol. `progress` is told a case's name, how many of its
    /// slices are done, and how many it has.
    ///
    /// # Errors
    ///
    /// [`EvaluationError`] if a case cannot be read, or cannot be scored, as one without a voxel spacing in millimetres.
    pub fn evaluate(
        &mut self,
        dataset: &Dataset,
        cases: &[&Case],
        protocols: &[Protocol],
        mut progress: impl FnMut(&str, usize, usize),
    ) -> Result<Vec<Report>, EvaluationError> {
        let description = dataset.description();
        let classes = description.report_classes();
        let mut reports = empty_reports(description, protocols);
        for case in cases {
            let volumes = dataset.read(case)?;
            let slices = volumes.image.shape()[0];
            progress(&case.name, 0, slices);
            let predicted =
                self.segment(&volumes.image, |done| progress(&case.name, done, slices))?;
            score(
                &mut reports,
                &case.name,
                &predicted,
                &volumes.label,
                &classes,
            )?;
        }
        Ok(reports)
    }
}

fn empty_reports(description: &DatasetDescription, protocols: &[Protocol]) -> Vec<Report> {
    let classes = description.report_classes();
    let names: Vec<&str> = classes
        .iter()
        .map(|&class| description.organ(class).name.as_str())
        .collect();
    protocols
        .iter()
        .map(|&protocol| Report::new(protocol, names.clone()))
        .collect()
}

fn score(
    reports: &mut [Report],
    case: &str,
    predicted: &Volume<u8>,
    truth: &Volume<u8>,
    classes: &[u8],
) -> Result<(), EvaluationError> {
    let [predicted, labels] = [predicted, truth].map(|volume| volume.voxels().as_standard_layout());
    for report in reports {
        let standard = "in standard layout";
        let scores = report
            .protocol()
            .score(
                predicted.as_slice().expect(standard),
                labels.as_slice().expect(standard),
                truth.shape(),
                truth.spacing_mm(),
                classes,
            )
            .map_err(|source| EvaluationError::Score {
                case: case.to_owned(),
                source,
            })?;
        report.add(case, scores);
    }
    Ok(())
}

type Pairs = Vec<(PathBuf, PathBuf)>;

/// Each prediction with its label, and the labels that are left.
fn pairs(predictions: &Path, labels: &Path) -> Result<(Pairs, Vec<PathBuf>), EvaluationError> {
    let predicted = volumes(predictions)?;
    let mut left = volumes(labels)?;
    let mut pairs = Vec::with_capacity(predicted.len());
    let mut unnamed = Vec::new();
    for (name, prediction) in predicted {
        match left.remove(&name) {
            Some(label) => pairs.push((prediction, label)),
            None => unnamed.push(prediction),
        }
    }
    let mut predictions_by_number = by_number(unnamed.iter().cloned())?;
    if !unnamed.is_empty() {
        let mut labels_by_number = by_number(left.values().cloned())?;
        for prediction in unnamed {
            let number = number(&prediction);
            let label = number.as_ref().and_then(|number| {
                predictions_by_number.remove(number)?;
                labels_by_number.remove(number)
            });
            let Some(label) = label else {
                return Err(EvaluationError::NoLabel {
                    prediction,
                    labels: labels.to_owned(),
                });
            };
            left.retain(|_, file| *file != label);
            pairs.push((prediction, label));
        }
    }
    pairs.sort_by(|a, b| a.1.cmp(&b.1));
    Ok((pairs, left.into_values().collect()))
}

fn by_number(
    files: impl Iterator<Item = PathBuf>,
) -> Result<BTreeMap<String, PathBuf>, EvaluationError> {
    let mut numbered = BTreeMap::new();
    for file in files {
        let Some(number) = number(&file) else {
            continue;
        };
        if let Some(first) = numbered.insert(number, file.clone()) {
            return Err(EvaluationError::SameNumber {
                first,
                second: file,
            });
        }
    }
    Ok(numbered)
}

/// NIfTI files of a folder by name, their ending aside.
fn volumes(folder: &Path) -> Result<BTreeMap<String, PathBuf>, EvaluationError> {
    let io = |source| ReadError::Io {
        file: folder.to_owned(),
        source,
    };
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let file = entry.map_err(io)?.path();
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with('.') && (name.ends_with(".nii") || name.ends_with(".nii.gz")) {
            files.insert(stem(&file), file);
        }
    }
    match files.is_empty() {
        true => Err(EvaluationError::NoFiles {
            folder: folder.to_owned(),
        }),
        false => Ok(files),
    }
}

fn stem(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    name.strip_suffix(".nii").unwrap_or(name).to_owned()
}

/// The longest run of digits in a name, without leading zeros; the last of those as long.
fn number(file: &Path) -> Option<String> {
    let stem = stem(file);
    let runs = stem
        .split(|c: char| !c.is_ascii_digit())
        .filter(|run| !run.is_empty());
    let longest = runs.max_by_key(|run| run.len())?;
    let significant = longest.trim_start_matches('0');
    Some(
        if significant.is_empty() {
            "0"
        } else {
            significant
        }
        .to_owned(),
    )
}
