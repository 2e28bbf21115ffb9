//! Slices in NumPy's npz format, as in the common preprocessing of Synapse: arrays `image` and
//! `label`.

use crate::raw::{
    ArrayHeader, FromNumber, Intensities, LabelNumbers, MAX_DEFLATE_RATIO, Scaling, check_shapes,
    decode_error,
};
use crate::voxel_type::{ByteOrder, VoxelType};
use crate::write::write_file;
use crate::{LabelMap, ReadError, WriteError};
use ndarray::{Array2, Array3, ArrayView2, Axis};
use npyz::{Endianness, TypeChar, TypeStr, WriterBuilder};
use py_literal::Value;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read};
use std::path::Path;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

/// One slice of a case.
#[derive(Debug, Clone, PartialEq)]
pub struct Slice {
    /// Intensities, usually in `[0, 1]`: `[channels, rows, columns]`, with one channel or three.
    pub image: Array3<f32>,
    /// The class of each pixel: `[rows, columns]`.
    pub label: Array2<u8>,
}

/// Reads a slice from an npz file, compressed or not, whose arrays have any integer or float type.
///
/// # Errors
///
/// [`ReadError`], naming the file, if it cannot be read, is damaged, lacks an array, has arrays of
/// different shapes, or has a label that is not in `labels`.
pub fn read_npz_slice(file: impl AsRef<Path>, labels: &LabelMap) -> Result<Slice, ReadError> {
    let file = file.as_ref();
    let io = ReadError::io(file);
    let opened = File::open(file).map_err(io)?;
    let file_bytes = opened.metadata().map_err(io)?.len();
    let mut archive =
        ZipArchive::new(BufReader::new(opened)).map_err(|error| zip_error(file, error))?;
    let image: Array2<f32> =
        read_array(file, &mut archive, file_bytes, "image", &Intensities::STORED)?;
    let conversion = (LabelNumbers::new(Scaling::NONE), labels);
    let label: Array2<u8> = read_array(file, &mut archive, file_bytes, "label", &conversion)?;
    conversion.0.report(file);
    check_shapes(file, image.shape(), label.shape())?;
    Ok(Slice { image: image.insert_axis(Axis(0)), label })
}

/// Writes a slice as `numpy.savez` does: `label` and `image`, both `float32`, uncompressed.
///
/// # Errors
///
/// [`WriteError`] if the file cannot be written; an existing file is then unchanged.
pub fn write_npz_slice(
    file: impl AsRef<Path>,
    image: ArrayView2<'_, f32>,
    label: ArrayView2<'_, u8>,
) -> Result<(), WriteError> {
    write_file(file.as_ref(), "slice.npz", |temporary| {
        let mut archive = ZipWriter::new(BufWriter::new(File::create(temporary)?));
        let label = label.map(|&class| f32::from(class));
        for (name, array) in [("label.npy", label.view()), ("image.npy", image)] {
            let options =
                SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
            archive.start_file(name, options)?;
            let mut writer = npyz::WriteOptions::new()
                .default_dtype()
                .shape(&array.shape().iter().map(|&n| n as u64).collect::<Vec<_>>())
                .writer(&mut archive)
                .begin_nd()?;
            writer.extend(array.iter().copied())?;
            writer.finish()?;
        }
        archive.finish()?.into_inner()?.sync_all()
    })
}

/// Reads one array of the archive.
fn read_array<T: FromNumber>(
    file: &Path,
    archive: &mut ZipArchive<BufReader<File>>,
    file_bytes: u64,
    name: &'static str,
    conversion: &T::Conversion<'_>,
) -> Result<Array2<T>, ReadError> {
    let member = format!("{name}.npy");
    let mut found: Vec<String> = archive.file_names().flatten().map(Into::into).collect();
    found.iter_mut().for_each(|name| {
        if let Some(stem) = name.strip_suffix(".npy") {
            *name = stem.to_owned();
        }
    });
    found.sort();
    let mut stream = match archive.by_name(&member) {
        Ok(stream) => stream,
        Err(zip::result::ZipError::FileNotFound) => {
            return Err(ReadError::MissingArray { file: file.to_owned(), name, found });
        }
        Err(error) => return Err(zip_error(file, error)),
    };
    let max_bytes = match stream.compression() {
        CompressionMethod::Stored => file_bytes,
        _ => file_bytes.saturating_mul(MAX_DEFLATE_RATIO),
    };
    let (header, fortran_order) = read_npy_header(file, name, &mut stream)?;
    header.check(file, max_bytes)?;
    let [columns, rows, _] = header.dim;
    let stored = header.read(file, stream, conversion)?;
    let array = |shape| Array2::from_shape_vec(shape, stored).expect("checked length");
    Ok(if fortran_order {
        array((columns, rows)).reversed_axes().as_standard_layout().into_owned()
    } else {
        array((rows, columns))
    })
}

