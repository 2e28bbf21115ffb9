//! Work that devices, threads and processes share.

use crate::support::{Cases, process_argument, test_process};
use crate::training::{RecordedEvents, config, dataset, dataset_of, folders, run, run_on};
use burn::tensor::Device;
use sam_lst::training::{PrecomputeOutcome, Shard, TrainingError};
use sam_lst::{
    CachedViews, Dataset, Outcome, Training, TrainingConfig, TrainingEvent, TrainingFolders,
};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// Asserts that the trained parameters have equal names and bits.
#[track_caller]
fn assert_same_parameters(actual: &TrainingFolders, expected: &TrainingFolders) {
    let [actual, expected] =
        [actual, expected].map(|folders| Cases::read(&folders.run.join("ladder.safetensors")));
    assert!(actual.names().eq(expected.names()));
    for name in actual.names().filter(|name| !name.contains("running_")) {
        assert!(actual.data(name) == expected.data(name), "{name} differs");
    }
}

#[test]
fn the_number_of_devices_does_not_affect_the_weights() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dataset = dataset(folder.path());
    // 18 slices: an epoch has two steps of four batches of two and one of the last batch.
    let mut config = config();
    config.epochs = 2;
    config.batch_size = 2;
    config.accumulated_batches = 4;
    // Some embeddings are computed in the steps.
    config.cache.views = CachedViews::DISCRETE;
    let single = folders(folder.path(), "single");
    let (_, expected) = run(&config, &dataset, &single).expect("the run finishes");
    assert_eq!(expected.steps.len(), 6);
    for count in [2, 4] {
        let folders = folders(&folder.path().join(format!("{count}")), "run");
        let devices = vec![Device::flex(); count];
        let finished = run_on(&devices, &config, &dataset, &folders);
        let (_, events) = finished.expect("the run finishes");
        assert_eq!(events.losses(), expected.losses(), "{count} devices");
        assert_same_parameters(&folders, &single);
        assert_eq!(events.plan().devices, count);
        assert_eq!(
            events.computed_embeddings(),
            expected.computed_embeddings(),
            "each embedding is computed once"
        );
    }

    let devices = vec![Device::flex(); 3];
    let result = run_on(&devices, &config, &dataset, &folders(folder.path(), "uneven"));
    let message = result.expect_err("four batches on three devices").to_string();
    assert!(message.starts_with("3 devices cannot share the 4 batches"), "{message}");
}

#[test]
fn a_step_is_split_across_devices() {
    let released = TrainingConfig::released(9);
    for (devices, batch_size, accumulated_batches) in [(1, 24, 1), (2, 12, 2), (8, 3, 8)] {
        let split = released.split_across(devices).expect("an even split");
        assert_eq!(
            (split.batch_size, split.accumulated_batches),
            (batch_size, accumulated_batches)
        );
        assert_eq!(split.split_across(devices).expect("split already"), split);
    }
    let message = released.split_across(5).expect_err("24 slices on 5 devices").to_string();
    assert!(message.starts_with("`batch_size` is 24, for 5 devices"), "{message}");
}

/// Precomputes embeddings in `folder`, as one of possibly several processes that use it.
fn precompute(
    folder: &Path,
    dataset: &Dataset,
    change: impl FnOnce(Training) -> Training,
) -> Result<(PrecomputeOutcome, RecordedEvents), TrainingError> {
    let config = config();
    let model = config.model.init(&Device::flex().autodiff()).expect("a valid configuration");
    let mut events = RecordedEvents::default();
    let training = change(Training::new(config, folders(folder, "unused")));
    let outcome = training.precompute(model, dataset, |event| events.record(event))?;
    Ok((outcome, events))
}

/// Calls `work` with 0, 1, 2, ... in `count` threads at the same time.
fn concurrently<T: Send>(count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|index| scope.spawn(move || work(index))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}

/// Embeddings in the cache of `folder`, by the names of their files.
fn cached_files(folder: &Path) -> BTreeSet<PathBuf> {
    let kinds = std::fs::read_dir(folder.join("cache/embeddings")).expect("list the cache");
    let kinds: Vec<PathBuf> = kinds.map(|entry| entry.expect("a directory entry").path()).collect();
    assert_eq!(kinds.len(), 1, "one kind of embedding: {kinds:?}");
    let mut found = BTreeSet::new();
    let mut pending = kinds;
    while let Some(folder) = pending.pop() {
        for entry in std::fs::read_dir(folder).expect("list the cache") {
            let path = entry.expect("a directory entry").path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "safetensors") {
                found.insert(path);
            }
        }
    }
    found
}

