//! Reads NIfTI files and writes NIfTI-1 files.

use crate::image_file::stacked;
use crate::nifti_header::{self, format_error};
use crate::raw::{
    ArrayHeader, FromNumber, Intensities, LabelNumbers, MAX_DEFLATE_RATIO, Scaling, decode_error,
};
use crate::volume::spatial_dim;
use crate::voxel_type::{ByteOrder, VoxelType};
use crate::write::write_file;
use crate::{Geometry, Image, LabelMap, Orientation, ReadError, Volume, WriteError};
use ndarray::Array3;
use nifti::writer::WriterOptions;
use nifti::{Endianness, NiftiHeader, NiftiType};
use std::io::Read;
use std::path::Path;

/// Reads the intensities of a NIfTI-1 or NIfTI-2 file (`.nii`, `.nii.gz`, or a pair of `.hdr` and
/// `.img`, by the name of either) with any integer or float type and either byte order, and applies
/// slope and intercept.
///
/// # Errors
///
/// [`ReadError`], naming the file, if it cannot be read, is damaged, or has voxels that are not
/// finite.
pub fn read_nifti_image(
    file: impl AsRef<Path>,
    orientation: Orientation,
) -> Result<Volume<f32>, ReadError> {
    read_nifti_image_filled(file.as_ref(), orientation, None)
}

/// As [`read_nifti_image`]; voxels that are NaN become `fill`, if it is given.
pub(crate) fn read_nifti_image_filled(
    file: &Path,
    orientation: Orientation,
    fill: Option<f32>,
) -> Result<Volume<f32>, ReadError> {
    let reader = NiftiReader::open(file)?;
    if reader.channels > 1 {
        return Err(ReadError::FileChannels { file: file.to_owned(), channels: reader.channels });
    }
    let intensities = Intensities { scaling: reader.scaling, fill };
    reader.read(orientation, &intensities)
}

/// Reads some channels of a file with several along its fourth axis, or its fifth after one of length 1.
pub(crate) fn read_nifti_channels(
    file: &Path,
    channels: &[usize],
    orientation: Orientation,
    fill: Option<f32>,
) -> Result<Image, ReadError> {
    let reader = NiftiReader::open(file)?;
    let count = reader.channels;
    if let Some(&channel) = channels.iter().find(|&&channel| channel >= count) {
        return Err(ReadError::NoChannel { file: file.to_owned(), channel, count });
    }
    let geometry = Geometry::from_header(reader.volume_header(), orientation, file)?;
    let intensities = Intensities { scaling: reader.scaling, fill };
    let [columns, rows, slices] = reader.array.dim;
    let dim = [columns, rows, slices / count];
    let stored: Vec<f32> = reader.array.read(file, reader.stream, &intensities)?;
    let voxels = dim.iter().product();
    let channel = |&channel: &usize| {
        let stored = stored[channel * voxels..][..voxels].to_vec();
        geometry.axis_mapping().to_array(stored, dim)
    };
    let channels: Vec<Array3<f32>> = channels.iter().map(channel).collect();
    let views = channels.iter().map(|channel| channel.view()).collect();
    Ok(stacked(views, Some(geometry)))
}

/// Reads the labels of a file as classes, as [`read_nifti_image`].
///
/// A file may have a mask for each label instead (one-hot), along a fourth axis or a fifth after one
/// of length 1. If the first mask fills more than half of the volume, or every voxel is in exactly
/// one mask, the first is label 0, otherwise it is label 1. A warning is logged that says which, and
/// where masks overlap, the first stays.
///
/// # Errors
///
/// [`ReadError`], naming the file, if it cannot be read, is damaged, or has a label that is not in
/// `labels`.
pub fn read_nifti_labels(
    file: impl AsRef<Path>,
    orientation: Orientation,
    labels: &LabelMap,
) -> Result<Volume<u8>, ReadError> {
    let file = file.as_ref();
    let reader = NiftiReader::open(file)?;
    if reader.channels > 1 {
        return reader.read_one_hot(orientation, labels);
    }
    let conversion = (LabelNumbers::new(reader.scaling), labels);
    let volume = reader.read(orientation, &conversion)?;
    conversion.0.report(file);
    Ok(volume)
}

/// Reads the mask of one organ: 1 where the file is not 0.
pub(crate) fn read_nifti_mask(
    file: &Path,
    orientation: Orientation,
) -> Result<Volume<u8>, ReadError> {
    let volume = NiftiReader::open(file)?.one_volume()?.read_labels(orientation)?;
    Ok(volume.with_voxels(volume.voxels().mapv(|label| u8::from(label != 0))))
}

