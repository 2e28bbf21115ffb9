//! The U-Net: parity with MONAI's, and training as any other network.

use crate::support::{Cases, apply_weights, fixture, gradients, largest, largest_difference};
use crate::training::{config, dataset, folders, segments_a_case};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};
use sam_lst::baselines::{FeatureInput, UNet, UNetConfig};
use sam_lst::model::{BaselineConfig, ConfigError, ModelError, NetworkMetadata, SupervisedLogits};
use sam_lst::training::TrainingError;
use sam_lst::{
    CachedViews, CrossEntropyDiceLossConfig, FoundationPrecision, NetworkConfig, PretrainedModel,
    SamLstConfig, SegmentationModel, SegmentationNetwork, Trained, Training, TrainingConfig,
    TrainingEvent, TrainingFolders,
};
use std::ops::ControlFlow;
use std::path::Path;

/// The fixture's network.
fn fixture_network(cases: &Cases, device: &Device) -> UNet {
    let mut network = UNetConfig::new(3).with_channels(vec![4, 6, 8, 10]).init(device);
    apply_weights(&mut network, cases, "weights.");
    network
}

#[test]
fn logits_loss_and_gradients_of_each_level_equal_monais() {
    let cases = Cases::open("unet");
    equals_monais(&cases, |device| fixture_network(&cases, device), 0);
}

#[test]
fn with_features_from_elsewhere_they_equal_monais_too() {
    let cases = Cases::read(&fixture("unet/features.safetensors"));
    let inputs = [(1, 5), (2, 7)].map(|(level, channels)| FeatureInput { level, channels });
    let config = UNetConfig::new(3).with_channels(vec![4, 6, 8, 10]);
    let network = |device: &Device| {
        let config = config.clone().with_features(Some(inputs.to_vec()));
        let mut network = config.init(device);
        apply_weights(&mut network, &cases, "weights.");
        network
    };
    equals_monais(&cases, network, 2);
}

/// Compares a step with the fixture's; `count` features enter the network.
fn equals_monais(cases: &Cases, network: impl Fn(&Device) -> UNet, count: usize) {
    // The kernels do not support gradient checkpointing, so that device uses Burn's operations.
    let burns = Device::flex().autodiff().gradient_checkpointing();
    for device in [Device::flex().autodiff(), burns] {
        let network = network(&device);
        let image = cases.tensor::<4>("image", &device);
        let labels = cases.tensor::<3>("labels", &device).int();
        let feature = |index| cases.tensor::<4>(&format!("features.{index}"), &device);
        let features = || (0..count).map(feature).collect::<Vec<_>>();
        let levels = network.forward_supervised_with_features(image.clone(), features());
        let supervised = SupervisedLogits::of_levels(levels);
        assert_eq!(supervised.len(), 2);
        let loss = CrossEntropyDiceLossConfig::new().init();
        let mut total = Tensor::<1>::zeros([1], &device);
        for (level, logits) in supervised.into_iter().enumerate() {
            cases.assert_close(&format!("logits.{level}"), logits.logits.clone().inner(), 1e-5);
            let step = 1 << level;
            let [batch, size, _] = labels.dims();
            let blocks = labels.clone().reshape([batch, size / step, step, size / step, step]);
            let centres = blocks.narrow(2, step / 2, 1).narrow(4, step / 2, 1);
            let labels = centres.reshape([batch, size / step, size / step]);
            total = total + loss.forward(logits.logits, labels).total * logits.weight;
        }
        cases.assert_close("loss", total.clone().inner(), 1e-5);
        let finest = network.forward_with_features(image, features());
        cases.assert_close("logits.0", finest.inner(), 1e-5);
        let all = GradientsParams::from_grads(total.backward(), &network);
        let found = gradients(&network, &all);
        let expected: Vec<&str> =
            cases.names().filter_map(|name| name.strip_prefix("grad.")).collect();
        assert_eq!(found.keys().map(String::as_str).collect::<Vec<_>>(), expected);
        for (name, actual) in &found {
            let expected = cases.data(&format!("grad.{name}"));
            let error = largest_difference(actual, &expected) / largest(&expected);
            assert!(error <= 1e-4, "{name}: relative error {error:.2e}");
        }
    }
}

/// A run of seconds.
fn unet_config() -> TrainingConfig<BaselineConfig<UNetConfig>> {
    let network = UNetConfig::new(9).with_channels(vec![4, 6, 8, 8]);
    let mut config = config().with_model(BaselineConfig { network, input_size: 48, seed: 0 });
    config.cache.views = CachedViews::NONE;
    config
}

