use crate::{Activation, in_precision_of, linear, rows};
use burn::config::Config;
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, FloatDType, Tensor};

/// Configuration of [`Mlp`].
#[derive(Config, Debug)]
pub struct MlpConfig {
    /// Width of input and output.
    pub embed_dim: usize,
    /// Width between the two layers.
    pub hidden_dim: usize,
    /// Nonlinearity between the two layers.
    pub activation: Activation,
}

/// The transformer blocks' feed-forward network, SAM's `MLPBlock`: `lin2(activation(lin1(x)))`.
#[derive(Module, Debug)]
pub struct Mlp {
    /// Expands, `embed_dim -> hidden_dim`.
    pub lin1: Linear,
    /// Contracts, `hidden_dim -> embed_dim`.
    pub lin2: Linear,
    #[module(skip)]
    activation: Activation,
}

impl MlpConfig {
    /// Creates the network with Burn's default initialisation, which is PyTorch's.
    pub fn init(&self, device: &Device) -> Mlp {
        Mlp {
            lin1: LinearConfig::new(self.embed_dim, self.hidden_dim).init(device),
            lin2: LinearConfig::new(self.hidden_dim, self.embed_dim).init(device),
            activation: self.activation,
        }
    }
}

impl Mlp {
    /// Applies the network to the last axis, in the precision of the weights, and gives back that of the input.
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
        let shape = input.dims();
        let dtype = FloatDType::from(input.dtype());
        let input = in_precision_of(input, &self.lin1.weight);
        let hidden = linear(&self.lin1, rows(input));
        linear(&self.lin2, self.activation.forward(hidden))
            .reshape(shape)
            .cast(dtype)
    }
}
