//! Losses on per-pixel logits: soft Dice, cross entropy, and their mixture, as arXiv 2306.12737 trains with.
//!
//! # Letters
//!
//! `B` batch, `K` classes including background, `H` and `W` height and width.

mod mixture;
mod pixels;
mod soft_dice;

pub use mixture::{CrossEntropyDiceLoss, CrossEntropyDiceLossConfig, LossParts};
pub use pixels::ClassOptions;
pub use soft_dice::{SoftDiceLoss, SoftDiceLossConfig};
