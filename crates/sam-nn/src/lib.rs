//! Layers and functions shared by SAM's image encoder and mask decoder.
//!
//! # Notation
//!
//! `B` batch, `C` channels, `H` and `W` height and width, `N` number of vectors.

mod activation;
mod flatten_leading;
mod layer_norm;
mod layer_norm_2d;
mod linear;
mod mlp;
mod precision;
mod resize;

pub use activation::{Activation, gelu};
pub use flatten_leading::flatten_leading;
pub use layer_norm::layer_norm;
pub use layer_norm_2d::{LayerNorm2d, LayerNorm2dConfig};
pub use linear::linear;
pub use mlp::{MlpBlock, MlpBlockConfig};
pub use precision::cast_like;
pub use resize::{interpolation_matrix, resize_bilinear, resize_linear};

/// Side of a square image patch in pixels. In every variant of SAM, one token of the image encoder
/// and one pixel of the image embedding correspond to 16 x 16 pixels of the input.
pub const PATCH_SIZE: usize = 16;
