//! Convolution, batch norm and max-pooling on the CPU, forward and backward, where Burn's CPU backend is slow.
//!
//! Tensors are channels-last, `[B, H, W, C]`: the values that a product needs one after the other then lie so, and nothing is
//! unfolded or transposed. [`serves`] says whether a tensor can be taken; with the feature `flex`, those of Burn's CPU backend
//! can, on the tape and off it. Everywhere else Burn's own operations are used. When they are as fast, this crate can go:
//! only `resnet-side` knows it.
//!
//! Results do not depend on the number of threads.

#[cfg(feature = "flex")]
mod convolution;
#[cfg(feature = "flex")]
mod norm;
#[cfg(feature = "flex")]
mod pool;
#[cfg(feature = "flex")]
mod product;
#[cfg(feature = "flex")]
mod tape;
mod tensor;

pub use tensor::{Statistics, batch_norm, conv2d, max_pool, moments, serves};
