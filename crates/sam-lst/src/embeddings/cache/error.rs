use crate::weights::WeightsError;
use std::path::PathBuf;

/// Why the embedding cache cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// A file or folder of the cache cannot be read.
    #[error("cannot read the embedding cache {}: {source}", file.display())]
    Read {
        /// The file or folder.
        file: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The foundation was offloaded, is needed again, and cannot be loaded.
    #[error("cannot load the foundation again: {0}")]
    Foundation(#[from] WeightsError),
    /// An embedding could not be written. Existing embeddings remain; this run writes no more.
    #[error(
        "cannot write to the embedding cache {}: {source}; existing embeddings remain, this run \
         writes no more",
        file.display()
    )]
    Write {
        /// The file or folder.
        file: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The cache has reached its size limit. Existing embeddings remain; this run writes no more.
    #[error(
        "the embedding cache {} has reached its limit of {} GB with {embeddings} embeddings; \
         embeddings that are not in it are computed each time",
        folder.display(),
        *limit_bytes as f64 / 1e9
    )]
    Limit {
        /// The cache's folder for these embeddings.
        folder: PathBuf,
        /// Number of embeddings in it.
        embeddings: usize,
        /// Size limit in bytes.
        limit_bytes: u64,
    },
}
