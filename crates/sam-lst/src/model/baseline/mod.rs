//! Networks without a foundation, from [`baselines`](crate::baselines).

mod attention_unet;
mod swin_unet;
mod trans_unet;
mod unet;

use super::error::require;
use super::{
    ConfigError, InvalidSetting, ModelError, NetworkConfig, NetworkMetadata, NoFoundation,
    SegmentationModel, SegmentationNetwork,
};
use crate::weights::{StateDict, WeightsError};
use burn::tensor::Device;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fmt::Debug;
use std::path::Path;

/// Configuration of a network that is trained without a foundation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaselineConfig<C> {
    /// The network.
    pub network: C,
    /// Side `S` of the input in pixels.
    pub input_size: usize,
    /// Seed of all random initial weights.
    pub seed: u64,
}

/// Configuration of a network of [`baselines`](crate::baselines).
pub trait Baseline:
    Clone + Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// Name of the method, as [`NetworkConfig::METHOD`].
    const METHOD: &'static str;
    /// The network.
    type Network: SegmentationNetwork<Config = BaselineConfig<Self>, Foundation = NoFoundation>;

    /// Number of classes, including the background.
    fn num_classes(&self) -> usize;

    /// Checks all settings for an input of `input_size` x `input_size` pixels.
    ///
    /// # Errors
    ///
    /// The first invalid setting.
    fn validate(&self, input_size: usize) -> Result<(), InvalidSetting>;

    /// Creates the network with random weights, for an input of `input_size` x `input_size` pixels.
    fn init(&self, input_size: usize, device: &Device) -> Self::Network;

    /// Loads weights from ImageNet into the encoder; `None` for a network whose encoder has no
    /// published ones.
    ///
    /// # Errors
    ///
    /// [`WeightsError`] if the file is not of this encoder, naming the first tensor that differs.
    fn load_encoder(
        &self,
        network: Self::Network,
        source: &StateDict,
    ) -> Option<Result<Self::Network, WeightsError>> {
        let _ = (network, source);
        None
    }
}

impl<C: Baseline> BaselineConfig<C> {
    /// Creates a model with random weights, determined by the seed.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for an invalid setting.
    pub fn init(&self, device: &Device) -> Result<SegmentationModel<C::Network>, ConfigError> {
        let network = |device: &Device| self.network.init(self.input_size, device);
        SegmentationModel::new(self, NoFoundation, network, device)
    }

    /// As [`init`](Self::init), with weights from ImageNet in the encoder: timm's
    /// `vit_base_r50_s16_224` for TransUNet, `swin_tiny_patch4_window7_224` for Swin-Unet.
    ///
    /// # Errors
    ///
    /// [`ModelError::Config`] for an invalid setting or a network whose encoder has no published
    /// weights, [`ModelError::Weights`] for an invalid file or one of another encoder.
    pub fn init_with_encoder(
        &self,
        file: impl AsRef<Path>,
        device: &Device,
    ) -> Result<SegmentationModel<C::Network>, ModelError> {
        let mut model = self.init(device)?;
        let source = StateDict::open(file)?;
        let loaded = self.network.load_encoder(model.network, &source);
        model.network = loaded.ok_or(ConfigError::NoPublishedEncoder { method: C::METHOD })??;
        model.pretrained_sha256 = Some(source.file_sha256()?);
        Ok(model)
    }

    /// Loads a trained model from its checkpoint, which contains the configuration.
    ///
    /// # Errors
    ///
    /// [`ModelError::Weights`] for an invalid file, [`ModelError::WrongMethod`] if it is of another
    /// method.
    pub fn load(
        checkpoint: impl AsRef<Path>,
        device: &Device,
    ) -> Result<SegmentationModel<C::Network>, ModelError> {
        let config: Self = NetworkMetadata::read(&checkpoint)?.config()?;
        let mut model = config.init(device)?;
        model.load_network(checkpoint)?;
        Ok(model)
    }
}

impl<C: Baseline> NetworkConfig for BaselineConfig<C> {
    const METHOD: &'static str = C::METHOD;

    fn num_classes(&self) -> usize {
        self.network.num_classes()
    }

    fn input_size(&self) -> usize {
        self.input_size
    }

    fn logits_size(&self) -> usize {
        self.input_size
    }

    fn seed(&self) -> u64 {
        self.seed
    }

    fn set_seed(&mut self, seed: u64) {
        self.seed = seed;
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let classes = self.num_classes();
        require(classes > 0, "network.num_classes", classes, "at least 1, background included")?;
        let size = self.input_size;
        require((1..=8192).contains(&size), "input_size", size, "between 1 and 8192")?;
        Ok(self.network.validate(size)?)
    }
}

/// Checks the channels of a U-Net's levels for an input of `input_size` x `input_size` pixels.
pub(in crate::model) fn validate_levels(
    channels: &[usize],
    input_size: usize,
) -> Result<(), InvalidSetting> {
    let levels = channels.len();
    let listed = format!("{channels:?}");
    require(
        (2..=12).contains(&levels) && !channels.contains(&0),
        "network.channels",
        &listed,
        "between 2 and 12 levels with at least one channel each",
    )?;
    let stride = 1 << (levels - 1);
    require(
        input_size.is_multiple_of(stride),
        "input_size",
        format!("{input_size}, with {levels} levels"),
        "a multiple of 2 for each of the levels but one, since each halves the size",
    )?;
    // A norm of a single pixel is 0 whatever the pixel.
    require(
        input_size >= 2 * stride,
        "network.channels",
        listed,
        "fewer levels, so that the coarsest has more than one pixel",
    )
}

/// Whether the index after `prefix` in a tensor's name, if it begins with it, is below `count`.
fn is_below(name: &str, prefix: &str, count: usize) -> bool {
    let index = name.strip_prefix(prefix).and_then(|rest| rest.split('.').next());
    index.and_then(|index| index.parse::<usize>().ok()).is_none_or(|index| index < count)
}
