//! Fixtures and how to compare with them.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::store::{ModuleSnapshot, ModuleStore, PyTorchToBurnAdapter, SafetensorsStore, bridge};
use burn::tensor::{Device, Tensor, TensorData};
use sam_lst::weights::official_name;
use sam_lst::{Ladder, SamLst, SamLstConfig};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/it/fixtures")
        .join(name)
}

pub fn sam_pth() -> PathBuf {
    fixture("sam_tiny/sam_tiny.pth")
}

pub fn resnet_pth() -> PathBuf {
    fixture("ladder_tiny/resnet_tiny.pth")
}

/// The fixtures' model: `SamLstConfig::tiny` with nine classes.
pub fn config() -> SamLstConfig {
    SamLstConfig::tiny(9)
}

const ARGUMENT: &str = "SAM_LST_TEST_ARGUMENT";

/// One ignored test of this program, in a process of its own, to which [`argument`] gives `argument`.
pub fn alone(test: &str, argument: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command
        .args([test, "--exact", "--ignored"])
        .env(ARGUMENT, argument);
    command
}

/// What [`alone`] gave this process; none where somebody asked for all ignored tests.
pub fn argument() -> Option<OsString> {
    std::env::var_os(ARGUMENT)
}

/// What PyTorch computed.
pub struct Cases(BTreeMap<String, TensorData>);

impl Cases {
    pub fn open(name: &str) -> Self {
        Self::read(&fixture(name).join("cases.safetensors"))
    }

    /// The tensors of any safetensors file.
    pub fn read(file: &Path) -> Self {
        let mut store = SafetensorsStore::from_file(file);
        let tensors = store.get_all_tensors().expect("fixture");
        Self(
            tensors
                .iter()
                .map(|(name, tensor)| (name.clone(), bridge::to_data(tensor).expect("fixture")))
                .collect(),
        )
    }

    pub fn data(&self, name: &str) -> TensorData {
        self.0
            .get(name)
            .unwrap_or_else(|| panic!("fixture has no {name}"))
            .clone()
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

    /// Asserts `max|ours - theirs| / max|theirs| <= at_most`.
    #[track_caller]
    pub fn assert_close<const D: usize>(&self, name: &str, ours: Tensor<D>, at_most: f64) {
        let error = relative_error(ours.into_data(), self.data(name));
        assert!(
            error <= at_most,
            "{name}: relative error {error:.2e}, at most {at_most:.0e}"
        );
    }
}

/// An image or target in `[0, 1]` without random numbers: Burn has one generator for all threads, and a test that drew
/// from it would disturb the initial weights that another is drawing.
pub fn pattern(shape: [usize; 4], device: &Device) -> Tensor<4> {
    let values: Vec<f32> = (0..shape.iter().product::<usize>())
        .map(|i| 0.5 + 0.5 * (i as f32 * 0.37).sin() * (i as f32 * 0.0113).cos())
        .collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

#[track_caller]
pub fn relative_error(ours: TensorData, theirs: TensorData) -> f64 {
    largest_difference(&ours, &theirs) / largest(&theirs)
}

#[track_caller]
pub fn largest(data: &TensorData) -> f64 {
    let largest = data.iter::<f64>().fold(0.0, |max: f64, x| max.max(x.abs()));
    assert!(largest > 0.0, "a fixture of zeros shows nothing");
    largest
}

#[track_caller]
pub fn largest_difference(ours: &TensorData, theirs: &TensorData) -> f64 {
    assert_eq!(ours.shape(), theirs.shape(), "shapes differ");
    ours.iter::<f64>()
        .zip(theirs.iter::<f64>())
        .map(|(a, b)| (a - b).abs())
        // `max` would pass over a NaN.
        .fold(0.0, |max: f64, x| {
            if x.is_nan() {
                f64::INFINITY
            } else {
                max.max(x)
            }
        })
}

/// The ladder of the fixture: SAM's and torchvision's tiny files, and PyTorch's draw of what depends on the classes.
pub fn ladder_model(cases: &Cases, config: &SamLstConfig, device: &Device) -> SamLst {
    let mut model = SamLst::from_official(config, sam_pth(), Some(&resnet_pth()), device)
        .expect("fixtures load");
    let tensors = cases
        .names()
        .filter(|name| name.starts_with("decoder."))
        .map(|name| {
            let ours = name["decoder.".len()..].replace("mask_tokens.weight", "mask_tokens");
            bridge::from_data(cases.data(name), ours, None)
        })
        .collect();
    let decoder = &mut model.ladder.mask_decoder;
    let result = decoder.apply(tensors, None, Some(Box::new(PyTorchToBurnAdapter)), true);
    assert!(
        result.errors.is_empty() && result.unused.is_empty(),
        "{result}"
    );
    if let Some(gate) = model.ladder.gate.take() {
        let alpha = bridge::from_data(cases.data("alpha"), "alpha".into(), None);
        let mut gate = gate;
        assert!(gate.apply(vec![alpha], None, None, true).errors.is_empty());
        model.ladder.gate = Some(gate);
    }
    model
}

/// The gradients that a backward pass left, by official name.
pub fn gradients(ladder: &Ladder, gradients: &GradientsParams) -> BTreeMap<String, TensorData> {
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

/// `|ours - theirs| / |theirs|` in the Euclidean norm.
pub fn norm_error(ours: &TensorData, theirs: &TensorData) -> f64 {
    norm_of_difference(ours, theirs) / norm(theirs)
}

/// `|data|` in the Euclidean norm.
pub fn norm(data: &TensorData) -> f64 {
    data.iter::<f64>().map(|x| x * x).sum::<f64>().sqrt()
}

/// `|ours - theirs|` in the Euclidean norm.
#[track_caller]
pub fn norm_of_difference(ours: &TensorData, theirs: &TensorData) -> f64 {
    assert_eq!(ours.shape(), theirs.shape(), "shapes differ");
    let pairs = ours.iter::<f64>().zip(theirs.iter::<f64>());
    pairs.map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
}
