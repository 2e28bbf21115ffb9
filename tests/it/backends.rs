//! Parity of each compiled backend with the CPU backend, whose parity with PyTorch is tested in
//! `parity`, `gradients` and `trajectory`.
//!
//! ```sh
//! cargo test --release --features wgpu --test it backends
//! ```

use crate::parity::{prompts, sam};
use crate::support::{
    Cases, config, gradients, ladder_model, largest, largest_difference, norm, norm_error,
    norm_of_difference, pattern, process_argument, relative_error, test_process, tiny_vit_model,
};
use crate::training;
use burn::module::Module;
use burn::nn::{Initializer, Linear, LinearConfig};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Int, Tensor, TensorData};
use sam_lst::devices;
use sam_lst::model::SideNetwork;
use sam_lst::sam_nn::{gelu, resize_bilinear};
use sam_lst::training::OptimizationConfig;
use sam_lst::{
    CrossEntropyDiceLossConfig, DecoderTuning, FoundationPrecision, SamLst, SamLstConfig,
};
use std::collections::BTreeMap;

/// Largest differences from the CPU.
#[derive(Clone, Copy)]
struct Tolerances {
    /// Of embeddings and logits, relative to the largest value.
    forward: f64,
    /// Of the gradient of each tensor, relative to its largest value and in the Euclidean norm.
    gradient: [f64; 2],
    /// Of the change by three steps, for each trained tensor and for all of them together, in the
    /// Euclidean norm. Where a gradient is nearly zero, Adam follows its sign, which depends on
    /// rounding.
    change: [f64; 2],
    /// Of bilinear resizing, relative to the largest value, and of its gradient.
    resizing: [f64; 2],
}

/// For another order of summation.
const SINGLE: Tolerances = Tolerances {
    forward: 5e-5,
    gradient: [5e-4; 2],
    change: [5e-3; 2],
    // GELU's approximation by tanh would differ by up to 4e-4 here.
    resizing: [5e-5, 2e-6],
};
/// For products whose factors are rounded to TF32 by CUDA's tensor cores: slightly more than twice
/// the differences that this rounding makes in PyTorch (`tests/tf32.py`).
const TENSOR_CORES: Tolerances = Tolerances {
    forward: 2.5e-2,
    gradient: [0.7, 0.3],
    change: [1.2, 0.5],
    // Two products in sequence; each factor is rounded by 2^-10 at most.
    resizing: [5e-3, 5e-3],
};

fn tolerances(name: &str) -> Tolerances {
    match name.split(':').next() {
        Some("cuda") => TENSOR_CORES,
        _ => SINGLE,
    }
}

const GPU_BACKENDS: bool = cfg!(any(
    feature = "cuda",
    feature = "rocm",
    feature = "metal",
    feature = "vulkan",
    feature = "wgpu",
    feature = "webgpu"
));

/// All devices except the CPU, by name. Without a GPU backend, prints that the test is skipped and
/// returns none.
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn gpus() -> Vec<(String, Device)> {
    if !GPU_BACKENDS {
        eprintln!("skipped: built without a GPU backend; try --features wgpu");
        return Vec::new();
    }
    let names = devices::list().into_iter().map(|device| device.name);
    let gpus = names.filter(|name| name != "cpu").map(|name| {
        let device = devices::open(&name).expect("a listed device");
        (name, device)
    });
    let gpus: Vec<_> = gpus.collect();
    assert!(!gpus.is_empty(), "no GPU was found on this machine");
    gpus
}

/// Passes the results of one computation on each GPU and on the CPU, in this order, to `check`.
fn compare<T>(compute: impl Fn(&Device) -> T, check: impl Fn(&str, Tolerances, &T, &T)) {
    let gpus = gpus();
    if gpus.is_empty() {
        return;
    }
    let expected = compute(&Device::flex());
    for (name, device) in gpus {
        check(&name, tolerances(&name), &compute(&device), &expected);
    }
}

#[track_caller]
fn assert_close(name: &str, actual: &TensorData, expected: &TensorData, tolerance: f64) {
    let error = relative_error(actual.clone(), expected.clone());
    assert!(error <= tolerance, "{name}: relative error {error:.2e}, limit {tolerance:.0e}");
}

#[track_caller]
fn assert_all_close(
    device: &str,
    actual: &BTreeMap<String, TensorData>,
    expected: &BTreeMap<String, TensorData>,
    tolerance: f64,
) {
    assert!(actual.keys().eq(expected.keys()));
    for (name, expected) in expected {
        assert_close(&format!("{device}, {name}"), &actual[name], expected, tolerance);
    }
}