/// Reads the labels of a file, or a mask for each label, as the files' own numbers.
pub(crate) fn read_nifti_label_volume(
    file: &Path,
    orientation: Orientation,
) -> Result<Volume<u16>, ReadError> {
    let reader = NiftiReader::open(file)?;
    if reader.channels > 1 {
        let volume = reader.read_one_hot(orientation, &LabelMap::identity(256))?;
        return Ok(volume.with_voxels(volume.voxels().mapv(u16::from)));
    }
    reader.read_labels(orientation)
}

/// Reads the geometry of a file without its voxels.
///
/// # Errors
///
/// [`ReadError`], naming the file, if its header cannot be read or is invalid.
pub fn read_nifti_geometry(
    file: impl AsRef<Path>,
    orientation: Orientation,
) -> Result<Geometry, ReadError> {
    let file = file.as_ref();
    Geometry::from_header(NiftiReader::open(file)?.volume_header(), orientation, file)
}

/// The largest number of masks for one label each: the background's and those of 255 organs.
const MAX_MASKS: usize = 256;

/// An open file whose header has been read and checked.
struct NiftiReader<'a> {
    file: &'a Path,
    header: NiftiHeader,
    array: ArrayHeader,
    scaling: Scaling,
    /// Volumes in the file, one after the other.
    channels: usize,
    /// Positioned at the first voxel.
    stream: Box<dyn Read>,
}

impl<'a> NiftiReader<'a> {
    /// Opens a file with one volume, or several of one kind along another axis.
    fn open(file: &'a Path) -> Result<Self, ReadError> {
        Self::read_header(file).map_err(|error| damage(file).unwrap_or(error))
    }

    fn read_header(file: &'a Path) -> Result<Self, ReadError> {
        let [header_file, voxel_file] = nifti_header::files(file);
        let io = ReadError::io(&header_file);
        let (mut stream, mut compressed) = nifti_header::open(&header_file).map_err(io)?;
        let parsed = nifti_header::read(&header_file, &mut stream)?;
        let mut passed_bytes = parsed.version.header_bytes() as u64;
        if parsed.is_pair {
            if header_file == voxel_file {
                let found = "it is the header of a file pair";
                let remedy = "name it .hdr and put the .img file beside it";
                return Err(format_error(file, found.to_owned(), remedy));
            }
            let io = ReadError::io(&voxel_file);
            (stream, compressed) = nifti_header::open(&voxel_file).map_err(io)?;
            passed_bytes = 0;
        }
        let header = parsed.header;
        let invalid = |found: String| format_error(file, found, "copy or export it again");
        let dim = header.dim().map_err(|error| invalid(error.to_string()))?;
        let channels = dim.iter().skip(3).fold(1, |n: usize, &axis| n.saturating_mul(axis.into()));
        let one_axis = dim.iter().skip(3).filter(|&&axis| axis > 1).count() <= 1;
        if dim.len() < 2 || channels == 0 || !one_axis {
            return Err(ReadError::Axes {
                file: file.to_owned(),
                found: dim.iter().map(|&axis| axis.into()).collect(),
                expected: "one volume with three axes",
            });
        }
        let array = ArrayHeader {
            voxel_type: voxel_type(&header, file)?,
            order: match header.endianness {
                Endianness::Little => ByteOrder::Little,
                Endianness::Big => ByteOrder::Big,
            },
            dim: {
                let [columns, rows, slices] = spatial_dim(&header);
                [columns, rows, slices * channels]
            },
        };
        let offset = parsed.offset;
        if offset.fract() != 0.0 || !(passed_bytes as f64..1e9).contains(&offset) {
            return Err(invalid(format!("its voxels start at byte {offset}")));
        }
        let file_bytes = std::fs::metadata(&voxel_file).map_err(ReadError::io(&voxel_file))?.len();
        let ratio = if compressed { MAX_DEFLATE_RATIO } else { 1 };
        let skipped = if compressed { 0 } else { offset as u64 };
        array.check(file, file_bytes.saturating_sub(skipped).saturating_mul(ratio))?;
        let gap = offset as u64 - passed_bytes;
        let passed = std::io::copy(&mut (&mut stream).take(gap), &mut std::io::sink());
        if passed.map_err(|source| decode_error(file, source))? < gap {
            return Err(ReadError::Truncated {
                file: file.to_owned(),
                expected_bytes: array.bytes(),
                found_bytes: 0,
            });
        }
        let scaling = scaling(&header);
        Ok(Self { file, header, array, scaling, channels, stream })
    }

