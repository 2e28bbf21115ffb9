//! The methods of `sam-lst train`.

use crate::WrongUsage;
use crate::progress::Spinner;
use crate::settings::DataArguments;
use crate::train::{Arguments, FusionName, Preset};
use anyhow::{Result, bail};
use burn::tensor::Device;
use clap::ValueEnum;
use sam_lst::baselines::{AttentionUNetConfig, SwinUNetConfig, TransUNetConfig, UNetConfig};
use sam_lst::model::{
    Baseline, BaselineConfig, EncoderTuning, SamTuningConfig, TunedSam, UNetLadder,
    UNetLadderConfig,
};
use sam_lst::{
    Fusion, Ladder, SamLst, SamLstConfig, SegmentationModel, SegmentationNetwork, TrainingConfig,
};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

/// A method by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MethodName {
    Ladder,
    TrueLadder,
    UnetLadder,
    FastUnetLadder,
    Decoder,
    Prompts,
    Lora,
    LateLora,
    Adapter,
    SamAdapter,
    Bias,
    Full,
    Unet,
    AttentionUnet,
    TransUnet,
    R50Unet,
    R50AttentionUnet,
    R50Vit,
    SwinUnet,
}

/// The same expression for the type of each [`Method`].
macro_rules! of_method {
    ($name:expr, $method:ident => $value:expr) => {{
        use sam_lst::baselines::{
            AttentionUNetConfig, SwinUNetConfig, TransUNetConfig, UNetConfig,
        };
        use $crate::method::{
            BaselineMethod, LadderMethod, MethodName, TuningMethod, UNetLadderMethod,
        };
        match $name {
            MethodName::Ladder | MethodName::TrueLadder => {
                type $method = LadderMethod;
                $value
            }
            MethodName::UnetLadder | MethodName::FastUnetLadder => {
                type $method = UNetLadderMethod;
                $value
            }
            MethodName::Unet => {
                type $method = BaselineMethod<UNetConfig>;
                $value
            }
            MethodName::AttentionUnet => {
                type $method = BaselineMethod<AttentionUNetConfig>;
                $value
            }
            MethodName::TransUnet
            | MethodName::R50Unet
            | MethodName::R50AttentionUnet
            | MethodName::R50Vit => {
                type $method = BaselineMethod<TransUNetConfig>;
                $value
            }
            MethodName::SwinUnet => {
                type $method = BaselineMethod<SwinUNetConfig>;
                $value
            }
            _ => {
                type $method = TuningMethod;
                $value
            }
        }
    }};
}
pub(crate) use of_method;

impl MethodName {
    /// The name as it is given.
    pub fn name(self) -> String {
        let value = self.to_possible_value().expect("no method is skipped");
        value.get_name().to_owned()
    }

    /// Whether the method trains over or within SAM.
    pub fn uses_sam(self) -> bool {
        !self.is_baseline()
    }

    /// Whether the method has a side network.
    fn is_ladder(self) -> bool {
        matches!(self, Self::Ladder | Self::TrueLadder)
    }

    /// Whether the method is a network without a foundation.
    fn is_baseline(self) -> bool {
        matches!(
            self,
            Self::Unet
                | Self::AttentionUnet
                | Self::TransUnet
                | Self::R50Unet
                | Self::R50AttentionUnet
                | Self::R50Vit
                | Self::SwinUnet
        )
    }

    /// Whether a part of the network can be initialised from ImageNet.
    pub fn takes_pretrained(self) -> bool {
        let is_random = matches!(self, Self::Unet | Self::AttentionUnet);
        self.is_ladder() || (self.is_baseline() && !is_random)
    }

