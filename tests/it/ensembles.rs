//! Segmentation with several networks and in several poses, and its uncertainty.

use crate::support::config;
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor};
use sam_lst::datasets::Pose;
use sam_lst::datasets::ndarray::Array3;
use sam_lst::inference::EnsembleError;
use sam_lst::model::UNetLadderConfig;
use sam_lst::{
    SamLst, SamLstConfig, SegmentationConfig, SegmentationModel, SegmentationNetwork, Segmenter,
    SliceGeometry, Volume,
};

const SIZE: usize = 64;

fn ladder(seed: u64) -> SamLst {
    let ladder = SamLstConfig { seed, ..config().with_input_size(SIZE) };
    ladder.init(&Device::flex()).expect("a valid configuration")
}

/// A network over the foundation of a ladder.
fn over(first: &SamLst, seed: u64) -> SamLst {
    let mut model = ladder(seed);
    model.foundation = first.foundation.clone();
    model
}

/// Three slices of the network's input size, so that nothing is resampled.
fn image() -> Volume<f32> {
    let voxels = Array3::from_shape_fn((3, SIZE, SIZE), |(slice, row, column)| {
        let [row, column] = [row, column].map(|index| index as f32 / 7.0);
        0.5 + 0.3 * (row + slice as f32).sin() + 0.2 * (column * (1.0 + slice as f32)).cos()
    });
    Volume::new(voxels, None)
}

fn input(image: &Volume<f32>) -> Tensor<4> {
    let values: Vec<f32> = image.voxels().iter().copied().collect();
    let slices = Tensor::<1>::from_floats(values.as_slice(), &Device::flex());
    slices.reshape([3, 1, SIZE, SIZE]).repeat_dim(1, 3)
}

fn probabilities<N: SegmentationNetwork>(
    model: &SegmentationModel<N>,
    image: Tensor<4>,
) -> Tensor<4> {
    let logits = model.logits(image);
    softmax(sam_lst::sam_nn::resize_bilinear(logits, [SIZE; 2]), 1)
}

fn direct() -> SegmentationConfig {
    SegmentationConfig::new(SliceGeometry::direct())
}

#[test]
fn an_ensemble_has_the_classes_of_the_mean_probabilities() {
    let first = ladder(1);
    let second = over(&first, 2);
    let image = image();
    let mean = (probabilities(&first, input(&image)) + probabilities(&second, input(&image))) / 2.0;
    let entropy = -(mean.clone() * mean.clone().log()).sum_dim(1) / 9.0_f32.ln();
    let expected: Vec<u8> =
        mean.argmax(1).into_data().iter::<i64>().map(|class| class as u8).collect();
    let segmenter =
        || Segmenter::new(&first, direct()).with_model(&second).expect("over the same foundation");
    let (classes, uncertainty) = segmenter()
        .segment_with_uncertainty(&image.clone().into(), |_| {})
        .expect("nothing is cached");
    let agree = classes.voxels().iter().zip(&expected).filter(|(a, b)| a == b).count();
    assert!(agree as f64 > 0.9999 * expected.len() as f64, "{agree} of {}", expected.len());
    let entropies = entropy.into_data();
    for (ours, expected) in uncertainty.voxels().iter().zip(entropies.iter::<f32>()) {
        assert!((ours - expected).abs() < 1e-4, "{ours} and {expected}");
    }
    let without = segmenter().segment(&image.into(), |_| {}).expect("nothing is cached");
    assert_eq!(without, classes, "the uncertainty does not change the classes");
}

#[test]
fn a_model_with_itself_segments_as_alone() {
    let model = ladder(3);
    let image = image().into();
    let alone = Segmenter::new(&model, direct()).segment(&image, |_| {}).expect("no cache");
    let twice = Segmenter::new(&model, direct()).with_model(&model).expect("the same");
    let twice = { twice }.segment(&image, |_| {}).expect("no cache");
    assert_eq!(alone, twice);
    assert!(alone.voxels().iter().any(|class| *class != alone.voxels()[(0, 0, 0)]));
}

