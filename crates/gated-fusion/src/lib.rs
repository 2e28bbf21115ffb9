//! A learnable gate that fuses SAM's frozen image embedding with that of the trainable side
//! network.
//!
//! `fused = sigmoid(alpha) * sam + (1 - sigmoid(alpha)) * side` with one scalar `alpha` (arXiv
//! 2306.12737, section 3.1). [`Fusion`] also covers the ablations of the paper's Table II, in which
//! the decoder receives only one of the two embeddings.
//!
//! [`TapFusion`] mixes features from inside SAM's encoder into those of a stage of the side network,
//! as ladder side-tuning was first proposed (Sung et al., *LST*, arXiv 2206.06522, section 3.2).
//!
//! # Notation
//!
//! `B` batch, `C` channels of an image embedding, `G` its grid size.

mod tap_fusion;

pub use tap_fusion::{TapFusion, TapFusionConfig};

use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::tensor::{Device, Tensor, activation::sigmoid};

/// Which image embedding the decoder receives, and therefore which parts are trained: the rows of
/// the paper's Table II.
#[derive(Config, Debug, Copy, PartialEq, Eq, Hash)]
pub enum Fusion {
    /// "SAM-LST": the gated sum of both embeddings. Side network, gate and decoder are trained.
    Gated,
    /// "CNN encoder only": the side network's embedding. Side network and decoder are trained;
    /// SAM's encoder is not needed.
    SideOnly,
    /// "SAM encoder only": SAM's embedding. The decoder is trained; there is no side network.
    SamOnly,
    /// "SAM": SAM's embedding; nothing is trained.
    Untrained,
}

impl Fusion {
    /// Whether the side network's embedding is used.
    pub fn uses_side(self) -> bool {
        matches!(self, Self::Gated | Self::SideOnly)
    }

    /// Whether SAM's image embedding is used.
    pub fn uses_sam(self) -> bool {
        !matches!(self, Self::SideOnly)
    }
}

/// Configuration of [`GatedFusion`].
#[derive(Config, Debug)]
pub struct GatedFusionConfig {
    /// Initial value of `alpha`. At 0, both embeddings have the same weight.
    #[config(default = 0.0)]
    pub initial_alpha: f64,
    /// Divides `alpha` before the sigmoid. The smaller it is, the faster the gate learns.
    #[config(default = 1.0)]
    pub temperature: f64,
}

/// The gate: one learnable scalar.
#[derive(Module, Debug)]
pub struct GatedFusion {
    /// `alpha`, which the sigmoid of `alpha / temperature` makes the gate's value, `[1]`.
    pub alpha: Param<Tensor<1>>,
    temperature: f64,
}

impl GatedFusionConfig {
    /// Creates the gate.
    pub fn init(&self, device: &Device) -> GatedFusion {
        let initializer = Initializer::Constant { value: self.initial_alpha };
        GatedFusion { alpha: initializer.init([1], device), temperature: self.temperature }
    }
}

impl GatedFusion {
    /// Computes the gated sum of the two embeddings.
    ///
    /// # Shapes
    ///
    /// - sam, side: `[B, C, G, G]`
    /// - output: `[B, C, G, G]`
    ///
    /// # Panics
    ///
    /// If the two shapes differ.
    pub fn forward(&self, sam: Tensor<4>, side: Tensor<4>) -> Tensor<4> {
        assert_eq!(
            sam.dims(),
            side.dims(),
            "the gate needs embeddings of the same shape: \
             SAM's is {:?}, the side network's is {:?}",
            sam.dims(),
            side.dims()
        );
        let gate = self.gate().reshape([1, 1, 1, 1]);
        // Equal to gate * sam + (1 - gate) * side, with one product fewer to compute and to
        // backpropagate.
        side.clone() + gate * (sam - side)
    }

    /// The gate's current value, the weight of SAM's embedding. The paper reports 0.44 after
    /// training.
    pub fn value(&self) -> f32 {
        self.gate().inner().into_scalar::<f32>()
    }

    fn gate(&self) -> Tensor<1> {
        let alpha = self.alpha.val();
        // The published gate has none, and a division by 1 is a step of autodiff all the same.
        if self.temperature == 1.0 { sigmoid(alpha) } else { sigmoid(alpha / self.temperature) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Tolerance;

    #[test]
    fn gate_is_the_weight_of_sam() {
        let device = Device::flex();
        let gate = GatedFusionConfig::new().with_initial_alpha(3.0_f64.ln()).init(&device); // 0.75
        let sam = Tensor::<4>::full([1, 2, 3, 3], 8.0, &device);
        let side = Tensor::<4>::full([1, 2, 3, 3], 4.0, &device);
        let expected = Tensor::<4>::full([1, 2, 3, 3], 7.0, &device).into_data();
        gate.forward(sam, side)
            .into_data()
            .assert_approx_eq::<f32>(&expected, Tolerance::absolute(1e-5));
        assert!((gate.value() - 0.75).abs() < 1e-6);
    }

    #[test]
    #[should_panic(expected = "SAM's is [1, 2, 3, 3], the side network's is [1, 2, 4, 4]")]
    fn different_shapes_panic() {
        let device = Device::flex();
        GatedFusionConfig::new()
            .init(&device)
            .forward(Tensor::zeros([1, 2, 3, 3], &device), Tensor::zeros([1, 2, 4, 4], &device));
    }
}
