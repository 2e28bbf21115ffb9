//! Layers and functions that SAM's image encoder and mask decoder share.
//!
//! Shapes use one letter each throughout: `B` batch, `C` channels, `H` and `W` height and width.

mod activation;
mod layer_norm;
mod layer_norm_2d;
mod linear;
mod mlp;
mod precision;
mod resize;
mod rows;

pub use activation::{Activation, gelu};
pub use layer_norm::layer_norm;
pub use layer_norm_2d::{LayerNorm2d, LayerNorm2dConfig};
pub use linear::linear;
pub use mlp::{Mlp, MlpConfig};
pub use precision::in_precision_of;
pub use resize::{interpolation_matrix, resize_bilinear, resize_linear};
pub use rows::rows;
