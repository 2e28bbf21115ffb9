//! Every backend that is compiled in computes what the CPU's does, which in turn computes what PyTorch does: see `parity`,
//! `gradients` and `trajectory`.
//!
//! ```sh
//! cargo test --features wgpu --test it backends
//! ```

use crate::device::{device, devices};
use crate::parity::{prompts, sam};
use crate::support::{
    Cases, alone, argument, config, gradients, ladder_model, largest, largest_difference, norm,
    norm_error, norm_of_difference, pattern, relative_error,
};
use crate::training;
use burn::module::Module;
use burn::nn::{Initializer, Linear, LinearConfig};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Int, Tensor, TensorData};
use sam_lst::rooms::sam_nn::{gelu, resize_bilinear};
use sam_lst::{
    CrossEntropyDiceLossConfig, DecoderTuning, Foundation, FoundationPrecision, OptimizationConfig,
    PixelScale, SamLst, SamLstConfig,
};
use std::collections::BTreeMap;

/// How far a backend may be from the CPU.
#[derive(Clone, Copy)]
struct Tolerances {
    /// Embeddings and logits, relative to the largest value.
    forward: f64,
    /// Each tensor's gradient, relative to its largest value and in the Euclidean norm.
    gradient: [f64; 2],
    /// The change that three steps make, of each tensor and of all that train, in the Euclidean norm. Of a gradient that is
    /// nearly zero, Adam takes the sign, which rounding decides.
    change: [f64; 2],
    /// Bilinear resizing, relative to the largest value, and its gradient.
    resizing: [f64; 2],
}

