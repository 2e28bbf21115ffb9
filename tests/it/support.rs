//! Fixtures, comparisons with them, and test processes.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::store::{ModuleSnapshot, ModuleStore, PyTorchToBurnAdapter, SafetensorsStore, bridge};
use burn::tensor::{Device, Tensor, TensorData};
use sam_lst::model::{SideConfig, SideNetwork};
use sam_lst::resnet_side::ResNetSideConfig;
use sam_lst::tiny_vit::TinyVitConfig;
use sam_lst::weights::official_name;
use sam_lst::{DecoderTuning, SamLst, SamLstConfig};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixtures").join(name)
}

pub fn sam_pth() -> PathBuf {
    fixture("sam_tiny/sam_tiny.pth")
}

pub fn resnet_pth() -> PathBuf {
    fixture("ladder_tiny/resnet_tiny.pth")
}

/// LiteMedSAM's published weights: the file that `LITE_MEDSAM` names, or `target/lite_medsam.pth`,
/// which `.ci/lite-medsam` fetches. `None` if it does not exist; the test says that it was skipped.
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
pub fn lite_medsam_pth() -> Option<PathBuf> {
    let default = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/lite_medsam.pth");
    let path = std::env::var_os("LITE_MEDSAM").map_or_else(default, PathBuf::from);
    if !path.exists() {
        eprintln!("skipped: {} does not exist; .ci/lite-medsam fetches it", path.display());
        return None;
    }
    Some(path)
}

/// The configuration of the fixtures' model: `SamLstConfig::tiny` with nine classes.
pub fn config() -> SamLstConfig {
    SamLstConfig::tiny(9)
}

const ARGUMENT: &str = "SAM_LST_TEST_ARGUMENT";

/// A command that runs one ignored test of this test binary in a separate process, in which
/// [`process_argument`] returns `argument`.
pub fn test_process(test: &str, argument: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("path of the test binary"));
    command.args([test, "--exact", "--ignored"]).env(ARGUMENT, argument);
    command
}

/// The argument of a [`test_process`]; `None` if the test was started in another way, such as by
/// running all ignored tests.
pub fn process_argument() -> Option<OsString> {
    std::env::var_os(ARGUMENT)
}

/// Tensors of a safetensors file, usually results of PyTorch.
pub struct Cases(BTreeMap<String, TensorData>);

impl Cases {
    pub fn open(name: &str) -> Self {
        Self::read(&fixture(name).join("cases.safetensors"))
    }

    /// Reads the tensors of any safetensors file.
    pub fn read(file: &Path) -> Self {
        let mut store = SafetensorsStore::from_file(file);
        let tensors = store.get_all_tensors().expect("read fixture");
        Self(
            tensors
                .iter()
                .map(|(name, tensor)| (name.clone(), bridge::to_data(tensor).expect("fixture")))
                .collect(),
        )
    }

