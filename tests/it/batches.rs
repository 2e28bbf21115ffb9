//! The batches of training.

use crate::support::config;
use burn::tensor::{Device, Int, Tensor};
use sam_lst::rooms::datasets::{SliceStore, Split, View};
use sam_lst::{Batch, Batches, Dataset, DatasetDescription, Fusion, PhantomConfig, SliceGeometry};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;

fn phantoms(folder: &Path) -> Dataset {
    let config = PhantomConfig {
        shape: [6, 40, 44],
        spacing_mm: [30.0, 9.0, 8.5],
        ..PhantomConfig::small(8)
    };
    config.write_dataset(folder, 3, 0, |_| {}).expect("room");
    Dataset::open(folder, DatasetDescription::synapse()).expect("phantoms")
}

fn with_batches(test: impl FnOnce(Batches<'_>, &SliceStore<'_>, &Path)) {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = phantoms(folder.path());
    let cases = dataset.cases(Split::Train).expect("three");
    let kept = folder.path().join("kept");
    let store = SliceStore::open(&dataset, &cases, &kept, |_| {}).expect("room");
    test(
        Batches::new(&store, &config(), SliceGeometry::released(), 4, 5),
        &store,
        &kept,
    );
}

#[test]
fn an_epoch_has_every_slice_once_and_another_epoch_another_order_and_other_views() {
    with_batches(|batches, store, _| {
        assert_eq!((store.len(), batches.steps()), (18, 5));
        let epoch = |epoch| batches.epoch(epoch);
        let slices: BTreeSet<usize> = epoch(1).into_iter().map(|(slice, _)| slice).collect();
        assert_eq!(slices.len(), 18);
        for step in 0..5 {
            let slices: Vec<usize> = epoch(1)
                .iter()
                .skip(4 * step)
                .take(4)
                .map(|&(slice, _)| slice)
                .collect();
            let batch = batches.batch(1, step).expect("a batch");
            assert_eq!(batch.slices, slices, "the last is smaller");
        }
        assert_eq!(epoch(1), epoch(1));
        assert_ne!(epoch(1), epoch(2));
        let views: BTreeSet<View> = (0..4).flat_map(epoch).map(|(_, view)| view).collect();
        assert!(views.len() > 8);
        let plain = batches.without_augmentation();
        assert!(
            plain
                .epoch(1)
                .iter()
                .all(|(_, view)| *view == View::Identity)
        );
        let slices = |epoch: Vec<(usize, View)>| -> Vec<usize> {
            epoch.into_iter().map(|(slice, _)| slice).collect()
        };
        assert_eq!(slices(plain.epoch(3)), slices(epoch(3)));
    });
}

#[test]
fn a_batch_has_the_networks_sizes_and_known_classes() {
    with_batches(|batches, _, _| {
        let device = Device::flex();
        let batch = batches.batch(1, 0).expect("readable");
        let images: Tensor<4> = batch.images(&device);
        let labels: Tensor<3, Int> = batch.labels(&device);
        assert_eq!(
            (images.dims(), labels.dims()),
            ([4, 3, 128, 128], [4, 32, 32])
        );
        let classes: BTreeSet<i64> = (0..5)
            .flat_map(|step| {
                let batch = batches.batch(1, step).expect("readable");
                batch
                    .labels(&device)
                    .into_data()
                    .iter::<i64>()
                    .collect::<Vec<_>>()
            })
            .collect();
        assert!(
            classes.len() > 4 && classes.iter().all(|class| (0..9).contains(class)),
            "{classes:?}"
        );
        // What it takes to train on it.
        let model = config()
            .with_fusion(Fusion::SideOnly)
            .init(&device)
            .expect("valid");
        assert_eq!(
            model.ladder.forward(images, None).logits.dims(),
            [4, 9, 32, 32]
        );
    });
}

#[test]
fn prefetched_batches_are_those_made_one_by_one() {
    with_batches(|batches, _, _| {
        let expected: Vec<Batch> = (0..5)
            .map(|step| batches.batch(2, step).expect("readable"))
            .collect();
        for workers in [1, 2, 5] {
            for first in [0, 3, 5] {
                let mut found = Vec::new();
                let waiting = batches.prefetched(2, first, workers, |batch| {
                    found.push(batch);
                    ControlFlow::Continue(())
                });
                assert_eq!(
                    found,
                    expected[first..],
                    "{workers} workers from step {first}"
                );
                let waiting = waiting.expect("readable");
                assert!(waiting.batches <= found.len().saturating_sub(1));
            }
        }
        let mut count = 0;
        let broken_off = batches.prefetched(2, 0, 3, |_| {
            count += 1;
            if count == 2 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        assert!(broken_off.is_ok());
        assert_eq!(count, 2);
    });
}

#[test]
fn a_slice_that_cannot_be_read_ends_the_epoch_and_says_which() {
    with_batches(|batches, store, kept| {
        let lost = batches.epoch(1)[12].0;
        let case = store.origin(lost).case;
        for entry in std::fs::read_dir(kept).expect("a folder") {
            let file = entry.expect("a file").path();
            if file.display().to_string().contains(&format!("{case}-")) {
                std::fs::remove_file(file).expect("it was there");
            }
        }
        let mut consumed = 0;
        let result = batches.prefetched(1, 0, 2, |_| {
            consumed += 1;
            ControlFlow::Continue(())
        });
        let message = result.expect_err("its slices are gone").to_string();
        assert!(message.contains(&format!("{case}-")), "{message}");
        assert!(consumed <= 3);
    });
}
