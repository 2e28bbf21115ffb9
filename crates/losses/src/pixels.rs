use burn::config::Config;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor};

/// Logits beyond this count as this. The logarithm of a probability is then finite whatever the logits are, and so is
/// its product with a weight of zero.
const LARGEST_LOGIT: f32 = 1e6;

/// Which pixels count, and how much each class does.
#[derive(Config, Debug, PartialEq)]
pub struct ClassOptions {
    /// A weight per class, or none for 1 each.
    #[config(default = "None")]
    pub class_weights: Option<Vec<f32>>,
    /// Pixels with this label take no part.
    #[config(default = "None")]
    pub ignored_label: Option<i64>,
}

impl ClassOptions {
    /// Panics where the weights do not fit the classes: a wrong value in code.
    pub(crate) fn weights(&self, classes: usize, device: &Device) -> Option<Tensor<1>> {
        let weights = self.class_weights.as_ref()?;
        assert_eq!(
            weights.len(),
            classes,
            "class_weights must have one weight for each of the {classes} classes, found {weights:?}"
        );
        Some(Tensor::from_data(weights.as_slice(), device))
    }
}

/// What both losses need of a batch.
pub(crate) struct Pixels {
    /// Logarithms of the probabilities, `[B, K, H, W]`.
    pub log_probabilities: Tensor<4>,
    /// 1 at each pixel's class, 0 elsewhere and at ignored pixels, `[B, K, H, W]`.
    pub targets: Tensor<4>,
    /// 1 at pixels that count, 0 at ignored ones, `[B, 1, H, W]`; none where all count.
    pub counted: Option<Tensor<4>>,
}

impl Pixels {
    pub(crate) fn new(logits: Tensor<4>, labels: Tensor<3, Int>, options: &ClassOptions) -> Self {
        let [batch, classes, height, width] = logits.dims();
        assert_eq!(
            labels.dims(),
            [batch, height, width],
            "labels of logits {:?} must be {:?}, found {:?}",
            logits.dims(),
            [batch, height, width],
            labels.dims()
        );
        // Labels and what comes of them are constants: they stay off the tape.
        let labels = labels.inner().unsqueeze_dim::<4>(1); // [B, 1, H, W]
        let device = labels.device();
        let indices = Tensor::<1, Int>::arange(0..classes as i64, &device);
        let indices = indices.reshape([1, classes, 1, 1]);
        let mut targets = labels.clone().equal(indices).float();
        let counted = options
            .ignored_label
            .map(|ignored| labels.not_equal_elem(ignored).float());
        if let Some(counted) = &counted {
            targets = targets * counted.clone();
        }
        let logits = logits.clamp(-LARGEST_LOGIT, LARGEST_LOGIT);
        Self {
            log_probabilities: log_softmax(logits, 1),
            targets,
            counted,
        }
    }
}
