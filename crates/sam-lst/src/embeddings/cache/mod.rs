//! The embedding cache: one safetensors file for each embedding.
//!
//! # On disk
//!
//! Below the cache folder lies one folder for each combination of foundation, input size and
//! precision, named after them, so embeddings of other weights are never found. In it, the
//! embedding with key `1f3a...` is the file `1f/1f3a....safetensors`: the tensor `embedding` of shape
//! `[C, G, G]`, with a checksum of its values in the metadata. Each file is written under a temporary
//! name and renamed, so an interruption leaves no partial embedding; a file that was damaged later
//! fails its checksum, is removed, and the embedding is computed again. Any number of processes, on
//! one machine or on several that share the folder, may read and write at the same time.
//!
//! Processes that compute embeddings at the same time divide the work through locked files in
//! `claims`: a lock is released with its process, however that ends.

mod claim;
mod error;
mod file;

pub(crate) use claim::Claim;
pub use error::CacheError;

use super::EmbeddingKey;
use crate::model::{EmbeddingPrecision, NetworkConfig, SegmentationModel, SegmentationNetwork};
use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What the embeddings of a cache are: of which network, and how large.
///
/// [`SegmentationModel::embedding_cache`] fills it in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbeddingKind {
    /// A name that no other foundation has, nor this one in another precision.
    pub foundation: String,
    /// Side of the images in pixels.
    pub input_size: usize,
    /// Channels, rows and columns.
    pub shape: [usize; 3],
    /// Precision on disk.
    pub precision: EmbeddingPrecision,
}

impl EmbeddingKind {
    fn folder_name(&self) -> String {
        format!("{}-{}-{}", self.foundation, self.input_size, self.precision.name())
    }
}

/// Embeddings of one foundation at one input size, on disk.
///
/// Any number of threads and processes may use one folder at the same time.
#[derive(Debug)]
pub struct EmbeddingCache {
    folder: PathBuf,
    kind: EmbeddingKind,
    limit: Option<Limit>,
    /// Set once a write has failed or the limit was reached.
    closed: AtomicBool,
}

#[derive(Debug)]
struct Limit {
    bytes: u64,
    count: Mutex<Count>,
}

/// Number of embeddings in the folder, including those of other processes as of `counted`.
#[derive(Debug)]
struct Count {
    embeddings: usize,
    counted: Instant,
}

/// How long a count of the folder's embeddings is trusted while other processes may write.
const RECOUNT_INTERVAL: Duration = Duration::from_secs(1);

/// Result of [`EmbeddingCache::insert`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Insertion {
    /// The embedding was written.
    Written,
    /// The embedding was already there.
    Present,
    /// The limit was reached or an earlier write failed.
    NoRoom,
}

impl EmbeddingCache {
    /// Opens the part of a cache folder that holds embeddings of one kind. `limit_bytes` bounds the
    /// size of all embeddings in that part together.
    ///
    /// # Errors
    ///
    /// [`CacheError`] if the folder can neither be read nor created.
    pub fn open(
        folder: impl AsRef<Path>,
        kind: EmbeddingKind,
        limit_bytes: Option<u64>,
    ) -> Result<Self, CacheError> {
        let folder = folder.as_ref().join(kind.folder_name());
        std::fs::create_dir_all(&folder)
            .map_err(|source| CacheError::Write { file: folder.clone(), source })?;
        let mut cache = Self { folder, kind, limit: None, closed: AtomicBool::new(false) };
        cache
            .remove_abandoned_files()
            .map_err(|source| CacheError::Read { file: cache.folder.clone(), source })?;
        if let Some(bytes) = limit_bytes {
            let count = Count { embeddings: cache.count()?, counted: Instant::now() };
            cache.limit = Some(Limit { bytes, count: Mutex::new(count) });
        }
        Ok(cache)
    }

    /// Bytes that the values of one embedding take.
    pub fn embedding_bytes(&self) -> u64 {
        (self.kind.shape.iter().product::<usize>() * self.kind.precision.bytes()) as u64
    }

    /// Number of embeddings in the folder, written by this process or by others. Lists the folder.
    ///
    /// # Errors
    ///
    /// [`CacheError::Read`] if the folder cannot be listed.
    pub fn count(&self) -> Result<usize, CacheError> {
        let mut count = 0;
        self.visit_embeddings(|| {
            count += 1;
            ControlFlow::Continue(())
        })?;
        Ok(count)
    }

    /// Whether the folder holds no embedding.
    ///
    /// # Errors
    ///
    /// [`CacheError::Read`] if the folder cannot be listed.
    pub fn is_empty(&self) -> Result<bool, CacheError> {
        let mut empty = true;
        self.visit_embeddings(|| {
            empty = false;
            ControlFlow::Break(())
        })?;
        Ok(empty)
    }

    /// Whether an embedding is there.
    pub fn contains(&self, key: &EmbeddingKey) -> bool {
        self.file(key).is_file()
    }

    /// Precision of the values on disk.
    pub fn precision(&self) -> EmbeddingPrecision {
        self.kind.precision
    }

    /// Channels, rows and columns of an embedding.
    pub fn shape(&self) -> [usize; 3] {
        self.kind.shape
    }

    /// Reads an embedding. `None` if it is not there, or was damaged and has to be computed again.
    ///
    /// # Errors
    ///
    /// [`CacheError::Read`] if its file is there and cannot be read.
    pub fn get(&self, key: &EmbeddingKey) -> Result<Option<Vec<f32>>, CacheError> {
        let file = self.file(key);
        let bytes = match std::fs::read(&file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(CacheError::Read { file, source }),
        };
        let values = file::decode(&bytes, &self.kind);
        if values.is_none() {
            // Otherwise the embedding would count as present and never be written again.
            match std::fs::remove_file(&file) {
                Err(source) if source.kind() != ErrorKind::NotFound => {
                    return Err(CacheError::Read { file, source });
                }
                _ => {}
            }
        }
        Ok(values)
    }

