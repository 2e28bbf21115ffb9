//! A U-Net beside the foundation, which receives its features.

use crate::support::{config, pattern};
use crate::training::{config as training_config, dataset, folders};
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor};
use sam_lst::datasets::ndarray::Array3;
use sam_lst::datasets::{Pose, PoseValues, View};
use sam_lst::embeddings::{Embedder, SliceHash, SliceView};
use sam_lst::model::{EmbeddingPrecision, EncoderConfig, UNetLadder, UNetLadderConfig};
use sam_lst::sam_encoder::SamEncoder;
use sam_lst::tiny_vit::{TinyVit, TinyVitConfig};
use sam_lst::{
    NetworkConfig, Outcome, PretrainedModel, SamLstConfig, SegmentationConfig, SegmentationModel,
    SegmentationNetwork, SliceGeometry, Training, TrainingConfig,
};
use std::ops::ControlFlow;

/// Over a tiny ViT with an input of 64 pixels, or over a tiny TinyViT of 32.
fn small(encoder: impl Into<EncoderConfig>, input_size: usize) -> UNetLadderConfig {
    let ladder = SamLstConfig { encoder: encoder.into(), ..config() }.with_input_size(input_size);
    UNetLadderConfig {
        channels: vec![4, 6, 8, 10, 12],
        members: 1,
        unet_size: Some(input_size),
        ..UNetLadderConfig::from_ladder(&ladder)
    }
}

fn init(config: &UNetLadderConfig) -> SegmentationModel<UNetLadder> {
    config.init(&Device::flex()).expect("a valid configuration")
}

#[test]
fn features_enter_at_the_level_of_their_size() {
    let device = Device::flex();
    let image = pattern([1, 3, 64, 64], &device);
    // Stride 16: the fifth level.
    let with_taps = UNetLadderConfig { taps: vec![0, 2], ..small(config().encoder, 64) };
    let model = init(&with_taps);
    let encoder = model.foundation.encoder::<SamEncoder>().expect("a ViT");
    let (embedding, taps) = encoder.forward_with_taps(image.clone(), &[0, 2]);
    let mut features = vec![embedding.permute([0, 2, 3, 1])];
    features.extend(taps);
    let expected = model.network.members[0].forward_with_features(image.clone(), features);
    assert_eq!(expected.dims(), [1, 9, 64, 64]);
    model.logits(image).into_data().assert_eq(&expected.into_data(), true);

    // Strides 4, 1, 2 and 4: the third, the first, the second and the third level. The U-Net has half
    // the foundation's resolution in the second configuration, where only strides 2 and 4 fit.
    let image = pattern([1, 3, 32, 32], &device);
    let half = |image: Tensor<4>| image.reshape([1, 3, 16, 2, 16, 2]).mean_dims(&[3, 5]);
    for (taps, unet_size) in [(vec![0, 1, 2], 32), (vec![1, 2], 16)] {
        let config = UNetLadderConfig {
            taps: taps.clone(),
            unet_size: Some(unet_size),
            channels: vec![4, 6, 8, 10],
            ..small(TinyVitConfig::tiny(), 32)
        };
        let model = init(&config);
        let encoder = model.foundation.encoder::<TinyVit>().expect("a TinyViT");
        let (embedding, inner) = encoder.forward_with_taps(image.clone(), &taps);
        let mut features = vec![embedding.permute([0, 2, 3, 1])];
        features.extend(inner);
        let input = match unet_size {
            32 => image.clone(),
            _ => half(image.clone()).reshape([1, 3, 16, 16]),
        };
        let expected = model.network.members[0].forward_with_features(input, features).into_data();
        let found = model.logits(image.clone()).into_data();
        let tolerance = burn::tensor::Tolerance::absolute(1e-5);
        found.assert_approx_eq::<f32>(&expected, tolerance);
    }
}

#[test]
fn features_of_a_pose_are_moved_on_their_own_grids() {
    let device = Device::flex();
    let config = UNetLadderConfig {
        taps: vec![0, 1, 2],
        channels: vec![4, 6, 8, 10],
        ..small(TinyVitConfig::tiny(), 32)
    };
    let model = init(&config);
    let image = pattern([1, 3, 32, 32], &device);
    let values = PoseValues { degrees: 9, scale_percent: 110, shift_percent: [4, -3] };
    let pose = Pose::try_from(values).expect("a valid pose");
    let slice = Array3::from_elem((1, 32, 32), 0.5);
    let view = |pose| {
        let hash = SliceHash::new(slice.view());
        SliceView::new(hash, View::Identity, SliceGeometry::direct(), 32).with_pose(pose)
    };
    let mut embedder = Embedder::new(&model.foundation, EmbeddingPrecision::F32);
    let moved = embedder.embed(image.clone(), &[view(Some(pose))]).expect("no cache");
    assert_eq!(view(Some(pose)).key(), view(None).key(), "one embedding");

    // Strides 4, 1, 2 and 4, so one, sixteen and four pixels of features in one of the embedding.
    let encoder = model.foundation.encoder::<TinyVit>().expect("a TinyViT");
    let (embedding, inner) = encoder.forward_with_taps(image.clone(), &[0, 1, 2]);
    let mut features = vec![embedding.permute([0, 2, 3, 1])];
    features.extend(inner);
    let features = features.into_iter().map(|features| {
        let [_, side, _, channels] = features.dims();
        let planes = features.permute([0, 3, 1, 2]).into_data();
        let mut planes: Vec<f32> = planes.iter::<f32>().collect();
        pose.move_features(&mut planes, side, 1);
        let planes = Tensor::<1>::from_floats(planes.as_slice(), &device);
        planes.reshape([1, channels, side, side]).permute([0, 2, 3, 1])
    });
    let unet = &model.network.members[0];
    let expected = unet.forward_with_features(image.clone(), features.collect()).into_data();
    let found = SegmentationNetwork::logits(&model.network, image, Some(moved)).into_data();
    found.assert_approx_eq::<f32>(&expected, burn::tensor::Tolerance::absolute(1e-5));
}

