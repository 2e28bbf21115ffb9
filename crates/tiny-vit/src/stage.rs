use crate::{Block, ConvBn, ConvBnConfig};
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use sam_lst_sam_nn::{BlockAdaptation, Unadapted, gelu};

/// A stage of the encoder: blocks at one grid size, then, except in the last stage, a reduction of
/// the grid.
#[derive(Module, Debug)]
pub enum Stage {
    /// The first stage, of inverted residual convolutions.
    Conv(ConvStage),
    /// A stage of transformer blocks.
    Attention(AttentionStage),
}

/// A stage of [`MbConv`] blocks.
#[derive(Module, Debug)]
pub struct ConvStage {
    /// The blocks.
    pub blocks: Vec<MbConv>,
    /// Reduces the grid after the blocks.
    pub downsample: Option<PatchMerging>,
}

/// A stage of transformer blocks.
#[derive(Module, Debug)]
pub struct AttentionStage {
    /// The blocks.
    pub blocks: Vec<Block>,
    /// Reduces the grid after the blocks.
    pub downsample: Option<PatchMerging>,
}

impl Stage {
    /// Applies the stage.
    ///
    /// # Shapes
    ///
    /// - input: `[B, G, G, C]`
    /// - output: `[B, G', G', C']`, the next stage's grid and width
    pub fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        self.forward_adapted(input, |_| Unadapted)
    }

    /// Channels of the blocks' features.
    pub fn channels(&self) -> usize {
        match self {
            Self::Conv(stage) => stage.blocks[0].conv3.c.weight.dims()[0],
            Self::Attention(stage) => stage.blocks[0].local_conv.c.weight.dims()[0],
        }
    }

    /// Number of transformer blocks.
    pub fn transformer_blocks(&self) -> usize {
        match self {
            Self::Conv(_) => 0,
            Self::Attention(stage) => stage.blocks.len(),
        }
    }

    /// [`forward`](Self::forward) with what a fine-tuning method adds to the transformer blocks.
    pub fn forward_adapted<A: BlockAdaptation>(
        &self,
        input: Tensor<4>,
        adaptation: impl Fn(usize) -> A,
    ) -> Tensor<4> {
        self.reduce(self.adapted_blocks(input, adaptation))
    }

    /// The blocks alone.
    pub(crate) fn blocks(&self, input: Tensor<4>) -> Tensor<4> {
        self.adapted_blocks(input, |_| Unadapted)
    }

    fn adapted_blocks<A: BlockAdaptation>(
        &self,
        input: Tensor<4>,
        adaptation: impl Fn(usize) -> A,
    ) -> Tensor<4> {
        match self {
            Self::Conv(stage) => stage.blocks.iter().fold(input, |x, block| block.forward(x)),
            Self::Attention(stage) => {
                let blocks = stage.blocks.iter().enumerate();
                blocks.fold(input, |x, (index, block)| block.forward_adapted(x, &adaptation(index)))
            }
        }
    }

    /// The reduction of the grid after the blocks; in the last stage, the features as they are.
    pub(crate) fn reduce(&self, features: Tensor<4>) -> Tensor<4> {
        let (Self::Conv(ConvStage { downsample, .. })
        | Self::Attention(AttentionStage { downsample, .. })) = self;
        match downsample {
            Some(downsample) => downsample.forward(features),
            None => features,
        }
    }
}

/// An inverted residual block: `gelu(x + conv3(gelu(conv2(gelu(conv1(x))))))`.
#[derive(Module, Debug)]
pub struct MbConv {
    /// Expands the channels, 1 x 1.
    pub conv1: ConvBn,
    /// Depthwise 3 x 3.
    pub conv2: ConvBn,
    /// Contracts the channels, 1 x 1.
    pub conv3: ConvBn,
}

impl MbConv {
    /// Creates the block with random weights; `expand_ratio` times as many channels inside as
    /// outside.
    pub fn init(channels: usize, expand_ratio: usize, device: &Device) -> Self {
        let hidden = expand_ratio * channels;
        Self {
            conv1: ConvBnConfig::new([channels, hidden]).init(device),
            conv2: ConvBnConfig::depthwise(hidden).init(device),
            conv3: ConvBnConfig::new([hidden, channels]).init(device),
        }
    }

    /// Applies the block.
    ///
    /// # Shapes
    ///
    /// - input, output: `[B, G, G, C]`
    ///
    /// # Panics
    ///
    /// If the last axis of `input` is not `C`.
    pub fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let hidden = gelu(self.conv1.forward(input.clone()));
        let hidden = gelu(self.conv2.forward(hidden));
        gelu(input + self.conv3.forward(hidden))
    }
}

/// Changes width and, with stride 2, grid between two stages: `conv3(gelu(conv2(gelu(conv1(x)))))`.
#[derive(Module, Debug)]
pub struct PatchMerging {
    /// Changes the number of channels, 1 x 1.
    pub conv1: ConvBn,
    /// Depthwise 3 x 3 with the stride.
    pub conv2: ConvBn,
    /// 1 x 1.
    pub conv3: ConvBn,
}

impl PatchMerging {
    /// Creates the layers with random weights.
    pub fn init([channels_in, channels_out]: [usize; 2], stride: usize, device: &Device) -> Self {
        Self {
            conv1: ConvBnConfig::new([channels_in, channels_out]).init(device),
            conv2: ConvBnConfig::depthwise(channels_out).with_stride(stride).init(device),
            conv3: ConvBnConfig::new([channels_out; 2]).init(device),
        }
    }

    /// Applies the layers.
    ///
    /// # Shapes
    ///
    /// - input: `[B, G, G, channels in]`
    /// - output: `[B, ceil(G / stride), ceil(G / stride), channels out]`
    ///
    /// # Panics
    ///
    /// If the last axis of `input` is not the number of input channels.
    pub fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let features = gelu(self.conv1.forward(input));
        self.conv3.forward(gelu(self.conv2.forward(features)))
    }
}
