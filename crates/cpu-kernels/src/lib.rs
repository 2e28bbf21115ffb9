//! CPU kernels for operations that are slow in Burn's own CPU backend, Flex: linear layer, layer
//! norm and GELU; attention of the decoder; windowed attention and depthwise convolution of the
//! image encoders; convolution, batch norm, max-pooling and resizing of the side network; group
//! and instance norm of U-Nets; the sums of the losses. All have gradients.
//! Also a step of Adam.
//!
//! Images are channels-last, `[B, H, W, C]`: the values that a product reads one after another are
//! then contiguous, so nothing is unfolded (im2col) or transposed.
//!
//! [`is_supported`] says whether the functions accept a tensor; for any other tensor, callers use
//! Burn's own operations. With the feature `flex`, tensors of Flex are supported, with and without
//! autodiff. Without it, no tensor is.
//!
//! Results do not depend on the number of threads.
//!
//! Each operation is one file: the function that a layer calls, the operation's place in Burn's
//! autodiff, and its kernels. `autodiff.rs` connects operations to Burn, `microkernel.rs` holds the
//! innermost loops of all matrix products. Callers ask [`is_supported`] and have Burn's own operations
//! for other tensors, so this crate can be removed once those are as fast.

#[cfg(feature = "flex")]
mod adam;
mod adam_step;
#[cfg(feature = "flex")]
mod attention;
#[cfg(feature = "flex")]
mod autodiff;
#[cfg(feature = "flex")]
mod batch_norm;
#[cfg(feature = "flex")]
mod buffer;
#[cfg(feature = "flex")]
mod channel_sums;
#[cfg(feature = "flex")]
mod class_sums;
#[cfg(feature = "flex")]
mod conv2d;
#[cfg(feature = "flex")]
mod conv_transpose2d;
#[cfg(feature = "flex")]
mod depthwise_conv2d;
#[cfg(feature = "flex")]
mod gelu;
#[cfg(feature = "flex")]
mod group_norm;
#[cfg(feature = "flex")]
mod layer_norm;
#[cfg(feature = "flex")]
mod linear;
#[cfg(feature = "flex")]
mod math;
#[cfg(feature = "flex")]
mod max_pool;
#[cfg(feature = "flex")]
mod microkernel;
#[cfg(feature = "flex")]
mod outer_products;
#[cfg(feature = "flex")]
mod resample;
mod statistics;
mod taps;
#[cfg(not(feature = "flex"))]
mod unsupported;
#[cfg(feature = "flex")]
mod window_attention;
#[cfg(feature = "flex")]
mod winograd;

pub use adam_step::AdamStep;
pub use statistics::Statistics;
pub use taps::Taps;
#[cfg(not(feature = "flex"))]
pub use unsupported::{
    adam_step, attention, batch_norm, biased_window_attention, class_sums, conv_transpose2d,
    conv2d, depthwise_conv2d, gelu, group_norm, is_supported, layer_norm, linear, linear_by_image,
    max_pool, moments, resample, window_attention,
};
#[cfg(feature = "flex")]
pub use {
    adam::adam_step,
    attention::attention,
    autodiff::is_supported,
    batch_norm::{batch_norm, moments},
    class_sums::class_sums,
    conv_transpose2d::conv_transpose2d,
    conv2d::conv2d,
    depthwise_conv2d::depthwise_conv2d,
    gelu::gelu,
    group_norm::group_norm,
    layer_norm::layer_norm,
    linear::{linear, linear_by_image},
    max_pool::max_pool,
    resample::resample,
    window_attention::{biased_window_attention, window_attention},
};
