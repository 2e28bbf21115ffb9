//! The methods of `sam-lst train`.

use crate::WrongUsage;
use crate::progress::Spinner;
use crate::settings::DataArguments;
use crate::train::{Arguments, FusionName, Preset};
use anyhow::{Result, bail};
use burn::tensor::Device;
use clap::ValueEnum;
use sam_lst::baselines::{UNet, UNetConfig};
use sam_lst::model::{BaselineConfig, EncoderTuning, SamTuningConfig, TunedSam};
use sam_lst::training::OptimizationConfig;
use sam_lst::{
    Fusion, Ladder, SamLst, SamLstConfig, SegmentationModel, SegmentationNetwork, TrainingConfig,
};
use std::path::{Path, PathBuf};

/// A method by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MethodName {
    Ladder,
    Decoder,
    Prompts,
    Lora,
    LateLora,
    Adapter,
    SamAdapter,
    Bias,
    Full,
    Unet,
}

impl MethodName {
    /// The name as it is given.
    pub fn name(self) -> String {
        let value = self.to_possible_value().expect("no method is skipped");
        value.get_name().to_owned()
    }

    /// Whether the method trains over or within SAM.
    pub fn uses_sam(self) -> bool {
        self != Self::Unet
    }

    /// Whether a part of SAM's encoder stays frozen, so that its precision can be chosen.
    pub fn has_foundation(self) -> bool {
        !matches!(self, Self::SamAdapter | Self::Bias | Self::Full | Self::Unet)
    }

    /// Whether the frozen part has blocks, so that its output is worth caching.
    pub fn has_cached_blocks(self) -> bool {
        self.has_foundation() && !matches!(self, Self::Lora | Self::Adapter)
    }
}

/// How a method is configured and created.
pub trait Method {
    type Network: SegmentationNetwork;

    /// Checks the arguments that do not fit the method.
    fn check(arguments: &Arguments) -> Result<()>;

    /// The settings of the preset and the arguments.
    fn config(
        arguments: &Arguments,
        classes: usize,
    ) -> Result<TrainingConfig<<Self::Network as SegmentationNetwork>::Config>>;

    /// The model, ready for training.
    fn load(
        arguments: &Arguments,
        config: &TrainingConfig<<Self::Network as SegmentationNetwork>::Config>,
        device: &Device,
    ) -> Result<SegmentationModel<Self::Network>>;

    /// Saves a random foundation in the run's folder, if there is one: the network is useless
    /// without it.
    fn save_random_foundation(
        arguments: &Arguments,
        config: &<Self::Network as SegmentationNetwork>::Config,
        run: &Path,
        device: &Device,
    ) -> Result<Option<PathBuf>>;
}

/// The ladder.
pub struct LadderMethod;

/// SAM with a fine-tuned encoder or decoder.
pub struct TuningMethod;

/// The U-Net.
pub struct UNetMethod;

impl Method for LadderMethod {
    type Network = Ladder;

    fn check(arguments: &Arguments) -> Result<()> {
        arguments.data.check_foundation()
    }

    fn config(arguments: &Arguments, classes: usize) -> Result<TrainingConfig> {
        let preset = match arguments.preset {
            Preset::Released => TrainingConfig::released(classes),
            Preset::Paper => TrainingConfig::paper(classes),
        };
        let preset = arguments.data.over_foundation(preset, classes)?;
        let mut config = arguments.settings.apply(preset)?;
        match arguments.fusion {
            Some(FusionName::Gated) => config.model.fusion = Fusion::Gated,
            Some(FusionName::SideOnly) => config.model.fusion = Fusion::SideOnly,
            Some(FusionName::SamOnly) => config.model.fusion = Fusion::SamOnly,
            None => {}
        }
        Ok(config)
    }

    fn load(arguments: &Arguments, config: &TrainingConfig, device: &Device) -> Result<SamLst> {
        arguments.data.load(config, arguments.resnet.as_deref(), device)
    }

    fn save_random_foundation(
        arguments: &Arguments,
        config: &SamLstConfig,
        run: &Path,
        device: &Device,
    ) -> Result<Option<PathBuf>> {
        match arguments.data.sam {
            Some(_) => Ok(None),
            None => crate::training::save_random_foundation(config, run, device).map(Some),
        }
    }
}

impl Method for TuningMethod {
    type Network = TunedSam;