#[test]
fn processes_and_devices_that_share_a_folder_compute_each_embedding_once() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dataset = dataset(folder.path());
    let results = concurrently(3, |index| {
        let devices = vec![Device::flex(); 1 + index];
        let result = precompute(folder.path(), &dataset, |training| training.devices(&devices));
        result.expect("precomputation finishes")
    });
    let needed = results
        .iter()
        .map(|(_, events)| events.plan().cacheable_embeddings)
        .max()
        .expect("three plans");
    let computed: usize = results.iter().map(|(outcome, _)| outcome.computed).sum();
    assert_eq!(computed, needed, "each embedding is computed once");
    for (outcome, events) in &results {
        assert!(!outcome.stopped);
        // A process that started late may have found all embeddings.
        if let Some(&[done, total, _]) = events.precomputing.last() {
            assert_eq!(done, total, "all processes end when the last embedding is there");
        }
    }

    let (_, events) = run(&config(), &dataset, &folders(folder.path(), "run")).expect("a run");
    let plan = events.plan();
    assert_eq!((plan.cached_embeddings, plan.missing_embeddings()), (needed, 0));
    assert_eq!(events.computed_embeddings(), 0);
}

#[test]
fn shards_compute_each_embedding_once_in_even_shares() {
    const SHARDS: usize = 3;
    let folder = tempfile::tempdir().expect("temporary folder");
    let dataset = dataset_of(folder.path(), 100);
    let results = concurrently(SHARDS, |index| {
        let shard = Shard::new(index, SHARDS).expect("a valid shard");
        let result = precompute(folder.path(), &dataset, |training| training.shard(shard));
        result.expect("precomputation finishes")
    });
    let mut computed = 0;
    for (index, (outcome, events)) in results.iter().enumerate() {
        let plan = events.plan();
        assert!(!outcome.stopped);
        assert_eq!((plan.slices, plan.cached_embeddings), (300, 0), "shard {index}");
        assert_eq!(outcome.computed, plan.cacheable_embeddings, "shard {index}");
        let total = plan.cacheable_embeddings;
        assert_eq!(events.precomputing.last(), Some(&[total, total, 0]), "shard {index}");
        computed += outcome.computed;
    }
    assert_eq!(cached_files(folder.path()).len(), computed, "no embedding is computed twice");

    // Together the shards have every embedding that a run needs.
    let (outcome, events) =
        precompute(folder.path(), &dataset, |training| training).expect("everything is cached");
    assert_eq!(outcome, PrecomputeOutcome { computed: 0, stopped: false });
    let plan = events.plan();
    assert_eq!((plan.cacheable_embeddings, plan.cached_embeddings), (computed, computed));

    // Whole slices are assigned, each with a few of its views.
    let (slices, share) = (300.0, 1.0 / SHARDS as f64);
    let views_per_slice = computed as f64 / slices;
    let deviation = views_per_slice * (slices * share * (1.0 - share)).sqrt();
    for (index, (outcome, _)) in results.iter().enumerate() {
        let difference = outcome.computed as f64 - computed as f64 * share;
        assert!(
            difference.abs() <= 3.0 * deviation,
            "shard {index}: {} of {computed} embeddings; standard deviation {deviation:.1}",
            outcome.computed
        );
    }
}

/// The process that the next test kills.
#[test]
#[ignore = "started by a_killed_process_leaves_its_claims_to_others"]
fn process_that_aborts() {
    let Some(folder) = process_argument() else {
        return;
    };
    let (config, folder) = (config(), Path::new(&folder));
    let dataset = dataset(folder);
    let model = config.model.init(&Device::flex().autodiff()).expect("a valid configuration");
    let mut events = 0;
    let training = Training::new(config, folders(folder, "unused"));
    let outcome = training.precompute(model, &dataset, |event| {
        if let TrainingEvent::Precomputing { .. } = event {
            events += 1;
            // It has claimed slices whose embeddings are not cached yet.
            if events == 2 {
                std::process::abort();
            }
        }
        ControlFlow::Continue(())
    });
    panic!("the process did not abort: {outcome:?}");
}