    pub fn data(&self, name: &str) -> TensorData {
        self.0.get(name).unwrap_or_else(|| panic!("fixture has no {name}")).clone()
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    pub fn tensor<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D> {
        Tensor::from_data(self.data(name), device)
    }

    /// Asserts `max|actual - expected| / max|expected| <= tolerance`.
    #[track_caller]
    pub fn assert_close<const D: usize>(&self, name: &str, actual: Tensor<D>, tolerance: f64) {
        let error = relative_error(actual.into_data(), self.data(name));
        assert!(error <= tolerance, "{name}: relative error {error:.2e}, limit {tolerance:.0e}");
    }
}

/// An image or target in `[0, 1]` without random numbers: Burn has one generator for all threads,
/// so a test that draws from it would change the initial weights of a model in another test.
pub fn pattern(shape: [usize; 4], device: &Device) -> Tensor<4> {
    let values: Vec<f32> = (0..shape.iter().product::<usize>())
        .map(|i| 0.5 + 0.5 * (i as f32 * 0.37).sin() * (i as f32 * 0.0113).cos())
        .collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

#[track_caller]
pub fn relative_error(actual: TensorData, expected: TensorData) -> f64 {
    largest_difference(&actual, &expected) / largest(&expected)
}

#[track_caller]
pub fn largest(data: &TensorData) -> f64 {
    let largest = data.iter::<f64>().fold(0.0, |max: f64, x| max.max(x.abs()));
    assert!(largest > 0.0, "a fixture of zeros tests nothing");
    largest
}

#[track_caller]
pub fn largest_difference(actual: &TensorData, expected: &TensorData) -> f64 {
    assert_eq!(actual.shape(), expected.shape(), "shapes differ");
    actual
        .iter::<f64>()
        .zip(expected.iter::<f64>())
        .map(|(a, b)| (a - b).abs())
        // `max` would ignore a NaN.
        .fold(0.0, |max: f64, x| if x.is_nan() { f64::INFINITY } else { max.max(x) })
}

/// The fixtures' model: SAM's and torchvision's tiny files, and PyTorch's random values of the
/// tensors whose shape depends on the number of classes.
pub fn ladder_model(cases: &Cases, config: &SamLstConfig, device: &Device) -> SamLst {
    let mut model = SamLst::from_official(config, sam_pth(), Some(&resnet_pth()), device)
        .expect("load fixtures");
    apply_cases(&mut model, cases);
    model
}

/// The model of the fixture `ladder_tiny_vit`: a ladder of stride 4 over a tiny TinyViT.
pub fn tiny_vit_model(cases: &Cases, tuning: DecoderTuning, device: &Device) -> SamLst {
    let side = ResNetSideConfig::resnet18().with_width(16).with_pyramid_channels(Some(64));
    let mut config = config().with_input_size(36).with_side(SideConfig::ResNet(side));
    config.encoder = TinyVitConfig::tiny().into();
    config.tuning = tuning;
    let sam = fixture("tiny_vit/lite.pth");
    let mut model = SamLst::from_official(&config, sam, Some(&resnet_pth()), device)
        .expect("load the fixtures");
    apply_cases(&mut model, cases);
    model
}

/// Gives the model the fixture's values of the tensors that are in none of the published files.
fn apply_cases(model: &mut SamLst, cases: &Cases) {
    let pytorch = || Some(Box::new(PyTorchToBurnAdapter) as _);
    if let Some(SideNetwork::ResNet(side)) = &mut model.network.side
        && let Some(pyramid) = &mut side.pyramid
    {
        let names = cases.names().filter_map(|name| name.strip_prefix("pyramid."));
        let tensors = names.map(|name| {
            bridge::from_data(cases.data(&format!("pyramid.{name}")), name.into(), None)
        });
        let result = pyramid.apply(tensors.collect(), None, pytorch(), true);
        assert!(result.errors.is_empty() && result.unused.is_empty(), "{result}");
    }
    let tensors = cases
        .names()
        .filter(|name| name.starts_with("decoder."))
        .map(|name| {
            let burn_name = name["decoder.".len()..].replace("mask_tokens.weight", "mask_tokens");
            bridge::from_data(cases.data(name), burn_name, None)
        })
        .collect();
    let decoder = &mut model.network.mask_decoder;
    let result = decoder.apply(tensors, None, pytorch(), true);
    assert!(result.errors.is_empty() && result.unused.is_empty(), "{result}");
    for (index, tap) in model.network.taps.iter_mut().enumerate() {
        apply_weights(tap, cases, &format!("taps.{index}."));
    }
    if let Some(mut gate) = model.network.gate.take() {
        let alpha = bridge::from_data(cases.data("alpha"), "alpha".into(), None);
        assert!(gate.apply(vec![alpha], None, None, true).errors.is_empty());
        model.network.gate = Some(gate);
    }
}

/// Gives a network all its tensors from a fixture, whose names are ours after a prefix.
pub fn apply_weights(network: &mut impl ModuleSnapshot, cases: &Cases, prefix: &str) {
    let names = cases.names().filter_map(|name| name.strip_prefix(prefix));
    let tensors = names
        .map(|name| bridge::from_data(cases.data(&format!("{prefix}{name}")), name.into(), None));
    let adapter = Some(Box::new(PyTorchToBurnAdapter) as _);
    let result = network.apply(tensors.collect(), None, adapter, true);
    assert!(result.errors.is_empty() && result.unused.is_empty(), "{result}");
    assert!(result.missing.is_empty(), "{result}");
}

/// The gradients of a backward pass by official name.
pub fn gradients(
    network: &impl Module,
    gradients: &GradientsParams,
) -> BTreeMap<String, TensorData> {
    struct Collect<'a> {
        path: Vec<String>,
        gradients: &'a GradientsParams,
        found: BTreeMap<String, TensorData>,
    }
    impl ModuleVisitor for Collect<'_> {
        fn enter_module(&mut self, name: &str, container: &str) {
            if !container.starts_with("Enum:") {
                self.path.push(name.into());
            }
        }
        fn exit_module(&mut self, _: &str, container: &str) {
            if !container.starts_with("Enum:") {
                self.path.pop();
            }
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let Some(gradient) = self.gradients.get::<D>(param.id) else {
                return;
            };
            let name = official_name(&self.path.join("."));
            // Burn stores the weight of a linear layer transposed.
            let tables = [
                "mask_tokens.weight",
                "iou_token.weight",
                "no_mask_embed.weight",
                "prompt_tokens",
                "rel_pos_h",
                "rel_pos_w",
                "relative_position_bias_table",
            ];
            let is_linear = D == 2 && !tables.iter().any(|table| name.ends_with(table));
            let gradient = if is_linear { gradient.swap_dims(0, 1) } else { gradient };
            self.found.insert(name, gradient.into_data());
        }
    }
    let mut collect = Collect { path: Vec::new(), gradients, found: BTreeMap::new() };
    network.visit(&mut collect);
    collect.found
}

/// `|actual - expected| / |expected|` in the Euclidean norm.
pub fn norm_error(actual: &TensorData, expected: &TensorData) -> f64 {
    norm_of_difference(actual, expected) / norm(expected)
}

/// `|data|` in the Euclidean norm.
pub fn norm(data: &TensorData) -> f64 {
    data.iter::<f64>().map(|x| x * x).sum::<f64>().sqrt()
}

/// `|actual - expected|` in the Euclidean norm.
#[track_caller]
pub fn norm_of_difference(actual: &TensorData, expected: &TensorData) -> f64 {
    assert_eq!(actual.shape(), expected.shape(), "shapes differ");
    let pairs = actual.iter::<f64>().zip(expected.iter::<f64>());
    pairs.map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
}
