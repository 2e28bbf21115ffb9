//! Fine-tuning of SAM's image encoder: parity with PyTorch, checkpoints, training.

use crate::support::{Cases, fixture, gradients, largest, largest_difference, sam_pth};
use crate::training::{config, dataset, folders};
use burn::optim::GradientsParams;
use burn::store::{ModuleSnapshot, PyTorchToBurnAdapter, bridge};
use burn::tensor::{Device, Tensor};
use sam_lst::mask_decoder::MaskDecoderConfig;
use sam_lst::model::{
    ConfigError, EncoderConfig, EncoderTuning, ModelError, NetworkMetadata, PixelScale,
    SamTuningConfig, TunedSam,
};
use sam_lst::peft::{LoraTargets, high_frequencies};
use sam_lst::weights::StateDict;
use sam_lst::{CachedViews, PretrainedModel, SamLstConfig, SegmentationModel, Training};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// The fixture's cases over the tiny ViT, with their tunings.
fn vit_tunings() -> [(&'static str, EncoderTuning); 8] {
    let lora = |rank, targets, first_block| EncoderTuning::Lora { rank, targets, first_block };
    [
        ("decoder", EncoderTuning::Decoder),
        ("prompts", EncoderTuning::Prompts { tokens: 3 }),
        ("samed", lora(3, LoraTargets::QueryValue, 0)),
        ("late_lora", lora(3, LoraTargets::All, 2)),
        ("adapters", EncoderTuning::Adapters { reduction: 4 }),
        ("frequency_prompts", EncoderTuning::FrequencyPrompts { reduction: 8 }),
        ("biases", EncoderTuning::Biases),
        ("full", EncoderTuning::Full),
    ]
}

/// The fixture's cases over the tiny TinyViT.
fn tiny_vit_tunings() -> [(&'static str, EncoderTuning); 3] {
    let lora = |first_block| EncoderTuning::Lora {
        rank: 3,
        targets: LoraTargets::QueryValue,
        first_block,
    };
    [
        ("tiny.samed_lora", lora(0)),
        ("tiny.late_lora", lora(3)),
        ("tiny.adapters", EncoderTuning::Adapters { reduction: 4 }),
    ]
}

fn tuning_config(
    encoder: EncoderConfig,
    input_size: usize,
    tuning: EncoderTuning,
) -> SamTuningConfig {
    let decoder = MaskDecoderConfig { num_masks: 5, ..SamLstConfig::tiny(5).decoder };
    let pixel_scale = PixelScale::Unit;
    SamTuningConfig { encoder, decoder, tuning, input_size, pixel_scale, seed: 0 }
}

fn vit_config(tuning: EncoderTuning) -> SamTuningConfig {
    tuning_config(SamLstConfig::tiny(5).encoder, 80, tuning)
}

fn tiny_vit_config(tuning: EncoderTuning) -> SamTuningConfig {
    tuning_config(sam_lst::tiny_vit::TinyVitConfig::tiny().into(), 36, tuning)
}

fn tiny_vit_pth() -> PathBuf {
    fixture("tiny_vit/lite.pth")
}

/// The fixture's model: SAM's tensors from its file, all others from the fixture.
fn fixture_model(
    cases: &Cases,
    case: &str,
    config: &SamTuningConfig,
    sam: &Path,
    device: &Device,
) -> SegmentationModel<TunedSam> {
    let mut model = config.from_official(sam, device).expect("loads the fixture");
    let prefix = format!("{case}.weights.");
    let own = cases.names().filter_map(|name| {
        let ours = name.strip_prefix(&prefix)?.to_owned();
        Some((name, ours))
    });
    let decoder = cases.names().filter_map(|name| {
        let ours = name.strip_prefix("decoder.").filter(|ours| {
            ["mask_tokens", "output_hypernetworks_mlps", "iou_prediction_head"]
                .iter()
                .any(|part| ours.starts_with(part))
        })?;
        let ours = ours.replace("mask_tokens.weight", "mask_tokens");
        Some((name, format!("mask_decoder.{ours}")))
    });
    let tensors = own
        .chain(decoder)
        .map(|(name, ours)| bridge::from_data(cases.data(name), ours, None))
        .collect();
    let adapter = Some(Box::new(PyTorchToBurnAdapter) as _);
    let result = model.network.apply(tensors, None, adapter, true);
    assert!(result.errors.is_empty() && result.unused.is_empty(), "{result}");
    model
}

/// A step on a case of the fixture: its logits, loss and gradients.
fn check_step(
    cases: &Cases,
    case: &str,
    inputs: &str,
    model: &SegmentationModel<TunedSam>,
    device: &Device,
) {
    let logits = model.logits(cases.tensor(&format!("{inputs}image"), device));
    cases.assert_close(&format!("{case}.logits"), logits.clone().inner(), 3e-5);
    let weight = cases.tensor::<4>(&format!("{inputs}loss_weight"), device);
    let losses = logits.clone() * logits * weight;
    // Positive and negative terms cancel, so the error is relative to their absolute values.
    let scale: f64 = losses.clone().inner().abs().mean().into_scalar::<f32>().into();
    let loss = losses.mean();
    let expected = cases.data(&format!("{case}.loss"));
    let error = largest_difference(&loss.clone().inner().into_data(), &expected);
    assert!(error <= 1e-5 * scale, "{case}: the loss differs by {error:.2e} of {scale:.2e}");
    let all = GradientsParams::from_grads(loss.backward(), &model.network);
    let mut found = gradients(&model.network, &all);
    assert_eq!(found.len(), all.len(), "each gradient belongs to a tensor of the network");
    // The fixture has the gradient of one tensor of the decoder.
    let compared =
        |name: &String| !name.starts_with("mask_decoder.") || name.contains("mask_tokens");
    found.retain(|name, _| compared(name));
    let prefix = format!("{case}.grad.");
    let expected: Vec<&str> = cases.names().filter_map(|name| name.strip_prefix(&prefix)).collect();
    assert_eq!(found.keys().map(String::as_str).collect::<Vec<_>>(), expected, "{case}");
    let mut trained: Vec<String> =
        model.trained_tensors().into_iter().map(|(name, _)| name).filter(compared).collect();
    trained.sort();
    assert_eq!(trained, expected, "{case}: exactly the trained tensors have gradients");
    for (name, actual) in &found {
        // The bias of a key shifts all scores of a query alike: of the gradient of qkv's bias, that
        // part is rounding, so it is compared on the scale of the largest value.
        let expected = cases.data(&format!("{prefix}{name}"));
        let error = largest_difference(actual, &expected) / largest(&expected);
        assert!(error <= 1e-4, "{case}, {name}: relative error {error:.2e}");
    }
}

#[test]
fn logits_and_gradients_of_each_method_equal_pytorchs() {
    let cases = Cases::open("tuning");
    // The kernels do not support gradient checkpointing, so that device uses Burn's operations.
    let burns = Device::flex().autodiff().gradient_checkpointing();
    for device in [Device::flex().autodiff(), burns] {
        for (case, tuning) in vit_tunings() {
            let model = fixture_model(&cases, case, &vit_config(tuning), &sam_pth(), &device);
            check_step(&cases, case, "", &model, &device);
        }
        for (case, tuning) in tiny_vit_tunings() {
            let config = tiny_vit_config(tuning);
            let model = fixture_model(&cases, case, &config, &tiny_vit_pth(), &device);
            check_step(&cases, case, "tiny.", &model, &device);
        }
    }
}

#[test]
fn high_frequencies_equal_a_fourier_transforms() {
    let device = Device::flex();
    let cases = Cases::open("tuning");
    let image = cases.tensor::<4>("image", &device);
    cases.assert_close("high_frequencies", high_frequencies(image, 0.25), 1e-5);
}

#[test]
fn the_published_methods_train_the_published_numbers_of_parameters() {
    let device = Device::flex().autodiff();
    let vit_b = SamLstConfig::vit_b(9).with_input_size(64);
    let count = |tuning, prefix: &str| -> usize {
        let model = SamTuningConfig::from_ladder(&vit_b, tuning).init(&device).expect("valid");
        let trained = model.trained_tensors();
        trained.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, values)| values).sum()
    };
    // SAMed's paper and methods: LoRA of rank 4 of queries and values in ViT-B.
    assert_eq!(count(EncoderTuning::samed(), "lora."), 147_456);
    // Two bottlenecks of 768 - 192 - 768 with biases in each of twelve blocks.
    let bottleneck = 768 * 192 + 192 + 192 * 768 + 768;
    assert_eq!(count(EncoderTuning::medical_sam_adapter(), "adapters."), 24 * bottleneck);
    let prompts = 3 * 24 * 256 + 24 + 768 * 24 + 24 + 12 * (24 * 24 + 24) + 24 * 768 + 768;
    assert_eq!(count(EncoderTuning::sam_adapter(), "frequency_prompts."), prompts);
    assert_eq!(count(EncoderTuning::Decoder, "image_encoder."), 0);
    assert_eq!(count(EncoderTuning::samed(), "image_encoder."), 0);
    assert_eq!(count(EncoderTuning::Full, "image_encoder."), 89_670_912);
}

