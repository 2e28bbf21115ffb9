use burn::module::{Module, ModuleDisplay};
use burn::tensor::Tensor;
use resnet_side::ResNetSide;

/// A side network: anything that turns an image into an embedding of the foundation's size.
///
/// [`Ladder`](crate::Ladder) is generic over it. To swap in a network of your own, implement this for it and build the
/// model with [`SamLstConfig::init_with_side`](crate::SamLstConfig::init_with_side).
pub trait SideEncoder: Module + ModuleDisplay + 'static {
    /// # Shapes
    ///
    /// - image: `[B, 3, S, S]`
    /// - output: `[B, C, S / 16, S / 16]`, with `C` the foundation's channels (256 in SAM)
    fn forward(&self, image: Tensor<4>) -> Tensor<4>;
}

impl SideEncoder for ResNetSide {
    fn forward(&self, image: Tensor<4>) -> Tensor<4> {
        ResNetSide::forward(self, image)
    }
}
