//! Weights in and out.

use crate::support::{Cases, config, fixture, pattern, relative_error, resnet_pth, sam_pth};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, TensorData};
use sam_lst::rooms::datasets::View;
use sam_lst::rooms::datasets::ndarray::Array2;
use sam_lst::weights::{LadderMetadata, StateDict, WeightsError};
use sam_lst::{
    DatasetDescription, DecoderTuning, Embedder, Foundation, SamLst, SliceGeometry, SliceHash,
    SliceView, Task,
};
use std::path::{Path, PathBuf};

fn load(sam: &Path, resnet: &Path) -> SamLst {
    SamLst::from_official(&config(), sam, Some(resnet), &Device::flex()).expect("loads")
}

fn logits(model: &SamLst) -> TensorData {
    let image = Cases::open("ladder_tiny").tensor("image", &Device::flex());
    model.valid().forward(image).logits.into_data()
}

/// One step of training, so that running statistics and weights differ from any file's.
fn trained(model: &mut SamLst) {
    let device = Device::flex().autodiff();
    let image = pattern([2, 3, 64, 64], &device);
    let loss = model.forward(image).logits.powf_scalar(2.0).mean();
    let gradients = GradientsParams::from_grads(loss.backward(), &model.ladder);
    let mut optimizer = AdamWConfig::new().init();
    model.ladder = optimizer.step(1e-2, model.ladder.clone(), gradients);
}

#[test]
fn pth_legacy_pth_and_safetensors_load_alike() {
    let folder = tempfile::tempdir().expect("a folder");
    let converted = |path: PathBuf, name: &str| {
        let target = folder.path().join(name);
        StateDict::open(path)
            .expect("opens")
            .save_safetensors(&target)
            .expect("saves");
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
fn half_precision_loads_as_f32() {
    let half = load(&fixture("sam_tiny/sam_tiny_half.pth"), &resnet_pth());
    let full = load(&sam_pth(), &resnet_pth());
    let error = relative_error(logits(&half), logits(&full));
    assert!(error < 2e-2 && error > 0.0, "{error}");
    let folder = tempfile::tempdir().expect("a folder");
    let target = folder.path().join("sam.safetensors");
    let source = StateDict::open(fixture("sam_tiny/sam_tiny_half.pth")).expect("opens");
    source.save_safetensors(&target).expect("saves");
    let written = StateDict::open(&target).expect("opens");
    assert!(written.tensors().all(|tensor| tensor.dtype == "F32"));
    logits(&load(&target, &resnet_pth())).assert_eq(&logits(&half), true);
}

#[test]
fn the_foundations_hash_is_the_documented_one() {
    let model = load(&sam_pth(), &resnet_pth());
    let cases = std::fs::read(fixture("sam_tiny/cases.safetensors")).expect("fixture");
    let (_, header) = safetensors::SafeTensors::read_metadata(&cases).expect("fixture");
    let metadata = header.metadata().as_ref().expect("metadata");
    assert_eq!(
        model.foundation.weights_sha256(),
        metadata["image_encoder_sha256"]
    );
}

#[test]
fn a_ladder_checkpoint_says_what_the_ladder_is_trained_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("ladder.safetensors");
    let mut model = load(&sam_pth(), &resnet_pth());
    for task in [
        None,
        Some(Task {
            dataset: DatasetDescription::synapse(),
            geometry: SliceGeometry::released(),
        }),
    ] {
        model.task = task.clone();
        model.save_ladder(&path).expect("saves");
        assert_eq!(LadderMetadata::read(&path).expect("reads").task, task);
        let again = SamLst::from_pretrained(sam_pth(), &path, &Device::flex()).expect("loads");
        assert_eq!(again.task, task);
        assert_eq!(again.valid().task, task);
    }
}

#[test]
fn a_ladder_checkpoint_brings_the_model_back() {
    let device = Device::flex().autodiff();
    let folder = tempfile::tempdir().expect("a folder");
    for tuning in [DecoderTuning::Upscaling, DecoderTuning::Full] {
        let config = config().with_tuning(tuning).with_seed(7);
        let mut model =
            SamLst::from_official(&config, sam_pth(), Some(&resnet_pth()), &device).expect("loads");
        trained(&mut model);
        let path = folder.path().join("ladder.safetensors");
        model.save_ladder(&path).expect("saves");

        let again = SamLst::from_pretrained(sam_pth(), &path, &device).expect("loads");
        logits(&again).assert_eq(&logits(&model), true);
        assert_eq!(
            again.ladder.trained_tensors(),
            model.ladder.trained_tensors()
        );
        assert_eq!(again.config(), &config);
        let inference = SamLst::from_pretrained(sam_pth(), &path, &Device::flex()).expect("loads");
        logits(&inference).assert_eq(&logits(&model), true);

        let metadata = LadderMetadata::read(&path).expect("reads");
        assert_eq!(metadata.config, config);
        assert_eq!(
            metadata.foundation_sha256,
            model.foundation.weights_sha256()
        );

        // Nothing in it that SAM's file has, unless it was trained.
        let stored = StateDict::open(&path).expect("opens");
        assert!(
            !stored
                .names()
                .any(|name| name.starts_with("prompt_encoder."))
        );
        let transformer = stored.names().any(|name| name.contains("transformer"));
        assert_eq!(transformer, tuning == DecoderTuning::Full);
        for name in [
            "gate.alpha",
            "side.bn1.running_var",
            "mask_decoder.mask_tokens.weight",
        ] {
            assert!(stored.names().any(|stored| stored == name), "{name}");
        }
    }
}

#[test]
fn a_ladder_over_random_weights_carries_them_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("ladder.safetensors");
    let device = Device::flex().autodiff();
    let mut model = config().with_seed(3).init(&device).expect("valid");
    trained(&mut model);
    model.save_ladder(&path).expect("saves");
    let mut again = config().with_seed(3).init(&Device::flex()).expect("valid");
    again.load_ladder(&path).expect("loads");
    logits(&again).assert_eq(&logits(&model), true);

    // With its foundation in a file, it is a model as any other.
    let sam = folder.path().join("sam.safetensors");
    model.save_sam(&sam).expect("saves");
    let again = SamLst::from_pretrained(&sam, &path, &Device::flex()).expect("loads");
    logits(&again).assert_eq(&logits(&model), true);
    let other = config().with_seed(4).init(&Device::flex()).expect("valid");
    other.save_sam(&sam).expect("saves");
    let error = SamLst::from_pretrained(&sam, &path, &Device::flex()).unwrap_err();
    assert!(
        matches!(error, WeightsError::WrongFoundation { .. }),
        "{error}"
    );
}

