//! The embedding cache, and segmenting with it.

use crate::support::config;
use burn::tensor::{Device, Tensor};
use sam_lst::rooms::datasets::ndarray::{Array2, Array3, Axis};
use sam_lst::rooms::datasets::{Split, View, Volume};
use sam_lst::{
    CacheError, CachePrecision, CachedViews, Dataset, DatasetDescription, Embedder, EmbeddingCache,
    EmbeddingKey, EmbeddingKind, FoundationPrecision, Insertion, OutputResampling, PhantomConfig,
    PixelScale, Protocol, SamLst, SegmentationConfig, Segmenter, SliceGeometry, SliceHash,
    SliceView,
};
use std::path::{Path, PathBuf};

const SHAPE: [usize; 3] = [4, 2, 3];

fn open(folder: &Path, limit_bytes: Option<u64>) -> EmbeddingCache {
    open_as(
        folder,
        "0123456789abcdef0123",
        CachePrecision::F32,
        limit_bytes,
    )
}

fn open_as(
    folder: &Path,
    hash: &str,
    precision: CachePrecision,
    limit_bytes: Option<u64>,
) -> EmbeddingCache {
    let kind = EmbeddingKind {
        foundation: hash.to_owned(),
        input_size: 128,
        shape: SHAPE,
        precision,
    };
    EmbeddingCache::open(folder, kind, limit_bytes).unwrap_or_else(|error| panic!("{error}"))
}

fn key(number: u64) -> EmbeddingKey {
    EmbeddingKey::new(&[&number.to_le_bytes()])
}

fn values(number: u64) -> Vec<f32> {
    (0..24).map(|i| (number * 24 + i) as f32 / 7.0).collect()
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("a folder")
        .flat_map(|entry| std::fs::read_dir(entry.expect("a folder").path()).expect("a folder"))
        .map(|entry| entry.expect("a file").path())
        .filter(|file| file.extension().is_some_and(|found| found == extension))
        .collect();
    files.sort();
    files
}

#[test]
fn what_is_kept_is_there_for_other_threads_and_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = open(folder.path(), None);
    assert!(cache.is_empty());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let cache = &cache;
            scope.spawn(move || {
                for number in 0..30 {
                    let insertion = cache.insert(key(number), &values(number)).expect("room");
                    assert!(matches!(insertion, Insertion::Kept | Insertion::Present));
                    assert_eq!(
                        cache.get(&key(number)).expect("readable"),
                        Some(values(number)),
                        "thread {thread}"
                    );
                }
            });
        }
    });
    assert_eq!((cache.len(), cache.bytes()), (30, 30 * 24 * 4));
    // Another run, while the first is still open, and what both then write.
    let other = open(folder.path(), None);
    assert_eq!(other.len(), 30);
    assert_eq!(
        other.insert(key(7), &values(7)).expect("room"),
        Insertion::Present
    );
    assert_eq!(
        other.insert(key(50), &values(50)).expect("room"),
        Insertion::Kept
    );
    assert_eq!(
        cache.insert(key(51), &values(51)).expect("room"),
        Insertion::Kept
    );
    assert_eq!(
        cache.get(&key(50)).expect("readable"),
        None,
        "the other's are found when opened again"
    );
    let third = open(folder.path(), None);
    assert_eq!(third.len(), 32);
    for number in (0..30).chain([50, 51]) {
        assert_eq!(
            third.get(&key(number)).expect("readable"),
            Some(values(number))
        );
    }
}

