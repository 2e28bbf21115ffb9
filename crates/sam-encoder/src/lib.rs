//! SAM's image encoder: a ViT with windowed and global attention and decomposed relative positions
//! (Kirillov et al., *Segment Anything*, arXiv 2304.02643; Li et al., *ViTDet*, arXiv 2203.16527).
//!
//! [`SamEncoderConfig::vit_b`], [`vit_l`](SamEncoderConfig::vit_l) and [`vit_h`](SamEncoderConfig::vit_h) are the
//! published variants. Any square input whose side is a multiple of 16 is encoded: the position tables keep the size
//! that they were trained at and are resized to the input's grid on the way.
//!
//! # Letters
//!
//! `B` batch, `S` input size in pixels, `G = S / 16` grid size in tokens, `C` embedding width, `N` tokens that attend
//! to each other (a window's or the grid's), `d` width of a head.

mod attention;
mod block;
mod encoder;

pub use attention::{Attention, AttentionConfig};
pub use block::{Block, BlockConfig};
pub use encoder::{Neck, NeckConfig, PATCH_SIZE, SamEncoder, SamEncoderConfig};
