//! What the U-Nets ask of their levels and images.

use burn::tensor::{Tensor, assert_shape};

/// Checks the settings of a U-Net.
///
/// # Panics
///
/// If there are fewer than two levels, or a number is zero.
pub fn check(num_classes: usize, channels: &[usize]) {
    assert!(channels.len() >= 2, "at least two levels, found {channels:?}");
    assert!(num_classes > 0, "at least one class");
    assert!(!channels.contains(&0), "channels of a level are positive: {channels:?}");
}

/// Checks an image, `[B, 3, H, W]`, for a network that halves the size `halvings` times.
///
/// # Panics
///
/// If the image does not have 3 channels or its size does not fit.
pub fn check_image(image: &Tensor<4>, halvings: usize) {
    assert_shape!(image, [_, 3, _, _]);
    let stride = 1 << halvings;
    let [_, _, height, width] = image.dims();
    assert!(
        height % stride == 0 && width % stride == 0,
        "the size of the image is a multiple of {stride}, found {height} x {width}"
    );
}
