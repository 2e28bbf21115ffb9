use super::TrainingConfigError;
use crate::embeddings::CacheError;
use crate::evaluation::EvaluationError;
use crate::model::{ModelError, PrecisionError};
use crate::weights::WeightsError;
use sam_lst_datasets::{DatasetError, WriteError};
use std::path::{Path, PathBuf};

/// Why training failed or did not start. Checkpoints saved before remain valid.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainingError {
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] TrainingConfigError),
    /// The data cannot be read.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The embedding cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The device does not support the foundation's precision.
    #[error("foundation_precision: {0}")]
    Precision(#[from] PrecisionError),
    /// The trained model cannot be evaluated.
    #[error(transparent)]
    Evaluation(#[from] EvaluationError),
    /// Reports cannot be written.
    #[error(transparent)]
    Reports(#[from] WriteError),
    /// A network cannot be saved or loaded.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A file of the run cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A file of the run cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A checkpoint cannot be written. The previous one exists until the next is complete.
    #[error("cannot write checkpoint {}: {reason}; the previous checkpoint is intact", path.display())]
    WriteCheckpoint {
        /// Its folder.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// A checkpoint cannot be read.
    #[error(
        "cannot read checkpoint {}: {reason}; copy it again, or delete this folder to train anew",
        path.display()
    )]
    ReadCheckpoint {
        /// Its folder.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// The folder contains files with names of a run's results, but no run.
    #[error(
        "cannot use run folder {}: it contains {found}, but no config.toml, so it cannot be \
         resumed and would be overwritten; choose another folder, or move {found} away",
        folder.display()
    )]
    NoRun {
        /// The folder.
        folder: PathBuf,
        /// Name of a file or folder in it.
        found: String,
    },
    /// Another process is training in the folder.
    #[error(
        "cannot use run folder {}: another process is training in it; choose another folder or wait",
        folder.display()
    )]
    InUse {
        /// The run's folder.
        folder: PathBuf,
    },
    /// The folder contains a run with other settings.
    #[error(
        "cannot resume: {} has `{found}`, but the current settings have `{requested}`; use the \
         settings and the version that the run was started with, or choose another run folder",
        file.display()
    )]
    OtherSettings {
        /// The file that differs.
        file: PathBuf,
        /// Its first line that differs.
        found: String,
        /// The same line of the current settings.
        requested: String,
    },
    /// The data is not that which the run in the folder was trained on so far.
    #[error(
        "cannot resume: the files of case {case} are not those that the run began with ({} has \
         another SHA-256); restore the files, or choose another run folder",
        file.display()
    )]
    OtherData {
        /// The run's list of cases.
        file: PathBuf,
        /// The first case that differs.
        case: String,
    },
    /// The model was created from another configuration.
    #[error("the model's configuration differs from the training configuration's `model`")]
    OtherModel {
        /// The model's configuration.
        found: String,
    },
    /// A setting of the foundation, which the model does not have.
    #[error("`{setting}` is set, but the method `{method}` has no foundation; remove the setting")]
    NoFoundation {
        /// The method.
        method: &'static str,
        /// Name of the setting.
        setting: &'static str,
    },
    /// The model is on a device without autodiff.
    #[error("the model is on a device without autodiff; create it on `device.autodiff()`")]
    NoAutodiff,
    /// The model has no trainable parameter.
    #[error(
        "the model has no trainable parameter: `fusion = \"Untrained\"` is for evaluation only"
    )]
    NothingTrains,
    /// The number of masks differs from the number of classes.
    #[error(
        "the dataset `{dataset}` has {classes} classes including the background, but the model \
         predicts {masks} masks"
    )]
    Classes {
        /// Name of the dataset.
        dataset: String,
        /// Its number of classes, background included.
        classes: usize,
        /// The model's number of masks.
        masks: usize,
    },
    /// The first device is not the model's.
    #[error("the first of the training devices is not the device of the model")]
    FirstDevice,
    /// The devices cannot share the batches of a step evenly.
    #[error(
        "{devices} devices cannot share the {batches} batches of a step evenly; set \
         accumulated_batches to a multiple of {devices}"
    )]
    UnevenDevices {
        /// Number of devices.
        devices: usize,
        /// Batches in a step.
        batches: usize,
    },
    /// Embeddings are to be precomputed, but the settings cache none.
    #[error(
        "these settings cache no embeddings: cache.views is 0, or the fusion does not use the \
         foundation"
    )]
    NothingToCache,
    /// The training cases have no slices.
    #[error("the training cases of `{dataset}` have no slices")]
    NoSlices {
        /// Name of the dataset.
        dataset: String,
    },
    /// Runs that are compared saw other data.
    #[error(
        "cannot compare {} with {}: they differ in {difference}; compare runs of the same data",
        run.display(), first.display()
    )]
    NotComparable {
        /// The folder of the run.
        run: PathBuf,
        /// The folder of the first run of the comparison.
        first: PathBuf,
        /// What differs.
        difference: &'static str,
    },
    /// The loss or a parameter is NaN or infinite.
    #[error(
        "training diverged at step {step} (epoch {epoch}): {what} is not finite, in slices {slices}; \
         lower optimization.schedule.base or check these slices; the last checkpoint is intact",
        slices = slices.join(", ")
    )]
    NotFinite {
        /// The step, from 0.
        step: u64,
        /// Its epoch, from 0.
        epoch: u64,
        /// What is not finite.
        what: &'static str,
        /// Case and slice of each slice in the batch.
        slices: Vec<String>,
    },
}

impl From<WeightsError> for TrainingError {
    fn from(error: WeightsError) -> Self {
        Self::Model(error.into())
    }
}

impl TrainingError {
    pub(super) fn read(path: &Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Read { path, source }
    }

    pub(super) fn write(path: &Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Write { path, source }
    }
}