#[test]
fn a_killed_process_leaves_its_claims_to_others() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dataset = dataset(folder.path());
    let output = test_process("sharing::process_that_aborts", folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .output()
        .expect("start the process");
    assert!(!output.status.success());
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(!printed.contains("did not abort"), "{printed}");
    let (outcome, events) =
        precompute(folder.path(), &dataset, |training| training).expect("it does not wait");
    let plan = events.plan();
    assert!(plan.cached_embeddings > 0, "embeddings of the killed process are found");
    assert_eq!(outcome.computed, plan.cacheable_embeddings - plan.cached_embeddings);
    assert_eq!(cached_files(folder.path()).len(), plan.cacheable_embeddings);
}

#[test]
fn stopped_precomputation_preserves_its_embeddings() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dataset = dataset(folder.path());
    let model = || config().model.init(&Device::flex().autodiff()).expect("a valid configuration");
    let stop_early = |event: TrainingEvent<'_>| match event {
        TrainingEvent::Precomputing { .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    let training = Training::new(config(), folders(folder.path(), "run"));
    let stopped = training.precompute(model(), &dataset, stop_early).expect("no error");
    assert!(stopped.stopped && stopped.computed > 0, "{stopped:?}");
    let cached = cached_files(folder.path()).len();
    assert_eq!(cached, stopped.computed);
    // A run precomputes in the same way.
    let stopped = training.run(model(), &dataset, stop_early);
    assert!(matches!(stopped, Ok(Outcome::Stopped { steps: 0 })), "{stopped:?}");
    assert!(cached_files(folder.path()).len() > cached);
    let cached = cached_files(folder.path()).len();
    let (outcome, events) =
        precompute(folder.path(), &dataset, |training| training).expect("it resumes");
    let plan = events.plan();
    assert_eq!(plan.cached_embeddings, cached);
    assert_eq!(outcome.computed, plan.cacheable_embeddings - cached);

    let mut nothing_cached = config();
    nothing_cached.cache.views = "0".parse().expect("valid views");
    let training = Training::new(nothing_cached, folders(folder.path(), "run"));
    let result = training.precompute(model(), &dataset, stop_early);
    assert!(matches!(result, Err(TrainingError::NothingToCache)), "{result:?}");
}

#[test]
fn training_continues_when_the_cache_is_full_or_cannot_be_written() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dataset = dataset(folder.path());
    let unlimited = folders(&folder.path().join("unlimited"), "run");
    let (_, expected) = run(&config(), &dataset, &unlimited).expect("the run finishes");
    let plan = expected.plan();
    let embedding_bytes = plan.cache_bytes / plan.cacheable_embeddings as u64;

    let mut limited_config = config();
    limited_config.cache.limit_gb = Some(5.5 * embedding_bytes as f64 / 1e9);
    let limited = folders(&folder.path().join("limited"), "run");
    let (_, events) = run(&limited_config, &dataset, &limited).expect("the run finishes");
    assert_eq!(events.losses(), expected.losses());
    assert!(
        events.computed_embeddings() > expected.computed_embeddings(),
        "some embeddings are computed more than once"
    );
    assert_eq!(events.cache_full, 1, "it is reported once");
    assert_eq!(cached_files(&folder.path().join("limited")).len(), 5);

    // The next run notices the limit before it computes anything.
    let next = TrainingFolders { run: limited.run.join("next"), ..limited };
    let (_, events) = run(&limited_config, &dataset, &next).expect("the run finishes");
    assert_eq!(events.losses(), expected.losses());
    assert_eq!((events.cache_full, events.precomputing.len()), (1, 0));

    // Slices cannot be claimed when the folder of claims cannot be created.
    let blocked = folders(&folder.path().join("blocked"), "run");
    let model = config().model.init(&Device::flex()).expect("a valid configuration");
    let cache = blocked.cache.join("embeddings");
    drop(model.embedding_cache(&cache, config().cache.precision, None).expect("an empty cache"));
    let [kind] = std::fs::read_dir(&cache)
        .expect("list the cache")
        .map(|entry| entry.expect("a directory entry").path())
        .collect::<Vec<_>>()
        .try_into()
        .expect("one kind of embedding");
    std::fs::write(kind.join("claims"), "").expect("write file");
    let (_, events) = run(&config(), &dataset, &blocked).expect("the run finishes");
    assert_eq!(events.losses(), expected.losses());
    assert_eq!(events.cache_full, 1, "it is reported once");
}
