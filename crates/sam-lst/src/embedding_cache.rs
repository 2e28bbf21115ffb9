//! The foundation's embeddings, kept on disk: each is computed once, ever.
//!
//! # On disk
//!
//! Below the cache's folder lies one folder for each (foundation, input size, precision), named after them, so embeddings
//! of other weights are never found. In it, each process that computes embeddings appends to a pair of files of its own:
//! `.embeddings`, the values one after the other, and `.index`, a line of 40 bytes for each: its key, its place, a
//! checksum of its values and a checksum of the line. A line is written after its values. An interruption therefore leaves
//! values without a line, or a line whose checksum fails, and neither is ever taken for an embedding; values that were
//! damaged later fail their own checksum. Processes never write into each other's files.
//!
//! Processes that compute embeddings at the same time, on one machine or on several that share the folder, agree on who
//! computes what through locked files in `claims`: the lock goes with its process, however that ends.

use half::f16;
use mmap_io::MemoryMappedFile;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// How embeddings are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CachePrecision {
    /// Half precision: half the size.
    F16,
    /// As computed, so that training with the cache equals training without it bit for bit.
    F32,
}

impl CachePrecision {
    fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }

    fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
            Self::F16 => values
                .iter()
                .flat_map(|&value| f16::from_f32(value).to_le_bytes())
                .collect(),
        }
    }

    fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F32 => bytes
                .as_chunks()
                .0
                .iter()
                .map(|&bytes| f32::from_le_bytes(bytes))
                .collect(),
            Self::F16 => bytes
                .as_chunks()
                .0
                .iter()
                .map(|&bytes| f16::from_le_bytes(bytes).to_f32())
                .collect(),
        }
    }

    /// Values as they come back when they are kept.
    pub(crate) fn rounded(self, values: &[f32]) -> Vec<f32> {
        match self {
            Self::F32 => values.to_vec(),
            Self::F16 => self.decode(&self.encode(values)),
        }
    }
}

/// What an embedding is of. Two inputs of the foundation that may differ have different keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EmbeddingKey(u128);

impl EmbeddingKey {
    /// The key of what `parts` say, in their order: the slice's pixels, the view, and all that is done to them before the
    /// foundation sees them.
    pub fn new(parts: &[&[u8]]) -> Self {
        let mut hash = Xxh3::new();
        for part in parts {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self(hash.digest128())
    }

    pub(crate) fn bytes(self) -> [u8; 16] {
        self.0.to_le_bytes()
    }
}

/// What the embeddings of a cache are: of which network, and how large.
///
/// [`SamLst::embedding_cache`](crate::SamLst::embedding_cache) knows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbeddingKind {
    /// A name that no other foundation has, nor this one in another precision.
    pub foundation: String,
    /// Side of the images in pixels.
    pub input_size: usize,
    /// Channels, rows and columns.
    pub shape: [usize; 3],
    /// How they are kept.
    pub precision: CachePrecision,
}

impl EmbeddingKind {
    fn folder_name(&self) -> String {
        let precision = match self.precision {
            CachePrecision::F16 => "f16",
            CachePrecision::F32 => "f32",
        };
        format!("{}-{}-{precision}", self.foundation, self.input_size)
    }
}

/// Embeddings of one foundation at one input size, on disk.
///
/// Any number of threads and processes may use one folder at once.
#[derive(Debug)]
pub struct EmbeddingCache {
    folder: PathBuf,
    kind: EmbeddingKind,
    limit_bytes: u64,
    /// Bytes of all embeddings found or written.
    bytes: AtomicU64,
    index: RwLock<HashMap<EmbeddingKey, Place>>,
    segments: RwLock<Vec<Arc<Segment>>>,
    /// Index files, and how far they were read.
    followed: Mutex<HashMap<PathBuf, Followed>>,
    writer: Mutex<WriterState>,
}

#[derive(Debug, Clone, Copy)]
struct Followed {
    segment: usize,
    read_bytes: u64,
}

/// Some embeddings that this process computes and no other does meanwhile, as long as this is held.
#[derive(Debug)]
pub(crate) struct Claim {
    file: PathBuf,
    /// Locked as long as it is open.
    _lock: File,
}

impl Drop for Claim {
    fn drop(&mut self) {
        // What is left behind is an empty file that anybody may lock.
        let _ = std::fs::remove_file(&self.file);
    }
}

#[derive(Debug, Clone, Copy)]
struct Place {
    segment: usize,
    offset: u64,
    checksum: u64,
}

