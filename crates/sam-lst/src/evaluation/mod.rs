//! Scores of predictions and pictures of them.

mod folders;
mod pictures;
mod scores;

pub use folders::{FolderEvaluation, evaluate_folders};
pub use pictures::{Picture, outlined, radiological, write_png};
pub use scores::{EvaluationError, write_reports};
