//! TinyViT (Wu et al., *TinyViT*, arXiv 2207.10666), the image encoder of MobileSAM (Zhang et al.,
//! *Faster Segment Anything*, arXiv 2306.14289) and of LiteMedSAM.
//!
//! The input may be any square image that the strides of the stages divide: there are no absolute
//! position embeddings, and the attention biases are relative within a window.
//!
//! Batch norms are part of the convolution before them: the published encoders are used frozen, so
//! the norm is folded into the convolution's weight and bias when weights are loaded
//! ([`fold_batch_norm`]).
//!
//! # Notation
//!
//! `B` batch, `S` input size in pixels, `G` grid size of a stage in tokens, `C` width of a stage,
//! `s` side of a window in tokens, `N = s * s` tokens that attend to each other, `d` width of a
//! head. All feature maps are channels-last, `[B, G, G, C]`.

mod attention;
mod block;
mod conv_bn;
mod encoder;
mod part;
mod stage;

pub use attention::{Attention, AttentionConfig};
pub use block::{Block, BlockConfig, Mlp};
pub use conv_bn::{BATCH_NORM_EPSILON, BatchNorm, ConvBn, ConvBnConfig, fold_batch_norm};
pub use encoder::{PatchEmbed, TinyVit, TinyVitConfig};
pub use part::TinyVitPart;
pub use stage::{AttentionStage, ConvStage, MbConv, PatchMerging, Stage};
