//! Sums by channel. Threads sum parts in 32 bits; the parts are added in their order and in 64
//! bits, so that the result does not depend on the number of threads.

use rayon::prelude::*;

/// Rows of a part.
const ROWS: usize = 512;

/// The sum of all rows of a `[rows, channels]` matrix.
pub fn sum_rows(values: &[f32], channels: usize) -> Vec<f32> {
    let parts: Vec<Vec<f32>> = values
        .par_chunks(ROWS * channels)
        .map(|rows| {
            let mut sums = vec![0.0; channels];
            for row in rows.chunks_exact(channels) {
                for (sum, &value) in sums.iter_mut().zip(row) {
                    *sum += value;
                }
            }
            sums
        })
        .collect();
    to_f32(add_parts(&parts, channels))
}

/// The sum of parts that have one value for each of `channels`.
pub fn add_parts<'a>(parts: impl IntoIterator<Item = &'a Vec<f32>>, channels: usize) -> Vec<f64> {
    let mut total = vec![0.0; channels];
    for part in parts {
        for (total, &sum) in total.iter_mut().zip(part) {
            *total += f64::from(sum);
        }
    }
    total
}

pub fn to_f32(sums: Vec<f64>) -> Vec<f32> {
    sums.into_iter().map(|sum| sum as f32).collect()
}
