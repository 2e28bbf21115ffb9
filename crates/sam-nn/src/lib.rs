//! Layers and functions shared by SAM's image encoders and mask decoder.
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
mod neck;
mod precision;
mod resize;

pub use activation::{Activation, gelu};
pub use flatten_leading::flatten_leading;
pub use layer_norm::layer_norm;
pub use layer_norm_2d::{LayerNorm2d, LayerNorm2dConfig};
pub use linear::linear;
pub use mlp::{MlpBlock, MlpBlockConfig};
pub use neck::{Neck, NeckConfig};
pub use precision::cast_like;
pub use resize::{interpolation_matrix, resize_bilinear, resize_linear};
