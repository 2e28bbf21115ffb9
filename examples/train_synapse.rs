//! Trains a ladder, scores it on the held-out cases and draws pictures. Without arguments it trains on
//! synthetic phantoms over a random foundation, in minutes on a laptop; with a checkpoint, over that
//! foundation; with a dataset and SAM's checkpoint, as published:
//!
//! ```sh
//! cargo run --release --example train_synapse
//! cargo run --release --example train_synapse -- --sam lite_medsam.pth --run runs/demo-lite_medsam
//! cargo run --release --example train_synapse -- --data Synapse/ --sam sam_vit_b_01ec64.pth
//! ```
//!
//! The same command resumes an interrupted run. The program `sam-lst` has more options.

use anyhow::Result;
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use sam_lst::model::EncoderConfig;
use sam_lst::training::demo_dataset;
use sam_lst::{
    Dataset, DatasetDescription, SamLst, SamLstConfig, Training, TrainingConfig, TrainingEvent,
    TrainingFolders,
};
use std::ops::ControlFlow;
use std::path::PathBuf;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Trains a ladder over SAM: on Synapse with --data and --sam, otherwise on synthetic phantoms.
#[derive(Parser)]
struct Arguments {
    /// Folder of the Synapse dataset.
    #[arg(long, requires = "sam")]
    data: Option<PathBuf>,
    /// Checkpoint of SAM, LiteMedSAM or MobileSAM, .pth or .safetensors.
    #[arg(long)]
    sam: Option<PathBuf>,
    /// torchvision's ResNet18 checkpoint; random weights without it.
    #[arg(long, requires = "sam")]
    resnet: Option<PathBuf>,
    /// Number of epochs [default: 200 for Synapse; for phantoms 16, or 6 over a checkpoint]
    #[arg(long)]
    epochs: Option<u64>,
    /// Seed of initial weights and of the order of slices.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Device: cpu, cuda:0, wgpu, vulkan, ...
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Folder of the run: settings, logs, checkpoints, scores, pictures.
    #[arg(long, default_value = "runs/demo")]
    run: PathBuf,
    /// Folder of decoded slices and embeddings, shared by runs.
    #[arg(long, default_value = "runs/cache")]
    cache: PathBuf,
}

#[expect(clippy::print_stdout, reason = "a program's output")]
fn main() -> Result<()> {
    let arguments = Arguments::parse();
    sam_lst::compute_on_current_thread();
    let device = sam_lst::devices::open(&arguments.device)?.autodiff();
    let bar = progress_bar()?;
    let dataset = match &arguments.data {
        Some(folder) => Dataset::open(folder, DatasetDescription::synapse())?,
        None => demo_dataset(arguments.cache.join("phantoms"), |done, total| {
            show(&bar, "writing phantoms", done, total);
        })?,
    };
    let classes = dataset.description().classes();
    let mut config = match (&arguments.data, &arguments.sam) {
        (Some(_), Some(sam)) => {
            let model = SamLstConfig::for_encoder(EncoderConfig::recognize(sam)?, classes);
            TrainingConfig { model, ..TrainingConfig::released(classes) }
        }
        (_, Some(sam)) => TrainingConfig::demo_over(EncoderConfig::recognize(sam)?, classes),
        _ => TrainingConfig::demo(classes),
    };
    config.seed = arguments.seed;
    config.model.seed = arguments.seed;
    config.epochs = arguments.epochs.unwrap_or(config.epochs);
    let model = match &arguments.sam {
        Some(sam) => {
            SamLst::from_official(&config.model, sam, arguments.resnet.as_deref(), &device)?
        }
        None => config.model.init(&device)?,
    };
    let folders = TrainingFolders { run: arguments.run.clone(), cache: arguments.cache };
    let mut total_steps = 0;
    let outcome = Training::new(config.clone(), folders).run(model, &dataset, |event| {
        match event {
            TrainingEvent::Planned(plan) => total_steps = plan.total_steps as usize,
            TrainingEvent::Precomputing { done, total } => {
                show(&bar, "computing embeddings", done, total);
            }
            TrainingEvent::Step(step) => {
                let message = format!("training, loss {:.4}", step.loss);
                show(&bar, &message, step.step as usize + 1, total_steps);
            }
            TrainingEvent::Validated(validation) => bar.suspend(|| {
                let dsc = 100.0 * validation.mean_dsc;
                println!("epoch {:3}: validation DSC {dsc:.2} %", validation.epochs);
            }),
            _ => {}
        }
        ControlFlow::Continue(())
    })?;
    let Some(trained) = outcome.finished() else { return Ok(()) };
    let report = trained.write_report(&dataset, |case, done, total| {
        show(&bar, &format!("scoring case {case}"), done, total);
    })?;
    bar.finish_and_clear();
    println!("{} {} cases", report.cases, report.split);
    for scores in &report.reports {
        println!("\n{scores}");
    }
    if arguments.sam.is_none() {
        // The foundation is random, and a ladder is useless without the one that it was trained over.
        config.model.init(&device)?.save_sam(arguments.run.join("foundation.safetensors"))?;
    }
    println!("\ntrained ladder   {}", trained.network_file.display());
    println!("pictures         {}", report.pictures.display());
    println!("learning curve   {}", report.learning_curve.display());
    println!("all in one page  {}", report.page.display());
    Ok(())
}

fn progress_bar() -> Result<ProgressBar> {
    let style = ProgressStyle::with_template("{msg:32} {bar:30} {pos}/{len}, {eta} left")?;
    Ok(ProgressBar::no_length().with_style(style))
}

fn show(bar: &ProgressBar, message: &str, done: usize, total: usize) {
    bar.set_message(message.to_owned());
    bar.set_length(total as u64);
    bar.set_position(done as u64);
}
