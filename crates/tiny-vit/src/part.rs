use crate::{PatchEmbed, Stage, TinyVit};
use burn::module::Module;
use burn::tensor::Tensor;
use sam_lst_sam_nn::{BlockAdaptation, Neck, Unadapted};

/// A part of an encoder, whose transformer blocks may be adapted: the layers up to a stage, those
/// from it on ([`TinyVitConfig::init_split`](crate::TinyVitConfig::init_split)), or all of them.
#[derive(Module, Debug)]
pub struct TinyVitPart {
    /// Projects pixels or patches to the first stage's width; `None` in a part that starts at a
    /// stage.
    pub patch_embed: Option<PatchEmbed>,
    /// The stages, at their indices in the encoder; `None` for those of the part before.
    pub layers: Vec<Option<Stage>>,
    /// Projects the last stage's tokens to the image embedding; `None` in a part that ends before a
    /// stage.
    pub neck: Option<Neck>,
    channels: usize,
    stride: usize,
    /// Transformer blocks of the stages before this part.
    blocks_before: usize,
}

impl From<TinyVit> for TinyVitPart {
    fn from(encoder: TinyVit) -> Self {
        let stride = encoder.stride();
        let TinyVit { patch_embed, layers, neck, .. } = encoder;
        Self {
            patch_embed: Some(patch_embed),
            channels: neck.channels(),
            layers: layers.into_iter().map(Some).collect(),
            neck: Some(neck),
            stride,
            blocks_before: 0,
        }
    }
}

impl TinyVit {
    /// Splits the encoder before a stage: the first part maps images to the input of that stage, the
    /// second that input to image embeddings. `channels` and `stride` are those of the stage's
    /// input.
    pub(crate) fn split_before(
        self,
        stage: usize,
        channels: usize,
        stride: usize,
    ) -> [TinyVitPart; 2] {
        let whole_stride = self.stride();
        let Self { patch_embed, layers, neck, .. } = self;
        let blocks_before = layers[..stage].iter().map(Stage::transformer_blocks).sum();
        let mut layers: Vec<Option<Stage>> = layers.into_iter().map(Some).collect();
        let first = layers[..stage].iter_mut().map(Option::take).collect();
        [
            TinyVitPart {
                patch_embed: Some(patch_embed),
                layers: first,
                neck: None,
                channels,
                stride,
                blocks_before: 0,
            },
            TinyVitPart {
                patch_embed: None,
                channels: neck.channels(),
                layers,
                neck: Some(neck),
                stride: whole_stride,
                blocks_before,
            },
        ]
    }
}

impl TinyVitPart {
    /// Channels of the output.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Pixels of the image along one side of a pixel of the output.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Applies the part.
    ///
    /// # Shapes
    ///
    /// - input: images `[B, 3, S, S]`, or tokens `[B, C, G, G]` in a part that starts at a stage
    /// - output: image embeddings `[B, out_channels, G, G]`, or tokens `[B, C, G, G]` in a part that
    ///   ends before a stage
    ///
    /// # Panics
    ///
    /// If the input is of another shape.
    pub fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        self.forward_adapted(input, |_| Unadapted)
    }

    /// [`forward`](Self::forward) with what a fine-tuning method adds to the transformer blocks,
    /// which are counted over all stages.
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn forward_adapted<A: BlockAdaptation>(
        &self,
        input: Tensor<4>,
        adaptation: impl Fn(usize) -> A,
    ) -> Tensor<4> {
        let mut tokens = input.permute([0, 2, 3, 1]);
        if let Some(patch_embed) = &self.patch_embed {
            tokens = patch_embed.forward(tokens);
        }
        let mut block = self.blocks_before;
        for stage in self.layers.iter().flatten() {
            tokens = stage.forward_adapted(tokens, |index| adaptation(block + index));
            block += stage.transformer_blocks();
        }
        match &self.neck {
            Some(neck) => neck.forward(tokens),
            None => tokens.permute([0, 3, 1, 2]),
        }
    }
}
