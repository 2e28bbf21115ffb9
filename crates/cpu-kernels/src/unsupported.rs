//! The crate's functions without the feature `flex`: no tensor is supported, so callers use Burn's
//! own operations and never reach the panics below.
#![expect(unused_variables, reason = "the signatures are those of the feature `flex`")]

use crate::{AdamStep, Statistics, Taps};
use burn::tensor::Tensor;

/// Whether the functions of this crate accept the tensor. Always false without the feature `flex`.
pub fn is_supported<const D: usize>(tensor: &Tensor<D>) -> bool {
    false
}

fn unsupported() -> ! {
    panic!("this function needs the feature `flex`; call `is_supported` first")
}

/// A step of Adam or AdamW. Panics without the feature `flex`.
pub fn adam_step<const D: usize>(
    step: AdamStep,
    parameter: Tensor<D>,
    gradient: Tensor<D>,
    moments: Option<[Tensor<D>; 2]>,
) -> (Tensor<D>, [Tensor<D>; 2]) {
    unsupported()
}

/// A convolution without bias. Panics without the feature `flex`.
pub fn conv2d(input: Tensor<4>, weight: Tensor<4>, stride: usize, padding: usize) -> Tensor<4> {
    unsupported()
}

/// A transposed convolution without padding. Panics without the feature `flex`.
pub fn conv_transpose2d(
    input: Tensor<4>,
    weight: Tensor<4>,
    bias: Tensor<1>,
    stride: usize,
) -> Tensor<4> {
    unsupported()
}

/// A depthwise convolution with bias. Panics without the feature `flex`.
pub fn depthwise_conv2d(
    input: Tensor<4>,
    weight: Tensor<4>,
    bias: Tensor<1>,
    stride: usize,
) -> Tensor<4> {
    unsupported()
}

/// Attention within windows with a bias for each distance. Panics without the feature `flex`.
pub fn biased_window_attention(qkv: Tensor<4>, padding: Tensor<1>, biases: Tensor<2>) -> Tensor<4> {
    unsupported()
}

/// Mean and biased variance of each channel. Panics without the feature `flex`.
pub fn moments(input: &Tensor<4>) -> Statistics {
    unsupported()
}

/// Batch normalisation, with an optional shortcut and ReLU. Panics without the feature `flex`.
pub fn batch_norm(
    input: Tensor<4>,
    statistics: &Statistics,
    [weight, bias]: [Tensor<1>; 2],
    epsilon: f64,
    shortcut: Option<Tensor<4>>,
    relu: bool,
) -> Tensor<4> {
    unsupported()
}

/// Group normalisation, then leaky ReLU. Panics without the feature `flex`.
pub fn group_norm(
    input: Tensor<4>,
    groups: usize,
    [weight, bias]: [Tensor<1>; 2],
    epsilon: f64,
    negative_slope: f32,
) -> Tensor<4> {
    unsupported()
}

/// Max-pooling over 3 x 3 windows with stride 2 and padding 1. Panics without the feature `flex`.
pub fn max_pool(input: Tensor<4>) -> Tensor<4> {
    unsupported()
}

/// Weighted sums of rows and columns. Panics without the feature `flex`.
pub fn resample(input: Tensor<4>, rows: Taps, columns: Taps) -> Tensor<4> {
    unsupported()
}

/// Sums over the pixels of each class. Panics without the feature `flex`.
pub fn class_sums(logits: Tensor<4>, classes: Vec<u32>, largest: f32) -> Tensor<2> {
    unsupported()
}

/// Exact GELU. Panics without the feature `flex`.
pub fn gelu<const D: usize>(input: Tensor<D>) -> Tensor<D> {
    unsupported()
}

/// A linear layer whose weight differs from image to image. Panics without the feature `flex`.
pub fn linear_by_image(input: Tensor<3>, weight: Tensor<3>) -> Tensor<3> {
    unsupported()
}

/// A linear layer. Panics without the feature `flex`.
pub fn linear(input: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
    unsupported()
}

/// Layer normalisation over the last axis. Panics without the feature `flex`.
pub fn layer_norm<const D: usize>(
    input: Tensor<D>,
    [weight, bias]: [Tensor<1>; 2],
    epsilon: f64,
) -> Tensor<D> {
    unsupported()
}

/// Multi-head attention. Panics without the feature `flex`.
pub fn attention(query: Tensor<3>, key: Tensor<3>, value: Tensor<3>, heads: usize) -> Tensor<3> {
    unsupported()
}

/// Windowed attention with relative positions. Panics without the feature `flex`.
pub fn window_attention(
    qkv: Tensor<4>,
    padding: Tensor<1>,
    positions: [Tensor<2>; 2],
    heads: usize,
) -> Tensor<4> {
    unsupported()
}
