//! NIfTI-1 files in and out.

use crate::raw::{Announced, FromNumber, LARGEST_DEFLATE_RATIO, Scaling, damaged};
use crate::volume::spatial_dim;
use crate::voxel_type::{ByteOrder, VoxelType};
use crate::write::write_beside;
use crate::{Geometry, LabelMap, Orientation, ReadError, Volume, WriteError};
use flate2::bufread::MultiGzDecoder;
use nifti::writer::WriterOptions;
use nifti::{Endianness, NiftiHeader, NiftiType};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

const FORMAT: &str = "NIfTI-1 file (.nii or .nii.gz)";
const HEADER_BYTES: u64 = 348;

/// Reads the intensities of a `.nii` or `.nii.gz` file: any integer or float type, slope and intercept applied, either
/// byte order.
///
/// # Errors
///
/// [`ReadError`], naming the file, if it cannot be read, is damaged, or holds voxels that are not finite.
pub fn read_nifti_image(
    file: impl AsRef<Path>,
    orientation: Orientation,
) -> Result<Volume<f32>, ReadError> {
    let opened = Opened::open(file.as_ref())?;
    let scaling = opened.scaling;
    opened.read(orientation, &scaling)
}

/// Reads the labels of a `.nii` or `.nii.gz` file as classes.
///
/// # Errors
///
/// [`ReadError`], naming the file, if it cannot be read, is damaged, or has a label that `labels` does not know.
pub fn read_nifti_labels(
    file: impl AsRef<Path>,
    orientation: Orientation,
    labels: &LabelMap,
) -> Result<Volume<u8>, ReadError> {
    let opened = Opened::open(file.as_ref())?;
    let scaling = opened.scaling;
    opened.read(orientation, &(scaling, labels))
}

/// Reads where a `.nii` or `.nii.gz` file's voxels lie, and not the voxels.
///
/// # Errors
///
/// [`ReadError`], naming the file, if its header cannot be read or is wrong.
pub fn read_nifti_geometry(
    file: impl AsRef<Path>,
    orientation: Orientation,
) -> Result<Geometry, ReadError> {
    let file = file.as_ref();
    Geometry::from_header(Opened::open(file)?.header, orientation, file)
}

/// A file whose header has been read and checked.
struct Opened<'a> {
    file: &'a Path,
    header: NiftiHeader,
    announced: Announced,
    scaling: Scaling,
    /// At the first voxel.
    stream: Box<dyn Read>,
}

impl<'a> Opened<'a> {
    fn open(file: &'a Path) -> Result<Self, ReadError> {
        let io = ReadError::io(file);
        let opened = File::open(file).map_err(io)?;
        let file_bytes = opened.metadata().map_err(io)?.len();
        let mut raw = BufReader::with_capacity(1 << 16, opened);
        let compressed = raw.fill_buf().map_err(io)?.starts_with(&[0x1f, 0x8b]);
        let mut stream: Box<dyn Read> = match compressed {
            true => Box::new(MultiGzDecoder::new(raw)),
            false => Box::new(raw),
        };
        let format = |found: String| ReadError::Format {
            file: file.to_owned(),
            expected: FORMAT,
            found,
        };
        let mut bytes = Vec::with_capacity(HEADER_BYTES as usize);
        let read = (&mut stream).take(HEADER_BYTES).read_to_end(&mut bytes);
        read.map_err(|source| damaged(file, source))?;
        if let Some(found) = other_format(&bytes) {
            return Err(format(found));
        }
        let header = NiftiHeader::from_reader(bytes.as_slice())
            .map_err(|error| format(error.to_string()))?;
        let dim = header.dim().map_err(|error| format(error.to_string()))?;
        if dim.len() < 2 || dim.iter().skip(3).any(|&axis| axis > 1) {
            return Err(ReadError::Axes {
                file: file.to_owned(),
                found: dim.iter().map(|&axis| axis.into()).collect(),
                expected: "one volume of three axes",
            });
        }
        let announced = Announced {
            voxel_type: voxel_type(&header, file)?,
            order: match header.endianness {
                Endianness::Little => ByteOrder::Little,
                Endianness::Big => ByteOrder::Big,
            },
            dim: spatial_dim(&header),
        };
        let offset = f64::from(header.vox_offset);
        if offset.fract() != 0.0 || !(HEADER_BYTES as f64..1e9).contains(&offset) {
            return Err(format(format!("its voxels start at byte {offset}")));
        }
        let ratio = if compressed { LARGEST_DEFLATE_RATIO } else { 1 };
        let skipped = if compressed { 0 } else { offset as u64 };
        announced.check(
            file,
            file_bytes.saturating_sub(skipped).saturating_mul(ratio),
        )?;
        let gap = offset as u64 - HEADER_BYTES;
        let passed = std::io::copy(&mut (&mut stream).take(gap), &mut std::io::sink());
        if passed.map_err(|source| damaged(file, source))? < gap {
            return Err(ReadError::Truncated {
                file: file.to_owned(),
                expected_bytes: announced.bytes(),
                found_bytes: 0,
            });
        }
        // A slope of 0 means no scaling, by the standard; one that is no number, by common use.
        let slope = f64::from(header.scl_slope);
        let intercept = f64::from(header.scl_inter);
        let scaling = match slope.is_finite() && slope != 0.0 {
            true => Scaling {
                slope,
                intercept: if intercept.is_finite() {
                    intercept
                } else {
                    0.0
                },
            },
            false => Scaling::NONE,
        };
        Ok(Self {
            file,
            header,
            announced,
            scaling,
            stream,
        })
    }

