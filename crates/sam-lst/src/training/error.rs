use super::TrainingConfigError;
use crate::weights::WeightsError;
use crate::{CacheError, PrecisionError, SamLstConfig};
use datasets::{DatasetError, WriteError};
use std::path::{Path, PathBuf};

/// Why training stopped, or did not start. What was saved before stays good.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainingError {
    /// A setting that cannot be.
    #[error(transparent)]
    Config(#[from] TrainingConfigError),
    /// The data cannot be read.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The embedding cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The device does not compute in the foundation's precision.
    #[error("foundation_precision: {0}")]
    Precision(#[from] PrecisionError),
    /// Reports cannot be written.
    #[error(transparent)]
    Reports(#[from] WriteError),
    /// A ladder cannot be saved or loaded.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A file of the run cannot be written.
    #[error("{}: cannot be written: {source}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file of the run cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A checkpoint cannot be written or, later, read. The one before it is still there while one is written.
    #[error("{}: cannot be written or read: {reason}", path.display())]
    Checkpoint {
        /// Its folder.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Another process trains into the folder.
    #[error("{}: another process trains into this folder; choose another, or wait", folder.display())]
    InUse {
        /// The run's folder.
        folder: PathBuf,
    },
    /// The folder has a run with other settings.
    #[error(
        "{} has a run with other settings: `{found}`, asked for is `{asked}`; choose another folder, or remove it",
        file.display()
    )]
    OtherSettings {
        /// Where they are written.
        file: PathBuf,
        /// The first line that differs, in the folder.
        found: String,
        /// The same line of what is asked for.
        asked: String,
    },
    /// The model is another than the configuration's.
    #[error("the model was made from another configuration than the training's `model`")]
    OtherModel {
        /// The model's.
        found: Box<SamLstConfig>,
    },
    /// The model cannot be trained where it is.
    #[error("the model is on a device without autodiff; make it on `device.autodiff()`")]
    NoAutodiff,
    /// The model has no tensor that trains.
    #[error("nothing trains with `fusion = \"Untrained\"`: evaluate the model as it is")]
    NothingTrains,
    /// The model has not one mask for each class.
    #[error(
        "the dataset `{dataset}` has {classes} classes, background included, but the model draws {masks} masks"
    )]
    Classes {
        /// The dataset.
        dataset: String,
        /// Its classes.
        classes: usize,
        /// The model's masks.
        masks: usize,
    },
    /// The batches of a step cannot be shared evenly.
    #[error(
        "{devices} devices cannot share the {batches} batches of a step evenly; set accumulated_batches to a multiple of {devices}"
    )]
    UnevenDevices {
        /// Devices.
        devices: usize,
        /// Batches of a step.
        batches: usize,
    },
    /// Embeddings are asked for, but none is kept.
    #[error(
        "with these settings no embedding is kept: cache.views is 0, or the fusion does without the foundation"
    )]
    NothingKept,
    /// The training cases have no slices.
    #[error("the training cases of `{dataset}` have no slices")]
    NoSlices {
        /// The dataset.
        dataset: String,
    },
    /// The program asked the run to stop.
    #[error(
        "stopped after step {steps}, which is saved; the same settings in the same folder go on from there"
    )]
    Stopped {
        /// Steps done.
        steps: u64,
    },
    /// The loss, or a weight, is no number any more.
    #[error(
        "step {step} (epoch {epoch}): {what} is not finite; slices {slices}. The last good checkpoint is kept. \
         Lower optimization.schedule.base, and look at these slices",
        slices = slices.join(", ")
    )]
    NotFinite {
        /// The step, from 0.
        step: u64,
        /// Its epoch, from 0.
        epoch: u64,
        /// What is not.
        what: &'static str,
        /// The batch: case and slice.
        slices: Vec<String>,
    },
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
