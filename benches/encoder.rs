//! How long does the foundation take for an image?

use burn::tensor::{Device, Distribution, Tensor};
use criterion::{Criterion, SamplingMode, criterion_group, criterion_main};
use sam_lst::SamEncoderConfig;
use std::hint::black_box;

/// Tensors of megabytes come and go by the hundred; glibc gives each back to the system and has it cleared again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn encoder(criterion: &mut Criterion) {
    let device = Device::flex();
    let encoder = SamEncoderConfig::vit_b().init(&device);
    let mut group = criterion.benchmark_group("encoder");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    let image = Tensor::<4>::random([1, 3, 512, 512], Distribution::Default, &device);
    group.bench_function("vit_b_512_b1", |bencher| {
        bencher.iter(|| black_box(encoder.forward(image.clone()).into_data()));
    });
    group.finish();
}

criterion_group!(benches, encoder);
criterion_main!(benches);
