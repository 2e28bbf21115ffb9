use super::scores::{EvaluationError, empty_reports, score};
use sam_lst_datasets::{
    DatasetDescription, Orientation, ReadError, Side, check_one_grid, read_nifti_labels,
};
use sam_lst_metrics::{Protocol, Report};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Result of [`evaluate_folders`].
#[derive(Debug, Clone, PartialEq)]
pub struct FolderEvaluation {
    /// One report for each protocol.
    pub reports: Vec<Report>,
    /// Label files without a prediction. They are not in the reports.
    pub unpredicted: Vec<PathBuf>,
}

/// Scores a folder of predicted label volumes against a folder of ground truth, `.nii` or `.nii.gz`,
/// whose label numbers are those of `description`.
///
/// A prediction is paired with the label file of the same name or, where there is none, of the same
/// number: the number of `label0001.nii.gz` and `case0001_pred.nii.gz` is 1. `progress` receives the
/// number of scored cases and the number of all cases.
///
/// # Errors
///
/// [`EvaluationError`] if a prediction has no label file, a file is wrong, or a prediction and its
/// label lie on different grids.
pub fn evaluate_folders(
    predictions: impl AsRef<Path>,
    labels: impl AsRef<Path>,
    description: &DatasetDescription,
    protocols: &[Protocol],
    mut progress: impl FnMut(usize, usize),
) -> Result<FolderEvaluation, EvaluationError> {
    let classes = description.report_classes();
    let map = description.label_map();
    let mut reports = empty_reports(description, protocols);
    let (pairs, unpredicted) = pairs(predictions.as_ref(), labels.as_ref())?;
    // Programs store axes in different orders; distances do not depend on it.
    let orientation = Orientation::Towards([Side::Right, Side::Anterior, Side::Superior]);
    progress(0, pairs.len());
    for (i, (prediction, label)) in pairs.iter().enumerate() {
        let predicted = read_nifti_labels(prediction, orientation, &map)?;
        let truth = read_nifti_labels(label, orientation, &map)?;
        check_one_grid((prediction, &predicted), (label, &truth))?;
        score(&mut reports, &stem(label), &predicted, &truth, &classes)?;
        progress(i + 1, pairs.len());
    }
    Ok(FolderEvaluation { reports, unpredicted })
}

type Pairs = Vec<(PathBuf, PathBuf)>;

/// Each prediction with its label file, and the label files without a prediction.
fn pairs(predictions: &Path, labels: &Path) -> Result<(Pairs, Vec<PathBuf>), EvaluationError> {
    let predicted = volumes(predictions)?;
    let mut unpaired = volumes(labels)?;
    let mut pairs = Vec::with_capacity(predicted.len());
    let mut unmatched = Vec::new();
    for (name, prediction) in predicted {
        match unpaired.remove(&name) {
            Some(label) => pairs.push((prediction, label)),
            None => unmatched.push(prediction),
        }
    }
    let mut predictions_by_number = by_number(unmatched.iter().cloned())?;
    if !unmatched.is_empty() {
        let mut labels_by_number = by_number(unpaired.values().cloned())?;
        for prediction in unmatched {
            let number = number(&prediction);
            let label = number.as_ref().and_then(|number| {
                predictions_by_number.remove(number)?;
                labels_by_number.remove(number)
            });
            let Some(label) = label else {
                return Err(EvaluationError::NoLabel { prediction, labels: labels.to_owned() });
            };
            unpaired.retain(|_, file| *file != label);
            pairs.push((prediction, label));
        }
    }
    pairs.sort_by(|a, b| a.1.cmp(&b.1));
    Ok((pairs, unpaired.into_values().collect()))
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
            return Err(EvaluationError::SameNumber { first, second: file });
        }
    }
    Ok(numbered)
}

/// NIfTI files of a folder by name without extension.
fn volumes(folder: &Path) -> Result<BTreeMap<String, PathBuf>, EvaluationError> {
    let io = |source| ReadError::Io { file: folder.to_owned(), source };
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let file = entry.map_err(io)?.path();
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with('.') && (name.ends_with(".nii") || name.ends_with(".nii.gz")) {
            files.insert(stem(&file), file);
        }
    }
    if files.is_empty() {
        return Err(EvaluationError::NoFiles { folder: folder.to_owned() });
    }
    Ok(files)
}

fn stem(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    name.strip_suffix(".nii").unwrap_or(name).to_owned()
}

/// The longest run of digits in a name, without leading zeros; the last of those as long.
fn number(file: &Path) -> Option<String> {
    let stem = stem(file);
    let runs = stem.split(|c: char| !c.is_ascii_digit()).filter(|run| !run.is_empty());
    let longest = runs.max_by_key(|run| run.len())?;
    let significant = longest.trim_start_matches('0');
    Some(if significant.is_empty() { "0" } else { significant }.to_owned())
}
