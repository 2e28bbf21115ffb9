//! How long does the mask decoder take for a batch of embeddings, with and without its backward pass?

use burn::module::Module;
use burn::tensor::{Device, Distribution, Tensor};
use criterion::{Criterion, SamplingMode, criterion_group, criterion_main};
use sam_lst::rooms::mask_decoder::{MaskDecoder, PromptEncoder, PromptEncoderConfig};
use sam_lst::{DecoderTuning, MaskDecoderConfig, Prompts};
use std::hint::black_box;

/// Tensors of megabytes come and go by the hundred; glibc gives each back to the system and has it cleared again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn forward(prompts: &PromptEncoder, decoder: &MaskDecoder, embedding: Tensor<4>) -> Tensor<4> {
    let positions = prompts.image_positions(32);
    let prompt = prompts.forward(&Prompts::default(), 32);
    decoder.forward(embedding, positions, prompt).logits
}

fn decoder(criterion: &mut Criterion) {
    let device = Device::flex().autodiff();
    let prompts = PromptEncoderConfig::new().init(&device);
    let decoder = MaskDecoderConfig::new(9)
        .init(&device)
        .with_tuning(DecoderTuning::Upscaling);
    let random = Tensor::<4>::random([4, 256, 32, 32], Distribution::Default, &device);
    let mut group = criterion.benchmark_group("decoder");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    let (plain_prompts, plain_decoder) = (prompts.valid(), decoder.valid());
    let plain = random.clone().inner();
    group.bench_function("forward_b4", |bencher| {
        bencher
            .iter(|| black_box(forward(&plain_prompts, &plain_decoder, plain.clone()).into_data()));
    });
    // The embedding requires a gradient, as it does behind the side network.
    let embedding = random.require_grad();
    group.bench_function("forward_backward_b4", |bencher| {
        bencher.iter(|| {
            black_box(
                forward(&prompts, &decoder, embedding.clone())
                    .mean()
                    .backward(),
            )
        });
    });
    group.finish();
}

criterion_group!(benches, decoder);
criterion_main!(benches);
