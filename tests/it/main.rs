//! Integration tests of the whole library on the CPU: parity with PyTorch, training, weights and
//! invalid input.

mod backends;
mod bad_input;
mod baselines;
mod batches;
mod data;
mod embeddings;
mod ensembles;
mod full_size;
mod gradients;
mod losses;
mod metrics;
mod parity;
mod predictor;
#[cfg(feature = "tui")]
mod screen;
mod sharing;
mod side_encoder;
mod support;
mod tiny_vit;
mod training;
mod trajectory;
mod tuning;
mod unet;
mod unet_ladder;
mod weights;