/// Reads the header of an npy stream, and whether its first axis is the fastest. NumPy's
/// documentation of the format is `numpy.lib.format`.
fn read_npy_header(
    file: &Path,
    name: &str,
    stream: &mut impl Read,
) -> Result<(ArrayHeader, bool), ReadError> {
    let invalid = |found: &str| npy_error(file, name, found);
    let text = read_npy_header_text(file, name, stream)?;
    // The parser recurses once per bracket.
    if text.chars().filter(|c| "([{".contains(*c)).count() > 8 {
        return Err(invalid("its header does not describe a plain array"));
    }
    let literal: Value =
        text.trim().parse().map_err(|_| invalid("its header is not a Python literal"))?;
    let entry = |key: &str| {
        let entries = literal.as_dict()?;
        entries
            .iter()
            .find(|(name, _)| name.as_string().is_some_and(|name| name == key))
            .map(|(_, value)| value)
    };
    let (Some(descr), Some(fortran_order), Some(shape)) = (
        entry("descr"),
        entry("fortran_order").and_then(Value::as_boolean),
        entry("shape").and_then(Value::as_tuple),
    ) else {
        return Err(invalid("its header lacks `descr`, `fortran_order` or `shape`"));
    };
    let (voxel_type, order) = npy_voxel_type(descr)
        .ok_or_else(|| ReadError::VoxelType { file: file.to_owned(), found: descr.to_string() })?;
    let shape: Option<Vec<u64>> =
        shape.iter().map(|axis| u64::try_from(axis.as_integer()?).ok()).collect();
    let shape = shape.ok_or_else(|| invalid("its shape is not a tuple of axis lengths"))?;
    let [rows, columns] = *shape.as_slice() else {
        return Err(ReadError::Axes {
            file: file.to_owned(),
            found: shape,
            expected: "[rows, columns]",
        });
    };
    if rows == 0 || columns == 0 || rows.max(columns) > u64::from(u32::MAX) {
        return Err(ReadError::Axes {
            file: file.to_owned(),
            found: shape,
            expected: "at least one row and column, and at most 4294967295 of each",
        });
    }
    let header = ArrayHeader { voxel_type, order, dim: [columns as usize, rows as usize, 1] };
    Ok((header, fortran_order))
}

/// Reads the Python literal in the header of an npy stream.
fn read_npy_header_text(
    file: &Path,
    name: &str,
    stream: &mut impl Read,
) -> Result<String, ReadError> {
    // NumPy's own headers are about a hundred bytes long.
    const MAX_BYTES: usize = 4096;
    let invalid = |found: &str| npy_error(file, name, found);
    let mut read = |count: usize| -> Result<Vec<u8>, ReadError> {
        let mut bytes = vec![0; count];
        stream.read_exact(&mut bytes).map_err(|source| decode_error(file, source))?;
        Ok(bytes)
    };
    let start = read(8)?;
    if start[..6] != *b"\x93NUMPY" {
        return Err(invalid("it does not begin with NumPy's magic string"));
    }
    let length = match start[6] {
        1 => read(2)?,
        2 | 3 => read(4)?,
        version => return Err(invalid(&format!("unknown npy version {version}"))),
    };
    let length = length.iter().rev().fold(0_usize, |n, &byte| n << 8 | usize::from(byte));
    if length > MAX_BYTES {
        return Err(invalid(&format!(
            "its header has {length} bytes, which exceeds the limit of {MAX_BYTES}"
        )));
    }
    String::from_utf8(read(length)?).map_err(|_| invalid("its header is not UTF-8 text"))
}

/// The voxel type and byte order of a `descr` entry, `None` if the type is not supported.
fn npy_voxel_type(descr: &Value) -> Option<(VoxelType, ByteOrder)> {
    let type_str: TypeStr = descr.as_string()?.parse().ok()?;
    let voxel_type = match (type_str.type_char(), type_str.size_field()) {
        (TypeChar::Bool | TypeChar::Uint, 1) => VoxelType::U8,
        (TypeChar::Int, 1) => VoxelType::I8,
        (TypeChar::Uint, 2) => VoxelType::U16,
        (TypeChar::Int, 2) => VoxelType::I16,
        (TypeChar::Uint, 4) => VoxelType::U32,
        (TypeChar::Int, 4) => VoxelType::I32,
        (TypeChar::Uint, 8) => VoxelType::U64,
        (TypeChar::Int, 8) => VoxelType::I64,
        (TypeChar::Float, 2) => VoxelType::F16,
        (TypeChar::Float, 4) => VoxelType::F32,
        (TypeChar::Float, 8) => VoxelType::F64,
        _ => return None,
    };
    let order = match type_str.endianness() {
        Endianness::Big => ByteOrder::Big,
        _ => ByteOrder::Little,
    };
    Some((voxel_type, order))
}

fn npy_error(file: &Path, name: &str, found: &str) -> ReadError {
    format_error(file, format!("array `{name}`: {found}"))
}

fn zip_error(file: &Path, error: zip::result::ZipError) -> ReadError {
    match error {
        zip::result::ZipError::Io(source) => decode_error(file, source),
        other => format_error(file, other.to_string()),
    }
}

fn format_error(file: &Path, found: String) -> ReadError {
    ReadError::Format {
        file: file.to_owned(),
        expected: "npz file",
        found,
        remedy: "copy it again, or save it again with `numpy.savez`",
    }
}
