//! Random choices from (seed, epoch, index), so that a resumed run repeats the uninterrupted one.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Separates the random streams that share one (seed, epoch, index).
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose {
    View = 1,
    Order = 2,
    Validation = 3,
    Phantom = 4,
    Intensity = 5,
}

pub(crate) fn generator(purpose: Purpose, seed: u64, epoch: u64, index: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (bytes, number) in key.chunks_exact_mut(8).zip([seed, epoch, index, purpose as u64]) {
        bytes.copy_from_slice(&number.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// A random number below `end`.
pub(crate) fn random_below(end: u64, purpose: Purpose, seed: u64, epoch: u64, index: u64) -> u64 {
    next_below(&mut generator(purpose, seed, epoch, index), end)
}

/// The generator's next number, scaled to below `end`: the high half of a product, so that the
/// probabilities of two values differ by at most 2^-64.
pub(crate) fn next_below(generator: &mut ChaCha8Rng, end: u64) -> u64 {
    ((u128::from(generator.next_u64()) * u128::from(end)) >> 64) as u64
}

/// A random permutation of `0..count` (Fisher and Yates).
fn permutation(purpose: Purpose, seed: u64, epoch: u64, count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    let mut generator = generator(purpose, seed, epoch, 0);
    for last in (1..count).rev() {
        let pick = next_below(&mut generator, last as u64 + 1) as usize;
        order.swap(last, pick);
    }
    order
}

/// The order in which an epoch visits `count` examples: a random permutation of `0..count`.
pub fn epoch_order(seed: u64, epoch: u64, count: usize) -> Vec<usize> {
    permutation(Purpose::Order, seed, epoch, count)
}

/// A random order of `count` patients, the first of which form the validation split.
pub(crate) fn validation_order(seed: u64, count: usize) -> Vec<usize> {
    permutation(Purpose::Validation, seed, 0, count)
}
