use super::encoder::FrozenEncoder;
use super::{
    Ladder, ModelError, NetworkConfig, SamLstConfig, SegmentationModel, SegmentationNetwork,
    SideEncoder, Task,
};
use crate::weights::{
    self, IMAGE_ENCODER, MASK_DECODER, METHOD_KEY, NETWORK_CONFIG_KEY, PROMPT_ENCODER, Part,
    StateDict, WeightsError,
};
use burn::module::Module;
use burn::store::burn_pack::Tensor as PackTensor;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

const VERSION_KEY: &str = "sam_lst.version";
const FOUNDATION_KEY: &str = "sam_lst.foundation_sha256";
const TASK_KEY: &str = "sam_lst.task";
const FROZEN_KEY: &str = "sam_lst.frozen_decoder_sha256";

/// Metadata of the checkpoint of a network.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct NetworkMetadata {
    /// Name of the method, as [`NetworkConfig::METHOD`].
    pub method: String,
    /// The task that the network is trained for, if known.
    pub task: Option<Task>,
    /// Version of this library that wrote the file.
    pub version: String,
    /// SHA-256 of the foundation's weights; `None` for a network without a foundation.
    pub foundation_sha256: Option<String>,
    /// SHA-256 of the frozen tensors that are not in this file, but in the foundation's.
    frozen_sha256: Option<String>,
    config: String,
    path: PathBuf,
}

impl NetworkMetadata {
    /// Reads the metadata of a checkpoint, without the values of its tensors.
    ///
    /// # Errors
    ///
    /// A [`WeightsError`] if the file cannot be read, is damaged, or is not the checkpoint of a
    /// network.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, WeightsError> {
        Self::from_state_dict(&StateDict::open(path)?)
    }

    fn from_state_dict(source: &StateDict) -> Result<Self, WeightsError> {
        let get = |key: &str| source.metadata(key).map(str::to_string);
        let required = |key: &str| {
            get(key).ok_or_else(|| WeightsError::WrongKind {
                path: source.path().into(),
                expected: format!("a trained network with `{key}` in its metadata"),
                found: source.describe(),
            })
        };
        let task = source.metadata(TASK_KEY).map(serde_json::from_str);
        let task = task.transpose().map_err(|error| WeightsError::Damaged {
            path: source.path().into(),
            reason: format!("invalid task: {error}"),
        })?;
        Ok(Self {
            config: required(NETWORK_CONFIG_KEY)?,
            version: required(VERSION_KEY)?,
            method: source.method().to_owned(),
            task,
            foundation_sha256: get(FOUNDATION_KEY),
            frozen_sha256: get(FROZEN_KEY),
            path: source.path().into(),
        })
    }

    /// The configuration of the network.
    ///
    /// # Errors
    ///
    /// [`ModelError::WrongMethod`] if the checkpoint is of another method, [`ModelError::Weights`]
    /// if the configuration is damaged.
    pub fn config<C: NetworkConfig>(&self) -> Result<C, ModelError> {
        if self.method != C::METHOD {
            return Err(ModelError::WrongMethod {
                path: self.path.clone(),
                expected: C::METHOD,
                found: self.method.clone(),
            });
        }
        let config = serde_json::from_str(&self.config).map_err(|error| WeightsError::Damaged {
            path: self.path.clone(),
            reason: format!("invalid configuration: {error}"),
        })?;
        Ok(config)
    }
}

/// Splits the network's tensors into those that its checkpoint contains and those that it omits.
/// The latter are empty if the frozen tensors were not loaded from the foundation's file.
fn partition_tensors<N: SegmentationNetwork>(
    network: &N,
    frozen_loaded: bool,
) -> (Vec<PackTensor>, Vec<PackTensor>) {
    weights::collect(network, "")
        .into_iter()
        .partition(|tensor| !(frozen_loaded && network.is_in_foundation_file(&tensor.name)))
}

pub(super) fn save<N: SegmentationNetwork>(
    model: &SegmentationModel<N>,
    path: &Path,
) -> Result<(), WeightsError> {
    // `valid` synchronises the running statistics, which are local to the training thread.
    let (saved, frozen) = partition_tensors(&model.network.valid(), model.frozen_loaded);
    let mut metadata = HashMap::from(
        [
            (NETWORK_CONFIG_KEY, serde_json::to_string_pretty(model.config()).expect("plain data")),
            (VERSION_KEY, env!("CARGO_PKG_VERSION").to_string()),
            ("format", "pt".to_string()),
        ]
        .map(|(key, value)| (key.to_string(), value)),
    );
    let mut add = |key: &str, value: String| _ = metadata.insert(key.to_string(), value);
    if N::Config::METHOD != SamLstConfig::METHOD {
        add(METHOD_KEY, N::Config::METHOD.to_string());
    }
    if let Some(sha256) = model.foundation_sha256() {
        add(FOUNDATION_KEY, sha256.to_string());
    }
    if model.foundation_sha256().is_some() || !frozen.is_empty() {
        add(FROZEN_KEY, weights::sha256(frozen));
    }
    if let Some(task) = &model.task {
        add(TASK_KEY, serde_json::to_string(task).expect("a task is plain data"));
    }
    weights::write_safetensors(path, path, saved, metadata)
}

