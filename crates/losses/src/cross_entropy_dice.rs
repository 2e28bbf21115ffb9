use crate::class_sums::{ClassOptions, ClassSums};
use crate::{SoftDiceLoss, SoftDiceLossConfig};
use burn::config::Config;
use burn::tensor::{Int, Tensor};

/// Configuration of [`CrossEntropyDiceLoss`].
#[derive(Config, Debug, PartialEq)]
pub struct CrossEntropyDiceLossConfig {
    /// Weight `l` of the Dice loss; the weight of cross entropy is `1 - l`. The paper uses 0.8.
    #[config(default = 0.8)]
    pub dice_weight: f64,
    /// Smoothing of the Dice loss.
    #[config(default = 1e-5)]
    pub smoothing: f64,
    /// Whether classes without a pixel in the batch count in the Dice loss, see
    /// [`SoftDiceLossConfig::absent_classes`].
    #[config(default = true)]
    pub absent_classes: bool,
    /// Class weights and the ignored label, for both losses.
    #[config(default = "ClassOptions::new()")]
    pub options: ClassOptions,
}

/// `(1 - l) * cross entropy + l * soft Dice` (arXiv 2306.12737, section 3.3).
///
/// Cross entropy is the mean over pixels that are not ignored; with class weights it is the
/// weighted mean, as in PyTorch. If every pixel is ignored or has weight zero, it is 0.
#[derive(Debug, Clone)]
pub struct CrossEntropyDiceLoss {
    config: CrossEntropyDiceLossConfig,
    dice: SoftDiceLoss,
}

/// The loss and its parts, each `[1]`. Call `backward` on [`total`](Self::total).
#[derive(Debug, Clone)]
pub struct LossParts {
    /// The weighted sum.
    pub total: Tensor<1>,
    /// Cross entropy alone.
    pub cross_entropy: Tensor<1>,
    /// Soft Dice loss alone.
    pub dice: Tensor<1>,
}

impl CrossEntropyDiceLossConfig {
    /// Creates the loss.
    ///
    /// # Panics
    ///
    /// If `dice_weight` is not in `[0, 1]`.
    pub fn init(&self) -> CrossEntropyDiceLoss {
        assert!(
            (0.0..=1.0).contains(&self.dice_weight),
            "dice_weight must lie in [0, 1], found {}",
            self.dice_weight
        );
        let dice = SoftDiceLossConfig::new()
            .with_smoothing(self.smoothing)
            .with_absent_classes(self.absent_classes)
            .with_options(self.options.clone());
        CrossEntropyDiceLoss { config: self.clone(), dice: dice.init() }
    }
}

impl CrossEntropyDiceLoss {
    /// Computes the loss and its parts.
    ///
    /// # Shapes
    ///
    /// - logits: `[B, K, H, W]`
    /// - labels: `[B, H, W]`, each in `0..K` or the ignored label
    ///
    /// # Panics
    ///
    /// If the shapes of logits and labels do not match, or if the number of class weights is not
    /// `K`.
    pub fn forward(&self, logits: Tensor<4>, labels: Tensor<3, Int>) -> LossParts {
        let sums = ClassSums::new(logits, labels, &self.config.options);
        let dice = self.dice.of(&sums);
        let cross_entropy = self.cross_entropy(sums);
        let weight = self.config.dice_weight;
        LossParts {
            total: cross_entropy.clone() * (1.0 - weight) + dice.clone() * weight,
            cross_entropy,
            dice,
        }
    }

    fn cross_entropy(&self, sums: ClassSums) -> Tensor<1> {
        let weights = self.config.options.weights(sums.classes(), &sums.pixels.device());
        let (negative_log, pixels) = match weights {
            Some(weights) => (sums.negative_log * weights.clone(), sums.pixels * weights),
            None => (sums.negative_log, sums.pixels),
        };
        // The sum is zero only if every pixel is ignored or has weight zero. The numerator is zero
        // then, too, so the clamp makes the loss 0 instead of NaN.
        negative_log.sum() / pixels.sum().clamp_min(f64::from(f32::MIN_POSITIVE))
    }
}
