//! What Burn's CPU backend is slow at: linear layers, layer norms and GELU, forward and backward, and windowed attention of SAM;
//! convolution, batch norm and max-pooling of the side network, forward and backward.
//!
//! Images are channels-last, `[B, H, W, C]`: the values that a product needs one after the other then lie so, and nothing is
//! unfolded or transposed. [`serves`] says whether a tensor can be taken; with the feature `flex`, those of Burn's CPU backend
//! can, on the tape and off it ([`serves_off_tape`] for functions without a gradient). Everywhere else Burn's own operations are
//! used. When they are as fast, this crate can go: only `sam-nn`, `sam-encoder`, `mask-decoder` and `resnet-side` know it.
//!
//! Results do not depend on the number of threads.

#[cfg(feature = "flex")]
mod attention;
#[cfg(feature = "flex")]
mod channel_sums;
#[cfg(feature = "flex")]
mod convolution;
#[cfg(feature = "flex")]
mod elementwise;
#[cfg(feature = "flex")]
mod layer_norm;
#[cfg(feature = "flex")]
mod linear;
#[cfg(feature = "flex")]
mod norm;
#[cfg(feature = "flex")]
mod pool;
#[cfg(feature = "flex")]
mod product;
#[cfg(feature = "flex")]
mod tape;
mod tensor;

pub use tensor::{
    Statistics, batch_norm, conv_transpose2d, conv2d, gelu, layer_norm, linear, max_pool, moments,
    serves, serves_off_tape, window_attention,
};
