//! What a run was: enough to repeat it, and to know what its figures are worth.

use super::TrainingError;
use super::trainer::Trainer;
use crate::SideEncoder;
use crate::weights::files_sha256;
use burn::module::Module;
use datasets::{Case, Split, replace_file};
use metrics::Report;
use serde::Serialize;
use serde_json::Value;
use std::path::Path;

pub(super) const FILE: &str = "receipt.json";

#[derive(Serialize)]
struct Receipt<'a> {
    sam_lst_version: &'static str,
    system: String,
    threads: Option<usize>,
    device: String,
    config: &'a super::TrainingConfig,
    dataset: &'a str,
    training_cases: Vec<CaseReceipt<'a>>,
    validation_cases: Vec<CaseReceipt<'a>>,
    foundation_sha256: &'a str,
    slices: usize,
    trained_values: usize,
    steps: u64,
    epochs: u64,
    seconds: f64,
    /// Of the last process that worked on the run.
    computed_embeddings: usize,
    /// What the device waited for batches, in the last process.
    waited_for_batches_seconds: f64,
    waited_for_batches: usize,
    /// Of the last process, on the machine itself, not on an accelerator; none where the system does not say.
    peak_memory_bytes: Option<u64>,
    best_mean_dsc: Option<f64>,
    best_epoch: Option<u64>,
}

/// Adds scores to the receipt of a run, in place of those that it had.
pub(super) fn add_scores(file: &Path, reports: &[Report]) -> Result<(), TrainingError> {
    let text = std::fs::read(file).map_err(TrainingError::read(file))?;
    let damaged = |error: serde_json::Error| TrainingError::read(file)(error.into());
    let mut receipt: serde_json::Map<String, Value> =
        serde_json::from_slice(&text).map_err(damaged)?;
    let scores: Result<Vec<Value>, _> = reports
        .iter()
        .map(|report| serde_json::from_str(&report.to_json()))
        .collect();
    receipt.insert(
        "scores".to_owned(),
        scores.expect("a report is JSON").into(),
    );
    let text = serde_json::to_vec_pretty(&receipt).expect("plain data");
    replace_file(file, FILE, |beside| std::fs::write(beside, text))
        .map_err(TrainingError::write(file))
}

#[derive(Serialize)]
struct CaseReceipt<'a> {
    case: &'a str,
    /// Over the contents of its files, in their order.
    files_sha256: String,
}

pub(super) fn write<S: SideEncoder>(trainer: &Trainer<'_, S>) -> Result<(), TrainingError> {
    let position = &trainer.position;
    let of = |split| -> Result<Vec<CaseReceipt<'_>>, TrainingError> {
        let cases = trainer
            .dataset
            .all_cases()
            .iter()
            .filter(|case| case.split == split);
        cases.map(case_receipt).collect()
    };
    let receipt = Receipt {
        sam_lst_version: env!("CARGO_PKG_VERSION"),
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        threads: std::thread::available_parallelism().ok().map(usize::from),
        device: format!("{:?}", trainer.model.ladder.devices()),
        config: trainer.config,
        dataset: &trainer.dataset.description().name,
        training_cases: of(Split::Train)?,
        validation_cases: of(Split::Validation)?,
        foundation_sha256: trainer.model.foundation.weights_sha256(),
        slices: trainer.plan.slices,
        trained_values: trainer.plan.trained_values,
        steps: position.steps,
        epochs: position.epochs,
        seconds: trainer.seconds(),
        computed_embeddings: trainer.computed_embeddings(),
        waited_for_batches_seconds: trainer.waiting.time.as_secs_f64(),
        waited_for_batches: trainer.waiting.batches,
        peak_memory_bytes: crate::peak_memory_bytes(),
        best_mean_dsc: position.best_dsc,
        best_epoch: position.best_dsc.map(|_| position.best_epoch),
    };
    let text = serde_json::to_vec_pretty(&receipt).expect("plain data");
    trainer.run.write_beside(FILE, &text)
}

fn case_receipt(case: &Case) -> Result<CaseReceipt<'_>, TrainingError> {
    let files_sha256 = files_sha256(case.files.paths())
        .map_err(|(file, error)| TrainingError::read(file)(error))?;
    Ok(CaseReceipt {
        case: &case.name,
        files_sha256,
    })
}
