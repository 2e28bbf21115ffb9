use super::error::require;
use super::{
    ConfigError, InvalidSetting, ModelError, NetworkConfig, NetworkMetadata, NoFoundation,
    SegmentationModel, SegmentationNetwork, SupervisedLogits,
};
use burn::tensor::{Device, Tensor};
use sam_lst_baselines::{UNet, UNetConfig};
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

    /// Creates the network with random weights.
    fn init(&self, device: &Device) -> Self::Network;
}

impl<C: Baseline> BaselineConfig<C> {
    /// Creates a model with random weights, determined by the seed.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for an invalid setting.
    pub fn init(&self, device: &Device) -> Result<SegmentationModel<C::Network>, ConfigError> {
        SegmentationModel::new(self, NoFoundation, |device| self.network.init(device), device)
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

impl Baseline for UNetConfig {
    const METHOD: &'static str = "unet";
    type Network = UNet;

    fn num_classes(&self) -> usize {
        self.num_classes
    }

    fn validate(&self, input_size: usize) -> Result<(), InvalidSetting> {
        let levels = self.channels.len();
        let channels = format!("{:?}", self.channels);
        require(
            (2..=12).contains(&levels) && !self.channels.contains(&0),
            "network.channels",
            &channels,
            "between 2 and 12 levels with at least one channel each",
        )?;
        let stride = self.stride();
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
            channels,
            "fewer levels, so that the coarsest has more than one pixel",
        )
    }

    fn init(&self, device: &Device) -> UNet {
        self.init(device)
    }
}

impl SegmentationNetwork for UNet {
    type Config = BaselineConfig<UNetConfig>;
    type Foundation = NoFoundation;

    fn logits(&self, image: Tensor<4>, _: Option<Tensor<4>>) -> Tensor<4> {
        self.forward(image)
    }

    /// Each level has half the weight of the next finer one, as in nnU-Net.
    fn supervised_logits(&self, image: Tensor<4>, _: Option<Tensor<4>>) -> Vec<SupervisedLogits> {
        let levels = self.forward_supervised(image);
        let weight = |level: usize| 0.5_f64.powi(level as i32);
        let total: f64 = (0..levels.len()).map(weight).sum();
        let supervised =
            |(level, logits)| SupervisedLogits { logits, weight: weight(level) / total };
        levels.into_iter().enumerate().map(supervised).collect()
    }
}
