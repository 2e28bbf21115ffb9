//! `sam-lst prepare`.

use crate::inspect::describe_data;
use crate::progress::Progress;
use crate::staging::Staging;
use crate::{Status, output};
use anyhow::{Result, bail};
use clap::Args;
use sam_lst::Dataset;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Writes train_npz (slices), test_vol_h5 (volumes) and lists. `sam-lst train` does not need it; other
programs may.

Examples:
  sam-lst prepare Synapse prepared
  sam-lst prepare mri prepared --dataset mri.toml";

/// Write a dataset in the form that published pipelines for Synapse read
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Folder of the dataset; for Synapse, the one that contains RawData/Training/img
    data: PathBuf,
    /// Folder to write to
    destination: PathBuf,
    /// Dataset description, TOML [default: as `sam-lst inspect` writes it]
    #[arg(long, value_name = "FILE")]
    dataset: Option<PathBuf>,
    /// Overwrite files in the destination if it is not empty
    #[arg(long)]
    force: bool,
}

pub fn run(arguments: &Arguments) -> Result<Status> {
    let Arguments { data, destination, .. } = arguments;
    output::check_input(data)?;
    let description = describe_data(data, arguments.dataset.as_deref())?;
    let dataset = Dataset::open(data, description)?;
    check_destination(&dataset, destination)?;
    output::check_folder(destination, &[data], arguments.force)?;
    let staging = Staging::new(destination)?;
    let mut progress = Progress::new();
    let total = dataset.all_cases().len();
    progress.count("preparing", 0, total, "cases");
    let mut done = 0;
    let counts = sam_lst::datasets::prepare(&dataset, staging.folder(), |_| {
        done += 1;
        progress.count("preparing", done, total, "cases");
    })?;
    drop(progress);
    staging.publish()?;
    output::print(&format!(
        "{}: {} training cases with {} slices, {} test cases\n",
        destination.display(),
        counts.train_cases,
        counts.train_slices,
        counts.test_cases
    ))?;
    Ok(Status::Done)
}

/// Checks that no file of the dataset is in the destination, where it might be overwritten.
fn check_destination(dataset: &Dataset, destination: &Path) -> Result<()> {
    let resolved = output::resolve(destination);
    for case in dataset.all_cases() {
        for file in case.files.paths() {
            if output::resolve(file).starts_with(&resolved) {
                bail!(
                    "cannot write to folder {}: it contains {} of the dataset; choose another",
                    destination.display(),
                    file.display()
                );
            }
        }
    }
    Ok(())
}