#[track_caller]
fn assert_gradients_close(
    device: &str,
    actual: &BTreeMap<String, TensorData>,
    expected_gradients: &BTreeMap<String, TensorData>,
    tolerances: Tolerances,
) {
    assert!(actual.keys().eq(expected_gradients.keys()));
    for (name, expected) in expected_gradients {
        // The gradient of a key's bias is zero except for rounding; see `gradients`.
        let scale = &expected_gradients[&name.replace("k_proj.bias", "k_proj.weight")];
        let largest_error = largest_difference(&actual[name], expected) / largest(scale);
        let norm_error = norm_of_difference(&actual[name], expected) / norm(scale);
        let [largest_limit, norm_limit] = tolerances.gradient;
        assert!(
            largest_error <= largest_limit && norm_error <= norm_limit,
            "{device}, gradient of {name}: relative error {largest_error:.2e} of the largest \
             value, {norm_error:.2e} in the norm"
        );
    }
}

fn labels(device: &Device, [batch, size]: [usize; 2]) -> Tensor<3, Int> {
    let classes: Vec<i32> =
        (0..batch * size * size).map(|i| (i / 7 % 13 * (i / size % 5) % 9) as i32).collect();
    Tensor::<1, Int>::from_ints(classes.as_slice(), device).reshape([batch, size, size])
}

/// The fixtures' model and images.
fn model(tuning: DecoderTuning, device: &Device) -> (SamLst, Tensor<4>) {
    let cases = Cases::open("ladder_tiny");
    let model = ladder_model(&cases, &config().with_tuning(tuning), device);
    (model, cases.tensor("image", device))
}

/// Logits and losses of a training step, and all gradients.
fn step(model: &SamLst, image: &Tensor<4>) -> (BTreeMap<String, TensorData>, GradientsParams) {
    let logits = model.forward(image.clone()).logits;
    let [batch, _, size, _] = logits.dims();
    let labels = labels(&image.device().inner(), [batch, size]);
    let labels = Tensor::from_data(labels.into_data(), &image.device());
    let parts = CrossEntropyDiceLossConfig::new().init().forward(logits.clone(), labels);
    let results = [
        ("logits", logits.into_data()),
        ("loss", parts.total.clone().into_data()),
        ("cross entropy", parts.cross_entropy.into_data()),
        ("dice", parts.dice.into_data()),
    ];
    let results = results.map(|(name, data)| (name.to_owned(), data));
    let gradients = GradientsParams::from_grads(parts.total.backward(), &model.network);
    (results.into(), gradients)
}

#[test]
fn embeddings_and_logits_equal_the_cpus() {
    let compute = |device: &Device| {
        let (model, image) = model(DecoderTuning::Upscaling, device);
        let results = [
            ("embedding", model.foundation.embed(image.clone())),
            ("logits", model.forward(image).logits),
        ];
        BTreeMap::from(results.map(|(name, tensor)| (name.to_owned(), tensor.into_data())))
    };
    compare(compute, |device, tolerances, actual, expected| {
        assert_all_close(device, actual, expected, tolerances.forward);
    });
}

#[test]
fn masks_for_each_kind_of_prompt_equal_the_cpus() {
    let cases = Cases::open("sam_tiny");
    let compute = |device: &Device| {
        let sam = sam(device);
        let predict = |kind: &str| {
            let image = pattern([1, 3, 128, 128], device);
            let prediction = sam.forward(image, &prompts(&cases, kind, device));
            [prediction.logits.into_data(), prediction.iou.into_data()]
        };
        ["none", "points", "boxes", "masks", "all"].map(|kind| (kind, predict(kind)))
    };
    compare(compute, |device, tolerances, actual, expected| {
        for ((kind, actual), (_, expected)) in actual.iter().zip(expected) {
            for (actual, expected) in actual.iter().zip(expected) {
                assert_close(&format!("{device}, {kind}"), actual, expected, tolerances.forward);
            }
        }
    });
}

#[test]
fn losses_gradients_and_running_statistics_equal_the_cpus() {
    let compute = |device: &Device| {
        let (model, image) = model(DecoderTuning::Full, &device.clone().autodiff());
        let (forward, all) = step(&model, &image);
        let Some(SideNetwork::ResNet(side)) = &model.network.side else { panic!("a ResNet") };
        let side = side.valid();
        let statistics = [
            ("bn1.mean", &side.bn1.running_mean),
            ("bn1.var", &side.bn1.running_var),
            ("layer3.1.bn2.mean", &side.layer3[1].bn2.running_mean),
            ("layer3.1.bn2.var", &side.layer3[1].bn2.running_var),
        ];
        let statistics =
            statistics.map(|(name, state)| (name.to_owned(), state.value().into_data()));
        (forward, gradients(&model.network, &all), BTreeMap::from(statistics))
    };
    compare(compute, |device, tolerances, actual, expected| {
        assert_all_close(device, &actual.0, &expected.0, tolerances.forward);
        assert_all_close(device, &actual.2, &expected.2, tolerances.forward);
        assert_gradients_close(device, &actual.1, &expected.1, tolerances);
    });
}

