//! A custom side network: a transformer.

use crate::support::{config, pattern};
use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::transformer::{
    TransformerEncoder, TransformerEncoderConfig, TransformerEncoderInput,
};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Tensor};
use sam_lst::model::{ConfigError, ModelError, SideConfig};
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
