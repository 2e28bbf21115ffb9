use crate::encoder::{add_positions, patches};
use crate::{Block, Neck, SamEncoder};
use burn::module::{Module, Param};
use burn::nn::conv::Conv2d;
use burn::tensor::Tensor;
use sam_lst_sam_nn::{BlockAdaptation, Unadapted};

/// A part of an encoder, whose blocks may be adapted: the layers up to a block, those from it on
/// ([`SamEncoder::split`]), or all of them.
#[derive(Module, Debug)]
pub struct SamEncoderPart {
    /// 16 x 16 convolution that projects each patch to a token; `None` in a part that starts at a
    /// block.
    pub patch_embed: Option<Conv2d>,
    /// Absolute position embeddings; with the patch convolution.
    pub pos_embed: Option<Param<Tensor<4>>>,
    /// The blocks, at their indices in the encoder; `None` for those of the part before.
    pub blocks: Vec<Option<Block>>,
    /// Projects the tokens to the image embedding; `None` in a part that ends before a block.
    pub neck: Option<Neck>,
    pub(crate) width: usize,
}

impl From<SamEncoder> for SamEncoderPart {
    fn from(encoder: SamEncoder) -> Self {
        let SamEncoder { patch_embed, pos_embed, blocks, neck } = encoder;
        Self {
            width: patch_embed.weight.dims()[0],
            patch_embed: Some(patch_embed),
            pos_embed: Some(pos_embed),
            blocks: blocks.into_iter().map(Some).collect(),
            neck: Some(neck),
        }
    }
}

impl SamEncoderPart {
    /// Channels of the output: those of the neck or, without it, of a token.
    pub fn channels(&self) -> usize {
        self.neck.as_ref().map_or(self.width, Neck::channels)
    }

    /// Applies the part.
    ///
    /// # Shapes
    ///
    /// - input: images `[B, 3, S, S]`, or tokens `[B, C, G, G]` in a part that starts at a block
    /// - output: image embeddings `[B, out_channels, G, G]`, or tokens `[B, C, G, G]` in a part that
    ///   ends before a block
    ///
    /// # Panics
    ///
    /// If the input is of another shape.
    pub fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        self.forward_adapted(input, |_| Unadapted)
    }

    /// [`forward`](Self::forward) with what a fine-tuning method adds to the blocks.
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn forward_adapted<A: BlockAdaptation>(
        &self,
        input: Tensor<4>,
        adaptation: impl Fn(usize) -> A,
    ) -> Tensor<4> {
        let tokens = match (&self.patch_embed, &self.pos_embed) {
            (Some(convolution), Some(positions)) => {
                add_positions(patches(convolution, input), positions)
            }
            _ => input.permute([0, 2, 3, 1]), // [B, G, G, C]
        };
        let blocks = self.blocks.iter().enumerate();
        let tokens = blocks.fold(tokens, |tokens, (index, block)| match block {
            Some(block) => block.forward_adapted(tokens, &adaptation(index)),
            None => tokens,
        });
        match &self.neck {
            Some(neck) => neck.forward(tokens),
            None => tokens.permute([0, 3, 1, 2]),
        }
    }

    /// Projects patches of images to tokens, without position embeddings.
    ///
    /// # Shapes
    ///
    /// - image: `[B, 3, S, S]`
    /// - output: `[B, S / 16, S / 16, C]`
    ///
    /// # Panics
    ///
    /// If the part starts at a block, or the image is of another shape.
    pub fn patches(&self, image: Tensor<4>) -> Tensor<4> {
        match &self.patch_embed {
            Some(convolution) => patches(convolution, image),
            None => panic!("the part of the encoder starts at a block"),
        }
    }
}
