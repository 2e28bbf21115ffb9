//! `sam-lst train`.

use crate::arguments::open_devices;
use crate::display::{Display, Mode};
use crate::method::{Method, MethodName, of_method};
use crate::settings::{DataArguments, SettingsArguments, check};
use crate::training::{check_cases, check_folders, show_cases, train, write_paths, write_report};
use crate::{Status, WrongUsage, interrupt, output};
use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use sam_lst::model::SideConfig;
use sam_lst::resnet_side::ResNetSideConfig;
use sam_lst::training::OptimizationConfig;
use sam_lst::{
    Dataset, NetworkConfig, SamLstConfig, SegmentationNetwork, Split, Training, TrainingConfig,
    TrainingFolders,
};
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Methods: ladder, true-ladder, unet-ladder, fast-unet-ladder, decoder, prompts, lora (SAMed),
late-lora, adapter (Medical SAM Adapter), sam-adapter, bias, full.
Without SAM: unet, attention-unet, trans-unet, swin-unet, r50-unet, r50-attention-unet, r50-vit.
Presets: accurate or fast (unet-ladder), released, paper. Ctrl-C saves; the same command resumes.

Examples:
  sam-lst train --data Synapse --sam sam_vit_b_01ec64.pth --pretrained resnet18-f37072fd.pth
  sam-lst train --data mri --dataset mri.toml --preset accurate --sam lite_medsam.pth";

/// Train a network on a dataset, score it on the test cases, and draw pictures
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// What is trained: one of the methods below [default: ladder]
    #[arg(long, value_name = "NAME", value_enum, hide_possible_values = true)]
    method: Option<MethodName>,
    #[command(flatten)]
    pub data: DataArguments,
    /// ImageNet weights for the side network or a network's encoder
    #[arg(long, value_name = "FILE", conflicts_with = "foundation", alias = "resnet")]
    pub pretrained: Option<PathBuf>,
    /// Side network: resnet18 (default), resnet34, resnet50, swin-tiny, vit-tiny
    #[arg(long, value_name = "NAME", value_enum, hide_possible_values = true)]
    pub side: Option<SideName>,
    /// Settings: accurate, fast, released or paper [default: the method's]
    #[arg(long, value_name = "NAME", value_enum, hide_possible_values = true)]
    pub preset: Option<Preset>,
    /// Embedding for the decoder: gated (default), side-only or sam-only
    #[arg(long, value_name = "NAME", value_enum, hide_possible_values = true)]
    pub fusion: Option<FusionName>,
    #[command(flatten)]
    pub settings: SettingsArguments,
    /// Folder of the run [default: runs/, dataset's name, method]
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,
    /// Train only, without scores and pictures
    #[arg(long)]
    no_scores: bool,
    /// Show lines and a progress bar instead of the full screen
    #[arg(long)]
    plain: bool,
    /// Print the result as JSON; implies --plain
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    Accurate,
    Fast,
    Released,
    Paper,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum SideName {
    Resnet18,
    Resnet34,
    Resnet50,
    SwinTiny,
    VitTiny,
}

impl SideName {
    /// Chooses the side network for the model's foundation. ResNet18 is that of the preset, which
    /// is narrower over the demo's foundation.
    pub fn choose(self, model: &mut SamLstConfig) {
        let (channels, stride) = (model.decoder.embed_dim, model.encoder.stride());
        let resnet =
            |resnet: ResNetSideConfig| SideConfig::ResNet(resnet.for_embedding(channels, stride));
        model.side = match self {
            Self::Resnet18 => return,
            Self::Resnet34 => resnet(ResNetSideConfig::resnet34()),
            Self::Resnet50 => resnet(ResNetSideConfig::resnet50()),
            Self::SwinTiny => SideConfig::swin_tiny(),
            Self::VitTiny => SideConfig::vit_tiny(),
        };
    }

