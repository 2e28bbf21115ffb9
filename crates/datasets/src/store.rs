//! Random access to single slices of a dataset of any size.

use crate::write::write_file;
use crate::{Case, CaseFiles, Dataset, DatasetError, ReadError, Slice};
use ndarray::Array2;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Reads single slices of many cases in any order.
///
/// Compressed volumes do not support random access, so each is decoded once and cached in a folder
/// that the caller chooses, with four bytes per pixel and one per label; later runs use the cached
/// files. Prepared slices are read from their own files. One volume is in memory while it is
/// decoded, and none afterwards.
#[derive(Debug)]
pub struct SliceStore<'a> {
    dataset: &'a Dataset,
    sources: Vec<Source>,
    /// For each slice the index of its source and its number there.
    slices: Vec<(usize, usize)>,
}

/// The origin of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceOrigin {
    /// The case.
    pub case: String,
    /// The slice's number within the case, from 0.
    pub slice: usize,
}

#[derive(Debug)]
struct Source {
    case: String,
    kind: SourceKind,
}

#[derive(Debug)]
enum SourceKind {
    /// One prepared file per slice.
    Files(Vec<PathBuf>),
    /// A cache file with all slices.
    Cached { file: PathBuf, shape: [usize; 3] },
}

const MAGIC: &[u8; 8] = b"SLICES01";
const HEADER_BYTES: u64 = 32;

impl<'a> SliceStore<'a> {
    /// Opens the slices of some cases, caching decoded volumes in `folder`. `progress` is called
    /// after each case with the number of cases that are ready.
    ///
    /// # Errors
    ///
    /// [`DatasetError`], naming the file, if a case cannot be read, or a file in `folder` is
    /// damaged or cannot be written.
    pub fn open(
        dataset: &'a Dataset,
        cases: &[&Case],
        folder: impl AsRef<Path>,
        mut progress: impl FnMut(usize),
    ) -> Result<Self, DatasetError> {
        let mut store =
            Self { dataset, sources: Vec::with_capacity(cases.len()), slices: Vec::new() };
        for case in cases {
            let (kind, count) = match &case.files {
                CaseFiles::Slices(files) => (SourceKind::Files(files.clone()), files.len()),
                _ => {
                    let file = folder.as_ref().join(cache_file_name(dataset, case)?);
                    let shape = if file.is_file() {
                        read_cached_shape(&file)?
                    } else {
                        write_cache(dataset, case, &file)?
                    };
                    (SourceKind::Cached { file, shape }, shape[0])
                }
            };
            let source = store.sources.len();
            store.slices.extend((0..count).map(|slice| (source, slice)));
            store.sources.push(Source { case: case.name.clone(), kind });
            progress(store.sources.len());
        }
        Ok(store)
    }

    /// Number of slices.
    pub fn len(&self) -> usize {
        self.slices.len()
    }

    /// Whether there are no slices.
    pub fn is_empty(&self) -> bool {
        self.slices.is_empty()
    }

    /// The case and number of slice `index`.
    ///
    /// # Panics
    ///
    /// If `index` is not below [`Self::len`].
    pub fn origin(&self, index: usize) -> SliceOrigin {
        let (source, slice) = self.slices[index];
        SliceOrigin { case: self.sources[source].case.clone(), slice }
    }

    /// Reads slice `index`. Threads may read in parallel.
    ///
    /// # Errors
    ///
    /// [`DatasetError`], naming the file, if the slice cannot be read.
    ///
    /// # Panics
    ///
    /// If `index` is not below [`Self::len`].
    pub fn slice(&self, index: usize) -> Result<Slice, DatasetError> {
        let (source, slice) = self.slices[index];
        match &self.sources[source].kind {
            SourceKind::Files(files) => Ok(self.dataset.read_slice(&files[slice])?),
            SourceKind::Cached { file, shape } => read_cached_slice(file, *shape, slice),
        }
    }
}

