use crate::embeddings::CacheError;
use crate::inference::Segmenter;
use sam_lst_datasets::{
    Case, CaseVolumes, Dataset, DatasetDescription, DatasetError, LabelMap, ReadError, Split,
    Volume, WriteError, label_ranges, replace_file,
};
use sam_lst_metrics::{CaseScores, ErrorDetection, Protocol, Report, ScoreError};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Why predictions cannot be scored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvaluationError {
    /// A file is wrong, or a prediction and its label lie on different grids.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The embedding cache cannot be read.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A case cannot be scored.
    #[error("cannot score case {case}: {source}")]
    Score {
        /// The case.
        case: String,
        /// Why.
        source: ScoreError,
    },
    /// A folder without NIfTI files or pictures.
    #[error(
        "folder {} contains no label file (.nii, .nii.gz, .nrrd, .mha, .mhd, .png, .jpg, .tif, .bmp, .gif)",
        folder.display()
    )]
    NoFiles {
        /// The folder.
        folder: PathBuf,
    },
    /// A prediction without a label.
    #[error(
        "no label file for {}: {} contains no file of that name and none with the same number; \
         rename the prediction after its label file",
        prediction.display(),
        labels.display()
    )]
    NoLabel {
        /// The prediction.
        prediction: PathBuf,
        /// The folder of labels.
        labels: PathBuf,
    },
    /// A prediction for none of the cases.
    #[error(
        "{} is the prediction of none of the cases of {} that are scored: {}; name it after its case, or \
         move it away",
        prediction.display(), root.display(), cases.join(", ")
    )]
    NoCase {
        /// The prediction.
        prediction: PathBuf,
        /// The dataset's folder.
        root: PathBuf,
        /// The cases that are scored.
        cases: Vec<String>,
    },
    /// The predictions have labels, but none of an organ.
    #[error(
        "the predictions are numbered {}, and none of these is an organ of the description \
         `{description}`, which knows {expected}; renumber the predictions, or give a --dataset whose \
         `labels` are the numbers in the files",
        label_ranges(numbers.iter().copied())
    )]
    NoOrgan {
        /// All label numbers of the predictions.
        numbers: Vec<u16>,
        /// Name of the description.
        description: String,
        /// The described labels.
        expected: Box<LabelMap>,
    },
    /// Two files of one case.
    #[error(
        "{} and {} are files of one case; remove one of them",
        first.display(),
        second.display()
    )]
    TwoFiles {
        /// One file.
        first: PathBuf,
        /// The other file.
        second: PathBuf,
    },
    /// Two files whose names have different patterns, so that equal numbers may mean other cases.
    #[error(
        "{} and {} are not named alike, so their numbers may not mean the same cases; name each \
         prediction after its label file",
        first.display(),
        second.display()
    )]
    DifferentNames {
        /// One file.
        first: PathBuf,
        /// The other file.
        second: PathBuf,
    },
    /// The label numbers are not those of the dataset description.
    #[error(
        "the predictions are numbered {}, but in the description `{description}` label {ignored} is no \
         organ and there are organs above {}: these look like the classes of a program, which would \
         be scored as other organs; give a --dataset whose `labels` are the numbers in the files, or \
         renumber the files",
        label_ranges(numbers.iter().copied()), numbers.last().copied().unwrap_or_default()
    )]
    Numbering {
        /// All label numbers of the predictions.
        numbers: Vec<u16>,
        /// Name of the description.
        description: String,
        /// A number that the description ignores.
        ignored: u16,
    },
    /// Two files with the same number, so that pairs are ambiguous.
    #[error(
        "{} and {} have the same number; name each prediction after its label file",
        first.display(),
        second.display()
    )]
    SameNumber {
        /// One file.
        first: PathBuf,
        /// The other file.
        second: PathBuf,
    },
}

impl From<ReadError> for EvaluationError {
    fn from(error: ReadError) -> Self {
        Self::Dataset(error.into())
    }
}

/// Writes reports as `PREFIX-reference.csv`, `.json` and `.md`, and `PREFIX-strict` likewise; returns
/// the names of the files.
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
        for (extension, text) in
            [("csv", report.to_csv()), ("json", report.to_json()), ("md", report.to_markdown())]
        {
            let (prefix, protocol) = (prefix.as_ref().display(), report.protocol().name());
            let file = PathBuf::from(format!("{prefix}-{protocol}.{extension}"));
            replace_file(&file, "report", |temporary| std::fs::write(temporary, text))
                .map_err(|source| WriteError::Io { file: file.clone(), source })?;
            files.push(file);
        }
    }
    Ok(files)
}