    /// Whether a side network, whose sizes may differ, is of this kind.
    pub fn is_kind_of(self, side: &SideConfig) -> bool {
        match self {
            Self::Resnet18 | Self::Resnet34 | Self::Resnet50 => {
                matches!(side, SideConfig::ResNet(_))
            }
            Self::SwinTiny => matches!(side, SideConfig::Swin(_)),
            Self::VitTiny => matches!(side, SideConfig::VisionTransformer(_)),
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum FusionName {
    Gated,
    SideOnly,
    SamOnly,
}

pub fn run(arguments: &Arguments) -> Result<Status> {
    of_method!(arguments.method(), M => run_method::<M>(arguments))
}

fn run_method<M: Method>(arguments: &Arguments) -> Result<Status> {
    interrupt::set_resumable();
    arguments.check_preset()?;
    M::check(arguments)?;
    arguments.data.check_inputs()?;
    arguments.pretrained.as_deref().map_or(Ok(()), output::check_checkpoint)?;
    let folders = |run: &Path| TrainingFolders {
        run: run.to_owned(),
        cache: arguments.settings.cache.clone(),
    };
    // Before the data is read, if the folder does not depend on it.
    if let Some(run) = &arguments.run {
        check_folders::<NetworkConfigOf<M>>(&folders(run), &arguments.inputs())?;
    }
    let devices = open_devices(&arguments.settings.device)?;
    let dataset = arguments.data.open()?;
    let run =
        arguments.run.clone().unwrap_or_else(|| default_run("", &dataset, &arguments.suffix()));
    let folders = folders(&run);
    if arguments.run.is_none() {
        check_folders::<NetworkConfigOf<M>>(&folders, &arguments.inputs())?;
    }
    let config = config::<M>(arguments, &dataset)?;
    show_cases(&dataset);
    check_cases(&dataset, &[Split::Validation, Split::Test])?;
    let model = M::load(arguments, &config, &devices[0])?;
    let training = Training::new(config.clone(), folders).devices(&devices);
    let display = Display::new(Mode::new(arguments.plain || arguments.json));
    let Some(trained) = train(&training, model, &dataset, display)? else {
        return Ok(Status::Stopped);
    };
    let foundation = M::save_random_foundation(arguments, &config.model, &run, &devices[0])?;
    if arguments.no_scores {
        write_paths(&trained, &run, foundation.as_deref(), arguments.json)?;
    } else {
        write_report(&trained, &dataset, &run, foundation.as_deref(), arguments.json)?;
    }
    Ok(Status::Done)
}

/// The settings, checked.
pub fn config<M: Method>(arguments: &Arguments, dataset: &Dataset) -> Result<ConfigOf<M>> {
    let config = M::config(arguments, dataset.description().classes())?;
    check(&config, dataset)?;
    if !arguments.method().has_foundation() {
        config.check_without_foundation()?;
    }
    Ok(config.split_across(arguments.settings.device.len())?)
}

/// The network's configuration of a method.
pub type NetworkConfigOf<M> = <<M as Method>::Network as SegmentationNetwork>::Config;

/// The settings of a method.
pub type ConfigOf<M> = TrainingConfig<NetworkConfigOf<M>>;

/// The settings as `config.toml` of the run will have them, with all arguments checked, also against
/// the run that may be in the folder.
pub fn config_toml(arguments: &Arguments, dataset: &Dataset) -> Result<String> {
    fn checked<M: Method>(arguments: &Arguments, dataset: &Dataset) -> Result<String> {
        arguments.check_preset()?;
        M::check(arguments)?;
        open_devices(&arguments.settings.device)?;
        let config = config::<M>(arguments, dataset)?;
        let text = config.to_toml();
        if let Some(run) = &arguments.run {
            let cache = arguments.settings.cache.clone();
            Training::new(config, TrainingFolders { run: run.clone(), cache }).check_settings()?;
        }
        Ok(text)
    }
    of_method!(arguments.method(), M => checked::<M>(arguments, dataset))
}

/// Checks that the file of `--pretrained` fits the network, by loading it.
pub fn check_pretrained(arguments: &Arguments, dataset: &Dataset) -> Result<()> {
    fn load<M: Method>(arguments: &Arguments, dataset: &Dataset) -> Result<()> {
        let devices = open_devices(&arguments.settings.device)?;
        M::load(arguments, &config::<M>(arguments, dataset)?, &devices[0])?;
        Ok(())
    }
    of_method!(arguments.method(), M => load::<M>(arguments, dataset))
}

/// A folder that is named after the dataset.
pub fn default_run(prefix: &str, dataset: &Dataset, suffix: &str) -> PathBuf {
    let name = dataset.description().name.chars();
    let name: String = name.map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
    Path::new("runs").join(format!("{prefix}{name}{suffix}"))
}

impl Arguments {
    /// The arguments of a training whose embeddings are computed.
    pub fn for_embeddings(
        method: Option<MethodName>,
        preset: Option<Preset>,
        data: DataArguments,
        settings: SettingsArguments,
    ) -> Self {
        Self {
            method,
            data,
            pretrained: None,
            side: None,
            preset,
            fusion: None,
            settings,
            run: None,
            no_scores: true,
            plain: true,
            json: false,
        }
    }

    /// The method that is given, or that of the preset.
    pub fn method(&self) -> MethodName {
        self.method.unwrap_or(match self.preset {
            Some(Preset::Accurate) => MethodName::UnetLadder,
            Some(Preset::Fast) => MethodName::FastUnetLadder,
            Some(Preset::Released | Preset::Paper) | None => MethodName::Ladder,
        })
    }

    /// Published settings are those over a published checkpoint.
    pub fn check_preset(&self) -> Result<()> {
        if self.data.foundation.is_some()
            && matches!(self.preset, Some(Preset::Released | Preset::Paper))
        {
            bail!(WrongUsage(
                "--foundation demo has settings of its own; remove --preset, or choose accurate or \
                 fast"
                    .to_owned()
            ));
        }
        Ok(())
    }

    /// A method's own settings with those of training that the preset has.
    pub fn with_preset<C: NetworkConfig>(&self, of_method: TrainingConfig<C>) -> TrainingConfig<C> {
        match self.preset {
            Some(Preset::Accurate | Preset::Fast) => of_method.with_accurate_training(),
            Some(Preset::Released) | None => of_method,
            Some(Preset::Paper) => {
                let mut config = of_method;
                config.optimization.optimizer = OptimizationConfig::paper().optimizer;
                config
            }
        }
    }

    /// What distinguishes the default folder of a method from the ladder's.
    fn suffix(&self) -> String {
        match self.method() {
            MethodName::Ladder => String::new(),
            method => format!("-{}", method.name()),
        }
    }

    /// What no output may replace.
    fn inputs(&self) -> Vec<&Path> {
        let mut inputs = self.data.inputs();
        inputs.extend(self.pretrained.as_deref());
        inputs
    }
}
