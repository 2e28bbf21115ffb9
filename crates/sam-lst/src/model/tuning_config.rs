use super::encoder::is_positive_multiple;
use super::error::require;
use super::{ConfigError, EncoderConfig, InvalidSetting, NetworkConfig, PixelScale, SamLstConfig};
use sam_lst_mask_decoder::{MaskDecoderConfig, PromptEncoderConfig};
use sam_lst_peft::LoraTargets;
use serde::{Deserialize, Serialize};

/// Configuration of [`TunedSam`](super::TunedSam): SAM of which the decoder is trained and, with most
/// methods, part of the image encoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamTuningConfig {
    /// The image encoder.
    pub encoder: EncoderConfig,
    /// The mask decoder. Its `num_masks` is the number of classes `K`, including the background.
    pub decoder: MaskDecoderConfig,
    /// What is trained besides the decoder.
    pub tuning: EncoderTuning,
    /// Side `S` of the input in pixels; a multiple of the encoder's stride.
    pub input_size: usize,
    /// Normalisation of the input.
    pub pixel_scale: PixelScale,
    /// Seed of all random initial weights.
    pub seed: u64,
}

/// What is trained besides the mask decoder. Blocks are counted from 0, those of TinyViT over all
/// stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum EncoderTuning {
    /// Nothing.
    Decoder,
    /// Prompt tokens of the decoder.
    Prompts {
        /// Number of tokens.
        tokens: usize,
    },
    /// Low-rank changes of linear layers of the encoder, and the prompt encoder's embedding for no
    /// prompt.
    Lora {
        /// The rank.
        rank: usize,
        /// The changed layers.
        targets: LoraTargets,
        /// The first changed block. Those before are computed once and cached.
        first_block: usize,
    },
    /// Bottlenecks in each block of the encoder.
    Adapters {
        /// Width of the block divided by that of the bottleneck.
        reduction: usize,
    },
    /// Prompts of the image's high frequencies and patch embedding for each block.
    FrequencyPrompts {
        /// Width of the blocks divided by that of the prompts.
        reduction: usize,
    },
    /// Biases and norms of the encoder.
    Biases,
    /// The whole encoder.
    Full,
}

impl EncoderTuning {
    /// SAMed (arXiv 2304.13785): rank 4, queries and values of all blocks.
    pub fn samed() -> Self {
        Self::Lora { rank: 4, targets: LoraTargets::QueryValue, first_block: 0 }
    }

    /// LoRA of the last blocks alone (arXiv 2502.00418): rank 32, queries, keys, values and MLPs of
    /// the last quarter of a ViT's blocks, or of TinyViT's last stage.
    pub fn late_lora(encoder: &EncoderConfig) -> Self {
        let first_block = match encoder {
            EncoderConfig::Vit(config) => config.depth - config.depth.div_ceil(4),
            _ => encoder.first_blocks().pop().unwrap_or(0),
        };
        Self::Lora { rank: 32, targets: LoraTargets::All, first_block }
    }

    /// Medical SAM Adapter (arXiv 2304.12620): bottlenecks of a quarter of the width.
    pub fn medical_sam_adapter() -> Self {
        Self::Adapters { reduction: 4 }
    }

    /// SAM-Adapter (arXiv 2304.09148): prompts of a thirty-second of the width.
    pub fn sam_adapter() -> Self {
        Self::FrequencyPrompts { reduction: 32 }
    }

    /// The first block that is not part of the foundation: `Some(None)` if the whole encoder is the
    /// foundation, `None` if there is no foundation, since even the first layer is trained or
    /// the image itself is used.
    pub(super) fn first_block(self) -> Option<Option<usize>> {
        match self {
            Self::Decoder | Self::Prompts { .. } => Some(None),
            Self::Lora { first_block, .. } => Some(Some(first_block)),
            Self::Adapters { .. } => Some(Some(0)),
            Self::FrequencyPrompts { .. } | Self::Biases | Self::Full => None,
        }
    }

    /// Whether the foundation has transformer blocks, whose output is worth caching.
    pub fn has_cached_blocks(self) -> bool {
        match self.first_block() {
            Some(first) => first != Some(0),
            None => false,
        }
    }

    /// Whether a tensor of SAM's checkpoint is trained, by its official name; `None` for tensors of
    /// the mask decoder, whose own tuning decides, and for those that the checkpoint does not have.
    pub(super) fn trains(self, name: &str) -> Option<bool> {
        if name.starts_with("prompt_encoder.") {
            let is_used = name == "prompt_encoder.no_mask_embed.weight";
            return Some(is_used && matches!(self, Self::Lora { .. } | Self::Full));
        }
        let name = name.strip_prefix("image_encoder.")?;
        Some(match self {
            Self::Full => true,
            Self::Biases => {
                let norms = [".norm1.weight", ".norm2.weight", ".norm.weight"];
                let is_norm = norms.iter().any(|norm| name.ends_with(norm));
                name.ends_with(".bias")
                    || is_norm
                    || ["neck.1.weight", "neck.3.weight"].contains(&name)
            }
            _ => false,
        })
    }
}

