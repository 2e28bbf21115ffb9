//! The embedding cache, and segmentation with it.

use crate::support::{config, process_argument, test_process};
use burn::tensor::{Device, Tensor};
use safetensors::{Dtype, SafeTensors};
use sam_lst::datasets::View;
use sam_lst::datasets::ndarray::{Array3, Axis};
use sam_lst::embeddings::{
    CacheError, Embedder, EmbeddingKey, EmbeddingKind, Insertion, SliceHash, SliceView,
};
use sam_lst::inference::OutputResampling;
use sam_lst::model::{EmbeddingPrecision, PixelScale};
use sam_lst::{
    CachedViews, Dataset, DatasetDescription, EmbeddingCache, FoundationPrecision, PhantomConfig,
    Protocol, SamLst, SegmentationConfig, Segmenter, SliceGeometry, Split, Volume,
};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

const SHAPE: [usize; 3] = [4, 2, 3];

fn open(folder: &Path, limit_bytes: Option<u64>) -> EmbeddingCache {
    open_kind(folder, "0123456789abcdef0123", EmbeddingPrecision::F32, limit_bytes)
}

fn open_kind(
    folder: &Path,
    hash: &str,
    precision: EmbeddingPrecision,
    limit_bytes: Option<u64>,
) -> EmbeddingCache {
    let kind =
        EmbeddingKind { foundation: hash.to_owned(), input_size: 128, shape: SHAPE, precision };
    EmbeddingCache::open(folder, kind, limit_bytes).unwrap_or_else(|error| panic!("{error}"))
}

fn key(number: u64) -> EmbeddingKey {
    EmbeddingKey::new(&[&number.to_le_bytes()])
}

fn values(number: u64) -> Vec<f32> {
    (0..24).map(|i| (number * 24 + i) as f32 / 7.0).collect()
}

fn insert(cache: &EmbeddingCache, number: u64) -> Result<Insertion, CacheError> {
    cache.insert(key(number), &values(number))
}

fn get(cache: &EmbeddingCache, number: u64) -> Option<Vec<f32>> {
    cache.get(&key(number)).unwrap_or_else(|error| panic!("{error}"))
}

fn count(cache: &EmbeddingCache) -> usize {
    cache.count().unwrap_or_else(|error| panic!("{error}"))
}

/// The only folder in `folder`: that of one kind of embedding.
fn kind_folder(folder: &Path) -> PathBuf {
    let entries = std::fs::read_dir(folder).expect("list the cache");
    let folders: Vec<PathBuf> =
        entries.map(|entry| entry.expect("a directory entry").path()).collect();
    let [folder] = folders.as_slice() else { panic!("one kind of embedding: {folders:?}") };
    folder.clone()
}

/// The file of embedding `number` in the cache that [`open`] opens.
fn file(folder: &Path, number: u64) -> PathBuf {
    let name = key(number).to_string();
    kind_folder(folder).join(&name[..2]).join(format!("{name}.safetensors"))
}

/// Temporary files in the cache that [`open`] opens.
fn temporary_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(kind_folder(folder)).expect("list the cache");
    let paths = entries.map(|entry| entry.expect("a directory entry").path());
    paths.filter(|path| path.is_file()).collect()
}

#[test]
fn embeddings_are_visible_to_other_threads_and_processes_at_once() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let cache = open(folder.path(), None);
    assert!(cache.is_empty().expect("a readable folder"));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let cache = &cache;
            scope.spawn(move || {
                for number in 0..30 {
                    let insertion = insert(cache, number).expect("no limit");
                    assert!(matches!(insertion, Insertion::Written | Insertion::Present));
                    assert_eq!(get(cache, number), Some(values(number)), "thread {thread}");
                }
            });
        }
    });
    assert!(!cache.is_empty().expect("a readable folder"));
    assert_eq!((count(&cache), cache.embedding_bytes()), (30, 24 * 4));
    // As another process, while the first has the cache open.
    let other = open(folder.path(), None);
    assert_eq!(count(&other), 30);
    assert_eq!(insert(&other, 7).expect("no limit"), Insertion::Present);
    assert_eq!(insert(&other, 50).expect("no limit"), Insertion::Written);
    assert_eq!(insert(&cache, 51).expect("no limit"), Insertion::Written);
    let third = open(folder.path(), None);
    for cache in [&cache, &other, &third] {
        assert_eq!(count(cache), 32);
        for number in (0..30).chain([50, 51]) {
            assert!(cache.contains(&key(number)));
            assert_eq!(get(cache, number), Some(values(number)));
        }
        assert!(!cache.contains(&key(52)));
        assert_eq!(get(cache, 52), None);
    }
}

