use burn::config::Config;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor};

/// Logits are clamped to this magnitude. Log probabilities are then finite for any logits, and so
/// are their products with a weight of zero.
const MAX_LOGIT: f32 = 1e6;

/// Class weights and the ignored label.
#[derive(Config, Debug, PartialEq)]
pub struct ClassOptions {
    /// One weight per class; `None` weights every class by 1.
    #[config(default = "None")]
    pub class_weights: Option<Vec<f32>>,
    /// Pixels with this label do not contribute to the loss.
    #[config(default = "None")]
    pub ignored_label: Option<i64>,
}

impl ClassOptions {
    /// The class weights, `[K]`. Panics if their number is not `classes`.
    pub(crate) fn weights(&self, classes: usize, device: &Device) -> Option<Tensor<1>> {
        let weights = self.class_weights.as_ref()?;
        assert_eq!(
            weights.len(),
            classes,
            "class_weights must have one weight for each of the {classes} classes, \
             found {weights:?}"
        );
        Some(Tensor::from_data(weights.as_slice(), device))
    }
}

/// The tensors of a batch that both losses are computed from.
pub(crate) struct Pixels {
    /// Log probabilities, `[B, K, H, W]`.
    pub log_probabilities: Tensor<4>,
    /// 1 at each pixel's class, 0 elsewhere and at ignored pixels, `[B, K, H, W]`.
    pub targets: Tensor<4>,
    /// 0 at ignored pixels, 1 elsewhere, `[B, 1, H, W]`; `None` if there is no ignored label.
    pub mask: Option<Tensor<4>>,
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
        // Labels and everything derived from them are constants, so autodiff does not track them.
        let labels = labels.inner().unsqueeze_dim::<4>(1); // [B, 1, H, W]
        let device = labels.device();
        let indices = Tensor::<1, Int>::arange(0..classes as i64, &device);
        let indices = indices.reshape([1, classes, 1, 1]);
        let mut targets = labels.clone().equal(indices).float();
        let mask = options.ignored_label.map(|ignored| labels.not_equal_elem(ignored).float());
        if let Some(mask) = &mask {
            targets = targets * mask.clone();
        }
        let logits = logits.clamp(-MAX_LOGIT, MAX_LOGIT);
        Self { log_probabilities: log_softmax(logits, 1), targets, mask }
    }
}
