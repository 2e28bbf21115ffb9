//! Random initial weights of transformers, as in timm: a normal distribution with deviation 0.02,
//! and biases of zero.

use burn::module::Initializer;
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::Device;

/// Distribution of weights. timm cuts the distribution off at 100 standard deviations, which
/// changes nothing.
pub const NORMAL: Initializer = Initializer::Normal { mean: 0.0, std: 0.02 };

/// A linear layer from `inputs` to `outputs`.
pub fn linear([inputs, outputs]: [usize; 2], device: &Device) -> Linear {
    let mut layer = linear_without_bias([inputs, outputs], device);
    layer.bias = Some(Initializer::Zeros.init([outputs], device));
    layer
}

/// A linear layer without bias, from `inputs` to `outputs`.
pub fn linear_without_bias([inputs, outputs]: [usize; 2], device: &Device) -> Linear {
    LinearConfig::new(inputs, outputs).with_bias(false).with_initializer(NORMAL).init(device)
}

/// A layer norm with scale 1 and shift 0.
pub fn layer_norm(width: usize, epsilon: f64, device: &Device) -> LayerNorm {
    LayerNormConfig::new(width).with_epsilon(epsilon).init(device)
}