    fn read<T: FromNumber>(
        self,
        orientation: Orientation,
        conversion: &T::Conversion<'_>,
    ) -> Result<Volume<T>, ReadError> {
        let geometry = Geometry::from_header(self.header, orientation, self.file)?;
        let stored = self.array.read(self.file, self.stream, conversion)?;
        let voxels = geometry.axis_mapping().to_array(stored, self.array.dim);
        Ok(Volume::new(voxels, Some(geometry)))
    }
}

impl NiftiReader<'_> {
    /// The header of one volume: the geometry, and what is written on its grid, have three axes.
    fn volume_header(&self) -> NiftiHeader {
        let mut header = self.header.clone();
        if self.channels > 1 {
            header.dim = [3, header.dim[1], header.dim[2], header.dim[3], 1, 1, 1, 1];
        }
        header
    }

    /// An error if the file has several volumes.
    fn one_volume(self) -> Result<Self, ReadError> {
        if self.channels > 1 { Err(self.not_one_volume()) } else { Ok(self) }
    }

    fn not_one_volume(&self) -> ReadError {
        let [columns, rows, slices] = self.array.dim;
        ReadError::Axes {
            file: self.file.to_owned(),
            found: [columns, rows, slices / self.channels, self.channels].map(|n| n as u64).into(),
            expected: "one volume with three axes",
        }
    }

    /// Reads one volume of labels as the file's own numbers.
    fn read_labels(self, orientation: Orientation) -> Result<Volume<u16>, ReadError> {
        let (file, conversion) = (self.file, LabelNumbers::new(self.scaling));
        let volume = self.read(orientation, &conversion)?;
        conversion.report(file);
        Ok(volume)
    }

    /// Reads a mask for each label into classes.
    fn read_one_hot(
        self,
        orientation: Orientation,
        labels: &LabelMap,
    ) -> Result<Volume<u8>, ReadError> {
        if self.channels > MAX_MASKS {
            return Err(self.not_one_volume());
        }
        let header = self.volume_header();
        let Self { file, array, channels, .. } = self;
        let numbers = LabelNumbers::new(self.scaling);
        let masks: Vec<u16> = array.read(file, self.stream, &numbers)?;
        let [columns, rows, slices] = array.dim;
        let dim = [columns, rows, slices / channels];
        let voxels = dim.iter().product::<usize>();
        let masks: Vec<&[u16]> = masks.chunks_exact(voxels).collect();
        for mask in &masks {
            let value = mask.iter().find(|&&value| value != 0);
            if mask.iter().any(|label| *label != 0 && Some(label) != value) {
                return Err(ReadError::Axes {
                    file: file.to_owned(),
                    found: [columns, rows, slices / channels, channels].map(|n| n as u64).into(),
                    expected: "one volume of labels, or a mask of zeros and ones for each label",
                });
            }
        }
        let of_voxel = |voxel: usize| masks.iter().filter(move |mask| mask[voxel] != 0).count();
        // No organ fills half of a volume, so a first mask that does is the background, even if some
        // voxels are in no mask.
        let has_background = 2 * masks[0].iter().filter(|&&label| label != 0).count() > voxels
            || (0..voxels).all(|voxel| of_voxel(voxel) == 1);
        let first = if has_background { 0 } else { 1 };
        let mut classes = Vec::with_capacity(voxels);
        for voxel in 0..voxels {
            let mask = masks.iter().position(|mask| mask[voxel] != 0);
            let label = mask.map_or(0, |mask| mask + first) as u16; // at most 256 masks
            let class = labels.class_of(label).ok_or_else(|| ReadError::Label {
                file: file.to_owned(),
                value: label.into(),
                voxel: [voxel % columns, voxel / columns % rows, voxel / (columns * rows)],
                expected: Box::new(labels.clone()),
            })?;
            classes.push(class);
        }
        let overlaps = (0..voxels).filter(|&voxel| of_voxel(voxel) > 1).count();
        let overlap = match overlaps {
            0 => String::new(),
            count => format!("; {count} voxels are in several masks and belong to the first"),
        };
        log::warn!(
            "{}: its {channels} volumes are taken as masks of the labels {first} to {}{overlap}",
            file.display(),
            first + channels - 1
        );
        let geometry = Geometry::from_header(header, orientation, file)?;
        Ok(Volume::new(geometry.axis_mapping().to_array(classes, dim), Some(geometry)))
    }
}

