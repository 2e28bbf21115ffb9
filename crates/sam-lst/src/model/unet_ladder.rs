use super::baseline::validate_levels;
use super::foundation::unpack;
use super::network::{constant_beside, trained_tensors};
use super::segmentation_model::with_seed;
use super::{
    ConfigError, EncoderConfig, Foundation, InvalidSetting, ModelError, NetworkConfig,
    NetworkMetadata, PixelScale, SamLstConfig, SegmentationModel, SegmentationNetwork,
    SupervisedLogits, Tap, require,
};
use crate::weights::StateDict;
use burn::module::Module;
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor};
use sam_lst_baselines::{FeatureInput, UNet, UNetConfig};
use sam_lst_sam_nn::resize_bilinear;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Configuration of [`UNetLadder`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UNetLadderConfig {
    /// The foundation, an image encoder.
    pub encoder: EncoderConfig,
    /// Number of classes `K`, including the background.
    pub num_classes: usize,
    /// Channels of each level of the U-Net, finest first. Each level has half the size of the one
    /// above.
    pub channels: Vec<usize>,
    /// U-Nets that are trained together from different initial weights. The logarithms of their mean
    /// probabilities are the logits.
    pub members: usize,
    /// Whether coarser levels are supervised too.
    pub deep_supervision: bool,
    /// Places inside the encoder whose features enter the U-Net beside the embedding: indices of the
    /// blocks of a ViT, or of the stages of a TinyViT, in increasing order. They are cached with the
    /// embedding.
    pub taps: Vec<usize>,
    /// Side of the U-Net's input and of the logits in pixels; without it, half of `S`, but at most
    /// 128. The embedding and the features of the taps enter at the level of their size.
    #[serde(default)]
    pub unet_size: Option<usize>,
    /// Side `S` of the foundation's input in pixels; a multiple of the encoder's stride.
    pub input_size: usize,
    /// Normalisation of the foundation's input.
    pub pixel_scale: PixelScale,
    /// Seed of all random initial weights.
    pub seed: u64,
}

/// One or more trainable U-Nets in parallel with the frozen foundation. The foundation's embedding, and
/// the features of taps, enter each U-Net at the levels with the same resolution. The U-Nets predict
/// the logits themselves, without a mask decoder.
///
/// Like a [`Ladder`](super::Ladder), it sends no gradient through the foundation, whose features are
/// computed once and cached. Unlike a ladder's, its features keep the resolution of the slices.
#[derive(Module, Debug)]
pub struct UNetLadder {
    /// The U-Nets.
    pub members: Vec<UNet>,
    /// The embedding and the taps.
    #[module(skip)]
    sources: Vec<Tap>,
    #[module(skip)]
    size: usize,
}

impl UNetLadderConfig {
    /// Three U-Nets over a ladder's foundation and input: four levels of 16 to 128 channels. Over a
    /// TinyViT, they receive the features of the second and the last stage beside the embedding.
    pub fn from_ladder(ladder: &SamLstConfig) -> Self {
        let taps = match ladder.encoder {
            EncoderConfig::TinyVit(_) => vec![1, 3],
            EncoderConfig::Vit(_) | EncoderConfig::Custom(_) => Vec::new(),
        };
        Self {
            encoder: ladder.encoder.clone(),
            num_classes: ladder.num_classes(),
            channels: vec![16, 32, 64, 128],
            members: 3,
            deep_supervision: true,
            taps,
            unet_size: None,
            input_size: ladder.input_size,
            pixel_scale: ladder.pixel_scale,
            seed: ladder.seed,
        }
    }

    /// This configuration with one U-Net, whose step takes about a third of the time.
    pub fn fast(self) -> Self {
        Self { members: 1, ..self }
    }

    /// Side of the U-Net's input and of the logits in pixels.
    pub fn unet_size(&self) -> usize {
        self.unet_size.unwrap_or(self.input_size.min(256) / 2)
    }

    /// The embedding and the taps. The configuration must be valid.
    fn sources(&self) -> Vec<Tap> {
        let embedding =
            Tap { index: 0, channels: self.encoder.channels(), stride: self.encoder.stride() };
        std::iter::once(embedding).chain(self.encoder.select_taps(&self.taps)).collect()
    }

    /// The level of the U-Net that has the size of features of a stride, if there is one.
    fn level(&self, stride: usize) -> Option<usize> {
        let size = self.input_size / stride;
        (0..self.channels.len()).find(|&level| {
            self.unet_size() >> level == size && self.unet_size().is_multiple_of(1 << level)
        })
    }

    fn unet(&self) -> UNetConfig {
        let input = |tap: Tap| FeatureInput {
            level: self.level(tap.stride).expect("a valid configuration"),
            channels: tap.channels,
        };
        UNetConfig::new(self.num_classes)
            .with_channels(self.channels.clone())
            .with_deep_supervision(self.deep_supervision)
            .with_features(Some(self.sources().into_iter().map(input).collect()))
    }

    fn validate_own(&self) -> Result<(), InvalidSetting> {
        let Self { encoder, taps, input_size, .. } = self;
        let unet_size = self.unet_size();
        encoder.validate()?;
        let members = self.members;
        require((1..=16).contains(&members), "members", members, "1 to 16")?;
        let classes = self.num_classes;
        require(classes > 0, "num_classes", classes, "at least 1, background included")?;
        let stride = encoder.stride();
        require(
            *input_size > 0 && input_size.is_multiple_of(stride) && *input_size <= 8192,
            "input_size",
            input_size,
            "a positive multiple of the encoder's stride, at most 8192",
        )?;
        validate_levels(&self.channels, unet_size)?;
        encoder.validate_taps(taps)?;
        require(
            self.sources().iter().all(|tap| self.level(tap.stride).is_some()),
            "unet_size",
            unet_size,
            "such that a level of the U-Net has the size of the foundation's embedding, \
             input_size divided by the encoder's stride, and one the size of each tap's features",
        )
    }

    /// Creates a model with random weights, determined by the seed.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for an invalid setting or an encoder of your own.
    pub fn init(&self, device: &Device) -> Result<SegmentationModel<UNetLadder>, ConfigError> {
        self.validate()?;
        let inner = device.clone().inner();
        // A seed of its own, so that the network is initialised the same over any foundation.
        let encoder = with_seed(self.seed.wrapping_add(1), &inner, || self.encoder.init(&inner))?;
        self.init_over(Foundation::from_frozen(encoder, self.pixel_scale), device)
    }

    /// As [`init`](Self::init), over a foundation, which may be of an encoder of your own.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for an invalid setting, or if the foundation does not fit the configuration.
    pub fn init_over(
        &self,
        foundation: Foundation,
        device: &Device,
    ) -> Result<SegmentationModel<UNetLadder>, ConfigError> {
        self.validate()?;
        foundation.expect_shape(&self.encoder, self.pixel_scale)?;
        let [_, taps @ ..] = &self.sources()[..] else { unreachable!("there is an embedding") };
        let foundation = foundation.with_taps(taps.to_vec())?;
        let network = |device: &Device| UNetLadder::new(self, device);
        Ok(SegmentationModel::with_random_network(self, foundation, network, device))
    }

    /// Creates a model for training over the image encoder of SAM's checkpoint, or that of MedSAM,
    /// LiteMedSAM or MobileSAM. The U-Net has random weights.
    ///
    /// # Errors
    ///
    /// [`ModelError::Config`] for an invalid setting, [`ModelError::Weights`] for an invalid file.
    pub fn from_official(
        &self,
        sam: impl AsRef<Path>,
        device: &Device,
    ) -> Result<SegmentationModel<UNetLadder>, ModelError> {
        self.validate()?;
        let source = StateDict::open(sam)?;
        let foundation =
            Foundation::from_state_dict(&self.encoder, self.pixel_scale, &source, device)?;
        Ok(self.init_over(foundation, device)?)
    }

    /// Loads a trained model from SAM's checkpoint and the checkpoint of the network, which contains
    /// the configuration.
    ///
    /// # Errors
    ///
    /// As [`SamLst::from_pretrained`](super::SamLst::from_pretrained).
    pub fn from_pretrained(
        sam: impl AsRef<Path>,
        network: impl AsRef<Path>,
        device: &Device,
    ) -> Result<SegmentationModel<UNetLadder>, ModelError> {
        let config: Self = NetworkMetadata::read(&network)?.config()?;
        let mut model = config.from_official(sam, device)?;
        model.load_network(network)?;
        Ok(model)
    }
}

impl UNetLadder {
    fn new(config: &UNetLadderConfig, device: &Device) -> Self {
        let unet = config.unet();
        Self {
            members: (0..config.members).map(|_| unet.init(device)).collect(),
            sources: config.sources(),
            size: config.unet_size(),
        }
    }

    /// Names and numbers of values of the tensors that require gradients. Empty on a device without
    /// autodiff.
    pub fn trained_tensors(&self) -> Vec<(String, usize)> {
        trained_tensors(self)
    }

    /// The U-Net's inputs from the image and what the foundation computed.
    ///
    /// # Panics
    ///
    /// If the latter is missing.
    fn inputs(
        &self,
        image: Tensor<4>,
        embedding: Option<Tensor<4>>,
    ) -> (Tensor<4>, Vec<Tensor<4>>) {
        let embedding = embedding.expect("the foundation's embedding");
        let [Tap { stride, .. }, ..] = self.sources[..] else { panic!("an embedding") };
        let mut start = 0;
        let features = |tap: &Tap| {
            let packed = tap.packed_channels(stride);
            let features = embedding.clone().narrow(1, start, packed);
            start += packed;
            constant_beside(&image, unpack(features, stride / tap.stride))
        };
        let features = self.sources.iter().map(features).collect();
        (resize_bilinear(image, [self.size; 2]), features)
    }
}

impl SegmentationNetwork for UNetLadder {
    type Config = UNetLadderConfig;
    type Foundation = Foundation;

    fn logits(&self, image: Tensor<4>, embedding: Option<Tensor<4>>) -> Tensor<4> {
        let (image, features) = self.inputs(image, embedding);
        let logits = |unet: &UNet| unet.forward_with_features(image.clone(), features.clone());
        if let [unet] = &self.members[..] {
            return logits(unet);
        }
        let probabilities = self.members.iter().map(|unet| softmax(logits(unet), 1));
        let sum = probabilities.reduce(|sum, other| sum + other).expect("at least one member");
        // Far below what a probability of any member is rounded to.
        (sum / self.members.len() as f64).clamp_min(f64::from(f32::MIN_POSITIVE)).log()
    }

    fn supervised_logits(
        &self,
        image: Tensor<4>,
        embedding: Option<Tensor<4>>,
    ) -> Vec<SupervisedLogits> {
        let (image, features) = self.inputs(image, embedding);
        let of_member =
            |unet: &UNet| unet.forward_supervised_with_features(image.clone(), features.clone());
        let members = self.members.iter().map(of_member);
        let share = 1.0 / self.members.len() as f64;
        members
            .flat_map(SupervisedLogits::of_levels)
            .map(|level| SupervisedLogits { weight: level.weight * share, ..level })
            .collect()
    }
}

impl NetworkConfig for UNetLadderConfig {
    const METHOD: &'static str = "unet-ladder";

    fn num_classes(&self) -> usize {
        self.num_classes
    }

    fn input_size(&self) -> usize {
        self.input_size
    }

    fn logits_size(&self) -> usize {
        self.unet_size()
    }

    fn seed(&self) -> u64 {
        self.seed
    }

    fn set_seed(&mut self, seed: u64) {
        self.seed = seed;
    }

    fn validate(&self) -> Result<(), ConfigError> {
        Ok(self.validate_own()?)
    }
}
