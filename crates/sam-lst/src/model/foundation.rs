use super::encoder::{FrozenEncoder, freeze};
use super::{ConfigError, EncoderConfig, ImageEncoder, PixelScale, Tap};
use crate::weights::{self, StateDict, WeightsError};
use burn::tensor::{Device, FloatDType, Tensor};
use sam_lst_datasets::Pose;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
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
#[error("{unsupported_by} does not support {precision:?}; choose another precision or device")]
pub struct PrecisionError {
    /// The device, or the image encoder.
    pub unsupported_by: String,
    /// The requested precision.
    pub precision: FoundationPrecision,
}

/// The frozen part of the model: an image encoder, never tracked by autodiff.
///
/// It is deliberately not a [`Module`](burn::module::Module), so that optimizers, recorders and
/// checkpoints cannot include it. Its parameters and embeddings are on a device without autodiff,
/// even if it was created for an autodiff device.
#[derive(Debug, Clone)]
pub struct Foundation {
    /// Empty while the weights are offloaded. Clones share it.
    encoder: Arc<OnceLock<Box<dyn FrozenEncoder>>>,
    /// Where to load offloaded weights from.
    file: Option<(EncoderConfig, PathBuf)>,
    device: Device,
    stride: usize,
    channels: usize,
    pixel_scale: PixelScale,
    precision: FoundationPrecision,
    taps: Vec<Tap>,
    sha256: OnceLock<String>,
}

impl Foundation {
    /// Freezes an encoder.
    ///
    /// # Panics
    ///
    /// If the encoder has no parameters.
    pub fn new(encoder: impl ImageEncoder, pixel_scale: PixelScale) -> Self {
        Self::from_frozen(freeze(encoder), pixel_scale)
    }

    pub(super) fn from_frozen(encoder: Box<dyn FrozenEncoder>, pixel_scale: PixelScale) -> Self {
        Self {
            device: encoder.device(),
            stride: encoder.stride(),
            channels: encoder.channels(),
            encoder: Arc::new(OnceLock::from(encoder)),
            file: None,
            pixel_scale,
            precision: FoundationPrecision::F32,
            taps: Vec::new(),
            sha256: OnceLock::new(),
        }
    }

    /// Loads an image encoder from a checkpoint, `.pth` or safetensors.
    /// [`EncoderConfig::recognize`] finds out which one it contains. Half-precision weights become
    /// `f32`.
    ///
    /// # Errors
    ///
    /// A [`WeightsError`] that names the file and what is wrong with it.
    pub fn load(
        config: &EncoderConfig,
        pixel_scale: PixelScale,
        checkpoint: impl AsRef<Path>,
        device: &Device,
    ) -> Result<Self, WeightsError> {
        let source = StateDict::open(checkpoint)?;
        Self::from_state_dict(config, pixel_scale, &source, device)
    }

    pub(crate) fn from_state_dict(
        config: &EncoderConfig,
        pixel_scale: PixelScale,
        source: &StateDict,
        device: &Device,
    ) -> Result<Self, WeightsError> {
        let encoder = config.load(source, device)?;
        // Absolute, in case the current directory changes before the weights are loaded again.
        let path = std::path::absolute(source.path()).unwrap_or_else(|_| source.path().into());
        let file = Some((config.clone(), path));
        Ok(Self { file, ..Self::from_frozen(encoder, pixel_scale) })
    }

    /// The foundation with taps, whose features [`embed`](Self::embed) returns after the embedding.
    ///
    /// # Errors
    ///
    /// [`ConfigError::WrongFoundation`] if the encoder has no such taps.
    pub(super) fn with_taps(self, taps: Vec<Tap>) -> Result<Self, ConfigError> {
        if taps.is_empty() {
            return Ok(Self { taps, ..self });
        }
        let available = self.frozen_encoder().tap_channels();
        let channels = |tap: &Tap| available.get(tap.index).copied();
        if taps.iter().all(|tap| channels(tap) == Some(tap.channels)) {
            return Ok(Self { taps, ..self });
        }
        let expected: Vec<usize> = taps.iter().map(|tap| tap.channels).collect();
        Err(ConfigError::WrongFoundation {
            expected: format!("taps of {expected:?} channels"),
            found: match available.as_slice() {
                [] => "no taps".to_owned(),
                available => format!("taps of {available:?} channels"),
            },
        })
    }

