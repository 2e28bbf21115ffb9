//! Buffers of outputs.

use rayon::prelude::*;

/// Values of a block, which is written at once.
const BLOCK: usize = 64;
/// Blocks for which one thread is enough: a quarter of a megabyte.
const BLOCKS_PER_THREAD: usize = 1024;

/// Zeros for an output, written by all threads: for a large output, one thread would take as long
/// as the kernel that fills it.
pub fn zeros(count: usize) -> Vec<f32> {
    blocks(count, |_| [0.0; BLOCK])
}

/// `function` of all values, given a block of them at a time; after the last value, of zeros.
pub fn map(values: &[f32], function: impl Fn(&mut [f32; BLOCK]) + Send + Sync) -> Vec<f32> {
    blocks(values.len(), |index| {
        let values = &values[index * BLOCK..];
        let mut block = values.first_chunk().copied().unwrap_or_else(|| {
            let mut block = [0.0; BLOCK];
            block[..values.len()].copy_from_slice(values);
            block
        });
        function(&mut block);
        block
    })
}

fn blocks(count: usize, block: impl Fn(usize) -> [f32; BLOCK] + Send + Sync) -> Vec<f32> {
    let blocks = (0..count.div_ceil(BLOCK)).into_par_iter().with_min_len(BLOCKS_PER_THREAD);
    let mut values = blocks.map(block).collect::<Vec<_>>().into_flattened();
    values.truncate(count);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_is_mapped_once() {
        for count in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK * BLOCKS_PER_THREAD + 7] {
            let values: Vec<f32> = (0..count).map(|value| value as f32).collect();
            let mapped = map(&values, |block| block.iter_mut().for_each(|value| *value += 0.5));
            assert_eq!(mapped.len(), count);
            assert!(mapped.iter().zip(&values).all(|(mapped, value)| *mapped == value + 0.5));
            assert_eq!(zeros(count), vec![0.0; count]);
        }
    }
}
