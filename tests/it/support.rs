//! Fixtures and how to compare with them.

use burn::store::{ModuleStore, SafetensorsStore, bridge};
use burn::tensor::{Device, Tensor, TensorData};
use sam_lst::SamLstConfig;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

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