#[test]
fn interrupted_and_damaged_writes_are_never_taken_for_embeddings() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = open(folder.path(), None);
    for number in 0..5 {
        cache.insert(key(number), &values(number)).expect("room");
    }
    drop(cache);
    let [embeddings] = files(folder.path(), "embeddings").try_into().expect("one");
    let [index] = files(folder.path(), "index").try_into().expect("one");
    let [whole, lines] = [&embeddings, &index].map(|file| std::fs::read(file).expect("written"));
    let found = || {
        let cache = open(folder.path(), None);
        (0..5)
            .filter(|&number| match cache.get(&key(number)).expect("readable") {
                Some(found) => {
                    assert_eq!(found, values(number));
                    true
                }
                None => false,
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(found(), [0, 1, 2, 3, 4]);
    // Cut anywhere, in the middle of values or of a line.
    for cut in 1..=whole.len() {
        std::fs::write(&embeddings, &whole[..whole.len() - cut]).expect("room");
        let left = (whole.len() - cut) / (24 * 4);
        assert_eq!(found(), (0..left as u64).collect::<Vec<_>>());
    }
    std::fs::write(&embeddings, &whole).expect("room");
    for cut in 1..=lines.len() {
        std::fs::write(&index, &lines[..lines.len() - cut]).expect("room");
        assert_eq!(
            found(),
            (0..((lines.len() - cut) / 40) as u64).collect::<Vec<_>>()
        );
    }
    // A damaged line, damaged values.
    for at in [3, 20, 30, 39] {
        let mut damaged = lines.clone();
        damaged[40 + at] ^= 1;
        std::fs::write(&index, damaged).expect("room");
        assert_eq!(found(), [0, 2, 3, 4]);
    }
    std::fs::write(&index, &lines).expect("room");
    let mut damaged = whole.clone();
    damaged[2 * 24 * 4 + 5] ^= 0x10;
    std::fs::write(&embeddings, damaged).expect("room");
    assert_eq!(found(), [0, 1, 3, 4]);
    // What was lost is kept anew.
    let cache = open(folder.path(), None);
    assert_eq!(cache.get(&key(2)).expect("readable"), None);
    assert_eq!(
        cache.insert(key(2), &values(2)).expect("room"),
        Insertion::Kept
    );
    assert_eq!(found(), [0, 1, 2, 3, 4]);
}

#[test]
fn other_weights_sizes_and_precisions_are_other_caches() {
    let folder = tempfile::tempdir().expect("a folder");
    open(folder.path(), None)
        .insert(key(1), &values(1))
        .expect("room");
    assert!(open_as(folder.path(), "fedcba9876543210", CachePrecision::F32, None).is_empty());
    let half = open_as(
        folder.path(),
        "0123456789abcdef0123",
        CachePrecision::F16,
        None,
    );
    assert!(half.is_empty());
    assert_eq!(half.embedding_bytes(), 48);
    half.insert(key(1), &values(1)).expect("room");
    for (kept, value) in half
        .get(&key(1))
        .expect("readable")
        .expect("kept")
        .into_iter()
        .zip(values(1))
    {
        assert!((kept - value).abs() <= value * 5e-4);
    }
}

#[test]
fn a_limit_is_kept_and_a_full_disk_loses_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = open(folder.path(), Some(3 * 96 + 10));
    let insert = |number| cache.insert(key(number), &values(number));
    for number in 0..3 {
        assert_eq!(insert(number).expect("room"), Insertion::Kept);
    }
    let error = insert(3).expect_err("there is no room");
    assert!(
        matches!(
            error,
            CacheError::Limit {
                embeddings: 3,
                limit_bytes: 298,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(insert(4).expect("told once"), Insertion::NoRoom);
    assert_eq!(
        cache.insert(key(1), &values(1)).expect("room"),
        Insertion::Present
    );
    drop(cache);
    // A folder that cannot be written: as a full disk, the first write fails, and what was there is still read.
    let cache = open(folder.path(), None);
    let inner = files(folder.path(), "index")[0]
        .parent()
        .expect("a folder")
        .to_owned();
    let kept = folder.path().join("elsewhere");
    std::fs::rename(&inner, &kept).expect("a folder");
    let error = cache
        .insert(key(9), &values(9))
        .expect_err("there is no folder");
    assert!(matches!(error, CacheError::Write { .. }));
    assert!(error.to_string().contains("what is there stays"), "{error}");
    std::fs::rename(&kept, &inner).expect("a folder");
    assert_eq!(
        cache.insert(key(9), &values(9)).expect("told once"),
        Insertion::NoRoom
    );
    assert_eq!(cache.get(&key(2)).expect("readable"), Some(values(2)));
}

#[test]
fn views_that_are_kept_have_names() {
    for (text, count) in [
        ("all", 44),
        ("discrete", 5),
        ("identity", 1),
        ("0", 0),
        ("17", 17),
    ] {
        let views: CachedViews = text.parse().expect(text);
        assert_eq!(views.count(), count);
        assert_eq!(View::all().filter(|&view| views.keeps(view)).count(), count);
        assert_eq!(views.to_string(), text);
    }
    for text in ["45", "-1", "some"] {
        let error = text.parse::<CachedViews>().expect_err(text).to_string();
        assert!(
            error.contains(text) && error.contains("`discrete`"),
            "{error}"
        );
    }
}

fn slice(number: usize) -> Array2<f32> {
    Array2::from_shape_fn((40, 36), |(row, column)| {
        let wave = (row as f32 * 0.3 + number as f32).sin() * (column as f32 * 0.2).cos();
        0.5 + 0.5 * wave
    })
}

fn model_cache(folder: &Path, model: &SamLst, precision: CachePrecision) -> EmbeddingCache {
    model
        .embedding_cache(folder, precision, None)
        .expect("room")
}

#[test]
fn an_embedding_is_computed_once_and_is_what_the_foundation_computes() {
    let device = Device::flex();
    let model = config().init(&device).expect("valid");
    let geometry = SliceGeometry::released();
    let size = model.config().input_size;
    let slices: Vec<Array2<f32>> = (0..3).map(slice).collect();
    let inputs: Vec<f32> = slices
        .iter()
        .flat_map(|slice| {
            let grey = geometry.image(slice.view(), size);
            [grey.clone(), grey.clone(), grey].into_iter().flatten()
        })
        .collect();
    let images = Tensor::<1>::from_floats(inputs.as_slice(), &device).reshape([3, 3, size, size]);
    let views: Vec<SliceView> = slices
        .iter()
        .map(|slice| SliceView::new(SliceHash::new(slice.view()), View::Identity, geometry, size))
        .collect();
    let expected: Vec<f32> = model
        .foundation
        .embed(images.clone())
        .into_data()
        .iter()
        .collect();
    for (precision, at_most) in [(CachePrecision::F32, 0.0), (CachePrecision::F16, 1e-3)] {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = model_cache(folder.path(), &model, precision);
        let mut seen = Vec::new();
        for (first, computed) in [(1, 2), (0, 3), (0, 3)] {
            let mut embedder =
                Embedder::new(&model.foundation).with_cache(&cache, CachedViews::IDENTITY);
            let count = 3 - first;
            let embedding = embedder
                .embed(images.clone().narrow(0, first, count), &views[first..])
                .expect("readable");
            let found: Vec<f32> = embedding.into_data().iter().collect();
            for (found, expected) in found.iter().zip(&expected[first * expected.len() / 3..]) {
                // A batch of another size may differ in the last bits; the first batch of all is the same one here.
                assert!((found - expected).abs() <= at_most * (1.0 + expected.abs()) + 1e-5);
            }
            assert_eq!(cache.len(), computed);
            seen.push(found);
        }
        assert_eq!(
            seen[1], seen[2],
            "computed and found are bit for bit the same"
        );
        assert_eq!(seen[0], seen[1][seen[1].len() / 3..]);
    }
    // A view that is not kept is computed each time, and rounded all the same.
    let folder = tempfile::tempdir().expect("a folder");
    let cache = model_cache(folder.path(), &model, CachePrecision::F16);
    let none: CachedViews = "0".parse().expect("none");
    let mut embedder = Embedder::new(&model.foundation).with_cache(&cache, none);
    let rounded: Vec<f32> = embedder
        .embed(images, &views)
        .expect("nothing to read")
        .into_data()
        .iter()
        .collect();
    assert_eq!((cache.len(), embedder.computed()), (0, 3));
    assert!(rounded.iter().all(|&value| half(value) == value));
}

fn half(value: f32) -> f32 {
    // Eleven significant bits: what is left of a number after rounding to half precision.
    let unit = 2.0_f32.powi(value.abs().log2().floor().max(-14.0) as i32 - 10);
    (value / unit).round_ties_even() * unit
}

#[test]
fn keys_differ_where_inputs_do() {
    let (a, b) = (slice(0), slice(1));
    let released = SliceGeometry::released();
    let of = |slice: &Array2<f32>, view, geometry, size| {
        SliceView::new(SliceHash::new(slice.view()), view, geometry, size).key()
    };
    let base = of(&a, View::Identity, released, 128);
    assert_eq!(base, of(&a.clone(), View::Identity, released, 128));
    let rows: View = View::all().nth(1).expect("44 views");
    let reshaped = Array2::from_shape_vec((36, 40), a.iter().copied().collect()).expect("as many");
    for other in [
        of(&b, View::Identity, released, 128),
        of(&a, rows, released, 128),
        of(&a, View::Identity, SliceGeometry::direct(), 128),
        of(&a, View::Identity, released, 256),
        of(&reshaped, View::Identity, released, 128),
    ] {
        assert_ne!(base, other);
    }
}

fn volume() -> Volume<f32> {
    let mut voxels = Array3::zeros((5, 40, 36));
    for (number, mut plane) in voxels.axis_iter_mut(Axis(0)).enumerate() {
        plane.assign(&slice(number));
    }
    Volume::new(voxels, None)
}

#[test]
fn a_volume_is_segmented_alike_in_any_batches_with_and_without_a_cache() {
    let device = Device::flex();
    let model = config().init(&device).expect("valid");
    let image = volume();
    for output in [OutputResampling::Reference, OutputResampling::Logits] {
        let segment = |batch_size: usize, cache: Option<&EmbeddingCache>| {
            let config = SegmentationConfig {
                output,
                batch_size,
                ..SegmentationConfig::new(SliceGeometry::released())
            };
            let mut progress = Vec::new();
            let mut segmenter = Segmenter::new(&model, config);
            if let Some(cache) = cache {
                segmenter = segmenter.with_cache(cache);
            }
            let classes = segmenter
                .segment(&image, |done| progress.push(done))
                .expect("no cache to fail");
            assert_eq!(progress.last(), Some(&5));
            assert_eq!(progress.len(), 5_usize.div_ceil(batch_size));
            classes
        };
        let plain = segment(2, None);
        assert_eq!(plain.shape(), image.shape());
        assert!(
            plain
                .voxels()
                .iter()
                .any(|&class| class != plain.voxels()[(0, 0, 0)]),
            "more than one class"
        );
        let agreement = |other: &Volume<u8>| {
            let equal = plain
                .voxels()
                .iter()
                .zip(other.voxels())
                .filter(|(a, b)| a == b)
                .count();
            equal as f64 / plain.voxels().len() as f64
        };
        assert!(agreement(&segment(5, None)) > 0.999);
        let folder = tempfile::tempdir().expect("a folder");
        let cache = model_cache(folder.path(), &model, CachePrecision::F32);
        assert_eq!(segment(2, Some(&cache)), plain, "bit for bit");
        assert_eq!(cache.len(), 5);
        assert_eq!(segment(2, Some(&cache)), plain, "found");
    }
}

#[test]
fn an_untrained_ladder_scores_near_nothing_on_phantoms() {
    let folder = tempfile::tempdir().expect("a folder");
    let phantom = PhantomConfig {
        shape: [8, 48, 48],
        spacing_mm: [24.0, 8.0, 8.0],
        ..PhantomConfig::small(3)
    };
    phantom
        .write_dataset(folder.path(), 1, 2, |_| {})
        .expect("room");
    let dataset = Dataset::open(folder.path(), DatasetDescription::synapse()).expect("phantoms");
    let model = config().init(&Device::flex()).expect("valid");
    let mut segmenter = Segmenter::new(&model, SegmentationConfig::new(SliceGeometry::direct()));
    let mut progress = Vec::new();
    let protocols = [Protocol::Reference, Protocol::strict()];
    let reports = segmenter
        .evaluate(
            &dataset,
            &dataset.cases(Split::Test).expect("two"),
            &protocols,
            |case, done, all| {
                progress.push((case.to_owned(), done, all));
            },
        )
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(progress.first(), Some(&("0001".to_owned(), 0, 8)));
    assert_eq!(progress.last(), Some(&("0002".to_owned(), 8, 8)));
    assert!(reports.iter().all(|report| report.cases().len() == 2));
    // The reference protocol gives a whole point for an organ that is not there.
    let dsc = reports[1].mean(|score| score.dsc).mean.expect("organs");
    assert!(dsc < 0.1, "{dsc}");
}

#[test]
fn what_changes_an_embedding_has_a_cache_of_its_own() {
    let device = Device::flex();
    let folder = tempfile::tempdir().expect("a folder");
    let open = |model: &SamLst| {
        let cache = model.embedding_cache(folder.path(), CachePrecision::F32, None);
        cache.expect("a folder")
    };
    let init = |scale| {
        config()
            .with_pixel_scale(scale)
            .init(&device)
            .expect("valid")
    };
    let model = init(PixelScale::Unit);
    let mut half = model.clone();
    let set = half.foundation.set_precision(FoundationPrecision::BF16);
    set.expect("the CPU computes in it");
    let models = [model.clone(), init(PixelScale::Sam), half];
    for (number, model) in models.iter().enumerate() {
        let cache = open(model);
        assert!(cache.is_empty(), "model {number}");
        let values = vec![number as f32; cache.shape().iter().product()];
        cache.insert(key(0), &values).expect("room");
    }
    for (number, model) in models.iter().enumerate() {
        let found = open(model).get(&key(0)).expect("readable").expect("there");
        assert_eq!(found[0], number as f32);
    }
    // Once rounded, weights are not what they were.
    let mut half = models[2].clone();
    let error = half.foundation.set_precision(FoundationPrecision::F32);
    assert!(error.is_err_and(|error| error.to_string().contains("F32")));
}