/// A process that writes 40 embeddings, three times.
#[test]
#[ignore = "started by several_processes_write_at_once"]
fn process_that_writes() {
    let Some(folder) = process_argument() else {
        return;
    };
    for _ in 0..3 {
        let cache = open(Path::new(&folder), None);
        std::thread::scope(|scope| {
            for first in [0, 20] {
                let cache = &cache;
                scope.spawn(move || {
                    for number in first..first + 20 {
                        let insertion = insert(cache, number).expect("no limit");
                        assert!(matches!(insertion, Insertion::Written | Insertion::Present));
                        assert_eq!(get(cache, number), Some(values(number)));
                    }
                });
            }
        });
    }
}

#[test]
fn several_processes_write_at_once() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let start = |_| {
        test_process("embeddings::process_that_writes", folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start the process")
    };
    let processes: Vec<_> = (0..4).map(start).collect();
    for process in processes {
        let output = process.wait_with_output().expect("child process");
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && printed.contains("1 passed"), "{printed}");
    }
    let cache = open(folder.path(), None);
    assert_eq!(count(&cache), 40);
    for number in 0..40 {
        assert_eq!(get(&cache, number), Some(values(number)));
    }
    assert!(temporary_files(folder.path()).is_empty());
}

/// Asserts that embedding 1 is not in the cache although its file was, that it can be written
/// again, and that its neighbours are not affected.
#[track_caller]
fn assert_recomputed(folder: &Path, damage: &str) {
    let cache = open(folder, None);
    assert_eq!(get(&cache, 1), None, "{damage}");
    assert!(!cache.contains(&key(1)), "{damage}: the damaged file is removed");
    assert_eq!(insert(&cache, 1).expect("no limit"), Insertion::Written, "{damage}");
    for number in 0..3 {
        assert_eq!(get(&cache, number), Some(values(number)), "{damage}");
    }
    assert_eq!(count(&cache), 3, "{damage}");
}

fn cache_of_three(folder: &Path) -> (PathBuf, Vec<u8>) {
    let cache = open(folder, None);
    for number in 0..3 {
        assert_eq!(insert(&cache, number).expect("no limit"), Insertion::Written);
    }
    let file = file(folder, 1);
    let intact = std::fs::read(&file).expect("read the embedding's file");
    (file, intact)
}

#[test]
fn truncated_embeddings_are_recomputed() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (file, intact) = cache_of_three(folder.path());
    for length in 0..intact.len() {
        std::fs::write(&file, &intact[..length]).expect("write file");
        assert_recomputed(folder.path(), &format!("{length} of {} bytes", intact.len()));
        let again = std::fs::read(&file).expect("read the embedding's file");
        assert!(again == intact, "the same bytes are written again");
    }
    let longer = [intact.as_slice(), &[0]].concat();
    std::fs::write(&file, longer).expect("write file");
    assert_recomputed(folder.path(), "one byte more");
}

#[test]
fn embeddings_with_flipped_bits_are_recomputed() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (file, intact) = cache_of_three(folder.path());
    for byte in 0..intact.len() {
        for bit in 0..8 {
            let mut damaged = intact.clone();
            damaged[byte] ^= 1 << bit;
            std::fs::write(&file, damaged).expect("write file");
            assert_recomputed(folder.path(), &format!("bit {bit} of byte {byte}"));
        }
    }
}

