use crate::embeddings::CacheError;
use crate::inference::Segmenter;
use crate::model::SideEncoder;
use sam_lst_datasets::{
    Case, Dataset, DatasetDescription, DatasetError, ReadError, Volume, WriteError, replace_file,
};
use sam_lst_metrics::{Protocol, Report, ScoreError};
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
    /// A folder without NIfTI files.
    #[error("folder {} contains no .nii or .nii.gz file", folder.display())]
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

impl<S: SideEncoder> Segmenter<'_, S> {
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
            score(&mut reports, &case.name, &predicted, &volumes.label, &classes)?;
        }
        Ok(reports)
    }
}

pub(super) fn empty_reports(
    description: &DatasetDescription,
    protocols: &[Protocol],
) -> Vec<Report> {
    let classes = description.report_classes();
    let names: Vec<&str> =
        classes.iter().map(|&class| description.organ(class).name.as_str()).collect();
    protocols.iter().map(|&protocol| Report::new(protocol, names.clone())).collect()
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
