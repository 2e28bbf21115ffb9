use burn::tensor::Tensor;

/// Means and variances of channels.
#[derive(Debug, Clone)]
pub struct Statistics {
    /// Means, `[C]`.
    pub mean: Tensor<1>,
    /// Variances, `[C]`.
    pub variance: Tensor<1>,
}