#[test]
fn a_ladder_over_a_tiny_vit_equals_the_cpus() {
    let cases = Cases::open("ladder_tiny_vit");
    let compute = |device: &Device| {
        let model = tiny_vit_model(&cases, DecoderTuning::Full, &device.clone().autodiff());
        let image = cases.tensor::<4>("image", &device.clone().autodiff());
        let embedding = model.foundation.embed(image.clone()).into_data();
        let (mut forward, all) = step(&model, &image);
        forward.insert("embedding".to_owned(), embedding);
        (forward, gradients(&model.network, &all))
    };
    compare(compute, |device, tolerances, actual, expected| {
        assert_all_close(device, &actual.0, &expected.0, tolerances.forward);
        assert_gradients_close(device, &actual.1, &expected.1, tolerances);
    });
}

#[test]
fn three_training_steps_equal_the_cpus() {
    let compute = |device: &Device| {
        let (mut model, image) = model(DecoderTuning::Upscaling, &device.clone().autodiff());
        let optimization = OptimizationConfig::released();
        let mut optimizer = optimization.optimizer.init();
        let mut losses = Vec::new();
        let before = trained_tensors(&model);
        for _ in 0..3 {
            let (mut forward, gradients) = step(&model, &image);
            losses.push(forward.remove("loss").expect("a loss"));
            model.network = optimizer.step(1e-4, model.network, gradients);
        }
        let mut change = BTreeMap::new();
        for (name, after) in trained_tensors(&model) {
            let pairs = after.iter::<f64>().zip(before[&name].iter::<f64>());
            let values: Vec<f64> = pairs.map(|(after, before)| after - before).collect();
            let shape = after.shape().clone();
            change.insert(name, TensorData::new(values, shape));
        }
        (losses, change)
    };
    compare(compute, |device, tolerances, actual, expected| {
        for (step, (actual, expected)) in actual.0.iter().zip(&expected.0).enumerate() {
            let name = format!("{device}, loss of step {step}");
            assert_close(&name, actual, expected, tolerances.forward);
        }
        assert!(actual.1.keys().eq(expected.1.keys()) && actual.1.len() > 20);
        let [tensor_limit, total_limit] = tolerances.change;
        let [mut difference, mut total] = [0.0, 0.0];
        for (name, expected) in &expected.1 {
            let error = norm_error(&actual.1[name], expected);
            assert!(error <= tensor_limit, "{device}, change of {name}: {error:.2e} of its norm");
            difference += norm_of_difference(&actual.1[name], expected).powi(2);
            total += norm(expected).powi(2);
        }
        let error = (difference / total).sqrt();
        assert!(error <= total_limit, "{device}, change of all tensors: {error:.2e} of its norm");
    });
}

/// A layer of zeros: random weights would change the initial weights of a model in another test.
fn linear(inputs: usize, outputs: usize, bias: bool, device: &Device) -> Linear {
    LinearConfig::new(inputs, outputs)
        .with_bias(bias)
        .with_initializer(Initializer::Zeros)
        .init(device)
}

/// Optimizer steps with given gradients compute no products, so their tolerance is small on every
/// backend.
#[test]
fn optimizer_steps_with_given_gradients_equal_the_cpus() {
    let compute = |device: &Device| {
        let device = device.clone().autodiff();
        let tensor = |rows: usize| pattern([1, 1, rows, 6], &device).reshape([rows, 6]) - 0.5;
        let mut layer = linear(9, 6, false, &device);
        layer.weight = layer.weight.map(|_| tensor(9));
        let mut optimizer = OptimizationConfig::released().optimizer.init();
        for step in 1..=5 {
            let mut gradients = GradientsParams::new();
            let gradient = tensor(9 + step).narrow(0, step, 9).inner();
            gradients.register(layer.weight.id, gradient);
            layer = optimizer.step(1e-3, layer, gradients);
        }
        layer.weight.val().into_data()
    };
    compare(compute, |device, _, actual, expected| {
        assert_close(device, actual, expected, 1e-6);
    });
}

