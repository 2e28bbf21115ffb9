//! The 44 views and how often they are drawn.

use crate::support::ndarray;
use datasets::{View, epoch_order};
use ndarray::Array2;
use std::collections::{BTreeSet, HashMap};

#[test]
fn there_are_44_and_each_has_its_name_and_its_text() {
    let all: Vec<View> = View::all().collect();
    assert_eq!(all.len(), View::COUNT);
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 44);
    assert_eq!(
        all.iter()
            .map(View::to_string)
            .collect::<BTreeSet<_>>()
            .len(),
        44
    );
    let text = |view: &View| toml::to_string(&HashMap::from([("view", view)])).expect("plain data");
    for view in &all {
        let again: HashMap<String, View> = toml::from_str(&text(view)).expect("just written");
        assert_eq!(again["view"], *view);
    }
    assert!(toml::from_str::<HashMap<String, View>>("view = { rotation = 20 }").is_err());
}

#[test]
fn draws_have_the_published_frequencies() {
    const DRAWS: u64 = 100_000;
    let mut counts: HashMap<View, u64> = HashMap::new();
    for index in 0..DRAWS {
        *counts
            .entry(View::draw(7, index % 50, index / 50))
            .or_default() += 1;
    }
    for view in View::all() {
        let probability = match view {
            View::Identity => 0.25 + 1.0 / 160.0,
            View::Reflection(_) => 1.0 / 8.0,
            View::Rotation(_) => 1.0 / 160.0,
        };
        let expected = DRAWS as f64 * probability;
        let deviation = (expected * (1.0 - probability)).sqrt();
        let count = counts.remove(&view).unwrap_or(0) as f64;
        assert!(
            (count - expected).abs() < 4.5 * deviation,
            "{view}: {count} of {expected}"
        );
    }
    assert!(counts.is_empty(), "no others");
}

#[test]
fn a_draw_depends_on_seed_epoch_and_index_alone() {
    let draws = |seed, epoch| {
        (0..200)
            .map(move |index| View::draw(seed, epoch, index))
            .collect::<Vec<_>>()
    };
    assert_eq!(draws(1, 2), draws(1, 2));
    assert_ne!(draws(1, 2), draws(1, 3));
    assert_ne!(draws(1, 2), draws(2, 2));
}

#[test]
fn image_and_label_move_together() {
    let label = Array2::from_shape_fn((41, 37), |(row, column)| {
        (1 + (row * 37 + column) % 251) as u8
    });
    let image = label.mapv(f32::from);
    let mut seen = BTreeSet::new();
    for view in View::all() {
        let (moved, labels) = (view.apply(image.view()), view.apply(label.view()));
        assert_eq!(moved, labels.mapv(f32::from), "{view}");
        seen.insert(labels.iter().copied().collect::<Vec<_>>());
    }
    assert_eq!(seen.len(), 44, "no two views show the same");
}

#[test]
fn an_epoch_goes_through_every_example_once_in_its_own_order() {
    let order = epoch_order(3, 1, 1000);
    assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), 1000);
    assert_eq!(order, epoch_order(3, 1, 1000));
    assert_ne!(order, epoch_order(3, 2, 1000));
    assert_ne!(order, epoch_order(4, 1, 1000));
    assert_eq!(epoch_order(3, 1, 0), Vec::<usize>::new());
}
