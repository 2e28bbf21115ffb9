//! Writes a dataset in the form that published pipelines for Synapse read: `train_npz/`, `test_vol_h5/` and `lists/`.
//!
//! Training with this library needs no preparation; other programs may.
//!
//! ```sh
//! cargo run --release --example prepare_synapse -- Synapse/ prepared/
//! ```

use anyhow::Result;
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use sam_lst::rooms::datasets::prepare;
use sam_lst::{Dataset, DatasetDescription};
use std::path::PathBuf;

#[derive(Parser)]
#[command(about = "Writes a dataset in the form that published pipelines for Synapse read")]
struct Arguments {
    /// The dataset's folder: for Synapse, the one that has `RawData/Training/img` in it.
    data: PathBuf,
    /// Where the prepared dataset is written.
    destination: PathBuf,
    /// A description of another dataset than Synapse, in TOML.
    #[arg(long, value_name = "FILE")]
    dataset: Option<PathBuf>,
}

#[expect(clippy::print_stdout, reason = "a program's output")]
fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let description = match &arguments.dataset {
        Some(file) => DatasetDescription::from_file(file)?,
        None => DatasetDescription::synapse(),
    };
    let dataset = Dataset::open(&arguments.data, description)?;
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} cases, {eta} left  {msg}")?;
    let bar = ProgressBar::new(dataset.all_cases().len() as u64).with_style(style);
    bar.tick();
    let prepared = prepare(&dataset, &arguments.destination, |case| {
        bar.set_message(case.name.clone());
        bar.inc(1);
    })?;
    bar.finish_and_clear();
    println!(
        "{}: {} training cases as {} slices, {} test cases as volumes",
        arguments.destination.display(),
        prepared.train_cases,
        prepared.train_slices,
        prepared.test_cases
    );
    Ok(())
}
