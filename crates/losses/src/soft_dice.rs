use crate::pixels::{ClassOptions, Pixels};
use burn::config::Config;
use burn::tensor::{Int, Tensor};

/// Configuration of [`SoftDiceLoss`].
#[derive(Config, Debug, PartialEq)]
pub struct SoftDiceLossConfig {
    /// Added to numerator and denominator, so that an absent class that is not predicted has Dice 1.
    #[config(default = 1e-5)]
    pub smoothing: f64,
    /// Weights and ignored pixels.
    #[config(default = "ClassOptions::new()")]
    pub options: ClassOptions,
}

/// Soft Dice loss over all classes, background included.
///
/// Per class `1 - (2 sum(p t) + s) / (sum(p^2) + sum(t^2) + s)`, with softmax probabilities `p`, one-hot targets `t` and
/// smoothing `s`, summed over the whole batch; then the mean over classes, each times its weight.
#[derive(Debug, Clone)]
pub struct SoftDiceLoss {
    config: SoftDiceLossConfig,
}

impl SoftDiceLossConfig {
    /// Creates the loss.
    pub fn init(&self) -> SoftDiceLoss {
        SoftDiceLoss {
            config: self.clone(),
        }
    }
}

impl SoftDiceLoss {
    /// # Shapes
    ///
    /// - logits: `[B, K, H, W]`
    /// - labels: `[B, H, W]`, each in `0..K` or the ignored label
    /// - output: `[1]`
    ///
    /// # Panics
    ///
    /// If the shapes do not fit each other, or the class weights not the classes.
    pub fn forward(&self, logits: Tensor<4>, labels: Tensor<3, Int>) -> Tensor<1> {
        self.of(&Pixels::new(logits, labels, &self.config.options))
    }

    pub(crate) fn of(&self, pixels: &Pixels) -> Tensor<1> {
        let [_, classes, ..] = pixels.targets.dims();
        let mut probabilities = pixels.log_probabilities.clone().exp();
        if let Some(counted) = &pixels.counted {
            probabilities = probabilities * counted.clone();
        }
        let per_class = |pixels: Tensor<4>| -> Tensor<1> {
            pixels.sum_dims(&[0, 2, 3]).reshape([classes]) // [K]
        };
        // A target is 0 or 1: its square is itself.
        let targets = per_class(pixels.targets.clone());
        let common = per_class(probabilities.clone() * pixels.targets.clone());
        let squares = per_class(probabilities.clone() * probabilities);
        let smoothing = self.config.smoothing;
        let dice = (common * 2.0 + smoothing) / (squares + targets + smoothing);
        let loss: Tensor<1> = 1.0 - dice;
        match self
            .config
            .options
            .weights(classes, &pixels.targets.device())
        {
            Some(weights) => (loss * weights).mean(),
            None => loss.mean(),
        }
    }
}
