//! Random access to single slices of a dataset of any size.

use crate::intensity::IntensityRange;
use crate::write::write_file;
use crate::{Case, CaseFiles, Dataset, DatasetError, Image, ReadError, Slice};
use ndarray::{Array2, Array3};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Reads single slices of many cases in any order.
///
/// Compressed volumes do not support random access, so each is decoded once and cached in a folder
/// that the caller chooses, with four bytes per pixel and channel and one per label; later runs use the cached
/// files. Prepared slices are read from their own files. One volume is in memory while it is
/// decoded, and none afterwards.
#[derive(Debug)]
pub struct SliceStore<'a> {
    dataset: &'a Dataset,
    sources: Vec<Source>,
    /// For each case the SHA-256 of its files.
    sha256: BTreeMap<String, String>,
    /// Number of cases that contain each class.
    cases_with_class: [usize; 256],
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
    Cached { file: PathBuf, shape: CachedShape },
}

/// The shape of the slices in a cache file.
#[derive(Debug, Clone, Copy)]
struct CachedShape {
    channels: usize,
    slices: usize,
    rows: usize,
    columns: usize,
}

impl CachedShape {
    fn of(image: &Image) -> Self {
        let [slices, rows, columns] = image.shape();
        Self { channels: image.channels(), slices, rows, columns }
    }

    /// Bytes of all pixels and labels; `None` if they overflow.
    fn bytes(&self) -> Option<u64> {
        let pixels = [self.slices, self.rows, self.columns];
        let pixels = pixels.iter().try_fold(1_u64, |n, &axis| n.checked_mul(axis as u64))?;
        pixels.checked_mul((self.channels as u64).checked_mul(4)?.checked_add(1)?)
    }
}

const MAGIC: &[u8; 8] = b"SLICES03";
/// The magic number, the number of channels, the shape, the range of intensities, and a bit for each
/// class.
const HEADER_BYTES: u64 = 88;

/// Whether a case contains each class.
type Present = [bool; 256];

fn present<'a>(classes: impl IntoIterator<Item = &'a u8>, present: &mut Present) {
    classes.into_iter().for_each(|&class| present[usize::from(class)] = true);
}