/// A file of embeddings, mapped as far as it was when last needed.
#[derive(Debug)]
struct Segment {
    file: PathBuf,
    map: RwLock<Option<MemoryMappedFile>>,
}

#[derive(Debug)]
enum WriterState {
    /// Nothing was written yet.
    Idle,
    Open(Writer),
    /// Writing failed once, or the limit was reached.
    Closed,
}

#[derive(Debug)]
struct Writer {
    values: File,
    index: File,
    segment: usize,
    next: u64,
}

/// Why the cache cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// A file or folder of the cache cannot be read.
    #[error("cannot read the embedding cache, {}: {source}", file.display())]
    Read {
        /// The file or folder.
        file: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The foundation was left on disk and cannot be read again.
    #[error("the foundation is needed again: {0}")]
    Foundation(#[from] crate::weights::WeightsError),
    /// An embedding could not be written. Those that were there still are; no more are written in this run.
    #[error(
        "cannot write to the embedding cache, {}: {source}; what is there stays, no more is kept in this run",
        file.display()
    )]
    Write {
        /// The file or folder.
        file: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The cache may hold no more. What is there stays; no more are written in this run.
    #[error(
        "the embedding cache, {}, is full: {embeddings} embeddings take the {} GB that it may hold; the others are computed \
         whenever they are needed",
        folder.display(),
        *limit_bytes as f64 / 1e9
    )]
    Limit {
        /// The cache's part for these embeddings.
        folder: PathBuf,
        /// How many it holds.
        embeddings: usize,
        /// What they may take.
        limit_bytes: u64,
    },
}

/// What became of an embedding given to [`EmbeddingCache::insert`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Insertion {
    /// It is kept.
    Kept,
    /// It was there.
    Present,
    /// The limit was reached or writing has failed before.
    NoRoom,
}

const LINE_BYTES: usize = 40;

impl EmbeddingCache {
    /// Opens the part of a cache folder that holds embeddings of one kind. `limit_bytes` bounds what all its files together may
    /// hold.
    ///
    /// # Errors
    ///
    /// [`CacheError`] if the folder can neither be read nor made.
    pub fn open(
        folder: impl AsRef<Path>,
        kind: EmbeddingKind,
        limit_bytes: Option<u64>,
    ) -> Result<Self, CacheError> {
        let folder = folder.as_ref().join(kind.folder_name());
        std::fs::create_dir_all(&folder).map_err(|source| CacheError::Write {
            file: folder.clone(),
            source,
        })?;
        let cache = Self {
            folder,
            kind,
            limit_bytes: limit_bytes.unwrap_or(u64::MAX),
            bytes: AtomicU64::new(0),
            index: RwLock::default(),
            segments: RwLock::default(),
            followed: Mutex::default(),
            writer: Mutex::new(WriterState::Idle),
        };
        cache.refresh()?;
        Ok(cache)
    }

    /// Finds what other processes have kept since the cache was opened or last refreshed.
    ///
    /// # Errors
    ///
    /// [`CacheError::Read`] if the folder or one of its indices cannot be read.
    pub fn refresh(&self) -> Result<(), CacheError> {
        let mut followed = locked(&self.followed);
        let unreadable = |source| CacheError::Read {
            file: self.folder.clone(),
            source,
        };
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(unreadable)? {
            let file = entry.map_err(unreadable)?.path();
            if file
                .extension()
                .is_some_and(|extension| extension == "index")
            {
                files.push(file);
            }
        }
        files.sort();
        for file in files {
            self.follow(&mut followed, &file)
                .map_err(|source| CacheError::Read { file, source })?;
        }
        Ok(())
    }

    /// Takes in the lines that an index has got.
    fn follow(
        &self,
        followed: &mut HashMap<PathBuf, Followed>,
        file: &Path,
    ) -> std::io::Result<()> {
        let values = file.with_extension("embeddings");
        // Without its values an index says nothing.
        let Ok(metadata) = std::fs::metadata(&values) else {
            return Ok(());
        };
        let known = followed.entry(file.to_owned()).or_insert_with(|| Followed {
            segment: self.add_segment(values),
            read_bytes: 0,
        });
        let mut opened = File::open(file)?;
        if opened.metadata()?.len() <= known.read_bytes {
            return Ok(());
        }
        opened.seek(SeekFrom::Start(known.read_bytes))?;
        let mut lines = Vec::new();
        opened.read_to_end(&mut lines)?;
        let size = self.embedding_bytes();
        let mut index = writing(&self.index);
        for line in lines.as_chunks::<LINE_BYTES>().0 {
            if let Some((key, offset, checksum)) = parse_line(line) {
                if offset
                    .checked_add(size)
                    .is_none_or(|end| end > metadata.len())
                {
                    break; // its values were cut off, or are still on their way
                }
                let place = Place {
                    segment: known.segment,
                    offset,
                    checksum,
                };
                if index.insert(key, place).is_none() {
                    self.bytes.fetch_add(size, Ordering::Relaxed);
                }
            }
            known.read_bytes += LINE_BYTES as u64;
        }
        Ok(())
    }

