use super::error::require;
use super::segmentation_model::init_params;
use super::{ConfigError, InvalidSetting};
use crate::weights::{self, IMAGE_ENCODER};
use burn::module::{Module, ModuleDisplay};
use burn::store::burn_pack::Tensor as PackTensor;
use burn::tensor::{Device, FloatDType, Tensor};
use sam_lst_sam_encoder::{PATCH_SIZE, SamEncoder, SamEncoderConfig};
use sam_lst_tiny_vit::{Stage, TinyVit, TinyVitConfig};
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::fmt::Debug;

/// An image encoder that can be the foundation: SAM's ViT, TinyViT, or one of your own.
///
/// To use your own, implement this trait for it, name it in the configuration with
/// [`EncoderConfig::Custom`], and create the model with
/// [`SamLstConfig::init_over`](crate::SamLstConfig::init_over).
pub trait ImageEncoder: Module + ModuleDisplay + Sync + 'static {
    /// Embeds images.
    ///
    /// # Shapes
    ///
    /// - image: `[B, 3, S, S]`, `S` a multiple of the stride
    /// - output: `[B, channels, S / stride, S / stride]`
    fn forward(&self, image: Tensor<4>) -> Tensor<4>;

    /// Embeds images, and also returns features from inside the encoder, for
    /// [`SamLstConfig::taps`](crate::SamLstConfig::taps). By default, there are none.
    ///
    /// # Shapes
    ///
    /// - image: `[B, 3, S, S]`
    /// - outputs: the embedding, as of [`forward`](Self::forward), and `[B, H, W, C]` for each tap
    ///
    /// # Panics
    ///
    /// If the encoder has no such features.
    fn forward_with_taps(&self, image: Tensor<4>, taps: &[usize]) -> (Tensor<4>, Vec<Tensor<4>>) {
        assert!(taps.is_empty(), "this encoder has no taps, found {taps:?}");
        (self.forward(image), Vec::new())
    }

    /// Channels of the features of each tap that
    /// [`forward_with_taps`](Self::forward_with_taps) knows; by default, there is none.
    fn tap_channels(&self) -> Vec<usize> {
        Vec::new()
    }

    /// Input pixels along one side of a pixel of the embedding.
    fn stride(&self) -> usize;

    /// Channels of the embedding.
    fn channels(&self) -> usize;

    /// The encoder with weights of another float type; `None` if it supports 32 bits only.
    fn with_precision(self, dtype: FloatDType) -> Option<Self> {
        let _ = dtype;
        None
    }
}

impl ImageEncoder for SamEncoder {
    fn forward(&self, image: Tensor<4>) -> Tensor<4> {
        Self::forward(self, image)
    }

    fn forward_with_taps(&self, image: Tensor<4>, taps: &[usize]) -> (Tensor<4>, Vec<Tensor<4>>) {
        Self::forward_with_taps(self, image, taps)
    }

    fn tap_channels(&self) -> Vec<usize> {
        let [width, ..] = self.patch_embed.weight.dims();
        vec![width; self.blocks.len()]
    }

    fn stride(&self) -> usize {
        PATCH_SIZE
    }

    fn channels(&self) -> usize {
        self.neck.channels()
    }

    fn with_precision(self, dtype: FloatDType) -> Option<Self> {
        Some(Self::with_precision(self, dtype))
    }
}

impl ImageEncoder for TinyVit {
    fn forward(&self, image: Tensor<4>) -> Tensor<4> {
        Self::forward(self, image)
    }

    fn forward_with_taps(&self, image: Tensor<4>, taps: &[usize]) -> (Tensor<4>, Vec<Tensor<4>>) {
        Self::forward_with_taps(self, image, taps)
    }

    fn tap_channels(&self) -> Vec<usize> {
        self.layers.iter().map(Stage::channels).collect()
    }

    fn stride(&self) -> usize {
        Self::stride(self)
    }

    fn channels(&self) -> usize {
        self.neck.channels()
    }

    fn with_precision(self, dtype: FloatDType) -> Option<Self> {
        Some(Self::with_precision(self, dtype))
    }
}

/// An image encoder whose type is known at run time only, frozen and without autodiff.
pub(crate) trait FrozenEncoder: Debug + Send + Sync {
    /// The embedding `[B, C, G, G]`, and the features `[B, H, W, C]` of each tap.
    fn embed(&self, image: Tensor<4>, taps: &[usize]) -> (Tensor<4>, Vec<Tensor<4>>);
    fn stride(&self) -> usize;
    fn channels(&self) -> usize;
    fn tap_channels(&self) -> Vec<usize>;
    /// The device of its weights.
    fn device(&self) -> Device;
    fn to_device(&self, device: &Device) -> Box<dyn FrozenEncoder>;
    fn with_precision(&self, dtype: FloatDType) -> Option<Box<dyn FrozenEncoder>>;
    /// Its tensors under their official names, in PyTorch's layout.
    fn tensors(&self) -> Vec<PackTensor>;
    fn as_any(&self) -> &dyn Any;
}

#[derive(Debug)]
struct Frozen<E>(E);

