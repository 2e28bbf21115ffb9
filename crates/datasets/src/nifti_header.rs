//! Headers of NIfTI-1 and NIfTI-2 files, with the voxels in the same file or beside it.

use crate::ReadError;
use crate::raw::decode_error;
use flate2::bufread::MultiGzDecoder;
use nifti::{Endianness, NiftiHeader};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

const NIFTI_1_BYTES: usize = 348;
const NIFTI_2_BYTES: usize = 540;

/// A header, and where the voxels are.
pub(crate) struct ParsedHeader {
    /// A NIfTI-2 header is converted to single precision, in which files are written.
    pub header: NiftiHeader,
    /// Position of the first voxel in its file.
    pub offset: f64,
    pub version: Version,
    /// Whether the voxels are in another file.
    pub is_pair: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    Nifti1,
    Nifti2,
}

impl Version {
    pub fn header_bytes(self) -> usize {
        match self {
            Self::Nifti1 => NIFTI_1_BYTES,
            Self::Nifti2 => NIFTI_2_BYTES,
        }
    }
}

/// The file of the header and that of the voxels, which are one unless the name ends in `.hdr` or
/// `.img`, or either with `.gz`.
pub(crate) fn files(file: &Path) -> [PathBuf; 2] {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let stem = |ending: &str| name.strip_suffix(ending).map(str::to_owned);
    let pair = |stem: String, packed: bool| {
        [".hdr", ".img"].map(|kind| {
            // Either file of a pair may be compressed; the one that was named has its own ending.
            let endings = if packed { [".gz", ""] } else { ["", ".gz"] };
            let named = |ending: &str| file.with_file_name(format!("{stem}{kind}{ending}"));
            let found = endings.map(named).into_iter().find(|file| file.exists());
            found.unwrap_or_else(|| named(endings[0]))
        })
    };
    for ending in [".hdr", ".img"] {
        if let Some(stem) = stem(ending) {
            return pair(stem, false);
        }
        if let Some(stem) = stem(&format!("{ending}.gz")) {
            return pair(stem, true);
        }
    }
    [file.to_owned(), file.to_owned()]
}

/// A stream of a file's bytes, decompressed if the file is compressed, which the second value says.
pub(crate) fn open(file: &Path) -> std::io::Result<(Box<dyn Read>, bool)> {
    let mut raw = BufReader::with_capacity(1 << 16, File::open(file)?);
    if raw.fill_buf()?.starts_with(&[0x1f, 0x8b]) {
        return Ok((Box::new(MultiGzDecoder::new(raw)), true));
    }
    Ok((Box::new(raw), false))
}

/// Reads a header from the beginning of a stream.
pub(crate) fn read(file: &Path, stream: &mut impl Read) -> Result<ParsedHeader, ReadError> {
    let invalid = |found: String| format_error(file, found, "copy or export it again");
    let mut bytes = Vec::with_capacity(NIFTI_2_BYTES);
    let mut read_to = |bytes: &mut Vec<u8>, length: usize| {
        let missing = (length - bytes.len()) as u64;
        let read = stream.take(missing).read_to_end(bytes);
        read.map_err(|source| decode_error(file, source))
    };
    read_to(&mut bytes, NIFTI_1_BYTES)?;
    let size = bytes.first_chunk().map(|&bytes| i32::from_le_bytes(bytes));
    let is = |expected: usize| {
        let expected = expected as i32;
        size == Some(expected) || size == Some(expected.swap_bytes())
    };
    let version = if is(NIFTI_2_BYTES) { Version::Nifti2 } else { Version::Nifti1 };
    if version == Version::Nifti2 {
        read_to(&mut bytes, NIFTI_2_BYTES)?;
    }
    if bytes.len() < version.header_bytes() {
        return Err(invalid(format!("it ends after {} bytes", bytes.len())));
    }
    if bytes.get(128..132) == Some(b"DICM") {
        let found = "it is a DICOM file".to_owned();
        return Err(format_error(file, found, "give the folder of its series"));
    }
    let unknown = || {
        format_error(
            file,
            "it does not begin with a NIfTI header".to_owned(),
            "convert it to NIfTI",
        )
    };
    let is_pair = match version {
        Version::Nifti1 => match &bytes[344..348] {
            b"n+1\0" if is(NIFTI_1_BYTES) => false,
            b"ni1\0" if is(NIFTI_1_BYTES) => true,
            _ if is(NIFTI_1_BYTES) && is_header_name(file) => {
                let found = "it is the header of an Analyze file, which has no orientation";
                return Err(format_error(file, found.to_owned(), "convert the pair to NIfTI"));
            }
            _ => return Err(unknown()),
        },
        Version::Nifti2 => match &bytes[4..8] {
            b"n+2\0" => false,
            b"ni2\0" => true,
            _ => return Err(unknown()),
        },
    };
    let (header, offset) = match version {
        Version::Nifti1 => {
            let header = NiftiHeader::from_reader(bytes.as_slice())
                .map_err(|error| invalid(error.to_string()))?;
            let offset = f64::from(header.vox_offset);
            (header, offset)
        }
        Version::Nifti2 => nifti_2(&bytes).map_err(invalid)?,
    };
    Ok(ParsedHeader { header, offset, version, is_pair })
}