    /// Takes the computation of what `name` stands for, unless another process, or another part of this one, has it. Where
    /// the file system knows no locks everybody gets it: then work may be done twice, and never wrong.
    ///
    /// # Errors
    ///
    /// [`CacheError::Write`] if the folder cannot be written.
    pub(crate) fn claim(&self, name: EmbeddingKey) -> Result<Option<Claim>, CacheError> {
        let folder = self.folder.join("claims");
        let file = folder.join(format!("{:032x}", name.0));
        let open = || {
            std::fs::create_dir_all(&folder)?;
            let mut options = OpenOptions::new();
            options.create(true).truncate(false).write(true).open(&file)
        };
        let lock = open().map_err(|source| CacheError::Write {
            file: file.clone(),
            source,
        })?;
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => Ok(None),
            Ok(()) | Err(TryLockError::Error(_)) => Ok(Some(Claim { file, _lock: lock })),
        }
    }

    fn add_segment(&self, file: PathBuf) -> usize {
        let mut segments = writing(&self.segments);
        segments.push(Arc::new(Segment {
            file,
            map: RwLock::new(None),
        }));
        segments.len() - 1
    }

    /// Bytes that one embedding takes.
    pub fn embedding_bytes(&self) -> u64 {
        (self.kind.shape.iter().product::<usize>() * self.kind.precision.bytes()) as u64
    }

    /// Bytes that all embeddings take.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Number of embeddings.
    pub fn len(&self) -> usize {
        reading(&self.index).len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether an embedding is there.
    pub fn contains(&self, key: &EmbeddingKey) -> bool {
        reading(&self.index).contains_key(key)
    }

    /// How embeddings are kept.
    pub fn precision(&self) -> CachePrecision {
        self.kind.precision
    }

    /// Channels, rows and columns of an embedding.
    pub fn shape(&self) -> [usize; 3] {
        self.kind.shape
    }

    /// The values of an embedding; none if it is not there, or is damaged, and has to be computed.
    ///
    /// # Errors
    ///
    /// [`CacheError::Read`] if its file cannot be read any more.
    pub fn get(&self, key: &EmbeddingKey) -> Result<Option<Vec<f32>>, CacheError> {
        let place = reading(&self.index).get(key).copied();
        let Some(place) = place else { return Ok(None) };
        let segment = reading(&self.segments)[place.segment].clone();
        let values = segment.with_bytes(place.offset, self.embedding_bytes(), |bytes| {
            (xxh3_64(bytes) == place.checksum).then(|| self.kind.precision.decode(bytes))
        });
        let values = values.map_err(|source| CacheError::Read {
            file: segment.file.clone(),
            source,
        })?;
        match values.flatten() {
            Some(values) => Ok(Some(values)),
            None => {
                // Computed again, it will be kept again. Another thread may have been first.
                if writing(&self.index).remove(key).is_some() {
                    self.bytes
                        .fetch_sub(self.embedding_bytes(), Ordering::Relaxed);
                }
                Ok(None)
            }
        }
    }

    /// Keeps an embedding, if there is room.
    ///
    /// # Errors
    ///
    /// [`CacheError::Write`] the first time that the disk does not take one, [`CacheError::Limit`] the first time that the limit
    /// does not; afterwards there is no room.
    ///
    /// # Panics
    ///
    /// If there are not as many values as an embedding has.
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
        let size = self.embedding_bytes();
        let mut writer = locked(&self.writer);
        if matches!(*writer, WriterState::Closed) {
            return Ok(Insertion::NoRoom);
        }
        if let Err(error) = self.check_limit() {
            *writer = WriterState::Closed;
            return Err(error);
        }
        let bytes = self.kind.precision.encode(values);
        match self.append(&mut writer, key, &bytes) {
            Ok(place) => {
                let mut index = writing(&self.index);
                if index.insert(key, place).is_none() {
                    self.bytes.fetch_add(size, Ordering::Relaxed);
                }
                Ok(Insertion::Kept)
            }
            Err(source) => {
                *writer = WriterState::Closed;
                Err(CacheError::Write {
                    file: self.folder.clone(),
                    source,
                })
            }
        }
    }

    /// Whether the limit leaves room for another embedding.
    ///
    /// # Errors
    ///
    /// [`CacheError::Limit`] if not.
    pub(crate) fn check_limit(&self) -> Result<(), CacheError> {
        match self.bytes().saturating_add(self.embedding_bytes()) <= self.limit_bytes {
            true => Ok(()),
            false => Err(CacheError::Limit {
                folder: self.folder.clone(),
                embeddings: self.len(),
                limit_bytes: self.limit_bytes,
            }),
        }
    }

    fn append(
        &self,
        state: &mut WriterState,
        key: EmbeddingKey,
        bytes: &[u8],
    ) -> std::io::Result<Place> {
        if let WriterState::Idle = state {
            *state = WriterState::Open(self.new_writer()?);
        }
        let WriterState::Open(writer) = state else {
            return Err(std::io::ErrorKind::Unsupported.into());
        };
        let place = Place {
            segment: writer.segment,
            offset: writer.next,
            checksum: xxh3_64(bytes),
        };
        writer.values.write_all(bytes)?;
        writer.index.write_all(&line(key, place))?;
        writer.next += bytes.len() as u64;
        Ok(place)
    }

    /// A pair of files that no other process has.
    fn new_writer(&self) -> std::io::Result<Writer> {
        for attempt in 0.. {
            let name = format!("{:010}-{attempt:04}", std::process::id());
            let file = self.folder.join(name).with_extension("embeddings");
            let create = |file: &Path| OpenOptions::new().append(true).create_new(true).open(file);
            match create(&file) {
                Ok(values) => {
                    let index_file = file.with_extension("index");
                    let index = create(&index_file)?;
                    let segment = self.add_segment(file);
                    let own = Followed {
                        segment,
                        read_bytes: u64::MAX, // what is written is known
                    };
                    locked(&self.followed).insert(index_file, own);
                    return Ok(Writer {
                        values,
                        index,
                        segment,
                        next: 0,
                    });
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(std::io::ErrorKind::AlreadyExists.into())
    }
}

impl Segment {
    /// Calls `read` with the bytes, if the file has them.
    fn with_bytes<T>(
        &self,
        offset: u64,
        length: u64,
        read: impl Fn(&[u8]) -> T,
    ) -> std::io::Result<Option<T>> {
        let mapped = |map: &Option<MemoryMappedFile>| {
            let map = map.as_ref().filter(|map| map.len() >= offset + length)?;
            map.as_slice_bytes(offset, length).ok().map(&read)
        };
        let value = mapped(&reading(&self.map));
        if value.is_some() {
            return Ok(value);
        }
        // It has grown since, or was never mapped.
        let mut map = writing(&self.map);
        *map = Some(MemoryMappedFile::open_ro(&self.file).map_err(std::io::Error::other)?);
        Ok(mapped(&map))
    }
}

// A thread that panicked left nothing half done: every change under a lock is one insertion or removal.

fn reading<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn writing<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

fn locked<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

fn line(key: EmbeddingKey, place: Place) -> [u8; LINE_BYTES] {
    let mut line = [0; LINE_BYTES];
    line[..16].copy_from_slice(&key.0.to_le_bytes());
    line[16..24].copy_from_slice(&place.offset.to_le_bytes());
    line[24..32].copy_from_slice(&place.checksum.to_le_bytes());
    let checksum = xxh3_64(&line[..32]);
    line[32..].copy_from_slice(&checksum.to_le_bytes());
    line
}

/// Key, offset and checksum of the values; none if the line is torn.
fn parse_line(line: &[u8; LINE_BYTES]) -> Option<(EmbeddingKey, u64, u64)> {
    let word = |at: usize| {
        line[at..]
            .first_chunk()
            .map(|&bytes| u64::from_le_bytes(bytes))
    };
    if word(32)? != xxh3_64(&line[..32]) {
        return None;
    }
    let key = u128::from_le_bytes(*line.first_chunk()?);
    Some((EmbeddingKey(key), word(16)?, word(24)?))
}