/// The error of a compressed file that cannot be decompressed. A corrupted stream also corrupts the
/// header, so an error about the header would be misleading.
fn damage(file: &Path) -> Option<ReadError> {
    nifti_header::files(file).iter().find_map(|file| {
        let (mut stream, compressed) = nifti_header::open(file).ok()?;
        let read = compressed.then(|| std::io::copy(&mut stream, &mut std::io::sink()))?;
        read.err().map(|source| decode_error(file, source))
    })
}

/// The scaling of intensities. A slope of 0 means no scaling by the standard, and a slope that is
/// not finite by convention.
fn scaling(header: &NiftiHeader) -> Scaling {
    let slope = f64::from(header.scl_slope);
    if !slope.is_finite() || slope == 0.0 {
        return Scaling::NONE;
    }
    let intercept = f64::from(header.scl_inter);
    Scaling { slope, intercept: if intercept.is_finite() { intercept } else { 0.0 } }
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
                    Err(_) => format!("code {}", header.datatype),
                },
            });
        }
    })
}

/// A voxel type that [`write_nifti`] supports.
pub trait StoredVoxel: nifti::DataElement + bytemuck::Pod {}

impl StoredVoxel for u8 {}
impl StoredVoxel for u16 {}
impl StoredVoxel for i16 {}
impl StoredVoxel for f32 {}

/// Writes classes as labels, each with the first label of its organ, in one byte where all labels of
/// the map fit into one, as [`write_nifti`].
///
/// # Errors
///
/// As [`write_nifti`].
///
/// # Panics
///
/// If a class is not in the map.
pub fn write_nifti_labels(
    file: impl AsRef<Path>,
    classes: &Volume<u8>,
    map: &LabelMap,
) -> Result<(), WriteError> {
    let labels: Vec<u16> = (0..map.classes()).map(|class| map.label_of(class as u8)).collect();
    let narrow: Option<Vec<u8>> = labels.iter().map(|&label| u8::try_from(label).ok()).collect();
    match narrow {
        Some(labels) => {
            let voxels = classes.voxels().mapv(|class| labels[usize::from(class)]);
            write_nifti(file, &classes.with_voxels(voxels))
        }
        None => {
            let voxels = classes.voxels().mapv(|class| labels[usize::from(class)]);
            write_nifti(file, &classes.with_voxels(voxels))
        }
    }
}

/// Writes a volume as `.nii` or `.nii.gz`, depending on the file's name. Voxels are stored in the
/// axis order of the file from which the geometry was read, and every geometry field of its header
/// is preserved bit for bit.
///
/// # Errors
///
/// [`WriteError`] if the volume has no geometry, the name has another extension, or the file cannot
/// be written; an existing file is then unchanged.
pub fn write_nifti<T: StoredVoxel>(
    file: impl AsRef<Path>,
    volume: &Volume<T>,
) -> Result<(), WriteError> {
    let file = file.as_ref();
    let unsupported =
        |reason: &str| WriteError::Unsupported { file: file.to_owned(), reason: reason.to_owned() };
    let geometry = volume.geometry().ok_or_else(|| {
        unsupported("the volume has no geometry; create it with one (`Geometry::new`)")
    })?;
    let name = match file.file_name().and_then(|name| name.to_str()) {
        Some(name) if name.ends_with(".nii.gz") => "volume.nii.gz",
        Some(name) if name.ends_with(".nii") => "volume.nii",
        _ => return Err(unsupported("NIfTI files end in .nii or .nii.gz; change the name")),
    };
    let header = NiftiHeader {
        // The display range and the intent of the source do not apply to these voxels.
        cal_min: 0.0,
        cal_max: 0.0,
        intent_code: 0,
        intent_name: [0; 16],
        ..geometry.header().clone()
    };
    // The writer needs contiguous slices.
    let stored = geometry.axis_mapping().to_file(volume.voxels().view()).reversed_axes();
    let stored = stored.as_standard_layout().reversed_axes();
    write_file(file, name, |temporary| {
        WriterOptions::new(temporary).reference_header(&header).write_nifti(&stored).map_err(
            |error| match error {
                nifti::NiftiError::Io(source) => source,
                other => std::io::Error::other(other),
            },
        )?;
        let bytes = 352 + (stored.len() * size_of::<T>()) as u64;
        // The writer does not report that its last buffer could not be flushed to a full disk.
        if name == "volume.nii" && std::fs::metadata(temporary)?.len() != bytes {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        Ok(())
    })
}
