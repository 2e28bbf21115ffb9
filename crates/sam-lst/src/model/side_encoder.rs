use burn::module::{Module, ModuleDisplay};
use burn::tensor::Tensor;

/// A side network: computes an image embedding of the same shape as the foundation's.
///
/// [`Ladder`](crate::Ladder) is generic over it. To use a custom side network, implement this trait
/// for it and create the model with
/// [`SamLstConfig::init_with_side`](crate::SamLstConfig::init_with_side).
pub trait SideEncoder: Module + ModuleDisplay + 'static {
    /// Embeds images.
    ///
    /// # Shapes
    ///
    /// - image: `[B, 3, S, S]`
    /// - output: `[B, C, G, G]`, the shape of the foundation's embedding: 256 channels and
    ///   `G = S / 16` in SAM
    fn forward(&self, image: Tensor<4>) -> Tensor<4>;

    /// Channels of the input of each stage that features of the foundation's
    /// [taps](crate::SamLstConfig::taps) can enter; by default, there is none.
    fn stage_channels(&self) -> Vec<usize> {
        Vec::new()
    }

    /// As [`forward`](Self::forward), with what `mix` makes of the input of each stage; it receives
    /// the index of the stage and its input `[B, H, W, C]`.
    ///
    /// # Panics
    ///
    /// If the network has no such stages.
    fn forward_mixed(
        &self,
        image: Tensor<4>,
        mix: &dyn Fn(usize, Tensor<4>) -> Tensor<4>,
    ) -> Tensor<4> {
        let _ = (image, mix);
        panic!("the side network has no stages that taps can enter");
    }
}
