use crate::PixelScale;
use crate::weights::{self, StateDict, WeightsError};
use burn::module::Module;
use burn::tensor::{Device, FloatDType, Tensor};
use sam_encoder::{SamEncoder, SamEncoderConfig};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// What the foundation computes its products in. The ladder and the optimizer always compute in 32 bits.
///
/// In half precision the weights take half the memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FoundationPrecision {
    /// 32 bits. A GPU may round the factors of a product to TF32, as it does for PyTorch where that is allowed.
    #[default]
    F32,
    /// 16 bits, 5 of them exponent.
    F16,
    /// 16 bits, 8 of them exponent, as 32-bit floats have.
    BF16,
}

impl FoundationPrecision {
    fn dtype(self) -> FloatDType {
        match self {
            Self::F32 => FloatDType::F32,
            Self::F16 => FloatDType::F16,
            Self::BF16 => FloatDType::BF16,
        }
    }
}

/// A precision that a device does not compute in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{device} does not compute in {precision:?}; choose another precision, or another device")]
pub struct PrecisionError {
    /// The device.
    pub device: String,
    /// What was asked of it.
    pub precision: FoundationPrecision,
}

/// The frozen half: SAM's image encoder, off the tape for ever.
///
/// It is no [`Module`], so that no optimizer, recorder or checkpoint can take it for something that trains. Its
/// parameters live on a device without autodiff, whichever device it was made for, and so do its embeddings.
#[derive(Debug, Clone)]
pub struct Foundation {
    /// None while the weights are left on disk. Clones share it.
    encoder: Arc<OnceLock<SamEncoder>>,
    /// What the weights were loaded from, and can be again.
    file: Option<(SamEncoderConfig, PathBuf)>,
    device: Device,
    pixel_scale: PixelScale,
    precision: FoundationPrecision,
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
        let devices = encoder.devices();
        let device = devices.into_iter().next();
        Self {
            encoder: Arc::new(OnceLock::from(encoder.no_grad())),
            file: None,
            device: device.expect("an encoder has parameters"),
            pixel_scale,
            precision: FoundationPrecision::F32,
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
        let encoder = read(config, source, device)?;
        // The file's place, should the program go to another folder meanwhile.
        let path = std::path::absolute(source.path()).unwrap_or_else(|_| source.path().into());
        Ok(Self {
            file: Some((config.clone(), path)),
            ..Self::new(encoder, pixel_scale)
        })
    }

    /// Computes in another precision from now on. [`weights_sha256`](Self::weights_sha256) stays that of the weights as they
    /// were loaded; other clones keep their precision.
    ///
    /// # Errors
    ///
    /// [`PrecisionError`] if the device has no arithmetic for it, or if the weights have been rounded to another already.
    pub fn set_precision(&mut self, precision: FoundationPrecision) -> Result<(), PrecisionError> {
        if precision == self.precision {
            return Ok(());
        }
        let supported = self.device.supports_dtype(precision.dtype());
        if !supported || self.precision != FoundationPrecision::F32 {
            return Err(PrecisionError {
                device: format!("{:?}", self.device),
                precision,
            });
        }
        self.weights_sha256();
        if let Some(encoder) = self.encoder.get() {
            let encoder = rounded(encoder.clone(), precision);
            self.encoder = Arc::new(OnceLock::from(encoder));
        }
        self.precision = precision;
        Ok(())
    }

    /// What it computes in.
    pub fn precision(&self) -> FoundationPrecision {
        self.precision
    }

    /// Gives the weights' memory back, if they came from a file: they are read again when an image has to be embedded. With
    /// every embedding kept none has to, and training needs only the small half's memory.
    pub fn leave_on_disk(&mut self) {
        if self.file.is_some() {
            self.weights_sha256();
            self.encoder = Arc::default();
        }
    }

    /// A copy on another device, to embed there what this one does not get round to.
    pub fn to_device(&self, device: &Device) -> Self {
        let device = device.clone().inner();
        let encoder = match self.encoder.get() {
            Some(encoder) => OnceLock::from(encoder.clone().to_device(&device)),
            None => OnceLock::new(),
        };
        Self {
            encoder: Arc::new(encoder),
            device,
            ..self.clone()
        }
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
    /// If the image is not square, has other than 3 channels, or its side is no positive multiple of 16. If the weights
    /// were [left on disk](Self::leave_on_disk) and cannot be read again.
    pub fn embed(&self, image: Tensor<4>) -> Tensor<4> {
        self.try_embed(image)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Embeds images, as [`embed`](Self::embed).
    ///
    /// # Errors
    ///
    /// A [`WeightsError`] if the weights were [left on disk](Self::leave_on_disk) and cannot be read again.
    pub(crate) fn try_embed(&self, image: Tensor<4>) -> Result<Tensor<4>, WeightsError> {
        let image = self.pixel_scale.apply(image.inner());
        Ok(self.try_encoder()?.forward(image))
    }

    /// Where it computes: a device without autodiff.
    pub fn device(&self) -> Device {
        self.device.clone()
    }

    /// The encoder.
    ///
    /// # Panics
    ///
    /// If the weights were [left on disk](Self::leave_on_disk) and cannot be read again.
    pub fn encoder(&self) -> &SamEncoder {
        self.try_encoder().unwrap_or_else(|error| panic!("{error}"))
    }

    fn try_encoder(&self) -> Result<&SamEncoder, WeightsError> {
        if let (None, Some((config, path))) = (self.encoder.get(), &self.file) {
            let encoder = read(config, &StateDict::open(path)?, &self.device)?;
            if self
                .sha256
                .get()
                .is_some_and(|known| *known != sha256(&encoder))
            {
                return Err(WeightsError::Changed { path: path.clone() });
            }
            // Another clone may have been first, with the same weights.
            let _ = self.encoder.set(rounded(encoder, self.precision));
        }
        Ok(self
            .encoder
            .get()
            .expect("only what a file has is left on disk"))
    }

    /// What decides an embedding beside the image: weights, pixel scale and precision.
    pub(crate) fn cache_name(&self) -> String {
        let mut name = self.weights_sha256()[..16].to_owned();
        match self.pixel_scale {
            PixelScale::Unit => {}
            PixelScale::Sam => name.push_str("-sam"),
        }
        match self.precision {
            FoundationPrecision::F32 => {}
            FoundationPrecision::F16 => name.push_str("-in-f16"),
            FoundationPrecision::BF16 => name.push_str("-in-bf16"),
        }
        name
    }

    /// SHA-256 of the weights, in hexadecimal: what a ladder checkpoint is bound to. It depends on names and values
    /// alone, not on the file that they came from. See [`weights`](crate::weights) for how it is worked out.
    pub fn weights_sha256(&self) -> &str {
        self.sha256.get_or_init(|| sha256(self.encoder()))
    }
}

fn rounded(encoder: SamEncoder, precision: FoundationPrecision) -> SamEncoder {
    match precision {
        FoundationPrecision::F32 => encoder,
        _ => encoder.with_precision(precision.dtype()).no_grad(),
    }
}

fn read(
    config: &SamEncoderConfig,
    source: &StateDict,
    device: &Device,
) -> Result<SamEncoder, WeightsError> {
    weights::expect_variant(source, config)?;
    // Not yet initialised: its memory is taken tensor by tensor, as the file is read.
    let encoder = config.init(&device.clone().inner());
    let encoder = weights::load(encoder, source, &weights::IMAGE_ENCODER)?;
    Ok(encoder.no_grad())
}

fn sha256(encoder: &SamEncoder) -> String {
    weights::sha256(weights::collect(encoder, weights::IMAGE_ENCODER.prefix))
}
