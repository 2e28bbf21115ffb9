//! The networks without a foundation: parity with PyTorch, weights from ImageNet, and training.

use crate::support::{
    Cases, apply_weights, fixture, gradients, largest, largest_difference, pattern,
};
use crate::training::{config, dataset, folders, segments_a_case};
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::store::ModuleSnapshot;
use burn::tensor::{Device, Tensor};
use sam_lst::backbones::{ResNetV2Config, SwinConfig};
use sam_lst::baselines::{
    AttentionUNetConfig, SkipConnections, SwinUNetConfig, TransUNetConfig, UNetConfig,
};
use sam_lst::model::{Baseline, BaselineConfig, ModelError};
use sam_lst::weights::{WeightsError, official_name};
use sam_lst::{CachedViews, CrossEntropyDiceLossConfig, SegmentationNetwork, Training};
use std::ops::ControlFlow;
use std::path::Path;

fn attention_unet(num_classes: usize) -> AttentionUNetConfig {
    AttentionUNetConfig::new(num_classes).with_channels(vec![4, 6, 8, 10])
}

fn trans_unet(num_classes: usize) -> TransUNetConfig {
    TransUNetConfig::new(num_classes)
        .with_resnet(ResNetV2Config::new().with_blocks([1, 2, 1]).with_width(8).with_groups(4))
        .with_embed_dim(16)
        .with_depth(2)
        .with_num_heads(2)
        .with_neck_channels(12)
        .with_decoder_channels([12, 8, 6, 4])
}

fn swin_unet(num_classes: usize) -> SwinUNetConfig {
    let encoder = SwinConfig::new()
        .with_embed_dim(8)
        .with_depths(vec![2, 2])
        .with_num_heads(vec![2, 4])
        .with_window_size(5);
    SwinUNetConfig::new(num_classes).with_encoder(encoder)
}

/// Compares logits, loss and gradients with a fixture's, all of whose names begin with `prefix`.
fn equals_pytorch<C: Baseline>(config: &C, cases: &Cases, prefix: &str, tolerance: f64)
where
    C::Network: ModuleSnapshot,
{
    let name = |name: &str| format!("{prefix}{name}");
    // The kernels do not support gradient checkpointing, so that device uses Burn's operations.
    let burns = Device::flex().autodiff().gradient_checkpointing();
    for device in [Device::flex().autodiff(), burns] {
        let image = cases.tensor::<4>(&name("image"), &device);
        let [.., size] = image.dims();
        let mut network = config.init(size, &device);
        apply_weights(&mut network, cases, &name("weights."));
        let evaluated = network.valid().logits(image.clone().inner(), None);
        cases.assert_close(&name("logits.evaluation"), evaluated, tolerance);

        let labels = cases.tensor::<3>(&name("labels"), &device).int();
        let logits = network.logits(image, None);
        cases.assert_close(&name("logits"), logits.clone().inner(), tolerance);
        let loss = CrossEntropyDiceLossConfig::new().init().forward(logits, labels).total;
        cases.assert_close(&name("loss"), loss.clone().inner(), 1e-5);
        let all = GradientsParams::from_grads(loss.backward(), &network);
        let found = gradients(&network, &all);
        let start = name("grad.");
        let expected: Vec<&str> =
            cases.names().filter_map(|name| name.strip_prefix(start.as_str())).collect();
        assert!(expected.len() > 20, "{expected:?}");
        assert!(found.len() >= expected.len());
        for ours in expected {
            let expected = cases.data(&format!("{start}{ours}"));
            let actual = found.get(&official_name(ours)).unwrap_or_else(|| panic!("no {ours}"));
            // The gradient of a gate's last bias is a sum of terms of both signs, which almost
            // cancel, so it is compared on the scale of the scale's.
            let scale = format!("{start}{}", ours.replace("psi.norm.bias", "psi.norm.weight"));
            let error = largest_difference(actual, &expected) / largest(&cases.data(&scale));
            assert!(error <= 1e-4, "{ours}: relative error {error:.2e}");
        }
    }
}

#[test]
fn attention_unet_equals_monais() {
    equals_pytorch(&attention_unet(3), &Cases::open("attention_unet"), "", 1e-5);
}

#[test]
fn trans_unet_equals_its_definition_on_timms_encoder() {
    equals_pytorch(&trans_unet(3), &Cases::open("trans_unet"), "plain.", 1e-5);
}

