use super::scores::{EvaluatedCase, EvaluationError, empty_reports, score};
use sam_lst_datasets::{
    Case, Dataset, DatasetDescription, IgnoredLabels, Organ, Orientation, ReadError, file_ending,
    read_label_numbers, read_labels,
};
use sam_lst_metrics::{Protocol, Report};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Predicted label volumes of a folder, each with its ground truth from another folder.
///
/// A prediction is paired with the label file of the same name. Where there is none and all such
/// predictions have names of one pattern, as have the label files that are left, it is paired with the
/// label file of the same number: `case0001_pred.nii.gz` with `label0001.nii.gz`. Numbers at the end
/// that all names of a folder share do not count; of several others, each must agree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderPairs {
    predictions: PathBuf,
    labels: PathBuf,
    pairs: Vec<FolderPair>,
    unpredicted: Vec<PathBuf>,
}

/// A prediction and its ground truth.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FolderPair {
    /// The ground truth.
    pub label: PathBuf,
    /// The prediction.
    pub prediction: PathBuf,
}

/// The label numbers that the files of [`FolderPairs`] contain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelNumbers {
    /// In the predictions.
    pub predicted: BTreeSet<u16>,
    /// In the ground truth.
    pub truth: BTreeSet<u16>,
}

impl FolderPairs {
    /// Pairs the NIfTI files and pictures of two folders, without reading them.
    ///
    /// # Errors
    ///
    /// [`EvaluationError`] if a folder cannot be read or has no such file, a case has two files in
    /// one folder, or a prediction has no label file.
    pub fn find(
        predictions: impl AsRef<Path>,
        labels: impl AsRef<Path>,
    ) -> Result<Self, EvaluationError> {
        let (predictions, labels) = (predictions.as_ref(), labels.as_ref());
        let (pairs, unpredicted) = pair(volumes(predictions)?, volumes(labels)?, labels)?;
        let [predictions, labels] = [predictions, labels].map(Path::to_owned);
        Ok(Self { predictions, labels, pairs, unpredicted })
    }

    /// The pairs, in the order of the label files' names.
    pub fn pairs(&self) -> &[FolderPair] {
        &self.pairs
    }

    /// Label files without a prediction. They are not scored.
    pub fn unpredicted(&self) -> &[PathBuf] {
        &self.unpredicted
    }

