//! Loading and saving weights.

use crate::support::{Cases, config, fixture, pattern, relative_error, resnet_pth, sam_pth};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, TensorData};
use sam_lst::datasets::View;
use sam_lst::datasets::ndarray::Array3;
use sam_lst::embeddings::{Embedder, SliceHash, SliceView};
use sam_lst::model::{EmbeddingPrecision, ModelError, NetworkMetadata, OutputResampling, Task};
use sam_lst::weights::{StateDict, WeightsError};
use sam_lst::{DatasetDescription, DecoderTuning, Foundation, SamLst, SamLstConfig, SliceGeometry};
use std::path::{Path, PathBuf};

fn load(sam: &Path, resnet: &Path) -> SamLst {
    SamLst::from_official(&config(), sam, Some(resnet), &Device::flex()).expect("load weights")
}

fn logits(model: &SamLst) -> TensorData {
    let image = Cases::open("ladder_tiny").tensor("image", &Device::flex());
    model.valid().forward(image).logits.into_data()
}

/// Trains one step, so that running statistics and weights differ from those of any file.
fn train_step(model: &mut SamLst) {
    let device = Device::flex().autodiff();
    let image = pattern([2, 3, 64, 64], &device);
    let loss = model.forward(image).logits.powf_scalar(2.0).mean();
    let gradients = GradientsParams::from_grads(loss.backward(), &model.network);
    let mut optimizer = AdamWConfig::new().init();
    model.network = optimizer.step(1e-2, model.network.clone(), gradients);
}

#[test]
fn pth_legacy_pth_and_safetensors_load_equal_weights() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let converted = |path: PathBuf, name: &str| {
        let target = folder.path().join(name);
        StateDict::open(path)
            .expect("open the file")
            .save_safetensors(&target)
            .expect("save weights");
        target
    };
    let expected = logits(&load(&sam_pth(), &resnet_pth()));
    let safetensors = load(
        &converted(sam_pth(), "sam.safetensors"),
        &converted(resnet_pth(), "resnet.safetensors"),
    );
    logits(&safetensors).assert_eq(&expected, true);
    let legacy = load(&sam_pth(), &fixture("ladder_tiny/resnet_tiny_legacy.pth"));
    logits(&legacy).assert_eq(&expected, true);
}

#[test]
fn half_precision_is_loaded_as_f32() {
    let half = load(&fixture("sam_tiny/sam_tiny_half.pth"), &resnet_pth());
    let full = load(&sam_pth(), &resnet_pth());
    let error = relative_error(logits(&half), logits(&full));
    assert!(error < 2e-2 && error > 0.0, "{error}");
    let folder = tempfile::tempdir().expect("temporary folder");
    let target = folder.path().join("sam.safetensors");
    let source = StateDict::open(fixture("sam_tiny/sam_tiny_half.pth")).expect("open the file");
    source.save_safetensors(&target).expect("save weights");
    let written = StateDict::open(&target).expect("open the file");
    assert!(written.tensors().all(|tensor| tensor.dtype == "F32"));
    logits(&load(&target, &resnet_pth())).assert_eq(&logits(&half), true);
}

#[test]
fn the_foundations_hash_equals_the_documented_formula() {
    let model = load(&sam_pth(), &resnet_pth());
    let cases = std::fs::read(fixture("sam_tiny/cases.safetensors")).expect("read the fixture");
    let (_, header) = safetensors::SafeTensors::read_metadata(&cases).expect("a safetensors file");
    let metadata = header.metadata().as_ref().expect("metadata");
    assert_eq!(model.foundation.weights_sha256(), metadata["image_encoder_sha256"]);
}

