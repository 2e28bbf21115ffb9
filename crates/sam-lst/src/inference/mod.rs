//! Inference: label volumes from images with a trained model, and masks from prompts with the
//! original SAM.

mod predictor;
mod pretrained;
mod resize;
mod segmenter;
mod volume_boxes;

pub use crate::model::OutputResampling;
pub use predictor::{ImagePrompts, Masks, Predictor, PredictorError};
pub use pretrained::PretrainedModel;
pub use segmenter::{EnsembleError, SegmentationConfig, Segmenter};
pub use volume_boxes::{VolumeBox, VolumeObject, VolumeObjects};
