//! Inference: label volumes from images.

mod segmenter;

pub use segmenter::{OutputResampling, SegmentationConfig, Segmenter};