/// Another order of summation.
const SINGLE: Tolerances = Tolerances {
    forward: 5e-5,
    gradient: [5e-4; 2],
    change: [5e-3; 2],
    // The approximation by tanh is wrong by up to 4e-4 here.
    resizing: [5e-5, 2e-6],
};
/// Products whose factors are rounded to TF32, as CUDA's matrix units take them: a little more than twice what PyTorch is then
/// from itself
/// (`tests/tf32.py`).
const TENSOR_CORES: Tolerances = Tolerances {
    forward: 2.5e-2,
    gradient: [0.7, 0.3],
    change: [1.2, 0.5],
    // Two products, one after the other, each of whose factors is short by 2^-10 at most.
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

/// Every device but the CPU, by name; none, which is said, where the tests are built without a backend for one.
#[expect(clippy::print_stderr, reason = "what is skipped is said")]
fn gpus() -> Vec<(String, Device)> {
    if !GPU_BACKENDS {
        eprintln!("GPUs are skipped: built without a backend for them; try --features wgpu");
        return Vec::new();
    }
    let found = devices().into_iter().map(|listed| listed.name);
    let found = found.filter(|name| name != "cpu").map(|name| {
        let opened = device(&name).expect("a device that was listed");
        (name, opened)
    });
    let found: Vec<_> = found.collect();
    assert!(!found.is_empty(), "no GPU was found on this machine");
    found
}

/// Compares what each backend makes of one computation with what the CPU makes of it.
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
fn assert_close(what: &str, ours: &TensorData, expected: &TensorData, at_most: f64) {
    let error = relative_error(ours.clone(), expected.clone());
    assert!(
        error <= at_most,
        "{what}: relative error {error:.2e}, at most {at_most:.0e}"
    );
}

#[track_caller]
fn assert_all_close(
    who: &str,
    ours: &BTreeMap<String, TensorData>,
    expected: &BTreeMap<String, TensorData>,
    at_most: f64,
) {
    assert!(ours.keys().eq(expected.keys()));
    for (name, expected) in expected {
        assert_close(&format!("{who}, {name}"), &ours[name], expected, at_most);
    }
}

#[track_caller]
fn assert_gradients_close(
    who: &str,
    ours: &BTreeMap<String, TensorData>,
    expected: &BTreeMap<String, TensorData>,
    tolerances: Tolerances,
) {
    assert!(ours.keys().eq(expected.keys()));
    for (tensor, theirs) in expected {
        // Zero but for rounding, see `gradients`.
        let scale = &expected[&tensor.replace("k_proj.bias", "k_proj.weight")];
        let of_largest = largest_difference(&ours[tensor], theirs) / largest(scale);
        let of_norm = norm_of_difference(&ours[tensor], theirs) / norm(scale);
        let [largest_at_most, norm_at_most] = tolerances.gradient;
        assert!(
            of_largest <= largest_at_most && of_norm <= norm_at_most,
            "{who}, gradient of {tensor}: {of_largest:.2e} of its largest value, {of_norm:.2e} of its norm"
        );
    }
}

fn labels(device: &Device, [batch, size]: [usize; 2]) -> Tensor<3, Int> {
    let classes: Vec<i32> = (0..batch * size * size)
        .map(|i| (i / 7 % 13 * (i / size % 5) % 9) as i32)
        .collect();
    Tensor::<1, Int>::from_ints(classes.as_slice(), device).reshape([batch, size, size])
}

/// The fixtures' model and its images.
fn model(tuning: DecoderTuning, device: &Device) -> (SamLst, Tensor<4>) {
    let cases = Cases::open("ladder_tiny");
    let model = ladder_model(&cases, &config().with_tuning(tuning), device);
    (model, cases.tensor("image", device))
}

/// Logits and loss of a step, then every gradient.
fn step(model: &SamLst, image: &Tensor<4>) -> (BTreeMap<String, TensorData>, GradientsParams) {
    let logits = model.forward(image.clone()).logits;
    let [batch, _, size, _] = logits.dims();
    let labels = labels(&image.device().inner(), [batch, size]);
    let labels = Tensor::from_data(labels.into_data(), &image.device());
    let parts = CrossEntropyDiceLossConfig::new()
        .init()
        .forward(logits.clone(), labels);
    let found = [
        ("logits", logits.into_data()),
        ("loss", parts.total.clone().into_data()),
        ("cross entropy", parts.cross_entropy.into_data()),
        ("dice", parts.dice.into_data()),
    ];
    let found = found.map(|(name, data)| (name.to_owned(), data));
    let gradients = GradientsParams::from_grads(parts.total.backward(), &model.ladder);
    (found.into(), gradients)
}

#[test]
fn embeddings_and_logits() {
    let compute = |device: &Device| {
        let (model, image) = model(DecoderTuning::Upscaling, device);
        let named = [
            ("embedding", model.foundation.embed(image.clone())),
            ("logits", model.forward(image).logits),
        ];
        BTreeMap::from(named.map(|(name, tensor)| (name.to_owned(), tensor.into_data())))
    };
    compare(compute, |name, tolerances, ours, expected| {
        assert_all_close(name, ours, expected, tolerances.forward);
    });
}

#[test]
fn masks_of_points_boxes_and_masks() {
    let cases = Cases::open("sam_tiny");
    let compute = |device: &Device| {
        let sam = sam(device);
        let of = |kind: &str| {
            let image = pattern([1, 3, 128, 128], device);
            let prediction = sam.forward(image, &prompts(&cases, kind, device));
            [prediction.logits.into_data(), prediction.iou.into_data()]
        };
        ["none", "points", "boxes", "masks", "all"].map(|kind| (kind, of(kind)))
    };
    compare(compute, |name, tolerances, ours, expected| {
        for ((kind, ours), (_, expected)) in ours.iter().zip(expected) {
            for (ours, expected) in ours.iter().zip(expected) {
                assert_close(
                    &format!("{name}, {kind}"),
                    ours,
                    expected,
                    tolerances.forward,
                );
            }
        }
    });
}

#[test]
fn loss_gradients_and_running_statistics() {
    let compute = |device: &Device| {
        let (model, image) = model(DecoderTuning::Full, &device.clone().autodiff());
        let (forward, all) = step(&model, &image);
        let side = model.ladder.side.as_ref().expect("a side network").valid();
        let statistics = [
            ("bn1.mean", &side.bn1.running_mean),
            ("bn1.var", &side.bn1.running_var),
            ("layer3.1.bn2.mean", &side.layer3[1].bn2.running_mean),
            ("layer3.1.bn2.var", &side.layer3[1].bn2.running_var),
        ];
        let statistics =
            statistics.map(|(name, state)| (name.to_owned(), state.value().into_data()));
        (
            forward,
            gradients(&model.ladder, &all),
            BTreeMap::from(statistics),
        )
    };
    compare(compute, |name, tolerances, ours, expected| {
        assert_all_close(name, &ours.0, &expected.0, tolerances.forward);
        assert_all_close(name, &ours.2, &expected.2, tolerances.forward);
        assert_gradients_close(name, &ours.1, &expected.1, tolerances);
    });
}

#[test]
fn three_steps_of_training() {
    let compute = |device: &Device| {
        let (mut model, image) = model(DecoderTuning::Upscaling, &device.clone().autodiff());
        let optimization = OptimizationConfig::released();
        let mut optimizer = optimization.optimizer.init();
        let mut losses = Vec::new();
        let before = trained(&model);
        for _ in 0..3 {
            let (mut forward, gradients) = step(&model, &image);
            losses.push(forward.remove("loss").expect("a loss"));
            model.ladder = optimizer.step(1e-4, model.ladder, gradients);
        }
        let mut change = BTreeMap::new();
        for (name, after) in trained(&model) {
            let pairs = after.iter::<f64>().zip(before[&name].iter::<f64>());
            let values: Vec<f64> = pairs.map(|(after, before)| after - before).collect();
            let shape = after.shape().clone();
            change.insert(name, TensorData::new(values, shape));
        }
        (losses, change)
    };
    compare(compute, |name, tolerances, ours, expected| {
        for (step, (ours, expected)) in ours.0.iter().zip(&expected.0).enumerate() {
            let what = format!("{name}, loss of step {step}");
            assert_close(&what, ours, expected, tolerances.forward);
        }
        assert!(ours.1.keys().eq(expected.1.keys()) && ours.1.len() > 20);
        let [each_at_most, all_at_most] = tolerances.change;
        let [mut difference, mut all] = [0.0, 0.0];
        for (tensor, expected) in &expected.1 {
            let error = norm_error(&ours.1[tensor], expected);
            assert!(
                error <= each_at_most,
                "{name}, change of {tensor}: {error:.2e} of its norm"
            );
            difference += norm_of_difference(&ours.1[tensor], expected).powi(2);
            all += norm(expected).powi(2);
        }
        let error = (difference / all).sqrt();
        assert!(
            error <= all_at_most,
            "{name}, what three steps change: {error:.2e} of its norm"
        );
    });
}

/// A layer of zeros: a draw would disturb the initial weights of another test's model.
fn linear(inputs: usize, outputs: usize, bias: bool, device: &Device) -> Linear {
    LinearConfig::new(inputs, outputs)
        .with_bias(bias)
        .with_initializer(Initializer::Zeros)
        .init(device)
}

/// With the same gradients a step is the same on every backend: no product has a part in it.
#[test]
fn steps_with_given_gradients() {
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
    compare(compute, |name, _, ours, expected| {
        assert_close(name, ours, expected, 1e-6);
    });
}

/// What trains, by name.
fn trained(model: &SamLst) -> BTreeMap<String, TensorData> {
    let names: Vec<String> = model
        .ladder
        .trained_tensors()
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("ladder.safetensors");
    model.save_ladder(&path).expect("room");
    let saved = Cases::read(&path);
    names
        .into_iter()
        .map(|name| (name.clone(), saved.data(&name)))
        .collect()
}

/// Each backend has its own random numbers, but the same ones for a seed.
#[test]
fn the_seed_decides_initial_weights() {
    for (name, device) in gpus() {
        let init = |seed| {
            let model = config().with_seed(seed).init(&device).expect("valid");
            let folder = tempfile::tempdir().expect("a folder");
            let file = folder.path().join("ladder.safetensors");
            model.save_ladder(&file).expect("room");
            let foundation = model.foundation.weights_sha256().to_owned();
            (foundation, Cases::read(&file).data("side.conv1.weight"))
        };
        assert_eq!(init(1), init(1), "{name}");
        let ((foundation, side), (other_foundation, other_side)) = (init(1), init(2));
        assert!(
            foundation != other_foundation && side != other_side,
            "{name}"
        );
    }
}

/// The foundation in half precision, on the CPU too.
#[test]
fn half_precision_is_near_single() {
    let half = [
        // Roundings of 2^-11 and 2^-8 in a network of four blocks.
        (FoundationPrecision::F16, 5e-3),
        (FoundationPrecision::BF16, 4e-2),
    ];
    let mut devices = vec![("cpu".to_owned(), Device::flex())];
    devices.extend(gpus());
    for (name, device) in devices {
        let (model, image) = model(DecoderTuning::Upscaling, &device);
        let expected = model.foundation.embed(image.clone()).into_data();
        for (precision, at_most) in half {
            let mut rounded = model.clone();
            if rounded.foundation.set_precision(precision).is_err() {
                assert_ne!(name, "cpu", "the CPU computes in {precision:?}");
                continue;
            }
            assert_eq!(rounded.foundation.precision(), precision);
            let hash = |model: &SamLst| model.foundation.weights_sha256().to_owned();
            assert_eq!(
                hash(&rounded),
                hash(&model),
                "the weights are the same file's"
            );
            let ours = rounded.foundation.embed(image.clone()).into_data();
            assert_eq!(
                ours.dtype(),
                expected.dtype(),
                "the ladder computes in 32 bits"
            );
            let error = norm_error(&ours, &expected);
            assert!(
                (at_most / 100.0..at_most).contains(&error),
                "{name}, {precision:?}: {error:.2e} of the norm"
            );
        }
    }
}

/// Burn's GPU backends have no backward pass of bilinear interpolation, and that of their GELU is the approximation's by tanh.
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
    compare(compute, |name, tolerances, ours, expected| {
        for (index, at_most) in tolerances.resizing.into_iter().enumerate() {
            assert_close(name, &ours[index], &expected[index], at_most);
        }
    });
}

