use super::checkpoint::{self, LadderMetadata};
use super::{
    ConfigError, Foundation, Ladder, ModelError, SamLstConfig, SideConfig, SideEncoder, Task,
};
use crate::weights::{self, StateDict, WeightsError};
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Bool, Device, Int, Tensor};
use sam_lst_mask_decoder::MaskPrediction;
use sam_lst_resnet_side::ResNetSide;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// SAM with ladder side-tuning: the frozen foundation and the trainable ladder.
///
/// It is not a [`Module`]; train its [`ladder`](Self::ladder), which is one.
#[derive(Debug, Clone)]
pub struct SamLst<S: SideEncoder = ResNetSide> {
    /// The frozen part.
    pub foundation: Foundation,
    /// The trainable part.
    pub ladder: Ladder<S>,
    /// The task that the ladder is trained for, if known. It is saved in the ladder checkpoint.
    pub task: Option<Task>,
    config: SamLstConfig,
}

/// Serialises random initialisation: Burn has one random number generator per kind of device, so
/// concurrent initialisations would make the weights depend on more than the seed.
static RANDOM_INIT: Mutex<()> = Mutex::new(());

/// Builds modules whose random values are determined by `seed`. `build` must initialise them, with
/// [`init_params`], before it returns.
fn with_seed<T>(seed: u64, device: &Device, build: impl FnOnce() -> T) -> T {
    let _guard = RANDOM_INIT.lock().unwrap_or_else(PoisonError::into_inner);
    device.seed(seed);
    build()
}

/// Initialises all parameters of a module in the order of its fields; by default, a parameter is
/// initialised when it is first used.
pub(super) fn init_params<M: Module>(module: M) -> M {
    struct InitParams;
    impl ModuleVisitor for InitParams {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            param.val();
        }
        fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
            param.val();
        }
        fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
            param.val();
        }
    }
    module.visit(&mut InitParams);
    module
}

impl SamLstConfig {
    /// Creates a model with random weights, determined by the seed. The ladder is on `device`,
    /// which must be an autodiff device for training. The foundation is on the same device without
    /// autodiff.
    ///
    /// All threads share Burn's random number generator. If another thread uses it at the same time
    /// without this library, the weights do not depend on the seed alone.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for an invalid setting or a custom side network.
    pub fn init(&self, device: &Device) -> Result<SamLst, ConfigError> {
        let SideConfig::ResNet(side) = &self.side else {
            return Err(self.custom_side_error());
        };
        self.init_with_side(|device| side.init(device), device)
    }

    /// As [`init`](Self::init), with a custom side network, which `side` builds.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for an invalid setting or an encoder of your own.
    pub fn init_with_side<S: SideEncoder>(
        &self,
        side: impl FnOnce(&Device) -> S,
        device: &Device,
    ) -> Result<SamLst<S>, ConfigError> {
        self.validate()?;
        let inner = device.clone().inner();
        // A seed of its own, so that the ladder is initialised the same with a random foundation as
        // with SAM's.
        let encoder = with_seed(self.seed.wrapping_add(1), &inner, || self.encoder.init(&inner))?;
        let foundation = Foundation::from_frozen(encoder, self.pixel_scale);
        self.init_with_foundation(foundation, side, device)
    }

    /// As [`init`](Self::init), over a foundation, which may be of an encoder of your own, and with
    /// a custom side network, which `side` builds.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for an invalid setting, or if the foundation does not fit the configuration.
    pub fn init_with_foundation<S: SideEncoder>(
        &self,
        foundation: Foundation,
        side: impl FnOnce(&Device) -> S,
        device: &Device,
    ) -> Result<SamLst<S>, ConfigError> {
        self.validate()?;
        let found = (foundation.stride(), foundation.channels(), foundation.pixel_scale());
        let expected = (self.encoder.stride(), self.encoder.channels(), self.pixel_scale);
        if found != expected {
            return Err(ConfigError::WrongFoundation {
                expected: format!("{expected:?}"),
                found: format!("{found:?}"),
            });
        }
        Ok(SamLst {
            foundation,
            ladder: self.random_ladder(side, device),
            task: None,
            config: self.clone(),
        })
    }

    fn random_ladder<S: SideEncoder>(
        &self,
        side: impl FnOnce(&Device) -> S,
        device: &Device,
    ) -> Ladder<S> {
        with_seed(self.seed, device, || init_params(Ladder::new(self, || side(device), device)))
    }

    fn custom_side_error(&self) -> ConfigError {
        let name = match &self.side {
            SideConfig::Custom(name) => name.clone(),
            SideConfig::ResNet(side) => format!("{side:?}"),
        };
        ConfigError::CustomSide { name }
    }
}

impl SamLst {
    /// Creates a model for training from official weights: SAM's (or those of MedSAM, LiteMedSAM or
    /// MobileSAM) in the foundation and the decoder, and torchvision's in the side network. The
    /// weights of the side network without `resnet`, and all weights whose shape depends on the
    /// number of classes, are random.
    ///
    /// Both files may be official `.pth` files or safetensors, in full or half precision.
    ///
    /// # Errors
    ///
    /// [`ModelError::Config`] for an invalid setting or a custom side network,
    /// [`ModelError::Weights`] for an invalid file.
    pub fn from_official(
        config: &SamLstConfig,
        sam: impl AsRef<Path>,
        resnet: Option<&Path>,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let SideConfig::ResNet(side) = &config.side else {
            return Err(config.custom_side_error().into());
        };
        let mut model =
            Self::from_official_with_side(config, sam, |device| side.init(device), device)?;
        if let Some(path) = resnet {
            let source = StateDict::open(path)?;
            let load = |network| weights::load(network, &source, &weights::RESNET);
            model.ladder.side = model.ladder.side.map(load).transpose()?;
        }
        Ok(model)
    }

