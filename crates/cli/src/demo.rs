//! `sam-lst demo`.

use crate::arguments::{at_least_one, open_devices};
use crate::display::{Display, Mode};
use crate::progress::{Progress, note};
use crate::settings::{check, with_file};
use crate::training::{check_folders, train, write_report};
use crate::{Status, interrupt};
use anyhow::Result;
use clap::Args;
use sam_lst::training::demo_dataset;
use sam_lst::{DatasetDescription, Split, Training, TrainingConfig, TrainingFolders};
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Trains a small model with a random foundation on 15 synthetic phantoms and scores it on 4 others.
The same command resumes an interrupted run. Ctrl-C (in the full screen also q) saves and stops.

Examples:
  sam-lst demo
  sam-lst demo --epochs 4 --run runs/short --plain";

/// Train a small model on synthetic phantoms in minutes, without any files
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Folder of the run: settings, logs, model, scores, pictures
    #[arg(long, value_name = "DIR", default_value = "runs/demo")]
    run: PathBuf,
    /// Folder of phantoms, slices and embeddings, shared by runs
    #[arg(long, value_name = "DIR", default_value = "runs/cache")]
    cache: PathBuf,
    /// Passes over all slices [default: 24]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    epochs: Option<usize>,
    /// Devices: cpu, or cuda:0,cuda:1 ... to share the work
    #[arg(long, value_name = "LIST", default_value = "cpu", value_delimiter = ',')]
    device: Vec<String>,
    /// Settings that differ from the demo's, TOML, as in a run's config.toml
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Show lines and a progress bar instead of the full screen
    #[arg(long)]
    plain: bool,
    /// Print the result as JSON; implies --plain
    #[arg(long)]
    json: bool,
}

/// A path as a shell reads it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    shlex::try_quote(&text).map(|quoted| quoted.into_owned()).unwrap_or(text)
}

pub fn run(arguments: &Arguments) -> Result<Status> {
    interrupt::set_resumable();
    let folders = TrainingFolders { run: arguments.run.clone(), cache: arguments.cache.clone() };
    check_folders(&folders, &[])?;
    let devices = open_devices(&arguments.device)?;
    let preset = TrainingConfig::demo(DatasetDescription::synapse().classes());
    let mut config = with_file(preset, arguments.config.as_deref())?;
    if let Some(epochs) = arguments.epochs {
        config.epochs = epochs as u64;
    }
    let mut progress = Progress::new();
    let dataset = demo_dataset(arguments.cache.join("phantoms"), |done, total| {
        progress.count("phantoms", done, total, "patients");
    })?;
    drop(progress);
    check(&config, &dataset)?;
    let config = config.split_across(devices.len())?;
    let device = devices[0].clone().autodiff();
    let model = config.model.init(&device)?;
    let training = Training::new(config.clone(), folders).devices(&devices);
    let display = Display::new(Mode::new(arguments.plain || arguments.json));
    let Some(trained) = train(&training, model, &dataset, display)? else {
        return Ok(Status::Stopped);
    };
    // A ladder is useless without its foundation. Created anew, since training may have rounded it.
    let foundation = arguments.run.join("foundation.safetensors");
    config.model.init(&device)?.save_sam(&foundation)?;
    write_report(&trained, &dataset, &arguments.run, Some(&foundation), arguments.json)?;
    if let Some(case) = dataset.cases(Split::Test)?.first() {
        note(&format!(
            "\nTo segment a test phantom with this model:\n  sam-lst segment {} organs.nii.gz \
             --sam {} --ladder {}",
            quoted(case.files.paths()[0]),
            quoted(&foundation),
            quoted(&trained.ladder_file)
        ));
    }
    Ok(Status::Done)
}