#[test]
fn poses_are_averaged_where_they_see_a_pixel() {
    let model = ladder(4);
    let image = image();
    let config = SegmentationConfig { poses: 2, ..direct() };
    let (classes, _) = Segmenter::new(&model, config)
        .segment_with_uncertainty(&image.clone().into(), |_| {})
        .expect("no cache");
    // The same by hand: the foundation sees the slices once; its features are moved.
    let images = input(&image);
    let embedding = model.foundation.embed(images.clone());
    let [batch, channels, grid, _] = embedding.dims();
    let mut sum: Vec<f32> = probabilities(&model, images).into_data().iter::<f32>().collect();
    for pose in Pose::at_inference(2) {
        let moved: Vec<f32> = image
            .voxels()
            .outer_iter()
            .flat_map(|slice| pose.image(slice).into_raw_vec_and_offset().0)
            .collect();
        let moved = Tensor::<1>::from_floats(moved.as_slice(), &Device::flex());
        let moved = moved.reshape([batch, 1, SIZE, SIZE]).repeat_dim(1, 3);
        let mut features: Vec<f32> = embedding.clone().into_data().iter::<f32>().collect();
        let size = channels * grid * grid;
        features.chunks_exact_mut(size).for_each(|values| pose.move_features(values, grid, 1));
        let features = Tensor::<1>::from_floats(features.as_slice(), &Device::flex());
        let features = features.reshape([batch, channels, grid, grid]);
        let logits = SegmentationNetwork::logits(&model.network, moved, Some(features));
        let probabilities = softmax(sam_lst::sam_nn::resize_bilinear(logits, [SIZE; 2]), 1);
        let mut values: Vec<f32> = probabilities.into_data().iter::<f32>().collect();
        pose.move_back(&mut values, [SIZE; 2]);
        sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    }
    let sum = Tensor::<1>::from_floats(sum.as_slice(), &Device::flex());
    let expected = sum.reshape([batch, 9, SIZE, SIZE]).argmax(1).into_data();
    let agree = classes
        .voxels()
        .iter()
        .zip(expected.iter::<i64>())
        .filter(|(ours, expected)| i64::from(**ours) == *expected)
        .count();
    assert!(agree as f64 > 0.9999 * classes.voxels().len() as f64, "{agree}");
}

#[test]
fn models_that_do_not_fit_are_refused() {
    let first = ladder(5);
    let error = |result: Result<Segmenter<'_>, EnsembleError>| result.expect_err("does not fit");
    let other = ladder(6);
    let found = error(Segmenter::new(&first, direct()).with_model(&other));
    assert_eq!(found, EnsembleError::Foundation);
    let smaller = config().with_input_size(32).init(&Device::flex()).expect("valid");
    let found = error(Segmenter::new(&first, direct()).with_model(&smaller));
    assert_eq!(found, EnsembleError::InputSize { expected: 64, found: 32 });
    let fewer = UNetLadderConfig {
        num_classes: 4,
        channels: vec![4, 6, 8, 10, 12],
        ..UNetLadderConfig::from_ladder(first.config())
    };
    let fewer = fewer.init_over(first.foundation.clone(), &Device::flex()).expect("valid");
    let found = error(Segmenter::new(&first, direct()).with_model(&fewer));
    assert_eq!(found.to_string(), "networks of 9 and of 4 classes cannot be combined");
    // Another method over the same foundation fits.
    let same = UNetLadderConfig {
        channels: vec![4, 6, 8, 10, 12],
        ..UNetLadderConfig::from_ladder(first.config())
    };
    let same = same.init_over(first.foundation.clone(), &Device::flex()).expect("valid");
    Segmenter::new(&first, direct()).with_model(&same).expect("the same foundation");
}
