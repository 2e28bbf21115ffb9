//! One volume in HDF5, as the common preprocessing of Synapse writes it: datasets `image` and `label`, slices first.

use crate::raw::{Announced, FromNumber, LARGEST_DEFLATE_RATIO, Scaling, check_shapes};
use crate::voxel_type::{ByteOrder, VoxelType};
use crate::write::write_beside;
use crate::{LabelMap, ReadError, Volume, WriteError};
use hdf5_pure::{DType, Dataset, Error, File, FileBuilder};
use ndarray::Array3;
use std::path::Path;

const FORMAT: &str = "HDF5 file";

/// Reads a volume from an `.npy.h5` file, whatever the number types of its datasets. It has no geometry.
///
/// # Errors
///
/// [`ReadError`], naming the file, if it cannot be read, is damaged, lacks a dataset, has datasets of different shapes,
/// or a label that `labels` does not know.
pub fn read_h5_volume(
    file: impl AsRef<Path>,
    labels: &LabelMap,
) -> Result<(Volume<f32>, Volume<u8>), ReadError> {
    let file = file.as_ref();
    let metadata = std::fs::metadata(file).map_err(ReadError::io(file))?;
    let opened = File::open_streaming(file).map_err(|error| h5_error(file, error))?;
    let image: Array3<f32> = dataset(file, &opened, metadata.len(), "image", &Scaling::NONE)?;
    let label: Array3<u8> = dataset(
        file,
        &opened,
        metadata.len(),
        "label",
        &(Scaling::NONE, labels),
    )?;
    check_shapes(file, image.shape(), label.shape())?;
    Ok((Volume::new(image, None), Volume::new(label, None)))
}

/// Writes a volume as h5py does for the common preprocessing: `image` and `label`, both `float32`, contiguous.
///
/// # Errors
///
/// [`WriteError`] if the disk does not take it; a file that was there before then still is.
///
/// # Panics
///
/// If image and label have different shapes.
pub fn write_h5_volume(
    file: impl AsRef<Path>,
    image: &Volume<f32>,
    label: &Volume<u8>,
) -> Result<(), WriteError> {
    assert_eq!(image.shape(), label.shape(), "image and label of one shape");
    let shape = image.shape().map(|axis| axis as u64);
    let label: Vec<f32> = label
        .voxels()
        .iter()
        .map(|&class| f32::from(class))
        .collect();
    write_beside(file.as_ref(), "volume.h5", |beside| {
        let mut builder = FileBuilder::new();
        let image = image.voxels().as_standard_layout();
        let image = image.as_slice().expect("standard layout");
        builder
            .create_dataset("image")
            .with_f32_data(image)
            .with_shape(&shape);
        builder
            .create_dataset("label")
            .with_f32_data(&label)
            .with_shape(&shape);
        builder.write(beside).map_err(std::io::Error::other)
    })
}

fn dataset<T: FromNumber>(
    file: &Path,
    opened: &File,
    file_bytes: u64,
    name: &'static str,
    sink: &T::Sink<'_>,
) -> Result<Array3<T>, ReadError> {
    let h5 = |error| h5_error(file, error);
    let found = opened.root().datasets().map_err(h5)?;
    if !found.iter().any(|found| found == name) {
        return Err(ReadError::MissingArray {
            file: file.to_owned(),
            name,
            found,
        });
    }
    let dataset = opened.dataset(name).map_err(h5)?;
    let shape = dataset.shape().map_err(h5)?;
    let [slices, rows, columns] = *shape.as_slice() else {
        return Err(ReadError::Axes {
            file: file.to_owned(),
            found: shape,
            expected: "slices, rows and columns",
        });
    };
    if shape
        .iter()
        .any(|axis| !(1..=u64::from(u32::MAX)).contains(axis))
    {
        return Err(ReadError::Axes {
            file: file.to_owned(),
            found: shape,
            expected: "some slices, rows and columns",
        });
    }
    let dtype = dataset.dtype().map_err(h5)?;
    let announced = Announced {
        voxel_type: voxel_type(&dtype).ok_or_else(|| ReadError::VoxelType {
            file: file.to_owned(),
            found: dtype.to_string(),
        })?,
        order: ByteOrder::Little, // the reader's business
        dim: [columns, rows, slices].map(|axis| axis as usize),
    };
    announced.check(file, file_bytes.saturating_mul(LARGEST_DEFLATE_RATIO))?;
    let mut voxels = Vec::with_capacity(announced.voxels());
    let slice_voxels = announced.dim[0] * announced.dim[1];
    let mut numbers = Vec::with_capacity(slice_voxels);
    for slice in 0..slices {
        numbers.clear();
        read_slice(&dataset, announced.voxel_type, slice, &mut numbers).map_err(h5)?;
        if numbers.len() != slice_voxels {
            return Err(ReadError::Truncated {
                file: file.to_owned(),
                expected_bytes: announced.bytes(),
                found_bytes: ((voxels.len() + numbers.len()) * announced.voxel_type.bytes()) as u64,
            });
        }
        T::append(sink, &numbers, &mut voxels).map_err(|bad| {
            let columns = announced.dim[0];
            let voxel = [slice as usize, bad.index / columns, bad.index % columns];
            bad.at(file, voxel)
        })?;
    }
    let shape = (announced.dim[2], announced.dim[1], announced.dim[0]);
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
            numbers.extend(
                dataset
                    .$read(slice, 1)?
                    .into_iter()
                    .map(|number| number as f64),
            )
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
            expected: FORMAT,
            found: other.to_string(),
        },
    }
}
