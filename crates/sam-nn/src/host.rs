//! Kernels for tensors that live in this program's memory, that is on Burn's CPU backend.
//!
//! Burn's CPU backend calls the C library once per element for `exp` and `erf`. Here both are polynomials that the
//! compiler turns into vector instructions, chosen for the processor at run time. Everywhere else, and on the tape,
//! Burn's own operations are used. When Burn's are as fast, this file can go: nothing outside it knows.

use burn::tensor::{DType, Device, Tensor, TensorData, activation};
use pulp::Arch;
use rayon::prelude::*;

/// Values that a thread takes at a time: a quarter of a megabyte, which fits its cache.
const CHUNK: usize = 64 * 1024;
/// Sums and maxima run in so many lanes, since the compiler may not reorder one running sum into several.
const LANES: usize = 16;

/// Whether the kernels here serve the tensor: 32-bit values in this program's memory, off the tape.
pub fn serves<const D: usize>(tensor: &Tensor<D>) -> bool {
    tensor.dtype() == DType::F32 && is_host(&tensor.device()) && !tensor.is_autodiff()
}

/// Burn tells a device's kind only to those who compiled its backend in, which a library must not; its name does.
fn is_host(device: &Device) -> bool {
    format!("{device:?}").contains("Flex")
}

/// Exact GELU, `x * (1 + erf(x / sqrt 2)) / 2`.
pub(crate) fn gelu<const D: usize>(input: Tensor<D>) -> Tensor<D> {
    in_place(input, CHUNK, |values| {
        for value in values {
            let x = f64::from(*value);
            *value = (x * (0.5 + 0.5 * erf(x * std::f64::consts::FRAC_1_SQRT_2))) as f32;
        }
    })
}

/// Softmax over the last axis, with its own buffer where nobody else holds it. See [`serves`] for where it is fast;
/// elsewhere it is Burn's.
///
/// # Shapes
///
/// - input, output: `[.., N]`
pub fn softmax<const D: usize>(input: Tensor<D>) -> Tensor<D> {
    let width = input.dims()[D - 1];
    if !serves(&input) || width == 0 {
        return activation::softmax(input, D - 1);
    }
    let rows = (CHUNK / width).max(1);
    in_place(input, rows * width, |values| {
        for row in values.chunks_exact_mut(width) {
            softmax_row(row);
        }
    })
}

#[inline(always)]
fn softmax_row(row: &mut [f32]) {
    let largest = lanes(row, f32::NEG_INFINITY, |a, b| if a > b { a } else { b });
    for value in row.iter_mut() {
        *value = exp(*value - largest);
    }
    let scale = 1.0 / lanes(row, 0.0, |a, b| a + b);
    for value in row.iter_mut() {
        *value *= scale;
    }
}

/// Folds a row in [`LANES`] lanes.
#[inline(always)]
fn lanes(row: &[f32], start: f32, fold: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = fold(*lane, value);
        }
    }
    lanes
        .iter()
        .chain(rest)
        .fold(start, |total, &value| fold(total, value))
}

/// Applies a kernel to chunks of a tensor's values, on all threads.
fn in_place<const D: usize>(
    input: Tensor<D>,
    chunk: usize,
    kernel: impl Fn(&mut [f32]) + Sync,
) -> Tensor<D> {
    let device = input.device();
    // The backend hands over its buffer and takes it back: nothing is copied unless it is shared.
    let mut data: TensorData = input.into_data();
    let arch = Arch::new();
    match data.as_mut_slice::<f32>() {
        Ok(values) => values
            .par_chunks_mut(chunk)
            .for_each(|values| arch.dispatch(|| kernel(values))),
        Err(error) => panic!("host kernels take 32-bit values: {error:?}"),
    }
    Tensor::from_data(data, &device)
}

/// `e^x` for `x <= 88`, with a relative error of at most 4e-7; 0 below -87.
///
/// `e^x = 2^n e^r` with an integer `n` and `|r| <= ln 2 / 2`; `e^r` by its Taylor series.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Adding it leaves the nearest integer in the lowest bits of the sum.
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23
    // ln 2 in two parts, so that n * ln 2 is exact enough to be subtracted.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let underflow = x < -87.0;
    let x = if underflow { -87.0 } else { x };
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let series = 1.0 / 5040.0;
    let series = series * r + 1.0 / 720.0;
    let series = series * r + 1.0 / 120.0;
    let series = series * r + 1.0 / 24.0;
    let series = series * r + 1.0 / 6.0;
    let series = series * r + 0.5;
    let series = series * r + 1.0;
    let series = series * r + 1.0;
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(1.0_f32.to_bits()));
    if underflow { 0.0 } else { series * power }
}

