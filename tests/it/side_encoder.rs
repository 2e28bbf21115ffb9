//! Side networks: those of this library, with weights from ImageNet, and a custom one, a
//! transformer.

use crate::support::{
    Cases, config, fixture, gradients, largest, largest_difference, pattern, sam_pth,
};
use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::transformer::{
    TransformerEncoder, TransformerEncoderConfig, TransformerEncoderInput,
};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Tensor};
use sam_lst::backbones::SwinConfig;
use sam_lst::model::{
    ConfigError, ModelError, SideConfig, SideNetwork, VisionTransformerSideConfig,
};
use sam_lst::resnet_side::ResNetSideConfig;
use sam_lst::sam_encoder::SamEncoderConfig;
use sam_lst::tiny_vit::TinyVitConfig;
use sam_lst::{SamLst, SamLstConfig, SideEncoder};

/// A transformer over patches of 16 x 16 pixels.
#[derive(Module, Debug)]
struct PatchTransformer {
    patches: Conv2d,
    transformer: TransformerEncoder,
}

impl PatchTransformer {
    fn new(width: usize, device: &Device) -> Self {
        Self {
            patches: Conv2dConfig::new([3, width], [16, 16]).with_stride([16, 16]).init(device),
            transformer: TransformerEncoderConfig::new(width, 2 * width, 2, 1)
                .with_dropout(0.0)
                .init(device),
        }
    }
}

impl SideEncoder for PatchTransformer {
    fn forward(&self, image: Tensor<4>) -> Tensor<4> {
        let patches = self.patches.forward(image); // [B, C, G, G]
        let shape = patches.dims();
        let tokens = patches.flatten::<3>(2, 3).swap_dims(1, 2); // [B, G * G, C]
        let tokens = self.transformer.forward(TransformerEncoderInput::new(tokens));
        tokens.swap_dims(1, 2).reshape(shape)
    }
}

fn custom_config() -> SamLstConfig {
    config().with_side(SideConfig::Custom("patch-transformer".into()))
}

fn model(device: &Device) -> SamLst<PatchTransformer> {
    let width = custom_config().decoder.embed_dim;
    custom_config()
        .init_with_side(|device| PatchTransformer::new(width, device), device)
        .expect("a valid configuration")
}

#[test]
fn a_custom_side_network_is_trained_saved_and_loaded() {
    let device = Device::flex().autodiff();
    let mut trained = model(&device);
    let image = pattern([2, 3, 64, 64], &device);
    let target = pattern([2, 9, 16, 16], &device);
    let mut optimizer = AdamWConfig::new().init();
    let mut losses = Vec::new();
    for _ in 0..8 {
        let logits = trained.forward(image.clone()).logits;
        let loss = (logits - target.clone()).powf_scalar(2.0).mean();
        losses.push(loss.clone().into_scalar::<f32>());
        let gradients = GradientsParams::from_grads(loss.backward(), &trained.network);
        trained.network = optimizer.step(1e-2, trained.network, gradients);
    }
    assert!(losses[7] < 0.9 * losses[0], "the loss does not decrease: {losses:?}");

    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("ladder.safetensors");
    trained.save_network(&path).expect("save the ladder");
    let mut loaded = model(&device);
    loaded.load_network(&path).expect("load the ladder");
    let image = image.inner();
    let expected = trained.valid().forward(image.clone()).logits.into_data();
    loaded.valid().forward(image).logits.into_data().assert_eq(&expected, true);
}

#[test]
fn a_checkpoint_of_another_side_network_is_rejected() {
    let device = Device::flex();
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("ladder.safetensors");
    model(&device).save_network(&path).expect("save the ladder");

    let mut other = config().init(&device).expect("a valid configuration");
    let error = other.load_network(&path).unwrap_err();
    assert!(matches!(&error, ModelError::WrongConfig { field, .. } if field == "side"), "{error}");
    let error = custom_config().init(&device).unwrap_err();
    assert_eq!(error, ConfigError::CustomSide { name: "patch-transformer".into() });
}

/// The side network of a model with weights of a file.
fn pretrained(side: SideConfig, name: &str, device: &Device) -> SideNetwork {
    let config = config().with_side(side).with_input_size(96);
    let file = fixture(&format!("side_networks/{name}.safetensors"));
    let model = SamLst::from_official(&config, sam_pth(), Some(&file), device);
    model.expect("loads").network.side.expect("a side network")
}

fn small_swin() -> SideConfig {
    let swin = SwinConfig::new().with_embed_dim(8).with_depths(vec![2, 2, 2]);
    SideConfig::Swin(swin.with_num_heads(vec![2, 2, 4]).with_window_size(5))
}

fn small_transformer() -> SideConfig {
    let side = VisionTransformerSideConfig::new();
    SideConfig::VisionTransformer(side.with_embed_dim(12).with_depth(2))
}

