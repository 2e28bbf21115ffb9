use burn::config::Config;
use burn::tensor::{Tensor, activation};

/// The nonlinearities that SAM uses.
#[derive(Config, Debug, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Exact (erf) GELU: the image encoder and the mask upscaling.
    Gelu,
    /// ReLU: the two-way transformer and the decoder's heads.
    Relu,
}

impl Activation {
    /// Applies the nonlinearity element by element.
    pub fn forward<const D: usize>(self, input: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Gelu => gelu(input),
            Self::Relu => activation::relu(input),
        }
    }
}

/// Exact GELU, `x * (1 + erf(x / sqrt 2)) / 2`, with an exact gradient.
///
/// On the CPU and off the tape this is one kernel. On a GPU's tape, the expression is composed from its parts: the backward pass
/// of Burn's GELU is the tanh approximation's there.
pub fn gelu<const D: usize>(input: Tensor<D>) -> Tensor<D> {
    if cpu_kernels::serves(&input) {
        return cpu_kernels::gelu(input);
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
    fn composed_gelu_equals_the_fused_one() {
        let device = Device::flex();
        let input = Tensor::<1>::from_floats([-6.0, -1.5, -0.3, 0.0, 0.7, 2.0, 9.0], &device);
        let fused = gelu(input.clone()).into_data();
        let composed = gelu(input.autodiff()).inner().into_data();
        composed.assert_approx_eq::<f32>(&fused, Tolerance::absolute(1e-6));
    }
}
