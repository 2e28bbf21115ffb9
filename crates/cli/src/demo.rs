//! `sam-lst demo`.

use crate::arguments::{at_least_one, open_devices};
use crate::display::{Display, Mode};
use crate::progress::{Progress, Spinner, note};
use crate::settings::{check, with_file};
use crate::training::{check_folders, save_random_foundation, train, write_report};
use crate::{Status, interrupt, output};
use anyhow::Result;
use clap::Args;
use sam_lst::model::EncoderConfig;
use sam_lst::training::demo_dataset;
use sam_lst::{
    DatasetDescription, SamLst, SamLstConfig, Split, Training, TrainingConfig, TrainingFolders,
};
use std::path::{Path, PathBuf};

/// Where this file lies in the current folder, the demo trains over it.
const LITE_MEDSAM: &str = "lite_medsam.pth";

const EXAMPLES: &str = "\
Trains on 15 synthetic phantoms and scores the model on 4 others: over LiteMedSAM where
lite_medsam.pth lies in the current folder (`sam-lst weights` says how to get it), else over a small
random foundation. The same command resumes an interrupted run. Ctrl-C (in the full screen also q)
saves and stops.

Examples:
  sam-lst demo
  sam-lst demo --foundation lite_medsam.pth
  sam-lst demo --epochs 4 --run runs/short --plain";

/// Train on synthetic phantoms in minutes, without any files
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// SAM, LiteMedSAM or MobileSAM, or `random` [default: lite_medsam.pth if it exists, else random]
    #[arg(long, value_name = "FILE")]
    foundation: Option<PathBuf>,
    /// Folder of the run [default: runs/demo, over a checkpoint runs/demo- and its name]
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,
    /// Folder of phantoms, slices and embeddings, shared by runs
    #[arg(long, value_name = "DIR", default_value = "runs/cache")]
    cache: PathBuf,
    /// Passes over all slices [default: 16, over a checkpoint 6]
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
    let checkpoint = arguments.checkpoint();
    let folders =
        TrainingFolders { run: arguments.run_folder(checkpoint), cache: arguments.cache.clone() };
    if let Some(checkpoint) = checkpoint {
        output::check_checkpoint(checkpoint)?;
    }
    check_folders::<SamLstConfig>(&folders, checkpoint.as_slice())?;
    let devices = open_devices(&arguments.device)?;
    let config = arguments.config(checkpoint)?;
    let mut progress = Progress::new();
    let dataset = demo_dataset(arguments.cache.join("phantoms"), |done, total| {
        progress.count("phantoms", done, total, "patients");
    })?;
    drop(progress);
    check(&config, &dataset)?;
    let config = config.split_across(devices.len())?;
    let device = devices[0].clone().autodiff();
    let model = match checkpoint {
        Some(checkpoint) => {
            let _spinner = Spinner::loading(checkpoint);
            SamLst::from_official(&config.model, checkpoint, None, &device)?
        }
        None => config.model.init(&device)?,
    };
    let training = Training::new(config.clone(), folders.clone()).devices(&devices);
    let display = Display::new(Mode::new(arguments.plain || arguments.json));
    let Some(trained) = train(&training, model, &dataset, display)? else {
        return Ok(Status::Stopped);
    };
    let foundation = match checkpoint {
        Some(checkpoint) => checkpoint.to_owned(),
        None => save_random_foundation(&config.model, &folders.run, &devices[0])?,
    };
    write_report(&trained, &dataset, &folders.run, Some(&foundation), arguments.json)?;
    if let Some(case) = dataset.cases(Split::Test)?.first() {
        note(&format!(
            "\nTo segment a test phantom with this model:\n  sam-lst segment {} organs.nii.gz \
             --sam {} --network {}",
            quoted(case.files.paths()[0]),
            quoted(&foundation),
            quoted(&trained.network_file)
        ));
    }
    Ok(Status::Done)
}

impl Arguments {
    /// The checkpoint of the foundation; `None` for random weights.
    fn checkpoint(&self) -> Option<&Path> {
        match self.foundation.as_deref() {
            Some(file) if file == Path::new("random") => None,
            Some(file) => Some(file),
            None => Some(Path::new(LITE_MEDSAM)).filter(|file| file.is_file()),
        }
    }

    fn run_folder(&self, checkpoint: Option<&Path>) -> PathBuf {
        let name = match checkpoint.and_then(Path::file_stem) {
            Some(stem) => format!("demo-{}", stem.to_string_lossy()),
            None => "demo".to_owned(),
        };
        self.run.clone().unwrap_or_else(|| Path::new("runs").join(name))
    }

    fn config(&self, checkpoint: Option<&Path>) -> Result<TrainingConfig> {
        let classes = DatasetDescription::synapse().classes();
        let preset = match checkpoint {
            Some(file) => TrainingConfig::demo_over(EncoderConfig::recognize(file)?, classes),
            None => TrainingConfig::demo(classes),
        };
        let mut config = with_file(preset, self.config.as_deref())?;
        if let Some(epochs) = self.epochs {
            config.epochs = epochs as u64;
        }
        Ok(config)
    }
}
