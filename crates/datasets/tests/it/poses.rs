//! Poses of images, labels and features, compared with torch's `grid_sample`.

use crate::support::{Cases, ndarray};
use ndarray::Array2;
use sam_lst_datasets::{Augmentation, Pose, PoseValues, View};
use std::collections::HashSet;

/// The poses of the fixture, by their index.
fn poses(cases: &Cases) -> Vec<Pose> {
    let pose = |index: usize| {
        let (values, _) = cases.numbers(&format!("pose.{index}"));
        let [degrees, scale_percent, down, right] = values[..] else { panic!("four values") };
        let shift_percent = [down as i8, right as i8];
        let values = PoseValues {
            degrees: degrees as i8,
            scale_percent: scale_percent as u8,
            shift_percent,
        };
        Pose::try_from(values).expect("a valid pose")
    };
    (0..7).map(pose).collect()
}

fn largest_difference<'a>(
    ours: impl IntoIterator<Item = &'a f32>,
    theirs: impl IntoIterator<Item = f64>,
) -> f64 {
    let differences = ours.into_iter().zip(theirs).map(|(&ours, theirs)| f64::from(ours) - theirs);
    differences.map(f64::abs).fold(0.0, f64::max)
}

#[test]
fn moved_images_and_labels_equal_torch() {
    let cases = Cases::open("pose");
    for (index, pose) in poses(&cases).into_iter().enumerate() {
        for name in ["square", "wide"].map(|name| format!("{name}.{index}")) {
            let image = cases.plane(&format!("{name}.image.in"), |number| number as f32);
            let ours = View::Pose(pose).apply_to_image(image.view());
            let theirs = cases.plane(&format!("{name}.image"), |number| number);
            assert!(largest_difference(&ours, theirs) < 1e-6, "{name}: {pose}");
            let labels = cases.plane(&format!("{name}.labels.in"), |number| number as u8);
            let ours = View::Pose(pose).apply(labels.view());
            assert_eq!(ours, cases.plane(&format!("{name}.labels"), |number| number as u8));
        }
    }
}

#[test]
fn moved_features_equal_torch_packed_or_not() {
    let cases = Cases::open("pose");
    for (index, pose) in poses(&cases).into_iter().enumerate() {
        for packed in [1, 2, 4] {
            let name = format!("features.{index}.{packed}");
            let (features, shape) = cases.numbers(&format!("{name}.in"));
            let mut features: Vec<f32> = features.into_iter().map(|number| number as f32).collect();
            pose.move_features(&mut features, shape[1], packed);
            let (theirs, _) = cases.numbers(&name);
            assert!(largest_difference(&features, theirs) < 1e-5, "{name}: {pose}");
        }
    }
}

#[test]
fn poses_out_of_range_are_refused() {
    let valid = PoseValues { degrees: 15, scale_percent: 80, shift_percent: [-10, 10] };
    let pose = Pose::try_from(valid).expect("at the limits");
    assert_eq!((PoseValues::from(pose), pose.to_string().as_str()), (valid, "pose+15x80-10+10"));
    for invalid in [
        PoseValues { degrees: -16, ..valid },
        PoseValues { scale_percent: 79, ..valid },
        PoseValues { scale_percent: 126, ..valid },
        PoseValues { shift_percent: [0, 11], ..valid },
    ] {
        let error = Pose::try_from(invalid).expect_err("out of range").to_string();
        assert!(error.contains("expected at most 15 degrees"), "{error}");
    }
}

#[test]
fn upright_views_are_the_identity_or_poses_of_all_values() {
    let drawn: Vec<View> =
        (0..20_000).map(|index| Augmentation::Upright.draw(3, index % 7, index / 7)).collect();
    let poses: Vec<PoseValues> = drawn
        .iter()
        .filter_map(|view| match view {
            View::Pose(pose) => Some((*pose).into()),
            View::Identity => None,
            other => panic!("{other} does not keep a slice upright"),
        })
        .collect();
    let share = poses.len() as f64 / drawn.len() as f64;
    assert!((share - 0.8).abs() < 0.02, "{share}");
    let distinct = |value: fn(&PoseValues) -> i16| poses.iter().map(value).collect::<HashSet<_>>();
    assert_eq!(distinct(|pose| pose.degrees.into()).len(), 31);
    assert_eq!(distinct(|pose| pose.shift_percent[0].into()).len(), 21);
    assert_eq!(distinct(|pose| pose.shift_percent[1].into()).len(), 21);
    assert_eq!(distinct(|pose| pose.scale_percent.into()).len(), 46);
    let smaller = poses.iter().filter(|pose| pose.scale_percent < 100).count() as f64;
    assert!((smaller / poses.len() as f64 - 0.5).abs() < 0.03, "as often smaller as larger");
    assert!(drawn.iter().all(|view| view.encoded() == View::Identity));
}

#[test]
fn intensities_change_only_upright_and_stay_between_0_and_1() {
    let image = Array2::from_shape_fn((20, 20), |(row, column)| (row * 20 + column) as f32 / 399.0);
    let image = image.insert_axis(ndarray::Axis(0));
    assert!(Augmentation::None.draw_intensity(0, 0, 0).is_none());
    assert!(Augmentation::Released.draw_intensity(0, 0, 0).is_none());
    let changed = |index| {
        let mut image = image.clone();
        Augmentation::Upright.draw_intensity(0, 0, index).expect("a change").apply(&mut image);
        image
    };
    assert_eq!(changed(1), changed(1));
    assert_ne!(changed(1), changed(2));
    let mut differences = Vec::new();
    for index in 0..200 {
        let changed = changed(index);
        assert!(changed.iter().all(|pixel| (0.0..=1.0).contains(pixel)));
        differences.push((&changed - &image).mean().expect("pixels"));
    }
    let mean = differences.iter().sum::<f32>() / 200.0;
    assert!(mean.abs() < 0.03, "neither brighter nor darker on average: {mean}");
    assert!(differences.iter().any(|difference| difference.abs() > 0.03));
}

#[test]
fn what_is_moved_back_lies_where_it_was() {
    let size = [40, 56];
    let image = Array2::from_shape_fn(size, |(row, column)| {
        (row as f32 / 9.0).sin() + (column as f32 / 11.0).cos()
    });
    for pose in Pose::at_inference(Pose::MAX_AT_INFERENCE) {
        let moved = pose.image(image.view());
        let distance = |other: &[f32]| {
            let inner = image.indexed_iter().zip(other).filter(|(((row, column), _), _)| {
                (10..30).contains(row) && (12..44).contains(column)
            });
            let differences = inner.map(|((_, ours), theirs)| (ours - theirs).abs());
            differences.fold(0.0, f32::max)
        };
        let mut back = moved.into_raw_vec_and_offset().0;
        assert!(distance(&back) > 0.1, "{pose} moves");
        pose.move_back(&mut back, size);
        assert!(distance(&back) < 0.02, "{pose}: {}", distance(&back));
        // Two channels are moved alike.
        let mut ones = vec![1.0; 2 * 40 * 56];
        pose.move_back(&mut ones, size);
        let (first, second) = ones.split_at(40 * 56);
        assert_eq!(first, second);
        assert!(first.iter().all(|value| (0.0..=1.0 + 1e-6).contains(value)));
        assert!(first[20 * 56 + 28] > 0.999, "the centre stays in the picture");
    }
}