#[test]
fn a_checkpoint_holds_what_sams_does_not_and_is_loaded_again() {
    let device = Device::flex();
    let cases = Cases::open("tuning");
    let folder = tempfile::tempdir().expect("a folder");
    for (case, config, sam, inputs) in vit_tunings()
        .map(|(case, tuning)| (case, vit_config(tuning), sam_pth(), ""))
        .into_iter()
        .chain(
            tiny_vit_tunings()
                .map(|(case, tuning)| (case, tiny_vit_config(tuning), tiny_vit_pth(), "tiny.")),
        )
    {
        let model = fixture_model(&cases, case, &config, &sam, &device);
        let file = folder.path().join(format!("{case}.safetensors"));
        model.save_network(&file).expect("saves");
        let saved = Cases::read(&file);
        let trains_encoder = matches!(config.tuning, EncoderTuning::Biases | EncoderTuning::Full);
        for name in saved.names() {
            let is_encoder = name.starts_with("image_encoder.");
            assert!(!is_encoder || trains_encoder, "{case}: {name} is in SAM's file");
        }
        assert!(!saved.has("prompt_encoder.point_embeddings.0.weight"));
        let image = cases.tensor::<4>(&format!("{inputs}image"), &device);
        let expected = model.logits(image.clone()).into_data();
        let loaded = SamTuningConfig::from_pretrained(&sam, &file, &device).expect("loads");
        assert_eq!(loaded.config(), &config);
        loaded.logits(image).into_data().assert_eq(&expected, true);
        let any = PretrainedModel::load(&file, Some(&sam), &device).expect("loads");
        assert!(matches!(any, PretrainedModel::Tuned(_)));

        // Another foundation, and another method.
        let other = folder.path().join("other.safetensors");
        config.init(&device).expect("valid").save_network(&other).expect("saves");
        let mut model = config.from_official(&sam, &device).expect("loads");
        // A network that holds the whole encoder is complete; others need their own foundation.
        match (model.load_network(&other), model.foundation.is_some()) {
            (Err(ModelError::WrongFoundation { .. }), true) | (Ok(()), false) => {}
            (result, _) => panic!("{case}: {result:?}"),
        }
    }
    let file = folder.path().join("samed.safetensors");
    assert_eq!(NetworkMetadata::read(&file).expect("reads").method, "sam-tuning");
    let mut ladder = SamLstConfig::tiny(5).init(&device).expect("valid");
    let error = ladder.load_network(&file).expect_err("another method");
    assert!(matches!(error, ModelError::WrongMethod { .. }), "{error}");
}