#[test]
fn an_embedding_of_another_shape_or_precision_is_recomputed() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (file, _) = cache_of_three(folder.path());
    for (shape, precision) in
        [([2, 4, 3], EmbeddingPrecision::F32), (SHAPE, EmbeddingPrecision::F16)]
    {
        // A valid file, but not of this kind of embedding.
        let other = tempfile::tempdir().expect("temporary folder");
        let kind =
            EmbeddingKind { foundation: "other".to_owned(), input_size: 128, shape, precision };
        let cache = EmbeddingCache::open(other.path(), kind, None).expect("an empty cache");
        insert(&cache, 1).expect("no limit");
        std::fs::copy(self::file(other.path(), 1), &file).expect("copy the embedding's file");
        assert_recomputed(folder.path(), &format!("{shape:?}, {precision:?}"));
    }
}

#[test]
fn files_of_interrupted_writes_are_not_embeddings() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (file, intact) = cache_of_three(folder.path());
    let kind = kind_folder(folder.path());
    // A process was killed just now, while it wrote; another one two hours ago.
    let [recent, abandoned] = [".writing-1-0", ".writing-2-0"].map(|name| kind.join(name));
    for path in [&recent, &abandoned] {
        std::fs::write(path, &intact[..100]).expect("write file");
    }
    let two_hours_ago = SystemTime::now() - Duration::from_secs(7200);
    let opened = std::fs::File::options().write(true).open(&abandoned).expect("open file");
    opened.set_modified(two_hours_ago).expect("set the time of modification");
    let cache = open(folder.path(), None);
    assert_eq!(count(&cache), 3);
    assert!(recent.is_file(), "another process may be writing it");
    assert!(!abandoned.exists(), "an abandoned file is removed");
    assert!(file.is_file());
    for number in 0..3 {
        assert_eq!(get(&cache, number), Some(values(number)));
    }
}

#[test]
fn files_of_version_0_1_0_are_ignored() {
    let folder = tempfile::tempdir().expect("temporary folder");
    insert(&open(folder.path(), None), 1).expect("no limit");
    let kind = kind_folder(folder.path());
    for name in ["0123.embeddings", "0123.index"] {
        std::fs::write(kind.join(name), [7; 96]).expect("write file");
    }
    let cache = open(folder.path(), Some(2 * 96));
    assert_eq!(count(&cache), 1);
    assert_eq!(insert(&cache, 2).expect("below the limit"), Insertion::Written);
    assert_eq!(get(&cache, 1), Some(values(1)));
}

#[test]
fn other_programs_read_an_embedding_as_safetensors() {
    let folder = tempfile::tempdir().expect("temporary folder");
    for (hash, precision, dtype, bytes) in [
        ("a", EmbeddingPrecision::F32, Dtype::F32, 96),
        ("b", EmbeddingPrecision::F16, Dtype::F16, 48),
    ] {
        let folder = folder.path().join(hash);
        let cache = open_kind(&folder, hash, precision, None);
        insert(&cache, 3).expect("no limit");
        let path = file(&folder, 3);
        let content = std::fs::read(&path).expect("read the embedding's file");
        let tensors = SafeTensors::deserialize(&content).expect("a safetensors file");
        assert_eq!(tensors.names(), ["embedding"]);
        let tensor = tensors.tensor("embedding").expect("the embedding");
        assert_eq!((tensor.dtype(), tensor.shape()), (dtype, SHAPE.as_slice()));
        assert_eq!(tensor.data().len(), bytes);
        let expected: Vec<u8> = match precision {
            EmbeddingPrecision::F32 => values(3).iter().flat_map(|x| x.to_le_bytes()).collect(),
            EmbeddingPrecision::F16 => {
                let halves = values(3).into_iter().map(half::f16::from_f32);
                halves.flat_map(half::f16::to_le_bytes).collect()
            }
        };
        assert_eq!(tensor.data(), expected);
        assert_same_permissions(&path);
    }
}

