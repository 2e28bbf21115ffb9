use burn::module::Param;
use burn::tensor::{FloatDType, Tensor};

/// Casts a layer's input to the float type of the layer's weight, if they differ.
pub fn cast_like<const D: usize, const W: usize>(
    input: Tensor<D>,
    weight: &Param<Tensor<W>>,
) -> Tensor<D> {
    input.cast(FloatDType::from(weight.val().dtype()))
}
