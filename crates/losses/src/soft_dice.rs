use crate::class_sums::{ClassOptions, ClassSums};
use burn::config::Config;
use burn::tensor::{Int, Tensor};

/// Configuration of [`SoftDiceLoss`].
#[derive(Config, Debug, PartialEq)]
pub struct SoftDiceLossConfig {
    /// Added to numerator and denominator, so that a class that is neither present nor predicted
    /// has Dice 1.
    #[config(default = 1e-5)]
    pub smoothing: f64,
    /// Class weights and the ignored label.
    #[config(default = "ClassOptions::new()")]
    pub options: ClassOptions,
}

/// Soft Dice loss over all classes, background included.
///
/// The loss of one class is `1 - (2 sum(p t) + s) / (sum(p^2) + sum(t^2) + s)` with softmax
/// probabilities `p`, one-hot targets `t` and smoothing `s`; sums run over the whole batch. The
/// result is the mean over classes of the loss times the class weight.
#[derive(Debug, Clone)]
pub struct SoftDiceLoss {
    config: SoftDiceLossConfig,
}

impl SoftDiceLossConfig {
    /// Creates the loss.
    pub fn init(&self) -> SoftDiceLoss {
        SoftDiceLoss { config: self.clone() }
    }
}

impl SoftDiceLoss {
    /// Computes the loss.
    ///
    /// # Shapes
    ///
    /// - logits: `[B, K, H, W]`
    /// - labels: `[B, H, W]`, each in `0..K` or the ignored label
    /// - output: `[1]`
    ///
    /// # Panics
    ///
    /// If the shapes of logits and labels do not match, or if the number of class weights is not
    /// `K`.
    pub fn forward(&self, logits: Tensor<4>, labels: Tensor<3, Int>) -> Tensor<1> {
        self.of(&ClassSums::new(logits, labels, &self.config.options))
    }

    pub(crate) fn of(&self, sums: &ClassSums) -> Tensor<1> {
        let smoothing = self.config.smoothing;
        // Targets are 0 or 1, so they equal their squares.
        let dice = (sums.common.clone() * 2.0 + smoothing)
            / (sums.squares.clone() + sums.pixels.clone() + smoothing);
        let loss: Tensor<1> = 1.0 - dice;
        match self.config.options.weights(sums.classes(), &sums.pixels.device()) {
            Some(weights) => (loss * weights).mean(),
            None => loss.mean(),
        }
    }
}
