//! `sam-lst train`.

use crate::arguments::open_devices;
use crate::display::{Display, Mode};
use crate::method::{LadderMethod, Method, MethodName, TuningMethod, UNetMethod};
use crate::settings::{DataArguments, SettingsArguments, check};
use crate::training::{check_cases, check_folders, show_cases, train, write_report};
use crate::{Status, interrupt, output};
use anyhow::Result;
use clap::{Args, ValueEnum};
use sam_lst::{Dataset, Split, Training, TrainingFolders};
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Methods: ladder; decoder (SAM's mask decoder alone); prompts (tokens for it); lora (SAMed);
late-lora (last blocks); adapter (Medical SAM Adapter); sam-adapter; bias (biases and norms); full
(everything); unet (nnU-Net's 2D U-Net, without a foundation). Presets: `released` is the authors'
code (AdamW), `paper` the paper (Adam). Ctrl-C (or q) saves and stops; the same command resumes.

Examples:
  sam-lst train --data Synapse --sam sam_vit_b_01ec64.pth --resnet resnet18-f37072fd.pth
  sam-lst train --data mri --dataset mri.toml --validation 0.1 --sam lite_medsam.pth --device cuda:0
  sam-lst train --data Task02_Heart --method unet --run runs/heart-unet";

/// Train a network on a dataset, score it on the test cases, and draw pictures
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// What is trained: one of the methods below
    #[arg(long, value_name = "NAME", value_enum, default_value_t = MethodName::Ladder)]
    #[arg(hide_possible_values = true)]
    pub method: MethodName,
    #[command(flatten)]
    pub data: DataArguments,
    /// torchvision's ResNet18: .pth or .safetensors [default: random]
    #[arg(long, value_name = "FILE", conflicts_with = "foundation")]
    pub resnet: Option<PathBuf>,
    /// Published settings: released or paper
    #[arg(long, value_name = "NAME", value_enum, default_value_t = Preset::Released)]
    #[arg(hide_possible_values = true)]
    #[arg(conflicts_with = "foundation")]
    pub preset: Preset,
    /// Embedding for the decoder (Table II): gated, side-only or sam-only [default: gated]
    #[arg(long, value_name = "NAME", value_enum, hide_possible_values = true)]
    pub fusion: Option<FusionName>,
    #[command(flatten)]
    pub settings: SettingsArguments,
    /// Folder of the run [default: runs/ and the dataset's name]
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,
    /// Show lines and a progress bar instead of the full screen
    #[arg(long)]
    plain: bool,
    /// Print the result as JSON; implies --plain
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    Released,
    Paper,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum FusionName {
    Gated,
    SideOnly,
    SamOnly,
}

pub fn run(arguments: &Arguments) -> Result<Status> {
    match arguments.method {
        MethodName::Ladder => run_method::<LadderMethod>(arguments),
        MethodName::Unet => run_method::<UNetMethod>(arguments),
        _ => run_method::<TuningMethod>(arguments),
    }
}

fn run_method<M: Method>(arguments: &Arguments) -> Result<Status> {
    interrupt::set_resumable();
    M::check(arguments)?;
    arguments.data.check_inputs()?;
    arguments.resnet.as_deref().map_or(Ok(()), output::check_checkpoint)?;
    let folders = |run: &Path| TrainingFolders {
        run: run.to_owned(),
        cache: arguments.settings.cache.clone(),
    };
    // Before the data is read, if the folder does not depend on it.
    if let Some(run) = &arguments.run {
        check_folders(&folders(run), &arguments.inputs())?;
    }
    let devices = open_devices(&arguments.settings.device)?;
    let dataset = arguments.data.open()?;
    let run = arguments.run.clone().unwrap_or_else(|| default_run(&dataset));
    let folders = folders(&run);
    if arguments.run.is_none() {
        check_folders(&folders, &arguments.inputs())?;
    }
    let config = M::config(arguments, dataset.description().classes())?;
    check(&config, &dataset)?;
    show_cases(&dataset);
    let config = config.split_across(devices.len())?;
    check_cases(&dataset, &[Split::Validation, Split::Test])?;
    let model = M::load(arguments, &config, &devices[0])?;
    let training = Training::new(config.clone(), folders).devices(&devices);
    let display = Display::new(Mode::new(arguments.plain || arguments.json));
    let Some(trained) = train(&training, model, &dataset, display)? else {
        return Ok(Status::Stopped);
    };
    let foundation = M::save_random_foundation(arguments, &config.model, &run, &devices[0])?;
    write_report(&trained, &dataset, &run, foundation.as_deref(), arguments.json)?;
    Ok(Status::Done)
}

/// A folder that is named after the dataset.
fn default_run(dataset: &Dataset) -> PathBuf {
    let name = dataset.description().name.chars();
    let name: String = name.map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
    Path::new("runs").join(name)
}

impl Arguments {
    /// What no output may replace.
    fn inputs(&self) -> Vec<&Path> {
        let mut inputs = self.data.inputs();
        inputs.extend(self.resnet.as_deref());
        inputs
    }
}
