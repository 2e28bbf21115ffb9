use crate::{
    Activation, AdaptedLayer, BlockAdaptation, Unadapted, cast_like, flatten_leading, linear,
};
use burn::config::Config;
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, FloatDType, Tensor};

/// Configuration of [`MlpBlock`].
#[derive(Config, Debug)]
pub struct MlpBlockConfig {
    /// Width of input and output.
    pub embed_dim: usize,
    /// Width between the two layers.
    pub hidden_dim: usize,
    /// Activation between the two layers.
    pub activation: Activation,
}

/// The feed-forward network of a transformer block, SAM's `MLPBlock`: `lin2(activation(lin1(x)))`.
#[derive(Module, Debug)]
pub struct MlpBlock {
    /// Expanding layer, `embed_dim -> hidden_dim`.
    pub lin1: Linear,
    /// Contracting layer, `hidden_dim -> embed_dim`.
    pub lin2: Linear,
    #[module(skip)]
    activation: Activation,
}

impl MlpBlockConfig {
    /// Creates the network with Burn's default initialisation, which equals PyTorch's.
    pub fn init(&self, device: &Device) -> MlpBlock {
        MlpBlock {
            lin1: LinearConfig::new(self.embed_dim, self.hidden_dim).init(device),
            lin2: LinearConfig::new(self.hidden_dim, self.embed_dim).init(device),
            activation: self.activation,
        }
    }
}

impl MlpBlock {
    /// Applies the network to the last axis. It computes in the float type of the weights and
    /// returns the float type of the input.
    ///
    /// # Shapes
    ///
    /// - input: `[.., embed_dim]`
    /// - output: `[.., embed_dim]`
    ///
    /// # Panics
    ///
    /// If the last axis of `input` is not `embed_dim`.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        self.forward_adapted(input, &Unadapted)
    }

    /// [`forward`](Self::forward) with adapted layers.
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn forward_adapted<const D: usize>(
        &self,
        input: Tensor<D>,
        adaptation: &impl BlockAdaptation,
    ) -> Tensor<D> {
        let shape = input.dims();
        let dtype = FloatDType::from(input.dtype());
        let input = flatten_leading(cast_like(input, &self.lin1.weight));
        let hidden = linear(&self.lin1, input.clone());
        let hidden = adaptation.linear(AdaptedLayer::MlpHidden, &input, hidden);
        let hidden = self.activation.forward(hidden);
        let output = linear(&self.lin2, hidden.clone());
        let output = adaptation.linear(AdaptedLayer::MlpOutput, &hidden, output);
        output.reshape(shape).cast(dtype)
    }
}
