//! Recognises image encoders by the names and shapes of their tensors.

use super::encoder::{EncoderConfig, FrozenEncoder, freeze, published_vit};
use crate::weights::{self, StateDict, WeightsError};
use burn::tensor::Device;
use sam_lst_sam_encoder::{PATCH_SIZE, SamEncoderConfig};
use sam_lst_tiny_vit::TinyVitConfig;
use std::path::Path;

impl EncoderConfig {
    /// Recognises the image encoder in a checkpoint, `.pth` or safetensors, by the names and shapes
    /// of its tensors. The file's name does not matter.
    ///
    /// A MedSAM checkpoint is a SAM ViT-B: their tensors differ in values only.
    ///
    /// # Errors
    ///
    /// A [`WeightsError`] if the file cannot be read or contains no encoder that is supported.
    pub fn recognize(checkpoint: impl AsRef<Path>) -> Result<Self, WeightsError> {
        Self::in_state_dict(&StateDict::open(checkpoint)?, "a SAM checkpoint")
    }

    /// Recognises the image encoder; `expected` describes the checkpoint in an error.
    pub(crate) fn in_state_dict(source: &StateDict, expected: &str) -> Result<Self, WeightsError> {
        let tensors = Tensors(source);
        let config = match tensors.vit() {
            Some(config) => Some(Self::Vit(config)),
            None => tensors.tiny_vit()?.map(Self::TinyVit),
        };
        config.ok_or_else(|| WeightsError::WrongKind {
            path: source.path().into(),
            expected: format!(
                "{expected} with tensors image_encoder.*, prompt_encoder.*, mask_decoder.*"
            ),
            found: source.describe(),
        })
    }

    /// Checks that a file contains this encoder. Comparing the tensors one by one would only report
    /// a wrong shape, which does not tell the user that the encoder is another one.
    pub(super) fn expect_in(&self, source: &StateDict) -> Result<(), WeightsError> {
        let (found, expected) = (Self::in_state_dict(source, &self.name())?.name(), self.name());
        if found != expected {
            return Err(WeightsError::WrongKind { path: source.path().into(), expected, found });
        }
        let unknown: Vec<_> = source
            .float_names()
            .filter(|name| {
                !["image_encoder.", "prompt_encoder.", "mask_decoder."]
                    .iter()
                    .any(|prefix| name.starts_with(prefix))
            })
            .map(str::to_owned)
            .collect();
        if unknown.is_empty() {
            return Ok(());
        }
        Err(WeightsError::Unused { path: source.path().into(), names: unknown })
    }

    /// Loads this encoder from a file.
    pub(super) fn load(
        &self,
        source: &StateDict,
        device: &Device,
    ) -> Result<Box<dyn FrozenEncoder>, WeightsError> {
        self.expect_in(source)?;
        // Parameters are initialised lazily, so memory is allocated tensor by tensor while loading.
        let device = device.clone().inner();
        match self {
            Self::Vit(config) => {
                let encoder = config.init(&device);
                Ok(freeze(weights::load(encoder, source, &weights::IMAGE_ENCODER)?))
            }
            Self::TinyVit(config) => {
                let source = weights::fold_batch_norms(source)?;
                let encoder = config.init(&device);
                Ok(freeze(weights::load(encoder, &source, &weights::TINY_VIT)?))
            }
            Self::Custom(_) => Err(WeightsError::WrongKind {
                path: source.path().into(),
                expected: self.name(),
                found: source.describe(),
            }),
        }
    }
}

/// The shapes of the tensors of an image encoder.
struct Tensors<'a>(&'a StateDict);