#[test]
fn tunings_that_do_not_fit_are_refused() {
    let message = |config: SamTuningConfig| {
        let error = config.init(&Device::flex()).expect_err("invalid");
        assert!(matches!(error, ConfigError::Invalid(_)));
        error.to_string()
    };
    let lora = |rank, first_block| EncoderTuning::Lora {
        rank,
        targets: LoraTargets::QueryValue,
        first_block,
    };
    let rank = "at least 1 and at most the width of the encoder's blocks";
    assert_eq!(
        message(vit_config(lora(0, 0))),
        format!("`tuning.lora.rank` is 0; expected {rank}")
    );
    assert!(message(vit_config(lora(33, 0))).starts_with("`tuning.lora.rank` is 33"));
    assert!(message(vit_config(lora(4, 4))).starts_with("`tuning.lora.first_block` is 4"));
    assert!(message(tiny_vit_config(lora(4, 2))).contains("first block of a stage of TinyViT"));
    let tokens = message(vit_config(EncoderTuning::Prompts { tokens: 0 }));
    assert!(tokens.starts_with("`tuning.prompts.tokens` is 0"), "{tokens}");
    let reduction = message(vit_config(EncoderTuning::Adapters { reduction: 0 }));
    assert!(reduction.starts_with("`tuning.adapters.reduction` is 0"), "{reduction}");
    let prompts = message(tiny_vit_config(EncoderTuning::sam_adapter()));
    assert!(prompts.contains("expected SAM's ViT, since the prompts"), "{prompts}");
}

