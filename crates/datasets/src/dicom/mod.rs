//! DICOM: series of slices as images, segmentations and structure sets as labels.

mod series;
mod structures;
mod write;

pub use series::{read_dicom_geometry, read_dicom_image};
pub(crate) use structures::{StructureFiles, modality};
pub use write::{SegmentationType, write_dicom_segmentation};

use crate::ReadError;
use dicom_core::Tag;
use dicom_dictionary_std::tags;
use dicom_object::{DefaultDicomObject, InMemDicomObject};
use dicom_pixeldata::{ConvertOptions, ModalityLutOption, PixelDecoder};
use num_traits::NumCast;
use std::io::Read;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

/// Levels of folders below the given one.
const MAX_DEPTH: usize = 4;

fn error(path: &Path, found: impl Into<String>, remedy: impl Into<String>) -> ReadError {
    ReadError::Dicom { path: path.to_owned(), found: found.into(), remedy: remedy.into() }
}

/// Lists the files below a folder, sorted; `depth` is 0.
pub(crate) fn list_files(
    folder: &Path,
    depth: usize,
    files: &mut Vec<PathBuf>,
) -> Result<(), ReadError> {
    let io = ReadError::io(folder);
    let entries = std::fs::read_dir(folder).map_err(io)?.collect::<Result<Vec<_>, _>>();
    let mut paths: Vec<PathBuf> = entries.map_err(io)?.iter().map(|entry| entry.path()).collect();
    // Hidden files, which some systems leave in every folder, belong to no series.
    let is_hidden = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
    };
    paths.retain(|path| !is_hidden(path));
    paths.sort();
    for path in paths {
        if path.is_dir() {
            if depth < MAX_DEPTH {
                list_files(&path, depth + 1, files)?;
            }
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// Whether a file is DICOM by its first bytes or its name.
pub fn is_dicom(file: &Path) -> bool {
    let mut start = [0; 132];
    let read = std::fs::File::open(file).and_then(|mut file| file.read_exact(&mut start));
    let is_named = file.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("dcm"));
    is_named || (read.is_ok() && start.ends_with(b"DICM"))
}

/// Whether a folder is one of a DICOM series: whether DICOM files lie directly in it.
pub fn has_dicom_files(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).any(|file| file.is_file() && is_dicom(&file))
}

/// An error with its causes in one line.
fn report(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

fn text(object: &InMemDicomObject, tag: Tag) -> String {
    let element = object.element_opt(tag).ok().flatten();
    let text = element.and_then(|element| element.to_str().ok().map(|text| text.into_owned()));
    text.unwrap_or_default().trim().trim_end_matches('\0').to_owned()
}

fn numbers(object: &InMemDicomObject, tag: Tag) -> Option<Vec<f64>> {
    object.element_opt(tag).ok().flatten()?.to_multi_float64().ok()
}

/// Items of a sequence; none if it is absent.
fn items(object: &InMemDicomObject, tag: Tag) -> &[InMemDicomObject] {
    let element = object.element_opt(tag).ok().flatten();
    element.and_then(|element| element.items()).unwrap_or_default()
}

fn number(object: &InMemDicomObject, tag: Tag) -> Option<f64> {
    numbers(object, tag)?.first().copied()
}

fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The pixels of all frames of an object.
fn decode_pixels<T>(
    file: &Path,
    object: &DefaultDicomObject,
    modality_lut: ModalityLutOption,
) -> Result<Vec<T>, ReadError>
where
    T: NumCast + Send + Sync + Copy + 'static,
{
    let decode = || -> Result<Vec<T>, ReadError> {
        let decoded =
            object.decode_pixel_data().map_err(|source| undecodable(file, report(&source)))?;
        let options = ConvertOptions::new().with_modality_lut(modality_lut);
        let pixels = decoded.to_vec_with_options(&options);
        pixels.map_err(|source| undecodable(file, report(&source)))
    };
    // Decoders of compressed pixels panic on some damaged ones, as that of RLE where they end early.
    std::panic::catch_unwind(AssertUnwindSafe(decode))
        .unwrap_or_else(|_| Err(undecodable(file, "its compressed pixels are damaged".to_owned())))
}

fn undecodable(file: &Path, found: String) -> ReadError {
    let remedy = "decompress it with another program (such as gdcmconv --raw), or copy it again";
    error(file, found, remedy)
}

/// Where the attributes of a slice's plane are: in the file, or in the functional groups of a frame.
enum Planes<'a> {
    File(&'a InMemDicomObject),
    Frame { shared: Option<&'a InMemDicomObject>, frame: &'a InMemDicomObject },
}

impl<'a> Planes<'a> {
    fn of_frame(object: &'a InMemDicomObject, frame: &'a InMemDicomObject) -> Self {
        let shared = items(object, tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE).first();
        Self::Frame { shared, frame }
    }

    /// The finite numbers of an attribute, which frames have in a group of this sequence: in one of their
    /// own or in what all frames share.
    fn vector<const N: usize>(&self, sequence: Tag, tag: Tag) -> Option<[f64; N]> {
        let object = match *self {
            Self::File(object) => object,
            Self::Frame { shared, frame } => {
                let own = items(frame, sequence).first();
                own.or_else(|| items(shared?, sequence).first())?
            }
        };
        let found: [f64; N] = numbers(object, tag)?.try_into().ok()?;
        found.iter().all(|value| value.is_finite()).then_some(found)
    }
}
