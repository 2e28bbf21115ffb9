//! Work that devices and processes share.

use crate::support::{Cases, alone, argument};
use crate::training::{Told, config, dataset, folders, losses, run, run_beside};
use burn::tensor::Device;
use sam_lst::{CachedViews, EmbeddingCache, TrainingError, TrainingFolders, embed};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Stdio;

/// What trains, by name and bits.
#[track_caller]
fn assert_same_trained(ours: &TrainingFolders, theirs: &TrainingFolders) {
    let [ours, theirs] =
        [ours, theirs].map(|folders| Cases::read(&folders.run.join("ladder.safetensors")));
    assert!(ours.names().eq(theirs.names()));
    for name in ours.names().filter(|name| !name.contains("running_")) {
        assert!(ours.data(name) == theirs.data(name), "{name} differs");
    }
}

#[test]
fn the_number_of_devices_has_no_part_in_what_is_trained() {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = dataset(folder.path());
    // 18 slices: steps of three batches of two; the last of an epoch has the rest.
    let mut config = config();
    config.epochs = 2;
    config.batch_size = 2;
    config.accumulated_batches = 4;
    // Some embeddings are computed in the steps.
    config.cache.views = CachedViews::DISCRETE;
    let alone = folders(folder.path(), "alone");
    let (_, told) = run(&config, &dataset, &alone).expect("it runs");
    assert_eq!(told.steps.len(), 6);
    for others in [1, 3] {
        let folders = folders(&folder.path().join(format!("{others}")), "run");
        let devices = vec![Device::flex(); others];
        let (_, shared) = run_beside(&devices, &config, &dataset, &folders).expect("it runs");
        assert_eq!(losses(&shared), losses(&told), "{others} beside");
        assert_same_trained(&folders, &alone);
        let plan = shared.plan.expect("it was told");
        assert_eq!(plan.devices, others + 1);
        assert_eq!(
            shared.steps[5].computed_embeddings, told.steps[5].computed_embeddings,
            "each embedding once"
        );
    }

    let refused = run_beside(
        &[Device::flex(), Device::flex()],
        &config,
        &dataset,
        &folders(folder.path(), "uneven"),
    );
    let message = refused.expect_err("four batches for three").to_string();
    assert!(
        message.starts_with("3 devices cannot share the 4 batches"),
        "{message}"
    );
}

#[test]
fn a_step_is_cut_for_its_devices() {
    let released = sam_lst::TrainingConfig::released(9);
    for (devices, batch_size, accumulated_batches) in [(1, 24, 1), (2, 12, 2), (8, 3, 8)] {
        let shared = released.shared_by(devices).expect("even");
        assert_eq!(
            (shared.batch_size, shared.accumulated_batches),
            (batch_size, accumulated_batches)
        );
        assert_eq!(shared.shared_by(devices).expect("it is"), shared);
    }
    let message = released.shared_by(5).expect_err("24 by 5").to_string();
    assert!(
        message.starts_with("`batch_size` is 24, for 5 devices"),
        "{message}"
    );
}

/// How many embeddings one process computed for a run, and what it told.
fn embed_alone(folder: &Path, devices: &[Device]) -> Result<(usize, Told), TrainingError> {
    let (config, dataset) = (config(), dataset(folder));
    let model = config
        .model
        .init(&Device::flex().autodiff())
        .expect("valid");
    let mut told = Told::default();
    let computed = embed(
        model,
        devices,
        &dataset,
        &config,
        &folders(folder, "never"),
        |event| told.hear(event),
    )?;
    Ok((computed, told))
}

#[test]
fn processes_and_devices_that_share_a_folder_compute_each_embedding_once() {
    let folder = tempfile::tempdir().expect("a folder");
    dataset(folder.path()); // made once
    let found: Vec<(usize, Told)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3)
            .map(|process| {
                let devices = vec![Device::flex(); process];
                let folder = folder.path();
                scope.spawn(move || embed_alone(folder, &devices).expect("it embeds"))
            })
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|found| found.expect("no panic")).collect()
    });
    let kept = found
        .iter()
        .map(|(_, told)| told.plan.as_ref().expect("told").kept_embeddings)
        .max()
        .expect("three");
    let computed: usize = found.iter().map(|(computed, _)| computed).sum();
    assert_eq!(computed, kept, "each once");
    for (_, told) in &found {
        // Who came late may have found all.
        if let Some(&[there, all, _]) = told.embedded.last() {
            assert_eq!(there, all, "all end when all is there");
        }
    }

    let folders = folders(folder.path(), "run");
    let (_, told) = run(&config(), &dataset(folder.path()), &folders).expect("it runs");
    let plan = told.plan.expect("it was told");
    assert_eq!(
        (plan.found_embeddings, plan.missing_embeddings()),
        (kept, 0)
    );
    assert_eq!(told.steps[14].computed_embeddings, 0);
}

