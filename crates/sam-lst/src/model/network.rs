use super::{ConfigError, Foundation};
use burn::module::{Module, ModuleDisplay, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

/// A segmentation network: the part of a model that is trained.
///
/// It takes images and, where it uses one, the frozen foundation's embedding of them, and predicts
/// the logits of each class. [`Ladder`](crate::Ladder) and [`UNet`](crate::baselines::UNet) are
/// networks. To train a network of your own with [`Training`](crate::Training), implement this trait
/// for it and [`NetworkConfig`] for its configuration (`examples/custom_network.rs`).
pub trait SegmentationNetwork: Module + ModuleDisplay + 'static {
    /// The configuration that the network is created from.
    type Config: NetworkConfig;
    /// The frozen part of the model: [`Foundation`] for a network that uses its embedding, else
    /// [`NoFoundation`].
    type Foundation: FrozenPart;

    /// Predicts the logits of each class.
    ///
    /// # Shapes
    ///
    /// - image: `[B, 3, S, S]`, pixels in `[0, 1]`
    /// - embedding: the foundation's, `[B, C, G, G]`; `None` if the network
    ///   [does not use it](Self::uses_embedding)
    /// - output: `[B, K, L, L]`, where `L` is [`NetworkConfig::logits_size`]
    fn logits(&self, image: Tensor<4>, embedding: Option<Tensor<4>>) -> Tensor<4>;

    /// The logits that the loss is computed of, with their weights in the loss. By default
    /// [`logits`](Self::logits) alone; a network with deep supervision returns logits of several
    /// sizes.
    fn supervised_logits(
        &self,
        image: Tensor<4>,
        embedding: Option<Tensor<4>>,
    ) -> Vec<SupervisedLogits> {
        vec![SupervisedLogits { logits: self.logits(image, embedding), weight: 1.0 }]
    }

    /// Whether the network uses the foundation's embedding. Without a foundation, there is none.
    fn uses_embedding(&self) -> bool {
        true
    }

    /// The weight of the foundation's embedding in a learnable gate, for logs; `None` without one.
    fn gate_value(&self) -> Option<f32> {
        None
    }

    /// Whether a tensor of the network, by its official name, is frozen and in the foundation's file
    /// too. If it was loaded from there, a checkpoint omits it.
    fn is_in_foundation_file(&self, name: &str) -> bool {
        let _ = name;
        false
    }
}

/// Logits with their weight in the loss.
#[derive(Debug, Clone)]
pub struct SupervisedLogits {
    /// `[B, K, L, L]`, where `L` divides [`NetworkConfig::logits_size`].
    pub logits: Tensor<4>,
    /// The weight. The weights of all logits of a network sum to 1.
    pub weight: f64,
}

impl SupervisedLogits {
    /// Logits of several levels, finest first: each level has half the weight of the next finer one,
    /// as in nnU-Net.
    pub fn of_levels(levels: Vec<Tensor<4>>) -> Vec<Self> {
        let weight = |level: usize| 0.5_f64.powi(level as i32);
        let total: f64 = (0..levels.len()).map(weight).sum();
        let supervised = |(level, logits)| Self { logits, weight: weight(level) / total };
        levels.into_iter().enumerate().map(supervised).collect()
    }
}

/// The configuration of a [`SegmentationNetwork`]. It is saved in checkpoints and in the settings of
/// runs.
pub trait NetworkConfig:
    Clone + Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// Name of the method in settings, checkpoints and file names: letters, digits and hyphens.
    const METHOD: &'static str;

    /// Number of classes `K`, including the background.
    fn num_classes(&self) -> usize;

    /// Side `S` of the input in pixels.
    fn input_size(&self) -> usize;

    /// Side `L` of the logits in pixels. Labels have this size in the loss.
    fn logits_size(&self) -> usize;

    /// Whether what the foundation computes is a feature map that moves with the image, so that the
    /// features of a moved image can be those of the image, moved. It is not if they only contain
    /// patches with their positions.
    fn has_movable_features(&self) -> bool {
        true
    }

    /// Seed of all random initial weights.
    fn seed(&self) -> u64;

    /// Sets the seed of all random initial weights.
    fn set_seed(&mut self, seed: u64);

    /// Checks all settings.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for the first invalid setting.
    fn validate(&self) -> Result<(), ConfigError>;
}

/// The frozen part of a model: [`Foundation`], [`NoFoundation`], or an `Option` where it depends on
/// the configuration.
pub trait FrozenPart: Clone + Debug + Sync + sealed::Sealed {
    /// The foundation, if there is one.
    fn foundation(&self) -> Option<&Foundation>;

    /// The foundation, if there is one, to change its precision or to offload it.
    fn foundation_mut(&mut self) -> Option<&mut Foundation>;
}

/// The frozen part of a model that is trained as a whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NoFoundation;

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Foundation {}
    impl Sealed for super::NoFoundation {}
    impl Sealed for Option<super::Foundation> {}
}

impl FrozenPart for Foundation {
    fn foundation(&self) -> Option<&Foundation> {
        Some(self)
    }

    fn foundation_mut(&mut self) -> Option<&mut Foundation> {
        Some(self)
    }
}

impl FrozenPart for Option<Foundation> {
    fn foundation(&self) -> Option<&Foundation> {
        self.as_ref()
    }

    fn foundation_mut(&mut self) -> Option<&mut Foundation> {
        self.as_mut()
    }
}

impl FrozenPart for NoFoundation {
    fn foundation(&self) -> Option<&Foundation> {
        None
    }

    fn foundation_mut(&mut self) -> Option<&mut Foundation> {
        None
    }
}

/// How Burn marks a variant of an enum in a path, which is no part of a tensor's name.
pub(super) const ENUM: &str = "Enum:";

/// Names and numbers of values of a module's tensors that require gradients. Empty on a device
/// without autodiff.
pub(crate) fn trained_tensors(module: &impl Module) -> Vec<(String, usize)> {
    #[derive(Default)]
    struct Trained {
        path: Vec<String>,
        tensors: Vec<(String, usize)>,
    }
    impl ModuleVisitor for Trained {
        fn enter_module(&mut self, name: &str, container: &str) {
            if !container.starts_with(ENUM) {
                self.path.push(name.to_string());
            }
        }
        fn exit_module(&mut self, _: &str, container: &str) {
            if !container.starts_with(ENUM) {
                self.path.pop();
            }
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.is_require_grad() {
                let name = crate::weights::official_name(&self.path.join("."));
                self.tensors.push((name, param.shape().num_elements()));
            }
        }
    }
    let mut trained = Trained::default();
    module.visit(&mut trained);
    trained.tensors
}

/// What the foundation computed, as a constant that can be combined with tensors of the device of
/// `image`, which may be one with autodiff and gradient checkpointing.
pub(super) fn constant_beside(image: &Tensor<4>, features: Tensor<4>) -> Tensor<4> {
    match image.gradient_checkpointing_strategy() {
        Some(strategy) => {
            features.inner().autodiff().with_gradient_checkpointing_strategy(strategy)
        }
        None => features.inner(),
    }
}

/// The device of a network's parameters.
///
/// # Panics
///
/// If it has none.
pub(crate) fn device_of(network: &impl Module) -> Device {
    network.devices().into_iter().next().expect("a network has parameters")
}