    /// Checks that the stride and the channels of the embedding are those of an encoder, and the
    /// pixel scale.
    pub(super) fn expect_shape(
        &self,
        encoder: &EncoderConfig,
        pixel_scale: PixelScale,
    ) -> Result<(), ConfigError> {
        let expected = (encoder.stride(), encoder.channels(), pixel_scale);
        let found = (self.stride, self.channels, self.pixel_scale);
        if found == expected {
            return Ok(());
        }
        Err(ConfigError::WrongFoundation {
            expected: format!("(stride, channels, pixel scale) {expected:?}"),
            found: format!("(stride, channels, pixel scale) {found:?}"),
        })
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
        let error = |unsupported_by: &str| PrecisionError {
            unsupported_by: unsupported_by.to_owned(),
            precision,
        };
        let supported = self.device.supports_dtype(precision.dtype());
        if !supported || self.precision != FoundationPrecision::F32 {
            return Err(error(&format!("{:?}", self.device)));
        }
        self.weights_sha256();
        if let Some(encoder) = self.encoder.get() {
            let rounded = encoder.with_precision(precision.dtype());
            let rounded = rounded.ok_or_else(|| error("the image encoder"))?;
            self.encoder = Arc::new(OnceLock::from(rounded));
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

    /// Saves the image encoder under SAM's names, as safetensors. The file replaces `path`
    /// atomically; its folder is created if necessary. The weights of a half-precision foundation are
    /// saved as rounded.
    ///
    /// # Errors
    ///
    /// [`WeightsError::Write`] if the file cannot be written.
    ///
    /// # Panics
    ///
    /// If the weights were [offloaded](Self::offload) and cannot be loaded again.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), WeightsError> {
        let path = path.as_ref();
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        weights::write_safetensors(path, path, self.frozen_encoder().tensors(), metadata)
    }

    /// Copies the foundation to another device, to share the work.
    pub fn to_device(&self, device: &Device) -> Self {
        let device = device.clone().inner();
        let encoder = match self.encoder.get() {
            Some(encoder) => OnceLock::from(encoder.to_device(&device)),
            None => OnceLock::new(),
        };
        Self { encoder: Arc::new(encoder), device, ..self.clone() }
    }

    /// Embeds images. The features of [taps](Self::taps) follow the embedding along its channels, on
    /// the same grid: features of a smaller stride are packed as by PyTorch's `pixel_unshuffle`.
    ///
    /// # Shapes
    ///
    /// - image: `[B, 3, S, S]`, pixels in `[0, 1]`, on any device
    /// - output: `[B, C, G, G]`, `G = S / stride`, on a device without autodiff, where `C` is
    ///   [`feature_channels`](Self::feature_channels)
    ///
    /// # Panics
    ///
    /// If the image is not square, does not have 3 channels, or its side is not a positive multiple
    /// of the encoder's stride. If the weights were [offloaded](Self::offload) and cannot be loaded
    /// again.
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
        let indices: Vec<usize> = self.taps.iter().map(|tap| tap.index).collect();
        let (embedding, taps) = self.try_encoder()?.embed(image, &indices);
        if taps.is_empty() {
            return Ok(embedding);
        }
        let [_, _, grid, _] = embedding.dims();
        let packed = taps.into_iter().map(|features| pack(features, grid));
        Ok(Tensor::cat(std::iter::once(embedding).chain(packed).collect(), 1))
    }

    /// Moves the embedding of an image, and the features of taps after it, as a pose moves the image.
    ///
    /// # Shapes
    ///
    /// - features: `[C, G, G]` as of [`embed`](Self::embed), where `G` is `grid`
    ///
    /// # Panics
    ///
    /// If the features have another number of channels.
    pub(crate) fn move_features(&self, features: &mut [f32], grid: usize, pose: Pose) {
        assert_eq!(features.len(), self.feature_channels() * grid * grid, "features of an image");
        let (embedding, mut of_taps) = features.split_at_mut(self.channels * grid * grid);
        pose.move_features(embedding, grid, 1);
        for tap in &self.taps {
            let length = tap.packed_channels(self.stride) * grid * grid;
            let (of_tap, others) = of_taps.split_at_mut(length);
            pose.move_features(of_tap, grid, self.stride / tap.stride);
            of_taps = others;
        }
    }

    /// The device of the weights and embeddings, without autodiff.
    pub fn device(&self) -> Device {
        self.device.clone()
    }

    /// Input pixels along one side of a pixel of the embedding.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Channels of the embedding.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Channels of the embedding and of the taps' features after it.
    pub fn feature_channels(&self) -> usize {
        let taps = self.taps.iter().map(|tap| tap.packed_channels(self.stride));
        self.channels + taps.sum::<usize>()
    }

    /// Places inside the encoder whose features are computed too.
    pub fn taps(&self) -> &[Tap] {
        &self.taps
    }

    /// How images are normalised.
    pub fn pixel_scale(&self) -> PixelScale {
        self.pixel_scale
    }