/// Not a test by itself: the process that the next one kills.
#[test]
#[ignore = "run by who_is_killed_leaves_its_share_to_the_others"]
fn child() {
    let Some(folder) = argument() else {
        return;
    };
    let (config, dataset) = (config(), dataset(Path::new(&folder)));
    let model = config
        .model
        .init(&Device::flex().autodiff())
        .expect("valid");
    let mut embedded = 0;
    embed(
        model,
        &[],
        &dataset,
        &config,
        &folders(Path::new(&folder), "never"),
        |event| {
            if let sam_lst::TrainingEvent::Embedding(..) = event {
                embedded += 1;
                // With slices claimed, and nothing of them kept yet.
                if embedded == 2 {
                    std::process::abort();
                }
            }
            ControlFlow::Continue(())
        },
    )
    .expect("it does not end");
}

#[test]
fn who_is_killed_leaves_its_share_to_the_others() {
    let folder = tempfile::tempdir().expect("a folder");
    dataset(folder.path());
    let died = alone("sharing::child", folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("it starts");
    assert!(!died.success());
    let (computed, told) = embed_alone(folder.path(), &[]).expect("it embeds");
    let plan = told.plan.expect("it was told");
    assert!(plan.found_embeddings > 0, "the dead one's are found");
    assert_eq!(computed, plan.kept_embeddings - plan.found_embeddings);
}

#[test]
fn embedding_that_is_asked_to_stop_stops_and_keeps_what_it_has() {
    let folder = tempfile::tempdir().expect("a folder");
    let (config, dataset) = (config(), dataset(folder.path()));
    let model = || {
        config
            .model
            .init(&Device::flex().autodiff())
            .expect("valid")
    };
    let folders = folders(folder.path(), "never");
    let stopped = embed(
        model(),
        &[],
        &dataset,
        &config,
        &folders,
        |event| match event {
            sam_lst::TrainingEvent::Embedding(..) => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        },
    );
    assert!(matches!(stopped, Err(TrainingError::Stopped { steps: 0 })));
    let (_, told) = embed_alone(folder.path(), &[]).expect("it goes on");
    assert!(told.plan.expect("it was told").found_embeddings > 0);

    let mut none = config.clone();
    none.cache.views = "0".parse().expect("views");
    let refused = embed(model(), &[], &dataset, &none, &folders, |_| {
        ControlFlow::Continue(())
    });
    assert!(matches!(refused, Err(TrainingError::NothingKept)));
}

#[test]
fn a_run_goes_on_where_the_cache_takes_no_more() {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = dataset(folder.path());
    let whole = folders(&folder.path().join("whole"), "run");
    let (_, told) = run(&config(), &dataset, &whole).expect("it runs");
    let embedding_bytes = |told: &Told| {
        let plan = told.plan.as_ref().expect("it was told");
        plan.kept_bytes / plan.kept_embeddings as u64
    };

    let mut limited = config();
    limited.cache.limit_gb = Some(5.5 * embedding_bytes(&told) as f64 / 1e9);
    let small = folders(&folder.path().join("small"), "run");
    let (_, found) = run(&limited, &dataset, &small).expect("it runs");
    assert_eq!(losses(&found), losses(&told));
    let computed = |told: &Told| told.steps[14].computed_embeddings;
    assert!(computed(&found) > computed(&told), "some more than once");
    assert_eq!(found.full, 1, "it is said once");

    // The next run knows it before it computes anything.
    let (_, found) = run(
        &limited,
        &dataset,
        &TrainingFolders {
            run: small.run.join("next"),
            ..small
        },
    )
    .expect("it runs");
    assert_eq!(losses(&found), losses(&told));
    assert_eq!((found.full, found.embedded.len()), (1, 0));

    // Nobody can claim a slice where the claims' folder cannot be.
    let blocked = folders(&folder.path().join("blocked"), "run");
    let model = config().model.init(&Device::flex()).expect("valid");
    let cache = blocked.cache.join("embeddings");
    drop(model.embedding_cache(&cache, config().cache.precision, None));
    let [part] = std::fs::read_dir(&cache)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .collect::<Vec<_>>()
        .try_into()
        .expect("one");
    std::fs::write(part.join("claims"), "").expect("room");
    let (_, found) = run(&config(), &dataset, &blocked).expect("it runs");
    assert_eq!(losses(&found), losses(&told));
    assert_eq!(found.full, 1, "it is said once");
}

/// Whose files lie in a cache that another process writes is found without opening it anew.
#[test]
fn a_cache_follows_what_others_keep() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config();
    let model = config.model.init(&Device::flex()).expect("valid");
    let open = || -> EmbeddingCache {
        model
            .embedding_cache(folder.path(), config.cache.precision, None)
            .expect("a folder")
    };
    let (ours, theirs) = (open(), open());
    let values = vec![0.5; ours.shape().iter().product()];
    let key = |number: u8| sam_lst::EmbeddingKey::new(&[&[number]]);
    for number in 0..3 {
        theirs.insert(key(number), &values).expect("room");
        ours.insert(key(100 + number), &values).expect("room");
        assert!(!ours.contains(&key(number)));
        for _ in 0..2 {
            ours.refresh().expect("readable");
            assert_eq!(
                ours.get(&key(number)).expect("readable").as_ref(),
                Some(&values)
            );
        }
        assert_eq!(ours.len(), 2 * usize::from(number) + 2);
        assert_eq!(ours.bytes(), ours.len() as u64 * ours.embedding_bytes());
    }
}
