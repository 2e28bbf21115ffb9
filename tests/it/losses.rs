//! Parity of the losses with PyTorch, and finite results for all finite logits.

use crate::support::Cases;
use burn::tensor::{Device, Int, Tensor};
use sam_lst::losses::{ClassOptions, CrossEntropyDiceLossConfig, LossParts, SoftDiceLossConfig};

/// Tolerance of a loss and of its gradient.
const TOLERANCE: f64 = 1e-5;

#[test]
fn values_and_gradients_equal_pytorchs() {
    let device = Device::flex().autodiff();
    let cases = Cases::open("losses");
    let weights: Vec<f32> = cases.data("class_weights").iter().collect();
    for (name, weighted, ignoring) in [
        ("plain", false, false),
        ("weighted", true, false),
        ("ignoring", false, true),
        ("both", true, true),
    ] {
        let options = ClassOptions::new()
            .with_class_weights(weighted.then(|| weights.clone()))
            .with_ignored_label(ignoring.then_some(255));
        let loss = CrossEntropyDiceLossConfig::new().with_options(options.clone()).init();
        let labels = Tensor::<3, Int>::from_data(cases.data(&format!("{name}.labels")), &device);
        let logits = || cases.tensor::<4>("logits", &device).require_grad();
        let check = |part: &str, logits: Tensor<4>, loss: Tensor<1>| {
            let gradient = logits.grad(&loss.backward()).expect("a gradient");
            cases.assert_close(&format!("{name}.{part}"), loss.inner(), TOLERANCE);
            cases.assert_close(&format!("{name}.{part}.gradient"), gradient, TOLERANCE);
        };
        for part in ["total", "cross_entropy", "dice"] {
            let input = logits();
            let parts = loss.forward(input.clone(), labels.clone());
            let value = match part {
                "total" => parts.total,
                "cross_entropy" => parts.cross_entropy,
                _ => parts.dice,
            };
            check(part, input, value);
        }
        let dice = SoftDiceLossConfig::new().with_options(options).init();
        let input = logits();
        check("dice", input.clone(), dice.forward(input, labels));
    }
}

#[test]
fn finite_logits_give_finite_losses_and_gradients() {
    let device = Device::flex().autodiff();
    let extremes = [0.0, 1e-38, 1e3, -1e3, 1e30, -1e30, f32::MAX, f32::MIN];
    let weights = Some(vec![0.0, 1.0, 0.0]);
    let settings = [
        ClassOptions::new(),
        ClassOptions::new().with_class_weights(weights),
        ClassOptions::new().with_ignored_label(Some(1)),
    ];
    for options in settings {
        let loss = CrossEntropyDiceLossConfig::new().with_options(options).init();
        for first in extremes {
            for second in extremes {
                for label in 0..3 {
                    let logits = Tensor::<1>::from_floats([first, second, 0.0], &device)
                        .reshape([1, 3, 1, 1])
                        .require_grad();
                    let label = Tensor::<3, Int>::full([1, 1, 1], label, &device);
                    let LossParts { total, .. } = loss.forward(logits.clone(), label);
                    let gradient = logits.grad(&total.backward()).expect("a gradient");
                    let finite = gradient.into_data().iter::<f32>().all(f32::is_finite)
                        && total.into_scalar::<f32>().is_finite();
                    assert!(finite, "logits {first}, {second}");
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "labels of logits [1, 3, 4, 4] must be [1, 4, 4], found [1, 4, 5]")]
fn labels_of_another_size_panic() {
    let device = Device::flex();
    CrossEntropyDiceLossConfig::new()
        .init()
        .forward(Tensor::zeros([1, 3, 4, 4], &device), Tensor::zeros([1, 4, 5], &device));
}

#[test]
#[should_panic(expected = "one weight for each of the 3 classes, found [1.0]")]
fn a_wrong_number_of_class_weights_panics() {
    let device = Device::flex();
    let options = ClassOptions::new().with_class_weights(Some(vec![1.0]));
    let loss = SoftDiceLossConfig::new().with_options(options).init();
    loss.forward(Tensor::zeros([1, 3, 4, 4], &device), Tensor::zeros([1, 4, 4], &device));
}

#[test]
#[should_panic(expected = "dice_weight must lie in [0, 1], found 1.5")]
fn a_dice_weight_above_one_panics() {
    CrossEntropyDiceLossConfig::new().with_dice_weight(1.5).init();
}
