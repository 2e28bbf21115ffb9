use crate::conv_block::ConvNorm;
use burn::module::Module;
use burn::tensor::activation::{relu, sigmoid};
use burn::tensor::{Device, Tensor};

/// An attention gate: weights each pixel of a skip connection by what the coarser level found there
/// (Oktay et al., arXiv 1804.03999, equations 1 and 2).
///
/// `skip * sigmoid(psi(relu(W_g gate + W_x skip)))`, where each of the 1 x 1 convolutions is followed
/// by batch norm. Channels are the last axis.
#[derive(Module, Debug)]
pub struct AttentionGate {
    /// `W_g`, of the gating signal.
    pub gate: ConvNorm,
    /// `W_x`, of the skip connection.
    pub skip: ConvNorm,
    /// `psi`, to one channel.
    pub psi: ConvNorm,
}

impl AttentionGate {
    /// Creates the gate with random weights, for a gating signal and a skip connection with these
    /// numbers of channels.
    pub(crate) fn init(gate: usize, skip: usize, device: &Device) -> Self {
        let hidden = (skip / 2).max(1);
        Self {
            gate: ConvNorm::init([gate, hidden], 1, 1, device),
            skip: ConvNorm::init([skip, hidden], 1, 1, device),
            psi: ConvNorm::init([hidden, 1], 1, 1, device),
        }
    }

    /// Weights the pixels of `skip`.
    ///
    /// # Shapes
    ///
    /// - gate: `[B, H, W, channels of the gating signal]`
    /// - skip, output: `[B, H, W, C]`
    ///
    /// # Panics
    ///
    /// If the shapes do not match.
    pub fn forward(&self, gate: Tensor<4>, skip: Tensor<4>) -> Tensor<4> {
        let sum = self.gate.forward(gate, false) + self.skip.forward(skip.clone(), false);
        skip * sigmoid(self.psi.forward(relu(sum), false))
    }
}
