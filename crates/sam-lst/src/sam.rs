use crate::weights::{self, StateDict, WeightsError};
use burn::config::Config;
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use mask_decoder::{
    MaskDecoder, MaskDecoderConfig, MaskPrediction, PromptEncoder, PromptEncoderConfig, Prompts,
};
use sam_encoder::{SamEncoder, SamEncoderConfig};
use std::path::Path;

/// Configuration of [`Sam`].
#[derive(Config, Debug, PartialEq)]
pub struct SamConfig {
    /// The image encoder.
    pub encoder: SamEncoderConfig,
    /// The mask decoder; the published one has 4 masks.
    pub decoder: MaskDecoderConfig,
}

/// The unmodified SAM, on the same crates as the ladder: an image and prompts make masks.
#[derive(Module, Debug)]
pub struct Sam {
    /// Embeds the image.
    pub image_encoder: SamEncoder,
    /// Embeds the prompts.
    pub prompt_encoder: PromptEncoder,
    /// Draws the masks.
    pub mask_decoder: MaskDecoder,
}

impl SamConfig {
    /// SAM ViT-B.
    pub fn vit_b() -> Self {
        Self::new(SamEncoderConfig::vit_b(), MaskDecoderConfig::new(4))
    }

    /// SAM ViT-L.
    pub fn vit_l() -> Self {
        Self::new(SamEncoderConfig::vit_l(), MaskDecoderConfig::new(4))
    }

    /// SAM ViT-H.
    pub fn vit_h() -> Self {
        Self::new(SamEncoderConfig::vit_h(), MaskDecoderConfig::new(4))
    }

    /// Creates the model with random weights.
    ///
    /// # Panics
    ///
    /// As [`SamEncoderConfig::init`] and [`MaskDecoderConfig::init`].
    pub fn init(&self, device: &Device) -> Sam {
        Sam {
            image_encoder: self.encoder.init(device),
            prompt_encoder: PromptEncoderConfig::new()
                .with_embed_dim(self.decoder.embed_dim)
                .init(device),
            mask_decoder: self.decoder.init(device),
        }
    }

    /// Loads the whole of SAM's checkpoint, `.pth` or safetensors.
    ///
    /// # Errors
    ///
    /// A [`WeightsError`] that names the file and what is wrong with it.
    pub fn load(&self, checkpoint: impl AsRef<Path>, device: &Device) -> Result<Sam, WeightsError> {
        let source = StateDict::open(checkpoint)?;
        weights::expect_variant(&source, &self.encoder)?;
        let Sam {
            image_encoder,
            prompt_encoder,
            mask_decoder,
        } = self.init(device);
        Ok(Sam {
            image_encoder: weights::load(image_encoder, &source, &weights::IMAGE_ENCODER)?,
            prompt_encoder: weights::load(prompt_encoder, &source, &weights::PROMPT_ENCODER)?,
            mask_decoder: weights::load(mask_decoder, &source, &weights::MASK_DECODER)?,
        })
    }
}

impl Sam {
    /// Draws masks for images and prompts. Keep [`MaskPrediction::multiple`] or [`MaskPrediction::single`] of them.
    ///
    /// Pixels are taken as they are; SAM was trained with [`PixelScale::Sam`](crate::PixelScale::Sam).
    ///
    /// # Shapes
    ///
    /// - image: `[B, 3, S, S]`
    /// - logits: `[B, K, S / 4, S / 4]`, iou: `[B, K]`
    ///
    /// # Panics
    ///
    /// If image and prompts do not fit each other or the encoder.
    pub fn forward(&self, image: Tensor<4>, prompts: &Prompts) -> MaskPrediction {
        let embedding = self.image_encoder.forward(image); // [B, C, G, G]
        let [_, _, _, grid] = embedding.dims();
        self.mask_decoder.forward(
            embedding,
            self.prompt_encoder.image_positions(grid),
            self.prompt_encoder.forward(prompts, grid),
        )
    }
}