#[test]
fn a_ladder_checkpoint_contains_the_task() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("ladder.safetensors");
    let mut model = load(&sam_pth(), &resnet_pth());
    for task in [
        None,
        Some(Task {
            dataset: DatasetDescription::synapse(),
            geometry: SliceGeometry::released(),
            embedding_precision: EmbeddingPrecision::F32,
            output: OutputResampling::Logits,
        }),
    ] {
        model.task = task.clone();
        model.save_network(&path).expect("save weights");
        assert_eq!(NetworkMetadata::read(&path).expect("read the file").task, task);
        let again =
            SamLst::from_pretrained(sam_pth(), &path, &Device::flex()).expect("load weights");
        assert_eq!(again.task, task);
        assert_eq!(again.valid().task, task);
    }
}

#[test]
fn a_ladder_checkpoint_restores_the_model() {
    let device = Device::flex().autodiff();
    let folder = tempfile::tempdir().expect("temporary folder");
    for tuning in [DecoderTuning::Upscaling, DecoderTuning::Full] {
        let config = config().with_tuning(tuning).with_seed(7);
        let mut model = SamLst::from_official(&config, sam_pth(), Some(&resnet_pth()), &device)
            .expect("load weights");
        train_step(&mut model);
        let path = folder.path().join("ladder.safetensors");
        model.save_network(&path).expect("save weights");

        let again = SamLst::from_pretrained(sam_pth(), &path, &device).expect("load weights");
        logits(&again).assert_eq(&logits(&model), true);
        assert_eq!(again.network.trained_tensors(), model.network.trained_tensors());
        assert_eq!(again.config(), &config);
        let inference =
            SamLst::from_pretrained(sam_pth(), &path, &Device::flex()).expect("load weights");
        logits(&inference).assert_eq(&logits(&model), true);

        let metadata = NetworkMetadata::read(&path).expect("read the file");
        assert_eq!(metadata.config::<SamLstConfig>().expect("of a ladder"), config);
        let sha256 = metadata.foundation_sha256.as_deref();
        assert_eq!(sha256, Some(model.foundation.weights_sha256()));

        // It contains no tensor of SAM's checkpoint that was not trained.
        let stored = StateDict::open(&path).expect("open the file");
        assert!(!stored.names().any(|name| name.starts_with("prompt_encoder.")));
        let transformer = stored.names().any(|name| name.contains("transformer"));
        assert_eq!(transformer, tuning == DecoderTuning::Full);
        for name in ["gate.alpha", "side.bn1.running_var", "mask_decoder.mask_tokens.weight"] {
            assert!(stored.names().any(|stored| stored == name), "{name}");
        }
    }
}

#[test]
fn the_checkpoint_of_a_ladder_over_random_weights_is_complete() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("ladder.safetensors");
    let device = Device::flex().autodiff();
    let mut model = config().with_seed(3).init(&device).expect("a valid configuration");
    train_step(&mut model);
    model.save_network(&path).expect("save weights");
    let mut again = config().with_seed(3).init(&Device::flex()).expect("a valid configuration");
    again.load_network(&path).expect("load weights");
    logits(&again).assert_eq(&logits(&model), true);

    // With its foundation saved, it is loaded like any other model.
    let sam = folder.path().join("sam.safetensors");
    model.save_sam(&sam).expect("save weights");
    let again = SamLst::from_pretrained(&sam, &path, &Device::flex()).expect("load weights");
    logits(&again).assert_eq(&logits(&model), true);
    let other = config().with_seed(4).init(&Device::flex()).expect("a valid configuration");
    other.save_sam(&sam).expect("save weights");
    let error = SamLst::from_pretrained(&sam, &path, &Device::flex()).unwrap_err();
    assert!(matches!(error, ModelError::WrongFoundation { .. }), "{error}");
}

/// A checkpoint has the permissions of an ordinary new file.
#[cfg(unix)]
#[test]
fn a_checkpoint_has_ordinary_permissions() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().expect("temporary folder");
    let created = folder.path().join("a folder that is created");
    let [ladder, other] = ["ladder.safetensors", "other"].map(|name| created.join(name));
    let model = config().init(&Device::flex()).expect("a valid configuration");
    model.save_network(&ladder).expect("save weights");
    std::fs::write(&other, "").expect("write file");
    let mode = |file| std::fs::metadata(file).expect("a file").mode();
    assert_eq!(mode(&ladder), mode(&other));
    assert_eq!(std::fs::read_dir(&created).expect("list the folder").count(), 2);
}