    fn check(arguments: &Arguments) -> Result<()> {
        let method = arguments.method.name();
        if arguments.data.sam.is_none() {
            bail!(WrongUsage(format!(
                "the method {method} needs the checkpoint that it fine-tunes: give --sam FILE \
                 (`sam-lst weights` says how to get one)"
            )));
        }
        let unused =
            [(arguments.fusion.is_some(), "--fusion"), (arguments.resnet.is_some(), "--resnet")];
        check_unused(&method, "has no side network", &unused)
    }

    fn config(arguments: &Arguments, classes: usize) -> Result<TrainingConfig<SamTuningConfig>> {
        let ladder = arguments.data.over_foundation(TrainingConfig::released(classes), classes)?;
        let encoder = &ladder.model.encoder;
        let tuning = match arguments.method {
            MethodName::Decoder => EncoderTuning::Decoder,
            MethodName::Prompts => EncoderTuning::Prompts { tokens: PROMPT_TOKENS },
            MethodName::Lora => EncoderTuning::samed(),
            MethodName::LateLora => EncoderTuning::late_lora(encoder),
            MethodName::Adapter => EncoderTuning::medical_sam_adapter(),
            MethodName::SamAdapter => EncoderTuning::sam_adapter(),
            MethodName::Bias => EncoderTuning::Biases,
            MethodName::Full => EncoderTuning::Full,
            MethodName::Ladder | MethodName::Unet => {
                unreachable!("`train::run` chooses the method's type")
            }
        };
        let model = SamTuningConfig::from_ladder(&ladder.model, tuning);
        let mut preset = TrainingConfig::sam_tuning(model);
        if arguments.preset == Preset::Paper {
            preset.optimization.optimizer = OptimizationConfig::paper().optimizer;
        }
        arguments.settings.apply(preset)
    }

    fn load(
        arguments: &Arguments,
        config: &TrainingConfig<SamTuningConfig>,
        device: &Device,
    ) -> Result<SegmentationModel<TunedSam>> {
        let sam = arguments.data.sam.as_deref().expect("`check` requires it");
        let _spinner = Spinner::loading(sam);
        Ok(config.model.from_official(sam, &device.clone().autodiff())?)
    }

    fn save_random_foundation(
        _: &Arguments,
        _: &SamTuningConfig,
        _: &Path,
        _: &Device,
    ) -> Result<Option<PathBuf>> {
        Ok(None)
    }
}

/// Learnable prompt tokens.
const PROMPT_TOKENS: usize = 4;

impl Method for UNetMethod {
    type Network = UNet;

    fn check(arguments: &Arguments) -> Result<()> {
        let DataArguments { sam, variant, foundation, .. } = &arguments.data;
        let unused = [
            (sam.is_some(), "--sam"),
            (variant.is_some(), "--variant"),
            (foundation.is_some(), "--foundation"),
            (arguments.fusion.is_some(), "--fusion"),
            (arguments.resnet.is_some(), "--resnet"),
            (arguments.settings.cache_views.is_some(), "--cache-views"),
            (arguments.settings.cache_limit_gb.is_some(), "--cache-limit-gb"),
            (arguments.settings.precision.is_some(), "--precision"),
        ];
        check_unused("unet", "has no foundation", &unused)
    }

    fn config(
        arguments: &Arguments,
        classes: usize,
    ) -> Result<TrainingConfig<BaselineConfig<UNetConfig>>> {
        let mut preset = TrainingConfig::unet(classes);
        match arguments.preset {
            Preset::Released => {}
            Preset::Paper => preset.optimization = OptimizationConfig::paper(),
        }
        arguments.settings.apply(preset)
    }

    fn load(
        _: &Arguments,
        config: &TrainingConfig<BaselineConfig<UNetConfig>>,
        device: &Device,
    ) -> Result<SegmentationModel<UNet>> {
        Ok(config.model.init(&device.clone().autodiff())?)
    }

    fn save_random_foundation(
        _: &Arguments,
        _: &BaselineConfig<UNetConfig>,
        _: &Path,
        _: &Device,
    ) -> Result<Option<PathBuf>> {
        Ok(None)
    }
}

/// Reports the first option that is given although the method does not use it.
fn check_unused(method: &str, reason: &str, options: &[(bool, &str)]) -> Result<()> {
    match options.iter().find(|(is_given, _)| *is_given) {
        Some((_, option)) => {
            bail!(WrongUsage(format!("the method {method} {reason}; remove {option}")))
        }
        None => Ok(()),
    }
}
