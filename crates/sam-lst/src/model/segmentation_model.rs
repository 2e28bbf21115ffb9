use super::network::trained_tensors;
use super::{ConfigError, FrozenPart, ModelError, NetworkConfig, SegmentationNetwork, Task};
use super::{checkpoint, network};
use crate::weights::WeightsError;
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Bool, Device, Int, Tensor};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// A model: the network that is trained and, where it uses one, the frozen foundation.
///
/// [`SamLst`](crate::SamLst) is the model of ladder side-tuning. A model is not a [`Module`]; train
/// its [`network`](Self::network), which is one.
#[derive(Debug, Clone)]
pub struct SegmentationModel<N: SegmentationNetwork> {
    /// The frozen part.
    pub foundation: N::Foundation,
    /// The trainable part.
    pub network: N,
    /// The task that the network is trained for, if known. It is saved in checkpoints.
    pub task: Option<Task>,
    config: N::Config,
    /// Whether the [`SegmentationNetwork::foundation_tensors`] were loaded from the foundation's
    /// file, so that a checkpoint can omit them.
    pub(super) frozen_loaded: bool,
    /// SHA-256 of the file from which a part of the network was initialised, if any.
    pub(super) pretrained_sha256: Option<String>,
}

/// Serialises random initialisation: Burn has one random number generator per kind of device, so
/// concurrent initialisations would make the weights depend on more than the seed.
static RANDOM_INIT: Mutex<()> = Mutex::new(());

/// Builds modules whose random values are determined by `seed`. `build` must initialise them, with
/// [`init_params`], before it returns.
pub(super) fn with_seed<T>(seed: u64, device: &Device, build: impl FnOnce() -> T) -> T {
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

impl<N: SegmentationNetwork> SegmentationModel<N> {
    /// Creates a model of a network, which `build` creates on `device`, and a foundation,
    /// [`NoFoundation`](super::NoFoundation) for a network that uses none. The random weights are
    /// determined by the configuration's seed. For training, the device must be an autodiff device.
    ///
    /// All threads share Burn's random number generator. If another thread uses it at the same time
    /// without this library, the weights do not depend on the seed alone.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for an invalid setting.
    pub fn new(
        config: &N::Config,
        foundation: N::Foundation,
        build: impl FnOnce(&Device) -> N,
        device: &Device,
    ) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self::with_random_network(config, foundation, build, device))
    }

    /// As [`new`](Self::new), for a valid configuration.
    pub(super) fn with_random_network(
        config: &N::Config,
        foundation: N::Foundation,
        build: impl FnOnce(&Device) -> N,
        device: &Device,
    ) -> Self {
        let network = with_seed(config.seed(), device, || init_params(build(device)));
        Self {
            foundation,
            network,
            task: None,
            config: config.clone(),
            frozen_loaded: false,
            pretrained_sha256: None,
        }
    }

    /// The configuration that the model was created from.
    pub fn config(&self) -> &N::Config {
        &self.config
    }

    /// Embeds the image with the foundation, if the network uses it, and predicts the logits of
    /// each class.
    ///
    /// # Shapes
    ///
    /// - image: `[B, 3, S, S]`, pixels in `[0, 1]`
    /// - output: `[B, K, L, L]`, where `L` is [`NetworkConfig::logits_size`]
    ///
    /// # Panics
    ///
    /// If the image is not square, does not have 3 channels, or its side does not fit the network.
    pub fn logits(&self, image: Tensor<4>) -> Tensor<4> {
        let foundation = self.embedding_foundation();
        let embedding = foundation.map(|foundation| foundation.embed(image.clone()));
        self.network.logits(image, embedding)
    }

    /// The foundation, if the network uses its embedding.
    pub(crate) fn embedding_foundation(&self) -> Option<&super::Foundation> {
        self.foundation.foundation().filter(|_| self.network.uses_embedding())
    }

    /// The SHA-256 of the foundation's weights, if there is a foundation.
    pub(crate) fn foundation_sha256(&self) -> Option<&str> {
        self.foundation.foundation().map(super::Foundation::weights_sha256)
    }

    /// The SHA-256 of the file from which a part of the network was initialised, if any.
    pub(crate) fn pretrained_sha256(&self) -> Option<&str> {
        self.pretrained_sha256.as_deref()
    }

    /// Names and numbers of values of the network's tensors that require gradients. Empty on a
    /// device without autodiff.
    pub fn trained_tensors(&self) -> Vec<(String, usize)> {
        trained_tensors(&self.network)
    }

    /// The device of the network.
    pub(crate) fn device(&self) -> Device {
        network::device_of(&self.network)
    }

    /// Returns the model for inference: its network is on a device without autodiff, and its batch
    /// norms use their running statistics.
    pub fn valid(&self) -> Self {
        Self { network: self.network.valid(), ..self.clone() }
    }

    /// Saves a checkpoint of the network with everything that the foundation's file does not
    /// contain; for a ladder over ViT-B, about 17 MB. The file replaces `path` atomically, so an
    /// interruption leaves the previous file unchanged; its folder is created if necessary.
    ///
    /// # Errors
    ///
    /// [`WeightsError::Write`] if the file cannot be written, [`WeightsError::NotFinite`] if a
    /// weight is NaN or infinite.
    pub fn save_network(&self, path: impl AsRef<Path>) -> Result<(), WeightsError> {
        checkpoint::save(self, path.as_ref())
    }

    /// Loads a checkpoint of the network and its task into this model, on the network's device.
    /// After an error the model is unchanged.
    ///
    /// # Errors
    ///
    /// [`ModelError::Weights`] if the file is invalid or not a checkpoint of a network,
    /// [`ModelError::WrongMethod`] or [`ModelError::WrongConfig`] if it is of another method or
    /// configuration than the model, [`ModelError::WrongFoundation`] if it was trained with another
    /// foundation.
    pub fn load_network(&mut self, path: impl AsRef<Path>) -> Result<(), ModelError> {
        checkpoint::load(self, path.as_ref())
    }
}
