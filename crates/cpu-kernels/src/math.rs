//! `exp`, `erf` and softmax. The C library computes `exp` and `erf` one value at a time; here both
//! are polynomials that the compiler vectorises.

/// Lanes of a sum or a maximum, since the compiler may not reorder one running sum into several.
pub const LANES: usize = 16;

/// Replaces a row by its softmax without the normalising factor, which is returned.
#[inline(always)]
pub fn unnormalized_softmax(row: &mut [f32]) -> f32 {
    let largest = fold_lanes(row, f32::NEG_INFINITY, |a, b| if a > b { a } else { b });
    for value in row.iter_mut() {
        *value = exp(*value - largest);
    }
    1.0 / fold_lanes(row, 0.0, |a, b| a + b)
}

/// Folds a row in [`LANES`] lanes.
#[inline(always)]
fn fold_lanes(row: &[f32], start: f32, fold: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = fold(*lane, value);
        }
    }
    rest.iter().fold(fold_halves(lanes, &fold), |total, &value| fold(total, value))
}

/// Folds all lanes, each time the upper half onto the lower one.
#[inline(always)]
pub fn fold_halves(mut lanes: [f32; LANES], fold: impl Fn(f32, f32) -> f32) -> f32 {
    let mut count = LANES;
    while count > 1 {
        count /= 2;
        let (low, high) = lanes.split_at_mut(count);
        for (low, high) in low.iter_mut().zip(high) {
            *low = fold(*low, *high);
        }
    }
    lanes[0]
}

/// `e^x` for `x <= 88`, with a relative error of at most 4e-7; 0 below -87.
///
/// `e^x = 2^n e^r` with an integer `n` and `|r| <= ln 2 / 2`; `e^r` by its Taylor series.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding it rounds to the nearest integer, in the lowest bits of the sum.
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23
    // ln 2 in two parts, so that n * ln 2 is subtracted with enough precision.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let underflow = x < -87.0;
    let x = if underflow { -87.0 } else { x };
    let rounded = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, x));
    const SERIES: [f32; 8] =
        [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let series = polynomial(SERIES, r);
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(1.0_f32.to_bits()));
    if underflow { 0.0 } else { series * power }
}

/// The error function to 4e-7, the rounding of 32-bit values included: `x P(x^2) / Q(x^2)` for
/// `|x| <= 3.9`, beyond which it is constant, within 6e-8 of 1. The coefficients are a minimax fit
/// by iteratively reweighted least squares.
#[inline(always)]
#[expect(clippy::approx_constant, reason = "a coefficient of the fit")]
pub fn erf(x: f32) -> f32 {
    const LIMIT: f32 = 3.9;
    const P: [f32; 6] =
        [2.050_393_7e-6, 2.874_575_4e-4, 3.836_870_7e-3, 5.296_69e-2, 1.919_408_1e-1, 1.128_379];
    const Q: [f32; 6] =
        [3.823_082_4e-5, 1.181_733_9e-3, 1.510_919_3e-2, 1.147_581_3e-1, 5.034_349e-1, 1.0];
    let x = if x > LIMIT { LIMIT } else { x };
    let x = if x < -LIMIT { -LIMIT } else { x };
    let square = x * x;
    x * polynomial(P, square) / polynomial(Q, square)
}

/// A polynomial by Horner's rule; the coefficient of the highest power is first.
#[inline(always)]
fn polynomial<const N: usize>(coefficients: [f32; N], x: f32) -> f32 {
    coefficients.into_iter().fold(0.0, |sum: f32, coefficient| sum.mul_add(x, coefficient))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By its series, or by the continued fraction of its complement: slow, and exact to 1e-14.
    fn reference_erf(x: f64) -> f64 {
        if x.abs() < 3.0 {
            let mut term = x;
            let mut sum = x;
            for n in 1..120 {
                term *= -x * x / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            return sum * std::f64::consts::FRAC_2_SQRT_PI;
        }
        let fraction = (1..200).rev().fold(0.0, |below, n| f64::from(n) / 2.0 / (x.abs() + below));
        let complement =
            (-x * x).exp() * 0.5 * std::f64::consts::FRAC_2_SQRT_PI / (x.abs() + fraction);
        (1.0 - complement).copysign(x)
    }

    #[test]
    fn exp_and_erf_match_64_bit_references() {
        for i in -200_000..=200_000 {
            let x = i as f32 * 4.4e-4; // [-88, 88]
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs();
            assert!(error <= 4e-7 * expected + 1e-37, "exp({x}): {error:e}");
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
        for i in -90_000..=90_000 {
            let x = i as f32 * 1e-4; // [-9, 9]
            let error = (f64::from(erf(x)) - reference_erf(f64::from(x))).abs();
            assert!(error <= 4e-7, "erf({x}): {error:e}");
        }
    }

    #[test]
    fn softmax_of_extreme_values_is_finite() {
        for (row, expected) in
            [([-3e38, 3e38], [0.0, 1.0]), ([0.0, -200.0], [1.0, 0.0]), ([5.0, 5.0], [0.5, 0.5])]
        {
            let mut softmax = row;
            let factor = unnormalized_softmax(&mut softmax);
            assert_eq!(softmax.map(|value| value * factor), expected);
        }
    }
}
