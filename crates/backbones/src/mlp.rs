use crate::init;
use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};
use sam_lst_sam_nn::{flatten_leading, gelu, linear};

/// The feed-forward network of a transformer block: `fc2(gelu(fc1(x)))`.
#[derive(Module, Debug)]
pub struct Mlp {
    /// Expanding layer.
    pub fc1: Linear,
    /// Contracting layer.
    pub fc2: Linear,
}

impl Mlp {
    /// Creates the network with random weights; the hidden layer is four times as wide.
    pub(crate) fn init(width: usize, device: &Device) -> Self {
        let (fc1, fc2) = ([width, 4 * width], [4 * width, width]);
        Self { fc1: init::linear(fc1, device), fc2: init::linear(fc2, device) }
    }

    /// Applies the network to the last axis.
    ///
    /// # Shapes
    ///
    /// - input, output: `[.., C]`
    ///
    /// # Panics
    ///
    /// If the last axis of `input` is not `C`.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        let shape = input.dims();
        let hidden = gelu(linear(&self.fc1, flatten_leading(input)));
        linear(&self.fc2, hidden).reshape(shape)
    }
}