    fn read<T: FromNumber>(
        self,
        orientation: Orientation,
        sink: &T::Sink<'_>,
    ) -> Result<Volume<T>, ReadError> {
        let geometry = Geometry::from_header(self.header, orientation, self.file)?;
        let stored = self.announced.read(self.file, self.stream, sink)?;
        let voxels = geometry.arrangement().present(stored, self.announced.dim);
        Ok(Volume::new(voxels, Some(geometry)))
    }
}

/// What the first bytes are, if not those of a single NIfTI-1 file.
fn other_format(header: &[u8]) -> Option<String> {
    let size = header.first_chunk().map(|&bytes| i32::from_le_bytes(bytes));
    let is = |expected: i32| size == Some(expected) || size == Some(expected.swap_bytes());
    if is(540) {
        return Some("a NIfTI-2 file; convert it to NIfTI-1".to_owned());
    }
    if header.len() < HEADER_BYTES as usize {
        return Some(format!("it ends after {} bytes", header.len()));
    }
    match &header[344..] {
        b"ni1\0" => {
            Some("the header of a file pair (.hdr and .img); convert it to one file".to_owned())
        }
        b"n+1\0" if is(HEADER_BYTES as i32) => None,
        _ => Some("it does not begin with a NIfTI-1 header".to_owned()),
    }
}

fn voxel_type(header: &NiftiHeader, file: &Path) -> Result<VoxelType, ReadError> {
    Ok(match header.data_type() {
        Ok(NiftiType::Uint8) => VoxelType::U8,
        Ok(NiftiType::Int8) => VoxelType::I8,
        Ok(NiftiType::Uint16) => VoxelType::U16,
        Ok(NiftiType::Int16) => VoxelType::I16,
        Ok(NiftiType::Uint32) => VoxelType::U32,
        Ok(NiftiType::Int32) => VoxelType::I32,
        Ok(NiftiType::Uint64) => VoxelType::U64,
        Ok(NiftiType::Int64) => VoxelType::I64,
        Ok(NiftiType::Float32) => VoxelType::F32,
        Ok(NiftiType::Float64) => VoxelType::F64,
        other => {
            return Err(ReadError::VoxelType {
                file: file.to_owned(),
                found: match other {
                    Ok(known) => format!("{known:?}"),
                    Err(_) => format!("number {}", header.datatype),
                },
            });
        }
    })
}

/// A voxel type that volumes are written with.
pub trait StoredVoxel: nifti::DataElement + bytemuck::Pod {}

impl StoredVoxel for u8 {}
impl StoredVoxel for i16 {}
impl StoredVoxel for f32 {}

/// Writes a volume as `.nii`, or `.nii.gz` where the name ends so. Voxels are stored in the order of the file that the
/// geometry came from, and every geometry field of its header is kept bit for bit.
///
/// # Errors
///
/// [`WriteError`] if the volume has no geometry, the name ends otherwise, or the disk does not take it; a file that was
/// there before then still is.
pub fn write_nifti<T: StoredVoxel>(
    file: impl AsRef<Path>,
    volume: &Volume<T>,
) -> Result<(), WriteError> {
    let file = file.as_ref();
    let unsupported = |reason: &str| WriteError::Unsupported {
        file: file.to_owned(),
        reason: reason.to_owned(),
    };
    let geometry = volume
        .geometry()
        .ok_or_else(|| unsupported("the volume has no geometry"))?;
    let name = match file.file_name().and_then(|name| name.to_str()) {
        Some(name) if name.ends_with(".nii.gz") => "volume.nii.gz",
        Some(name) if name.ends_with(".nii") => "volume.nii",
        _ => return Err(unsupported("its name must end in .nii or .nii.gz")),
    };
    let header = NiftiHeader {
        // A display range or a meaning of the source's voxels says nothing of these.
        cal_min: 0.0,
        cal_max: 0.0,
        intent_code: 0,
        intent_name: [0; 16],
        ..geometry.header().clone()
    };
    // The writer wants its slices in one piece.
    let stored = geometry
        .arrangement()
        .store(volume.voxels().view())
        .reversed_axes();
    let stored = stored.as_standard_layout().reversed_axes();
    write_beside(file, name, |beside| {
        WriterOptions::new(beside)
            .reference_header(&header)
            .write_nifti(&stored)
            .map_err(|error| match error {
                nifti::NiftiError::Io(source) => source,
                other => std::io::Error::other(other),
            })?;
        let bytes = 352 + (stored.len() * size_of::<T>()) as u64;
        // The writer does not say when its last buffer found no room.
        if name == "volume.nii" && std::fs::metadata(beside)?.len() != bytes {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        Ok(())
    })
}