/// The decoder's heads are small products for many masks, down to one row: a shape that fused kernels once got wrong.
#[test]
fn small_products_in_a_row() {
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
    compare(compute, |name, tolerances, ours, expected| {
        assert_close(name, ours, expected, tolerances.forward);
    });
}

/// A run whose steps the CPU and a GPU share is the CPU's own.
#[test]
fn a_gpu_beside_the_cpu() {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = training::dataset(folder.path());
    let compute = |device: &Device| {
        let mut config = training::config();
        config.epochs = 1;
        config.batch_size = 3;
        config.accumulated_batches = 2;
        config.optimization.schedule.base = 1e-4;
        let own = tempfile::tempdir_in(folder.path()).expect("a folder");
        let folders = training::folders(own.path(), "run");
        let others = match *device == Device::flex() {
            true => vec![],
            false => vec![device.clone()],
        };
        let run = training::run_beside(&others, &config, &dataset, &folders);
        let (_, told) = run.expect("it runs");
        assert_eq!(told.plan.as_ref().expect("told").devices, 1 + others.len());
        let losses = training::losses(&told);
        let count = losses.len();
        TensorData::new(losses, [count])
    };
    compare(compute, |name, tolerances, ours, expected| {
        assert_eq!(expected.num_elements(), 3);
        assert_close(name, ours, expected, tolerances.forward);
    });
}

