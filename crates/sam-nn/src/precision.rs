use burn::module::Param;
use burn::tensor::{FloatDType, Tensor};

/// Casts what a layer is given to the precision of its weight, where they differ.
pub fn in_precision_of<const D: usize, const W: usize>(
    input: Tensor<D>,
    weight: &Param<Tensor<W>>,
) -> Tensor<D> {
    input.cast(FloatDType::from(weight.val().dtype()))
}
