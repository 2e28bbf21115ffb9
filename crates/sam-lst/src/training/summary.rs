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
    slices: usize,
    trained_parameters: usize,
    steps: u64,
    epochs: u64,
    seconds: f64,
    /// By the last process of the run.
    computed_embeddings: usize,
    /// Time that the last process waited for batches.
    waited_for_batches_seconds: f64,
    waited_for_batches: usize,
    /// Of the last process, without memory of an accelerator; `None` where the system does not tell.
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
        slices: run.plan.slices,
        trained_parameters: run.plan.trained_parameters,
        steps: position.steps,
        epochs: position.epochs,
        seconds: trainer.seconds(),
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
