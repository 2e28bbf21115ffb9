//! Every random choice from (seed, epoch, index), so that a resumed run repeats the one that was not interrupted.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Keeps the choices of one (seed, epoch, index) apart.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose {
    View = 1,
    Order = 2,
    Validation = 3,
    Phantom = 4,
}

pub(crate) fn generator(purpose: Purpose, seed: u64, epoch: u64, index: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (bytes, number) in key
        .chunks_exact_mut(8)
        .zip([seed, epoch, index, purpose as u64])
    {
        bytes.copy_from_slice(&number.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// A number below `end`.
pub(crate) fn below(end: u64, purpose: Purpose, seed: u64, epoch: u64, index: u64) -> u64 {
    next_below(&mut generator(purpose, seed, epoch, index), end)
}

/// The high half of a product: no value is likelier than another by more than 2^-64.
pub(crate) fn next_below(generator: &mut ChaCha8Rng, end: u64) -> u64 {
    ((u128::from(generator.next_u64()) * u128::from(end)) >> 64) as u64
}

fn shuffled(purpose: Purpose, seed: u64, epoch: u64, count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    let mut generator = generator(purpose, seed, epoch, 0);
    for last in (1..count).rev() {
        let pick = next_below(&mut generator, last as u64 + 1) as usize;
        order.swap(last, pick);
    }
    order
}

/// The order in which an epoch goes through `count` examples (Fisher and Yates).
pub fn epoch_order(seed: u64, epoch: u64, count: usize) -> Vec<usize> {
    shuffled(Purpose::Order, seed, epoch, count)
}

/// The patients that validate are the first of this.
pub(crate) fn validation_order(seed: u64, count: usize) -> Vec<usize> {
    shuffled(Purpose::Validation, seed, 0, count)
}
