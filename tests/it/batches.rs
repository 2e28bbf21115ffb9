//! Training batches.

use crate::support::config;
use burn::tensor::{Device, Int, Tensor};
use sam_lst::datasets::{Augmentation, SliceStore, View};
use sam_lst::model::{EncoderTuning, SamTuningConfig};
use sam_lst::training::{Batch, Batches};
use sam_lst::{
    CachedViews, Dataset, DatasetDescription, Fusion, PhantomConfig, SliceGeometry, Split,
};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;

fn phantoms(folder: &Path) -> Dataset {
    let config = PhantomConfig {
        shape: [6, 40, 44],
        spacing_mm: [30.0, 9.0, 8.5],
        ..PhantomConfig::small(8)
    };
    config.write_dataset(folder, 3, 0, |_| {}).expect("write phantoms");
    Dataset::open(folder, DatasetDescription::synapse()).expect("open phantoms")
}

/// Calls `test` with batches of 18 slices, their store, and the folder of decoded slices.
fn with_batches(test: impl FnOnce(Batches<'_>, &SliceStore<'_>, &Path)) {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dataset = phantoms(folder.path());
    let cases = dataset.cases(Split::Train).expect("three cases");
    let cache = folder.path().join("cache");
    let store = SliceStore::open(&dataset, &cases, &cache, |_| {}).expect("write the cache");
    test(Batches::new(&store, &config(), SliceGeometry::released(), 4, 5), &store, &cache);
}

#[test]
fn each_epoch_has_every_slice_once_in_its_own_order_and_views() {
    with_batches(|batches, store, _| {
        assert_eq!((store.len(), batches.steps()), (18, 5));
        let epoch = |epoch| batches.epoch(epoch);
        let slices: BTreeSet<usize> = epoch(1).into_iter().map(|(slice, _)| slice).collect();
        assert_eq!(slices.len(), 18);
        for step in 0..5 {
            let slices: Vec<usize> =
                epoch(1).iter().skip(4 * step).take(4).map(|&(slice, _)| slice).collect();
            let batch = batches.batch(1, step).expect("readable slices");
            assert_eq!(batch.slices, slices, "the last batch is smaller");
        }
        assert_eq!(epoch(1), epoch(1));
        assert_ne!(epoch(1), epoch(2));
        let views: BTreeSet<View> = (0..4).flat_map(epoch).map(|(_, view)| view).collect();
        assert!(views.len() > 8);
        let unaugmented = batches.with_augmentation(Augmentation::None);
        assert!(unaugmented.epoch(1).iter().all(|(_, view)| *view == View::Identity));
        let slices = |epoch: Vec<(usize, View)>| -> Vec<usize> {
            epoch.into_iter().map(|(slice, _)| slice).collect()
        };
        assert_eq!(slices(unaugmented.epoch(3)), slices(epoch(3)));
    });
}

#[test]
fn a_batch_has_the_networks_sizes_and_valid_classes() {
    with_batches(|batches, _, _| {
        let device = Device::flex();
        let batch = batches.batch(1, 0).expect("readable slices");
        let images: Tensor<4> = batch.images(&device);
        let labels: Tensor<3, Int> = batch.labels(&device);
        assert_eq!((images.dims(), labels.dims()), ([4, 3, 128, 128], [4, 32, 32]));
        let classes: BTreeSet<i64> = (0..5)
            .flat_map(|step| {
                let batch = batches.batch(1, step).expect("readable slices");
                batch.labels(&device).into_data().iter::<i64>().collect::<Vec<_>>()
            })
            .collect();
        assert!(
            classes.len() > 4 && classes.iter().all(|class| (0..9).contains(class)),
            "{classes:?}"
        );
        // The ladder accepts it.
        let model =
            config().with_fusion(Fusion::SideOnly).init(&device).expect("a valid configuration");
        assert_eq!(model.network.forward(images, None).logits.dims(), [4, 9, 32, 32]);
    });
}

#[test]
fn prefetched_batches_equal_those_prepared_one_by_one() {
    with_batches(|batches, _, _| {
        let expected: Vec<Batch> =
            (0..5).map(|step| batches.batch(2, step).expect("readable slices")).collect();
        for workers in [1, 2, 5] {
            for first in [0, 3, 5] {
                let mut found = Vec::new();
                let wait_time = batches.prefetched(2, first, workers, |batch| {
                    found.push(batch);
                    ControlFlow::Continue(())
                });
                assert_eq!(found, expected[first..], "{workers} workers from step {first}");
                let wait_time = wait_time.expect("readable slices");
                assert!(wait_time.batches <= found.len().saturating_sub(1));
            }
        }
        let mut count = 0;
        let result = batches.prefetched(2, 0, 3, |_| {
            count += 1;
            if count == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(result.is_ok());
        assert_eq!(count, 2);
    });
}

#[test]
fn an_unreadable_slice_ends_the_epoch_and_is_named() {
    with_batches(|batches, store, cache| {
        let slice = batches.epoch(1)[12].0;
        let case = store.origin(slice).case;
        for entry in std::fs::read_dir(cache).expect("list the cache") {
            let file = entry.expect("a directory entry").path();
            if file.display().to_string().contains(&format!("{case}-")) {
                std::fs::remove_file(file).expect("remove file");
            }
        }
        let mut consumed = 0;
        let result = batches.prefetched(1, 0, 2, |_| {
            consumed += 1;
            ControlFlow::Continue(())
        });
        let message = result.expect_err("the slices are missing").to_string();
        assert!(message.contains(&format!("{case}-")), "{message}");
        assert!(consumed <= 3);
    });
}

/// The foundation of LoRA is the patch embedding, whose tokens hold their positions: it must see the
/// moved slice itself.
#[test]
fn a_foundation_without_blocks_sees_the_slice_in_its_pose() {
    with_batches(|_, store, _| {
        let over = |tuning| {
            let model = SamTuningConfig::from_ladder(&config(), tuning);
            let batches = Batches::new(store, &model, SliceGeometry::direct(), 4, 0);
            let batches = batches.with_augmentation(Augmentation::Upright);
            let batches = (0..5).map(|step| batches.batch(0, step).expect("readable slices"));
            batches.collect::<Vec<_>>()
        };
        let device = Device::flex();
        let mut moved = 0;
        for (lora, decoder) in
            over(EncoderTuning::samed()).iter().zip(&over(EncoderTuning::Decoder))
        {
            let images = lora.images(&device).into_data();
            lora.encoded_images(&device).into_data().assert_eq(&images, true);
            decoder.images(&device).into_data().assert_eq(&images, true);
            assert_ne!(decoder.encoded_images(&device).into_data(), images);
            for (lora, decoder) in lora.views.iter().zip(&decoder.views) {
                assert_eq!((lora.pose(), decoder.pose()), (None, lora.view().pose()));
                assert_eq!(lora.key() == decoder.key(), lora.view() == View::Identity);
                moved += usize::from(decoder.pose().is_some());
                // Poses are never cached.
                let is_identity = lora.view() == View::Identity;
                assert_eq!(CachedViews::ALL.contains(lora.view()), is_identity);
            }
        }
        assert!(moved > 9, "{moved} of 18");
    });
}
