use super::PixelScale;
use super::variant::expect_variant;
use crate::weights::{self, StateDict, WeightsError};
use burn::module::Module;
use burn::tensor::{Device, FloatDType, Tensor};
use sam_lst_sam_encoder::{SamEncoder, SamEncoderConfig};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// Floating-point precision of the foundation's linear layers, convolutions and attention. The
/// ladder and the optimizer always compute in 32 bits.
///
/// With 16 bits, the weights take half the memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FoundationPrecision {
    /// 32 bits. A GPU may round the operands of matrix products to TF32, as PyTorch does where TF32
    /// is allowed.
    #[default]
    F32,
    /// IEEE half precision: 16 bits with 5 exponent bits.
    F16,
    /// bfloat16: 16 bits with 8 exponent bits, as many as 32-bit floats have.
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

/// A precision that the foundation cannot be set to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{device} does not support {precision:?}; choose another precision or another device")]
pub struct PrecisionError {
    /// The device.
    pub device: String,
    /// The requested precision.
    pub precision: FoundationPrecision,
}

/// The frozen part of the model: SAM's image encoder, never tracked by autodiff.
///
/// It is deliberately not a [`Module`], so that optimizers, recorders and checkpoints cannot
/// include it. Its parameters and embeddings are on a device without autodiff, even if it was
/// created for an autodiff device.
#[derive(Debug, Clone)]
pub struct Foundation {
    /// Empty while the weights are offloaded. Clones share it.
    encoder: Arc<OnceLock<SamEncoder>>,
    /// Where to load offloaded weights from.
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
        let encoder = if on_autodiff { encoder.valid() } else { encoder };
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

    /// Loads SAM's image encoder from a checkpoint, `.pth` or safetensors. Half-precision weights
    /// become `f32`.
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
        let encoder = load_encoder(config, source, device)?;
        // Absolute, in case the current directory changes before the weights are loaded again.
        let path = std::path::absolute(source.path()).unwrap_or_else(|_| source.path().into());
        Ok(Self { file: Some((config.clone(), path)), ..Self::new(encoder, pixel_scale) })
    }

    /// Sets the precision. [`weights_sha256`](Self::weights_sha256) remains that of the weights as
    /// loaded; other clones keep their precision.
    ///
    /// # Errors
    ///
    /// [`PrecisionError`] if the device does not support the precision, or if the weights have
    /// already been rounded to another one.
    pub fn set_precision(&mut self, precision: FoundationPrecision) -> Result<(), PrecisionError> {
        if precision == self.precision {
            return Ok(());
        }
        let supported = self.device.supports_dtype(precision.dtype());
        if !supported || self.precision != FoundationPrecision::F32 {
            return Err(PrecisionError { device: format!("{:?}", self.device), precision });
        }
        self.weights_sha256();
        if let Some(encoder) = self.encoder.get() {
            let encoder = round_weights(encoder.clone(), precision);
            self.encoder = Arc::new(OnceLock::from(encoder));
        }
        self.precision = precision;
        Ok(())
    }

    /// The precision.
    pub fn precision(&self) -> FoundationPrecision {
        self.precision
    }

    /// Frees the memory of the weights if they were loaded from a file; they are loaded again when
    /// an image must be embedded. If every embedding is cached, training needs memory for the
    /// ladder only.
    pub fn offload(&mut self) {
        if self.file.is_some() {
            self.weights_sha256();
            self.encoder = Arc::default();
        }
    }

    /// Copies the foundation to another device, to share the work.
    pub fn to_device(&self, device: &Device) -> Self {
        let device = device.clone().inner();
        let encoder = match self.encoder.get() {
            Some(encoder) => OnceLock::from(encoder.clone().to_device(&device)),
            None => OnceLock::new(),
        };
        Self { encoder: Arc::new(encoder), device, ..self.clone() }
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
    /// If the image is not square, does not have 3 channels, or its side is not a positive multiple
    /// of 16. If the weights were [offloaded](Self::offload) and cannot be loaded again.
    pub fn embed(&self, image: Tensor<4>) -> Tensor<4> {
        self.try_embed(image).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Embeds images, as [`embed`](Self::embed).
    ///
    /// # Errors
    ///
    /// A [`WeightsError`] if the weights were [offloaded](Self::offload) and cannot be loaded
    /// again.
    pub(crate) fn try_embed(&self, image: Tensor<4>) -> Result<Tensor<4>, WeightsError> {
        let image = self.pixel_scale.apply(image.inner());
        Ok(self.try_encoder()?.forward(image))
    }

    /// The device of the weights and embeddings, without autodiff.
    pub fn device(&self) -> Device {
        self.device.clone()
    }

    /// The encoder, loaded again if it was offloaded.
    ///
    /// # Panics
    ///
    /// If the weights were [offloaded](Self::offload) and cannot be loaded again.
    pub fn encoder(&self) -> &SamEncoder {
        self.try_encoder().unwrap_or_else(|error| panic!("{error}"))
    }

    fn try_encoder(&self) -> Result<&SamEncoder, WeightsError> {
        if let (None, Some((config, path))) = (self.encoder.get(), &self.file) {
            let encoder = load_encoder(config, &StateDict::open(path)?, &self.device)?;
            if self.sha256.get().is_some_and(|known| *known != sha256(&encoder)) {
                return Err(WeightsError::Changed { path: path.clone() });
            }
            // If another clone was faster, its encoder has the same weights.
            let _ = self.encoder.set(round_weights(encoder, self.precision));
        }
        Ok(self.encoder.get().expect("only weights from a file are offloaded"))
    }

    /// Identifies everything but the image that determines an embedding: weights, pixel scale and
    /// precision.
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

    /// SHA-256 of the weights in hexadecimal, which ties a ladder checkpoint to its foundation. It
    /// depends only on the names and values of the tensors, not on the file they were loaded from.
    /// [`weights`](crate::weights) defines it.
    pub fn weights_sha256(&self) -> &str {
        self.sha256.get_or_init(|| sha256(self.encoder()))
    }
}

fn round_weights(encoder: SamEncoder, precision: FoundationPrecision) -> SamEncoder {
    match precision {
        FoundationPrecision::F32 => encoder,
        _ => encoder.with_precision(precision.dtype()).no_grad(),
    }
}

fn load_encoder(
    config: &SamEncoderConfig,
    source: &StateDict,
    device: &Device,
) -> Result<SamEncoder, WeightsError> {
    expect_variant(source, config)?;
    // Parameters are initialised lazily, so memory is allocated tensor by tensor while loading.
    let encoder = config.init(&device.clone().inner());
    let encoder = weights::load(encoder, source, &weights::IMAGE_ENCODER)?;
    Ok(encoder.no_grad())
}

fn sha256(encoder: &SamEncoder) -> String {
    weights::sha256(weights::collect(encoder, weights::IMAGE_ENCODER.prefix))
}