/// A file name with a hash of everything that determines the cached slices.
fn cache_file_name(dataset: &Dataset, case: &Case) -> Result<String, DatasetError> {
    let description = dataset.description();
    let mut digest = Sha256::new();
    digest.update(format!(
        "{:?} {:?} {:?}",
        description.orientation,
        description.intensity,
        description.label_map()
    ));
    for organ in &description.organs {
        digest.update(format!("{:?}", organ.labels));
    }
    for path in case.files.paths() {
        let io = ReadError::io(path);
        let metadata = std::fs::metadata(path).map_err(io)?;
        let path = path.canonicalize().map_err(io)?;
        digest.update(format!("{path:?} {} {:?}", metadata.len(), metadata.modified().ok()));
    }
    let hash: String = digest.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let name: String =
        case.name.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
    Ok(format!("{name}-{hash}.slices"))
}

/// Decodes a case and writes its cache file; returns its shape.
fn write_cache(dataset: &Dataset, case: &Case, file: &Path) -> Result<[usize; 3], DatasetError> {
    let volumes = dataset.read(case)?;
    write_file(file, "cached.slices", |temporary| {
        let mut out = BufWriter::new(File::create(temporary)?);
        out.write_all(MAGIC)?;
        for axis in volumes.image.shape() {
            out.write_all(&(axis as u64).to_le_bytes())?;
        }
        for voxel in volumes.image.voxels() {
            out.write_all(&voxel.to_le_bytes())?;
        }
        for class in volumes.label.voxels() {
            out.write_all(&[*class])?;
        }
        out.into_inner()?.sync_all()
    })?;
    Ok(volumes.image.shape())
}

/// Reads the shape of a cache file and checks the file's length.
fn read_cached_shape(file: &Path) -> Result<[usize; 3], DatasetError> {
    let io = ReadError::io(file);
    let damaged =
        |found: &str| DatasetError::SliceCache { file: file.to_owned(), found: found.to_owned() };
    let mut opened = File::open(file).map_err(io)?;
    let bytes = opened.metadata().map_err(io)?.len();
    let mut header = [0; HEADER_BYTES as usize];
    opened.read_exact(&mut header).map_err(|_| damaged("it is shorter than its header"))?;
    let (words, _) = header.as_chunks::<8>();
    if words[0] != *MAGIC {
        return Err(damaged("it has no known header"));
    }
    let shape = [1, 2, 3].map(|i| u64::from_le_bytes(words[i]));
    let pixels = shape.iter().try_fold(5_u64, |n, &axis| n.checked_mul(axis));
    if pixels.and_then(|n| n.checked_add(HEADER_BYTES)) != Some(bytes) {
        return Err(damaged("its length does not match its header"));
    }
    Ok(shape.map(|axis| axis as usize)) // bounded by the file's length
}

/// Reads one slice of a cache file with volumes of `shape`.
fn read_cached_slice(file: &Path, shape: [usize; 3], slice: usize) -> Result<Slice, DatasetError> {
    let [slices, rows, columns] = shape;
    let pixels = rows * columns;
    let read = || -> std::io::Result<(Vec<u8>, Vec<u8>)> {
        let mut opened = File::open(file)?;
        let mut at = |offset: usize, bytes: usize| {
            let mut buffer = vec![0; bytes];
            opened.seek(SeekFrom::Start(HEADER_BYTES + offset as u64))?;
            opened.read_exact(&mut buffer)?;
            Ok::<_, std::io::Error>(buffer)
        };
        Ok((at(4 * slice * pixels, 4 * pixels)?, at(4 * slices * pixels + slice * pixels, pixels)?))
    };
    let (image, label) = read().map_err(ReadError::io(file))?;
    let image = image.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    Ok(Slice {
        image: Array2::from_shape_vec((rows, columns), image).expect("checked length"),
        label: Array2::from_shape_vec((rows, columns), label).expect("checked length"),
    })
}
