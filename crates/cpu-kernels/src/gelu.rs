//! GELU.

use crate::autodiff::{
    FlexTensor, Input, Operation, apply, contiguous, into_values, shape, tensor, tensor_like,
    values,
};
use crate::buffer;
use crate::math::{erf, exp};
use burn::backend::Flex;
use burn::tensor::Tensor;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Exact GELU, `x * (1 + erf(x / sqrt 2)) / 2`, with an exact gradient.
///
/// # Panics
///
/// If the input is not supported ([`is_supported`](crate::is_supported)).
pub fn gelu<const D: usize>(input: Tensor<D>) -> Tensor<D> {
    match Input::from(input) {
        // Without autodiff: in place, unless the buffer is shared.
        Input::Flex(input) => {
            let shape = shape::<D>(&input);
            let mut values = into_values(input);
            gelu_in_place(&mut values);
            Tensor::from_primitive::<Flex>(tensor(values, shape))
        }
        input @ Input::Autodiff(_) => apply(Gelu, [input]),
    }
}

#[derive(Debug, Clone, Copy)]
struct Gelu;

impl Operation<1> for Gelu {
    /// Input.
    type Saved = FlexTensor;

    fn forward(&self, [input]: [FlexTensor; 1], _: [bool; 1]) -> (FlexTensor, FlexTensor) {
        let input = contiguous(input);
        let arch = Arch::new();
        let output = buffer::map(values(&input), |block| arch.dispatch(GeluInPlace(block)));
        (tensor_like(output, &input), input)
    }

    fn backward(
        &self,
        input: FlexTensor,
        gradient: FlexTensor,
        _: [bool; 1],
    ) -> [Option<FlexTensor>; 1] {
        let mut gradient = into_values(gradient);
        gelu_gradient_in_place(values(&input), &mut gradient);
        [Some(tensor_like(gradient, &input))]
    }
}

/// Values per task in place: a quarter of a megabyte, which fits a core's cache.
const CHUNK: usize = 64 * 1024;

/// Replaces values by their GELU.
struct GeluInPlace<'a>(&'a mut [f32]);

impl WithSimd for GeluInPlace<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for value in self.0 {
            *value *= normal_distribution(*value);
        }
    }
}

fn gelu_in_place(values: &mut [f32]) {
    let arch = Arch::new();
    values.par_chunks_mut(CHUNK).for_each(|values| arch.dispatch(GeluInPlace(values)));
}

/// Replaces the gradient of the output by that of the input. GELU's derivative is
/// `Phi(x) + x phi(x)`, with the normal distribution `Phi` and its density `phi`.
fn gelu_gradient_in_place(input: &[f32], gradient: &mut [f32]) {
    struct Kernel<'a>(&'a [f32], &'a mut [f32]);
    impl WithSimd for Kernel<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) {
            const INVERSE_ROOT_2_PI: f32 = 0.398_942_3;
            for (&x, gradient) in self.0.iter().zip(self.1) {
                let density = exp(-0.5 * x * x) * INVERSE_ROOT_2_PI;
                *gradient *= x.mul_add(density, normal_distribution(x));
            }
        }
    }
    let arch = Arch::new();
    input
        .par_chunks(CHUNK)
        .zip(gradient.par_chunks_mut(CHUNK))
        .for_each(|(input, gradient)| arch.dispatch(Kernel(input, gradient)));
}

/// The cumulative distribution function of the standard normal distribution.
#[inline(always)]
fn normal_distribution(x: f32) -> f32 {
    erf(x * std::f32::consts::FRAC_1_SQRT_2).mul_add(0.5, 0.5)
}
