use burn::config::Config;
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use sam_lst_sam_nn::{BlockAdaptation, flatten_leading, gelu, linear};

/// Configuration of [`BlockAdapters`].
#[derive(Config, Debug, PartialEq)]
pub struct BlockAdaptersConfig {
    /// Width `C` of the block.
    pub embed_dim: usize,
    /// Width of the bottlenecks; `C / 4` in Medical SAM Adapter.
    pub bottleneck: usize,
}

/// A bottleneck, `up(gelu(down(x)))` (Houlsby et al., arXiv 1902.00751).
#[derive(Module, Debug)]
pub struct Adapter {
    /// Projects to the bottleneck.
    pub down: Linear,
    /// Projects back.
    pub up: Linear,
}

/// The adapters of a block: one after attention, with a shortcut, and one beside the MLP, of which
/// half is added to the MLP's output.
#[derive(Module, Debug)]
pub struct BlockAdapters {
    /// After attention.
    pub attention: Adapter,
    /// Beside the MLP.
    pub mlp: Adapter,
}

/// Weight of the adapter beside the MLP, as in Medical SAM Adapter.
const MLP_SCALE: f64 = 0.5;

impl BlockAdaptersConfig {
    /// Creates the adapters with PyTorch's default initialisation, as in Medical SAM Adapter.
    pub fn init(&self, device: &Device) -> BlockAdapters {
        let Self { embed_dim, bottleneck } = *self;
        let adapter = || Adapter {
            down: LinearConfig::new(embed_dim, bottleneck).init(device),
            up: LinearConfig::new(bottleneck, embed_dim).init(device),
        };
        BlockAdapters { attention: adapter(), mlp: adapter() }
    }
}

impl Adapter {
    /// Applies the bottleneck to the last axis, without a shortcut.
    ///
    /// # Shapes
    ///
    /// - tokens, output: `[B, G, G, C]`
    ///
    /// # Panics
    ///
    /// If the last axis of `tokens` is not `C`.
    pub fn forward(&self, tokens: Tensor<4>) -> Tensor<4> {
        let shape = tokens.dims();
        let hidden = gelu(linear(&self.down, flatten_leading(tokens)));
        linear(&self.up, hidden).reshape(shape)
    }
}

impl BlockAdaptation for &BlockAdapters {
    fn attention(&self, output: Tensor<4>) -> Tensor<4> {
        output.clone() + self.attention.forward(output)
    }

    fn mlp(&self, normed: &Tensor<4>, output: Tensor<4>) -> Tensor<4> {
        output + self.mlp.forward(normed.clone()) * MLP_SCALE
    }
}
