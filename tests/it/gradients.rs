//! Which tensors are trained, and parity of their gradients with PyTorch.

use crate::support::{
    Cases, config, gradients, ladder_model, largest, largest_difference, tiny_vit_model,
};
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};
use sam_lst::sam_encoder::SamEncoder;
use sam_lst::{DecoderTuning, Fusion, SamLst, SamLstConfig};

/// A training step on a fixture: checks its logits and loss, that every trained tensor has a
/// gradient and no other has, and the gradients.
fn check_step(model: &SamLst, cases: &Cases, logits: Tensor<4>) {
    cases.assert_close("train.logits", logits.clone().inner(), 3e-5);
    let weight = cases.tensor::<4>("loss_weight", &logits.device());
    let loss = (logits.clone() * logits * weight).mean();
    cases.assert_close("train.loss", loss.clone().inner(), 1e-4);
    let all = GradientsParams::from_grads(loss.backward(), &model.network);
    let found = gradients(&model.network, &all);
    assert_eq!(found.len(), all.len(), "each gradient belongs to a tensor of the ladder");

    let names: Vec<_> = found.keys().cloned().collect();
    let mut trained: Vec<_> =
        model.network.trained_tensors().into_iter().map(|(name, _)| name).collect();
    trained.sort();
    let tuning = model.config().tuning;
    assert_eq!(names, trained, "{tuning:?}");

    for (name, actual) in &found {
        // A key's bias shifts all scores of a query by the same amount, so its gradient is zero
        // except for rounding. It is compared on the scale of the key's weights.
        let scale = name.replace("k_proj.bias", "k_proj.weight");
        let expected = cases.data(&format!("grad.{name}"));
        let error =
            largest_difference(actual, &expected) / largest(&cases.data(&format!("grad.{scale}")));
        assert!(error <= 1e-4, "{tuning:?}, {name}: relative error {error:.2e}");
    }
}

const TUNINGS: [DecoderTuning; 3] =
    [DecoderTuning::Upscaling, DecoderTuning::UpscalingAndHeads, DecoderTuning::Full];

#[test]
fn trained_tensors_have_pytorchs_gradients_and_others_have_none() {
    let device = Device::flex().autodiff();
    let cases = Cases::open("ladder_tiny");
    for tuning in TUNINGS {
        let model = ladder_model(&cases, &config().with_tuning(tuning), &device);
        check_step(&model, &cases, model.forward(cases.tensor("image", &device)).logits);
    }
}

#[test]
fn a_ladder_over_a_tiny_vit_has_pytorchs_gradients() {
    let device = Device::flex().autodiff();
    let cases = Cases::open("ladder_tiny_vit");
    for tuning in TUNINGS {
        let model = tiny_vit_model(&cases, tuning, &device);
        let embedding = cases.tensor("embedding", &device);
        let prediction = model.network.forward(cases.tensor("image", &device), Some(embedding));
        check_step(&model, &cases, prediction.logits);
    }
}

#[test]
fn a_true_ladder_has_pytorchs_predictions_and_gradients() {
    let cases = Cases::open("true_ladder");
    // The kernels do not support gradient checkpointing, so that device uses Burn's operations.
    let burns = Device::flex().autodiff().gradient_checkpointing();
    for device in [Device::flex().autodiff(), burns] {
        let config = config().with_true_ladder();
        let model = ladder_model(&cases, &config.clone().with_tuning(DecoderTuning::Full), &device);
        let image = cases.tensor::<4>("image", &device);
        cases.assert_close("features", model.foundation.embed(image.clone()), 1e-5);
        let evaluated = model.valid().forward(image.clone().inner()).logits;
        cases.assert_close("logits.evaluation", evaluated, 3e-5);
        check_step(&model, &cases, model.forward(image).logits);
    }
}

#[test]
fn the_published_model_has_2_856_737_trained_parameters() {
    let device = Device::flex().autodiff();
    // The number does not depend on the size of the input, so a small one suffices.
    let config = SamLstConfig::vit_b(9).with_input_size(32);
    let model = config.init(&device).expect("a valid configuration");

    let image = Tensor::ones([1, 3, 32, 32], &device);
    let loss = model.forward(image).logits.powf_scalar(2.0).mean();
    let found =
        gradients(&model.network, &GradientsParams::from_grads(loss.backward(), &model.network));
    let sum = |prefix: &str| -> usize {
        found
            .iter()
            .filter(|(name, _)| name.starts_with(prefix))
            .map(|(_, gradient)| gradient.num_elements())
            .sum()
    };
    assert_eq!(sum("side."), 2_782_784);
    assert_eq!(sum("mask_decoder.output_upscaling."), 73_952);
    assert_eq!(sum("gate.alpha"), 1);
    assert_eq!(sum(""), 2_856_737);
}

#[test]
fn autodiff_does_not_track_the_foundation() {
    let device = Device::flex().autodiff();
    let model = config().init(&device).expect("a valid configuration");
    let image = Tensor::ones([1, 3, 32, 32], &device).require_grad();
    assert!(!model.foundation.device().is_autodiff());
    let encoder = model.foundation.encoder::<SamEncoder>().expect("a ViT");
    assert!(encoder.devices().iter().all(|device| !device.is_autodiff()));
    assert!(!model.foundation.embed(image.clone()).is_autodiff());

    // Without a side network, autodiff tracks no operation on the image.
    let model = config().with_fusion(Fusion::SamOnly).init(&device).expect("a valid configuration");
    let gradients = model.forward(image.clone()).logits.mean().backward();
    assert!(image.grad(&gradients).is_none());
}

#[test]
fn each_ablation_trains_its_own_parts() {
    let device = Device::flex().autodiff();
    let model =
        config().with_fusion(Fusion::Untrained).init(&device).expect("a valid configuration");
    assert_eq!(model.network.trained_tensors(), []);
    let trained = |fusion| {
        let model = config().with_fusion(fusion).init(&device).expect("a valid configuration");
        let names = model.network.trained_tensors();
        ["side.", "gate.", "mask_decoder.output_upscaling."]
            .map(|prefix| names.iter().any(|(name, _)| name.starts_with(prefix)))
    };
    assert_eq!(trained(Fusion::Gated), [true, true, true]);
    assert_eq!(trained(Fusion::SideOnly), [true, false, true]);
    assert_eq!(trained(Fusion::SamOnly), [false, false, true]);
}
