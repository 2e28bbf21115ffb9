//! Single slices in any order, whatever the dataset's size.

use crate::write::write_beside;
use crate::{Case, CaseFiles, Dataset, DatasetError, ReadError, Slice};
use ndarray::Array2;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Gives single slices of many cases in any order.
///
/// Compressed volumes cannot be entered in the middle, so they are decoded once and kept, four bytes a pixel and one a
/// label, in a folder of the caller's choice; a second run finds them there. Prepared slices are read where they are.
/// One volume is in memory while it is decoded, and none afterwards.
#[derive(Debug)]
pub struct SliceStore<'a> {
    dataset: &'a Dataset,
    sources: Vec<Source>,
    /// By slice: its source, and its number there.
    slices: Vec<(usize, usize)>,
}

/// Where a slice comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceOrigin {
    /// The case.
    pub case: String,
    /// Its number within the case, from 0.
    pub slice: usize,
}

#[derive(Debug)]
struct Source {
    case: String,
    kind: SourceKind,
}

#[derive(Debug)]
enum SourceKind {
    Files(Vec<PathBuf>),
    Kept { file: PathBuf, shape: [usize; 3] },
}

const MAGIC: &[u8; 8] = b"SLICES01";
const HEADER_BYTES: u64 = 32;

impl<'a> SliceStore<'a> {
    /// Makes the slices of some cases available, keeping decoded volumes in `folder`. `progress` is told how many cases
    /// are ready, after each.
    ///
    /// # Errors
    ///
    /// [`DatasetError`], naming the file, if a case cannot be read or `folder` cannot be written.
    pub fn open(
        dataset: &'a Dataset,
        cases: &[&Case],
        folder: impl AsRef<Path>,
        mut progress: impl FnMut(usize),
    ) -> Result<Self, DatasetError> {
        let mut store = Self {
            dataset,
            sources: Vec::with_capacity(cases.len()),
            slices: Vec::new(),
        };
        for case in cases {
            let (kind, count) = match &case.files {
                CaseFiles::Slices(files) => (SourceKind::Files(files.clone()), files.len()),
                _ => {
                    let file = folder.as_ref().join(kept_name(dataset, case)?);
                    let shape = match file.is_file() {
                        true => read_shape(&file)?,
                        false => keep(dataset, case, &file)?,
                    };
                    (SourceKind::Kept { file, shape }, shape[0])
                }
            };
            let source = store.sources.len();
            store.slices.extend((0..count).map(|slice| (source, slice)));
            store.sources.push(Source {
                case: case.name.clone(),
                kind,
            });
            progress(store.sources.len());
        }
        Ok(store)
    }

    /// Number of slices.
    pub fn len(&self) -> usize {
        self.slices.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.slices.is_empty()
    }

    /// Where slice `index` comes from.
    ///
    /// # Panics
    ///
    /// If `index` is not below [`Self::len`].
    pub fn origin(&self, index: usize) -> SliceOrigin {
        let (source, slice) = self.slices[index];
        SliceOrigin {
            case: self.sources[source].case.clone(),
            slice,
        }
    }

    /// Reads slice `index`. Any number of threads may do so at once.
    ///
    /// # Errors
    ///
    /// [`DatasetError`], naming the file.
    ///
    /// # Panics
    ///
    /// If `index` is not below [`Self::len`].
    pub fn slice(&self, index: usize) -> Result<Slice, DatasetError> {
        let (source, slice) = self.slices[index];
        match &self.sources[source].kind {
            SourceKind::Files(files) => Ok(self.dataset.read_slice(&files[slice])?),
            SourceKind::Kept { file, shape } => read_kept(file, *shape, slice),
        }
    }
}

/// A name that changes with anything that the kept slices depend on.
fn kept_name(dataset: &Dataset, case: &Case) -> Result<String, DatasetError> {
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
        digest.update(format!(
            "{path:?} {} {:?}",
            metadata.len(),
            metadata.modified().ok()
        ));
    }
    let hash: String = digest
        .finalize()
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let name: String = case
        .name
        .chars()
        .map(|c| if c.is_alphanumeric() { c } else { '-' })
        .collect();
    Ok(format!("{name}-{hash}.slices"))
}

fn keep(dataset: &Dataset, case: &Case, file: &Path) -> Result<[usize; 3], DatasetError> {
    let volumes = dataset.read(case)?;
    write_beside(file, "kept.slices", |beside| {
        let mut out = BufWriter::new(File::create(beside)?);
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

fn read_shape(file: &Path) -> Result<[usize; 3], DatasetError> {
    let io = ReadError::io(file);
    let damaged = |found: &str| DatasetError::Store {
        file: file.to_owned(),
        found: found.to_owned(),
    };
    let mut opened = File::open(file).map_err(io)?;
    let bytes = opened.metadata().map_err(io)?.len();
    let mut header = [0; HEADER_BYTES as usize];
    opened
        .read_exact(&mut header)
        .map_err(|_| damaged("it has no header"))?;
    let (words, _) = header.as_chunks::<8>();
    if words[0] != *MAGIC {
        return Err(damaged("its header is unknown"));
    }
    let shape = [1, 2, 3].map(|i| u64::from_le_bytes(words[i]));
    let pixels = shape.iter().try_fold(5_u64, |n, &axis| n.checked_mul(axis));
    if pixels.and_then(|n| n.checked_add(HEADER_BYTES)) != Some(bytes) {
        return Err(damaged("it has another length than its header says"));
    }
    Ok(shape.map(|axis| axis as usize)) // the file's length bounds it
}

fn read_kept(file: &Path, shape: [usize; 3], slice: usize) -> Result<Slice, DatasetError> {
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
        Ok((
            at(4 * slice * pixels, 4 * pixels)?,
            at(4 * slices * pixels + slice * pixels, pixels)?,
        ))
    };
    let (image, label) = read().map_err(ReadError::io(file))?;
    let image = image
        .as_chunks::<4>()
        .0
        .iter()
        .map(|&bytes| f32::from_le_bytes(bytes))
        .collect();
    Ok(Slice {
        image: Array2::from_shape_vec((rows, columns), image).expect("as many as were read"),
        label: Array2::from_shape_vec((rows, columns), label).expect("as many as were read"),
    })
}