impl Segmenter<'_> {
    /// Segments cases of a dataset and scores them under each protocol. `progress` receives the case's
    /// name, the number of its slices that are done, and the number of its slices.
    ///
    /// # Errors
    ///
    /// [`EvaluationError`] if a case cannot be read or cannot be scored, for example because the strict
    /// protocol needs a voxel spacing that it does not have.
    pub fn evaluate(
        &mut self,
        dataset: &Dataset,
        cases: &[&Case],
        protocols: &[Protocol],
        progress: impl FnMut(&str, usize, usize),
    ) -> Result<Vec<Report>, EvaluationError> {
        self.evaluate_each(dataset, cases, protocols, progress, |_| {})
    }

    /// As [`evaluate`](Self::evaluate), and passes each case with its volumes to `observe`.
    ///
    /// # Errors
    ///
    /// As [`evaluate`](Self::evaluate).
    pub fn evaluate_each(
        &mut self,
        dataset: &Dataset,
        cases: &[&Case],
        protocols: &[Protocol],
        mut progress: impl FnMut(&str, usize, usize),
        mut observe: impl FnMut(EvaluatedCase<'_>),
    ) -> Result<Vec<Report>, EvaluationError> {
        let description = dataset.description();
        let classes = description.report_classes();
        let mut reports = empty_reports(description, protocols, &subject(description, cases));
        for case in cases {
            let volumes = dataset.read(case)?;
            let slices = volumes.image.shape()[0];
            progress(&case.name, 0, slices);
            let count = |done| progress(&case.name, done, slices);
            let (predicted, uncertainty) = if self.evaluates_uncertainty() {
                let (predicted, map) = self.segment_with_uncertainty(&volumes.image, count)?;
                (predicted, Some(map))
            } else {
                (self.segment(&volumes.image, count)?, None)
            };
            score(&mut reports, &case.name, &predicted, &volumes.label, &classes)?;
            if let Some(scores) = reports.first().and_then(|report| report.cases().last()) {
                let (prediction, uncertainty) = (&predicted, uncertainty.as_ref());
                observe(EvaluatedCase { scores, volumes: &volumes, prediction, uncertainty });
            }
        }
        Ok(reports)
    }
}

/// A case that was segmented and scored.
#[derive(Debug, Clone, Copy)]
pub struct EvaluatedCase<'a> {
    /// Its scores under the first protocol.
    pub scores: &'a CaseScores,
    /// Its image and its label.
    pub volumes: &'a CaseVolumes,
    /// The predicted classes.
    pub prediction: &'a Volume<u8>,
    /// The uncertainty of each voxel, of a segmenter [with
    /// uncertainty](Segmenter::with_uncertainty).
    pub uncertainty: Option<&'a Volume<f32>>,
}

impl EvaluatedCase<'_> {
    /// Adds the voxels in which the prediction or the truth has an organ, if the uncertainty is known.
    /// Certain and correct background around the patient would only raise the AUROC.
    pub fn count_errors(&self, detection: &mut ErrorDetection) {
        let Some(uncertainty) = self.uncertainty else { return };
        let classes = self.prediction.voxels().iter().zip(self.volumes.label.voxels());
        for ((&predicted, &truth), &uncertainty) in classes.zip(uncertainty.voxels()) {
            if predicted > 0 || truth > 0 {
                detection.add(uncertainty, predicted != truth);
            }
        }
    }
}

/// Names the splits of the cases, so that nobody takes the score of a training case for one of a
/// test case.
pub(super) fn subject(description: &DatasetDescription, cases: &[&Case]) -> String {
    let splits: BTreeSet<Split> = cases.iter().map(|case| case.split).collect();
    let splits: Vec<String> = splits.iter().map(Split::to_string).collect();
    format!("{} cases of {}", splits.join(" and "), description.name)
}

pub(super) fn empty_reports(
    description: &DatasetDescription,
    protocols: &[Protocol],
    subject: &str,
) -> Vec<Report> {
    let classes = description.report_classes();
    let names: Vec<&str> =
        classes.iter().map(|&class| description.organ(class).name.as_str()).collect();
    let report = |&protocol: &Protocol| Report::new(protocol, names.clone()).with_subject(subject);
    protocols.iter().map(report).collect()
}

pub(super) fn score(
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
            .map_err(|source| EvaluationError::Score { case: case.to_owned(), source })?;
        report.add(case, scores);
    }
    Ok(())
}