    /// Writes an embedding, if there is room.
    ///
    /// # Errors
    ///
    /// [`CacheError::Write`] the first time that a write fails, [`CacheError::Limit`] the first time
    /// that the limit is reached; from then on there is [no room](Insertion::NoRoom).
    ///
    /// # Panics
    ///
    /// If the number of values is not that of an embedding.
    pub fn insert(&self, key: EmbeddingKey, values: &[f32]) -> Result<Insertion, CacheError> {
        let shape = self.kind.shape;
        assert_eq!(
            values.len(),
            shape.iter().product::<usize>(),
            "an embedding of shape {shape:?}"
        );
        if self.contains(&key) {
            return Ok(Insertion::Present);
        }
        if self.closed.load(Ordering::Relaxed) {
            return Ok(Insertion::NoRoom);
        }
        let written = self.reserve().and_then(|()| {
            let file = self.file(&key);
            let bytes = file::encode(values, &self.kind);
            file::write(&self.folder, &file, &bytes)
                .map_err(|source| CacheError::Write { file, source })
        });
        match written {
            Ok(()) => Ok(Insertion::Written),
            // Another thread has reported it.
            Err(_) if self.closed.swap(true, Ordering::Relaxed) => Ok(Insertion::NoRoom),
            Err(error) => Err(error),
        }
    }

    /// Reserves the computation of everything that belongs to `name`, unless another process or
    /// thread holds it. On a file system without locks every caller gets it: work may then be done
    /// twice, with the same result.
    ///
    /// # Errors
    ///
    /// [`CacheError::Write`] if the folder cannot be written.
    pub(crate) fn claim(&self, name: EmbeddingKey) -> Result<Option<Claim>, CacheError> {
        let folder = self.folder.join("claims");
        Claim::acquire(&folder, &name.to_string())
            .map_err(|source| CacheError::Write { file: folder, source })
    }

    /// Checks that the limit leaves room for another embedding.
    ///
    /// # Errors
    ///
    /// [`CacheError::Limit`] if it does not.
    pub(crate) fn check_limit(&self) -> Result<(), CacheError> {
        let Some(limit) = &self.limit else { return Ok(()) };
        let mut count = limit.count.lock().unwrap_or_else(PoisonError::into_inner);
        if count.counted.elapsed() > RECOUNT_INTERVAL {
            *count = Count { embeddings: self.count()?, counted: Instant::now() };
        }
        self.check_room(limit, count.embeddings)
    }

    /// Counts an embedding that is about to be written.
    fn reserve(&self) -> Result<(), CacheError> {
        self.check_limit()?;
        let Some(limit) = &self.limit else { return Ok(()) };
        let mut count = limit.count.lock().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have taken the last room since.
        self.check_room(limit, count.embeddings)?;
        count.embeddings += 1;
        Ok(())
    }

    fn check_room(&self, limit: &Limit, embeddings: usize) -> Result<(), CacheError> {
        if self.embedding_bytes().saturating_mul(embeddings as u64 + 1) <= limit.bytes {
            return Ok(());
        }
        Err(CacheError::Limit { folder: self.folder.clone(), embeddings, limit_bytes: limit.bytes })
    }

    fn file(&self, key: &EmbeddingKey) -> PathBuf {
        let name = key.to_string();
        self.folder.join(&name[..2]).join(format!("{name}.{}", file::EXTENSION))
    }

    /// Removes temporary files that interrupted processes left behind.
    fn remove_abandoned_files(&self) -> std::io::Result<()> {
        for entry in std::fs::read_dir(&self.folder)? {
            let file = entry?.path();
            if file::is_abandoned(&file) {
                match std::fs::remove_file(&file) {
                    Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Calls `visit` for each embedding in the folder, until it breaks.
    fn visit_embeddings(
        &self,
        mut visit: impl FnMut() -> ControlFlow<()>,
    ) -> Result<(), CacheError> {
        let mut walk = || -> std::io::Result<()> {
            for entry in std::fs::read_dir(&self.folder)? {
                let entry = entry?;
                // Embeddings lie in folders named after the first two digits of their keys.
                if entry.file_name().len() != 2 || !entry.file_type()?.is_dir() {
                    continue;
                }
                for file in std::fs::read_dir(entry.path())? {
                    if file::is_embedding(&file?.path()) && visit().is_break() {
                        return Ok(());
                    }
                }
            }
            Ok(())
        };
        walk().map_err(|source| CacheError::Read { file: self.folder.clone(), source })
    }
}

impl<N: SegmentationNetwork> SegmentationModel<N> {
    /// Opens the part of a cache folder that holds the foundation's embeddings at this model's input
    /// size; `None` if the network uses no embedding. `limit_bytes` bounds the size of all its
    /// embeddings together.
    ///
    /// # Errors
    ///
    /// [`CacheError`] if the folder can neither be read nor created.
    pub fn embedding_cache(
        &self,
        folder: impl AsRef<Path>,
        precision: EmbeddingPrecision,
        limit_bytes: Option<u64>,
    ) -> Result<Option<EmbeddingCache>, CacheError> {
        let Some(foundation) = self.embedding_foundation() else { return Ok(None) };
        let input_size = self.config().input_size();
        let grid = input_size / foundation.stride();
        let kind = EmbeddingKind {
            foundation: foundation.cache_name(),
            input_size,
            shape: [foundation.feature_channels(), grid, grid],
            precision,
        };
        EmbeddingCache::open(folder, kind, limit_bytes).map(Some)
    }
}