#[test]
fn r50_attention_unet_equals_its_definition_on_timms_encoder() {
    let config = trans_unet(3).with_depth(0).with_skips(SkipConnections::Gated);
    equals_pytorch(&config, &Cases::open("trans_unet"), "gated.", 1e-5);
}

#[test]
fn swin_unet_equals_its_definition_on_timms_encoder() {
    equals_pytorch(&swin_unet(3), &Cases::open("swin_unet"), "", 3e-5);
}

#[test]
fn published_networks_have_the_published_sizes() {
    let device = Device::flex();
    fn millions<M: Module>(network: M) -> f64 {
        (network.num_params() as f64 / 1e5).round() / 10.0
    }
    // TransUNet's and Swin-Unet's released code have 105.3 and 27.2 million parameters.
    let trans_unet = TransUNetConfig::new(9).init(224, &device);
    assert_eq!(millions(trans_unet), 105.3);
    assert_eq!(millions(SwinUNetConfig::new(9).init(&device)), 27.2);
}

/// Loads the encoder and compares its tensors with those of the file.
fn loads_encoder<C: Baseline>(config: BaselineConfig<C>, file: &Path) -> usize
where
    C::Network: ModuleSnapshot,
{
    let device = Device::flex();
    let random = config.init(&device).expect("valid").network;
    let loaded = config.init_with_encoder(file, &device).expect("loads").network;
    let values = |network: &C::Network| network.collect(None, None, false);
    let (random, loaded) = (values(&random), values(&loaded));
    let changed = random.iter().zip(&loaded).filter(|(before, after)| {
        let [before, after] =
            [before, after].map(|tensor| burn::store::bridge::to_data(tensor).expect("values"));
        before != after
    });
    changed.count()
}

#[test]
fn encoders_are_loaded_from_timms_files() {
    let model = BaselineConfig { network: trans_unet(3), input_size: 64, seed: 0 };
    let file = fixture("trans_unet/timm.safetensors");
    let tensors = Cases::read(&file);
    // All but the class token and the classifier, and nothing of the decoder.
    let expected = tensors.names().filter(|name| !name.starts_with("head") && *name != "cls_token");
    assert_eq!(loads_encoder(model.clone(), &file), expected.count());
    let network = model.init_with_encoder(&file, &Device::flex()).expect("loads").network;
    let transformer = network.transformer.expect("a transformer");
    // The file's positions are of a grid of 8 x 8, and the network's of 4 x 4, whose every value is
    // the mean of four neighbours.
    let [ours, theirs] = [transformer.pos_embed.val().into_data(), tensors.data("pos_embed")]
        .map(|data| data.iter::<f32>().collect::<Vec<_>>());
    let of_file = |row: usize, column: usize| theirs[16 * (1 + 8 * row + column)];
    let mean = (of_file(2, 4) + of_file(2, 5) + of_file(3, 4) + of_file(3, 5)) / 4.0;
    assert!((ours[16 * (4 + 2)] - mean).abs() < 1e-6);

    let model = BaselineConfig { network: swin_unet(3), input_size: 64, seed: 0 };
    let swin = fixture("swin_unet/timm.safetensors");
    let tensors = Cases::read(&swin);
    let is_encoder = |name: &&str| !name.starts_with("head");
    let unused = |name: &&str| name.contains("layers.1.blocks.2") || name.contains("blocks.3");
    let in_encoder = tensors.names().filter(is_encoder).filter(|name| !unused(name)).count();
    let in_decoder = tensors.names().filter(|name| name.starts_with("layers.0.blocks.")).count();
    assert_eq!(loads_encoder(model.clone(), &swin), in_encoder + in_decoder);

    let device = Device::flex();
    let hybrid = BaselineConfig { network: trans_unet(3), input_size: 64, seed: 0 };
    let error = hybrid.init_with_encoder(&swin, &device).expect_err("of another encoder");
    let message = error.to_string();
    assert!(message.contains("timm's vit_base_r50_s16_224, found a Swin"), "{message}");
    let error = model.init_with_encoder(&file, &device).expect_err("of another encoder");
    assert!(error.to_string().contains("trans_unet/timm.safetensors"), "{error}");
    let wider = swin_unet(3).with_encoder(swin_unet(3).encoder.with_window_size(4));
    let wider = BaselineConfig { network: wider, input_size: 64, seed: 0 };
    let error = wider.init_with_encoder(&swin, &device).expect_err("another window");
    let ModelError::Weights(WeightsError::Shape { name, .. }) = error else { panic!("{error}") };
    assert!(name.ends_with("attn.relative_position_bias_table"), "{name}");
    let unet = UNetConfig::new(3).with_channels(vec![4, 8]);
    let unet = BaselineConfig { network: unet, input_size: 64, seed: 0 };
    let error = unet.init_with_encoder(&swin, &device).expect_err("no encoder").to_string();
    assert!(error.contains("no ImageNet weights for the encoder of the method `unet`"), "{error}");
}