/// The values of the trained tensors by name.
fn trained_tensors(model: &SamLst) -> BTreeMap<String, TensorData> {
    let names: Vec<String> =
        model.network.trained_tensors().into_iter().map(|(name, _)| name).collect();
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("ladder.safetensors");
    model.save_network(&path).expect("save the ladder");
    let saved = Cases::read(&path);
    names.into_iter().map(|name| (name.clone(), saved.data(&name))).collect()
}

/// Backends have different random numbers, but each has the same ones for a seed.
#[test]
fn the_seed_determines_initial_weights() {
    for (name, device) in gpus() {
        let init = |seed| {
            let model = config().with_seed(seed).init(&device).expect("a valid configuration");
            let folder = tempfile::tempdir().expect("temporary folder");
            let file = folder.path().join("ladder.safetensors");
            model.save_network(&file).expect("save the ladder");
            let foundation = model.foundation.weights_sha256().to_owned();
            (foundation, Cases::read(&file).data("side.conv1.weight"))
        };
        assert_eq!(init(1), init(1), "{name}");
        let ((foundation, side), (other_foundation, other_side)) = (init(1), init(2));
        assert!(foundation != other_foundation && side != other_side, "{name}");
    }
}

/// Tests the foundation in half precision on every device, the CPU included.
#[test]
fn half_precision_is_close_to_single_precision() {
    let tolerances = [
        // Rounding by 2^-11 and 2^-8 in a network of four blocks.
        (FoundationPrecision::F16, 5e-3),
        (FoundationPrecision::BF16, 4e-2),
    ];
    let mut devices = vec![("cpu".to_owned(), Device::flex())];
    devices.extend(gpus());
    for (name, device) in devices {
        let (model, image) = model(DecoderTuning::Upscaling, &device);
        let expected = model.foundation.embed(image.clone()).into_data();
        for (precision, tolerance) in tolerances {
            let mut rounded = model.clone();
            if rounded.foundation.set_precision(precision).is_err() {
                assert_ne!(name, "cpu", "the CPU supports {precision:?}");
                continue;
            }
            assert_eq!(rounded.foundation.precision(), precision);
            let hash = |model: &SamLst| model.foundation.weights_sha256().to_owned();
            assert_eq!(hash(&rounded), hash(&model), "the hash is that of the loaded weights");
            let actual = rounded.foundation.embed(image.clone()).into_data();
            assert_eq!(actual.dtype(), expected.dtype(), "the ladder computes in 32 bits");
            let error = norm_error(&actual, &expected);
            assert!(
                (tolerance / 100.0..tolerance).contains(&error),
                "{name}, {precision:?}: relative error {error:.2e} in the norm"
            );
        }
    }
}

/// Burn's GPU backends have no backward pass of bilinear interpolation, and the backward pass of
/// their GELU is that of the approximation by tanh.
#[test]
fn resizing_and_gelu_have_exact_gradients() {
    let compute = |device: &Device| {
        let device = device.clone().autodiff();
        let input = (pattern([2, 3, 5, 7], &device) * 6.0 - 3.0).require_grad();
        let weight = pattern([2, 3, 9, 4], &device);
        let output = resize_bilinear(gelu(input.clone()), [9, 4]);
        let gradients = (output.clone() * weight).sum().backward();
        let gradient = input.grad(&gradients).expect("a gradient");
        [output.into_data(), gradient.into_data()]
    };
    compare(compute, |device, tolerances, actual, expected| {
        for (index, tolerance) in tolerances.resizing.into_iter().enumerate() {
            assert_close(device, &actual[index], &expected[index], tolerance);
        }
    });
}

/// The decoder's MLPs compute small products for many masks, down to a single row: shapes for which
/// fused kernels have given wrong results.
#[test]
fn sequences_of_small_products_equal_the_cpus() {
    let compute = |device: &Device| {
        let layer = |inputs: usize, outputs: usize| {
            let mut layer = linear(inputs, outputs, true, device);
            let weight = pattern([1, 1, inputs, outputs], device).reshape([inputs, outputs]);
            let bias = pattern([1, 1, 1, outputs], device).reshape([outputs]);
            layer.weight = layer.weight.map(|_| weight - 0.5);
            layer.bias = layer.bias.map(|old| old.map(|_| bias - 0.5));
            layer
        };
        let hidden = layer(6, 16).forward(pattern([5, 3, 1, 6], device));
        let hidden = layer(16, 16).forward(burn::tensor::activation::relu(hidden));
        let output = layer(16, 1).forward(burn::tensor::activation::relu(hidden));
        output.into_data()
    };
    compare(compute, |device, tolerances, actual, expected| {
        assert_close(device, actual, expected, tolerances.forward);
    });
}

