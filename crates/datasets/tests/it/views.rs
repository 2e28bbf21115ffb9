//! The 44 views and their frequencies.

use crate::support::ndarray;
use ndarray::Array2;
use sam_lst_datasets::{Augmentation, View, epoch_order};
use std::collections::{BTreeSet, HashMap};

#[test]
fn all_44_views_have_unique_names_and_survive_serialisation() {
    let all: Vec<View> = View::all().collect();
    assert_eq!(all.len(), View::COUNT);
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 44);
    assert_eq!(all.iter().map(View::to_string).collect::<BTreeSet<_>>().len(), 44);
    let text = |view: &View| toml::to_string(&HashMap::from([("view", view)])).expect("plain data");
    for view in &all {
        let again: HashMap<String, View> = toml::from_str(&text(view)).expect("just written");
        assert_eq!(again["view"], *view);
    }
    assert!(toml::from_str::<HashMap<String, View>>("view = { rotation = 20 }").is_err());
}

#[test]
fn sampled_views_have_the_published_frequencies() {
    const SAMPLES: u64 = 100_000;
    let mut counts: HashMap<View, u64> = HashMap::new();
    for index in 0..SAMPLES {
        *counts.entry(Augmentation::Released.draw(7, index % 50, index / 50)).or_default() += 1;
    }
    for view in View::all() {
        let probability = match view {
            View::Identity => 0.25 + 1.0 / 160.0,
            View::Reflection(_) => 1.0 / 8.0,
            View::Rotation(_) => 1.0 / 160.0,
            View::Pose(_) => unreachable!("not among the published views"),
        };
        let expected = SAMPLES as f64 * probability;
        let deviation = (expected * (1.0 - probability)).sqrt();
        let count = counts.remove(&view).unwrap_or(0) as f64;
        assert!((count - expected).abs() < 4.5 * deviation, "{view}: {count} of {expected}");
    }
    assert!(counts.is_empty(), "unexpected views");
}

#[test]
fn sampled_views_depend_only_on_seed_epoch_and_index() {
    let views = |seed, epoch| {
        (0..200)
            .map(move |index| Augmentation::Released.draw(seed, epoch, index))
            .collect::<Vec<_>>()
    };
    assert_eq!(views(1, 2), views(1, 2));
    assert_ne!(views(1, 2), views(1, 3));
    assert_ne!(views(1, 2), views(2, 2));
}

#[test]
fn views_transform_image_and_label_alike() {
    let label =
        Array2::from_shape_fn((41, 37), |(row, column)| (1 + (row * 37 + column) % 251) as u8);
    let image = label.mapv(f32::from);
    let mut distinct = BTreeSet::new();
    for view in View::all() {
        let (image, labels) = (view.apply(image.view()), view.apply(label.view()));
        assert_eq!(image, labels.mapv(f32::from), "{view}");
        distinct.insert(labels.iter().copied().collect::<Vec<_>>());
    }
    assert_eq!(distinct.len(), 44, "all views are distinct");
}

#[test]
fn each_epoch_visits_every_example_once_in_its_own_order() {
    let order = epoch_order(3, 1, 1000);
    assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), 1000);
    assert_eq!(order, epoch_order(3, 1, 1000));
    assert_ne!(order, epoch_order(3, 2, 1000));
    assert_ne!(order, epoch_order(4, 1, 1000));
    assert_eq!(epoch_order(3, 1, 0), Vec::<usize>::new());
}
