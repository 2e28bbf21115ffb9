//! `sam-lst train`.

use crate::arguments::open_devices;
use crate::display::{Display, Mode};
use crate::progress::Spinner;
use crate::settings::{DataArguments, SettingsArguments, check};
use crate::training::{check_cases, check_folders, show_cases, train, write_report};
use crate::{Status, interrupt, output};
use anyhow::Result;
use burn::tensor::Device;
use clap::{Args, ValueEnum};
use sam_lst::{Fusion, SamLst, Split, Training, TrainingConfig, TrainingFolders};
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Presets: `released` is the authors' code (AdamW), `paper` the paper (Adam). --fusion selects a row
of the paper's Table II. The 5 discrete views are three quarters of all that training sees. The same
command resumes an interrupted run. Ctrl-C (in the full screen also q) saves and stops.

Examples:
  sam-lst train --data Synapse --sam sam_vit_b_01ec64.pth --resnet resnet18-f37072fd.pth
  sam-lst train --data mri --dataset mri.toml --validation 0.1 --sam sam_vit_b_01ec64.pth \\
      --run runs/mri --device cuda:0";

/// Train a ladder on a dataset, score it on the test cases, and draw pictures
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    #[command(flatten)]
    data: DataArguments,
    /// torchvision's ResNet18: .pth or .safetensors [default: random]
    #[arg(long, value_name = "FILE")]
    resnet: Option<PathBuf>,
    /// Published settings
    #[arg(long, value_name = "NAME", value_enum, default_value_t = Preset::Released)]
    preset: Preset,
    /// Embedding for the decoder [default: gated]
    #[arg(long, value_name = "NAME", value_enum)]
    fusion: Option<FusionName>,
    #[command(flatten)]
    settings: SettingsArguments,
    /// Folder of the run: settings, logs, ladder, scores, pictures
    #[arg(long, value_name = "DIR", default_value = "runs/synapse")]
    run: PathBuf,
    /// Show lines and a progress bar instead of the full screen
    #[arg(long)]
    plain: bool,
    /// Print the result as JSON; implies --plain
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Preset {
    Released,
    Paper,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FusionName {
    Gated,
    SideOnly,
    SamOnly,
}

pub fn run(arguments: &Arguments) -> Result<Status> {
    interrupt::set_resumable();
    let folders =
        TrainingFolders { run: arguments.run.clone(), cache: arguments.settings.cache.clone() };
    check_inputs(arguments, &folders)?;
    let devices = open_devices(&arguments.settings.device)?;
    let dataset = arguments.data.open()?;
    let config = arguments.config(dataset.description().classes())?;
    check(&config, &dataset)?;
    show_cases(&dataset);
    let config = config.split_across(devices.len())?;
    check_cases(&dataset, &[Split::Validation, Split::Test])?;
    let model = load(arguments, &config, &devices[0])?;
    let training = Training::new(config, folders).devices(&devices);
    let display = Display::new(Mode::new(arguments.plain || arguments.json));
    let Some(trained) = train(&training, model, &dataset, display)? else {
        return Ok(Status::Stopped);
    };
    write_report(&trained, &dataset, &arguments.run, None, arguments.json)?;
    Ok(Status::Done)
}

fn check_inputs(arguments: &Arguments, folders: &TrainingFolders) -> Result<()> {
    arguments.data.check_inputs()?;
    let mut inputs: Vec<&Path> = vec![&arguments.data.data, &arguments.data.sam];
    if let Some(resnet) = &arguments.resnet {
        output::check_checkpoint(resnet)?;
        inputs.push(resnet);
    }
    check_folders(folders, &inputs)
}

impl Arguments {
    fn config(&self, classes: usize) -> Result<TrainingConfig> {
        let preset = match self.preset {
            Preset::Released => TrainingConfig::released(classes),
            Preset::Paper => TrainingConfig::paper(classes),
        };
        let preset = TrainingConfig { model: self.data.model(classes)?, ..preset };
        let mut config = self.settings.apply(preset)?;
        match self.fusion {
            Some(FusionName::Gated) => config.model.fusion = Fusion::Gated,
            Some(FusionName::SideOnly) => config.model.fusion = Fusion::SideOnly,
            Some(FusionName::SamOnly) => config.model.fusion = Fusion::SamOnly,
            None => {}
        }
        Ok(config)
    }
}

fn load(arguments: &Arguments, config: &TrainingConfig, device: &Device) -> Result<SamLst> {
    let _spinner = Spinner::loading(&arguments.data.sam);
    let device = device.clone().autodiff();
    let resnet = arguments.resnet.as_deref();
    Ok(SamLst::from_official(&config.model, &arguments.data.sam, resnet, &device)?)
}
