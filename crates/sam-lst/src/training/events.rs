//! Progress of a run, as its callback receives it.

use crate::embeddings::CacheError;
use std::ops::ControlFlow;
use std::time::Duration;

/// What a run will do, known before its first step.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingPlan {
    /// Training cases.
    pub training_cases: usize,
    /// Slices of the training cases.
    pub slices: usize,
    /// Validation cases.
    pub validation_cases: usize,
    /// Trained parameters.
    pub trained_parameters: usize,
    /// Steps in an epoch.
    pub steps_per_epoch: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Steps completed by earlier processes.
    pub completed_steps: u64,
    /// Different embeddings that the remaining steps need and that belong in the cache.
    pub cacheable_embeddings: usize,
    /// How many of these are in the cache already.
    pub cached_embeddings: usize,
    /// Embeddings that the remaining steps need and that are not cached, counted with repetition.
    pub uncached_embeddings: usize,
    /// Bytes on disk of the cacheable embeddings.
    pub cache_bytes: u64,
    /// Measured time of one embedding; `None` if none has to be computed.
    pub time_per_embedding: Option<Duration>,
    /// Devices that share the work.
    pub devices: usize,
    /// The organs of a validation, in its order.
    pub organs: Vec<String>,
    /// Number of training cases that contain each of these organs.
    pub organ_cases: Vec<usize>,
}

impl TrainingPlan {
    /// Images that the foundation has to embed.
    pub fn missing_embeddings(&self) -> usize {
        self.cacheable_embeddings - self.cached_embeddings + self.uncached_embeddings
    }

    /// Epochs of the whole run.
    pub fn epochs(&self) -> u64 {
        self.total_steps / self.steps_per_epoch
    }
}

/// A completed step.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingStep {
    /// Index of the step in the run, from 0.
    pub step: u64,
    /// Index of its epoch, from 0.
    pub epoch: u64,
    /// Mixture of the losses, mean over the step's batches.
    pub loss: f64,
    /// Cross entropy.
    pub cross_entropy: f64,
    /// Soft Dice loss.
    pub dice_loss: f64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Weight of SAM's embedding after the step; `None` without a gate.
    pub gate: Option<f32>,
    /// Embeddings that this process has computed so far.
    pub computed_embeddings: usize,
}

/// Scores of the validation cases.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingValidation {
    /// Completed epochs.
    pub epochs: u64,
    /// Mean DSC over organs, in `[0, 1]`.
    pub mean_dsc: f64,
    /// Mean DSC of each organ over the cases, in the order of [`TrainingPlan::organs`]; `None` for
    /// an organ that no case has.
    pub organ_dsc: Vec<Option<f64>>,
    /// Whether this is the best validation so far.
    pub best: bool,
}

/// Progress of a run.
#[derive(Debug)]
#[non_exhaustive]
pub enum TrainingEvent<'a> {
    /// Cases are being decoded.
    ReadingCases {
        /// Decoded cases.
        done: usize,
        /// All cases.
        total: usize,
    },
    /// Slices are being looked up in the embedding cache.
    CheckingCache {
        /// Slices that were looked up.
        done: usize,
        /// All slices.
        total: usize,
    },
    /// The plan is known; work is about to begin.
    Planned(&'a TrainingPlan),
    /// Missing embeddings are being computed, here or by other processes.
    Precomputing {
        /// Embeddings that are present by now.
        done: usize,
        /// All embeddings that were missing.
        total: usize,
    },
    /// A step is complete.
    Step(&'a TrainingStep),
    /// A validation case is being segmented.
    Validating {
        /// Name of the case.
        case: &'a str,
        /// Segmented slices.
        done: usize,
        /// All slices of the case.
        total: usize,
    },
    /// A validation is complete.
    Validated(&'a TrainingValidation),
    /// No more embeddings are written to the cache; training continues and computes them instead.
    CacheFull(&'a CacheError),
}

/// Passes events to the callback and remembers what it answered.
pub(super) struct EventSink<'a> {
    callback: &'a mut dyn FnMut(TrainingEvent<'_>) -> ControlFlow<()>,
    /// Whether the callback has requested a stop.
    pub stop_requested: bool,
    /// Whether a full cache was reported; it is reported once.
    pub cache_full: bool,
}

impl<'a> EventSink<'a> {
    pub fn new(callback: &'a mut dyn FnMut(TrainingEvent<'_>) -> ControlFlow<()>) -> Self {
        Self { callback, stop_requested: false, cache_full: false }
    }

    pub fn emit(&mut self, event: TrainingEvent<'_>) {
        self.stop_requested |= (self.callback)(event).is_break();
    }

    /// Reports that the cache takes no more embeddings, if `error` says so and it was not reported.
    pub fn emit_cache_full(&mut self, error: Option<&CacheError>) {
        if let (Some(error), false) = (error, self.cache_full) {
            self.cache_full = true;
            self.emit(TrainingEvent::CacheFull(error));
        }
    }
}