/// Trains for some steps, loads the network and segments with it.
fn trains<C: Baseline>(network: C) {
    let folder = tempfile::tempdir().expect("temporary folder");
    let data = dataset(folder.path());
    let folders = folders(folder.path(), "run");
    let mut config = config().with_model(BaselineConfig { network, input_size: 64, seed: 0 });
    config.cache.views = CachedViews::NONE;
    config.epochs = 1;
    let model = config.model.init(&Device::flex().autodiff()).expect("a valid configuration");
    let training = Training::new(config, folders.clone());
    let outcome = training.run(model, &data, |_| ControlFlow::Continue(()));
    let trained = outcome.expect("trains").finished().expect("finishes");
    segments_a_case(&trained.network_file, &data);

    // The loaded network computes what the trained one does.
    let image = pattern([1, 3, 64, 64], &Device::flex());
    let reloaded = BaselineConfig::<C>::load(&trained.network_file, &Device::flex());
    let [ours, theirs] = [trained.model.network.valid(), reloaded.expect("loads").network]
        .map(|network: C::Network| network.logits(image.clone(), None).into_data());
    assert_eq!(ours, theirs);
}

#[test]
fn attention_unet_is_trained_and_segments() {
    trains(attention_unet(9));
}

#[test]
fn trans_unet_is_trained_and_segments() {
    trains(trans_unet(9));
}

#[test]
fn swin_unet_is_trained_and_segments() {
    trains(swin_unet(9));
}

#[test]
fn settings_that_do_not_fit_are_refused() {
    fn invalid<C: Baseline>(network: C, input_size: usize) -> String {
        let model = BaselineConfig { network, input_size, seed: 0 };
        model.init(&Device::flex()).expect_err("invalid").to_string()
    }
    let message = invalid(attention_unet(9), 60);
    assert!(message.starts_with("`input_size` is 60, with 4 levels"), "{message}");
    let message = invalid(trans_unet(9), 72);
    assert!(message.starts_with("`input_size` is 72; expected a multiple of 16"), "{message}");
    let message = invalid(trans_unet(9).with_num_heads(3), 64);
    assert!(message.starts_with("`network.embed_dim` is 16; expected"), "{message}");
    let uneven = trans_unet(9).with_resnet(ResNetV2Config::new().with_width(48));
    let message = invalid(uneven, 64);
    assert!(message.starts_with("`network.resnet.width` is 48; expected"), "{message}");
    let message = invalid(swin_unet(9), 60);
    assert!(message.starts_with("`input_size` is 60, with 2 stages"), "{message}");
    let encoder = swin_unet(9).encoder.with_num_heads(vec![2]);
    let message = invalid(swin_unet(9).with_encoder(encoder), 64);
    assert!(message.starts_with("`network.encoder.num_heads` is [2]; expected"), "{message}");
}

/// The logits of a network without autodiff do not depend on the batch.
#[test]
fn images_of_a_batch_are_independent() {
    let device = Device::flex();
    let images: Tensor<4> = pattern([2, 3, 64, 64], &device);
    fn check<C: Baseline>(network: C, images: &Tensor<4>, device: &Device) {
        let network = network.init(64, device);
        let both = network.logits(images.clone(), None).narrow(0, 1, 1);
        let alone = network.logits(images.clone().narrow(0, 1, 1), None);
        let tolerance = burn::tensor::Tolerance::absolute(1e-5);
        both.into_data().assert_approx_eq::<f32>(&alone.into_data(), tolerance);
    }
    check(attention_unet(3), &images, &device);
    check(trans_unet(3), &images, &device);
    check(swin_unet(3), &images, &device);
}
