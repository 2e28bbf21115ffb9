//! One slice in NumPy's npz, as the common preprocessing of Synapse writes it: arrays `image` and `label`.

use crate::raw::{Announced, FromNumber, LARGEST_DEFLATE_RATIO, Scaling, check_shapes, damaged};
use crate::voxel_type::{ByteOrder, VoxelType};
use crate::write::write_beside;
use crate::{LabelMap, ReadError, WriteError};
use ndarray::{Array2, ArrayView2};
use npyz::{Endianness, TypeChar, TypeStr, WriterBuilder};
use py_literal::Value;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read};
use std::path::Path;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

const FORMAT: &str = "npz file";

/// One axial slice: intensities and classes, `[rows, columns]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Slice {
    /// Intensities, usually in `[0, 1]`.
    pub image: Array2<f32>,
    /// The class of each pixel.
    pub label: Array2<u8>,
}

/// Reads a slice from an npz file, whatever the number types of its arrays and whether compressed or not.
///
/// # Errors
///
/// [`ReadError`], naming the file, if it cannot be read, is damaged, lacks an array, has arrays of different shapes, or
/// a label that `labels` does not know.
pub fn read_npz_slice(file: impl AsRef<Path>, labels: &LabelMap) -> Result<Slice, ReadError> {
    let file = file.as_ref();
    let io = ReadError::io(file);
    let opened = File::open(file).map_err(io)?;
    let file_bytes = opened.metadata().map_err(io)?.len();
    let mut archive =
        ZipArchive::new(BufReader::new(opened)).map_err(|error| zip_error(file, error))?;
    let image: Array2<f32> = array(file, &mut archive, file_bytes, "image", &Scaling::NONE)?;
    let label: Array2<u8> = array(
        file,
        &mut archive,
        file_bytes,
        "label",
        &(Scaling::NONE, labels),
    )?;
    check_shapes(file, image.shape(), label.shape())?;
    Ok(Slice { image, label })
}

/// Writes a slice as `numpy.savez` does: `label` and `image`, both `float32`, not compressed.
///
/// # Errors
///
/// [`WriteError`] if the disk does not take it; a file that was there before then still is.
pub fn write_npz_slice(
    file: impl AsRef<Path>,
    image: ArrayView2<'_, f32>,
    label: ArrayView2<'_, u8>,
) -> Result<(), WriteError> {
    write_beside(file.as_ref(), "slice.npz", |beside| {
        let mut archive = ZipWriter::new(BufWriter::new(File::create(beside)?));
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

/// One array of the archive.
fn array<T: FromNumber>(
    file: &Path,
    archive: &mut ZipArchive<BufReader<File>>,
    file_bytes: u64,
    name: &'static str,
    sink: &T::Sink<'_>,
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
            return Err(ReadError::MissingArray {
                file: file.to_owned(),
                name,
                found,
            });
        }
        Err(error) => return Err(zip_error(file, error)),
    };
    let possible_bytes = match stream.compression() {
        CompressionMethod::Stored => file_bytes,
        _ => file_bytes.saturating_mul(LARGEST_DEFLATE_RATIO),
    };
    let (announced, fortran_order) = npy_header(file, name, &mut stream)?;
    announced.check(file, possible_bytes)?;
    let [columns, rows, _] = announced.dim;
    let stored = announced.read(file, stream, sink)?;
    let array = |shape| Array2::from_shape_vec(shape, stored).expect("checked length");
    Ok(match fortran_order {
        false => array((rows, columns)),
        true => array((columns, rows))
            .reversed_axes()
            .as_standard_layout()
            .into_owned(),
    })
}

/// The header of an npy stream, and whether its first axis runs fastest. NumPy's own description of the format is
/// `numpy.lib.format`.
fn npy_header(
    file: &Path,
    name: &str,
    stream: &mut impl Read,
) -> Result<(Announced, bool), ReadError> {
    // NumPy's own are about a hundred bytes long.
    const LONGEST: usize = 4096;
    let format = |found: &str| ReadError::Format {
        file: file.to_owned(),
        expected: FORMAT,
        found: format!("array `{name}`: {found}"),
    };
    let mut read = |count: usize| {
        let mut bytes = vec![0; count];
        stream
            .read_exact(&mut bytes)
            .map_err(|source| damaged(file, source))?;
        Ok(bytes)
    };
    let start = read(8)?;
    if start[..6] != *b"\x93NUMPY" {
        return Err(format("it does not begin as NumPy's arrays do"));
    }
    let length = match start[6] {
        1 => read(2)?
            .iter()
            .rev()
            .fold(0, |n, &byte| n << 8 | usize::from(byte)),
        2 | 3 => read(4)?
            .iter()
            .rev()
            .fold(0, |n, &byte| n << 8 | usize::from(byte)),
        version => return Err(format(&format!("unknown version {version}"))),
    };
    if length > LONGEST {
        return Err(format(&format!("its header is {length} bytes long")));
    }
    let text = String::from_utf8(read(length)?).map_err(|_| format("its header is no text"))?;
    // A literal's parser descends once a bracket.
    if text.chars().filter(|c| "([{".contains(*c)).count() > 8 {
        return Err(format("its header describes no plain array"));
    }
    let literal: Value = text
        .trim()
        .parse()
        .map_err(|_| format("its header is no Python literal"))?;
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
        return Err(format(
            "its header lacks `descr`, `fortran_order` or `shape`",
        ));
    };
    let unknown_type = || ReadError::VoxelType {
        file: file.to_owned(),
        found: descr.to_string(),
    };
    let type_str: TypeStr = descr
        .as_string()
        .and_then(|descr| descr.parse().ok())
        .ok_or_else(unknown_type)?;
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
        _ => return Err(unknown_type()),
    };
    let shape: Option<Vec<u64>> = shape
        .iter()
        .map(|axis| u64::try_from(axis.as_integer()?).ok())
        .collect();
    let shape = shape.ok_or_else(|| format("its shape is none"))?;
    let [rows, columns] = *shape.as_slice() else {
        return Err(ReadError::Axes {
            file: file.to_owned(),
            found: shape,
            expected: "rows and columns",
        });
    };
    if rows == 0 || columns == 0 || rows.max(columns) > u64::from(u32::MAX) {
        return Err(ReadError::Axes {
            file: file.to_owned(),
            found: shape,
            expected: "some rows and columns",
        });
    }
    let announced = Announced {
        voxel_type,
        order: match type_str.endianness() {
            Endianness::Big => ByteOrder::Big,
            _ => ByteOrder::Little,
        },
        dim: [columns as usize, rows as usize, 1],
    };
    Ok((announced, fortran_order))
}

fn zip_error(file: &Path, error: zip::result::ZipError) -> ReadError {
    match error {
        zip::result::ZipError::Io(source) => damaged(file, source),
        other => ReadError::Format {
            file: file.to_owned(),
            expected: FORMAT,
            found: other.to_string(),
        },
    }
}
