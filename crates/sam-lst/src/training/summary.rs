//! The summary of a run: what it takes to repeat it, and what it cost.

use super::TrainingError;
use super::checkpoint::IdentifiedCase;
use super::run::Trainer;
use crate::model::{NetworkConfig, SegmentationNetwork};
use crate::system::peak_memory_bytes;
use sam_lst_datasets::{Split, replace_file};
use sam_lst_metrics::Report;
use serde::Serialize;
use serde_json::Value;
use std::path::Path;

pub(super) const FILE: &str = "run_summary.json";

/// The version of Burn that this release was tested with. A program may resolve a later compatible
/// one, which its `Cargo.lock` names.
pub const BURN_VERSION: &str = "0.22.1";

#[derive(Serialize)]
struct RunSummary<'a, C: NetworkConfig> {
    sam_lst_version: &'static str,
    burn_version: &'static str,
    system: String,
    threads: Option<usize>,
    device: String,
    method: &'static str,
    config: &'a super::TrainingConfig<C>,
    dataset: &'a str,
    training_cases: Vec<CaseSummary<'a>>,
    validation_cases: Vec<CaseSummary<'a>>,
    /// `None` without a foundation.
    foundation_sha256: Option<&'a str>,
    /// Of the file from which a part of the network was initialised, if any.
    pretrained_sha256: Option<&'a str>,
    slices: usize,
    trained_parameters: usize,
    steps: u64,
    epochs: u64,
    seconds: f64,
    /// Of it in steps and waiting for their batches, without validations, checkpoints and the next.
    step_seconds: f64,
    /// Of it in which embeddings were computed before the first step.
    precomputing_seconds: f64,
    /// By the last process of the run.
    computed_embeddings: usize,
    /// Time that the last process waited for batches.
    waited_for_batches_seconds: f64,
    waited_for_batches: usize,
    /// Of the last process, without memory of an accelerator; `None` where the system does not
    /// tell.
    peak_memory_bytes: Option<u64>,
    best_mean_dsc: Option<f64>,
    best_epoch: Option<u64>,
}

#[derive(Serialize)]
struct CaseSummary<'a> {
    case: &'a str,
    /// Over the contents of its files, in their order, when the run began.
    files_sha256: Option<&'a str>,
}

impl<'a> CaseSummary<'a> {
    fn of(identified: &'a IdentifiedCase<'_>) -> Self {
        let files_sha256 = identified.files_sha256.as_deref();
        Self { case: &identified.case.name, files_sha256 }
    }
}

/// Writes the summary of a run that is complete.
pub(super) fn write<N: SegmentationNetwork>(trainer: &Trainer<'_, N>) -> Result<(), TrainingError> {
    let (run, position) = (trainer.run, &trainer.position);
    let cases = |split| run.identity.cases(split).map(CaseSummary::of).collect();
    let summary = RunSummary {
        sam_lst_version: env!("CARGO_PKG_VERSION"),
        burn_version: BURN_VERSION,
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        threads: std::thread::available_parallelism().ok().map(usize::from),
        device: format!("{:?}", trainer.model.network.devices()),
        method: N::Config::METHOD,
        config: run.config,
        dataset: &run.dataset.description().name,
        training_cases: cases(Split::Train),
        validation_cases: cases(Split::Validation),
        foundation_sha256: trainer.model.foundation_sha256(),
        pretrained_sha256: trainer.model.pretrained_sha256(),
        slices: run.plan.slices,
        trained_parameters: run.plan.trained_parameters,
        steps: position.steps,
        epochs: position.epochs,
        seconds: trainer.seconds(),
        step_seconds: position.step_seconds,
        precomputing_seconds: position.precomputing_seconds,
        computed_embeddings: trainer.computed_embeddings(),
        waited_for_batches_seconds: trainer.wait_time.time.as_secs_f64(),
        waited_for_batches: trainer.wait_time.batches,
        peak_memory_bytes: peak_memory_bytes(),
        best_mean_dsc: position.best_dsc,
        best_epoch: position.best_dsc.map(|_| position.best_epoch),
    };
    let text = serde_json::to_vec_pretty(&summary).expect("plain data");
    run.folder.write_file(FILE, &text)
}

/// Writes scores into the summary in `run`, replacing earlier ones.
pub(super) fn add_scores(run: &Path, reports: &[Report]) -> Result<(), TrainingError> {
    let file = run.join(FILE);
    let text = std::fs::read(&file).map_err(TrainingError::read(&file))?;
    let damaged = |error: serde_json::Error| TrainingError::read(&file)(error.into());
    let mut summary: serde_json::Map<String, Value> =
        serde_json::from_slice(&text).map_err(damaged)?;
    let scores: Result<Vec<Value>, _> =
        reports.iter().map(|report| serde_json::from_str(&report.to_json())).collect();
    summary.insert("scores".to_owned(), scores.expect("a report is JSON").into());
    let text = serde_json::to_vec_pretty(&summary).expect("plain data");
    replace_file(&file, FILE, |temporary| std::fs::write(temporary, text))
        .map_err(TrainingError::write(&file))
}

