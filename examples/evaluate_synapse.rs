//! Scores predicted label volumes against true ones, whoever made them; or a trained ladder on a dataset's test cases.
//!
//! ```sh
//! cargo run --release --example evaluate_synapse -- --pred predictions/ --label Synapse/RawData/Training/label/
//! cargo run --release --example evaluate_synapse -- --data Synapse/ --sam sam_vit_b_01ec64.pth --ladder ladder.safetensors
//! ```

#[path = "shared/device.rs"]
mod device;
#[path = "shared/model.rs"]
mod model;

use anyhow::{Result, bail};
use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use model::ModelArguments;
use sam_lst::rooms::datasets::Split;
use sam_lst::rooms::metrics::{DirectedDistances, StrictOptions};
use sam_lst::{
    Dataset, DatasetDescription, Protocol, Report, Segmenter, evaluate_folders, write_reports,
};
use std::path::{Path, PathBuf};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(
    about = "Scores predicted label volumes (.nii, .nii.gz), or a trained ladder on a dataset's test cases"
)]
struct Arguments {
    /// Folder of predictions.
    #[arg(long, value_name = "DIR", requires = "label", conflicts_with = "data")]
    pred: Option<PathBuf>,
    /// Folder of true labels. A prediction belongs to the label of the same name, or else of the same number.
    #[arg(long, value_name = "DIR", requires = "pred")]
    label: Option<PathBuf>,
    /// Folder of the dataset whose test cases the ladder is scored on.
    #[arg(long, value_name = "DIR", requires = "ladder")]
    data: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArguments,
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
    let arguments: Arguments = device::parse();
    sam_lst::compute_on_this_thread();
    let description = arguments
        .dataset
        .as_ref()
        .map(DatasetDescription::from_file)
        .transpose()?;
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
    let (reports, unpredicted) = match (&arguments.pred, &arguments.label, &arguments.data) {
        (Some(pred), Some(label), None) => {
            let description = description.unwrap_or_else(DatasetDescription::synapse);
            let bar = progress_bar("{bar:30} {pos}/{len} cases, {eta} left")?;
            let evaluation =
                evaluate_folders(pred, label, &description, &protocols, |done, all| {
                    bar.set_length(all as u64);
                    bar.set_position(done as u64);
                })?;
            bar.finish_and_clear();
            (evaluation.reports, evaluation.unpredicted.len())
        }
        (_, _, Some(data)) => (
            score_ladder(&arguments.model, data, description, &protocols)?,
            0,
        ),
        _ => bail!("give --pred and --label, or --data, --sam and --ladder; --help says more"),
    };
    for report in &reports {
        println!("{report}\n");
    }
    if let Some(prefix) = &arguments.output {
        for file in write_reports(&reports, prefix)? {
            println!("{}", file.display());
        }
    }
    if unpredicted > 0 {
        println!("{unpredicted} labels have no prediction and are not scored");
    }
    Ok(())
}

fn progress_bar(template: &str) -> Result<ProgressBar> {
    Ok(ProgressBar::no_length().with_style(ProgressStyle::with_template(template)?))
}

#[expect(clippy::print_stdout, reason = "a program's output")]
fn score_ladder(
    arguments: &ModelArguments,
    data: &Path,
    description: Option<DatasetDescription>,
    protocols: &[Protocol],
) -> Result<Vec<Report>> {
    let (model, task, config) = arguments.load(description)?;
    let dataset = Dataset::open(data, task.dataset)?;
    let cases = dataset.cases(Split::Test)?;
    let cache = arguments.open_cache(&model)?;
    let mut segmenter = Segmenter::new(&model, config);
    if let Some(cache) = &cache {
        segmenter = segmenter.with_cache(cache);
    }
    let bar = progress_bar("case {msg}  {bar:30} {pos}/{len} slices, {eta} left")?;
    let reports = segmenter.evaluate(&dataset, &cases, protocols, |case, done, all| {
        bar.set_message(case.to_owned());
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    if let Some(error) = segmenter.embedder().full() {
        println!("{error}");
    }
    Ok(reports)
}
