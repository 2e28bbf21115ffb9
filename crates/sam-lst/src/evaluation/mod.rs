//! Scores of predictions and pictures of them.

mod folders;
mod html;
mod pictures;
mod scores;

pub use folders::{CasePairs, FolderPair, FolderPairs, LabelNumbers};
pub use html::HtmlReport;
pub(crate) use html::{STYLE, render, with_spread};
pub use pictures::{Picture, outlined, radiological, write_png};
pub use scores::{EvaluatedCase, EvaluationError, write_reports};