fn train(
    config: &TrainingConfig<BaselineConfig<UNetConfig>>,
    folder: &Path,
    folders: &TrainingFolders,
    stop_at: Option<u64>,
) -> Result<Option<Trained<UNet>>, TrainingError> {
    let model = config.model.init(&Device::flex().autodiff()).expect("a valid configuration");
    let training = Training::new(config.clone(), folders.clone());
    let outcome = training.run(model, &dataset(folder), |event| match event {
        TrainingEvent::Step(step) if Some(step.step) == stop_at => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    })?;
    Ok(outcome.finished())
}

#[test]
fn a_unet_is_trained_resumed_loaded_and_segments() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let folders = folders(folder.path(), "unet");
    let config = unet_config();
    assert!(train(&config, folder.path(), &folders, Some(3)).expect("a stop").is_none());
    let trained = train(&config, folder.path(), &folders, None).expect("resumes");
    let trained = trained.expect("the run finishes");
    assert!(folders.run.join("unet.safetensors").is_file());
    assert!(!folders.cache.join("embeddings").exists(), "there are no embeddings");

    let once = TrainingFolders { run: folder.path().join("once"), ..folders.clone() };
    let once = train(&config, folder.path(), &once, None).expect("trains").expect("finishes");
    let weights = |trained: &Trained<UNet>| Cases::read(&trained.network_file);
    let (resumed, uninterrupted) = (weights(&trained), weights(&once));
    for name in uninterrupted.names() {
        assert!(resumed.data(name) == uninterrupted.data(name), "{name} differs");
    }

    let data = dataset(folder.path());
    let report = trained.write_report(&data, |_, _, _| {}).expect("writes the report");
    assert_eq!(report.reports.len(), 2);
    let written = std::fs::read_to_string(folders.run.join("config.toml")).expect("written");
    assert!(written.starts_with("method = \"unet\"\n"), "{written}");
    let read = TrainingConfig::baseline(UNetConfig::new(9))
        .with_overrides(&written, "config.toml")
        .expect("valid");
    assert_eq!(read, config);

    segments_a_case(&trained.network_file, &data);
}

#[test]
fn a_network_of_another_method_is_refused() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let device = Device::flex();
    let file = folder.path().join("unet.safetensors");
    let model = unet_config().model.init(&device).expect("a valid configuration");
    model.save_network(&file).expect("saves");
    assert_eq!(NetworkMetadata::read(&file).expect("reads").foundation_sha256, None);

    let mut ladder = SamLstConfig::tiny(9).init(&device).expect("a valid configuration");
    let error = ladder.load_network(&file).expect_err("a U-Net");
    assert!(matches!(error, ModelError::WrongMethod { expected: "ladder", .. }), "{error}");
    assert!(error.to_string().contains("of the method `unet`, not of `ladder`"), "{error}");
    let sam = folder.path().join("sam.safetensors");
    ladder.save_sam(&sam).expect("saves");
    let error = PretrainedModel::load(&file, Some(&sam), &device).expect_err("no foundation");
    assert!(matches!(error, ModelError::UnusedFoundation { .. }), "{error}");

    let ladder_file = folder.path().join("ladder.safetensors");
    ladder.save_network(&ladder_file).expect("saves");
    let error = PretrainedModel::load(&ladder_file, None, &device).expect_err("a foundation");
    assert!(matches!(error, ModelError::MissingFoundation { .. }), "{error}");
    let mut unet = unet_config().model.init(&device).expect("a valid configuration");
    let error = unet.load_network(&ladder_file).expect_err("a ladder");
    assert!(matches!(error, ModelError::WrongMethod { expected: "unet", .. }), "{error}");
    let wider = UNetConfig::new(9).with_channels(vec![4, 6, 8, 12]);
    let mut wider = BaselineConfig { network: wider, ..unet_config().model }.init(&device);
    let error = wider.as_mut().expect("valid").load_network(&file).expect_err("other channels");
    assert!(
        matches!(&error, ModelError::WrongConfig { field, .. } if field == "network"),
        "{error}"
    );
}

