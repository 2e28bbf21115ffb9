//! Segmentation networks to compare ladder side-tuning with. They see the image alone and all their
//! parameters are trained.
//!
//! - [`UNet`]: the U-Net (Ronneberger et al., arXiv 1505.04597) with the choices of nnU-Net (Isensee
//!   et al., arXiv 1809.10486) in two dimensions.
//! - [`AttentionUNet`]: a U-Net with attention gates (Oktay et al., arXiv 1804.03999).
//! - [`TransUNet`]: a ResNet50 and a Vision Transformer with a convolutional decoder (Chen et al.,
//!   arXiv 2102.04306), and the networks that its paper compares it with.
//! - [`SwinUNet`]: a U-shaped network of Swin Transformer blocks (Cao et al., arXiv 2105.05537).
//!
//! # Notation
//!
//! `B` batch, `S` input size in pixels, `K` number of classes, `C` channels, `G` grid size in tokens,
//! `H` and `W` height and width.

mod attention_gate;
mod attention_unet;
mod conv_block;
mod instance_norm;
mod levels;
mod swin_unet;
mod trans_unet;
mod unet;

pub use attention_gate::AttentionGate;
pub use attention_unet::{AttentionUNet, AttentionUNetConfig, GatedUpBlock};
pub use conv_block::{ConvNorm, DoubleConv};
pub use instance_norm::{InstanceNorm2d, InstanceNorm2dConfig};
pub use swin_unet::{PatchExpand, SwinUNet, SwinUNetConfig, SwinUpStage};
pub use trans_unet::{SkipConnections, TransUNet, TransUNetConfig, UpsampledBlock};
pub use unet::{ConvBlock, FeatureInput, FeatureProjection, UNet, UNetConfig, UpBlock};
