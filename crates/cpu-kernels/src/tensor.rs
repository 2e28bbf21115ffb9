//! The kernels as functions of tensors.

use burn::tensor::Tensor;

/// Whether the functions of this crate take the tensor: 32-bit values in this machine's memory.
pub fn serves<const D: usize>(tensor: &Tensor<D>) -> bool {
    #[cfg(feature = "flex")]
    return crate::tape::serves(tensor);
    #[cfg(not(feature = "flex"))]
    return {
        let _ = tensor;
        false
    };
}

/// Whether the functions that have no gradient take the tensor: as [`serves`], and off the tape.
pub fn serves_off_tape<const D: usize>(tensor: &Tensor<D>) -> bool {
    !tensor.is_autodiff() && serves(tensor)
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

/// A transposed convolution without padding, with the same stride along both axes.
///
/// # Shapes
///
/// - input: `[B, H, W, channels in]`
/// - weight: `[channels in, channels out, kernel rows, kernel columns]`
/// - bias: `[channels out]`
/// - output: `[B, (H - 1) * stride + kernel rows, (W - 1) * stride + kernel columns, channels out]`
///
/// # Panics
///
/// If the input is not one that [`serves`], or the shapes do not fit.
#[cfg_attr(not(feature = "flex"), expect(unused_variables))]
pub fn conv_transpose2d(
    input: Tensor<4>,
    weight: Tensor<4>,
    bias: Tensor<1>,
    stride: usize,
) -> Tensor<4> {
    serve!(crate::tape::conv_transpose2d(input, weight, bias, stride))
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

/// Exact GELU, `x * (1 + erf(x / sqrt 2)) / 2`, with an exact gradient.
///
/// # Panics
///
/// If the input is not one that [`serves`].
#[cfg_attr(not(feature = "flex"), expect(unused_variables))]
pub fn gelu<const D: usize>(input: Tensor<D>) -> Tensor<D> {
    serve!(crate::tape::gelu(input))
}

/// A linear layer, `input * weight + bias`.
///
/// # Shapes
///
/// - input: `[N, inputs]`
/// - weight: `[inputs, outputs]`
/// - bias: `[outputs]`
/// - output: `[N, outputs]`
///
/// # Panics
///
/// If one of them is not one that [`serves`], or the shapes do not fit.
#[cfg_attr(not(feature = "flex"), expect(unused_variables))]
pub fn linear(input: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
    serve!(crate::tape::linear(input, weight, bias))
}

/// Layer normalisation over the last axis: `(x - mean) / sqrt(variance + epsilon) * weight + bias`.
///
/// # Shapes
///
/// - input, output: `[.., C]`
/// - weight, bias: `[C]`
///
/// # Panics
///
/// If one of them is not one that [`serves`], or the shapes do not fit.
#[cfg_attr(not(feature = "flex"), expect(unused_variables))]
pub fn layer_norm<const D: usize>(
    input: Tensor<D>,
    [weight, bias]: [Tensor<1>; 2],
    epsilon: f64,
) -> Tensor<D> {
    serve!(crate::tape::layer_norm(input, [weight, bias], epsilon))
}

/// Attention within windows with decomposed relative positions, `softmax(q k^T / sqrt(d) + q R_h + q R_w) v` for each head,
/// without the scores ever being in memory.
///
/// Windows of side `s` cover the grid from its first token on; those that reach beyond it are filled up with `padding`.
///
/// # Shapes
///
/// - qkv: `[B, G, G, 3 * heads * d]`
/// - padding: `[3 * heads * d]`
/// - positions, along the height and the width: `[2 s - 1, d]`
/// - output: `[B, G, G, heads * d]`
///
/// # Panics
///
/// If one of them is not one that [`serves_off_tape`], or the shapes do not fit.
#[cfg_attr(not(feature = "flex"), expect(unused_variables))]
pub fn window_attention(
    qkv: Tensor<4>,
    padding: Tensor<1>,
    positions: [Tensor<2>; 2],
    heads: usize,
) -> Tensor<4> {
    serve!(crate::tape::window_attention(
        qkv, padding, positions, heads
    ))
}
