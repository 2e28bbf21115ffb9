//! The metrics against medpy.

use crate::support::Cases;
use sam_lst::rooms::metrics::{
    Direction, LabelVolume, Presence, VolumeError, compare, compare_all,
};

const CLASS: u8 = 2;
const SPACING_MM: [f64; 3] = [3.0, 0.8, 0.9];

#[test]
fn everything_is_medpys() {
    let cases = Cases::open("metrics");
    let names = cases
        .names()
        .filter_map(|name| name.strip_suffix(".prediction"));
    let mut compared = 0;
    for name in names {
        let [prediction, label] =
            ["prediction", "label"].map(|kind| cases.data(&format!("{name}.{kind}")));
        let shape = label.shape().dims::<3>();
        let [prediction, label] =
            [prediction, label].map(|data| data.iter::<u8>().collect::<Vec<_>>());
        for (unit, spacing) in [("voxels", [1.0; 3]), ("mm", SPACING_MM)] {
            let volume = |labels| LabelVolume::in_mm(labels, shape, spacing).expect("fits");
            let comparison =
                compare(&volume(&prediction), &volume(&label), CLASS).expect("one grid");
            assert_eq!(comparison.presence(), Presence::Both);
            let distances = comparison
                .surface_distances
                .as_ref()
                .expect("both have a surface");
            let ours = [
                comparison.dsc().expect("present"),
                distances.pooled_percentile(95.0),
                distances.hausdorff(),
                distances.mean(Direction::ToLabel),
                distances.mean(Direction::ToPrediction),
            ];
            let theirs = cases.data(&format!("{name}.{unit}"));
            for (i, (ours, theirs)) in ours.into_iter().zip(theirs.iter::<f64>()).enumerate() {
                assert!(
                    (ours - theirs).abs() <= 1e-6,
                    "{name}, {unit}, number {i}: {ours}, {theirs}"
                );
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 8 * 2 * 5);
}

#[test]
fn absent_classes_are_a_value_of_their_own() {
    let volume = |labels| LabelVolume::in_voxels(labels, [1, 1, 3]).expect("fits");
    let (some, none) = ([0, 2, 2], [0, 0, 1]);
    for (prediction, label, presence, dsc, volume_error) in [
        (&some, &some, Presence::Both, Some(1.0), Some(0.0)),
        (&none, &some, Presence::LabelOnly, Some(0.0), Some(-1.0)),
        (&some, &none, Presence::PredictionOnly, Some(0.0), None),
        (&none, &none, Presence::Neither, None, None),
    ] {
        let comparison = compare(&volume(prediction), &volume(label), CLASS).expect("one grid");
        assert_eq!(comparison.presence(), presence);
        assert_eq!(comparison.dsc(), dsc);
        assert_eq!(comparison.volume_error(), volume_error);
        assert_eq!(
            comparison.surface_distances.is_some(),
            presence == Presence::Both
        );
    }
}

#[test]
fn surface_dice_counts_both_surfaces_within_the_tolerance() {
    // Two rods of three voxels, one voxel of 2 mm apart along the last axis: the ends are 2 mm off, the rest is equal.
    let prediction = [0, 2, 2, 2, 0, 0];
    let label = [0, 0, 2, 2, 2, 0];
    let volume = |labels| LabelVolume::in_mm(labels, [1, 1, 6], [1.0, 1.0, 2.0]).expect("fits");
    let comparison = compare(&volume(&prediction), &volume(&label), CLASS).expect("one grid");
    let distances = comparison.surface_distances.expect("both have a surface");
    assert_eq!(distances.directed(Direction::ToLabel), [0.0, 0.0, 2.0]);
    assert_eq!(distances.surface_dice(1.9), 4.0 / 6.0);
    assert_eq!(distances.surface_dice(2.0), 1.0);
    assert_eq!(distances.larger_percentile(50.0), 0.0);
    assert_eq!(distances.hausdorff(), 2.0);
}

#[test]
fn all_classes_at_once_equal_each_alone() {
    let labels: Vec<u8> = (0..5 * 6 * 7).map(|i| (i * i / 3 % 4) as u8).collect();
    let shifted: Vec<u8> = labels.iter().skip(3).chain(&labels[..3]).copied().collect();
    let volume = |labels| LabelVolume::in_mm(labels, [5, 6, 7], SPACING_MM).expect("fits");
    let (prediction, label) = (volume(&shifted), volume(&labels));
    let all = compare_all(&prediction, &label, &[3, 1, 9]).expect("one grid");
    for (class, comparison) in [3, 1, 9].into_iter().zip(all) {
        assert_eq!(compare(&prediction, &label, class), Ok(comparison));
    }
}

#[test]
fn volumes_that_cannot_be() {
    let message = |error: VolumeError| error.to_string();
    assert_eq!(
        message(LabelVolume::in_voxels(&[0; 5], [1, 2, 3]).unwrap_err()),
        "a label volume of shape [1, 2, 3] needs 6 labels, found 5"
    );
    let huge = LabelVolume::in_voxels(&[0; 5], [usize::MAX, 2, 3]).unwrap_err();
    assert!(message(huge).contains("needs more than can be counted labels"));
    for spacing in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let error = LabelVolume::in_mm(&[0; 6], [1, 2, 3], [1.0, spacing, 1.0]).unwrap_err();
        assert!(message(error).starts_with("voxel spacing must be positive and finite"));
    }
    let a = LabelVolume::in_voxels(&[0; 6], [1, 2, 3]).expect("fits");
    let b = LabelVolume::in_voxels(&[0; 6], [3, 2, 1]).expect("fits");
    let c = LabelVolume::in_mm(&[0; 6], [1, 2, 3], [1.0, 1.0, 2.0]).expect("fits");
    assert!(matches!(
        compare(&a, &b, 1),
        Err(VolumeError::Shapes { .. })
    ));
    assert!(matches!(
        compare(&a, &c, 1),
        Err(VolumeError::Spacings { .. })
    ));
    let empty = LabelVolume::in_voxels(&[], [0, 2, 3]).expect("fits");
    assert_eq!(
        compare(&empty, &empty, 1).map(|c| c.presence()),
        Ok(Presence::Neither)
    );
}
