//! Parameter-efficient fine-tuning: small modules that are trained beside the frozen blocks of an
//! image encoder. Each of them is a [`BlockAdaptation`], so it fits any encoder with such blocks.
//!
//! - [`BlockLora`]: low-rank changes of linear layers (Hu et al., *LoRA*, arXiv 2106.09685), of
//!   queries and values as in SAMed (Zhang and Liu, arXiv 2304.13785), or of queries, keys, values
//!   and the MLP (arXiv 2502.00418)
//! - [`BlockAdapters`]: bottlenecks after attention and beside the MLP, as in Medical SAM Adapter (Wu
//!   et al., arXiv 2304.12620)
//! - [`FrequencyPrompts`]: prompts from the image's high frequencies and its patch embedding, added
//!   to the input of each block, as in SAM-Adapter (Chen et al., arXiv 2304.09148)
//!
//! # Notation
//!
//! `B` batch, `S` input size in pixels, `G` grid size in tokens, `C` width of a block, `N` number of
//! tokens, `r` rank.

mod adapter;
mod frequency;
mod lora;

pub use adapter::{Adapter, BlockAdapters, BlockAdaptersConfig};
pub use frequency::{BlockPrompt, FrequencyPrompts, FrequencyPromptsConfig, high_frequencies};
pub use lora::{BlockLora, BlockLoraConfig, Lora, LoraTargets};
pub use sam_lst_sam_nn::BlockAdaptation;
