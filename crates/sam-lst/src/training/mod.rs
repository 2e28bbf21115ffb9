//! Training a ladder on a dataset.

mod config;
mod error;
mod folder;
mod receipt;

pub use config::{CacheConfig, TrainingConfig, TrainingConfigError};
pub use error::TrainingError;

use crate::{
    Batch, Batches, Embedder, EmbeddingCache, Ladder, SamLst, SegmentationConfig, Segmenter,
    SideEncoder, Task, Waiting,
};
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{GradientsAccumulator, GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Tensor, TensorData};
use datasets::{Case, Dataset, SliceStore, Split, View, Volume};
use folder::{Log, Position, RunFolder};
use losses::{CrossEntropyDiceLoss, CrossEntropyDiceLossConfig};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Where a run's files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainingFolders {
    /// The run's own: configuration, logs, checkpoints, ladders, receipt. The same settings in the same folder go on with
    /// the run.
    pub run: PathBuf,
    /// What runs share: decoded slices and embeddings.
    pub cache: PathBuf,
}

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
    /// Different embeddings that the run asks for and that are kept, if there is room.
    pub kept_embeddings: usize,
    /// Embeddings that it asks for and that are not kept, counted as often as it does.
    pub unkept_embeddings: usize,
    /// Embeddings in the cache at the start, of this run's or of others.
    pub found_embeddings: usize,
    /// What the kept ones take on disk.
    pub kept_bytes: u64,
    /// What the foundation takes for one embedding, measured; none where the model does without it.
    pub embedding_time: Option<Duration>,
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
    /// Embeddings that were computed so far, not found.
    pub computed_embeddings: usize,
}