/// Asserts that whoever may read an ordinary new file may read `path`.
#[track_caller]
fn assert_same_permissions(path: &Path) {
    let ordinary = path.with_extension("ordinary");
    std::fs::write(&ordinary, "").expect("write file");
    let permissions = |path: &Path| std::fs::metadata(path).expect("a file").permissions();
    assert_eq!(permissions(path), permissions(&ordinary));
}

#[test]
fn other_weights_and_precisions_have_separate_caches() {
    let folder = tempfile::tempdir().expect("temporary folder");
    insert(&open(folder.path(), None), 1).expect("no limit");
    let is_empty = |cache: &EmbeddingCache| cache.is_empty().expect("a readable folder");
    assert!(is_empty(&open_kind(folder.path(), "fedcba9876543210", EmbeddingPrecision::F32, None)));
    let half = open_kind(folder.path(), "0123456789abcdef0123", EmbeddingPrecision::F16, None);
    assert!(is_empty(&half));
    assert_eq!(half.embedding_bytes(), 48);
    insert(&half, 1).expect("no limit");
    let rounded = get(&half, 1).expect("it was written");
    for (rounded, value) in rounded.into_iter().zip(values(1)) {
        assert!((rounded - value).abs() <= value * 5e-4);
    }
}

#[test]
fn the_size_limit_is_enforced_and_reported_once() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let cache = open(folder.path(), Some(3 * 96 + 10));
    for number in 0..3 {
        assert_eq!(insert(&cache, number).expect("below the limit"), Insertion::Written);
    }
    let error = insert(&cache, 3).expect_err("the limit is reached");
    assert!(matches!(error, CacheError::Limit { embeddings: 3, limit_bytes: 298, .. }), "{error}");
    assert_eq!(insert(&cache, 4).expect("reported once"), Insertion::NoRoom);
    assert_eq!(insert(&cache, 1).expect("it is there"), Insertion::Present);
    // Embeddings that are there when the cache is opened count, too.
    let cache = open(folder.path(), Some(4 * 96));
    assert_eq!(insert(&cache, 3).expect("below the limit"), Insertion::Written);
    let error = insert(&cache, 4).expect_err("the limit is reached");
    assert!(matches!(error, CacheError::Limit { embeddings: 4, limit_bytes: 384, .. }), "{error}");
    assert_eq!(count(&cache), 4);
}

#[test]
fn the_size_limit_holds_for_several_threads() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let cache = open(folder.path(), Some(10 * 96));
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let cache = &cache;
                scope.spawn(move || {
                    (0..10).map(|number| insert(cache, 10 * thread + number)).collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    });
    let written = results.iter().filter(|result| matches!(result, Ok(Insertion::Written)));
    assert_eq!((written.count(), count(&cache)), (10, 10));
    let errors: Vec<_> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    assert!(matches!(errors.as_slice(), [CacheError::Limit { .. }]), "reported once: {errors:?}");
}

#[test]
fn a_failed_write_is_reported_once_and_loses_nothing() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let cache = open(folder.path(), None);
    for number in 0..3 {
        insert(&cache, number).expect("no limit");
    }
    // As on a full disk, no file can be created.
    let kind = kind_folder(folder.path());
    let moved = folder.path().join("moved");
    std::fs::rename(&kind, &moved).expect("rename the folder");
    let error = insert(&cache, 9).expect_err("the folder is missing");
    assert!(matches!(error, CacheError::Write { .. }), "{error:?}");
    assert!(error.to_string().contains("existing embeddings remain"), "{error}");
    std::fs::rename(&moved, &kind).expect("rename the folder");
    assert_eq!(insert(&cache, 9).expect("reported once"), Insertion::NoRoom);
    assert_eq!(get(&cache, 9), None);
    for number in 0..3 {
        assert_eq!(get(&cache, number), Some(values(number)));
    }
    assert!(temporary_files(folder.path()).is_empty());
    // The next process writes again.
    assert_eq!(insert(&open(folder.path(), None), 9).expect("no limit"), Insertion::Written);
}

