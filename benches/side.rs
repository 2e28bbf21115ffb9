//! How long does the side network take for a batch, with and without its backward pass?

use burn::module::Module;
use burn::tensor::{Device, Distribution, Tensor};
use criterion::{Criterion, SamplingMode, criterion_group, criterion_main};
use sam_lst::ResNetSideConfig;
use std::hint::black_box;

/// Tensors of megabytes come and go by the hundred; glibc gives each back to the system and has it cleared again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn side(criterion: &mut Criterion) {
    let device = Device::flex().autodiff();
    let network = ResNetSideConfig::resnet18().init(&device);
    let image = Tensor::<4>::random([4, 3, 512, 512], Distribution::Default, &device);
    let mut group = criterion.benchmark_group("side");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    let (inference, plain) = (network.valid(), image.clone().inner());
    group.bench_function("forward_b4", |bencher| {
        bencher.iter(|| black_box(inference.forward(plain.clone()).into_data()));
    });
    group.bench_function("forward_backward_b4", |bencher| {
        bencher.iter(|| black_box(network.forward(image.clone()).mean().backward()));
    });
    group.finish();
}

criterion_group!(benches, side);
criterion_main!(benches);