/// Reads the slices of a case in the prepared layout once, so that wrong files are reported before
/// training. A warning is logged for the first slice whose intensities do not fit.
fn check_slices(dataset: &Dataset, files: &[PathBuf]) -> Result<Present, DatasetError> {
    let intensity = dataset.description().intensity;
    let (mut classes, mut warned) = ([false; 256], false);
    for file in files {
        let slice = dataset.read_slice(file)?;
        present(&slice.label, &mut classes);
        let range = IntensityRange::of([slice.image.view()], intensity);
        if let (false, Some(warning)) = (warned, range.implausible(intensity, 1)) {
            log::warn!("{}: {warning}", file.display());
            warned = true;
        }
    }
    Ok(classes)
}

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
        let sources = Vec::with_capacity(cases.len());
        let mut store = Self {
            dataset,
            sources,
            sha256: BTreeMap::new(),
            cases_with_class: [0; 256],
            slices: Vec::new(),
        };
        for case in cases {
            let sha256 = case.files.sha256()?;
            let (kind, count) = match &case.files {
                CaseFiles::Slices(files) => {
                    store.count_classes(&check_slices(dataset, files)?);
                    (SourceKind::Files(files.clone()), files.len())
                }
                _ => {
                    let file = folder.as_ref().join(cache_file_name(dataset, case, &sha256));
                    let (shape, present) = if file.is_file() {
                        let header = read_cached_header(&file)?;
                        let Header { shape, range, .. } = &header;
                        let image = case.files.paths().first().map_or(&*file, |image| image);
                        dataset.description().warn_of_intensities(range, shape.slices, image);
                        (header.shape, header.present)
                    } else {
                        write_cache(dataset, case, &file)?
                    };
                    store.count_classes(&present);
                    (SourceKind::Cached { file, shape }, shape.slices)
                }
            };
            let source = store.sources.len();
            store.slices.extend((0..count).map(|slice| (source, slice)));
            store.sources.push(Source { case: case.name.clone(), kind });
            store.sha256.insert(case.name.clone(), sha256);
            progress(store.sources.len());
        }
        Ok(store)
    }

    /// The [`CaseFiles::sha256`] of a case as it was when the store was opened; `None` if the case is
    /// not in the store.
    pub fn case_sha256(&self, case: &str) -> Option<&str> {
        self.sha256.get(case).map(String::as_str)
    }

    /// Number of cases that contain a class.
    pub fn cases_with_class(&self, class: u8) -> usize {
        self.cases_with_class[usize::from(class)]
    }

    fn count_classes(&mut self, present: &Present) {
        for (cases, &present) in self.cases_with_class.iter_mut().zip(present) {
            *cases += usize::from(present);
        }
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
fn cache_file_name(dataset: &Dataset, case: &Case, files_sha256: &str) -> String {
    let description = dataset.description();
    let mut digest = Sha256::new();
    digest.update(format!(
        "{:?} {:?} {:?} {:?}",
        description.label_colors(),
        description.orientation,
        description.intensity,
        description.label_map()
    ));
    digest.update(format!(" {:?} {:?}", description.geometry, description.fill_nan));
    for organ in &description.organs {
        digest.update(format!("{:?}", organ.labels));
    }
    if let CaseFiles::Organs { organs, .. } = &case.files {
        let classes: Vec<u8> = organs.iter().map(|(class, _)| *class).collect();
        digest.update(format!("{classes:?}"));
    }
    if let CaseFiles::Structures { .. } = &case.files {
        // Structures are found by their names.
        for organ in &description.organs {
            digest.update(format!("{:?} {:?}", organ.name, organ.files));
        }
    }
    digest.update(files_sha256);
    let hash: String = digest.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let name: String =
        case.name.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
    format!("{name}-{hash}.slices")
}

/// Decodes a case and writes its cache file; returns its shape and its classes.
fn write_cache(
    dataset: &Dataset,
    case: &Case,
    file: &Path,
) -> Result<(CachedShape, Present), DatasetError> {
    let (volumes, range) = dataset.read_with_range(case)?;
    let mut classes = [false; 256];
    present(volumes.label.voxels(), &mut classes);
    let shape = CachedShape::of(&volumes.image);
    write_file(file, "cached.slices", |temporary| {
        let mut out = BufWriter::new(File::create(temporary)?);
        out.write_all(MAGIC)?;
        let CachedShape { channels, slices, rows, columns } = shape;
        for axis in [channels, slices, rows, columns] {
            out.write_all(&(axis as u64).to_le_bytes())?;
        }
        for value in [range.min, range.max, range.inside] {
            out.write_all(&value.to_le_bytes())?;
        }
        out.write_all(&range.clipped_slices.to_le_bytes())?;
        for bits in classes.as_chunks::<8>().0 {
            let byte = bits.iter().rev().fold(0, |byte, &bit| byte << 1 | u8::from(bit));
            out.write_all(&[byte])?;
        }
        for slice in volumes.image.slices() {
            for voxel in slice {
                out.write_all(&voxel.to_le_bytes())?;
            }
        }
        for class in volumes.label.voxels() {
            out.write_all(&[*class])?;
        }
        out.into_inner()?.sync_all()
    })?;
    Ok((shape, classes))
}

/// The header of a cache file.
struct Header {
    shape: CachedShape,
    range: IntensityRange,
    present: Present,
}

/// Reads the header of a cache file and checks the file's length.
fn read_cached_header(file: &Path) -> Result<Header, DatasetError> {
    let io = ReadError::io(file);
    let damaged =
        |found: &str| DatasetError::SliceCache { file: file.to_owned(), found: found.to_owned() };
    let mut opened = File::open(file).map_err(io)?;
    let bytes = opened.metadata().map_err(io)?.len();
    let mut header = [0; HEADER_BYTES as usize];
    opened.read_exact(&mut header).map_err(|_| damaged("it is shorter than its header"))?;
    let (words, _) = header[..40].as_chunks::<8>();
    if words[0] != *MAGIC {
        return Err(damaged("it has no known header"));
    }
    let axis = |i: usize| usize::try_from(u64::from_le_bytes(words[i])).unwrap_or(usize::MAX);
    let shape = CachedShape { channels: axis(1), slices: axis(2), rows: axis(3), columns: axis(4) };
    if shape.bytes().and_then(|n| n.checked_add(HEADER_BYTES)) != Some(bytes) {
        return Err(damaged("its length does not match its header"));
    }
    let (numbers, _) = header[40..56].as_chunks::<4>();
    let [min, max, inside] = [0, 1, 2].map(|i| f32::from_le_bytes(numbers[i]));
    let clipped_slices = u32::from_le_bytes(numbers[3]);
    let range = IntensityRange { min, max, inside, clipped_slices };
    let present = std::array::from_fn(|class| header[56 + class / 8] >> (class % 8) & 1 == 1);
    // Bounded by the file's length.
    Ok(Header { shape, range, present })
}

/// Reads one slice of a cache file with volumes of `shape`.
fn read_cached_slice(file: &Path, shape: CachedShape, slice: usize) -> Result<Slice, DatasetError> {
    let CachedShape { channels, slices, rows, columns } = shape;
    let pixels = rows * columns;
    let image_bytes = 4 * channels * pixels;
    let read = || -> std::io::Result<(Vec<u8>, Vec<u8>)> {
        let mut opened = File::open(file)?;
        let mut at = |offset: usize, bytes: usize| {
            let mut buffer = vec![0; bytes];
            opened.seek(SeekFrom::Start(HEADER_BYTES + offset as u64))?;
            opened.read_exact(&mut buffer)?;
            Ok::<_, std::io::Error>(buffer)
        };
        let label = at(slices * image_bytes + slice * pixels, pixels)?;
        Ok((at(slice * image_bytes, image_bytes)?, label))
    };
    let (image, label) = read().map_err(ReadError::io(file))?;
    let image = image.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    Ok(Slice {
        image: Array3::from_shape_vec((channels, rows, columns), image).expect("checked length"),
        label: Array2::from_shape_vec((rows, columns), label).expect("checked length"),
    })
}
