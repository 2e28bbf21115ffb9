//! Times reading a volume and a DICOM series, and resampling a slice.

use criterion::{Criterion, SamplingMode, criterion_group, criterion_main};
use dicom_core::{DataElement, PrimitiveValue, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{FileMetaTableBuilder, InMemDicomObject};
use sam_lst::PhantomConfig;
use sam_lst::datasets::ndarray::{Array2, ArrayView2, Axis};
use sam_lst::datasets::{
    Grid, Interpolation, Orientation, read_dicom_image, read_nifti_image, resample, write_nifti,
};
use std::hint::black_box;
use std::path::Path;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn datasets(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("datasets");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);

    // `benches/datasets_python.py` reads the same file.
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("phantom.nii.gz");
    let volume = PhantomConfig::full_size(1).patient(1).0;
    write_nifti(&file, &volume).expect("write the volume");
    group.bench_function("read_nifti_512_512_148", |bencher| {
        bencher.iter(|| {
            black_box(read_nifti_image(&file, Orientation::Axial).expect("read the volume"))
        });
    });

    let series = Path::new(env!("CARGO_TARGET_TMPDIR")).join("phantom");
    std::fs::create_dir_all(&series).expect("create the folder");
    for (i, slice) in volume.voxels().axis_iter(Axis(0)).enumerate() {
        write_slice(&series, i, slice.mapv(f32::from).view());
    }
    group.bench_function("read_dicom_512_512_148", |bencher| {
        bencher.iter(|| {
            black_box(read_dicom_image(&series, Orientation::LPS).expect("read the series"))
        });
    });

    let slice =
        Array2::from_shape_fn((512, 512), |(row, column)| (row * column % 97) as f32 / 97.0);
    let cubic = |pixels: &Array2<f32>, size| {
        resample(pixels.view(), [size; 2], Interpolation::Cubic, Grid::CornerAligned)
    };
    group.bench_function("cubic_512_224_512", |bencher| {
        bencher.iter(|| black_box(cubic(&cubic(&slice, 224), 512)));
    });
    group.finish();
}

/// Writes an uncompressed CT slice.
fn write_slice(folder: &Path, number: usize, slice: ArrayView2<'_, f32>) {
    let instance = format!("2.25.1{number:03}");
    let position = format!("-180\\-180\\{}", 2 * number);
    let (rows, columns) = slice.dim();
    let mut object = InMemDicomObject::new_empty();
    for (tag, vr, value) in [
        (tags::SOP_CLASS_UID, VR::UI, uids::CT_IMAGE_STORAGE),
        (tags::SOP_INSTANCE_UID, VR::UI, &instance),
        (tags::STUDY_INSTANCE_UID, VR::UI, "2.25.2"),
        (tags::SERIES_INSTANCE_UID, VR::UI, "2.25.3"),
        (tags::MODALITY, VR::CS, "CT"),
        (tags::IMAGE_POSITION_PATIENT, VR::DS, &position),
        (tags::IMAGE_ORIENTATION_PATIENT, VR::DS, "1\\0\\0\\0\\1\\0"),
        (tags::PIXEL_SPACING, VR::DS, "0.7\\0.7"),
        (tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME2"),
        (tags::RESCALE_SLOPE, VR::DS, "1"),
        (tags::RESCALE_INTERCEPT, VR::DS, "-1024"),
    ] {
        object.put(DataElement::new(tag, vr, PrimitiveValue::from(value)));
    }
    for (tag, value) in [
        (tags::SAMPLES_PER_PIXEL, 1),
        (tags::ROWS, rows as u16),
        (tags::COLUMNS, columns as u16),
        (tags::BITS_ALLOCATED, 16),
        (tags::BITS_STORED, 16),
        (tags::HIGH_BIT, 15),
        (tags::PIXEL_REPRESENTATION, 0),
    ] {
        object.put(DataElement::new(tag, VR::US, PrimitiveValue::from(value)));
    }
    let pixels = slice.iter().map(|&value| (value + 1024.0) as u16).collect();
    object.put(DataElement::new(tags::PIXEL_DATA, VR::OW, PrimitiveValue::U16(pixels)));
    let meta = FileMetaTableBuilder::new().transfer_syntax(uids::EXPLICIT_VR_LITTLE_ENDIAN);
    let object = object.with_meta(meta).expect("a valid object");
    object.write_to_file(folder.join(format!("{number:03}.dcm"))).expect("write the slice");
}

criterion_group!(benches, datasets);
criterion_main!(benches);
