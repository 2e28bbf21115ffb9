//! `sam-lst evaluate`.

use crate::arguments::{not_negative, open_device, read_description};
use crate::foundation::{self, Variant};
use crate::inspect::describe_data;
use crate::model::{ModelOptions, read_common_task, untrained_task};
use crate::progress::{CaseProgress, Progress, note};
use crate::staging::Staging;
use crate::training::check_cases;
use crate::{Status, WrongUsage, output, report};
use anyhow::{Context, Result, bail};
use clap::{ArgGroup, Args, ValueEnum};
use sam_lst::datasets::{label_ranges, read_geometry, read_label_numbers};
use sam_lst::embeddings::Embedder;
use sam_lst::evaluation::{
    CasePairs, EvaluatedCase, FolderPairs, HtmlReport, LabelNumbers, write_reports,
};
use sam_lst::metrics::{DirectedDistances, ErrorDetection, StrictOptions};
use sam_lst::{Dataset, DatasetDescription, Protocol, Report, Split};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Protocols: `reference` is that of the published tables (medpy; HD95 in voxels); `strict` measures
in mm, pictures in voxels; an organ in only one of the files scores 0. Files pair by name or number.

Examples:
  sam-lst evaluate --pred predictions --label labels --dataset synapse --output scores/mine
  sam-lst evaluate --pred predictions --data mri --dataset mri.toml
  sam-lst evaluate --data mri --sam lite_medsam.pth --network runs/mri/best.safetensors";

/// clap's own line would be wider than the screen.
const USAGE: &str = "sam-lst evaluate [OPTIONS] --pred <DIR> <--label <DIR>|--data <DIR>>
       sam-lst evaluate [OPTIONS] --data <DIR> [--network <FILE>] [--sam <FILE>]";

