//! Times reading a volume and resampling a slice.

use criterion::{Criterion, SamplingMode, criterion_group, criterion_main};
use sam_lst::PhantomConfig;
use sam_lst::datasets::ndarray::Array2;
use sam_lst::datasets::{
    Grid, Interpolation, Orientation, read_nifti_image, resample, write_nifti,
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
    write_nifti(&file, &PhantomConfig::full_size(1).patient(1).0).expect("write the volume");
    group.bench_function("read_nifti_512_512_148", |bencher| {
        bencher.iter(|| {
            black_box(read_nifti_image(&file, Orientation::Axial).expect("read the volume"))
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

criterion_group!(benches, datasets);
criterion_main!(benches);
