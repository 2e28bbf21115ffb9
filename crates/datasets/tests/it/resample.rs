//! Other sizes and angles, against scipy and torch.

use crate::support::{Cases, ndarray};
use datasets::{Grid, Interpolation, Pixel, Reflection, View, resample, rotate_nearest};
use ndarray::Array2;
use proptest::prelude::*;
use std::fmt::Debug;

const ORDERS: [(usize, Interpolation); 3] = [
    (0, Interpolation::Nearest),
    (1, Interpolation::Linear),
    (3, Interpolation::Cubic),
];

/// Largest difference over all of scipy's zooms of one number type. Where a cubic lies halfway between two integers, its
/// last bit decides which it becomes, and may decide otherwise here.
fn zooms<T: Pixel + Debug>(kind: &str, convert: fn(f64) -> T) -> f64 {
    let cases = Cases::open("resample");
    let mut largest = 0.0_f64;
    let mut compared = 0;
    for i in 0..10 {
        let pixels = cases.plane(&format!("zoom.{i}.{kind}.in"), convert);
        for (order, interpolation) in ORDERS {
            let name = format!("zoom.{i}.{kind}.{order}");
            if !cases.names().contains(&name) {
                continue;
            }
            let theirs = cases.plane(&name, |number| number);
            let exact = format!("{name}.exact");
            let exact = cases
                .names()
                .contains(&exact)
                .then(|| cases.plane(&exact, |number| number));
            let size = theirs.dim();
            let ours = resample(
                pixels.view(),
                [size.0, size.1],
                interpolation,
                Grid::CornerAligned,
            );
            for ((place, ours), theirs) in ours.indexed_iter().zip(&theirs) {
                let halfway = exact
                    .as_ref()
                    .is_some_and(|exact| (exact[place].rem_euclid(1.0) - 0.5).abs() < 1e-9);
                let difference = (ours.to_f64() - theirs).abs();
                largest = largest.max(if halfway {
                    difference - 1.0
                } else {
                    difference
                });
            }
            compared += 1;
        }
    }
    assert!(compared >= 10, "{compared} fixtures");
    largest
}

#[test]
fn floats_are_resampled_as_scipy_zooms_them() {
    assert!(zooms("f32", |number| number as f32) <= 1e-6);
    assert!(zooms("f64", |number| number) <= 1e-12);
}

#[test]
fn integers_are_resampled_exactly_as_scipy_zooms_them() {
    assert_eq!(zooms("label", |number| number as u8), 0.0);
    assert_eq!(zooms("u8", |number| number as u8), 0.0);
    assert_eq!(zooms("i16", |number| number as i16), 0.0);
}

#[test]
fn half_pixel_grids_are_torchs() {
    let cases = Cases::open("resample");
    let mut compared = 0;
    for name in cases.names() {
        let Some(rest) = name.strip_prefix("torch.") else {
            continue;
        };
        let [i, kind, mode] = rest
            .split('.')
            .collect::<Vec<_>>()
            .try_into()
            .expect("three parts");
        let interpolation = match mode {
            "nearest-exact" => Interpolation::Nearest,
            "bilinear" => Interpolation::Linear,
            "bicubic" => Interpolation::Cubic,
            other => panic!("{other}"),
        };
        let pixels = cases.plane(&format!("zoom.{i}.{kind}.in"), |number| number as f32);
        let theirs = cases.plane(&name, |number| number as f32);
        let size = theirs.dim();
        let ours = resample(
            pixels.view(),
            [size.0, size.1],
            interpolation,
            Grid::HalfPixel,
        );
        let at_most = if interpolation == Interpolation::Nearest {
            0.0
        } else {
            1e-5
        };
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert!((ours - theirs).abs() <= at_most, "{name}: {ours}, {theirs}");
        }
        compared += 1;
    }
    assert_eq!(compared, 40);
}

#[test]
fn rotations_are_scipys_to_the_pixel() {
    let cases = Cases::open("resample");
    for i in 0..4 {
        let labels = cases.plane(&format!("rotate.{i}.labels.in"), |number| number as u8);
        for angle in (-20..20).chain([33, 90, 180, 270]) {
            let theirs = cases.plane(&format!("rotate.{i}.labels.{angle}"), |number| number as u8);
            assert_eq!(
                rotate_nearest(labels.view(), f64::from(angle)),
                theirs,
                "{i}, {angle} degrees"
            );
        }
        let image = cases.plane(&format!("rotate.{i}.image.in"), |number| number as f32);
        let theirs = cases.plane(&format!("rotate.{i}.image.-13"), |number| number as f32);
        assert_eq!(rotate_nearest(image.view(), -13.0), theirs, "{i}");
    }
}

#[test]
fn the_released_codes_eight_flips_are_the_four_reflections_twice_each() {
    let cases = Cases::open("resample");
    let square = cases.plane("reflect.in", |number| number as u8);
    let ours = Reflection::ALL.map(|reflection| View::Reflection(reflection).apply(square.view()));
    let mut counts = [0; 4];
    for k in 0..4 {
        for axis in 0..2 {
            let theirs = cases.plane(&format!("reflect.{k}.{axis}"), |number| number as u8);
            let which = ours
                .iter()
                .position(|ours| *ours == theirs)
                .expect("one of the four");
            counts[which] += 1;
        }
    }
    assert_eq!(counts, [2; 4]);
}

fn plane() -> impl Strategy<Value = Array2<f32>> {
    (1_usize..20, 1_usize..20).prop_flat_map(|(rows, columns)| {
        prop::collection::vec(-1.0_f32..1.0, rows * columns).prop_map(move |pixels| {
            Array2::from_shape_vec((rows, columns), pixels).expect("as many")
        })
    })
}

proptest! {
    #[test]
    fn the_same_size_is_the_same_slice(pixels in plane()) {
        let (rows, columns) = pixels.dim();
        for grid in [Grid::CornerAligned, Grid::HalfPixel] {
            for (_, interpolation) in ORDERS {
                let same = resample(pixels.view(), [rows, columns], interpolation, grid);
                for (a, b) in same.iter().zip(&pixels) {
                    prop_assert!((a - b).abs() <= 1e-6);
                }
            }
        }
    }

    #[test]
    fn transposing_before_or_after_is_one(pixels in plane(), rows in 1_usize..30, columns in 1_usize..30) {
        for grid in [Grid::CornerAligned, Grid::HalfPixel] {
            for (_, interpolation) in ORDERS {
                let a = resample(pixels.view(), [rows, columns], interpolation, grid);
                let b = resample(pixels.t(), [columns, rows], interpolation, grid);
                for (a, b) in a.iter().zip(b.t()) {
                    prop_assert!((a - b).abs() <= 1e-5);
                }
            }
        }
    }

    #[test]
    fn nearest_neighbours_make_no_new_labels(pixels in plane(), rows in 1_usize..30, columns in 1_usize..30) {
        let pixels = pixels.mapv(|pixel| 1 + (pixel.abs() * 8.0) as u8);
        let out = resample(pixels.view(), [rows, columns], Interpolation::Nearest, Grid::HalfPixel);
        prop_assert!(out.iter().all(|label| pixels.iter().any(|known| known == label)));
    }
}
