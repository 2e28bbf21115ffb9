//! Image encoders that are pretrained on ImageNet, with the tensor names of timm: what the
//! baselines and the side networks are built from.
//!
//! - [`VisionTransformer`]: Dosovitskiy et al., arXiv 2010.11929.
//! - [`Swin`]: Liu et al., *Swin Transformer*, arXiv 2103.14030.
//! - [`ResNetV2`]: the ResNet50 in front of the hybrid Vision Transformer, with weight
//!   standardisation and group norm (Kolesnikov et al., *Big Transfer*, arXiv 1912.11370).
//!
//! All take and return channels-last tensors.
//!
//! # Notation
//!
//! `B` batch, `S` input size in pixels, `G` grid size in tokens, `N` number of tokens, `C` channels,
//! `H` and `W` height and width.

pub mod init;
mod mlp;
mod resnet_v2;
mod swin;
mod vision_transformer;
mod window_attention;

pub use mlp::Mlp;
pub use resnet_v2::{Bottleneck, ResNetV2, ResNetV2Config, Shortcut, Stage, Stem};
pub use swin::{PatchMerging, Swin, SwinBlock, SwinConfig, SwinStage};
pub use vision_transformer::{
    Attention, TransformerBlock, VisionTransformer, VisionTransformerConfig,
};
pub use window_attention::WindowAttention;
