//! What `demo`, `train` and `embed` share: checks, the run, and its report.

use crate::display::Display;
use crate::progress::{CaseProgress, Progress, note};
use crate::{interrupt, output, report};
use anyhow::Result;
use burn::tensor::Device;
use sam_lst::datasets::Case;
use sam_lst::training::RunReport;
use sam_lst::{
    Dataset, NetworkConfig, Outcome, SamLstConfig, SegmentationModel, SegmentationNetwork, Split,
    Trained, Training, TrainingFolders,
};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Reads all cases of some splits, so that an unreadable volume or a label that is not in the
/// description is reported before hours of work. Returns whether all volumes have a voxel spacing.
pub fn check_cases(dataset: &Dataset, splits: &[Split]) -> Result<bool> {
    let cases = dataset.all_cases().iter().filter(|case| splits.contains(&case.split));
    let cases: Vec<&Case> = cases.collect();
    let mut progress = Progress::new();
    let mut has_spacing = true;
    for (done, case) in cases.iter().enumerate() {
        progress.count("checking", done, cases.len(), "cases");
        has_spacing &= dataset.read(case)?.image.spacing_mm().is_some();
    }
    Ok(has_spacing)
}

/// Shows which cases are in which split, so that a wrong assignment is seen before hours of work.
pub fn show_cases(dataset: &Dataset) {
    for split in [Split::Train, Split::Validation, Split::Test] {
        let cases = dataset.all_cases().iter().filter(|case| case.split == split);
        let names: Vec<&str> = cases.map(|case| case.name.as_str()).collect();
        if !names.is_empty() {
            note(&format!("{:<11} {}", format!("{split}:"), report::shortened(&names, 40)));
        }
    }
}

/// Checks that the folders of a run of a method take files and that no input would be overwritten.
pub fn check_folders<C: NetworkConfig>(folders: &TrainingFolders, inputs: &[&Path]) -> Result<()> {
    for folder in [&folders.run, &folders.cache] {
        output::check_not_input(folder, inputs)?;
        output::check_writable(folder)?;
    }
    for name in [C::METHOD, "best", "foundation"] {
        output::check_not_input(&folders.run.join(format!("{name}.safetensors")), inputs)?;
    }
    Ok(())
}

/// Trains, resumes or loads a run. `None` if the user stopped it.
pub fn train<N: SegmentationNetwork>(
    training: &Training<N::Config>,
    model: SegmentationModel<N>,
    dataset: &Dataset,
    mut display: Display,
) -> Result<Option<Trained<N>>> {
    let outcome = training.run(model, dataset, |event| display.show(&event));
    drop(display);
    match outcome? {
        Outcome::Finished(trained) if !interrupt::stop_requested() => Ok(Some(trained)),
        Outcome::Finished(_) => {
            note(&format!("stopped after the last step; {}", interrupt::RESUME));
            Ok(None)
        }
        Outcome::Stopped { steps } => {
            note(&format!("stopped after step {steps}; {}", interrupt::RESUME));
            Ok(None)
        }
    }
}

/// Saves the random foundation of a model in the run's folder, since a ladder is useless without it.
/// It is created anew, since training may have rounded it.
pub fn save_random_foundation(
    config: &SamLstConfig,
    run: &Path,
    device: &Device,
) -> Result<PathBuf> {
    let file = run.join("foundation.safetensors");
    config.init(&device.clone().autodiff())?.save_sam(&file)?;
    Ok(file)
}

/// Scores a finished run, writes its report and prints it, with the file of the foundation where the
/// user need not have named it.
pub fn write_report<N: SegmentationNetwork>(
    trained: &Trained<N>,
    dataset: &Dataset,
    run: &Path,
    foundation: Option<&Path>,
    json: bool,
) -> Result<()> {
    let mut progress = CaseProgress::new("scoring", evaluated_cases(dataset));
    let written =
        trained.write_report(dataset, |case, done, slices| progress.update(case, done, slices))?;
    drop(progress);
    if json {
        let path = |path: &Path| path.display().to_string();
        return output::print_json(&json!({
            "run": path(run),
            "method": N::Config::METHOD,
            "network": path(&trained.network_file),
            "foundation": foundation.map(path),
            "best_validation_dsc": trained.best_dsc,
            "split": written.split,
            "cases": written.cases,
            "reports": report::json(&written.reports)?,
            "pictures": path(&written.pictures),
            "learning_curve": path(&written.learning_curve),
            "page": path(&written.page),
        }));
    }
    output::print(&describe(trained, &written, run, foundation))
}

/// Prints where a finished run is that is not scored.
pub fn write_paths<N: SegmentationNetwork>(
    trained: &Trained<N>,
    run: &Path,
    foundation: Option<&Path>,
    json: bool,
) -> Result<()> {
    if json {
        let path = |path: &Path| path.display().to_string();
        return output::print_json(&json!({
            "run": path(run),
            "method": N::Config::METHOD,
            "network": path(&trained.network_file),
            "foundation": foundation.map(path),
            "best_validation_dsc": trained.best_dsc,
        }));
    }
    let mut text = describe_network(trained, foundation);
    report::file_line(&mut text, "settings, logs", run);
    output::print(&text)
}

/// The best validation, if there was one, and the files of the trained network.
fn describe_network<N: SegmentationNetwork>(
    trained: &Trained<N>,
    foundation: Option<&Path>,
) -> String {
    let line = |dsc| format!("{:<16} DSC {:.2} %\n", "best validation", 100.0 * dsc);
    let mut text = trained.best_dsc.map_or_else(String::new, line);
    report::file_line(&mut text, "trained network", &trained.network_file);
    if let Some(foundation) = foundation {
        report::file_line(&mut text, "foundation", foundation);
    }
    text
}

fn describe<N: SegmentationNetwork>(
    trained: &Trained<N>,
    written: &RunReport,
    run: &Path,
    foundation: Option<&Path>,
) -> String {
    let cases = if written.cases == 1 { "case" } else { "cases" };
    let mut text = format!("{} {} {cases}\n", written.cases, written.split);
    text += &report::tables(&written.reports);
    text += &describe_network(trained, foundation);
    report::file_line(&mut text, "pictures", &written.pictures);
    report::file_line(&mut text, "learning curve", &written.learning_curve);
    report::file_line(&mut text, "all in one page", &written.page);
    report::file_line(&mut text, "settings, logs", run);
    text
}

/// Number of cases that a report evaluates: of the first split that has any, from test to training.
fn evaluated_cases(dataset: &Dataset) -> usize {
    let splits = [Split::Test, Split::Validation, Split::Train];
    splits.into_iter().find_map(|split| dataset.cases(split).ok()).map_or(0, |cases| cases.len())
}
