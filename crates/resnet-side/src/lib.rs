//! The side network: a ResNet (He et al., *Deep Residual Learning*, arXiv 1512.03385) up to `layer3`, as torchvision
//! builds it, without `layer4` and the classifier.
//!
//! A `[B, 3, S, S]` image becomes `[B, 4 w, S / 16, S / 16]`, for a stem of `w` channels (64 in the published networks):
//! the size of SAM's image embedding.

mod basic_block;
mod batch_norm;
mod resnet;

pub use basic_block::{BasicBlock, BasicBlockConfig, Downsample};
pub use batch_norm::{BatchNorm2d, BatchNorm2dConfig};
pub use resnet::{ResNetSide, ResNetSideConfig};