/// An embedding that takes more than the 512 bytes of the next test's limit on file sizes.
#[cfg(unix)]
fn open_large(folder: &Path) -> EmbeddingCache {
    let kind = EmbeddingKind {
        foundation: "large".to_owned(),
        input_size: 128,
        shape: [4, 16, 16],
        precision: EmbeddingPrecision::F32,
    };
    EmbeddingCache::open(folder, kind, None).unwrap_or_else(|error| panic!("{error}"))
}

/// A process whose writes fail after 512 bytes, as they may on a full disk.
#[cfg(unix)]
#[test]
#[ignore = "started by a_write_that_fails_halfway_leaves_no_file"]
fn process_with_a_file_size_limit() {
    let Some(folder) = process_argument() else {
        return;
    };
    let cache = open_large(Path::new(&folder));
    let values = [0.5; 1024];
    let error = cache.insert(key(2), &values).expect_err("the file is too large");
    assert!(matches!(error, CacheError::Write { .. }), "{error:?}");
    assert_eq!(cache.insert(key(3), &values).expect("reported once"), Insertion::NoRoom);
    assert_eq!(get(&cache, 1), Some(values.into()));
}

#[cfg(unix)]
#[test]
fn a_write_that_fails_halfway_leaves_no_file() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let cache = open_large(folder.path());
    cache.insert(key(1), &[0.5; 1024]).expect("no limit");
    let process = test_process("embeddings::process_with_a_file_size_limit", folder.path());
    // Without the signal, which would kill the process, its writes return an error.
    let output = std::process::Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 1; exec \"$0\" \"$@\""])
        .arg(process.get_program())
        .args(process.get_args())
        .envs(process.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .output()
        .expect("start the process");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && printed.contains("1 passed"), "{printed}");
    assert_eq!(count(&cache), 1);
    assert!(temporary_files(folder.path()).is_empty());
    assert_eq!(cache.insert(key(2), &[0.5; 1024]).expect("no limit"), Insertion::Written);
}

#[test]
fn cached_views_are_named() {
    for (text, count) in [("all", 44), ("discrete", 5), ("identity", 1), ("0", 0), ("17", 17)] {
        let views: CachedViews = text.parse().expect(text);
        assert_eq!(views.count(), count);
        assert_eq!(View::all().filter(|&view| views.contains(view)).count(), count);
        assert_eq!(views.to_string(), text);
    }
    for text in ["45", "-1", "some"] {
        let error = text.parse::<CachedViews>().expect_err(text).to_string();
        assert!(error.contains(text) && error.contains("`discrete`"), "{error}");
    }
}

fn slice(number: usize) -> Array3<f32> {
    Array3::from_shape_fn((1, 40, 36), |(_, row, column)| {
        let wave = (row as f32 * 0.3 + number as f32).sin() * (column as f32 * 0.2).cos();
        0.5 + 0.5 * wave
    })
}

fn model_cache(folder: &Path, model: &SamLst, precision: EmbeddingPrecision) -> EmbeddingCache {
    let cache = model.embedding_cache(folder, precision, None).expect("a new cache");
    cache.expect("a ladder uses embeddings")
}

