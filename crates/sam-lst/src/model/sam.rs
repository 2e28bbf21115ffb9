use super::variant::expect_variant;
use crate::weights::{self, StateDict, WeightsError};
use burn::config::Config;
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use sam_lst_mask_decoder::{
    MaskDecoder, MaskDecoderConfig, MaskPrediction, PromptEncoder, PromptEncoderConfig, Prompts,
};
use sam_lst_sam_encoder::{SamEncoder, SamEncoderConfig};
use std::path::Path;

/// Configuration of [`Sam`].
#[derive(Config, Debug, PartialEq)]
pub struct SamConfig {
    /// The image encoder.
    pub encoder: SamEncoderConfig,
    /// The mask decoder; the published one predicts 4 masks.
    pub decoder: MaskDecoderConfig,
}

/// The original SAM, built from the same crates as the ladder: predicts masks from an image and
/// prompts.
#[derive(Module, Debug)]
pub struct Sam {
    /// Image encoder.
    pub image_encoder: SamEncoder,
    /// Prompt encoder.
    pub prompt_encoder: PromptEncoder,
    /// Mask decoder.
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

    /// Loads a SAM checkpoint, `.pth` or safetensors, with every part of the model.
    ///
    /// # Errors
    ///
    /// A [`WeightsError`] that names the file and the cause.
    pub fn load(&self, checkpoint: impl AsRef<Path>, device: &Device) -> Result<Sam, WeightsError> {
        let source = StateDict::open(checkpoint)?;
        expect_variant(&source, &self.encoder)?;
        let Sam { image_encoder, prompt_encoder, mask_decoder } = self.init(device);
        Ok(Sam {
            image_encoder: weights::load(image_encoder, &source, &weights::IMAGE_ENCODER)?,
            prompt_encoder: weights::load(prompt_encoder, &source, &weights::PROMPT_ENCODER)?,
            mask_decoder: weights::load(mask_decoder, &source, &weights::MASK_DECODER)?,
        })
    }
}

impl Sam {
    /// Predicts masks for images and prompts. [`MaskPrediction::multiple`] and
    /// [`MaskPrediction::single`] select among them.
    ///
    /// Pixels are not normalised; SAM was trained with
    /// [`PixelScale::Sam`](crate::model::PixelScale::Sam).
    ///
    /// # Shapes
    ///
    /// - image: `[B, 3, S, S]`
    /// - logits: `[B, K, S / 4, S / 4]`, iou: `[B, K]`
    ///
    /// # Panics
    ///
    /// If the shapes of image and prompts are incompatible with each other or with the encoder.
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
