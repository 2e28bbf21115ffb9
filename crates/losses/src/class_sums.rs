use burn::config::Config;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor};
use sam_lst_cpu_kernels as kernels;

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

/// What both losses are computed from: sums over the pixels of a batch that are not ignored, each
/// `[K]`. `p` are softmax probabilities.
pub(crate) struct ClassSums {
    /// Sum of `p` over the pixels of the class.
    pub common: Tensor<1>,
    /// Sum of `p^2`.
    pub squares: Tensor<1>,
    /// Sum of `-log p` over the pixels of the class.
    pub negative_log: Tensor<1>,
    /// Number of pixels of the class, a constant.
    pub pixels: Tensor<1>,
}

impl ClassSums {
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
        let labels = labels.inner();
        if kernels::is_supported(&logits) {
            return Self::in_one_pass(logits, labels, options);
        }
        let labels = labels.unsqueeze_dim::<4>(1); // [B, 1, H, W]
        let indices = Tensor::<1, Int>::arange(0..classes as i64, &labels.device());
        let indices = indices.reshape([1, classes, 1, 1]);
        let mut targets = labels.clone().equal(indices).float();
        let log_probabilities = log_softmax(logits.clamp(-MAX_LOGIT, MAX_LOGIT), 1);
        let mut probabilities = log_probabilities.clone().exp();
        if let Some(ignored) = options.ignored_label {
            let mask = labels.not_equal_elem(ignored).float();
            targets = targets * mask.clone();
            probabilities = probabilities * mask;
        }
        let per_class =
            |pixels: Tensor<4>| -> Tensor<1> { pixels.sum_dims(&[0, 2, 3]).reshape([classes]) };
        Self {
            common: per_class(probabilities.clone() * targets.clone()),
            squares: per_class(probabilities.clone() * probabilities),
            negative_log: -per_class(log_probabilities * targets.clone()),
            pixels: per_class(targets),
        }
    }

    /// With the CPU kernel.
    fn in_one_pass(logits: Tensor<4>, labels: Tensor<3, Int>, options: &ClassOptions) -> Self {
        let classes = logits.dims()[1];
        let class = |label: i64| match u32::try_from(label) {
            _ if Some(label) == options.ignored_label => classes as u32 + 1,
            Ok(class) if (class as usize) < classes => class,
            _ => classes as u32,
        };
        let of_pixels = labels.into_data().iter::<i64>().map(class).collect();
        let sums = kernels::class_sums(logits, of_pixels, MAX_LOGIT);
        let row = |row: usize| sums.clone().narrow(0, row, 1).reshape([classes]);
        Self { common: row(0), squares: row(1), negative_log: row(2), pixels: row(3) }
    }

    pub(crate) fn classes(&self) -> usize {
        self.pixels.dims()[0]
    }
}