#[test]
fn the_seed_determines_every_random_weight() {
    let init =
        |seed| config().with_seed(seed).init(&Device::flex()).expect("a valid configuration");
    logits(&init(1)).assert_eq(&logits(&init(1)), true);
    assert_eq!(init(1).foundation.weights_sha256(), init(1).foundation.weights_sha256());
    assert!(relative_error(logits(&init(1)), logits(&init(2))) > 0.1);
    // The ladder does not depend on whether the foundation is random or loaded.
    let tokens = |model: &SamLst| model.network.mask_decoder.mask_tokens.val().into_data();
    let loaded = load(&sam_pth(), &resnet_pth());
    tokens(&loaded).assert_eq(&tokens(&init(0)), true);
}

#[test]
fn a_failed_load_does_not_change_the_model() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("ladder.safetensors");
    let device = Device::flex().autodiff();
    let mut model = SamLst::from_official(&config(), sam_pth(), Some(&resnet_pth()), &device)
        .expect("load weights");
    train_step(&mut model);
    model.save_network(&path).expect("save weights");
    train_step(&mut model);
    let before = logits(&model);

    // A NaN in the last tensor of the file is found after all other tensors have been read.
    let mut bytes = std::fs::read(&path).expect("read the file");
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).expect("write the file");
    let error = model.load_network(&path).unwrap_err();
    assert!(matches!(error, ModelError::Weights(WeightsError::NotFinite { .. })), "{error}");
    logits(&model).assert_eq(&before, true);
}

#[test]
fn an_offloaded_foundation_is_loaded_again_when_needed() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let file = folder.path().join("sam.pth");
    std::fs::copy(sam_pth(), &file).expect("copy file");
    let device = Device::flex();
    let image = pattern([1, 3, 64, 64], &device);
    let mut model = load(&file, &resnet_pth());
    let expected = model.foundation.embed(image.clone()).into_data();
    let hash = model.foundation.weights_sha256().to_owned();
    let loaded = model.foundation.clone();
    fn assert_threads_can_share<T: Send + Sync>(_: &T) {}
    assert_threads_can_share(&loaded);

    model.foundation.offload();
    assert_eq!(model.foundation.weights_sha256(), hash);
    let clone = model.foundation.clone();
    let embed = |foundation: &Foundation| foundation.embed(image.clone()).into_data();
    embed(&model.foundation).assert_eq(&expected, true);

    // Clones share the loaded weights, so they do not need the file again.
    std::fs::remove_file(&file).expect("remove file");
    embed(&clone).assert_eq(&expected, true);
    model.foundation.offload();
    let slice = SliceHash::new(Array3::zeros((1, 4, 4)).view());
    let view = SliceView::new(slice, View::Identity, SliceGeometry::released(), 64);
    let error = |foundation: &Foundation| {
        let result =
            Embedder::new(foundation, EmbeddingPrecision::F32).embed(image.clone(), &[view]);
        result.expect_err("the weights cannot be loaded").to_string()
    };
    let message = error(&model.foundation);
    assert!(message.contains("sam.pth: no such file"), "{message}");

    // A file with other weights is rejected.
    let source = StateDict::open(fixture("sam_tiny/sam_tiny_half.pth")).expect("open the file");
    source.save_safetensors(&file).expect("save weights");
    let message = error(&model.foundation);
    assert!(message.contains("sam.pth: its weights have changed"), "{message}");
    embed(&loaded).assert_eq(&expected, true);

    // Weights that came from no file cannot be offloaded.
    let mut random = config().init(&device).expect("a valid configuration").foundation;
    let expected = embed(&random);
    random.offload();
    embed(&random).assert_eq(&expected, true);
}
