use crate::PixelScale;
use crate::weights::{self, StateDict, WeightsError};
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use sam_encoder::{SamEncoder, SamEncoderConfig};
use std::path::Path;
use std::sync::OnceLock;

/// The frozen half: SAM's image encoder, off the tape for ever.
///
/// It is no [`Module`], so that no optimizer, recorder or checkpoint can take it for something that trains. Its
/// parameters live on a device without autodiff, whichever device it was made for, and so do its embeddings.
#[derive(Debug, Clone)]
pub struct Foundation {
    encoder: SamEncoder,
    pixel_scale: PixelScale,
    sha256: OnceLock<String>,
}

impl Foundation {
    /// Freezes an encoder.
    pub fn new(encoder: SamEncoder, pixel_scale: PixelScale) -> Self {
        let on_autodiff = encoder.devices().iter().any(Device::is_autodiff);
        let encoder = if on_autodiff {
            encoder.valid()
        } else {
            encoder
        };
        Self {
            encoder: encoder.no_grad(),
            pixel_scale,
            sha256: OnceLock::new(),
        }
    }

    /// Loads SAM's image encoder from a checkpoint, `.pth` or safetensors. Half-precision weights become `f32`.
    ///
    /// # Errors
    ///
    /// A [`WeightsError`] that names the file and what is wrong with it.
    pub fn load(
        config: &SamEncoderConfig,
        pixel_scale: PixelScale,
        checkpoint: impl AsRef<Path>,
        device: &Device,
    ) -> Result<Self, WeightsError> {
        let source = StateDict::open(checkpoint)?;
        Self::from_state_dict(config, pixel_scale, &source, device)
    }

    pub(crate) fn from_state_dict(
        config: &SamEncoderConfig,
        pixel_scale: PixelScale,
        source: &StateDict,
        device: &Device,
    ) -> Result<Self, WeightsError> {
        weights::expect_variant(source, config)?;
        // Not yet initialised: its memory is taken tensor by tensor, as the file is read.
        let encoder = config.init(&device.clone().inner());
        let encoder = weights::load(encoder, source, &weights::IMAGE_ENCODER)?;
        Ok(Self::new(encoder, pixel_scale))
    }

    /// Embeds images.
    ///
    /// # Shapes
    ///
    /// - image: `[B, 3, S, S]`, pixels in `[0, 1]`, on any device
    /// - output: `[B, C, S / 16, S / 16]`, on a device without autodiff
    ///
    /// # Panics
    ///
    /// If the image is not square, has other than 3 channels, or its side is no positive multiple of 16.
    pub fn embed(&self, image: Tensor<4>) -> Tensor<4> {
        self.encoder.forward(self.pixel_scale.apply(image.inner()))
    }

    /// Where it computes: a device without autodiff.
    pub fn device(&self) -> Device {
        let devices = self.encoder.devices();
        devices
            .into_iter()
            .next()
            .expect("an encoder has parameters")
    }

    /// The encoder.
    pub fn encoder(&self) -> &SamEncoder {
        &self.encoder
    }

    /// SHA-256 of the weights, in hexadecimal: what a ladder checkpoint is bound to. It depends on names and values
    /// alone, not on the file that they came from. See [`weights`](crate::weights) for how it is worked out.
    pub fn weights_sha256(&self) -> &str {
        self.sha256.get_or_init(|| {
            let tensors = weights::collect(&self.encoder, weights::IMAGE_ENCODER.prefix);
            weights::sha256(tensors)
        })
    }
}
