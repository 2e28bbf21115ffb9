use super::keys::{IMAGE_ENCODER, MASK_DECODER, PROMPT_ENCODER, Part};
use super::{StateDict, WeightsError, fingerprint, load, write};
use crate::{Ladder, SamLstConfig, SideEncoder, Task};
use burn::config::Config;
use burn::module::Module;
use burn::store::burn_pack::Tensor as PackTensor;
use mask_decoder::DecoderTuning;
use sam_encoder::SamEncoder;
use std::collections::HashMap;
use std::path::Path;

pub(super) const CONFIG_KEY: &str = "sam_lst.config";
const VERSION_KEY: &str = "sam_lst.version";
const FOUNDATION_KEY: &str = "sam_lst.foundation_sha256";
const TASK_KEY: &str = "sam_lst.task";
const FROZEN_KEY: &str = "sam_lst.frozen_decoder_sha256";

/// What a ladder checkpoint says of itself.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LadderMetadata {
    /// Configuration of the model, the seed included.
    pub config: SamLstConfig,
    /// What the ladder is trained for, where that was known.
    pub task: Option<Task>,
    /// Version of this library that wrote it.
    pub version: String,
    /// SHA-256 of the foundation's weights.
    pub foundation_sha256: String,
    /// SHA-256 of the decoder's weights that came from SAM's checkpoint and are not in this file.
    pub frozen_decoder_sha256: String,
}