pub(crate) fn save_sam<S: SideEncoder>(
    encoder: &dyn FrozenEncoder,
    ladder: &Ladder<S>,
    path: &Path,
) -> Result<(), WeightsError> {
    let decoders = weights::collect(&ladder.valid(), "").into_iter().filter(|tensor| {
        [PROMPT_ENCODER.prefix, MASK_DECODER.prefix]
            .iter()
            .any(|prefix| tensor.name.starts_with(prefix))
    });
    let tensors = encoder.tensors().into_iter().chain(decoders).collect();
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    weights::write_safetensors(path, path, tensors, metadata)
}

pub(super) fn load<N: SegmentationNetwork>(
    model: &mut SegmentationModel<N>,
    path: &Path,
) -> Result<(), ModelError> {
    let source = StateDict::open(path)?;
    let metadata = NetworkMetadata::from_state_dict(&source)?;
    expect_config(path, model.config(), &metadata.config()?)?;
    let expect_hash = |part: &'static str, expected: &Option<String>, found: &str| {
        if expected.as_deref() == Some(found) {
            return Ok(());
        }
        let expected = expected.clone().unwrap_or_else(|| "not recorded".to_owned());
        let (path, found) = (path.into(), found.to_owned());
        Err(ModelError::WrongFoundation { path, part, expected, found })
    };
    if let Some(sha256) = model.foundation_sha256() {
        expect_hash("foundation", &metadata.foundation_sha256, sha256)?;
    }
    let network = &model.network;
    // The checkpoint of a network with random frozen weights includes them.
    let is_complete = metadata.frozen_sha256.is_none()
        || source.names().any(|name| network.is_in_foundation_file(name));
    if !is_complete {
        let (_, frozen) = partition_tensors(network, model.frozen_loaded);
        let has_encoder = frozen.iter().any(|tensor| tensor.name.starts_with(IMAGE_ENCODER.prefix));
        let part = if has_encoder { "image encoder" } else { "mask decoder" };
        expect_hash(part, &metadata.frozen_sha256, &weights::sha256(frozen))?;
    }
    let part = Part { prefix: "", description: "a trained network", left_out: &[] };
    let is_in_file = |name: &str| is_complete || !network.is_in_foundation_file(name);
    let loaded = weights::load_where(independent_copy(network), &source, &part, is_in_file)?;
    model.network = loaded;
    model.frozen_loaded &= !is_complete;
    model.task = metadata.task;
    Ok(())
}

/// Copies a network without sharing its running statistics. The copy is on the same device and has
/// the same trainable tensors.
pub(super) fn independent_copy<N: SegmentationNetwork>(network: &N) -> N {
    let devices = network.devices();
    let copy = network.valid();
    match devices.iter().find(|device| device.is_autodiff()) {
        // `train` loses the device's gradient checkpointing strategy; `fork` restores it.
        Some(device) => copy.train().fork(device),
        None => copy,
    }
}

/// Compares all settings but the seed, which does not matter once a ladder is trained.
fn expect_config<C: NetworkConfig>(path: &Path, expected: &C, found: &C) -> Result<(), ModelError> {
    let fields = |config: &C| -> Vec<(String, serde_json::Value)> {
        match serde_json::to_value(config) {
            Ok(serde_json::Value::Object(fields)) => {
                fields.into_iter().filter(|(name, _)| name != "seed").collect()
            }
            _ => Vec::new(),
        }
    };
    for ((field, expected), (_, found)) in fields(expected).into_iter().zip(fields(found)) {
        if expected != found {
            return Err(ModelError::WrongConfig {
                path: path.into(),
                field,
                expected: expected.to_string(),
                found: found.to_string(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use sam_lst_sam_encoder::SamEncoderConfig;

    #[test]
    fn a_checkpoint_of_the_published_ladder_takes_about_17_mb() {
        // A small foundation suffices, because the checkpoint contains nothing of it.
        let mut config = SamLstConfig::vit_b(9);
        config.encoder = SamEncoderConfig::tiny().with_out_channels(256).into();
        let mut model = config.init(&Device::flex()).expect("valid");
        model.frozen_loaded = true;

        let folder = tempfile::tempdir().expect("creates a folder");
        let path = folder.path().join("ladder.safetensors");
        model.save_network(&path).expect("saves");
        let megabytes = std::fs::metadata(&path).expect("saved").len() as f64 / 1e6;
        assert!((16.5..17.5).contains(&megabytes), "{megabytes} MB");
    }
}
