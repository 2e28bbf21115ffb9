//! SAM's image encoder: a ViT with windowed and global attention and decomposed relative position
//! embeddings (Kirillov et al., *Segment Anything*, arXiv 2304.02643; Li et al., *ViTDet*,
//! arXiv 2203.16527).
//!
//! [`SamEncoderConfig::vit_b`], [`vit_l`](SamEncoderConfig::vit_l) and
//! [`vit_h`](SamEncoderConfig::vit_h) are the published variants. The input may be any square image
//! whose side is a multiple of 16: the position embeddings are stored at their training size and
//! are resized to the input's grid in the forward pass.
//!
//! # Notation
//!
//! `B` batch, `S` input size in pixels, `G = S / 16` grid size in tokens, `P` grid size padded to
//! whole windows, `C` embedding width, `s` side of a window or of the grid in tokens, `N = s * s`
//! tokens that attend to each other, `d` width of a head.

mod attention;
mod block;
mod encoder;
mod part;

pub use attention::{Attention, AttentionConfig};
pub use block::{Block, BlockConfig};
pub use encoder::{PATCH_SIZE, SamEncoder, SamEncoderConfig};
pub use part::SamEncoderPart;
pub use sam_lst_sam_nn::{Neck, NeckConfig};