impl LadderMetadata {
    /// Reads what a ladder checkpoint says of itself, without its tensors.
    ///
    /// # Errors
    ///
    /// A [`WeightsError`] if the file cannot be read or is not a ladder checkpoint.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, WeightsError> {
        Self::of(&StateDict::open(path)?)
    }

    fn of(source: &StateDict) -> Result<Self, WeightsError> {
        let get = |key: &str| {
            source
                .metadata(key)
                .map(str::to_string)
                .ok_or_else(|| WeightsError::WrongKind {
                    path: source.path().into(),
                    expected: format!("a ladder checkpoint, with {key} in its metadata"),
                    found: source.describe(),
                })
        };
        let config = get(CONFIG_KEY)?;
        let config = SamLstConfig::load_binary(config.as_bytes()).map_err(|error| {
            WeightsError::Damaged {
                path: source.path().into(),
                reason: format!("its configuration cannot be read: {error}"),
            }
        })?;
        let task = source.metadata(TASK_KEY).map(serde_json::from_str);
        let task = task.transpose().map_err(|error| WeightsError::Damaged {
            path: source.path().into(),
            reason: format!("its task cannot be read: {error}"),
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

/// Beginnings of the names of the tensors that are frozen and that SAM's checkpoint has: what a ladder checkpoint does
/// without. Everything else is trained, or its shape depends on the number of classes.
fn frozen_in_sam(tuning: DecoderTuning) -> &'static [&'static str] {
    match tuning {
        DecoderTuning::Full => &["prompt_encoder."],
        DecoderTuning::Upscaling | DecoderTuning::UpscalingAndHeads => &[
            "prompt_encoder.",
            "mask_decoder.transformer.",
            "mask_decoder.iou_token.",
        ],
    }
}

/// The tensors that a ladder checkpoint holds, and those that it does without. Where the frozen ones did not come from
/// SAM's checkpoint, it holds them all.
fn split<S: SideEncoder>(
    ladder: &Ladder<S>,
    config: &SamLstConfig,
) -> (Vec<PackTensor>, Vec<PackTensor>) {
    let left_out = match ladder.sam_loaded {
        true => frozen_in_sam(config.tuning),
        false => &[],
    };
    fingerprint::collect(ladder, "")
        .into_iter()
        .partition(|tensor| !left_out.iter().any(|start| tensor.name.starts_with(start)))
}

pub(crate) fn save_ladder<S: SideEncoder>(
    ladder: &Ladder<S>,
    config: &SamLstConfig,
    task: Option<&Task>,
    foundation_sha256: &str,
    path: &Path,
) -> Result<(), WeightsError> {
    // `valid` settles the running statistics, which belong to the thread that trained.
    let (saved, frozen) = split(&ladder.valid(), config);
    let mut metadata = HashMap::from(
        [
            (CONFIG_KEY, config.to_string()),
            (VERSION_KEY, env!("CARGO_PKG_VERSION").to_string()),
            (FOUNDATION_KEY, foundation_sha256.to_string()),
            (FROZEN_KEY, fingerprint::sha256(frozen)),
            ("format", "pt".to_string()),
        ]
        .map(|(key, value)| (key.to_string(), value)),
    );
    if let Some(task) = task {
        let task = serde_json::to_string(task).expect("a task is plain data");
        metadata.insert(TASK_KEY.to_string(), task);
    }
    write::safetensors(path, path, saved, metadata)
}

pub(crate) fn save_sam<S: SideEncoder>(
    encoder: &SamEncoder,
    ladder: &Ladder<S>,
    path: &Path,
) -> Result<(), WeightsError> {
    let decoders = fingerprint::collect(&ladder.valid(), "")
        .into_iter()
        .filter(|tensor| {
            [PROMPT_ENCODER.prefix, MASK_DECODER.prefix]
                .iter()
                .any(|prefix| tensor.name.starts_with(prefix))
        });
    let tensors = fingerprint::collect(encoder, IMAGE_ENCODER.prefix)
        .into_iter()
        .chain(decoders)
        .collect();
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    write::safetensors(path, path, tensors, metadata)
}

pub(crate) fn load_ladder<S: SideEncoder>(
    ladder: &Ladder<S>,
    config: &SamLstConfig,
    foundation_sha256: &str,
    path: &Path,
) -> Result<(Ladder<S>, Option<Task>), WeightsError> {
    let source = StateDict::open(path)?;
    let metadata = LadderMetadata::of(&source)?;
    expect_config(path, config, &metadata.config)?;
    let expect_hash = |part: &'static str, expected: String, found: String| {
        if expected == found {
            return Ok(());
        }
        Err(WeightsError::WrongFoundation {
            path: path.into(),
            part,
            expected,
            found,
        })
    };
    expect_hash(
        "foundation",
        metadata.foundation_sha256,
        foundation_sha256.to_string(),
    )?;
    // A ladder over random frozen weights carries them all.
    let carries_all = source
        .names()
        .any(|name| name.starts_with("prompt_encoder."));
    if !carries_all {
        let (_, frozen) = split(ladder, config);
        expect_hash(
            "mask decoder",
            metadata.frozen_decoder_sha256,
            fingerprint::sha256(frozen),
        )?;
    }
    let part = Part {
        prefix: "",
        description: "a ladder checkpoint",
        left_out: match carries_all {
            true => &[],
            false => frozen_in_sam(config.tuning),
        },
    };
    let mut loaded = load(unshared(ladder), &source, &part)?;
    loaded.sam_loaded = ladder.sam_loaded && !carries_all;
    Ok((loaded, metadata.task))
}

/// A copy that shares no running statistics with the original, on the same device and with the same tensors training.
fn unshared<S: SideEncoder>(ladder: &Ladder<S>) -> Ladder<S> {
    let devices = ladder.devices();
    let copy = ladder.valid();
    match devices.iter().find(|device| device.is_autodiff()) {
        // `fork` brings back the device's checkpointing strategy, which `train` does not know.
        Some(device) => copy.train().fork(device),
        None => copy,
    }
}

/// Compares what decides the tensors' shapes and meaning; the seed does neither once a ladder is trained.
fn expect_config(
    path: &Path,
    expected: &SamLstConfig,
    found: &SamLstConfig,
) -> Result<(), WeightsError> {
    let fields = |config: &SamLstConfig| -> Vec<(String, serde_json::Value)> {
        match serde_json::to_value(config) {
            Ok(serde_json::Value::Object(fields)) => fields
                .into_iter()
                .filter(|(name, _)| name != "seed")
                .collect(),
            _ => Vec::new(),
        }
    };
    for ((field, expected), (_, found)) in fields(expected).into_iter().zip(fields(found)) {
        if expected != found {
            return Err(WeightsError::WrongConfig {
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
    use sam_encoder::SamEncoderConfig;

    #[test]
    fn the_published_ladders_checkpoint_has_about_17_mb() {
        // Over a small foundation, of which a checkpoint holds nothing.
        let mut config = SamLstConfig::vit_b(9);
        config.encoder = SamEncoderConfig::tiny().with_out_channels(256);
        let mut model = config.init(&Device::flex()).expect("valid");
        model.ladder.sam_loaded = true;

        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ladder.safetensors");
        model.save_ladder(&path).expect("saves");
        let megabytes = std::fs::metadata(&path).expect("saved").len() as f64 / 1e6;
        assert!((16.5..17.5).contains(&megabytes), "{megabytes} MB");
    }
}