#[test]
fn an_embedding_is_computed_once_and_equals_the_foundations() {
    let device = Device::flex();
    let model = config().init(&device).expect("a valid configuration");
    let geometry = SliceGeometry::released();
    let size = model.config().input_size;
    let slices: Vec<Array3<f32>> = (0..3).map(slice).collect();
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
    let expected: Vec<f32> = model.foundation.embed(images.clone()).into_data().iter().collect();
    for (precision, tolerance) in [(EmbeddingPrecision::F32, 0.0), (EmbeddingPrecision::F16, 1e-3)]
    {
        let folder = tempfile::tempdir().expect("temporary folder");
        let cache = model_cache(folder.path(), &model, precision);
        let mut results = Vec::new();
        for (first, cached) in [(1, 2), (0, 3), (0, 3)] {
            let mut embedder = Embedder::new(&model.foundation, precision)
                .with_cache(&cache, CachedViews::IDENTITY);
            let batch = 3 - first;
            let embedding = embedder
                .embed(images.clone().narrow(0, first, batch), &views[first..])
                .expect("a readable cache");
            let found: Vec<f32> = embedding.into_data().iter().collect();
            for (found, expected) in found.iter().zip(&expected[first * expected.len() / 3..]) {
                assert!((found - expected).abs() <= tolerance * (1.0 + expected.abs()));
            }
            assert_eq!(count(&cache), cached);
            results.push(found);
        }
        assert_eq!(results[1], results[2], "computed and cached values are equal bit for bit");
        assert_eq!(results[0], results[1][results[1].len() / 3..]);
    }
    // The embedding of an uncached view is computed each time and is rounded nevertheless.
    let folder = tempfile::tempdir().expect("temporary folder");
    let cache = model_cache(folder.path(), &model, EmbeddingPrecision::F16);
    let none: CachedViews = "0".parse().expect("valid views");
    let mut embedder =
        Embedder::new(&model.foundation, EmbeddingPrecision::F16).with_cache(&cache, none);
    let rounded: Vec<f32> =
        embedder.embed(images, &views).expect("nothing to read").into_data().iter().collect();
    assert_eq!((count(&cache), embedder.computed()), (0, 3));
    assert!(rounded.iter().all(|&value| round_to_half(value) == value));
}

/// Rounds to eleven significant bits, those of half precision.
fn round_to_half(value: f32) -> f32 {
    let unit = 2.0_f32.powi(value.abs().log2().floor().max(-14.0) as i32 - 10);
    (value / unit).round_ties_even() * unit
}

#[test]
fn different_inputs_have_different_keys() {
    let (a, b) = (slice(0), slice(1));
    let released = SliceGeometry::released();
    let of = |slice: &Array3<f32>, view, geometry, size| {
        SliceView::new(SliceHash::new(slice.view()), view, geometry, size).key()
    };
    let base = of(&a, View::Identity, released, 128);
    assert_eq!(base, of(&a.clone(), View::Identity, released, 128));
    let rows: View = View::all().nth(1).expect("44 views");
    let reshaped =
        Array3::from_shape_vec((1, 36, 40), a.iter().copied().collect()).expect("the same size");
    // Of three channels, the others count, too.
    let colors = Array3::from_shape_fn((3, 40, 36), |(_, row, column)| a[(0, row, column)]);
    for other in [
        of(&b, View::Identity, released, 128),
        of(&a, rows, released, 128),
        of(&a, View::Identity, SliceGeometry::direct(), 128),
        of(&a, View::Identity, released, 256),
        of(&reshaped, View::Identity, released, 128),
        of(&colors, View::Identity, released, 128),
    ] {
        assert_ne!(base, other);
    }
}

fn volume() -> Volume<f32> {
    let mut voxels = Array3::zeros((5, 40, 36));
    for (number, mut plane) in voxels.axis_iter_mut(Axis(0)).enumerate() {
        plane.assign(&slice(number).index_axis(Axis(0), 0));
    }
    Volume::new(voxels, None)
}

