//! Segmentation networks to compare ladder side-tuning with. They see the image alone and are
//! trained from scratch.
//!
//! [`UNet`] is the U-Net (Ronneberger et al., arXiv 1505.04597) with the choices of nnU-Net (Isensee
//! et al., arXiv 1809.10486) in two dimensions.
//!
//! # Notation
//!
//! `B` batch, `S` input size in pixels, `K` number of classes, `C` channels, `H` and `W` height and
//! width.

mod instance_norm;
mod unet;

pub use instance_norm::{InstanceNorm2d, InstanceNorm2dConfig};
pub use unet::{ConvBlock, UNet, UNetConfig, UpBlock};