/// Freezes an encoder.
///
/// # Panics
///
/// If it has no parameters.
pub(crate) fn freeze<E: ImageEncoder>(encoder: E) -> Box<dyn FrozenEncoder> {
    let on_autodiff = encoder.devices().iter().any(Device::is_autodiff);
    let encoder = if on_autodiff { encoder.valid() } else { encoder };
    assert!(!encoder.devices().is_empty(), "an image encoder without parameters");
    Box::new(Frozen(encoder.no_grad()))
}

impl<E: ImageEncoder> FrozenEncoder for Frozen<E> {
    fn embed(&self, image: Tensor<4>, taps: &[usize]) -> (Tensor<4>, Vec<Tensor<4>>) {
        self.0.forward_with_taps(image, taps)
    }

    fn stride(&self) -> usize {
        self.0.stride()
    }

    fn channels(&self) -> usize {
        self.0.channels()
    }

    fn tap_channels(&self) -> Vec<usize> {
        self.0.tap_channels()
    }

    fn device(&self) -> Device {
        let devices = self.0.devices();
        devices.into_iter().next().expect("`freeze` has checked that it has parameters")
    }

    fn to_device(&self, device: &Device) -> Box<dyn FrozenEncoder> {
        Box::new(Self(self.0.clone().to_device(device)))
    }

    fn with_precision(&self, dtype: FloatDType) -> Option<Box<dyn FrozenEncoder>> {
        let encoder = self.0.clone().with_precision(dtype)?;
        Some(Box::new(Self(encoder.no_grad())))
    }

    fn tensors(&self) -> Vec<PackTensor> {
        weights::collect(&self.0, IMAGE_ENCODER.prefix)
    }

    fn as_any(&self) -> &dyn Any {
        &self.0
    }
}

/// A place inside an image encoder from which features are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tap {
    /// Index of the block of a ViT, or of the stage of a TinyViT.
    pub index: usize,
    /// Channels of the features.
    pub channels: usize,
    /// Input pixels along one side of a pixel of the features.
    pub stride: usize,
}

impl Tap {
    /// Channels of the features on the grid of an embedding, whose pixels hold squares of the
    /// features' pixels.
    pub(super) fn packed_channels(self, embedding_stride: usize) -> usize {
        let side = embedding_stride / self.stride;
        side * side * self.channels
    }
}

/// Configuration of the foundation's image encoder.
// Untagged: checkpoints written before there were other encoders hold SAM's configuration as such.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EncoderConfig {
    /// SAM's ViT.
    Vit(SamEncoderConfig),
    /// TinyViT, of MobileSAM and LiteMedSAM.
    TinyVit(TinyVitConfig),
    /// An encoder of the user's own.
    Custom(CustomEncoderConfig),
}

/// What the rest of the model needs to know of an encoder of the user's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CustomEncoderConfig {
    /// Its name, which identifies it in checkpoints.
    pub name: String,
    /// Input pixels along one side of a pixel of the embedding.
    pub stride: usize,
    /// Channels of the embedding.
    pub channels: usize,
}

impl From<SamEncoderConfig> for EncoderConfig {
    fn from(config: SamEncoderConfig) -> Self {
        Self::Vit(config)
    }
}

impl From<TinyVitConfig> for EncoderConfig {
    fn from(config: TinyVitConfig) -> Self {
        Self::TinyVit(config)
    }
}

impl EncoderConfig {
    /// Input pixels along one side of a pixel of the embedding.
    pub fn stride(&self) -> usize {
        match self {
            Self::Vit(_) => PATCH_SIZE,
            Self::TinyVit(config) => config.stride(),
            Self::Custom(config) => config.stride,
        }
    }

    /// Channels of the embedding.
    pub fn channels(&self) -> usize {
        match self {
            Self::Vit(config) => config.out_channels,
            Self::TinyVit(config) => config.out_channels,
            Self::Custom(config) => config.channels,
        }
    }

    /// Where features can be taken from inside the encoder: the blocks of a ViT, the stages of a
    /// TinyViT. None of an encoder of the user's own.
    pub fn taps(&self) -> Vec<Tap> {
        match self {
            Self::Vit(config) => {
                let tap = |index| Tap { index, channels: config.embed_dim, stride: PATCH_SIZE };
                (0..config.depth).map(tap).collect()
            }
            Self::TinyVit(config) => {
                let tap = |(index, &channels)| Tap {
                    index,
                    channels,
                    stride: config.stage_stride(index),
                };
                config.embed_dims.iter().enumerate().map(tap).collect()
            }
            Self::Custom(_) => Vec::new(),
        }
    }

    /// The [taps](Self::taps) of these indices, which must be valid.
    pub(super) fn select_taps(&self, indices: &[usize]) -> Vec<Tap> {
        let all = self.taps();
        indices.iter().map(|&index| all[index]).collect()
    }

