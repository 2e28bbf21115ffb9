//! Times writing, finding and reading embeddings in the embedding cache.
//!
//! ```sh
//! cargo bench --bench cache
//! ```

use criterion::{Criterion, SamplingMode, criterion_group, criterion_main};
use sam_lst::EmbeddingCache;
use sam_lst::embeddings::{EmbeddingKey, EmbeddingKind};
use sam_lst::model::EmbeddingPrecision;
use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

/// Embeddings of ViT-B at 512: 512 KiB each in half precision.
const SHAPE: [usize; 3] = [256, 32, 32];
/// Embeddings in the cache: 1 GiB.
const COUNT: u64 = 2048;

fn open(folder: &Path) -> EmbeddingCache {
    let kind = EmbeddingKind {
        foundation: "benchmark".to_owned(),
        input_size: 512,
        shape: SHAPE,
        precision: EmbeddingPrecision::F16,
    };
    EmbeddingCache::open(folder, kind, None).expect("a writable folder")
}

fn key(number: u64) -> EmbeddingKey {
    EmbeddingKey::new(&[&number.to_le_bytes()])
}

fn cache(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a writable folder");
    let filled = folder.path().join("filled");
    let values: Vec<f32> = (0..SHAPE.iter().product()).map(|i: usize| (i as f32).sin()).collect();
    let cache = open(&filled);
    for number in 0..COUNT {
        cache.insert(key(number), &values).expect("write an embedding");
    }
    drop(cache);

    let mut group = criterion.benchmark_group("cache");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    group.measurement_time(Duration::from_secs(2));
    let (mut next, other) = (0, open(&folder.path().join("other")));
    group.bench_function("insert", |bencher| {
        bencher.iter(|| {
            next += 1;
            other.insert(key(next), &values).expect("write an embedding")
        });
    });
    group.bench_function("open and find 2048", |bencher| {
        bencher.iter(|| {
            let cache = open(&filled);
            assert!((0..COUNT).all(|number| cache.contains(&key(number))));
        });
    });
    let cache = open(&filled);
    let mut next = 0;
    group.bench_function("get", |bencher| {
        bencher.iter(|| {
            next = (next + 769) % COUNT;
            black_box(cache.get(&key(next)).expect("read the cache").expect("a cached embedding"))
        });
    });
    group.finish();
}

criterion_group!(benches, cache);
criterion_main!(benches);