impl EncoderConfig {
    /// Width, and hidden width of the MLP, of each transformer block.
    pub(super) fn block_widths(&self) -> Vec<[usize; 2]> {
        match self {
            Self::Vit(config) => {
                vec![[config.embed_dim, config.mlp_ratio * config.embed_dim]; config.depth]
            }
            Self::TinyVit(config) => (1..4)
                .flat_map(|stage| {
                    let width = config.embed_dims[stage];
                    vec![[width, config.expand_ratio * width]; config.depths[stage]]
                })
                .collect(),
            Self::Custom(_) => Vec::new(),
        }
    }

    /// The blocks before which the encoder can be divided into a frozen and an adapted part.
    fn first_blocks(&self) -> Vec<usize> {
        match self {
            Self::Vit(config) => (0..config.depth).collect(),
            Self::TinyVit(config) => {
                vec![0, config.depths[1], config.depths[1] + config.depths[2]]
            }
            Self::Custom(_) => Vec::new(),
        }
    }

    /// The block of a ViT, or the stage of TinyViT that begins with the block.
    pub(super) fn split_layer(&self, block: usize) -> usize {
        match self {
            Self::TinyVit(_) => {
                let first = self.first_blocks();
                1 + first.iter().position(|&first| first == block).expect("a valid first block")
            }
            _ => block,
        }
    }
}

impl SamTuningConfig {
    /// The model over an image encoder with the input that [`SamLstConfig::for_encoder`] has.
    pub fn for_encoder(encoder: EncoderConfig, num_classes: usize, tuning: EncoderTuning) -> Self {
        Self::from_ladder(&SamLstConfig::for_encoder(encoder, num_classes), tuning)
    }

    /// The model with a ladder's foundation, decoder and input.
    pub fn from_ladder(ladder: &SamLstConfig, tuning: EncoderTuning) -> Self {
        Self {
            encoder: ladder.encoder.clone(),
            decoder: ladder.decoder.clone(),
            tuning,
            input_size: ladder.input_size,
            pixel_scale: ladder.pixel_scale,
            seed: ladder.seed,
        }
    }

    pub(super) fn prompt_encoder(&self) -> PromptEncoderConfig {
        PromptEncoderConfig::new()
            .with_embed_dim(self.decoder.embed_dim)
            .with_stride(self.encoder.stride())
    }

    fn validate_tuning(&self) -> Result<(), InvalidSetting> {
        let widths = self.encoder.block_widths();
        let is_vit = matches!(self.encoder, EncoderConfig::Vit(_));
        let name = || self.encoder.name();
        if !matches!(self.tuning, EncoderTuning::Decoder | EncoderTuning::Prompts { .. }) {
            require(
                !widths.is_empty(),
                "encoder",
                name(),
                "SAM's ViT or TinyViT, whose blocks the method changes",
            )?;
        }
        let narrowest = widths.iter().map(|[width, _]| *width).min().unwrap_or(0);
        match self.tuning {
            EncoderTuning::Decoder | EncoderTuning::Biases | EncoderTuning::Full => Ok(()),
            EncoderTuning::Prompts { tokens } => {
                require(tokens > 0, "tuning.prompts.tokens", tokens, "at least 1")
            }
            EncoderTuning::Lora { rank, first_block, .. } => {
                require(
                    (1..=narrowest).contains(&rank),
                    "tuning.lora.rank",
                    rank,
                    "at least 1 and at most the width of the encoder's blocks",
                )?;
                let expected = if is_vit {
                    "the index of one of the encoder's blocks, from 0"
                } else {
                    "the first block of a stage of TinyViT: in LiteMedSAM and MobileSAM 0, 2 or 8"
                };
                let found = first_block;
                let is_first = self.encoder.first_blocks().contains(&found);
                require(is_first, "tuning.lora.first_block", found, expected)
            }
            EncoderTuning::Adapters { reduction } => require(
                reduction > 0 && widths.iter().all(|&[w, _]| is_positive_multiple(w, reduction)),
                "tuning.adapters.reduction",
                reduction,
                "a divisor of the width of the encoder's blocks",
            ),
            EncoderTuning::FrequencyPrompts { reduction } => {
                require(
                    is_vit,
                    "encoder",
                    name(),
                    "SAM's ViT, since the prompts are computed from its patch embedding",
                )?;
                require(
                    reduction > 0 && is_positive_multiple(narrowest, reduction),
                    "tuning.frequency_prompts.reduction",
                    reduction,
                    "a divisor of the width of the encoder's blocks",
                )
            }
        }
    }
}

impl NetworkConfig for SamTuningConfig {
    const METHOD: &'static str = "sam-tuning";

    fn num_classes(&self) -> usize {
        self.decoder.num_masks
    }

    fn input_size(&self) -> usize {
        self.input_size
    }

    fn logits_size(&self) -> usize {
        4 * (self.input_size / self.encoder.stride())
    }

    fn has_movable_features(&self) -> bool {
        self.tuning.has_cached_blocks()
    }

    fn seed(&self) -> u64 {
        self.seed
    }

    fn set_seed(&mut self, seed: u64) {
        self.seed = seed;
    }

    fn validate(&self) -> Result<(), ConfigError> {
        // A ladder without a side network checks the encoder, the decoder and the input.
        SamLstConfig::new(self.encoder.clone(), self.decoder.clone())
            .with_input_size(self.input_size)
            .validate_without_side()?;
        Ok(self.validate_tuning()?)
    }
}
