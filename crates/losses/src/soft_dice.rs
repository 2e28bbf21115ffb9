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
    /// Whether a class without a pixel in the batch counts. Its loss is nearly 1 wherever it is
    /// predicted at all, however little. Without such classes the others weigh more, but nothing in
    /// this loss prevents predictions of the absent ones.
    #[config(default = true)]
    pub absent_classes: bool,
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
        let mut loss: Tensor<1> = 1.0 - dice;
        if let Some(weights) = self.config.options.weights(sums.classes(), &sums.pixels.device()) {
            loss = loss * weights;
        }
        if self.config.absent_classes {
            return loss.mean();
        }
        let is_present = sums.pixels.clone().greater_elem(0).float();
        // Without a single pixel that counts, the loss is 0.
        (loss * is_present.clone()).sum() / is_present.sum().clamp_min(1.0)
    }
}
