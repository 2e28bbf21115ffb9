//! Parity of the losses with PyTorch, and finite results for all finite logits.

use crate::support::Cases;
use burn::tensor::activation::softmax;
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

/// `absent_classes = false`: the mean over the classes with a pixel, of which only these have gradients.
#[test]
fn classes_without_a_pixel_can_be_left_out() {
    let device = Device::flex().autodiff();
    let values: Vec<f32> = (0..2 * 4 * 9).map(|i| ((i * 37 % 19) as f32 - 9.0) / 5.0).collect();
    let logits = Tensor::<1>::from_floats(values.as_slice(), &device).reshape([2, 4, 3, 3]);
    // Classes 0 and 2 only.
    let labels: Vec<i32> = (0..18).map(|i| if i % 3 == 0 { 2 } else { 0 }).collect();
    let labels = Tensor::<1, Int>::from_ints(labels.as_slice(), &device).reshape([2, 3, 3]);
    let smoothing = 1e-5;
    let probabilities = softmax(logits.clone(), 1);
    let of_class = |class: i64| {
        let target = labels.clone().equal_elem(class).float().unsqueeze_dim::<4>(1);
        let of_class = probabilities.clone().narrow(1, class as usize, 1);
        let common = (of_class.clone() * target.clone()).sum() * 2.0 + smoothing;
        1.0 - common / (of_class.square().sum() + target.sum() + smoothing)
    };
    let expected: Tensor<1> = (of_class(0) + of_class(2)) / 2.0;
    let loss = SoftDiceLossConfig::new().with_absent_classes(false).init();
    let found = loss.forward(logits.clone(), labels.clone());
    let difference = (found - expected).abs().into_scalar::<f32>();
    assert!(difference < 1e-6, "{difference}");
    let parts = CrossEntropyDiceLossConfig::new().with_absent_classes(false).init();
    let dice = parts.forward(logits.clone(), labels.clone()).dice;
    let difference = (dice - loss.forward(logits.clone(), labels)).abs().into_scalar::<f32>();
    assert_eq!(difference, 0.0);
    // Without a pixel that counts, the loss is 0.
    let options = ClassOptions::new().with_ignored_label(Some(9));
    let ignored = Tensor::<3, Int>::full([2, 3, 3], 9, &device);
    let loss = SoftDiceLossConfig::new().with_options(options).with_absent_classes(false).init();
    assert_eq!(loss.forward(logits, ignored).into_scalar::<f32>(), 0.0);
}
