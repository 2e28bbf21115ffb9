use crate::pixels::{ClassOptions, Pixels};
use crate::{SoftDiceLoss, SoftDiceLossConfig};
use burn::config::Config;
use burn::tensor::{Int, Tensor};

/// Configuration of [`CrossEntropyDiceLoss`].
#[derive(Config, Debug, PartialEq)]
pub struct CrossEntropyDiceLossConfig {
    /// Weight `l` of the Dice loss; cross entropy has `1 - l`. The paper's is 0.8.
    #[config(default = 0.8)]
    pub dice_weight: f64,
    /// Smoothing of the Dice loss.
    #[config(default = 1e-5)]
    pub smoothing: f64,
    /// Weights and ignored pixels, for both parts.
    #[config(default = "ClassOptions::new()")]
    pub options: ClassOptions,
}

/// `(1 - l) * cross entropy + l * soft Dice` (arXiv 2306.12737, section 3.3).
///
/// Cross entropy is the mean over pixels that count; with class weights each pixel counts as its class does, as in
/// PyTorch. Where no pixel counts it is 0.
#[derive(Debug, Clone)]
pub struct CrossEntropyDiceLoss {
    config: CrossEntropyDiceLossConfig,
    dice: SoftDiceLoss,
}

/// The loss and its parts, each `[1]`. [`total`](Self::total) is the one to go backward from.
#[derive(Debug, Clone)]
pub struct LossParts {
    /// The mixture.
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
            .with_options(self.options.clone());
        CrossEntropyDiceLoss {
            config: self.clone(),
            dice: dice.init(),
        }
    }
}

impl CrossEntropyDiceLoss {
    /// # Shapes
    ///
    /// - logits: `[B, K, H, W]`
    /// - labels: `[B, H, W]`, each in `0..K` or the ignored label
    ///
    /// # Panics
    ///
    /// If the shapes do not fit each other, or the class weights not the classes.
    pub fn forward(&self, logits: Tensor<4>, labels: Tensor<3, Int>) -> LossParts {
        let pixels = Pixels::new(logits, labels, &self.config.options);
        let dice = self.dice.of(&pixels);
        let cross_entropy = self.cross_entropy(pixels);
        let weight = self.config.dice_weight;
        LossParts {
            total: cross_entropy.clone() * (1.0 - weight) + dice.clone() * weight,
            cross_entropy,
            dice,
        }
    }

    fn cross_entropy(&self, pixels: Pixels) -> Tensor<1> {
        let [_, classes, ..] = pixels.targets.dims();
        let weights = self
            .config
            .options
            .weights(classes, &pixels.targets.device());
        let counted = match weights {
            Some(weights) => pixels.targets * weights.reshape([1, classes, 1, 1]),
            None => pixels.targets,
        };
        // Zero only where no pixel counts, and then so is what it divides.
        let total = counted
            .clone()
            .sum()
            .clamp_min(f64::from(f32::MIN_POSITIVE));
        -(pixels.log_probabilities * counted).sum() / total
    }
}