    /// The encoder, loaded again if it was offloaded; `None` if it is of another type.
    ///
    /// # Panics
    ///
    /// If the weights were [offloaded](Self::offload) and cannot be loaded again.
    pub fn encoder<E: ImageEncoder>(&self) -> Option<&E> {
        self.frozen_encoder().as_any().downcast_ref()
    }

    pub(super) fn frozen_encoder(&self) -> &dyn FrozenEncoder {
        self.try_encoder().unwrap_or_else(|error| panic!("{error}"))
    }

    fn try_encoder(&self) -> Result<&dyn FrozenEncoder, WeightsError> {
        if let (None, Some((config, path))) = (self.encoder.get(), &self.file) {
            let encoder = config.load(&StateDict::open(path)?, &self.device)?;
            if self.sha256.get().is_some_and(|known| *known != sha256(&*encoder)) {
                return Err(WeightsError::Changed { path: path.clone() });
            }
            let encoder = match self.precision {
                FoundationPrecision::F32 => encoder,
                precision => encoder
                    .with_precision(precision.dtype())
                    .expect("`set_precision` has rounded this encoder before"),
            };
            // If another clone was faster, its encoder has the same weights.
            let _ = self.encoder.set(encoder);
        }
        Ok(&**self.encoder.get().expect("only weights from a file are offloaded"))
    }

    /// Identifies everything but the image that determines an embedding: weights, pixel scale,
    /// precision and taps.
    pub(crate) fn cache_name(&self) -> String {
        let mut name = self.weights_sha256()[..16].to_owned();
        match self.pixel_scale {
            PixelScale::Unit => {}
            PixelScale::Sam => name.push_str("-sam"),
            PixelScale::MinMax => name.push_str("-minmax"),
        }
        match self.precision {
            FoundationPrecision::F32 => {}
            FoundationPrecision::F16 => name.push_str("-in-f16"),
            FoundationPrecision::BF16 => name.push_str("-in-bf16"),
        }
        if !self.taps.is_empty() {
            name.push_str("-taps");
            self.taps.iter().for_each(|tap| name.push_str(&format!("-{}", tap.index)));
        }
        name
    }

    /// SHA-256 of the weights in hexadecimal, which ties a ladder checkpoint to its foundation. It
    /// depends only on the names and values of the tensors, not on the file they were loaded from.
    /// [`weights`](crate::weights) defines it.
    pub fn weights_sha256(&self) -> &str {
        self.sha256.get_or_init(|| sha256(self.frozen_encoder()))
    }
}

/// Brings features `[B, H, W, C]` to a grid: each of its pixels holds the pixels of a square, as
/// `pixel_unshuffle` in PyTorch arranges them. `[B, C r r, H / r, W / r]`
fn pack(features: Tensor<4>, grid: usize) -> Tensor<4> {
    let [batch, height, _, channels] = features.dims();
    let side = height / grid;
    features
        .reshape([batch, grid, side, grid, side, channels])
        .permute([0, 5, 2, 4, 1, 3])
        .reshape([batch, channels * side * side, grid, grid])
}

/// The inverse of [`pack`]: features `[B, C r r, H, W]`, where `r` is `ratio`, on their own grid,
/// `[B, H r, W r, C]`.
pub(super) fn unpack(packed: Tensor<4>, ratio: usize) -> Tensor<4> {
    if ratio == 1 {
        return packed.permute([0, 2, 3, 1]);
    }
    let [batch, channels, height, width] = packed.dims();
    packed
        .reshape([batch, channels / (ratio * ratio), ratio, ratio, height, width])
        .permute([0, 4, 2, 5, 3, 1])
        .reshape([batch, height * ratio, width * ratio, channels / (ratio * ratio)])
}

fn sha256(encoder: &dyn FrozenEncoder) -> String {
    weights::sha256(encoder.tensors())
}

#[cfg(test)]
mod tests {
    use super::super::SamLstConfig;
    use burn::tensor::Device;

    #[test]
    fn features_of_taps_have_channels_and_a_cache_of_their_own() {
        let device = Device::flex();
        let foundation = |config: SamLstConfig| config.init(&device).expect("valid").foundation;
        let without = foundation(SamLstConfig::tiny(9));
        let with = foundation(SamLstConfig::tiny(9).with_true_ladder());
        assert_eq!((without.feature_channels(), with.feature_channels()), (64, 64 + 3 * 32));
        assert_eq!(with.channels(), 64);
        assert_eq!(with.weights_sha256(), without.weights_sha256());
        assert_eq!(with.cache_name(), format!("{}-taps-0-1-2", without.cache_name()));
    }
}