fn is_header_name(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    [".hdr", ".hdr.gz", ".img", ".img.gz"].iter().any(|ending| name.ends_with(ending))
}

pub(crate) fn format_error(file: &Path, found: String, remedy: &'static str) -> ReadError {
    let expected = "NIfTI file (.nii, .nii.gz, or .hdr with .img)";
    ReadError::Format { file: file.to_owned(), expected, found, remedy }
}

/// Converts the 540 bytes of a NIfTI-2 header, and returns the position of the first voxel. The
/// positions of fields are those of `nifti2.h` of the NIfTI standard.
fn nifti_2(bytes: &[u8]) -> Result<(NiftiHeader, f64), String> {
    let little = i32::from_le_bytes(field(bytes, 0)) == NIFTI_2_BYTES as i32;
    let fields = Fields { bytes, little };
    let stored = |axis: usize| fields.i64(16 + 8 * axis);
    let mut dim = [1_u16; 8];
    for (axis, length) in dim.iter_mut().enumerate() {
        let axes = usize::try_from(stored(0)).unwrap_or(0);
        if axis <= axes {
            let found = stored(axis);
            *length = u16::try_from(found).map_err(|_| {
                format!("its dim[{axis}] is {found}, but at most {} is supported", u16::MAX)
            })?;
        }
    }
    let single = |at: usize| fields.f64(at) as f32;
    let header = NiftiHeader {
        dim,
        datatype: fields.i16(12),
        bitpix: fields.i16(14),
        pixdim: std::array::from_fn(|axis| single(104 + 8 * axis)),
        scl_slope: single(176),
        scl_inter: single(184),
        qform_code: fields.i32(344) as i16,
        sform_code: fields.i32(348) as i16,
        quatern_b: single(352),
        quatern_c: single(360),
        quatern_d: single(368),
        quatern_x: single(376),
        quatern_y: single(384),
        quatern_z: single(392),
        srow_x: std::array::from_fn(|column| single(400 + 8 * column)),
        srow_y: std::array::from_fn(|column| single(432 + 8 * column)),
        srow_z: std::array::from_fn(|column| single(464 + 8 * column)),
        xyzt_units: fields.i32(500) as u8,
        endianness: if little { Endianness::Little } else { Endianness::Big },
        ..NiftiHeader::default()
    };
    Ok((header, fields.i64(168) as f64))
}

/// Numbers at positions in bytes of one order.
struct Fields<'a> {
    bytes: &'a [u8],
    little: bool,
}

macro_rules! number {
    ($name:ident) => {
        fn $name(&self, at: usize) -> $name {
            let bytes = field(self.bytes, at);
            if self.little { $name::from_le_bytes(bytes) } else { $name::from_be_bytes(bytes) }
        }
    };
}

impl Fields<'_> {
    number!(i16);
    number!(i32);
    number!(i64);
    number!(f64);
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    *bytes[at..].first_chunk().expect("fields lie within the header")
}
