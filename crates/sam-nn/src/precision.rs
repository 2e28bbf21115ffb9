use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{FloatDType, Tensor};

/// Casts a layer's input to the float type of the layer's weight, if they differ.
pub fn cast_like<const D: usize, const W: usize>(
    input: Tensor<D>,
    weight: &Param<Tensor<W>>,
) -> Tensor<D> {
    input.cast(FloatDType::from(weight.val().dtype()))
}

/// Casts the parameters of a module to `dtype`, except those of norms and those that are named in
/// `kept`.
pub fn round_weights<M: Module>(module: M, dtype: FloatDType, kept: &[&str]) -> M {
    module.map(&mut WeightCast { dtype, kept, skip: false })
}

struct WeightCast<'a> {
    dtype: FloatDType,
    kept: &'a [&'a str],
    /// Whether the visited parameters are left unchanged.
    skip: bool,
}

impl ModuleMapper for WeightCast<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.skip = container.contains("LayerNorm") || self.kept.contains(&name);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.skip = false;
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.skip { param } else { param.map(|tensor| tensor.cast(self.dtype)) }
    }
}