/// Whoever may read other files of a folder may read a checkpoint.
#[cfg(unix)]
#[test]
fn a_checkpoint_is_a_file_as_any_other() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().expect("a folder");
    let within = folder.path().join("a folder that is made");
    let [ladder, other] = ["ladder.safetensors", "other"].map(|name| within.join(name));
    let model = config().init(&Device::flex()).expect("valid");
    model.save_ladder(&ladder).expect("saves");
    std::fs::write(&other, "").expect("room");
    let mode = |file| std::fs::metadata(file).expect("a file").mode();
    assert_eq!(mode(&ladder), mode(&other));
    assert_eq!(std::fs::read_dir(&within).expect("a folder").count(), 2);
}

#[test]
fn the_seed_decides_every_random_weight() {
    let init = |seed| {
        config()
            .with_seed(seed)
            .init(&Device::flex())
            .expect("valid")
    };
    logits(&init(1)).assert_eq(&logits(&init(1)), true);
    assert_eq!(
        init(1).foundation.weights_sha256(),
        init(1).foundation.weights_sha256()
    );
    assert!(relative_error(logits(&init(1)), logits(&init(2))) > 0.1);
    // The ladder is the same over a random foundation and over SAM's.
    let tokens = |model: &SamLst| model.ladder.mask_decoder.mask_tokens.val().into_data();
    let loaded = load(&sam_pth(), &resnet_pth());
    tokens(&loaded).assert_eq(&tokens(&init(0)), true);
}

#[test]
fn a_failed_load_leaves_the_model_as_it_was() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("ladder.safetensors");
    let device = Device::flex().autodiff();
    let mut model =
        SamLst::from_official(&config(), sam_pth(), Some(&resnet_pth()), &device).expect("loads");
    trained(&mut model);
    model.save_ladder(&path).expect("saves");
    trained(&mut model);
    let before = logits(&model);

    // The last tensor of the file holds a NaN: everything before it is read before that is known.
    let mut bytes = std::fs::read(&path).expect("reads");
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).expect("writes");
    let error = model.load_ladder(&path).unwrap_err();
    assert!(matches!(error, WeightsError::NotFinite { .. }), "{error}");
    logits(&model).assert_eq(&before, true);
}

#[test]
fn a_foundation_that_is_left_on_disk_is_read_again_when_it_is_needed() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("sam.pth");
    std::fs::copy(sam_pth(), &file).expect("room");
    let device = Device::flex();
    let image = pattern([1, 3, 64, 64], &device);
    let mut model = load(&file, &resnet_pth());
    let expected = model.foundation.embed(image.clone()).into_data();
    let hash = model.foundation.weights_sha256().to_owned();
    let held = model.foundation.clone();
    fn shared<T: Send + Sync>(_: &T) {}
    shared(&held);

    model.foundation.leave_on_disk();
    assert_eq!(model.foundation.weights_sha256(), hash);
    let again = model.foundation.clone();
    let embed = |foundation: &Foundation| foundation.embed(image.clone()).into_data();
    embed(&model.foundation).assert_eq(&expected, true);

    // Once read again it is there for every clone, with the file or without.
    std::fs::remove_file(&file).expect("it was there");
    embed(&again).assert_eq(&expected, true);
    model.foundation.leave_on_disk();
    let slice = SliceHash::new(Array2::zeros((4, 4)).view());
    let view = SliceView::new(slice, View::Identity, SliceGeometry::released(), 64);
    let refused = |foundation: &Foundation| {
        let result = Embedder::new(foundation).embed(image.clone(), &[view]);
        result.expect_err("it cannot be read").to_string()
    };
    let message = refused(&model.foundation);
    assert!(message.contains("sam.pth: no such file"), "{message}");

    // Other weights are not taken for those that were there.
    let source = StateDict::open(fixture("sam_tiny/sam_tiny_half.pth")).expect("opens");
    source.save_safetensors(&file).expect("saves");
    let message = refused(&model.foundation);
    assert!(message.contains("sam.pth: it was changed"), "{message}");
    embed(&held).assert_eq(&expected, true);

    // What came from no file stays.
    let mut random = config().init(&device).expect("valid").foundation;
    let expected = embed(&random);
    random.leave_on_disk();
    embed(&random).assert_eq(&expected, true);
}