#[test]
fn settings_that_do_not_fit_are_refused_before_training() {
    let invalid = |change: fn(&mut BaselineConfig<UNetConfig>)| {
        let mut config = unet_config().model;
        change(&mut config);
        let error = config.init(&Device::flex()).expect_err("invalid");
        assert!(matches!(error, ConfigError::Invalid(_)));
        error.to_string()
    };
    assert!(invalid(|c| c.network.num_classes = 0).starts_with("`network.num_classes` is 0"));
    assert!(invalid(|c| c.network.channels = vec![8]).starts_with("`network.channels` is [8]"));
    assert!(invalid(|c| c.network.channels[2] = 0).starts_with("`network.channels`"));
    assert!(invalid(|c| c.input_size = 50).starts_with("`input_size` is 50, with 4 levels"));
    assert!(invalid(|c| c.input_size = 8).contains("more than one pixel"));
    assert!(invalid(|c| c.input_size = 0).starts_with("`input_size` is 0"));

    let folder = tempfile::tempdir().expect("temporary folder");
    let folders = folders(folder.path(), "unet");
    let mut config = unet_config();
    config.cache.views = CachedViews::ALL;
    let error = train(&config, folder.path(), &folders, None).expect_err("a cache");
    assert!(error.to_string().starts_with("`cache.views` is set, but the method `unet`"));
    let mut config = unet_config();
    config.foundation_precision = FoundationPrecision::F16;
    let error = train(&config, folder.path(), &folders, None).expect_err("a precision");
    assert!(error.to_string().starts_with("`foundation_precision` is set"));
    assert!(!folders.run.join("config.toml").exists(), "the folder is not occupied");

    let error = TrainingConfig::baseline(UNetConfig::new(9))
        .with_overrides("method = \"ladder\"", "mine.toml");
    let error = error.expect_err("another method").to_string();
    assert!(error.contains("settings of the method `ladder`, but the method is `unet`"), "{error}");
}

/// A network of a user's own: it scales the image's first channel and the embedding's.
#[derive(burn::module::Module, Debug)]
struct Brightness {
    scale: burn::module::Param<Tensor<1>>,
}

#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
struct BrightnessConfig {
    seed: u64,
}

impl NetworkConfig for BrightnessConfig {
    const METHOD: &'static str = "brightness";

    fn num_classes(&self) -> usize {
        9
    }
    fn input_size(&self) -> usize {
        64
    }
    fn logits_size(&self) -> usize {
        4
    }
    fn seed(&self) -> u64 {
        self.seed
    }
    fn set_seed(&mut self, seed: u64) {
        self.seed = seed;
    }
    fn validate(&self) -> Result<(), ConfigError> {
        Ok(())
    }
}

impl SegmentationNetwork for Brightness {
    type Config = BrightnessConfig;
    type Foundation = sam_lst::Foundation;

    fn logits(&self, image: Tensor<4>, embedding: Option<Tensor<4>>) -> Tensor<4> {
        let embedding = embedding.expect("an embedding").narrow(1, 0, 1); // [B, 1, 4, 4]
        let [batch, ..] = image.dims();
        let pixels = image.narrow(1, 0, 1).reshape([batch, 4, 16, 4, 16]);
        let bright = pixels.mean_dim(4).mean_dim(2).reshape([batch, 1, 4, 4]);
        (bright + embedding) * self.scale.val().reshape([1, 9, 1, 1])
    }
}

#[test]
fn a_network_of_ones_own_is_trained_over_a_foundation() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let data = dataset(folder.path());
    let folders = folders(folder.path(), "own");
    let device = Device::flex().autodiff();
    let foundation = SamLstConfig::tiny(9).init(&device).expect("valid").foundation;
    let build =
        |device: &Device| Brightness { scale: burn::module::Initializer::Ones.init([9], device) };
    let config = config().with_model(BrightnessConfig { seed: 0 });
    let model = SegmentationModel::new(&config.model, foundation, build, &device);
    let training = Training::new(config, folders.clone());
    let model = model.expect("a valid configuration");
    let outcome = training.run(model.clone(), &data, |_| ControlFlow::Continue(()));
    let trained = outcome.expect("trains").finished().expect("finishes");
    assert!(folders.run.join("brightness.safetensors").is_file());
    assert!(folders.cache.join("embeddings").is_dir(), "its embeddings are cached");
    let [before, after] = [&model, &trained.model].map(|m| m.network.scale.val().into_data());
    assert_ne!(before, after);
    let error = PretrainedModel::load(&trained.network_file, None, &device).expect_err("unknown");
    assert!(matches!(error, ModelError::UnknownMethod { .. }), "{error}");
}
