use super::checkpoint::{self, NetworkMetadata};
use super::segmentation_model::with_seed;
use super::{
    ConfigError, Foundation, InvalidSetting, Ladder, ModelError, SamLstConfig, SegmentationModel,
    SideConfig, SideEncoder, SideNetwork,
};
use crate::weights::{self, StateDict, WeightsError};
use burn::tensor::{Device, Tensor};
use sam_lst_mask_decoder::MaskPrediction;
use std::path::Path;

/// SAM with ladder side-tuning: the frozen foundation and the trainable [`Ladder`], its
/// [`network`](SegmentationModel::network).
pub type SamLst<S = SideNetwork> = SegmentationModel<Ladder<S>>;

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
        self.check_side()?;
        self.init_with_side(|device| self.side_network(device), device)
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

    /// As [`init`](Self::init), over a foundation, which may be of an encoder of your own.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for an invalid setting or a custom side network, or if the foundation does
    /// not fit the configuration.
    pub fn init_over(
        &self,
        foundation: Foundation,
        device: &Device,
    ) -> Result<SamLst, ConfigError> {
        self.check_side()?;
        self.init_with_foundation(foundation, |device| self.side_network(device), device)
    }

    /// As [`init_over`](Self::init_over), with a custom side network, which `side` builds.
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
        foundation.expect_shape(&self.encoder, self.pixel_scale)?;
        self.with_random_ladder(foundation, side, device)
    }

    /// The model over a foundation, with a random ladder.
    fn with_random_ladder<S: SideEncoder>(
        &self,
        foundation: Foundation,
        side: impl FnOnce(&Device) -> S,
        device: &Device,
    ) -> Result<SamLst<S>, ConfigError> {
        let foundation = foundation.with_taps(self.encoder_taps())?;
        let ladder = |device: &Device| Ladder::new(self, || side(device), device);
        let model = SegmentationModel::with_random_network(self, foundation, ladder, device);
        let stages = model.network.side.as_ref().map(SideEncoder::stage_channels);
        let has_taps = !model.foundation.taps().is_empty();
        if has_taps && stages.is_none_or(|stages| stages != self.side.stage_channels()) {
            let found = format!("{:?}", self.taps);
            let expected = "none, since the side network has no such stages";
            return Err(InvalidSetting { field: "taps", found, expected }.into());
        }
        Ok(model)
    }

    /// Checks that this library can build the side network.
    fn check_side(&self) -> Result<(), ConfigError> {
        match &self.side {
            SideConfig::Custom(name) => Err(ConfigError::CustomSide { name: name.clone() }),
            _ => Ok(()),
        }
    }

    /// The side network with random weights. [`check_side`](Self::check_side) must have passed.
    fn side_network(&self, device: &Device) -> SideNetwork {
        self.side
            .init(self.side_shape(), device)
            .expect("`check_side` refuses custom side networks")
    }
}

impl SamLst {
    /// Creates a model for training from official weights: SAM's (or those of MedSAM, LiteMedSAM or
    /// MobileSAM) in the foundation and the decoder, and those of `pretrained` in the side network,
    /// torchvision's for a ResNet and timm's for a transformer. The weights of the side network
    /// without it, and all weights whose shape depends on the number of classes, are random.
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
        pretrained: Option<&Path>,
        device: &Device,
    ) -> Result<Self, ModelError> {
        config.check_side()?;
        let side = |device: &Device| config.side_network(device);
        let mut model = Self::from_official_with_side(config, sam, side, device)?;
        if let Some(path) = pretrained {
            let source = StateDict::open(path)?;
            model.network.side = model.network.side.map(|side| side.load(&source)).transpose()?;
            model.pretrained_sha256 = Some(source.file_sha256()?);
        }
        Ok(model)
    }

    /// Loads a trained model from SAM's checkpoint and a ladder checkpoint, which contains the
    /// configuration. On an autodiff device, its training can be continued.
    ///
    /// # Errors
    ///
    /// [`ModelError::Weights`] for an invalid file, [`ModelError::WrongMethod`] if it
    /// is not the checkpoint of a ladder, [`ModelError::WrongFoundation`] if the ladder was trained
    /// with another SAM checkpoint, [`ModelError::Config`] if its configuration is
    /// invalid or has a custom side network.
    pub fn from_pretrained(
        sam: impl AsRef<Path>,
        ladder: impl AsRef<Path>,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let config: SamLstConfig = NetworkMetadata::read(&ladder)?.config()?;
        let mut model = Self::from_official(&config, sam, None, device)?;
        model.load_network(ladder)?;
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
        let mut model = config.with_random_ladder(foundation, side, device)?;
        let ladder = &mut model.network;
        ladder.prompt_encoder =
            weights::load(ladder.prompt_encoder.clone(), &source, &weights::PROMPT_ENCODER)?;
        ladder.mask_decoder =
            weights::load(ladder.mask_decoder.clone(), &source, &weights::CLASS_DECODER)?;
        model.frozen_loaded = true;
        Ok(model)
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
        let foundation = self.embedding_foundation();
        let embedding = foundation.map(|foundation| foundation.embed(image.clone()));
        self.network.forward(image, embedding)
    }

    /// Saves the current image encoder, prompt encoder and mask decoder under SAM's names. If the
    /// foundation was not loaded from a file, this is the SAM checkpoint for
    /// [`from_pretrained`](SamLst::from_pretrained).
    ///
    /// The file is written as by [`save_network`](SegmentationModel::save_network). The weights of
    /// a half-precision foundation are saved as rounded, so no ladder checkpoint of this model can
    /// be loaded with the file.
    ///
    /// # Errors
    ///
    /// As [`save_network`](SegmentationModel::save_network).
    ///
    /// # Panics
    ///
    /// If the foundation was [offloaded](Foundation::offload) and cannot be loaded again.
    pub fn save_sam(&self, path: impl AsRef<Path>) -> Result<(), WeightsError> {
        checkpoint::save_sam(self.foundation.frozen_encoder(), &self.network, path.as_ref())
    }
}
