//! Resampling and rotation, compared with scipy and torch.

use crate::support::{Cases, ndarray};
use ndarray::Array2;
use proptest::prelude::*;
use sam_lst_datasets::{Grid, Interpolation, Pixel, Reflection, View, resample, rotate_nearest};
use std::fmt::Debug;

const ORDERS: [(usize, Interpolation); 3] =
    [(0, Interpolation::Nearest), (1, Interpolation::Linear), (3, Interpolation::Cubic)];

/// The largest difference over all of scipy's zooms of one number type. Where a cubic interpolation
/// is halfway between two integers, its last bit decides, and the result may differ from scipy's by
/// 1.
fn largest_zoom_difference<T: Pixel + Debug>(kind: &str, convert: fn(f64) -> T) -> f64 {
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
            let exact =
                cases.names().contains(&exact).then(|| cases.plane(&exact, |number| number));
            let size = theirs.dim();
            let ours =
                resample(pixels.view(), [size.0, size.1], interpolation, Grid::CornerAligned);
            for ((index, ours), theirs) in ours.indexed_iter().zip(&theirs) {
                let halfway = exact
                    .as_ref()
                    .is_some_and(|exact| (exact[index].rem_euclid(1.0) - 0.5).abs() < 1e-9);
                let difference = (ours.to_f64() - theirs).abs();
                largest = largest.max(if halfway { difference - 1.0 } else { difference });
            }
            compared += 1;
        }
    }
    assert!(compared >= 10, "{compared} fixtures");
    largest
}

#[test]
fn float_zooms_match_scipy() {
    assert!(largest_zoom_difference("f32", |number| number as f32) <= 1e-6);
    assert!(largest_zoom_difference("f64", |number| number) <= 1e-12);
}

#[test]
fn integer_zooms_equal_scipy() {
    assert_eq!(largest_zoom_difference("label", |number| number as u8), 0.0);
    assert_eq!(largest_zoom_difference("u8", |number| number as u8), 0.0);
    assert_eq!(largest_zoom_difference("i16", |number| number as i16), 0.0);
}

#[test]
fn half_pixel_interpolation_matches_torch() {
    let cases = Cases::open("resample");
    let mut compared = 0;
    for name in cases.names() {
        let Some(rest) = name.strip_prefix("torch.") else {
            continue;
        };
        let [i, kind, mode] = rest.split('.').collect::<Vec<_>>().try_into().expect("three parts");
        let interpolation = match mode {
            "nearest-exact" => Interpolation::Nearest,
            "bilinear" => Interpolation::Linear,
            "bicubic" => Interpolation::Cubic,
            other => panic!("{other}"),
        };
        let pixels = cases.plane(&format!("zoom.{i}.{kind}.in"), |number| number as f32);
        let theirs = cases.plane(&name, |number| number as f32);
        let size = theirs.dim();
        let ours = resample(pixels.view(), [size.0, size.1], interpolation, Grid::HalfPixel);
        let tolerance = if interpolation == Interpolation::Nearest { 0.0 } else { 1e-5 };
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert!((ours - theirs).abs() <= tolerance, "{name}: {ours}, {theirs}");
        }
        compared += 1;
    }
    assert_eq!(compared, 40);
}

#[test]
fn rotations_equal_scipy() {
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
fn the_eight_flips_of_the_released_code_are_each_reflection_twice() {
    let cases = Cases::open("resample");
    let square = cases.plane("reflect.in", |number| number as u8);
    let ours = Reflection::ALL.map(|reflection| View::Reflection(reflection).apply(square.view()));
    let mut counts = [0; 4];
    for k in 0..4 {
        for axis in 0..2 {
            let theirs = cases.plane(&format!("reflect.{k}.{axis}"), |number| number as u8);
            let index = ours.iter().position(|ours| *ours == theirs).expect("a reflection");
            counts[index] += 1;
        }
    }
    assert_eq!(counts, [2; 4]);
}

fn plane() -> impl Strategy<Value = Array2<f32>> {
    (1_usize..20, 1_usize..20).prop_flat_map(|(rows, columns)| {
        prop::collection::vec(-1.0_f32..1.0, rows * columns).prop_map(move |pixels| {
            Array2::from_shape_vec((rows, columns), pixels).expect("rows x columns pixels")
        })
    })
}

proptest! {
    #[test]
    fn resampling_to_the_same_size_is_the_identity(pixels in plane()) {
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
    fn resampling_commutes_with_transposition(
        pixels in plane(),
        rows in 1_usize..30,
        columns in 1_usize..30,
    ) {
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
    fn nearest_neighbours_add_no_labels(
        pixels in plane(),
        rows in 1_usize..30,
        columns in 1_usize..30,
    ) {
        let pixels = pixels.mapv(|pixel| 1 + (pixel.abs() * 8.0) as u8);
        let out = resample(pixels.view(), [rows, columns], Interpolation::Nearest, Grid::HalfPixel);
        prop_assert!(out.iter().all(|label| pixels.iter().any(|known| known == label)));
    }
}