    /// Reads which label numbers the files contain, masks in colours by the description. `progress`
    /// receives the number of pairs that are read and of all.
    ///
    /// # Errors
    ///
    /// [`EvaluationError`] if a file cannot be read, or has a label that is not a whole number from 0
    /// to 65,535 or a colour that is not described.
    pub fn label_numbers(
        &self,
        description: Option<&DatasetDescription>,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<LabelNumbers, EvaluationError> {
        let none = BTreeMap::new();
        let colors = description.map_or(&none, DatasetDescription::label_colors);
        let mut numbers = LabelNumbers::default();
        progress(0, self.pairs.len());
        for (i, FolderPair { label, prediction }) in self.pairs.iter().enumerate() {
            let files = [(prediction, &mut numbers.predicted), (label, &mut numbers.truth)];
            for (file, numbers) in files {
                numbers.extend(read_label_numbers(file, colors)?);
            }
            progress(i + 1, self.pairs.len());
        }
        Ok(numbers)
    }

    /// Scores the predictions, whose label numbers are those of `description`. `progress` receives
    /// the number of scored cases and of all.
    ///
    /// # Errors
    ///
    /// [`EvaluationError`] if a file is wrong, or a prediction and its label lie on different grids.
    pub fn evaluate(
        &self,
        description: &DatasetDescription,
        protocols: &[Protocol],
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Vec<Report>, EvaluationError> {
        let classes = description.report_classes();
        let map = description.label_map();
        let (predictions, labels) = (self.predictions.display(), self.labels.display());
        let subject = format!("{predictions} compared with {labels}");
        let mut reports = empty_reports(description, protocols, &subject);
        // Programs store axes in different orders; scores do not depend on it.
        let description =
            &DatasetDescription { orientation: Orientation::default(), ..description.clone() };
        progress(0, self.pairs.len());
        for (i, FolderPair { label, prediction }) in self.pairs.iter().enumerate() {
            let colors = description.label_colors();
            let truth = read_labels(label, description.orientation, &map, colors)?;
            let predicted = description.read_labels_on_grid(prediction, (label, &truth))?;
            score(&mut reports, &stem(label), &predicted, &truth, &classes)?;
            progress(i + 1, self.pairs.len());
        }
        Ok(reports)
    }
}

/// Predicted label volumes of a folder for the cases of a dataset, whatever its layout.
///
/// A prediction is paired with the case of its name without ending, or of its number as in
/// [`FolderPairs`].
#[derive(Debug, Clone)]
pub struct CasePairs<'a> {
    dataset: &'a Dataset,
    predictions: PathBuf,
    pairs: Vec<(&'a Case, PathBuf)>,
    unpredicted: Vec<&'a Case>,
    others: Vec<String>,
}

impl<'a> CasePairs<'a> {
    /// Pairs the NIfTI files and pictures of a folder with cases, without reading them.
    ///
    /// # Errors
    ///
    /// As [`FolderPairs::find`].
    pub fn find(
        dataset: &'a Dataset,
        cases: &[&'a Case],
        predictions: impl AsRef<Path>,
    ) -> Result<Self, EvaluationError> {
        let predictions = predictions.as_ref();
        let names = cases.iter().map(|case| (case.name.clone(), PathBuf::from(&case.name)));
        let mut predicted = volumes(predictions)?;
        // A prediction of another case of the dataset is not scored, and none of these.
        let is_other = |name: &String| {
            let is_scored = cases.iter().any(|case| case.name == *name);
            !is_scored && dataset.all_cases().iter().any(|case| case.name == *name)
        };
        let others: Vec<String> = predicted.keys().filter(|name| is_other(name)).cloned().collect();
        predicted.retain(|name, _| !others.contains(name));
        let pairs = pair(predicted, names.collect(), dataset.root());
        let (pairs, unpredicted) = pairs.map_err(|error| match error {
            EvaluationError::NoLabel { prediction, labels } => {
                let cases = cases.iter().map(|case| case.name.clone()).collect();
                EvaluationError::NoCase { prediction, root: labels, cases }
            }
            error => error,
        })?;
        let of_name =
            |name: &Path| cases.iter().find(|case| Path::new(&case.name) == name).copied();
        let pairs = pairs.into_iter().filter_map(|FolderPair { label, prediction }| {
            of_name(&label).map(|case| (case, prediction))
        });
        Ok(Self {
            dataset,
            predictions: predictions.to_owned(),
            pairs: pairs.collect(),
            unpredicted: unpredicted.iter().filter_map(|name| of_name(name)).collect(),
            others,
        })
    }

    /// The pairs, in the order of the cases' names.
    pub fn pairs(&self) -> &[(&'a Case, PathBuf)] {
        &self.pairs
    }

    /// Cases without a prediction. They are not scored.
    pub fn unpredicted(&self) -> &[&'a Case] {
        &self.unpredicted
    }

    /// Cases of the dataset that have a prediction and are not among those to score.
    pub fn others(&self) -> &[String] {
        &self.others
    }

    /// Scores the predictions, whose label numbers are those of the dataset's description. `progress`
    /// receives the number of scored cases and of all.
    ///
    /// # Errors
    ///
    /// [`EvaluationError`] if a file is wrong, a prediction and its label lie on different grids, or the
    /// protocol does not suit the dataset.
    pub fn evaluate(
        &self,
        protocols: &[Protocol],
        progress: impl FnMut(usize, usize),
    ) -> Result<Vec<Report>, EvaluationError> {
        self.evaluate_each(protocols, progress, |_| {})
    }

    /// As [`evaluate`](Self::evaluate), and passes each case with its volumes to `observe`.
    ///
    /// # Errors
    ///
    /// As [`evaluate`](Self::evaluate).
    pub fn evaluate_each(
        &self,
        protocols: &[Protocol],
        mut progress: impl FnMut(usize, usize),
        mut observe: impl FnMut(EvaluatedCase<'_>),
    ) -> Result<Vec<Report>, EvaluationError> {
        let description = self.dataset.description();
        let classes = description.report_classes();
        let cases: Vec<&Case> = self.pairs.iter().map(|(case, _)| *case).collect();
        let subject = format!(
            "{}, {}",
            self.predictions.display(),
            super::scores::subject(description, &cases)
        );
        let mut reports = empty_reports(description, protocols, &subject);
        progress(0, self.pairs.len());
        for (i, (case, prediction)) in self.pairs.iter().enumerate() {
            let volumes = self.dataset.read(case)?;
            let truth = &volumes.label;
            let files = case.files.paths();
            let label = files.last().copied().unwrap_or(self.dataset.root());
            let predicted = description.read_labels_on_grid(prediction, (label, truth))?;
            score(&mut reports, &case.name, &predicted, truth, &classes)?;
            if let Some(scores) = reports.first().and_then(|report| report.cases().last()) {
                let (prediction, uncertainty) = (&predicted, None);
                observe(EvaluatedCase { scores, volumes: &volumes, prediction, uncertainty });
            }
            progress(i + 1, self.pairs.len());
        }
        Ok(reports)
    }
}

impl LabelNumbers {
    /// A description for labels of which nothing is known but their numbers: every label of either side
    /// is an organ, "label 1" and so on.
    pub fn description(&self) -> DatasetDescription {
        let labels: BTreeSet<u16> = self.truth.union(&self.predicted).copied().collect();
        let organ = |label: u16| Organ::new(format!("label {label}"), label);
        DatasetDescription {
            name: "the files".to_owned(),
            organs: labels.into_iter().filter(|&label| label != 0).take(255).map(organ).collect(),
            ignored_labels: IgnoredLabels::Others,
            report_order: Vec::new(),
            ..DatasetDescription::synapse()
        }
    }

    /// Checks that both sides may have the numbers of `description`.
    ///
    /// Programs that train on classes 1 to K often write these, whatever the numbers of the dataset's
    /// files are. Such numbers would be scored as other organs: they are recognised where predictions
    /// have no number above K, but one that the description ignores, and the ground truth has others.
    /// So are predictions that have numbers, but none of an organ.
    ///
    /// # Errors
    ///
    /// [`EvaluationError::Numbering`] or [`EvaluationError::NoOrgan`].
    pub fn check(&self, description: &DatasetDescription) -> Result<(), EvaluationError> {
        let map = description.label_map();
        let is_organ = |number: &&u16| map.class_of(**number).is_some_and(|class| class != 0);
        let mut labels = self.predicted.iter().filter(|number| **number != 0).peekable();
        if labels.peek().is_some() && !labels.any(|number| is_organ(&number)) {
            return Err(EvaluationError::NoOrgan {
                numbers: self.predicted.iter().copied().collect(),
                description: description.name.clone(),
                expected: Box::new(map),
            });
        }
        let organs = description.organs.len();
        let is_renumbered = |numbers: &BTreeSet<u16>| {
            numbers.iter().all(|&number| usize::from(number) <= organs)
                && numbers.iter().any(|number| description.ignored_labels.listed().contains(number))
        };
        let [predicted, truth] = [&self.predicted, &self.truth].map(is_renumbered);
        if predicted && !truth {
            let numbers = &self.predicted;
            let listed = description.ignored_labels.listed();
            let ignored = numbers.iter().find(|number| listed.contains(number));
            return Err(EvaluationError::Numbering {
                numbers: numbers.iter().copied().collect(),
                description: description.name.clone(),
                ignored: ignored.copied().unwrap_or_default(),
            });
        }
        Ok(())
    }
}

/// Pairs predictions and labels, each by its name, and returns the labels without a prediction. `labels`
/// is where the labels are.
fn pair(
    mut predicted: BTreeMap<String, PathBuf>,
    mut unpaired: BTreeMap<String, PathBuf>,
    labels: &Path,
) -> Result<(Vec<FolderPair>, Vec<PathBuf>), EvaluationError> {
    let mut pairs = Vec::with_capacity(predicted.len());
    predicted.retain(|name, prediction| match unpaired.remove(name) {
        Some(label) => {
            pairs.push(FolderPair { label, prediction: prediction.clone() });
            false
        }
        None => true,
    });
    if !predicted.is_empty() {
        let (predicted, mut truth) = (by_numbers(&predicted)?, by_numbers(&unpaired)?);
        for (numbers, prediction) in predicted {
            // Names without a number have nothing to be paired by.
            let label = truth.remove(&numbers).filter(|_| !numbers.is_empty());
            let Some(label) = label else {
                return Err(EvaluationError::NoLabel { prediction, labels: labels.to_owned() });
            };
            unpaired.retain(|_, file| *file != label);
            pairs.push(FolderPair { label, prediction });
        }
    }
    pairs.sort();
    Ok((pairs, unpaired.into_values().collect()))
}

/// Files by the numbers in their names.
fn by_numbers(
    files: &BTreeMap<String, PathBuf>,
) -> Result<BTreeMap<Vec<String>, PathBuf>, EvaluationError> {
    let mut names: Vec<(Vec<String>, &PathBuf)> =
        files.iter().map(|(name, file)| (numbers(name), file)).collect();
    // Numbers at the end that all names share, such as a version, do not tell cases apart. Those
    // before others may be a patient's.
    while names.len() > 1
        && let Some(last) = names[0].0.last().cloned()
        && names.iter().all(|(numbers, _)| numbers.len() > 1 && numbers.last() == Some(&last))
    {
        names.iter_mut().for_each(|(numbers, _)| _ = numbers.pop());
    }
    let mut by_numbers: BTreeMap<Vec<String>, PathBuf> = BTreeMap::new();
    for (numbers, file) in names {
        if let Some(first) = by_numbers.insert(numbers, file.clone()) {
            return Err(EvaluationError::SameNumber { first, second: file.clone() });
        }
    }
    let mut patterns: BTreeMap<String, &PathBuf> = BTreeMap::new();
    for (name, file) in files {
        patterns.entry(pattern(name)).or_insert(file);
    }
    let mut different = patterns.into_values();
    match (different.next(), different.next()) {
        (Some(first), Some(second)) => {
            let (first, second) = (first.clone(), second.clone());
            Err(EvaluationError::DifferentNames { first, second })
        }
        _ => Ok(by_numbers),
    }
}

/// The numbers in a name, without leading zeros.
fn numbers(name: &str) -> Vec<String> {
    let runs = name.split(|c: char| !c.is_ascii_digit()).filter(|run| !run.is_empty());
    let significant = |run: &str| run.trim_start_matches('0').to_owned();
    runs.map(significant).collect()
}

/// A name with `#` for each number.
fn pattern(name: &str) -> String {
    let mut pattern = String::new();
    for c in name.chars() {
        match c {
            c if !c.is_ascii_digit() => pattern.push(c),
            _ if pattern.ends_with('#') => {}
            _ => pattern.push('#'),
        }
    }
    pattern
}

/// NIfTI files and pictures of a folder by name without extension.
fn volumes(folder: &Path) -> Result<BTreeMap<String, PathBuf>, EvaluationError> {
    let io = |source| ReadError::Io { file: folder.to_owned(), source };
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let file = entry.map_err(io)?.path();
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !name.starts_with('.') && !file_ending(&name).is_empty() && file.is_file() {
            let stem = stem(&file);
            if let Some(first) = files.insert(stem, file.clone()) {
                return Err(EvaluationError::TwoFiles { first, second: file });
            }
        }
    }
    if files.is_empty() {
        return Err(EvaluationError::NoFiles { folder: folder.to_owned() });
    }
    Ok(files)
}

fn stem(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    name[..name.len() - file_ending(&name).len()].to_owned()
}
