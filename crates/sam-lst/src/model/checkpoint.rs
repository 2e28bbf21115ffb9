use super::encoder::FrozenEncoder;
use super::{Ladder, ModelError, SamLstConfig, SideEncoder, Task};
use crate::weights::{
    self, LADDER_CONFIG_KEY, MASK_DECODER, PROMPT_ENCODER, Part, StateDict, WeightsError,
};
use burn::config::Config;
use burn::module::Module;
use burn::store::burn_pack::Tensor as PackTensor;
use sam_lst_mask_decoder::DecoderTuning;
use std::collections::HashMap;
use std::path::Path;

const VERSION_KEY: &str = "sam_lst.version";
const FOUNDATION_KEY: &str = "sam_lst.foundation_sha256";
const TASK_KEY: &str = "sam_lst.task";
const FROZEN_KEY: &str = "sam_lst.frozen_decoder_sha256";

/// Metadata of a ladder checkpoint.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LadderMetadata {
    /// Configuration of the model, including the seed.
    pub config: SamLstConfig,
    /// The task that the ladder is trained for, if known.
    pub task: Option<Task>,
    /// Version of this library that wrote the file.
    pub version: String,
    /// SHA-256 of the foundation's weights.
    pub foundation_sha256: String,
    /// SHA-256 of the weights of prompt encoder and mask decoder that are not in this file, but in
    /// SAM's checkpoint.
    pub frozen_decoder_sha256: String,
}

impl LadderMetadata {
    /// Reads the metadata of a ladder checkpoint, without the values of its tensors.
    ///
    /// # Errors
    ///
    /// A [`WeightsError`] if the file cannot be read, is damaged, or is not a ladder checkpoint.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, WeightsError> {
        Self::from_state_dict(&StateDict::open(path)?)
    }

    fn from_state_dict(source: &StateDict) -> Result<Self, WeightsError> {
        let get = |key: &str| {
            source.metadata(key).map(str::to_string).ok_or_else(|| WeightsError::WrongKind {
                path: source.path().into(),
                expected: format!("a ladder checkpoint with `{key}` in its metadata"),
                found: source.describe(),
            })
        };
        let config = get(LADDER_CONFIG_KEY)?;
        let config = SamLstConfig::load_binary(config.as_bytes()).map_err(|error| {
            WeightsError::Damaged {
                path: source.path().into(),
                reason: format!("invalid configuration: {error}"),
            }
        })?;
        let task = source.metadata(TASK_KEY).map(serde_json::from_str);
        let task = task.transpose().map_err(|error| WeightsError::Damaged {
            path: source.path().into(),
            reason: format!("invalid task: {error}"),
        })?;
        Ok(Self {
            config,
            task,
            version: get(VERSION_KEY)?,
            foundation_sha256: get(FOUNDATION_KEY)?,
            frozen_decoder_sha256: get(FROZEN_KEY)?,
        })
    }
}

/// Name prefixes of the frozen tensors of SAM's checkpoint, which a ladder checkpoint omits. All
/// other tensors are trained, or their shape depends on the number of classes.
fn frozen_sam_prefixes(tuning: DecoderTuning) -> &'static [&'static str] {
    match tuning {
        DecoderTuning::Full => &["prompt_encoder."],
        DecoderTuning::Upscaling | DecoderTuning::UpscalingAndHeads => {
            &["prompt_encoder.", "mask_decoder.transformer.", "mask_decoder.iou_token."]
        }
    }
}

/// Splits the ladder's tensors into those that its checkpoint contains and those that it omits. The
/// latter are empty if the frozen tensors were not loaded from SAM's checkpoint.
fn partition_tensors<S: SideEncoder>(
    ladder: &Ladder<S>,
    config: &SamLstConfig,
) -> (Vec<PackTensor>, Vec<PackTensor>) {
    let omitted = if ladder.sam_loaded { frozen_sam_prefixes(config.tuning) } else { &[] };
    weights::collect(ladder, "")
        .into_iter()
        .partition(|tensor| !omitted.iter().any(|prefix| tensor.name.starts_with(prefix)))
}

pub(crate) fn save_ladder<S: SideEncoder>(
    ladder: &Ladder<S>,
    config: &SamLstConfig,
    task: Option<&Task>,
    foundation_sha256: &str,
    path: &Path,
) -> Result<(), WeightsError> {
    // `valid` synchronises the running statistics, which are local to the training thread.
    let (saved, frozen) = partition_tensors(&ladder.valid(), config);
    let mut metadata = HashMap::from(
        [
            (LADDER_CONFIG_KEY, config.to_string()),
            (VERSION_KEY, env!("CARGO_PKG_VERSION").to_string()),
            (FOUNDATION_KEY, foundation_sha256.to_string()),
            (FROZEN_KEY, weights::sha256(frozen)),
            ("format", "pt".to_string()),
        ]
        .map(|(key, value)| (key.to_string(), value)),
    );
    if let Some(task) = task {
        let task = serde_json::to_string(task).expect("a task is plain data");
        metadata.insert(TASK_KEY.to_string(), task);
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

pub(crate) fn load_ladder<S: SideEncoder>(
    ladder: &Ladder<S>,
    config: &SamLstConfig,
    foundation_sha256: &str,
    path: &Path,
) -> Result<(Ladder<S>, Option<Task>), ModelError> {
    let source = StateDict::open(path)?;
    let metadata = LadderMetadata::from_state_dict(&source)?;
    expect_config(path, config, &metadata.config)?;
    let expect_hash = |part: &'static str, expected: String, found: String| {
        if expected == found {
            return Ok(());
        }
        Err(ModelError::WrongFoundation { path: path.into(), part, expected, found })
    };
    expect_hash("foundation", metadata.foundation_sha256, foundation_sha256.to_string())?;
    // The checkpoint of a ladder with random frozen weights includes them.
    let is_complete = source.names().any(|name| name.starts_with("prompt_encoder."));
    if !is_complete {
        let (_, frozen) = partition_tensors(ladder, config);
        expect_hash("mask decoder", metadata.frozen_decoder_sha256, weights::sha256(frozen))?;
    }
    let part = Part {
        prefix: "",
        description: "a ladder checkpoint",
        left_out: if is_complete { &[] } else { frozen_sam_prefixes(config.tuning) },
    };
    let mut loaded = weights::load(independent_copy(ladder), &source, &part)?;
    loaded.sam_loaded = ladder.sam_loaded && !is_complete;
    Ok((loaded, metadata.task))
}

/// Copies a ladder without sharing its running statistics. The copy is on the same device and has
/// the same trainable tensors.
fn independent_copy<S: SideEncoder>(ladder: &Ladder<S>) -> Ladder<S> {
    let devices = ladder.devices();
    let copy = ladder.valid();
    match devices.iter().find(|device| device.is_autodiff()) {
        // `train` loses the device's gradient checkpointing strategy; `fork` restores it.
        Some(device) => copy.train().fork(device),
        None => copy,
    }
}

/// Compares all settings but the seed, which does not matter once a ladder is trained.
fn expect_config(
    path: &Path,
    expected: &SamLstConfig,
    found: &SamLstConfig,
) -> Result<(), ModelError> {
    let fields = |config: &SamLstConfig| -> Vec<(String, serde_json::Value)> {
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
        model.ladder.sam_loaded = true;

        let folder = tempfile::tempdir().expect("creates a folder");
        let path = folder.path().join("ladder.safetensors");
        model.save_ladder(&path).expect("saves");
        let megabytes = std::fs::metadata(&path).expect("saved").len() as f64 / 1e6;
        assert!((16.5..17.5).contains(&megabytes), "{megabytes} MB");
    }
}