    /// Whether a part of SAM's encoder stays frozen, so that its precision can be chosen.
    pub fn has_foundation(self) -> bool {
        self.uses_sam() && !matches!(self, Self::SamAdapter | Self::Bias | Self::Full)
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

/// A U-Net beside the foundation.
pub struct UNetLadderMethod;

/// A network without a foundation.
pub struct BaselineMethod<C>(PhantomData<C>);

/// Configuration of a network without a foundation by its method's name.
pub trait NamedBaseline: Baseline {
    fn of(method: MethodName, classes: usize) -> Self;
}

impl NamedBaseline for UNetConfig {
    fn of(_: MethodName, classes: usize) -> Self {
        Self::new(classes)
    }
}

impl NamedBaseline for AttentionUNetConfig {
    fn of(_: MethodName, classes: usize) -> Self {
        Self::new(classes)
    }
}

impl NamedBaseline for TransUNetConfig {
    fn of(method: MethodName, classes: usize) -> Self {
        match method {
            MethodName::R50Unet => Self::r50_unet(classes),
            MethodName::R50AttentionUnet => Self::r50_attention_unet(classes),
            MethodName::R50Vit => Self::r50_vit(classes),
            _ => Self::new(classes),
        }
    }
}

impl NamedBaseline for SwinUNetConfig {
    fn of(_: MethodName, classes: usize) -> Self {
        Self::new(classes)
    }
}

impl Method for LadderMethod {
    type Network = Ladder;

    fn check(arguments: &Arguments) -> Result<()> {
        if let Some(FusionName::SamOnly) = arguments.fusion {
            let unused = [
                (arguments.side.is_some(), "--side"),
                (arguments.pretrained.is_some(), "--pretrained"),
            ];
            let method = arguments.method().name();
            check_unused(&method, "has no side network with --fusion sam-only", &unused)?;
        }
        arguments.data.check_foundation()
    }

    fn config(arguments: &Arguments, classes: usize) -> Result<TrainingConfig> {
        let released =
            arguments.data.over_foundation(TrainingConfig::released(classes), classes)?;
        let mut preset = arguments.with_preset(released);
        if let Some(side) = arguments.side {
            side.choose(&mut preset.model);
        }
        if arguments.method() == MethodName::TrueLadder {
            preset.model = preset.model.with_true_ladder();
        }
        let mut config = arguments.settings.apply(preset)?;
        if let Some(side) = arguments.side
            && !side.is_kind_of(&config.model.side)
        {
            bail!(WrongUsage(
                "--config has another kind of side network than --side; remove one of them".into()
            ));
        }
        match arguments.fusion {
            Some(FusionName::Gated) => config.model.fusion = Fusion::Gated,
            Some(FusionName::SideOnly) => config.model.fusion = Fusion::SideOnly,
            Some(FusionName::SamOnly) => config.model.fusion = Fusion::SamOnly,
            None => {}
        }
        Ok(config)
    }

    fn load(arguments: &Arguments, config: &TrainingConfig, device: &Device) -> Result<SamLst> {
        arguments.data.load(config, arguments.pretrained.as_deref(), device)
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
        let method = arguments.method().name();
        if arguments.data.sam.is_none() {
            bail!(WrongUsage(format!(
                "the method {method} needs the checkpoint that it fine-tunes: give --sam FILE \
                 (`sam-lst weights` says how to get one)"
            )));
        }
        let unused = [
            (arguments.fusion.is_some(), "--fusion"),
            (arguments.side.is_some(), "--side"),
            (arguments.pretrained.is_some(), "--pretrained"),
        ];
        check_unused(&method, "has no side network", &unused)
    }

    fn config(arguments: &Arguments, classes: usize) -> Result<TrainingConfig<SamTuningConfig>> {
        let ladder = arguments.data.over_foundation(TrainingConfig::released(classes), classes)?;
        let encoder = &ladder.model.encoder;
        let tuning = match arguments.method() {
            MethodName::Decoder => EncoderTuning::Decoder,
            MethodName::Prompts => EncoderTuning::Prompts { tokens: PROMPT_TOKENS },
            MethodName::Lora => EncoderTuning::samed(),
            MethodName::LateLora => EncoderTuning::late_lora(encoder),
            MethodName::Adapter => EncoderTuning::medical_sam_adapter(),
            MethodName::SamAdapter => EncoderTuning::sam_adapter(),
            MethodName::Bias => EncoderTuning::Biases,
            MethodName::Full => EncoderTuning::Full,
            _ => unreachable!("`of_method` chooses the method's type"),
        };
        let model = SamTuningConfig::from_ladder(&ladder.model, tuning);
        arguments.settings.apply(arguments.with_preset(TrainingConfig::sam_tuning(model)))
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

impl Method for UNetLadderMethod {
    type Network = UNetLadder;

    fn check(arguments: &Arguments) -> Result<()> {
        let unused = [
            (arguments.fusion.is_some(), "--fusion"),
            (arguments.side.is_some(), "--side"),
            (arguments.pretrained.is_some(), "--pretrained"),
        ];
        check_unused(&arguments.method().name(), "has no side network but its U-Net", &unused)?;
        arguments.data.check_foundation()
    }

    fn config(arguments: &Arguments, classes: usize) -> Result<TrainingConfig<UNetLadderConfig>> {
        let ladder = arguments.data.over_foundation(TrainingConfig::released(classes), classes)?;
        let mut model = UNetLadderConfig::from_ladder(&ladder.model);
        let is_fast = arguments.preset == Some(Preset::Fast);
        if is_fast || arguments.method() == MethodName::FastUnetLadder {
            model = model.fast();
        }
        let mut preset = ladder.with_model(model);
        if arguments.preset.is_none() {
            preset = preset.with_accurate_training();
        }
        arguments.settings.apply(arguments.with_preset(preset))
    }

    fn load(
        arguments: &Arguments,
        config: &TrainingConfig<UNetLadderConfig>,
        device: &Device,
    ) -> Result<SegmentationModel<UNetLadder>> {
        let device = device.clone().autodiff();
        let Some(sam) = &arguments.data.sam else { return Ok(config.model.init(&device)?) };
        let _spinner = Spinner::loading(sam);
        Ok(config.model.from_official(sam, &device)?)
    }

    fn save_random_foundation(
        arguments: &Arguments,
        config: &UNetLadderConfig,
        run: &Path,
        device: &Device,
    ) -> Result<Option<PathBuf>> {
        if arguments.data.sam.is_some() {
            return Ok(None);
        }
        let file = run.join("foundation.safetensors");
        config.init(&device.clone().autodiff())?.foundation.save(&file)?;
        Ok(Some(file))
    }
}

/// Learnable prompt tokens.
const PROMPT_TOKENS: usize = 4;

impl<C: NamedBaseline> Method for BaselineMethod<C> {
    type Network = C::Network;

    fn check(arguments: &Arguments) -> Result<()> {
        let method = arguments.method().name();
        let DataArguments { sam, variant, foundation, .. } = &arguments.data;
        let unused = [
            (sam.is_some(), "--sam"),
            (variant.is_some(), "--variant"),
            (foundation.is_some(), "--foundation"),
            (arguments.fusion.is_some(), "--fusion"),
            (arguments.settings.cache_views.is_some(), "--cache-views"),
            (arguments.settings.cache_limit_gb.is_some(), "--cache-limit-gb"),
            (arguments.settings.precision.is_some(), "--precision"),
        ];
        check_unused(&method, "has no foundation", &unused)?;
        check_unused(&method, "has no side network", &[(arguments.side.is_some(), "--side")])?;
        let is_superfluous =
            arguments.pretrained.is_some() && !arguments.method().takes_pretrained();
        check_unused(&method, "starts from random weights", &[(is_superfluous, "--pretrained")])
    }

    fn config(arguments: &Arguments, classes: usize) -> Result<TrainingConfig<BaselineConfig<C>>> {
        let own = TrainingConfig::baseline(C::of(arguments.method(), classes));
        arguments.settings.apply(arguments.with_preset(own))
    }

    fn load(
        arguments: &Arguments,
        config: &TrainingConfig<BaselineConfig<C>>,
        device: &Device,
    ) -> Result<SegmentationModel<C::Network>> {
        let device = device.clone().autodiff();
        let Some(file) = &arguments.pretrained else { return Ok(config.model.init(&device)?) };
        let _spinner = Spinner::loading(file);
        Ok(config.model.init_with_encoder(file, &device)?)
    }

    fn save_random_foundation(
        _: &Arguments,
        _: &BaselineConfig<C>,
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
