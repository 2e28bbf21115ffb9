//! Scores of predictions and pictures of them.

mod folders;
mod pictures;
mod scores;

pub use folders::{CasePairs, FolderPair, FolderPairs, LabelNumbers};
pub use pictures::{Picture, outlined, radiological, write_png};
pub use scores::{EvaluationError, write_reports};