/// The error function to 1e-9: `x P(x^2) / Q(x^2)` for `|x| <= 4`, beyond which `erf` is 1 in 32 bits. The coefficients
/// are a minimax fit by iteratively weighted least squares. In 64 bits, since in 32 the rounding of the sums would show.
#[inline(always)]
fn erf(x: f64) -> f64 {
    const P: [f64; 7] = [
        -4.021286563e-8,
        5.273804031e-7,
        3.187628454e-4,
        3.088824257e-3,
        5.146853693e-2,
        1.694741644e-1,
        1.128379175e0,
    ];
    const Q: [f64; 7] = [
        -5.246086153e-7,
        4.487672607e-5,
        1.082265866e-3,
        1.379137223e-2,
        1.067876085e-1,
        4.835260116e-1,
        1.000000000e0,
    ];
    let x = if x > 4.0 { 4.0 } else { x };
    let x = if x < -4.0 { -4.0 } else { x };
    let square = x * x;
    let polynomial = |coefficients: [f64; 7]| {
        coefficients
            .into_iter()
            .fold(0.0, |sum, coefficient| sum * square + coefficient)
    };
    x * polynomial(P) / polynomial(Q)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Distribution, Tolerance};

    #[test]
    fn the_cpu_backend_is_recognised() {
        assert!(is_host(&Device::flex()));
        let tensor = Tensor::<1>::zeros([1], &Device::flex());
        assert!(serves(&tensor));
        assert!(!serves(&tensor.autodiff()));
    }

    #[test]
    fn exp_and_erf_equal_the_64_bit_ones() {
        for i in -200_000..=200_000 {
            let x = i as f32 * 4.4e-4; // [-88, 88]
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs();
            assert!(error <= 4e-7 * expected + 1e-37, "exp({x}): {error:e}");
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);

        let device = Device::flex();
        let points = Tensor::<1>::from_floats(
            [-9.0, -4.0, -2.5, -1e-3, 0.0, 1e-6, 0.5, 3.9, 60.0],
            &device,
        );
        let dense = Tensor::<1>::random([200_000], Distribution::Uniform(-6.0, 6.0), &device);
        for input in [points, dense] {
            let ours: Vec<_> = input
                .to_data()
                .iter::<f64>()
                .map(|x| erf(x) as f32)
                .collect();
            let ours = TensorData::new(ours, input.dims());
            let expected = input.erf().into_data();
            ours.assert_approx_eq::<f32>(&expected, Tolerance::absolute(1.3e-7));
        }
    }

    #[test]
    fn gelu_and_softmax_equal_burns() {
        let device = Device::flex();
        // Widths that do and do not fill the lanes and the chunks.
        for (rows, width) in [(1, 1), (7, 196), (3, 1024), (20, 4_099)] {
            let input = Tensor::<2>::random([rows, width], Distribution::Normal(0.0, 5.0), &device);
            let expected: Vec<f64> = input
                .to_data()
                .iter::<f64>()
                .collect::<Vec<_>>()
                .chunks(width)
                .flat_map(|row| {
                    let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let sum: f64 = row.iter().map(|x| (x - largest).exp()).sum();
                    row.iter().map(move |x| (x - largest).exp() / sum)
                })
                .collect();
            let ours = softmax(input.clone()).into_data();
            for (ours, expected) in ours.iter::<f64>().zip(expected) {
                let error = (ours - expected).abs();
                // The difference to the largest, up to 40 here, is rounded before it becomes a factor.
                assert!(
                    error <= 4e-6 * expected + 1e-37,
                    "{ours:e}, expected {expected:e}"
                );
            }
            let expected = activation::gelu(input.clone()).into_data();
            let before = input.to_data();
            gelu(input.clone())
                .into_data()
                .assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(1e-6, 4e-7));
            input.into_data().assert_eq(&before, true); // a shared buffer is left alone
        }
    }

    #[test]
    fn softmax_of_extremes_is_finite() {
        let device = Device::flex();
        let input = Tensor::<2>::from_floats([[-3e38, 3e38], [0.0, -200.0], [5.0, 5.0]], &device);
        let expected = TensorData::from([[0.0_f32, 1.0], [1.0, 0.0], [0.5, 0.5]]);
        softmax(input)
            .into_data()
            .assert_approx_eq::<f32>(&expected, Tolerance::absolute(1e-7));
    }
}
