//! A step of Adam or AdamW.

use crate::AdamStep;
use crate::autodiff::{Input, contiguous, into_values, tensor, values};
use burn::backend::Flex;
use burn::tensor::Tensor;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Applies a step: the new parameter and its moments. Without moments, they start at 0. In place
/// where no other tensor shares the buffers.
///
/// Rounded as the same operations one after another, so the results are those of Burn's optimizers,
/// bit for bit.
///
/// # Panics
///
/// If a tensor is not supported ([`is_supported`](crate::is_supported)) or the shapes differ.
pub fn adam_step<const D: usize>(
    step: AdamStep,
    parameter: Tensor<D>,
    gradient: Tensor<D>,
    moments: Option<[Tensor<D>; 2]>,
) -> (Tensor<D>, [Tensor<D>; 2]) {
    let shape_of_parameter = parameter.dims();
    assert_eq!(gradient.dims(), shape_of_parameter, "shapes of the gradient and the parameter");
    let gradient = contiguous(Input::from(gradient).into_flex());
    let gradient = values(&gradient);
    let read = |tensor: Tensor<D>| {
        assert_eq!(tensor.dims(), shape_of_parameter, "shapes of a moment and the parameter");
        into_values(Input::from(tensor).into_flex())
    };
    let mut parameter = read(parameter);
    let [mut first, mut second] = match moments {
        Some(moments) => moments.map(read),
        None => [0, 1].map(|_| vec![0.0; gradient.len()]),
    };
    let arch = Arch::new();
    parameter
        .par_chunks_mut(VALUES)
        .zip(first.par_chunks_mut(VALUES).zip(second.par_chunks_mut(VALUES)))
        .zip(gradient.par_chunks(VALUES))
        .for_each(|((parameter, (first, second)), gradient)| {
            arch.dispatch(Chunk { step, parameter, first, second, gradient });
        });
    let [parameter, first, second] = [parameter, first, second]
        .map(|values| Tensor::from_primitive::<Flex>(tensor(values, shape_of_parameter)));
    (parameter, [first, second])
}

/// Values per task.
const VALUES: usize = 16 * 1024;

struct Chunk<'a> {
    step: AdamStep,
    parameter: &'a mut [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
    gradient: &'a [f32],
}

impl WithSimd for Chunk<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let step = self.step;
        let [beta_1, beta_2] = step.betas;
        let [rest_1, rest_2] = [1.0 - beta_1, 1.0 - beta_2];
        let moments = self.first.iter_mut().zip(self.second);
        let values = self.parameter.iter_mut().zip(moments).zip(self.gradient);
        for ((parameter, (first, second)), &gradient) in values {
            *first = *first * beta_1 + gradient * rest_1;
            *second = *second * beta_2 + gradient * gradient * rest_2;
            let change = *first * step.first_factor / step.first_divisor;
            let change = change / ((*second / step.second_divisor).sqrt() + step.epsilon);
            *parameter = *parameter * step.decay - change * step.learning_rate;
        }
    }
}