/// Scores of the validation cases.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingValidation {
    /// Epochs done.
    pub epochs: u64,
    /// Mean DSC over organs.
    pub mean_dsc: f64,
    /// Each organ's mean DSC over the cases, in the dataset's report order; none where no case has it.
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
    /// Training is about to begin.
    Planned(&'a TrainingPlan),
    /// A step was done.
    Stepped(&'a TrainingStep),
    /// A case is validated: its name, how many of its slices are done, and how many it has.
    Validating(&'a str, usize, usize),
    /// All are.
    Validated(&'a TrainingValidation),
    /// Nothing more is kept in the cache: training goes on, computing what is not there.
    CacheFull(&'a crate::CacheError),
}

/// A finished run.
#[derive(Debug)]
pub struct Trained<S: SideEncoder> {
    /// The model with the ladder of the best validation, or of the last step where no case validates.
    pub model: SamLst<S>,
    /// Its checkpoint.
    pub ladder_file: PathBuf,
    /// The mean DSC of the best validation.
    pub best_dsc: Option<f64>,
}

/// Trains a model's ladder on a dataset's training cases.
///
/// The run's folder then has `config.toml`, `dataset.toml` and `cases.txt`, which say what was trained on what; `steps.csv` and
/// `validation.csv`, the logs; `ladder.safetensors` of the last step and, with validation cases, `best.safetensors`;
/// `receipt.json`; and a checkpoint. Called again with the same settings, a run that was cut off, however, goes on from its
/// checkpoint and ends as one that was not (on the CPU bit for bit), and one that was finished is loaded.
///
/// Each step is told to `events`.
///
/// # Errors
///
/// [`TrainingError`]: before anything is computed for settings that cannot be or do not fit the model or the dataset;
/// later if a file cannot be read or written, or the loss is not finite.
pub fn train<S: SideEncoder>(
    mut model: SamLst<S>,
    dataset: &Dataset,
    config: &TrainingConfig,
    folders: &TrainingFolders,
    mut events: impl FnMut(TrainingEvent<'_>),
) -> Result<Trained<S>, TrainingError> {
    let started = Instant::now();
    check(&model, dataset, config)?;
    let description = dataset.description();
    let cases = dataset.cases(Split::Train)?;
    let validation: Vec<&Case> = dataset
        .all_cases()
        .iter()
        .filter(|case| case.split == Split::Validation)
        .collect();
    let case_list: String = cases
        .iter()
        .chain(&validation)
        .map(|case| format!("{}: {}\n", case.split, case.name))
        .collect();
    let foundation = model.foundation.weights_sha256();
    let run = RunFolder::open(
        &folders.run,
        &[
            ("config.toml", config.to_toml()),
            ("dataset.toml", description.to_toml()),
            ("cases.txt", case_list),
            ("foundation.sha256", foundation.to_owned()),
        ],
    )?;
    model.task = Some(Task {
        dataset: description.clone(),
        geometry: config.geometry,
    });
    events(TrainingEvent::Reading(0, cases.len()));
    let store = SliceStore::open(dataset, &cases, folders.cache.join("slices"), |done| {
        events(TrainingEvent::Reading(done, cases.len()));
    })?;
    if store.is_empty() {
        return Err(TrainingError::NoSlices {
            dataset: description.name.clone(),
        });
    }
    let batches = Batches::new(
        &store,
        &config.model,
        config.geometry,
        config.batch_size,
        config.seed,
    );
    let batches = match config.augmentation {
        true => batches,
        false => batches.without_augmentation(),
    };
    let cache = match config.cache.views.count() > 0 && config.model.fusion.uses_sam() {
        true => Some(model.embedding_cache(
            folders.cache.join("embeddings"),
            config.cache.precision,
            config.cache.limit_bytes(),
        )?),
        false => None,
    };
    let (ladder, optimizer, position) =
        run.load(model.ladder.clone(), config.optimization.optimizer.init())?;
    model.ladder = ladder;
    let plan = plan(
        &model,
        config,
        &batches,
        cache.as_ref(),
        &position,
        [&cases, &validation],
    );
    events(TrainingEvent::Planned(&plan));

    let organs: Vec<&str> = description
        .report_classes()
        .into_iter()
        .map(|class| description.organ(class).name.as_str())
        .collect();
    let validations_done = match validation.is_empty() {
        true => 0,
        false => (1..=position.epochs)
            .filter(|&epochs| config.validates_after(epochs))
            .count(),
    };
    let foundation = model.foundation.clone();
    let mut trainer = Trainer {
        embedder: embedder(&foundation, cache.as_ref(), config),
        loss: CrossEntropyDiceLossConfig::new()
            .with_dice_weight(config.dice_weight)
            .init(),
        steps_log: run.log("steps.csv", &STEPS_HEADER, position.steps)?,
        validation_log: run.log(
            "validation.csv",
            &[["epochs", "mean_dsc"].as_slice(), &organs].concat(),
            validations_done as u64,
        )?,
        seconds_before: position.seconds,
        model,
        optimizer,
        position,
        config,
        run: &run,
        cache: cache.as_ref(),
        batches,
        store: &store,
        plan: &plan,
        dataset,
        validation,
        started,
        waiting: Waiting::default(),
        told_full: false,
    };
    trainer.run(&mut events)?;
    let Trainer {
        mut model,
        position,
        ..
    } = trainer;
    let ladder_file = run.file(match position.best_dsc {
        Some(_) => BEST,
        None => LAST,
    });
    model.load_ladder(&ladder_file)?;
    Ok(Trained {
        model,
        ladder_file,
        best_dsc: position.best_dsc,
    })
}

const BEST: &str = "best.safetensors";
const LAST: &str = "ladder.safetensors";
const STEPS_HEADER: [&str; 7] = [
    "step",
    "epoch",
    "loss",
    "cross_entropy",
    "dice_loss",
    "learning_rate",
    "gate",
];

impl TrainingConfig {
    fn validates_after(&self, epochs: u64) -> bool {
        epochs.is_multiple_of(self.validation_epochs) || epochs == self.epochs
    }
}

fn check<S: SideEncoder>(
    model: &SamLst<S>,
    dataset: &Dataset,
    config: &TrainingConfig,
) -> Result<(), TrainingError> {
    config.validate()?;
    if *model.config() != config.model {
        return Err(TrainingError::OtherModel {
            found: Box::new(model.config().clone()),
        });
    }
    let (masks, classes) = (config.model.num_classes(), dataset.description().classes());
    if masks != classes {
        return Err(TrainingError::Classes {
            dataset: dataset.description().name.clone(),
            classes,
            masks,
        });
    }
    if !model.ladder.devices().iter().all(Device::is_autodiff) {
        return Err(TrainingError::NoAutodiff);
    }
    match model.ladder.trained_tensors().is_empty() {
        true => Err(TrainingError::NothingTrains),
        false => Ok(()),
    }
}

fn embedder<'a>(
    foundation: &'a crate::Foundation,
    cache: Option<&'a EmbeddingCache>,
    config: &TrainingConfig,
) -> Embedder<'a> {
    let embedder = Embedder::new(foundation);
    match cache {
        Some(cache) => embedder.with_cache(cache, config.cache.views),
        None => embedder,
    }
}

fn plan<S: SideEncoder>(
    model: &SamLst<S>,
    config: &TrainingConfig,
    batches: &Batches<'_>,
    cache: Option<&EmbeddingCache>,
    position: &Position,
    [cases, validation]: [&[&Case]; 2],
) -> TrainingPlan {
    let mut kept: BTreeSet<(usize, View)> = BTreeSet::new();
    let (mut slices, mut unkept) = (0, 0);
    for epoch in 0..config.epochs {
        slices = 0;
        for step in 0..batches.steps() {
            for (slice, view) in batches.plan(epoch, step) {
                slices += 1;
                match cache.is_some() && config.cache.views.keeps(view) {
                    true => _ = kept.insert((slice, view)),
                    false => unkept += 1,
                }
            }
        }
    }
    let uses_sam = config.model.fusion.uses_sam();
    let epoch_steps = batches.steps().div_ceil(config.accumulated_batches) as u64;
    TrainingPlan {
        cases: cases.len(),
        slices,
        validation_cases: validation.len(),
        trained_values: model
            .ladder
            .trained_tensors()
            .iter()
            .map(|(_, values)| values)
            .sum(),
        epoch_steps,
        steps: epoch_steps * config.epochs,
        steps_done: position.steps,
        kept_embeddings: kept.len(),
        unkept_embeddings: if uses_sam { unkept } else { 0 },
        found_embeddings: cache.map_or(0, EmbeddingCache::len),
        kept_bytes: cache.map_or(0, |cache| cache.embedding_bytes() * kept.len() as u64),
        embedding_time: uses_sam.then(|| {
            let device = model.foundation.device();
            let size = config.model.input_size;
            let embed = || {
                let image = Tensor::<4>::zeros([1, 3, size, size], &device);
                let start = Instant::now();
                model.foundation.embed(image).into_data();
                start.elapsed()
            };
            embed(); // the first time has work of its own
            embed()
        }),
    }
}

/// A run on its way.
struct Trainer<'a, S: SideEncoder> {
    model: SamLst<S>,
    optimizer: ModuleOptimizer,
    embedder: Embedder<'a>,
    loss: CrossEntropyDiceLoss,
    steps_log: Log,
    validation_log: Log,
    position: Position,
    seconds_before: f64,
    config: &'a TrainingConfig,
    run: &'a RunFolder,
    cache: Option<&'a EmbeddingCache>,
    batches: Batches<'a>,
    store: &'a SliceStore<'a>,
    plan: &'a TrainingPlan,
    dataset: &'a Dataset,
    validation: Vec<&'a Case>,
    started: Instant,
    waiting: Waiting,
    told_full: bool,
}

/// The batches of one step, so far.
struct Accumulated<S: SideEncoder> {
    gradients: GradientsAccumulator<Ladder<S>>,
    losses: [f64; 3],
}

impl<S: SideEncoder> Accumulated<S> {
    fn new() -> Self {
        Self {
            gradients: GradientsAccumulator::new(),
            losses: [0.0; 3],
        }
    }
}

impl<S: SideEncoder> Trainer<'_, S> {
    fn run(&mut self, events: &mut impl FnMut(TrainingEvent<'_>)) -> Result<(), TrainingError> {
        while !self.position.finished {
            let epoch = self.position.epochs;
            self.epoch(epoch, events)?;
            let epochs = epoch + 1;
            if !self.validation.is_empty() && self.config.validates_after(epochs) {
                self.validate(epochs, events)?;
            }
            self.position.epochs = epochs;
            let patient = self
                .config
                .patience
                .is_none_or(|patience| self.position.without_improvement < patience);
            self.position.finished = epochs == self.config.epochs || !patient;
            if self.position.finished {
                self.model.save_ladder(self.run.file(LAST))?;
                receipt::write(self)?;
            }
            self.save()?;
        }
        Ok(())
    }

    /// The steps of an epoch that are not yet done.
    fn epoch(
        &mut self,
        epoch: u64,
        events: &mut impl FnMut(TrainingEvent<'_>),
    ) -> Result<(), TrainingError> {
        let done = self.position.steps - epoch * self.plan.epoch_steps;
        let first = done as usize * self.config.accumulated_batches;
        let mut accumulated = Accumulated::new();
        let mut failed = None;
        // What makes the batches is copied out, since each batch changes the rest.
        let (batches, workers) = (self.batches, self.config.workers);
        let waiting = batches.prefetched(epoch, first, workers, |batch| {
            match self.batch(epoch, &batch, &mut accumulated, events) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        self.waiting.time += waiting.time;
        self.waiting.batches += waiting.batches;
        failed.map_or(Ok(()), Err)
    }

    fn batch(
        &mut self,
        epoch: u64,
        batch: &Batch,
        accumulated: &mut Accumulated<S>,
        events: &mut impl FnMut(TrainingEvent<'_>),
    ) -> Result<(), TrainingError> {
        let at_once = self.config.accumulated_batches;
        let first = batch.step / at_once * at_once;
        let together = at_once.min(self.batches.steps() - first);
        let ladder = &self.model.ladder;
        let device = ladder
            .devices()
            .into_iter()
            .next()
            .expect("a ladder has parameters");
        let images = batch.images(&device);
        let embedding = match ladder.fusion().uses_sam() {
            true => Some(self.embedder.embed(images.clone(), &batch.views)?),
            false => None,
        };
        if let (Some(error), false) = (self.embedder.full(), self.told_full) {
            events(TrainingEvent::CacheFull(error));
            self.told_full = true;
        }
        let logits = ladder.forward(images, embedding).logits;
        let parts = self.loss.forward(logits, batch.labels(&device));
        let values =
            [&parts.total, &parts.cross_entropy, &parts.dice].map(|part| part.clone().inner());
        // One transfer for the three.
        let values: Vec<f64> = Tensor::cat(values.into(), 0)
            .into_data()
            .iter::<f64>()
            .collect();
        if !values.iter().all(|value| value.is_finite()) {
            return Err(self.not_finite(epoch, batch, "the loss"));
        }
        for (sum, value) in accumulated.losses.iter_mut().zip(values) {
            *sum += value / together as f64;
        }
        let share = match together {
            1 => parts.total,
            _ => parts.total / together as f64,
        };
        let gradients = GradientsParams::from_grads(share.backward(), ladder);
        accumulated.gradients.accumulate(ladder, gradients);
        if batch.step + 1 < first + together {
            return Ok(());
        }
        self.step(
            epoch,
            batch,
            std::mem::replace(accumulated, Accumulated::new()),
            events,
        )
    }

    /// A step of the optimizer, after the last of its batches.
    fn step(
        &mut self,
        epoch: u64,
        batch: &Batch,
        mut accumulated: Accumulated<S>,
        events: &mut impl FnMut(TrainingEvent<'_>),
    ) -> Result<(), TrainingError> {
        let step = self.position.steps;
        let learning_rate = self.config.optimization.schedule.at(step, self.plan.steps);
        self.model.ladder = self.optimizer.step(
            learning_rate,
            self.model.ladder.clone(),
            accumulated.gradients.grads(),
        );
        let [loss, cross_entropy, dice_loss] = accumulated.losses;
        let done = TrainingStep {
            step,
            epoch,
            loss,
            cross_entropy,
            dice_loss,
            learning_rate,
            gate: self.model.ladder.gate_value(),
            computed_embeddings: self.embedder.computed(),
        };
        self.steps_log.row(&[
            step.to_string(),
            epoch.to_string(),
            loss.to_string(),
            cross_entropy.to_string(),
            dice_loss.to_string(),
            learning_rate.to_string(),
            done.gate.map_or(String::new(), |gate| gate.to_string()),
        ])?;
        self.position.steps += 1;
        let last_of_epoch = batch.step + 1 == self.batches.steps();
        let due = self
            .position
            .steps
            .is_multiple_of(self.config.checkpoint_steps);
        if (last_of_epoch || due) && !weights_are_finite(&self.model.ladder) {
            return Err(self.not_finite(epoch, batch, "a weight after the step"));
        }
        if due && !last_of_epoch {
            self.save()?;
        }
        events(TrainingEvent::Stepped(&done));
        Ok(())
    }

    fn save(&mut self) -> Result<(), TrainingError> {
        self.position.seconds = self.seconds();
        self.run
            .save(&self.model.ladder, &self.optimizer, &self.position)
    }

    /// Time that the run has taken, interruptions left out.
    fn seconds(&self) -> f64 {
        self.seconds_before + self.started.elapsed().as_secs_f64()
    }

    fn not_finite(&self, epoch: u64, batch: &Batch, what: &'static str) -> TrainingError {
        let name = |&slice: &usize| {
            let origin = self.store.origin(slice);
            format!("{} {}", origin.case, origin.slice)
        };
        TrainingError::NotFinite {
            step: self.position.steps,
            epoch,
            what,
            slices: batch.slices.iter().map(name).collect(),
        }
    }

    fn validate(
        &mut self,
        epochs: u64,
        events: &mut impl FnMut(TrainingEvent<'_>),
    ) -> Result<(), TrainingError> {
        let config = SegmentationConfig {
            output: self.config.output,
            batch_size: self.config.batch_size,
            ..SegmentationConfig::new(self.config.geometry)
        };
        let mut segmenter = Segmenter::new(&self.model, config);
        if let Some(cache) = self.cache {
            segmenter = segmenter.with_cache(cache);
        }
        let classes = self.dataset.description().report_classes();
        let mut organ_scores = vec![Vec::new(); classes.len()];
        for case in &self.validation {
            let volumes = self.dataset.read(case)?;
            let slices = volumes.image.shape()[0];
            events(TrainingEvent::Validating(&case.name, 0, slices));
            let predicted = segmenter.segment(&volumes.image, |done| {
                events(TrainingEvent::Validating(&case.name, done, slices));
            })?;
            for (scores, &class) in organ_scores.iter_mut().zip(&classes) {
                scores.extend(dsc(&predicted, &volumes.label, class));
            }
        }
        let organ_dsc: Vec<Option<f64>> = organ_scores.iter().map(|scores| mean(scores)).collect();
        let known: Vec<f64> = organ_dsc.iter().flatten().copied().collect();
        let mean_dsc = mean(&known).unwrap_or(0.0);
        let best = self.position.best_dsc.is_none_or(|best| mean_dsc > best);
        match best {
            true => {
                self.model.save_ladder(self.run.file(BEST))?;
                self.position.best_dsc = Some(mean_dsc);
                self.position.best_epoch = epochs;
                self.position.without_improvement = 0;
            }
            false => self.position.without_improvement += 1,
        }
        let organs = organ_dsc
            .iter()
            .map(|dsc| dsc.map_or(String::new(), |dsc| dsc.to_string()));
        let cells: Vec<String> = [epochs.to_string(), mean_dsc.to_string()]
            .into_iter()
            .chain(organs)
            .collect();
        self.validation_log.row(&cells)?;
        events(TrainingEvent::Validated(&TrainingValidation {
            epochs,
            mean_dsc,
            organ_dsc,
            best,
        }));
        Ok(())
    }
}

fn mean(values: &[f64]) -> Option<f64> {
    let sum: f64 = values.iter().sum();
    (!values.is_empty()).then(|| sum / values.len() as f64)
}

/// DSC of a class; none where neither volume has it. Distances, which the reports have, would take most of the time here.
fn dsc(predicted: &Volume<u8>, label: &Volume<u8>, class: u8) -> Option<f64> {
    let (mut common, mut both) = (0_u64, 0_u64);
    for (&predicted, &label) in predicted.voxels().iter().zip(label.voxels()) {
        let [predicted, label] = [predicted, label].map(|found| found == class);
        common += u64::from(predicted && label);
        both += u64::from(predicted) + u64::from(label);
    }
    (both > 0).then(|| 2.0 * common as f64 / both as f64)
}

fn weights_are_finite<S: SideEncoder>(ladder: &Ladder<S>) -> bool {
    struct Finite(bool);
    impl ModuleVisitor for Finite {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if self.0 && param.is_require_grad() {
                // A sum has a NaN or an infinity wherever one of its terms does.
                let sum: TensorData = param.val().inner().sum().into_data();
                self.0 = sum.iter::<f64>().all(f64::is_finite);
            }
        }
    }
    let mut finite = Finite(true);
    ladder.visit(&mut finite);
    finite.0
}