#[test]
fn late_lora_trains_over_cached_tokens_of_its_first_block() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = dataset(folder.path());
    let late =
        |first_block| EncoderTuning::Lora { rank: 2, targets: LoraTargets::All, first_block };
    let ladder = config().model;
    let run = |name: &str, tuning, views| {
        let mut config = config().with_model(SamTuningConfig::from_ladder(&ladder, tuning));
        config.epochs = 1;
        config.cache.views = views;
        let model = config.model.init(&Device::flex().autodiff()).expect("valid");
        let folders = folders(folder.path(), name);
        let mut losses = Vec::new();
        let outcome = Training::new(config, folders).run(model, &data, |event| {
            if let sam_lst::TrainingEvent::Step(step) = event {
                losses.push(step.loss);
            }
            ControlFlow::Continue(())
        });
        let trained = outcome.expect("trains").finished().expect("finishes");
        (losses, trained)
    };
    let (uncached, _) = run("uncached", late(2), CachedViews::NONE);
    let (cached, trained) = run("cached", late(2), CachedViews::ALL);
    // Tokens are rounded to the cache's precision with a cache and without.
    assert_eq!(cached, uncached);
    assert!(trained.network_file.is_file());
    run("other", late(1), CachedViews::ALL);
    let kinds = std::fs::read_dir(folder.path().join("cache/embeddings")).expect("a cache");
    assert_eq!(kinds.count(), 2, "tokens of another block are in a cache of their own");
}

#[test]
fn an_image_is_not_needed_where_the_foundations_output_is_cached() {
    // The network reads the image's size only.
    let device = Device::flex();
    let config = vit_config(EncoderTuning::samed());
    let model = config.from_official(sam_pth(), &device).expect("loads");
    let image = Tensor::<4>::ones([1, 3, 80, 80], &device);
    let foundation = model.foundation.as_ref().expect("a foundation");
    let tokens = foundation.embed(image.clone() * 0.3);
    use sam_lst::SegmentationNetwork;
    let [a, b] = [image.clone(), image * 0.0]
        .map(|image| model.network.logits(image, Some(tokens.clone())).into_data());
    a.assert_eq(&b, true);
}

#[test]
fn a_file_of_samed_is_read_and_written() {
    let device = Device::flex();
    let cases = Cases::open("tuning");
    let [_, _, (_, tuning), ..] = vit_tunings();
    let config = vit_config(tuning);
    let file = fixture("tuning/samed.pth");
    let read = SamTuningConfig::of_samed(sam_pth(), &file).expect("a file of SAMed");
    assert_eq!((read.tuning, read.decoder.num_masks), (tuning, 5));
    assert_eq!((read.encoder, read.input_size), (config.encoder.clone(), 512));
    let model = config.from_samed(sam_pth(), &file, &device).expect("loads");
    let image = cases.tensor::<4>("image", &device);
    cases.assert_close("samed.logits", model.logits(image.clone()), 3e-5);

    let folder = tempfile::tempdir().expect("temporary folder");
    let written = folder.path().join("samed.safetensors");
    model.save_samed(&written).expect("writes");
    let [theirs, ours] = [&file, &written].map(|file| StateDict::open(file).expect("opens"));
    assert_eq!(ours.tensors().collect::<Vec<_>>(), theirs.tensors().collect::<Vec<_>>());
    let again = config.from_samed(sam_pth(), &written, &device).expect("loads its own file");
    again
        .logits(image)
        .into_data()
        .assert_eq(&model.logits(cases.tensor("image", &device)).into_data(), true);
    // It is a network like any other.
    let network = folder.path().join("network.safetensors");
    model.save_network(&network).expect("saves");
    SamTuningConfig::from_pretrained(sam_pth(), &network, &device).expect("loads");

    let error = SamTuningConfig::of_samed(sam_pth(), sam_pth()).expect_err("SAM itself");
    assert!(error.to_string().contains("w_a_000"), "{error}");
    let lite = SamTuningConfig::of_samed(tiny_vit_pth(), &file).expect_err("another encoder");
    assert!(lite.to_string().contains("LoRA of 8 layers"), "{lite}");
    let [.., (_, adapters), _, _, _] = vit_tunings();
    let other = vit_config(adapters).from_official(sam_pth(), &device).expect("loads");
    let error = other.save_samed(&written).expect_err("no LoRA").to_string();
    assert!(error.contains("LoRA of the queries and values of all blocks"), "{error}");
}