#[test]
fn segmentation_does_not_depend_on_batches_or_the_cache() {
    let device = Device::flex();
    let model = config().init(&device).expect("a valid configuration");
    let image = volume().into();
    for output in [OutputResampling::Reference, OutputResampling::Logits] {
        let segment = |precision, batch_size: usize, cache: Option<&EmbeddingCache>| {
            let config = SegmentationConfig {
                output,
                batch_size,
                embedding_precision: precision,
                ..SegmentationConfig::new(SliceGeometry::released())
            };
            let mut progress = Vec::new();
            let mut segmenter = Segmenter::new(&model, config);
            if let Some(cache) = cache {
                segmenter = segmenter.with_cache(cache);
            }
            let classes =
                segmenter.segment(&image, |done| progress.push(done)).expect("a readable cache");
            assert_eq!(progress.last(), Some(&5));
            assert_eq!(progress.len(), 5_usize.div_ceil(batch_size));
            classes
        };
        for precision in [EmbeddingPrecision::F32, EmbeddingPrecision::F16] {
            let uncached = segment(precision, 2, None);
            assert_eq!(uncached.shape(), image.shape());
            let first = uncached.voxels()[(0, 0, 0)];
            assert!(uncached.voxels().iter().any(|&class| class != first), "more than one class");
            let agreement = |other: &Volume<u8>| {
                let pairs = uncached.voxels().iter().zip(other.voxels());
                pairs.filter(|(a, b)| a == b).count() as f64 / uncached.voxels().len() as f64
            };
            assert!(agreement(&segment(precision, 5, None)) > 0.999);
            let folder = tempfile::tempdir().expect("temporary folder");
            let cache = model_cache(folder.path(), &model, precision);
            assert_eq!(segment(precision, 2, Some(&cache)), uncached, "bit for bit");
            assert_eq!(count(&cache), 5);
            assert_eq!(segment(precision, 2, Some(&cache)), uncached, "read from the cache");
        }
    }
}

#[test]
fn an_untrained_ladder_scores_near_zero_on_phantoms() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let phantom = PhantomConfig {
        shape: [8, 48, 48],
        spacing_mm: [24.0, 8.0, 8.0],
        ..PhantomConfig::small(3)
    };
    phantom.write_dataset(folder.path(), 1, 2, |_| {}).expect("write phantoms");
    let dataset =
        Dataset::open(folder.path(), DatasetDescription::synapse()).expect("open phantoms");
    let model = config().init(&Device::flex()).expect("a valid configuration");
    let mut segmenter = Segmenter::new(&model, SegmentationConfig::new(SliceGeometry::direct()));
    let mut progress = Vec::new();
    let protocols = [Protocol::Reference, Protocol::strict()];
    let cases = dataset.cases(Split::Test).expect("two cases");
    let reports = segmenter
        .evaluate(&dataset, &cases, &protocols, |case, done, total| {
            progress.push((case.to_owned(), done, total));
        })
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(progress.first(), Some(&("0001".to_owned(), 0, 8)));
    assert_eq!(progress.last(), Some(&("0002".to_owned(), 8, 8)));
    assert!(reports.iter().all(|report| report.cases().len() == 2));
    // The reference protocol scores 1 for an organ that is absent from the ground truth.
    let dsc = reports[1].mean(|score| score.dsc).mean.expect("at least one organ");
    assert!(dsc < 0.1, "{dsc}");
}

#[test]
fn foundations_with_different_embeddings_have_separate_caches() {
    let device = Device::flex();
    let folder = tempfile::tempdir().expect("temporary folder");
    let open = |model: &SamLst| model_cache(folder.path(), model, EmbeddingPrecision::F32);
    let init =
        |scale| config().with_pixel_scale(scale).init(&device).expect("a valid configuration");
    let model = init(PixelScale::Unit);
    let mut half = model.clone();
    let result = half.foundation.set_precision(FoundationPrecision::BF16);
    result.expect("the CPU supports it");
    let models = [model.clone(), init(PixelScale::Sam), half];
    for (number, model) in models.iter().enumerate() {
        let cache = open(model);
        assert!(cache.is_empty().expect("a readable folder"), "model {number}");
        let values = vec![number as f32; cache.shape().iter().product()];
        cache.insert(key(0), &values).expect("no limit");
    }
    for (number, model) in models.iter().enumerate() {
        let found = get(&open(model), 0).expect("it was written");
        assert_eq!(found[0], number as f32);
    }
    // Rounded weights cannot be restored.
    let mut half = models[2].clone();
    let error = half.foundation.set_precision(FoundationPrecision::F32);
    assert!(error.is_err_and(|error| error.to_string().contains("F32")));
}
