//! What trains, and that its gradients are PyTorch's.

use crate::parity::ladder_model;
use crate::support::{Cases, config, largest, largest_difference};
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};
use sam_lst::weights::official_name;
use sam_lst::{DecoderTuning, Fusion, Ladder, SamLst, SamLstConfig};
use std::collections::BTreeMap;

/// The gradients that a backward pass left, by official name.
fn gradients(ladder: &Ladder, gradients: &GradientsParams) -> BTreeMap<String, TensorData> {
    struct Collect<'a> {
        path: Vec<String>,
        gradients: &'a GradientsParams,
        found: BTreeMap<String, TensorData>,
    }
    impl ModuleVisitor for Collect<'_> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.into());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let Some(gradient) = self.gradients.get::<D>(param.id) else {
                return;
            };
            let name = official_name(&self.path.join("."));
            // Burn stores a linear layer transposed.
            let linear = D == 2
                && !name.ends_with("mask_tokens.weight")
                && !name.ends_with("iou_token.weight");
            let gradient = if linear {
                gradient.swap_dims(0, 1)
            } else {
                gradient
            };
            self.found.insert(name, gradient.into_data());
        }
    }
    let mut collect = Collect {
        path: Vec::new(),
        gradients,
        found: BTreeMap::new(),
    };
    ladder.visit(&mut collect);
    collect.found
}

fn step(model: &SamLst, cases: &Cases, device: &Device) -> (GradientsParams, usize) {
    let logits = model.forward(cases.tensor("image", device)).logits;
    cases.assert_close("train.logits", logits.clone().inner(), 3e-5);
    let weight = cases.tensor::<4>("loss_weight", device);
    let loss = (logits.clone() * logits * weight).mean();
    cases.assert_close("train.loss", loss.clone().inner(), 1e-4);
    let gradients = GradientsParams::from_grads(loss.backward(), &model.ladder);
    let count = gradients.len();
    (gradients, count)
}

#[test]
fn each_trained_tensor_has_pytorchs_gradient_and_no_other_has_one() {
    let device = Device::flex().autodiff();
    let cases = Cases::open("ladder_tiny");
    for tuning in [
        DecoderTuning::Upscaling,
        DecoderTuning::UpscalingAndHeads,
        DecoderTuning::Full,
    ] {
        let model = ladder_model(&cases, &config().with_tuning(tuning), &device);
        let (all, count) = step(&model, &cases, &device);
        let found = gradients(&model.ladder, &all);
        assert_eq!(
            found.len(),
            count,
            "every gradient belongs to a tensor of the ladder"
        );

        let names: Vec<_> = found.keys().cloned().collect();
        let mut trained: Vec<_> = model
            .ladder
            .trained_tensors()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        trained.sort();
        assert_eq!(names, trained, "{tuning:?}");

        for (name, ours) in &found {
            // A key's bias shifts all scores of a query alike, so its gradient is zero but for rounding: it is compared
            // on the scale of the key's weights.
            let scale = name.replace("k_proj.bias", "k_proj.weight");
            let theirs = cases.data(&format!("grad.{name}"));
            let error =
                largest_difference(ours, &theirs) / largest(&cases.data(&format!("grad.{scale}")));
            assert!(
                error <= 1e-4,
                "{tuning:?}, {name}: relative error {error:.2e}"
            );
        }
    }
}

#[test]
fn the_published_model_trains_exactly_2_856_737_values() {
    let device = Device::flex().autodiff();
    // The number does not depend on the input's size, so the smallest will do.
    let config = SamLstConfig::vit_b(9).with_input_size(32);
    let model = config.init(&device).expect("valid");

    let image = Tensor::ones([1, 3, 32, 32], &device);
    let loss = model.forward(image).logits.powf_scalar(2.0).mean();
    let found = gradients(
        &model.ladder,
        &GradientsParams::from_grads(loss.backward(), &model.ladder),
    );
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
fn the_foundation_stays_off_the_tape() {
    let device = Device::flex().autodiff();
    let model = config().init(&device).expect("valid");
    let image = Tensor::ones([1, 3, 32, 32], &device).require_grad();
    assert!(
        model
            .foundation
            .encoder()
            .devices()
            .iter()
            .all(|device| !device.is_autodiff())
    );
    assert!(!model.foundation.embed(image.clone()).is_autodiff());

    // Without a side network nothing that the image goes through is on the tape.
    let model = config()
        .with_fusion(Fusion::SamOnly)
        .init(&device)
        .expect("valid");
    let gradients = model.forward(image.clone()).logits.mean().backward();
    assert!(image.grad(&gradients).is_none());
}

#[test]
fn nothing_trains_in_the_untrained_ablation() {
    let device = Device::flex().autodiff();
    let model = config()
        .with_fusion(Fusion::Untrained)
        .init(&device)
        .expect("valid");
    assert_eq!(model.ladder.trained_tensors(), []);
    let trained = |fusion| {
        let model = config().with_fusion(fusion).init(&device).expect("valid");
        let names = model.ladder.trained_tensors();
        ["side.", "gate.", "mask_decoder.output_upscaling."]
            .map(|prefix| names.iter().any(|(name, _)| name.starts_with(prefix)))
    };
    assert_eq!(trained(Fusion::Gated), [true, true, true]);
    assert_eq!(trained(Fusion::SideOnly), [true, false, true]);
    assert_eq!(trained(Fusion::SamOnly), [false, false, true]);
}
