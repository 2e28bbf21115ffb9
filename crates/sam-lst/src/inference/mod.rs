//! Inference: label volumes from images with a trained model, and masks from prompts with the
//! original SAM.

mod predictor;
mod resize;
mod segmenter;

pub use predictor::{ImagePrompts, Masks, Predictor, PredictorError};
pub use segmenter::{OutputResampling, SegmentationConfig, Segmenter};