#[test]
fn members_have_the_logits_of_their_mean_probabilities() {
    let model = init(&UNetLadderConfig { members: 3, ..small(config().encoder, 64) });
    let image = pattern([2, 3, 64, 64], &Device::flex());
    let embedding = model.foundation.embed(image.clone()).permute([0, 2, 3, 1]);
    let of_members = model.network.members.iter().map(|unet| {
        let logits = unet.forward_with_features(image.clone(), vec![embedding.clone()]);
        softmax(logits, 1)
    });
    let probabilities: Vec<Tensor<4>> = of_members.collect();
    let difference = (probabilities[0].clone() - probabilities[1].clone()).abs().max();
    assert!(difference.into_scalar::<f32>() > 0.01, "members differ");
    let mean = Tensor::stack::<5>(probabilities, 0).mean_dim(0).squeeze_dim::<4>(0);
    let found = softmax(model.logits(image.clone()), 1).into_data();
    found.assert_approx_eq::<f32>(&mean.into_data(), burn::tensor::Tolerance::absolute(1e-6));
    let embedding = model.foundation.embed(image.clone());
    let supervised = model.network.supervised_logits(image, Some(embedding));
    assert_eq!(supervised.len(), 3 * 3, "three levels of three members");
    let weights: f64 = supervised.iter().map(|level| level.weight).sum();
    assert!((weights - 1.0).abs() < 1e-12, "{weights}");
}

#[test]
fn settings_that_do_not_fit_are_refused() {
    let message = |config: UNetLadderConfig| config.validate().expect_err("invalid").to_string();
    let over_vit = || small(config().encoder, 64);
    let few = UNetLadderConfig { channels: vec![4, 6, 8], ..over_vit() };
    let text = message(few);
    assert!(text.starts_with("`unet_size` is 64; expected such that a level"), "{text}");
    let text = message(UNetLadderConfig { taps: vec![4], ..over_vit() });
    assert!(text.starts_with("`taps` is [4]; expected indices of the encoder's blocks"), "{text}");
    let text = message(UNetLadderConfig { members: 0, ..over_vit() });
    assert_eq!(text, "`members` is 0; expected 1 to 16");
    let text = message(UNetLadderConfig { taps: vec![2, 1], ..over_vit() });
    assert!(text.ends_with("indices in increasing order"), "{text}");
    let text = message(UNetLadderConfig { input_size: 60, ..over_vit() });
    assert!(text.starts_with("`input_size` is 60; expected"), "{text}");
    let text = message(UNetLadderConfig { unet_size: Some(40), ..over_vit() });
    assert!(text.contains("`input_size` is 40, with 5 levels"), "{text}");
}

fn assert_same_logits<N: SegmentationNetwork>(
    loaded: &SegmentationModel<N>,
    trained: &SegmentationModel<N>,
) {
    let image = pattern([1, 3, 64, 64], &Device::flex());
    let expected = trained.valid().logits(image.clone()).into_data();
    loaded.logits(image).into_data().assert_eq(&expected, true);
}

#[test]
fn it_is_trained_saved_and_loaded_with_its_foundation() {
    let folder = tempfile::tempdir().expect("a folder");
    let base: TrainingConfig = training_config();
    let model = UNetLadderConfig { taps: vec![1], ..small(base.model.encoder.clone(), 64) };
    let config = base.with_model(model);
    let model = config.model.init(&Device::flex().autodiff()).expect("a valid configuration");
    let folders = folders(folder.path(), "run");
    let foundation = folder.path().join("foundation.safetensors");
    model.foundation.save(&foundation).expect("save the foundation");
    let training = Training::new(config.clone(), folders.clone());
    let outcome = training.run(model, &dataset(folder.path()), |_| ControlFlow::Continue(()));
    let Outcome::Finished(trained) = outcome.expect("trains") else { panic!("not stopped") };
    assert!(folders.run.join("unet-ladder.safetensors").exists());
    let file = &trained.network_file;
    let loaded = PretrainedModel::load(file, Some(&foundation), &Device::flex()).expect("loads");
    let PretrainedModel::UNetLadder(loaded) = loaded else { panic!("another method") };
    assert_eq!(loaded.config(), &config.model);
    assert_same_logits(&loaded, &trained.model);
    assert!(loaded.network.uses_embedding());
    let task = loaded.task.clone().expect("the task");
    let pretrained = PretrainedModel::UNetLadder(loaded);
    pretrained.segmenter(SegmentationConfig::of_task(&task));
}

#[test]
fn a_true_ladder_is_trained_saved_and_loaded_with_its_foundation() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = training_config();
    config.model = config.model.with_true_ladder();
    let model = config.model.init(&Device::flex().autodiff()).expect("a valid configuration");
    let folders = folders(folder.path(), "run");
    let foundation = folder.path().join("foundation.safetensors");
    model.save_sam(&foundation).expect("save the foundation");
    let training = Training::new(config.clone(), folders);
    let outcome = training.run(model, &dataset(folder.path()), |_| ControlFlow::Continue(()));
    let Outcome::Finished(trained) = outcome.expect("trains") else { panic!("not stopped") };
    let file = &trained.network_file;
    let loaded = PretrainedModel::load(file, Some(&foundation), &Device::flex()).expect("loads");
    let PretrainedModel::Ladder(loaded) = loaded else { panic!("another method") };
    assert_eq!(loaded.config(), &config.model);
    assert_same_logits(&loaded, &trained.model);
}
