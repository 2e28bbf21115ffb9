use super::{EncoderConfig, Foundation, PixelScale};
use crate::weights::{self, StateDict, WeightsError};
use burn::config::Config;
use burn::tensor::{Device, Tensor};
use sam_lst_mask_decoder::{
    MaskDecoder, MaskDecoderConfig, MaskPrediction, PromptEncoder, PromptEncoderConfig, Prompts,
};
use sam_lst_sam_encoder::SamEncoderConfig;
use sam_lst_tiny_vit::TinyVitConfig;
use std::path::Path;

/// Configuration of [`Sam`].
#[derive(Config, Debug, PartialEq)]
pub struct SamConfig {
    /// The image encoder.
    pub encoder: EncoderConfig,
    /// The mask decoder; the published one predicts 4 masks.
    #[config(default = "MaskDecoderConfig::new(4)")]
    pub decoder: MaskDecoderConfig,
    /// Normalisation of the image.
    #[config(default = "PixelScale::Sam")]
    pub pixel_scale: PixelScale,
    /// Side of the input in pixels for which the model was trained.
    #[config(default = 1024)]
    pub input_size: usize,
}

/// The original SAM, built from the same crates as the ladder: predicts masks from an image and
/// prompts.
#[derive(Debug, Clone)]
pub struct Sam {
    /// Image encoder and normalisation of the image.
    pub foundation: Foundation,
    /// Prompt encoder.
    pub prompt_encoder: PromptEncoder,
    /// Mask decoder.
    pub mask_decoder: MaskDecoder,
    /// Side of the input in pixels for which the model was trained.
    pub input_size: usize,
}

impl SamConfig {
    /// SAM ViT-B.
    pub fn vit_b() -> Self {
        Self::new(SamEncoderConfig::vit_b().into())
    }

    /// SAM ViT-L.
    pub fn vit_l() -> Self {
        Self::new(SamEncoderConfig::vit_l().into())
    }

    /// SAM ViT-H.
    pub fn vit_h() -> Self {
        Self::new(SamEncoderConfig::vit_h().into())
    }

    /// MedSAM.
    pub fn med_sam() -> Self {
        Self::vit_b().with_pixel_scale(PixelScale::MinMax)
    }

    /// MobileSAM.
    pub fn mobile_sam() -> Self {
        Self::new(TinyVitConfig::mobile_sam().into())
    }

    /// LiteMedSAM.
    pub fn lite_medsam() -> Self {
        Self::new(TinyVitConfig::lite_medsam().into())
            .with_pixel_scale(PixelScale::MinMax)
            .with_input_size(256)
    }

    /// The model with an image encoder, which [`EncoderConfig::recognize`] finds in a checkpoint:
    /// LiteMedSAM, or a model with SAM's normalisation at the size of its position embeddings.
    pub fn for_encoder(encoder: EncoderConfig) -> Self {
        let lite_medsam = Self::lite_medsam();
        match &encoder {
            _ if encoder == lite_medsam.encoder => lite_medsam,
            EncoderConfig::Vit(config) => {
                let input_size = config.pretrained_size;
                Self::new(encoder).with_input_size(input_size)
            }
            EncoderConfig::TinyVit(_) | EncoderConfig::Custom(_) => Self::new(encoder),
        }
    }

    /// Loads a checkpoint, `.pth` or safetensors, with every part of the model.
    ///
    /// # Errors
    ///
    /// A [`WeightsError`] that names the file and the cause.
    pub fn load(&self, checkpoint: impl AsRef<Path>, device: &Device) -> Result<Sam, WeightsError> {
        self.load_state_dict(&StateDict::open(checkpoint)?, device)
    }

    pub(crate) fn load_state_dict(
        &self,
        source: &StateDict,
        device: &Device,
    ) -> Result<Sam, WeightsError> {
        let foundation =
            Foundation::from_state_dict(&self.encoder, self.pixel_scale, source, device)?;
        let prompt_encoder = PromptEncoderConfig::new()
            .with_embed_dim(self.decoder.embed_dim)
            .with_stride(self.encoder.stride())
            .init(device);
        let mask_decoder = self.decoder.init(device);
        Ok(Sam {
            foundation,
            prompt_encoder: weights::load(prompt_encoder, source, &weights::PROMPT_ENCODER)?,
            mask_decoder: weights::load(mask_decoder, source, &weights::MASK_DECODER)?,
            input_size: self.input_size,
        })
    }
}

impl Sam {
    /// Predicts masks for images and prompts. [`MaskPrediction::multiple`] and
    /// [`MaskPrediction::single`] select among them.
    ///
    /// # Shapes
    ///
    /// - image: `[B, 3, S, S]`, pixels in `[0, 1]`
    /// - logits: `[B, K, 4 G, 4 G]`, iou: `[B, K]`
    ///
    /// # Panics
    ///
    /// If the shapes of image and prompts are incompatible with each other or with the encoder.
    pub fn forward(&self, image: Tensor<4>, prompts: &Prompts) -> MaskPrediction {
        self.predict(self.foundation.embed(image), prompts)
    }

    /// Predicts masks for image embeddings and prompts.
    ///
    /// # Shapes
    ///
    /// - embedding: `[B, C, G, G]`
    /// - logits: `[B, K, 4 G, 4 G]`, iou: `[B, K]`
    ///
    /// # Panics
    ///
    /// If the shapes of embedding and prompts are incompatible.
    pub fn predict(&self, embedding: Tensor<4>, prompts: &Prompts) -> MaskPrediction {
        let [_, _, _, grid] = embedding.dims();
        self.mask_decoder.forward(
            embedding,
            self.prompt_encoder.image_positions(grid),
            self.prompt_encoder.forward(prompts, grid),
        )
    }
}
