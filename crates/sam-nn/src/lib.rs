//! Layers and functions that SAM's image encoder and mask decoder share.
//!
//! Shapes use one letter each throughout: `B` batch, `C` channels, `H` and `W` height and width.

mod activation;
pub mod host;
mod layer_norm_2d;
mod mlp;
mod resize;
mod rows;

pub use activation::{Activation, gelu};
pub use layer_norm_2d::{LayerNorm2d, LayerNorm2dConfig};
pub use mlp::{Mlp, MlpConfig};
pub use resize::{interpolation_matrix, resize_bilinear, resize_linear};
pub use rows::rows;