/// A run on the CPU and a GPU has the losses of a run on the CPU.
#[test]
fn the_cpu_and_a_gpu_share_a_run() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dataset = training::dataset(folder.path());
    let compute = |device: &Device| {
        let mut config = training::config();
        config.epochs = 1;
        config.batch_size = 3;
        config.accumulated_batches = 2;
        config.optimization.schedule.base = 1e-4;
        let separate = tempfile::tempdir_in(folder.path()).expect("temporary folder");
        let folders = training::folders(separate.path(), "run");
        let mut devices = vec![Device::flex()];
        if *device != Device::flex() {
            devices.push(device.clone());
        }
        let finished = training::run_on(&devices, &config, &dataset, &folders);
        let (_, events) = finished.expect("the run finishes");
        assert_eq!(events.plan().devices, devices.len());
        let losses = events.losses();
        let count = losses.len();
        TensorData::new(losses, [count])
    };
    compare(compute, |device, tolerances, actual, expected| {
        assert_eq!(expected.num_elements(), 3);
        assert_close(device, actual, expected, tolerances.forward);
    });
}

/// Training needs no more memory after fifty steps than after ten. It is measured in a separate
/// process, because a device counts the memory of all threads, those of other tests included.
#[test]
fn memory_use_does_not_grow() {
    for (name, _) in gpus() {
        let mut process = test_process("backends::process_that_measures_memory", name);
        let output = process.output().expect("start the process");
        let printed = [output.stdout, output.stderr].concat();
        let printed = String::from_utf8_lossy(&printed);
        // If no test has this name, the process succeeds without running one.
        assert!(output.status.success() && printed.contains("1 passed"), "{printed}");
    }
}

#[test]
#[ignore = "started by memory_use_does_not_grow"]
fn process_that_measures_memory() {
    let Some(name) = process_argument() else {
        return;
    };
    let name = name.to_string_lossy();
    let device = devices::open(&name).expect("a listed device");
    let (mut model, image) = model(DecoderTuning::Upscaling, &device.clone().autodiff());
    let mut optimizer = OptimizationConfig::released().optimizer.init();
    let mut measurements = Vec::new();
    for steps in 1..=50 {
        let (_, gradients) = step(&model, &image);
        model.network = optimizer.step(1e-4, model.network, gradients);
        if steps == 10 || steps == 50 {
            device.sync().expect("a working device");
            let usage = device.memory_pool_usage().expect("a GPU counts its memory");
            measurements.push(usage);
        }
    }
    let bytes = |index: usize| measurements[index].bytes_in_use;
    assert!(
        bytes(1) <= bytes(0) + bytes(0) / 10,
        "{name}: {} bytes after 10 steps, {} after 50",
        bytes(0),
        bytes(1)
    );
}

/// Tests the published sizes:
///
/// ```sh
/// cargo test --release --features cuda --test it backends -- --ignored
/// ```
#[test]
#[ignore = "minutes on a CPU; run it on a machine with a GPU"]
fn the_published_model_equals_the_cpus() {
    let compute = |device: &Device| {
        // Initialised on the CPU, because backends have different random numbers.
        let model = SamLstConfig::vit_b(9).init(&Device::flex()).expect("a valid configuration");
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("ladder.safetensors");
        model.save_network(&path).expect("save the ladder");
        let image = pattern([1, 3, 512, 512], device);
        let image = Tensor::from_data(image.into_data(), &device.clone().autodiff());
        let foundation = model.foundation.to_device(device);
        let on_device = device.clone().autodiff();
        let mut moved = SamLstConfig::vit_b(9).init(&on_device).expect("a valid configuration");
        moved.foundation = foundation;
        moved.load_network(&path).expect("load the ladder");
        let embedding = moved.foundation.embed(image.clone()).into_data();
        let logits = moved.forward(image).logits;
        let loss = (logits.clone() * logits.clone()).mean();
        let all = GradientsParams::from_grads(loss.backward(), &moved.network);
        let forward = [("embedding", embedding), ("logits", logits.into_data())];
        (
            BTreeMap::from(forward.map(|(name, data)| (name.to_owned(), data))),
            gradients(&moved.network, &all),
        )
    };
    compare(compute, |device, tolerances, actual, expected| {
        assert_all_close(device, &actual.0, &expected.0, tolerances.forward);
        assert_gradients_close(device, &actual.1, &expected.1, tolerances);
    });
}
