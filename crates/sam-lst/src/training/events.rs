//! What a run tells of itself.

use crate::CacheError;
use std::ops::ControlFlow;
use std::time::Duration;

/// What is known of a run before its first step.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingPlan {
    /// Training cases.
    pub cases: usize,
    /// Their slices.
    pub slices: usize,
    /// Validation cases.
    pub validation_cases: usize,
    /// Values that train.
    pub trained_values: usize,
    /// Steps in an epoch.
    pub epoch_steps: u64,
    /// Steps in all.
    pub steps: u64,
    /// Steps that were done when the run was last interrupted.
    pub steps_done: u64,
    /// Different embeddings that the steps ahead ask for and that are kept, if there is room.
    pub kept_embeddings: usize,
    /// Of these, how many were kept before.
    pub found_embeddings: usize,
    /// Embeddings that the steps ahead ask for and that are not kept, counted as often as they do.
    pub unkept_embeddings: usize,
    /// What the kept ones take on disk.
    pub kept_bytes: u64,
    /// What the foundation takes for one embedding, measured; none where nothing is left for it to do.
    pub embedding_time: Option<Duration>,
    /// Devices that share the work.
    pub devices: usize,
    /// The organs of a validation, in its order.
    pub organs: Vec<String>,
}

impl TrainingPlan {
    /// Times that the foundation has to be run on an image.
    pub fn missing_embeddings(&self) -> usize {
        self.kept_embeddings - self.found_embeddings + self.unkept_embeddings
    }
}

/// A step that was done.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingStep {
    /// Its number in the run, from 0.
    pub step: u64,
    /// Its epoch, from 0.
    pub epoch: u64,
    /// The mixture of losses, the mean over the step's batches.
    pub loss: f64,
    /// Cross entropy alone.
    pub cross_entropy: f64,
    /// Soft Dice loss alone.
    pub dice_loss: f64,
    /// The step's learning rate.
    pub learning_rate: f64,
    /// Weight of SAM's embedding after the step; none without a gate.
    pub gate: Option<f32>,
    /// Embeddings that this process has computed so far, not found.
    pub computed_embeddings: usize,
}

/// Scores of the validation cases.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingValidation {
    /// Epochs done.
    pub epochs: u64,
    /// Mean DSC over organs.
    pub mean_dsc: f64,
    /// Each organ's mean DSC over the cases, in the order of [`TrainingPlan::organs`]; none where no case has it.
    pub organ_dsc: Vec<Option<f64>>,
    /// Whether it is the best so far.
    pub best: bool,
}

/// What a run tells while it goes on.
#[derive(Debug)]
#[non_exhaustive]
pub enum TrainingEvent<'a> {
    /// Cases are decoded: how many of how many.
    Reading(usize, usize),
    /// Slices are looked up in the cache: how many of how many.
    Planning(usize, usize),
    /// Work is about to begin.
    Planned(&'a TrainingPlan),
    /// Embeddings that are to be kept are computed, here or by other processes: how many of how many are there.
    Embedding(usize, usize),
    /// A step was done.
    Stepped(&'a TrainingStep),
    /// A case is validated: its name, how many of its slices are done, and how many it has.
    Validating(&'a str, usize, usize),
    /// All are.
    Validated(&'a TrainingValidation),
    /// Nothing more is kept in the cache: training goes on, computing what is not there.
    CacheFull(&'a CacheError),
}

/// Who is told, whether they asked the run to stop, and what is told once.
pub(super) struct Told<'a> {
    events: &'a mut dyn FnMut(TrainingEvent<'_>) -> ControlFlow<()>,
    pub stop: bool,
    /// Whether it was said that the cache takes no more.
    pub cache_full: bool,
}

impl<'a> Told<'a> {
    pub fn new(events: &'a mut dyn FnMut(TrainingEvent<'_>) -> ControlFlow<()>) -> Self {
        Self {
            events,
            stop: false,
            cache_full: false,
        }
    }

    pub fn tell(&mut self, event: TrainingEvent<'_>) {
        self.stop |= (self.events)(event).is_break();
    }

    /// Says why the cache takes no more, if that is so and was not said before.
    pub fn tell_full(&mut self, why: Option<&CacheError>) {
        if let (Some(error), false) = (why, self.cache_full) {
            self.cache_full = true;
            self.tell(TrainingEvent::CacheFull(error));
        }
    }
}