impl Tensors<'_> {
    fn shape<const D: usize>(&self, name: &str) -> Option<[usize; D]> {
        self.0.shape(&format!("image_encoder.{name}"))?.as_slice().try_into().ok()
    }

    /// The number of blocks of a list of modules.
    fn count(&self, list: &str, tensor: &str) -> usize {
        let is_there = |index: &usize| {
            self.0.shape(&format!("image_encoder.{list}.{index}.{tensor}")).is_some()
        };
        (0..).take_while(is_there).count()
    }

    /// The shape of a tensor that the encoder must have.
    fn required<const D: usize>(&self, name: &str) -> Result<[usize; D], WeightsError> {
        self.shape(name).ok_or_else(|| WeightsError::Missing {
            path: self.0.path().into(),
            names: vec![format!("image_encoder.{name}")],
        })
    }

    /// SAM's ViT, if the file contains one. A missing tensor is reported when the file is loaded.
    fn vit(&self) -> Option<SamEncoderConfig> {
        let [_, grid, _, embed_dim] = self.shape("pos_embed")?;
        let depth = self.count("blocks", "norm1.weight");
        let config = match published_vit(embed_dim, depth) {
            Some((_, config)) => config,
            None => self.unpublished_vit(grid, embed_dim, depth),
        };
        Some(config.with_pretrained_size(grid * PATCH_SIZE))
    }

    fn unpublished_vit(&self, grid: usize, embed_dim: usize, depth: usize) -> SamEncoderConfig {
        // A table has 2 s - 1 entries, for a window of side s or for the whole grid.
        let tables: Vec<[usize; 2]> = (0..depth)
            .filter_map(|block| self.shape(&format!("blocks.{block}.attn.rel_pos_h")))
            .collect();
        let sides: Vec<usize> = tables.iter().map(|[length, _]| length.div_ceil(2)).collect();
        let global_blocks = (0..sides.len()).filter(|&block| sides[block] == grid).collect();
        let head_dim = tables.first().map_or(embed_dim, |&[_, head_dim]| head_dim.max(1));
        let mut config =
            SamEncoderConfig::new(embed_dim, depth, embed_dim / head_dim, global_blocks);
        if let Some(window) = sides.into_iter().find(|&side| side != grid) {
            config.window_size = window;
        }
        if let Some([hidden, _]) = self.shape("blocks.0.mlp.lin1.weight") {
            config.mlp_ratio = hidden / embed_dim.max(1);
        }
        if let Some([channels, ..]) = self.shape::<4>("neck.0.weight") {
            config.out_channels = channels;
        }
        config
    }

    /// TinyViT, if the file contains one.
    fn tiny_vit(&self) -> Result<Option<TinyVitConfig>, WeightsError> {
        let Some([_, _, kernel, _]) = self.shape("patch_embed.seq.0.c.weight") else {
            return Ok(None);
        };
        let patch_stride = if kernel == 1 { 1 } else { 4 };
        let [first_width, ..] = self.required::<4>("patch_embed.seq.2.c.weight")?;
        let [hidden, ..] = self.required::<4>("layers.0.blocks.0.conv1.c.weight")?;
        let [out_channels, ..] = self.required::<4>("neck.0.weight")?;
        let mut embed_dims = [first_width, 0, 0, 0];
        let mut depths = [self.count("layers.0.blocks", "conv1.c.weight"), 0, 0, 0];
        let (mut num_heads, mut window_sizes) = ([0; 3], [0; 3]);
        for stage in 1..4 {
            let block = |name: &str| format!("layers.{stage}.blocks.0.{name}");
            let [heads, distances] = self.required(&block("attn.attention_biases"))?;
            let [width, _] = self.required(&block("attn.proj.weight"))?;
            embed_dims[stage] = width;
            depths[stage] = self.count(&format!("layers.{stage}.blocks"), "attn.proj.weight");
            num_heads[stage - 1] = heads;
            window_sizes[stage - 1] = distances.isqrt();
        }
        let config = TinyVitConfig::new(patch_stride, embed_dims, depths, num_heads, window_sizes)
            .with_expand_ratio(hidden / first_width.max(1))
            .with_out_channels(out_channels);
        Ok(Some(config))
    }
}
