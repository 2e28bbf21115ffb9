//! Summary statistics of a list of values.

/// The arithmetic mean; `None` if `values` is empty.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The standard deviation of a sample, with `n - 1` in the denominator; `None` for fewer than two
/// values.
pub fn standard_deviation(values: &[f64]) -> Option<f64> {
    let mean = mean(values).filter(|_| values.len() > 1)?;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some((squares / (values.len() - 1) as f64).sqrt())
}

/// The percentile of values in ascending order, with linear interpolation between the nearest
/// ranks as in NumPy's `percentile`.
///
/// # Panics
///
/// If `ascending` is empty or `percent` is not in `[0, 100]`.
pub(crate) fn percentile(ascending: &[f64], percent: f64) -> f64 {
    assert!((0.0..=100.0).contains(&percent), "percent must lie in [0, 100], found {percent}");
    let rank = percent / 100.0 * (ascending.len() - 1) as f64;
    let below = rank as usize;
    let above = (below + 1).min(ascending.len() - 1);
    ascending[below] + (rank - below as f64) * (ascending[above] - ascending[below])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_of_values_and_of_an_empty_list() {
        assert_eq!(mean(&[1.0, 2.0, 6.0]), Some(3.0));
        assert_eq!(mean(&[-0.5]), Some(-0.5));
        assert_eq!(mean(&[]), None);
    }

    #[test]
    fn standard_deviation_is_that_of_a_sample() {
        // numpy.std([1, 2, 6], ddof=1)
        let deviation = standard_deviation(&[1.0, 2.0, 6.0]).expect("three values");
        assert!((deviation - 2.6457513110645907).abs() < 1e-12);
        assert_eq!(standard_deviation(&[3.0, 3.0]), Some(0.0));
        assert_eq!(standard_deviation(&[3.0]), None);
        assert_eq!(standard_deviation(&[]), None);
    }

    #[test]
    fn percentile_interpolates_between_ranks() {
        let values = [0.0, 1.0, 2.0, 10.0];
        assert_eq!(percentile(&values, 0.0), 0.0);
        assert_eq!(percentile(&values, 50.0), 1.5);
        assert_eq!(percentile(&values, 100.0), 10.0);
        assert_eq!(percentile(&[3.0], 95.0), 3.0);
    }

    #[test]
    #[should_panic(expected = "percent must lie in [0, 100], found 101")]
    fn percentile_above_100_panics() {
        percentile(&[0.0, 1.0], 101.0);
    }
}
