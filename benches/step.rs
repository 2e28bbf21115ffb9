//! How long does a training step take, from cached embeddings and with the foundation in it?

use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Distribution, Tensor};
use criterion::{Criterion, SamplingMode, criterion_group, criterion_main};
use sam_lst::{SamLst, SamLstConfig};

/// Tensors of megabytes come and go by the hundred; glibc gives each back to the system and has it cleared again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn step(criterion: &mut Criterion) {
    let device = Device::flex().autodiff();
    let SamLst {
        foundation,
        mut ladder,
        ..
    } = SamLstConfig::vit_b(9)
        .init(&device)
        .expect("a preset is valid");
    let image = Tensor::<4>::random([4, 3, 512, 512], Distribution::Default, &device);
    let embedding = Tensor::<4>::random([4, 256, 32, 32], Distribution::Default, &device).inner();
    let mut optimizer = AdamWConfig::new()
        .with_epsilon(1e-8)
        .with_weight_decay(0.1)
        .init();
    let mut train = |embedding: Tensor<4>| {
        let loss = ladder
            .forward(image.clone(), embedding)
            .logits
            .powi_scalar(2)
            .mean();
        let gradients = GradientsParams::from_grads(loss.backward(), &ladder);
        ladder = optimizer.step(1e-3, ladder.clone(), gradients);
    };

    let mut group = criterion.benchmark_group("step");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.bench_function("cached_b4", |bencher| {
        bencher.iter(|| train(embedding.clone()));
    });
    group.bench_function("full_b4", |bencher| {
        bencher.iter(|| train(foundation.embed(image.clone())));
    });
    group.finish();
}

criterion_group!(benches, step);
criterion_main!(benches);
