//! Sums by channel of parts that threads have summed, taken in the parts' order and in 64 bits.

/// The sums, of parts with a value for each of `channels`.
pub fn in_64_bits<'a>(parts: impl IntoIterator<Item = &'a Vec<f32>>, channels: usize) -> Vec<f64> {
    let mut total = vec![0.0; channels];
    for part in parts {
        for (total, &sum) in total.iter_mut().zip(part) {
            *total += f64::from(sum);
        }
    }
    total
}

/// The same sums as they are kept.
pub fn narrow(sums: Vec<f64>) -> Vec<f32> {
    sums.into_iter().map(|sum| sum as f32).collect()
}
