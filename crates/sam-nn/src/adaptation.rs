use crate::QkvOrder;
use burn::tensor::Tensor;

/// What a fine-tuning method adds to a transformer block of an image encoder. By default nothing.
pub trait BlockAdaptation {
    /// Adapts the block's input.
    ///
    /// # Shapes
    ///
    /// - tokens, output: `[B, G, G, C]`
    fn input(&self, tokens: Tensor<4>) -> Tensor<4> {
        tokens
    }

    /// Adapts the output of a linear layer.
    ///
    /// # Shapes
    ///
    /// - input: the layer's input, `[N, inputs]`
    /// - output: `[N, outputs]`
    fn linear(&self, layer: AdaptedLayer, input: &Tensor<2>, output: Tensor<2>) -> Tensor<2> {
        let _ = (layer, input);
        output
    }

    /// Adapts the output of attention, before the sum with the block's input.
    ///
    /// # Shapes
    ///
    /// - output: `[B, G, G, C]`
    fn attention(&self, output: Tensor<4>) -> Tensor<4> {
        output
    }

    /// Adapts the output of the MLP, before the sum with its input. `normed` is what the MLP's norm
    /// returned.
    ///
    /// # Shapes
    ///
    /// - normed, output: `[B, G, G, C]`
    fn mlp(&self, normed: &Tensor<4>, output: Tensor<4>) -> Tensor<4> {
        let _ = normed;
        output
    }
}

/// A linear layer of a transformer block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdaptedLayer {
    /// Queries, keys and values of all heads, `C -> 3 C`.
    Qkv {
        /// The order of the layer's outputs.
        order: QkvOrder,
        /// Number of heads.
        heads: usize,
    },
    /// The MLP's first layer.
    MlpHidden,
    /// The MLP's second layer.
    MlpOutput,
}

/// An unchanged block.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unadapted;

impl BlockAdaptation for Unadapted {}

impl<A: BlockAdaptation> BlockAdaptation for Option<A> {
    fn input(&self, tokens: Tensor<4>) -> Tensor<4> {
        match self {
            Some(adaptation) => adaptation.input(tokens),
            None => tokens,
        }
    }

    fn linear(&self, layer: AdaptedLayer, input: &Tensor<2>, output: Tensor<2>) -> Tensor<2> {
        match self {
            Some(adaptation) => adaptation.linear(layer, input, output),
            None => output,
        }
    }

    fn attention(&self, output: Tensor<4>) -> Tensor<4> {
        match self {
            Some(adaptation) => adaptation.attention(output),
            None => output,
        }
    }

    fn mlp(&self, normed: &Tensor<4>, output: Tensor<4>) -> Tensor<4> {
        match self {
            Some(adaptation) => adaptation.mlp(normed, output),
            None => output,
        }
    }
}
