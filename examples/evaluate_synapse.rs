//! Scores predicted label volumes against true ones, whoever made them.
//!
//! ```sh
//! cargo run --release --example evaluate_synapse -- --pred predictions/ --label Synapse/RawData/Training/label/
//! ```

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use sam_lst::rooms::metrics::{DirectedDistances, StrictOptions};
use sam_lst::{DatasetDescription, Protocol, evaluate_folders};
use std::path::PathBuf;

#[derive(Parser)]
#[command(
    about = "Scores predicted label volumes (.nii, .nii.gz) against true ones, whoever made them"
)]
struct Arguments {
    /// Folder of predictions.
    #[arg(long, value_name = "DIR")]
    pred: PathBuf,
    /// Folder of true labels. A prediction belongs to the label of the same name, or else of the same number.
    #[arg(long, value_name = "DIR")]
    label: PathBuf,
    /// A description of another dataset than Synapse, in TOML: its label numbers and organs.
    #[arg(long, value_name = "FILE")]
    dataset: Option<PathBuf>,
    /// How cases are scored.
    #[arg(long, value_enum, default_value_t = Scoring::Both)]
    protocol: Scoring,
    /// How the strict protocol makes one HD95 of the two directions' distances.
    #[arg(long, value_enum, default_value_t = Hd95::Larger)]
    hd95: Hd95,
    /// Tolerance of the strict protocol's surface Dice.
    #[arg(long, value_name = "MM", default_value_t = 1.0)]
    tolerance_mm: f64,
    /// Also write the reports as PREFIX-reference.csv, .json and .md, and PREFIX-strict likewise.
    #[arg(long, value_name = "PREFIX")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Scoring {
    /// medpy's DSC and HD95 in voxels, as published tables have them.
    Reference,
    /// Millimetres; absent organs are counted, not scored.
    Strict,
    /// Both, one table each.
    Both,
}

#[derive(Clone, Copy, ValueEnum)]
enum Hd95 {
    /// The larger of the two percentiles.
    Larger,
    /// The percentile of both together.
    Pooled,
}

#[expect(clippy::print_stdout, reason = "a program's output")]
fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let description = match &arguments.dataset {
        Some(file) => DatasetDescription::from_file(file)?,
        None => DatasetDescription::synapse(),
    };
    let strict = Protocol::Strict(StrictOptions {
        hd95: match arguments.hd95 {
            Hd95::Larger => DirectedDistances::Larger,
            Hd95::Pooled => DirectedDistances::Pooled,
        },
        surface_dice_tolerance_mm: arguments.tolerance_mm,
    });
    let protocols = match arguments.protocol {
        Scoring::Reference => vec![Protocol::Reference],
        Scoring::Strict => vec![strict],
        Scoring::Both => vec![Protocol::Reference, strict],
    };
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} cases, {eta} left")?;
    let bar = ProgressBar::no_length().with_style(style);
    let evaluation = evaluate_folders(
        &arguments.pred,
        &arguments.label,
        &description,
        &protocols,
        |done, all| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        },
    )?;
    bar.finish_and_clear();
    for report in &evaluation.reports {
        println!("{report}\n");
        if let Some(prefix) = &arguments.output {
            let name = match report.protocol() {
                Protocol::Reference => "reference",
                Protocol::Strict(_) => "strict",
            };
            for (extension, text) in [
                ("csv", report.to_csv()),
                ("json", report.to_json()),
                ("md", report.to_markdown()),
            ] {
                let file = PathBuf::from(format!("{}-{name}.{extension}", prefix.display()));
                std::fs::write(&file, text)
                    .with_context(|| format!("cannot write {}", file.display()))?;
                println!("{}", file.display());
            }
        }
    }
    if !evaluation.unpredicted.is_empty() {
        println!(
            "{} labels have no prediction and are not scored",
            evaluation.unpredicted.len()
        );
    }
    Ok(())
}
