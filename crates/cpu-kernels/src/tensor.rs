//! The kernels as functions of tensors.

use burn::tensor::Tensor;

/// Whether the functions of this crate take the tensor: 32-bit values in this machine's memory.
pub fn serves(tensor: &Tensor<4>) -> bool {
    #[cfg(feature = "flex")]
    return crate::tape::serves(tensor);
    #[cfg(not(feature = "flex"))]
    return {
        let _ = tensor;
        false
    };
}

/// Means and variances of channels.
#[derive(Debug, Clone)]
pub struct Statistics {
    /// Means, `[C]`.
    pub mean: Tensor<1>,
    /// Variances, `[C]`.
    pub variance: Tensor<1>,
}

/// Calls the function of the same name below, where there is one.
macro_rules! serve {
    ($call:expr) => {{
        #[cfg(feature = "flex")]
        {
            $call
        }
        #[cfg(not(feature = "flex"))]
        {
            unreachable!("`serves` says so first")
        }
    }};
}

/// A convolution without bias, with the same stride and padding along both axes.
///
/// # Shapes
///
/// - input: `[B, H, W, channels in]`
/// - weight: `[channels out, channels in, kernel rows, kernel columns]`
/// - output: `[B, H', W', channels out]`
///
/// # Panics
///
/// If the input is not one that [`serves`], or the shapes do not fit.
#[cfg_attr(not(feature = "flex"), expect(unused_variables))]
pub fn conv2d(input: Tensor<4>, weight: Tensor<4>, stride: usize, padding: usize) -> Tensor<4> {
    serve!(crate::tape::conv2d(input, weight, stride, padding))
}

/// Mean and biased variance of each channel, off the tape.
///
/// # Shapes
///
/// - input: `[B, H, W, C]`
///
/// # Panics
///
/// If the input is not one that [`serves`].
#[cfg_attr(not(feature = "flex"), expect(unused_variables))]
pub fn moments(input: &Tensor<4>) -> Statistics {
    serve!(crate::tape::moments(input))
}

/// `(input - mean) / sqrt(variance + epsilon) * weight + bias`, plus a short cut, then ReLU if asked for.
///
/// On the tape the statistics have to be the [`moments`] of this very input: the gradient takes into account that they change
/// with it.
///
/// # Shapes
///
/// - input, shortcut, output: `[B, H, W, C]`
/// - weight, bias: `[C]`
///
/// # Panics
///
/// If the input is not one that [`serves`], or the shapes do not fit.
#[cfg_attr(not(feature = "flex"), expect(unused_variables))]
pub fn batch_norm(
    input: Tensor<4>,
    statistics: &Statistics,
    [weight, bias]: [Tensor<1>; 2],
    epsilon: f64,
    shortcut: Option<Tensor<4>>,
    relu: bool,
) -> Tensor<4> {
    serve!(crate::tape::batch_norm(
        input,
        statistics,
        [weight, bias],
        epsilon,
        shortcut,
        relu
    ))
}

/// Max-pooling by 3 x 3 windows with stride 2 and padding 1.
///
/// # Shapes
///
/// - input: `[B, H, W, C]`
/// - output: `[B, ceil(H / 2), ceil(W / 2), C]`
///
/// # Panics
///
/// If the input is not one that [`serves`].
#[cfg_attr(not(feature = "flex"), expect(unused_variables))]
pub fn max_pool(input: Tensor<4>) -> Tensor<4> {
    serve!(crate::tape::max_pool(input))
}
