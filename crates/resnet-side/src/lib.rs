//! The side network: torchvision's ResNet (He et al., *Deep Residual Learning*, arXiv 1512.03385)
//! up to `layer3`, without `layer4` and the classifier.
//!
//! It maps an image `[B, 3, S, S]` to `[B, 4 w, S / 16, S / 16]`, the grid size of SAM's image
//! embedding. With a feature pyramid over its three layers (Lin et al., *Feature Pyramid Networks*,
//! arXiv 1612.03144), it maps the image to the grid of a foundation of stride 4,
//! `[B, C, S / 4, S / 4]`.
//!
//! # Notation
//!
//! `B` batch, `S` input size in pixels, `C` channels, `H` and `W` height and width, `w` channels of
//! the stem (64 in the published networks).

mod pyramid;
mod residual_block;
mod resnet;

pub use pyramid::Pyramid;
pub use residual_block::{Downsample, ResidualBlock, ResidualBlockConfig};
pub use resnet::{Mix, ResNetSide, ResNetSideConfig};