/// Training takes no more memory after fifty steps than after ten. In a process of its own, since a device's count holds
/// all threads of the process, hence what other tests are doing.
#[test]
fn memory_does_not_grow() {
    for (name, _) in gpus() {
        let mut child = alone("backends::memory_of_steps", name);
        let ran = child.output().expect("it starts");
        let said = [ran.stdout, ran.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        // Of a name that no test has, none fails.
        assert!(ran.status.success() && said.contains("1 passed"), "{said}");
    }
}

#[test]
#[ignore = "run by memory_does_not_grow"]
fn memory_of_steps() {
    let Some(name) = argument() else {
        return;
    };
    let name = name.to_string_lossy();
    let device = device(&name).expect("a device that was listed");
    let (mut model, image) = model(DecoderTuning::Upscaling, &device.clone().autodiff());
    let mut optimizer = OptimizationConfig::released().optimizer.init();
    let mut held = Vec::new();
    for done in 1..=50 {
        let (_, gradients) = step(&model, &image);
        model.ladder = optimizer.step(1e-4, model.ladder, gradients);
        if done == 10 || done == 50 {
            device.sync().expect("a device that answers");
            let usage = device.memory_pool_usage().expect("a GPU counts its memory");
            held.push(usage);
        }
    }
    let bytes = |index: usize| held[index].bytes_in_use;
    assert!(
        bytes(1) <= bytes(0) + bytes(0) / 10,
        "{name}: {} bytes after 10 steps, {} after 50",
        bytes(0),
        bytes(1)
    );
}

/// The published sizes, for a machine with a GPU: `cargo test --release --features cuda --test it backends -- --ignored`.
#[test]
#[ignore = "minutes on a CPU; meant for a machine with a GPU"]
fn the_published_model_at_its_size() {
    let compute = |device: &Device| {
        // Weights drawn on the CPU: each backend has its own random numbers.
        let model = SamLstConfig::vit_b(9).init(&Device::flex()).expect("valid");
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ladder.safetensors");
        model.save_ladder(&path).expect("room");
        let image = pattern([1, 3, 512, 512], device);
        let image = Tensor::from_data(image.into_data(), &device.clone().autodiff());
        let encoder = model.foundation.encoder().clone().to_device(device);
        let on_device = device.clone().autodiff();
        let mut moved = SamLstConfig::vit_b(9).init(&on_device).expect("valid");
        moved.foundation = Foundation::new(encoder, PixelScale::Unit);
        moved.load_ladder(&path).expect("its own");
        let embedding = moved.foundation.embed(image.clone()).into_data();
        let logits = moved.forward(image).logits;
        let loss = (logits.clone() * logits.clone()).mean();
        let all = GradientsParams::from_grads(loss.backward(), &moved.ladder);
        let forward = [("embedding", embedding), ("logits", logits.into_data())];
        (
            BTreeMap::from(forward.map(|(name, data)| (name.to_owned(), data))),
            gradients(&moved.ladder, &all),
        )
    };
    compare(compute, |name, tolerances, ours, expected| {
        assert_all_close(name, &ours.0, &expected.0, tolerances.forward);
        assert_gradients_close(name, &ours.1, &expected.1, tolerances);
    });
}