/// Score predicted label volumes, or a model on a dataset's test cases
#[derive(Args)]
#[command(after_help = EXAMPLES, override_usage = USAGE)]
#[command(group = ArgGroup::new("scored").args(["pred", "sam", "network"]).required(true).multiple(true))]
#[command(group = ArgGroup::new("truth").args(["label", "data"]).required(true))]
pub struct Arguments {
    /// Folder of predictions: NIfTI, NRRD, MetaImage or pictures
    #[arg(long, value_name = "DIR", conflicts_with_all = ["sam", "network"])]
    pred: Option<PathBuf>,
    /// Folder of ground truth, of the same formats
    #[arg(long, value_name = "DIR", requires = "pred", conflicts_with = "sam")]
    label: Option<PathBuf>,
    /// Folder of a dataset, whose test cases are scored
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// SAM's checkpoint, as in training: .pth or .safetensors
    #[arg(long, value_name = "FILE", requires = "data")]
    sam: Option<PathBuf>,
    /// The trained network: .safetensors; several are averaged [default: none, SAM as it is]
    #[arg(long, value_name = "FILE", requires = "data", alias = "ladder")]
    network: Vec<PathBuf>,
    /// What --sam must contain without --network; only MedSAM must be named [default: any]
    #[arg(long, value_name = "NAME", value_enum, requires = "sam", conflicts_with = "network")]
    variant: Option<Variant>,
    /// Dataset description, TOML, or `synapse` [default: the network's, or numbers]
    #[arg(long, value_name = "FILE")]
    dataset: Option<PathBuf>,
    /// How cases are scored: reference, strict or both
    #[arg(long, value_name = "NAME", value_enum, default_value_t = Scoring::Both)]
    #[arg(hide_possible_values = true)]
    protocol: Scoring,
    /// Strict HD95 of the two directions: larger or pooled
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Hd95::Larger)]
    #[arg(hide_possible_values = true)]
    hd95: Hd95,
    /// Tolerance of the strict surface Dice in mm
    #[arg(long, value_name = "MM", default_value_t = 1.0, value_parser = not_negative)]
    tolerance_mm: f64,
    /// Also write PREFIX.html and PREFIX-reference and -strict.csv, .json, .md
    #[arg(long, value_name = "PREFIX")]
    output: Option<PathBuf>,
    /// Also report the AUROC of a model's uncertainty for finding errors
    #[arg(long, conflicts_with = "pred")]
    uncertainty: bool,
    #[command(flatten)]
    model: ModelOptions,
    /// Overwrite existing outputs
    #[arg(long)]
    force: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scoring {
    Reference,
    Strict,
    Both,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Hd95 {
    Larger,
    Pooled,
}

/// Scores, the page that shows them, and label files or cases without a prediction.
struct Evaluation {
    reports: Vec<Report>,
    page: HtmlReport,
    unpredicted: Vec<String>,
    /// With `--uncertainty`.
    error_detection: Option<ErrorDetection>,
}

pub fn run(arguments: &Arguments) -> Result<Status> {
    let protocols = arguments.protocols();
    check_inputs(arguments)?;
    let staging = check_output(arguments, &protocols)?;
    let evaluation = match (&arguments.pred, &arguments.label, &arguments.data) {
        (Some(predictions), Some(labels), _) => {
            score_folders(arguments, predictions, labels, protocols)?
        }
        (Some(predictions), None, Some(data)) => {
            score_cases(arguments, predictions, data, protocols)?
        }
        (None, _, Some(data)) => score_model(arguments, data, protocols)?,
        _ => bail!("no input; give --pred and --label, --pred and --data, or --data and --network"),
    };
    let mut files = Vec::new();
    if let (Some(prefix), Some(staging)) = (&arguments.output, staging) {
        let mut written = write_reports(&evaluation.reports, staging.file(prefix))?;
        let page = staging.file(&page_file(prefix));
        std::fs::write(&page, evaluation.page.render(&evaluation.reports))
            .with_context(|| format!("cannot write {}", page_file(prefix).display()))?;
        written.push(page);
        let name = |file: &PathBuf| prefix.with_file_name(file.file_name().unwrap_or_default());
        files = written.iter().map(name).collect();
        staging.publish()?;
    }
    print_result(&evaluation, &files, arguments.json)?;
    Ok(Status::Done)
}

impl Arguments {
    fn protocols(&self) -> Vec<Protocol> {
        let strict = Protocol::Strict(StrictOptions {
            hd95: match self.hd95 {
                Hd95::Larger => DirectedDistances::Larger,
                Hd95::Pooled => DirectedDistances::Pooled,
            },
            surface_dice_tolerance_mm: self.tolerance_mm,
            in_voxels: false,
        });
        match self.protocol {
            Scoring::Reference => vec![Protocol::Reference],
            Scoring::Strict => vec![strict],
            Scoring::Both => vec![Protocol::Reference, strict],
        }
    }

    /// A page that names what is read, without cases.
    fn page(&self, title: &str, description: &DatasetDescription) -> HtmlReport {
        let mut page = HtmlReport::new(title, description);
        let inputs = [
            ("Predictions", &self.pred),
            ("Ground truth", &self.label),
            ("Data", &self.data),
            ("Foundation", &self.sam),
        ];
        for (name, path) in inputs {
            if let Some(path) = path {
                page.add_fact(name, path.display().to_string());
            }
        }
        for network in &self.network {
            page.add_fact("Network", network.display().to_string());
        }
        page.add_fact("Dataset", &description.name);
        page.add_fact("sam-lst", env!("CARGO_PKG_VERSION"));
        page
    }

    /// Files and folders that are read.
    fn inputs(&self) -> Vec<&Path> {
        let inputs = [&self.pred, &self.label, &self.data, &self.sam, &self.dataset];
        inputs.into_iter().flatten().chain(&self.network).map(PathBuf::as_path).collect()
    }
}

fn check_inputs(arguments: &Arguments) -> Result<()> {
    for folder in [&arguments.pred, &arguments.label, &arguments.data].into_iter().flatten() {
        output::check_input(folder)?;
    }
    for checkpoint in arguments.sam.iter().chain(&arguments.network) {
        output::check_checkpoint(checkpoint)?;
    }
    Ok(())
}

/// The HTML page of a prefix.
fn page_file(prefix: &Path) -> PathBuf {
    let mut name = prefix.file_name().unwrap_or_default().to_owned();
    name.push(".html");
    prefix.with_file_name(name)
}

/// Adds a case with its slices to a page.
fn add_case(page: &mut HtmlReport, case: EvaluatedCase<'_>) {
    page.add_case(case.scores, &case.volumes.image, case.prediction, &case.volumes.label);
}

/// Checks the report files, and that they can be written.
fn check_output(arguments: &Arguments, protocols: &[Protocol]) -> Result<Option<Staging>> {
    let Some(prefix) = &arguments.output else { return Ok(None) };
    let is_folder = prefix.to_string_lossy().ends_with(std::path::is_separator) || prefix.is_dir();
    if is_folder {
        bail!(WrongUsage(format!(
            "cannot write {}: it is a folder; add a prefix for the files, such as {}",
            prefix.display(),
            prefix.join("scores").display()
        )));
    }
    let name = prefix.file_name();
    let name = name.with_context(|| {
        format!("cannot write {}-reference.csv: the prefix has no file name", prefix.display())
    })?;
    for protocol in protocols {
        for extension in ["csv", "json", "md"] {
            let name = format!("{}-{}.{extension}", name.to_string_lossy(), protocol.name());
            let file = prefix.with_file_name(name);
            output::check_file(&file, &arguments.inputs(), arguments.force)?;
        }
    }
    output::check_file(&page_file(prefix), &arguments.inputs(), arguments.force)?;
    Staging::for_file(prefix).map(Some)
}

fn score_folders(
    arguments: &Arguments,
    predictions: &Path,
    labels: &Path,
    mut protocols: Vec<Protocol>,
) -> Result<Evaluation> {
    let description = arguments.dataset.as_deref().map(read_description).transpose()?;
    let folders = FolderPairs::find(predictions, labels)?;
    show_pairs(&folders);
    let mut progress = Progress::new();
    let numbers = folders.label_numbers(description.as_ref(), |done, total| {
        progress.count("reading", done, total, "cases");
    })?;
    let description = description.unwrap_or_else(|| numbers.description());
    show_label_numbers(&numbers, &description);
    numbers.check(&description)?;
    let mut has_spacing = true;
    for pair in folders.pairs() {
        has_spacing &= read_geometry(&pair.label, description.orientation)?.is_some();
    }
    measure_in_voxels(!has_spacing, &mut protocols);
    let reports = folders.evaluate(&description, &protocols, |done, total| {
        progress.count("scoring", done, total, "cases");
    })?;
    let unpredicted = folders.unpredicted().iter().map(|file| file.display().to_string());
    let page = arguments.page("Scores of predictions", &description);
    Ok(Evaluation { reports, page, unpredicted: unpredicted.collect(), error_detection: None })
}

/// Scores predictions for the test cases of a dataset.
fn score_cases(
    arguments: &Arguments,
    predictions: &Path,
    data: &Path,
    mut protocols: Vec<Protocol>,
) -> Result<Evaluation> {
    let description = describe_data(data, arguments.dataset.as_deref())?;
    let dataset = Dataset::open(data, description)?;
    let cases = dataset.cases(Split::Test)?;
    let pairs = CasePairs::find(&dataset, &cases, predictions)?;
    let name = |file: &Path| file.file_name().unwrap_or_default().display().to_string();
    for (case, prediction) in pairs.pairs() {
        note(&format!("pair        {} with case {}", name(prediction), case.name));
    }
    if !pairs.others().is_empty() {
        let names: Vec<&str> = pairs.others().iter().map(String::as_str).collect();
        note(&format!(
            "{} predictions are of cases that are no test cases and are not scored: {}",
            names.len(),
            report::shortened(&names, 8)
        ));
    }
    let mut numbers = LabelNumbers::default();
    for (_, prediction) in pairs.pairs() {
        numbers
            .predicted
            .extend(read_label_numbers(prediction, dataset.description().label_colors())?);
    }
    let list = label_ranges(numbers.predicted.iter().copied());
    note(&format!("labels      predictions have {list}"));
    numbers.check(dataset.description())?;
    adapt_to_spacing(&dataset, &mut protocols)?;
    let mut progress = Progress::new();
    let mut page = arguments.page("Scores of predictions", dataset.description());
    let count = |done, total| progress.count("scoring", done, total, "cases");
    let reports = pairs.evaluate_each(&protocols, count, |case| add_case(&mut page, case))?;
    let unpredicted = pairs.unpredicted().iter().map(|case| case.name.clone()).collect();
    Ok(Evaluation { reports, page, unpredicted, error_detection: None })
}

/// Checks the test cases, and measures in voxels where they have no voxel spacing.
fn adapt_to_spacing(dataset: &Dataset, protocols: &mut [Protocol]) -> Result<()> {
    let has_spacing = check_cases(dataset, &[Split::Test])?;
    measure_in_voxels(!has_spacing, protocols);
    Ok(())
}

/// Makes all protocols measure in voxels if there is no voxel spacing.
fn measure_in_voxels(without_spacing: bool, protocols: &mut [Protocol]) {
    if without_spacing {
        note("the images have no voxel spacing in mm; distances are in voxels");
        protocols.iter_mut().for_each(|protocol| *protocol = protocol.in_voxels());
    }
}

/// Shows which prediction is scored against which label file. Equal names need no list.
fn show_pairs(folders: &FolderPairs) {
    let name = |file: &Path| file.file_name().unwrap_or_default().display().to_string();
    let (equal, other): (Vec<_>, Vec<_>) =
        folders.pairs().iter().partition(|pair| name(&pair.prediction) == name(&pair.label));
    if !equal.is_empty() {
        note(&format!("pairs       {} of files of the same name", equal.len()));
    }
    for pair in other {
        note(&format!("pair        {} with {}", name(&pair.prediction), name(&pair.label)));
    }
}

/// Shows the label numbers of both sides and what they mean.
fn show_label_numbers(numbers: &LabelNumbers, description: &DatasetDescription) {
    let list = |numbers: &BTreeSet<u16>| label_ranges(numbers.iter().copied());
    note(&format!("labels      predictions have {}", list(&numbers.predicted)));
    note(&format!("labels      ground truth has {}", list(&numbers.truth)));
    let organs: Vec<String> = description
        .organs
        .iter()
        .map(|organ| format!("{} {}", label_ranges(organ.labels.iter().copied()), organ.name))
        .collect();
    note(&format!("labels      of {}: {}", description.name, organs.join(", ")));
    let missing: Vec<u16> = numbers.truth.difference(&numbers.predicted).copied().collect();
    if !missing.is_empty() {
        let missing = label_ranges(missing);
        note(&format!("warning: no prediction has {missing}, which the ground truth has"));
    }
}

const NO_MODEL: &str = "no model; give --network, --sam, or both";

fn score_model(
    arguments: &Arguments,
    data: &Path,
    mut protocols: Vec<Protocol>,
) -> Result<Evaluation> {
    let sam = arguments.sam.as_deref();
    if sam.is_none() && arguments.network.is_empty() {
        bail!(NO_MODEL);
    }
    let options = &arguments.model;
    let device = open_device(&options.device)?;
    let description = arguments.dataset.as_deref();
    let networks = &arguments.network;
    let task = if networks.is_empty() {
        untrained_task(describe_data(data, description)?)
    } else {
        let description = description.map(DatasetDescription::from_file).transpose()?;
        read_common_task(networks, sam, description)?
    };
    let classes = task.dataset.classes();
    options.check()?;
    let dataset = Dataset::open(data, task.dataset.clone())?;
    let cases = dataset.cases(Split::Test)?;
    let names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    note(&format!("test:       {}", names.join(", ")));
    adapt_to_spacing(&dataset, &mut protocols)?;
    let models = match sam {
        _ if !networks.is_empty() => options.load_all(sam, networks, &device)?,
        None => bail!(NO_MODEL),
        Some(sam) => {
            note(
                "without --network, SAM's decoder predicts one mask per class without prompts and \
                 without training",
            );
            let config = foundation::model(sam, arguments.variant, classes)?;
            vec![options.load_untrained(config, sam, &device)?]
        }
    };
    let cache = options.open_cache(&models, &task)?;
    let mut segmenter = options.segmenter(&models, networks, &task)?;
    if let Some(cache) = &cache {
        segmenter = segmenter.with_cache(cache);
    }
    if arguments.uncertainty {
        segmenter = segmenter.with_uncertainty();
    }
    let mut error_detection = ErrorDetection::new();
    let mut progress = CaseProgress::new("scoring", cases.len());
    let mut page = arguments.page("Scores of a model", dataset.description());
    let reports = segmenter.evaluate_each(
        &dataset,
        &cases,
        &protocols,
        |case, done, slices| progress.update(case, done, slices),
        |case| {
            case.count_errors(&mut error_detection);
            add_case(&mut page, case);
        },
    )?;
    drop(progress);
    if let Some(error) = segmenter.embedder().and_then(Embedder::cache_write_error) {
        note(&error.to_string());
    }
    let error_detection = arguments.uncertainty.then_some(error_detection);
    if let Some(detection) = &error_detection {
        page.add_fact("Uncertainty", describe_detection(detection));
    }
    Ok(Evaluation { reports, page, unpredicted: Vec::new(), error_detection })
}

/// How well the uncertainty finds errors.
fn describe_detection(detection: &ErrorDetection) -> String {
    let [correct, incorrect] = detection.voxels();
    let share = 100.0 * incorrect as f64 / (correct + incorrect).max(1) as f64;
    match detection.auroc() {
        Some(area) => format!(
            "AUROC for finding errors {area:.3}, among the voxels with an organ in prediction or label, \
             of which {share:.1} % are incorrect"
        ),
        None => "no AUROC, since all voxels with an organ are correct, or all incorrect".to_owned(),
    }
}

fn print_result(evaluation: &Evaluation, files: &[PathBuf], json: bool) -> Result<()> {
    let Evaluation { reports, unpredicted, error_detection, .. } = evaluation;
    let names = |files: &[PathBuf]| -> Vec<String> {
        files.iter().map(|file| file.display().to_string()).collect()
    };
    if !unpredicted.is_empty() {
        note(&format!(
            "{} label files or cases are not scored because they have no prediction: {}",
            unpredicted.len(),
            unpredicted.join(", ")
        ));
    }
    if json {
        return output::print_json(&json!({
            "reports": report::json(reports)?,
            "files": names(files),
            "unpredicted": unpredicted,
            "uncertainty_auroc": error_detection.as_ref().and_then(ErrorDetection::auroc),
        }));
    }
    let mut text = report::tables(reports);
    if let Some(detection) = error_detection {
        text.push_str(&format!("\nuncertainty: {}\n\n", describe_detection(detection)));
    }
    for file in files {
        report::file_line(&mut text, "scores", file);
    }
    output::print(&text)
}
