//! Layers and functions shared by the image encoders, the mask decoder, the side network and the
//! baselines.
//!
//! # Notation
//!
//! `B` batch, `C` channels, `H` and `W` height and width, `N` number of vectors.

mod activation;
mod adaptation;
mod attention;
mod batch_norm;
mod convolution;
mod flatten_leading;
mod group_norm_2d;
mod layer_norm;
mod layer_norm_2d;
mod linear;
mod mlp;
mod neck;
mod pointwise;
mod precision;
mod resize;
mod taps;
mod upsample;
mod windows;

pub use activation::{Activation, gelu};
pub use adaptation::{AdaptedLayer, BlockAdaptation, Unadapted};
pub use attention::attention;
pub use batch_norm::{BatchNorm2d, BatchNorm2dConfig};
pub use convolution::{convolve, convolve_same, upsample_3x3};
pub use flatten_leading::flatten_leading;
pub use group_norm_2d::{GroupNorm2d, GroupNorm2dConfig};
pub use layer_norm::layer_norm;
pub use layer_norm_2d::{LayerNorm2d, LayerNorm2dConfig};
pub use linear::{linear, matrix_product};
pub use mlp::{MlpBlock, MlpBlockConfig};
pub use neck::{Neck, NeckConfig};
pub use pointwise::pointwise_channels_last;
pub use precision::{cast_like, round_weights};
pub use resize::{
    double_aligned, interpolation_matrix, resize_bilinear, resize_bilinear_channels_last,
    resize_linear,
};
pub use taps::forward_with_taps;
pub use upsample::{upsample, upsample_channels_last};
pub use windows::{QkvOrder, attend_in_windows};
