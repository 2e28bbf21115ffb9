//! Volumes in HDF5, as in the common preprocessing of Synapse: datasets `image` and `label` of
//! shape `[slices, rows, columns]`.

use crate::raw::{
    ArrayHeader, FromNumber, Intensities, LabelNumbers, MAX_DEFLATE_RATIO, Scaling, check_shapes,
};
use crate::voxel_type::{ByteOrder, VoxelType};
use crate::write::write_file;
use crate::{LabelMap, ReadError, Volume, WriteError};
use hdf5_pure::{DType, Dataset, Error, File, FileBuilder};
use ndarray::Array3;
use std::path::Path;

/// Reads image and label from an `.npy.h5` file whose datasets have any integer or float type. The
/// volumes have no geometry.
///
/// # Errors
///
/// [`ReadError`], naming the file, if it cannot be read, is damaged, lacks a dataset, has datasets
/// of different shapes, or has a label that is not in `labels`.
pub fn read_h5_volume(
    file: impl AsRef<Path>,
    labels: &LabelMap,
) -> Result<(Volume<f32>, Volume<u8>), ReadError> {
    let file = file.as_ref();
    let metadata = std::fs::metadata(file).map_err(ReadError::io(file))?;
    let opened = File::open_streaming(file).map_err(|error| h5_error(file, error))?;
    let image: Array3<f32> =
        read_dataset(file, &opened, metadata.len(), "image", &Intensities::STORED)?;
    let conversion = (LabelNumbers::new(Scaling::NONE), labels);
    let label: Array3<u8> = read_dataset(file, &opened, metadata.len(), "label", &conversion)?;
    conversion.0.report(file);
    check_shapes(file, image.shape(), label.shape())?;
    Ok((Volume::new(image, None), Volume::new(label, None)))
}

/// Writes a volume as h5py does for the common preprocessing: `image` and `label`, both `float32`,
/// contiguous.
///
/// # Errors
///
/// [`WriteError`] if the file cannot be written; an existing file is then unchanged.
///
/// # Panics
///
/// If image and label have different shapes.
pub fn write_h5_volume(
    file: impl AsRef<Path>,
    image: &Volume<f32>,
    label: &Volume<u8>,
) -> Result<(), WriteError> {
    assert_eq!(image.shape(), label.shape(), "image and label must have the same shape");
    let shape = image.shape().map(|axis| axis as u64);
    let label: Vec<f32> = label.voxels().iter().map(|&class| f32::from(class)).collect();
    write_file(file.as_ref(), "volume.h5", |temporary| {
        let mut builder = FileBuilder::new();
        let image = image.voxels().as_standard_layout();
        let image = image.as_slice().expect("standard layout");
        builder.create_dataset("image").with_f32_data(image).with_shape(&shape);
        builder.create_dataset("label").with_f32_data(&label).with_shape(&shape);
        builder.write(temporary).map_err(std::io::Error::other)
    })
}

fn read_dataset<T: FromNumber>(
    file: &Path,
    opened: &File,
    file_bytes: u64,
    name: &'static str,
    conversion: &T::Conversion<'_>,
) -> Result<Array3<T>, ReadError> {
    let h5 = |error| h5_error(file, error);
    let found = opened.root().datasets().map_err(h5)?;
    if !found.iter().any(|found| found == name) {
        return Err(ReadError::MissingArray { file: file.to_owned(), name, found });
    }
    let dataset = opened.dataset(name).map_err(h5)?;
    let shape = dataset.shape().map_err(h5)?;
    let [slices, rows, columns] = *shape.as_slice() else {
        return Err(ReadError::Axes {
            file: file.to_owned(),
            found: shape,
            expected: "[slices, rows, columns]",
        });
    };
    if shape.iter().any(|axis| !(1..=u64::from(u32::MAX)).contains(axis)) {
        return Err(ReadError::Axes {
            file: file.to_owned(),
            found: shape,
            expected: "at least one slice, row and column, and at most 4294967295 of each",
        });
    }
    let dtype = dataset.dtype().map_err(h5)?;
    let header = ArrayHeader {
        voxel_type: voxel_type(&dtype).ok_or_else(|| ReadError::VoxelType {
            file: file.to_owned(),
            found: dtype.to_string(),
        })?,
        order: ByteOrder::Little, // unused: the library converts byte orders
        dim: [columns, rows, slices].map(|axis| axis as usize),
    };
    header.check(file, file_bytes.saturating_mul(MAX_DEFLATE_RATIO))?;
    let mut voxels = Vec::with_capacity(header.voxels());
    let slice_voxels = header.dim[0] * header.dim[1];
    let mut numbers = Vec::with_capacity(slice_voxels);
    for slice in 0..slices {
        numbers.clear();
        read_slice(&dataset, header.voxel_type, slice, &mut numbers).map_err(h5)?;
        if numbers.len() != slice_voxels {
            return Err(ReadError::Truncated {
                file: file.to_owned(),
                expected_bytes: header.bytes(),
                found_bytes: ((voxels.len() + numbers.len()) * header.voxel_type.bytes()) as u64,
            });
        }
        T::append(conversion, &numbers, &mut voxels).map_err(|invalid| {
            let columns = header.dim[0];
            let voxel = [slice as usize, invalid.index / columns, invalid.index % columns];
            invalid.into_error(file, voxel)
        })?;
    }
    let shape = (header.dim[2], header.dim[1], header.dim[0]);
    Ok(Array3::from_shape_vec(shape, voxels).expect("checked length"))
}

fn voxel_type(dtype: &DType) -> Option<VoxelType> {
    Some(match dtype {
        DType::U8 => VoxelType::U8,
        DType::I8 => VoxelType::I8,
        DType::U16 => VoxelType::U16,
        DType::I16 => VoxelType::I16,
        DType::U32 => VoxelType::U32,
        DType::I32 => VoxelType::I32,
        DType::U64 => VoxelType::U64,
        DType::I64 => VoxelType::I64,
        DType::F32 => VoxelType::F32,
        DType::F64 => VoxelType::F64,
        _ => return None,
    })
}

fn read_slice(
    dataset: &Dataset,
    voxel_type: VoxelType,
    slice: u64,
    numbers: &mut Vec<f64>,
) -> Result<(), Error> {
    macro_rules! extend {
        ($read:ident) => {
            numbers.extend(dataset.$read(slice, 1)?.into_iter().map(|number| number as f64))
        };
    }
    match voxel_type {
        VoxelType::U8 => extend!(read_u8_rows),
        VoxelType::I8 => extend!(read_i8_rows),
        VoxelType::U16 => extend!(read_u16_rows),
        VoxelType::I16 => extend!(read_i16_rows),
        VoxelType::U32 => extend!(read_u32_rows),
        VoxelType::I32 => extend!(read_i32_rows),
        VoxelType::U64 => extend!(read_u64_rows),
        VoxelType::I64 => extend!(read_i64_rows),
        VoxelType::F16 | VoxelType::F32 => extend!(read_f32_rows),
        VoxelType::F64 => extend!(read_f64_rows),
    }
    Ok(())
}

fn h5_error(file: &Path, error: Error) -> ReadError {
    match error {
        Error::Io(source) => ReadError::io(file)(source),
        other => ReadError::Format {
            file: file.to_owned(),
            expected: "HDF5 file",
            found: other.to_string(),
            remedy: "check that it is an HDF5 file, or copy it again",
        },
    }
}
