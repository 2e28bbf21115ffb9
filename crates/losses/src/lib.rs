//! Losses on per-pixel logits: cross entropy, soft Dice, and their weighted sum as used for
//! training in arXiv 2306.12737.
//!
//! # Notation
//!
//! `B` batch, `K` classes including background, `H` and `W` height and width.

mod class_sums;
mod cross_entropy_dice;
mod soft_dice;

pub use class_sums::ClassOptions;
pub use cross_entropy_dice::{CrossEntropyDiceLoss, CrossEntropyDiceLossConfig, LossParts};
pub use soft_dice::{SoftDiceLoss, SoftDiceLossConfig};