    /// Loads a trained model from SAM's checkpoint and a ladder checkpoint, which contains the
    /// configuration. On an autodiff device, its training can be continued.
    ///
    /// # Errors
    ///
    /// [`ModelError::Weights`] for an invalid file, [`ModelError::WrongFoundation`] if the ladder
    /// was trained with another SAM checkpoint, [`ModelError::Config`] if its configuration is
    /// invalid or has a custom side network.
    pub fn from_pretrained(
        sam: impl AsRef<Path>,
        ladder: impl AsRef<Path>,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let config = LadderMetadata::read(&ladder)?.config;
        let mut model = Self::from_official(&config, sam, None, device)?;
        model.load_ladder(ladder)?;
        Ok(model)
    }
}

impl<S: SideEncoder> SamLst<S> {
    /// As [`SamLst::from_official`], with a custom side network, which `side` builds and may load.
    ///
    /// # Errors
    ///
    /// As [`SamLst::from_official`].
    pub fn from_official_with_side(
        config: &SamLstConfig,
        sam: impl AsRef<Path>,
        side: impl FnOnce(&Device) -> S,
        device: &Device,
    ) -> Result<Self, ModelError> {
        config.validate()?;
        let source = StateDict::open(sam)?;
        let foundation =
            Foundation::from_state_dict(&config.encoder, config.pixel_scale, &source, device)?;
        let mut ladder = config.random_ladder(side, device);
        ladder.prompt_encoder =
            weights::load(ladder.prompt_encoder, &source, &weights::PROMPT_ENCODER)?;
        ladder.mask_decoder = weights::load(ladder.mask_decoder, &source, &weights::CLASS_DECODER)?;
        ladder.sam_loaded = true;
        Ok(Self { foundation, ladder, task: None, config: config.clone() })
    }

    /// The configuration that the model was created from.
    pub fn config(&self) -> &SamLstConfig {
        &self.config
    }

    /// Embeds the image with the foundation, if the fusion uses it, and predicts one mask per
    /// class.
    ///
    /// # Shapes
    ///
    /// - image: `[B, 3, S, S]`, pixels in `[0, 1]`
    /// - logits: `[B, K, S / 4, S / 4]`, iou: `[B, K]`
    ///
    /// # Panics
    ///
    /// If the image is not square, does not have 3 channels, or its side is not a positive multiple
    /// of the foundation's stride.
    pub fn forward(&self, image: Tensor<4>) -> MaskPrediction {
        let embedding =
            self.ladder.fusion().uses_sam().then(|| self.foundation.embed(image.clone()));
        self.ladder.forward(image, embedding)
    }

    /// Returns the model for inference: its ladder is on a device without autodiff, and its batch
    /// norms use their running statistics.
    pub fn valid(&self) -> Self {
        Self {
            foundation: self.foundation.clone(),
            ladder: self.ladder.valid(),
            task: self.task.clone(),
            config: self.config.clone(),
        }
    }

    /// Saves a ladder checkpoint with everything that the official files do not contain, about 17
    /// MB for ViT-B. The file replaces `path` atomically, so an interruption leaves the previous
    /// file unchanged; its folder is created if necessary.
    ///
    /// # Errors
    ///
    /// [`WeightsError::Write`] if the file cannot be written, [`WeightsError::NotFinite`] if a
    /// weight is NaN or infinite.
    pub fn save_ladder(&self, path: impl AsRef<Path>) -> Result<(), WeightsError> {
        checkpoint::save_ladder(
            &self.ladder,
            &self.config,
            self.task.as_ref(),
            self.foundation.weights_sha256(),
            path.as_ref(),
        )
    }

    /// Saves the current image encoder, prompt encoder and mask decoder under SAM's names. If the
    /// foundation was not loaded from a file, this is the SAM checkpoint for
    /// [`from_pretrained`](SamLst::from_pretrained).
    ///
    /// The file is written as by [`save_ladder`](Self::save_ladder). The weights of a
    /// half-precision foundation are saved as rounded, so no ladder checkpoint of this model can be
    /// loaded with the file.
    ///
    /// # Errors
    ///
    /// As [`save_ladder`](Self::save_ladder).
    ///
    /// # Panics
    ///
    /// If the foundation was [offloaded](Foundation::offload) and cannot be loaded again.
    pub fn save_sam(&self, path: impl AsRef<Path>) -> Result<(), WeightsError> {
        checkpoint::save_sam(self.foundation.frozen_encoder(), &self.ladder, path.as_ref())
    }

    /// Loads a ladder checkpoint and its task into this model, on the ladder's device. After an
    /// error the model is unchanged.
    ///
    /// # Errors
    ///
    /// [`ModelError::Weights`] if the file is invalid or not a ladder checkpoint,
    /// [`ModelError::WrongConfig`] if its configuration differs from the model's,
    /// [`ModelError::WrongFoundation`] if it was trained with another SAM checkpoint.
    pub fn load_ladder(&mut self, path: impl AsRef<Path>) -> Result<(), ModelError> {
        let (ladder, task) = checkpoint::load_ladder(
            &self.ladder,
            &self.config,
            self.foundation.weights_sha256(),
            path.as_ref(),
        )?;
        self.ladder = ladder;
        self.task = task;
        Ok(())
    }
}
