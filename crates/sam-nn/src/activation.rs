use burn::config::Config;
use burn::tensor::{Tensor, activation};

/// The activation functions of SAM.
#[derive(Config, Debug, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Exact (erf) GELU, used by the image encoder and the mask upscaling.
    Gelu,
    /// ReLU, used by the two-way transformer and the decoder's MLPs.
    Relu,
}

impl Activation {
    /// Applies the activation function elementwise.
    pub fn forward<const D: usize>(self, input: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Gelu => gelu(input),
            Self::Relu => activation::relu(input),
        }
    }
}

/// Exact GELU, `x * (1 + erf(x / sqrt 2)) / 2`, with an exact gradient.
///
/// On the CPU, and on any device without autodiff, this is a single kernel. On a GPU with autodiff
/// it is composed from elementary operations, because the backward pass of Burn's GELU is that of
/// the tanh approximation there.
pub fn gelu<const D: usize>(input: Tensor<D>) -> Tensor<D> {
    if sam_lst_cpu_kernels::is_supported(&input) {
        return sam_lst_cpu_kernels::gelu(input);
    }
    if !input.is_autodiff() {
        return activation::gelu(input);
    }
    let cdf = (input.clone() / std::f64::consts::SQRT_2).erf() + 1.0;
    input * cdf * 0.5
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Tolerance};

    #[test]
    fn composed_gelu_equals_fused_gelu() {
        let device = Device::flex();
        let input = Tensor::<1>::from_floats([-6.0, -1.5, -0.3, 0.0, 0.7, 2.0, 9.0], &device);
        let fused = gelu(input.clone()).into_data();
        let composed = gelu(input.autodiff()).inner().into_data();
        composed.assert_approx_eq::<f32>(&fused, Tolerance::absolute(1e-6));
    }
}