    /// Checks the indices of taps.
    pub(super) fn validate_taps(&self, indices: &[usize]) -> Result<(), InvalidSetting> {
        let found = format!("{indices:?}");
        let check = |holds, expected| require(holds, "taps", &found, expected);
        let available = self.taps().len();
        check(
            available > 0 || indices.is_empty(),
            "none, since an encoder of your own has no taps",
        )?;
        check(
            indices.iter().all(|&index| index < available),
            match self {
                Self::TinyVit(_) => "indices of the encoder's stages, 0 to 3",
                _ => "indices of the encoder's blocks, below `encoder.depth`",
            },
        )?;
        check(indices.is_sorted_by(|a, b| a < b), "indices in increasing order")
    }

    /// A name for people: that of a published encoder, or a description.
    pub fn name(&self) -> String {
        match self {
            Self::Vit(config) => vit_name(config),
            Self::TinyVit(config) => tiny_vit_name(config),
            Self::Custom(config) => format!("the encoder \"{}\"", config.name),
        }
    }

    /// Creates the encoder with random weights. It is an error for an encoder of the user's own.
    pub(super) fn init(&self, device: &Device) -> Result<Box<dyn FrozenEncoder>, ConfigError> {
        match self {
            Self::Vit(config) => Ok(freeze(init_params(config.init(device)))),
            Self::TinyVit(config) => Ok(freeze(init_params(config.init(device)))),
            Self::Custom(config) => Err(ConfigError::CustomEncoder { name: config.name.clone() }),
        }
    }

    pub(super) fn validate(&self) -> Result<(), InvalidSetting> {
        match self {
            Self::Vit(config) => validate_vit(config),
            Self::TinyVit(config) => validate_tiny_vit(config),
            Self::Custom(config) => {
                require(config.stride > 0, "encoder.stride", config.stride, "at least 1")
            }
        }
    }
}

/// The published ViT of a width and number of blocks, and its name.
pub(super) fn published_vit(
    embed_dim: usize,
    depth: usize,
) -> Option<(&'static str, SamEncoderConfig)> {
    let published = [
        ("SAM ViT-B", SamEncoderConfig::vit_b()),
        ("SAM ViT-L", SamEncoderConfig::vit_l()),
        ("SAM ViT-H", SamEncoderConfig::vit_h()),
    ];
    published.into_iter().find(|(_, config)| (config.embed_dim, config.depth) == (embed_dim, depth))
}

fn vit_name(config: &SamEncoderConfig) -> String {
    match published_vit(config.embed_dim, config.depth) {
        Some((name, _)) => name.to_owned(),
        None => format!(
            "a SAM image encoder with width {} and {} blocks",
            config.embed_dim, config.depth
        ),
    }
}

fn tiny_vit_name(config: &TinyVitConfig) -> String {
    let published =
        [("LiteMedSAM", TinyVitConfig::lite_medsam()), ("MobileSAM", TinyVitConfig::mobile_sam())];
    match published.iter().find(|(_, other)| other == config) {
        Some((name, _)) => (*name).to_owned(),
        None => format!(
            "a TinyViT image encoder with widths {:?}, {:?} blocks and stride {}",
            config.embed_dims,
            config.depths,
            config.stride()
        ),
    }
}

fn validate_vit(encoder: &SamEncoderConfig) -> Result<(), InvalidSetting> {
    require(
        is_positive_multiple(encoder.pretrained_size, PATCH_SIZE),
        "encoder.pretrained_size",
        encoder.pretrained_size,
        "a positive multiple of 16",
    )?;
    require(encoder.window_size > 0, "encoder.window_size", encoder.window_size, "at least 1")?;
    require(
        is_positive_multiple(encoder.embed_dim, encoder.num_heads),
        "encoder.embed_dim",
        encoder.embed_dim,
        "a positive multiple of encoder.num_heads",
    )?;
    require(
        encoder.global_blocks.iter().all(|&i| i < encoder.depth),
        "encoder.global_blocks",
        format!("{:?}", encoder.global_blocks),
        "indices below encoder.depth",
    )
}

fn validate_tiny_vit(encoder: &TinyVitConfig) -> Result<(), InvalidSetting> {
    require(
        matches!(encoder.patch_stride, 1 | 4),
        "encoder.patch_stride",
        encoder.patch_stride,
        "1 or 4",
    )?;
    let list = |values: &[usize]| format!("{values:?}");
    let positive = |values: &[usize]| values.iter().all(|&value| value > 0);
    require(
        positive(&encoder.depths),
        "encoder.depths",
        list(&encoder.depths),
        "at least one block in each stage",
    )?;
    require(positive(&encoder.strides), "encoder.strides", list(&encoder.strides), "at least 1")?;
    require(
        positive(&encoder.window_sizes),
        "encoder.window_sizes",
        list(&encoder.window_sizes),
        "at least 1",
    )?;
    let [first, attention @ ..] = encoder.embed_dims;
    let heads_divide = attention
        .iter()
        .zip(encoder.num_heads)
        .all(|(&width, heads)| is_positive_multiple(width, heads));
    require(
        is_positive_multiple(first, 2) && heads_divide,
        "encoder.embed_dims",
        list(&encoder.embed_dims),
        "an even width, then positive multiples of encoder.num_heads",
    )
}

pub(super) fn is_positive_multiple(value: usize, divisor: usize) -> bool {
    value > 0 && divisor > 0 && value.is_multiple_of(divisor)
}