#[test]
fn resnet50_equals_torchvisions() {
    let cases = Cases::open("side_networks");
    let side = ResNetSideConfig::new([1, 2, 1]).with_bottleneck_expansion(Some(4)).with_width(4);
    // The kernels do not support gradient checkpointing, so that device uses Burn's operations.
    let burns = Device::flex().autodiff().gradient_checkpointing();
    for device in [Device::flex().autodiff(), burns] {
        let network = pretrained(SideConfig::ResNet(side.clone()), "resnet", &device);
        let image = cases.tensor::<4>("image", &device);
        cases.assert_close("resnet", network.valid().forward(image.clone().inner()), 1e-5);
        let output = network.forward(image);
        cases.assert_close("resnet.training", output.clone().inner(), 1e-5);
        let all = GradientsParams::from_grads(output.square().sum().backward(), &network);
        let found = gradients(&network, &all);
        assert_eq!(found.len(), cases.names().filter(|name| name.starts_with("grad.")).count());
        for (name, actual) in &found {
            let expected = cases.data(&format!("grad.{name}"));
            let error = largest_difference(actual, &expected) / largest(&expected);
            assert!(error <= 1e-4, "{name}: relative error {error:.2e}");
        }
    }
}

#[test]
fn transformers_equal_timms() {
    let cases = Cases::open("side_networks");
    let device = Device::flex();
    let image = cases.tensor::<4>("image", &device);
    let channels_last = image.permute([0, 2, 3, 1]);
    let SideNetwork::Swin(side) = pretrained(small_swin(), "swin", &device) else {
        panic!("a Swin Transformer")
    };
    for (stage, features) in side.swin.forward(channels_last.clone()).into_iter().enumerate() {
        cases.assert_close(&format!("swin.{stage}"), features, 1e-5);
    }
    let SideNetwork::VisionTransformer(side) = pretrained(small_transformer(), "vit", &device)
    else {
        panic!("a Vision Transformer")
    };
    let features = side.transformer.forward(channels_last); // [2, 6, 6, 12]
    cases.assert_close("vit", features.reshape([2, 36, 12]), 1e-5);
}

#[test]
fn side_networks_fit_foundations_of_both_strides() {
    let device = Device::flex();
    let image = pattern([1, 3, 64, 64], &device);
    let resnet50 =
        ResNetSideConfig::new([1, 1, 1]).with_bottleneck_expansion(Some(4)).with_width(8);
    for encoder in [config().encoder, TinyVitConfig::tiny().into()] {
        let (stride, channels) = (encoder.stride(), config().decoder.embed_dim);
        let sides = [
            SideConfig::ResNet(resnet50.clone().for_embedding(channels, stride)),
            small_swin(),
            small_transformer(),
        ];
        for side in sides {
            let mut config = config().with_side(side).with_input_size(64);
            config.encoder = encoder.clone();
            let model = config.init(&device).expect("a valid configuration");
            let grid = 64 / stride;
            let side = model.network.side.as_ref().expect("a side network");
            assert_eq!(side.forward(image.clone()).dims(), [1, channels, grid, grid]);
            assert_eq!(model.forward(image.clone()).logits.dims(), [1, 9, 4 * grid, 4 * grid]);
        }
    }
}

#[test]
fn taps_need_a_side_network_and_a_foundation_that_have_them() {
    let device = Device::flex();
    let config = config().with_true_ladder();
    let width = config.decoder.embed_dim;
    let custom = config.init_with_side(|device| PatchTransformer::new(width, device), &device);
    let error = custom.expect_err("no stages").to_string();
    assert!(error.ends_with("none, since the side network has no such stages"), "{error}");
    // Of a model, whose initial weights are drawn while no other test draws any.
    let encoder = SamEncoderConfig { embed_dim: 16, ..SamEncoderConfig::tiny() }.into();
    let narrow = SamLstConfig { encoder, ..self::config() };
    let foundation = narrow.init(&device).expect("a valid configuration").foundation;
    let error = config.init_over(foundation, &device).expect_err("narrower").to_string();
    let expected = "the foundation has taps of [16, 16, 16, 16] channels, but the configuration taps \
                    of [32, 32, 32] channels";
    assert!(error.starts_with(expected), "{error}");
}

#[test]
fn side_networks_that_do_not_fit_are_refused() {
    let message = |side: SideConfig| {
        let config = config().with_side(side).with_input_size(64);
        config.init(&Device::flex()).expect_err("invalid").to_string()
    };
    let text = message(SideConfig::ResNet(ResNetSideConfig::resnet50()));
    assert!(text.starts_with("`side.projection_channels` is None; expected decoder"), "{text}");
    let SideConfig::Swin(swin) = small_swin() else { panic!("a Swin Transformer") };
    let text = message(SideConfig::Swin(swin.clone().with_depths(vec![2, 2])));
    assert!(text.starts_with("`side.depths` is [2, 2]; expected three stages"), "{text}");
    let text = message(SideConfig::Swin(swin.with_num_heads(vec![2, 3, 4])));
    assert!(text.starts_with("`side.num_heads` is [2, 3, 4]; expected"), "{text}");
    let side = VisionTransformerSideConfig::new().with_num_heads(5);
    let text = message(SideConfig::VisionTransformer(side));
    assert!(text.starts_with("`side.num_heads` is 5; expected a divisor"), "{text}");

    let config = config().with_side(small_transformer()).with_input_size(64);
    let swin = fixture("side_networks/swin.safetensors");
    let error = SamLst::from_official(&config, sam_pth(), Some(&swin), &Device::flex());
    let error = error.expect_err("another network").to_string();
    assert!(
        error.contains("expected timm's Vision Transformer, found a Swin Transformer"),
        "{error}"
    );
}