/// What the summary in `run` says of the run, as names and values for people.
pub(super) fn facts(run: &Path) -> Result<Vec<(&'static str, String)>, TrainingError> {
    let file = run.join(FILE);
    let text = std::fs::read(&file).map_err(TrainingError::read(&file))?;
    let summary: Value =
        serde_json::from_slice(&text).map_err(|error| TrainingError::read(&file)(error.into()))?;
    let text = |key: &str| summary[key].as_str().map(str::to_owned);
    let count = |key: &str| summary[key].as_u64().map(grouped);
    let cases = |key: &str| {
        let cases = summary[key].as_array().filter(|cases| !cases.is_empty())?;
        let names: Vec<&str> = cases.iter().filter_map(|case| case["case"].as_str()).collect();
        Some(format!("{}: {}", names.len(), names.join(", ")))
    };
    let time = |key: &str| summary[key].as_f64().map(duration);
    let per_step = || {
        let steps = summary["steps"].as_f64().filter(|&steps| steps > 0.0)?;
        Some(format!("{:.3} s", summary["step_seconds"].as_f64()? / steps))
    };
    let percent = |key: &str| summary[key].as_f64().map(|share| format!("{:.2} %", 100.0 * share));
    let facts = [
        ("Method", Some(method_name(&summary)).filter(|name| !name.is_empty())),
        ("Dataset", text("dataset")),
        ("Training cases", cases("training_cases")),
        ("Validation cases", cases("validation_cases")),
        ("Training slices", count("slices")),
        ("Epochs", count("epochs")),
        ("Steps", count("steps")),
        ("Trained parameters", count("trained_parameters")),
        ("Best validation DSC", percent("best_mean_dsc")),
        ("Time", time("seconds")),
        ("Time of all steps", time("step_seconds")),
        ("Time of a step", per_step()),
        (
            "Peak memory",
            summary["peak_memory_bytes"].as_f64().map(|bytes| format!("{:.0} MB", bytes / 1e6)),
        ),
        ("SHA-256 of the foundation's weights", text("foundation_sha256")),
        ("SHA-256 of the file of ImageNet weights", text("pretrained_sha256")),
        ("sam-lst", text("sam_lst_version")),
        ("Burn", text("burn_version")),
        ("System", text("system")),
        ("Threads", count("threads")),
        // On the CPU, Burn's own words say no more.
        (
            "Device",
            text("device").map(|name| if name.contains("Flex") { "CPU".to_owned() } else { name }),
        ),
    ];
    Ok(facts.into_iter().filter_map(|(name, value)| Some((name, value?))).collect())
}

/// The method and, of SAM's tuning, its kind.
fn method_name(summary: &Value) -> String {
    let method = summary["method"].as_str().unwrap_or_default();
    let tuning = &summary["config"]["model"]["tuning"];
    let kind = tuning.as_str().or_else(|| Some(tuning.as_object()?.keys().next()?.as_str()));
    match kind {
        Some(kind) if method == "sam-tuning" => format!("{method} ({kind})"),
        _ => variant_of_trans_unet(summary).unwrap_or(method).to_owned(),
    }
}

/// The name of a network that TransUNet is compared with in its paper.
fn variant_of_trans_unet(summary: &Value) -> Option<&'static str> {
    let network = &summary["config"]["model"]["network"];
    match (network["depth"].as_u64()?, network["skips"].as_str()?) {
        (0, "Gated") => Some("trans-unet (r50-attention-unet)"),
        (0, "Plain") => Some("trans-unet (r50-unet)"),
        (1.., "None") => Some("trans-unet (r50-vit)"),
        _ => None,
    }
}

/// A number with a comma between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A duration in its largest units.
fn duration(seconds: f64) -> String {
    match seconds {
        ..100.0 => format!("{seconds:.1} s"),
        ..6000.0 => format!("{:.1} min", seconds / 60.0),
        _ => format!("{:.1} h", seconds / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        let text = [0, 999, 1000, 20_617_028].map(grouped);
        assert_eq!(text, ["0", "999", "1,000", "20,617,028"]);
        let text = [0.25, 99.9, 100.0, 5999.0, 7200.0].map(duration);
        assert_eq!(text, ["0.2 s", "99.9 s", "1.7 min", "100.0 min", "2.0 h"]);
    }
}
