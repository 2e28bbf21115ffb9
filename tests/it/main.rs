//! Parity with PyTorch, training, weights and bad input, of the whole library on the CPU.

#[path = "../../examples/shared/device.rs"]
#[expect(dead_code, reason = "the examples' command line")]
mod device;

mod backends;
mod bad_input;
mod batches;
mod data;
mod embeddings;
mod full_size;
mod gradients;
mod losses;
mod metrics;
mod parity;
mod screen;
mod sharing;
mod side_encoder;
mod support;
mod training;
mod trajectory;
mod weights;
