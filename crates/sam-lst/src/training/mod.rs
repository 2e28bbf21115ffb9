//! Training a ladder on a dataset.

mod config;
mod error;
mod events;
mod folder;
mod plan;
mod receipt;
#[cfg(feature = "tui")]
mod screen;

pub use config::{CacheConfig, TrainingConfig, TrainingConfigError};
pub use error::TrainingError;
pub use events::{TrainingEvent, TrainingPlan, TrainingStep, TrainingValidation};
#[cfg(feature = "tui")]
pub use screen::TrainingScreen;

use crate::{
    Batch, Batches, CacheError, Embedder, EmbeddingCache, Ladder, SamLst, SegmentationConfig,
    Segmenter, SideEncoder, Task, Waiting, write_reports,
};
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{GradientsAccumulator, GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Tensor, TensorData};
use datasets::{Case, Dataset, SliceStore, Split, Volume};
use events::Told;
use folder::{Log, Position, RunFolder};
use losses::{CrossEntropyDiceLoss, CrossEntropyDiceLossConfig};
use metrics::Report;
use plan::Planner;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

/// Where a run's files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainingFolders {
    /// The run's own: configuration, logs, checkpoints, ladders, receipt. The same settings in the same folder go on with
    /// the run.
    pub run: PathBuf,
    /// What runs share: decoded slices and embeddings.
    pub cache: PathBuf,
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

impl<S: SideEncoder> Trained<S> {
    /// Writes scores of the trained model into the run's folder, as [`write_reports`] does with the prefix `scores`, and into
    /// its receipt.
    ///
    /// # Errors
    ///
    /// [`TrainingError`] if a file cannot be written.
    pub fn keep_scores(&self, reports: &[Report]) -> Result<(), TrainingError> {
        let run = self.ladder_file.with_file_name("");
        write_reports(reports, run.join("scores"))?;
        receipt::add_scores(&run.join(receipt::FILE), reports)
    }
}

/// Trains a model's ladder on a dataset's training cases.
///
/// The run's folder then has `config.toml`, `dataset.toml` and `cases.txt`, which say what was trained on what; `steps.csv` and
/// `validation.csv`, the logs; `ladder.safetensors` of the last step and, with validation cases, `best.safetensors`;
/// `receipt.json`; and a checkpoint. Called again with the same settings, a run that was cut off, however, goes on from its
/// checkpoint and ends as one that was not (on the CPU bit for bit), and one that was finished is loaded.
///
/// What happens is told to `events`, which may break the run off: it then saves a checkpoint, after the step that it is at, and
/// ends with [`TrainingError::Stopped`].
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
    mut events: impl FnMut(TrainingEvent<'_>) -> ControlFlow<()>,
) -> Result<Trained<S>, TrainingError> {
    let started = Instant::now();
    let mut told = Told {
        events: &mut events,
        stop: false,
    };
    check(&model, dataset, config)?;
    model
        .foundation
        .set_precision(config.foundation_precision)?;
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
    told.tell(TrainingEvent::Reading(0, cases.len()));
    let store = SliceStore::open(dataset, &cases, folders.cache.join("slices"), |done| {
        told.tell(TrainingEvent::Reading(done, cases.len()));
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
    let cache = config.embedding_cache(&model, folders)?;
    let (ladder, optimizer, position) =
        run.load(model.ladder.clone(), config.optimization.optimizer.init())?;
    model.ladder = ladder;
    let planner = Planner {
        model: &model,
        dataset,
        config,
        store: &store,
        batches: &batches,
        cache: cache.as_ref(),
        position: &position,
        cases: &cases,
        validation: &validation,
    };
    let plan = planner.plan(&mut told)?;
    told.tell(TrainingEvent::Planned(&plan));
    if told.stop {
        return Err(TrainingError::Stopped {
            steps: position.steps,
        });
    }

    if plan.missing_embeddings() == 0 {
        model.foundation.leave_on_disk();
    }
    let organs: Vec<&str> = plan.organs.iter().map(String::as_str).collect();
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
        device: ladder_device(&model.ladder),
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
    trainer.run(&mut told)?;
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
    /// The cache that a run with these settings keeps its embeddings in; none where it keeps none.
    ///
    /// # Errors
    ///
    /// [`CacheError`] if its folder can neither be read nor made.
    pub fn embedding_cache<S: SideEncoder>(
        &self,
        model: &SamLst<S>,
        folders: &TrainingFolders,
    ) -> Result<Option<EmbeddingCache>, CacheError> {
        if self.cache.views.count() == 0 || !self.model.fusion.uses_sam() {
            return Ok(None);
        }
        let folder = folders.cache.join("embeddings");
        let limit_bytes = self.cache.limit_bytes();
        model
            .embedding_cache(folder, self.cache.precision, limit_bytes)
            .map(Some)
    }

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
    /// The ladder's.
    device: Device,
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
    fn run(&mut self, told: &mut Told<'_>) -> Result<(), TrainingError> {
        while !self.position.finished {
            let epoch = self.position.epochs;
            self.epoch(epoch, told)?;
            let epochs = epoch + 1;
            if !self.validation.is_empty() && self.config.validates_after(epochs) {
                self.validate(epochs, told)?;
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
            if told.stop && !self.position.finished {
                return Err(self.stopped());
            }
        }
        Ok(())
    }

    fn stopped(&self) -> TrainingError {
        TrainingError::Stopped {
            steps: self.position.steps,
        }
    }

    /// The steps of an epoch that are not yet done.
    fn epoch(&mut self, epoch: u64, told: &mut Told<'_>) -> Result<(), TrainingError> {
        let done = self.position.steps - epoch * self.plan.epoch_steps;
        let first = done as usize * self.config.accumulated_batches;
        let mut accumulated = Accumulated::new();
        let mut failed = None;
        // What makes the batches is copied out, since each batch changes the rest.
        let (batches, workers) = (self.batches, self.config.workers);
        let waiting = batches.prefetched(epoch, first, workers, |batch| {
            match self.batch(epoch, &batch, &mut accumulated, told) {
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
        told: &mut Told<'_>,
    ) -> Result<(), TrainingError> {
        let at_once = self.config.accumulated_batches;
        let first = batch.step / at_once * at_once;
        let together = at_once.min(self.batches.steps() - first);
        let ladder = &self.model.ladder;
        let images = batch.images(&self.device);
        let embedding = match ladder.fusion().uses_sam() {
            true => Some(self.embedder.embed(images.clone(), &batch.views)?),
            false => None,
        };
        if let (Some(error), false) = (self.embedder.full(), self.told_full) {
            told.tell(TrainingEvent::CacheFull(error));
            self.told_full = true;
        }
        let logits = ladder.forward(images, embedding).logits;
        let parts = self.loss.forward(logits, batch.labels(&self.device));
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
        let share = parts.total / together as f64;
        let gradients = GradientsParams::from_grads(share.backward(), ladder);
        accumulated.gradients.accumulate(ladder, gradients);
        if batch.step + 1 < first + together {
            return Ok(());
        }
        self.step(
            epoch,
            batch,
            std::mem::replace(accumulated, Accumulated::new()),
            told,
        )
    }

    /// A step of the optimizer, after the last of its batches.
    fn step(
        &mut self,
        epoch: u64,
        batch: &Batch,
        mut accumulated: Accumulated<S>,
        told: &mut Told<'_>,
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
        told.tell(TrainingEvent::Stepped(&done));
        let save = told.stop || (due && !last_of_epoch);
        if (save || last_of_epoch) && !weights_are_finite(&self.model.ladder) {
            return Err(self.not_finite(epoch, batch, "a weight after the step"));
        }
        if save {
            self.save()?;
        }
        match told.stop {
            true => Err(self.stopped()),
            false => Ok(()),
        }
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

    fn validate(&mut self, epochs: u64, told: &mut Told<'_>) -> Result<(), TrainingError> {
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
            told.tell(TrainingEvent::Validating(&case.name, 0, slices));
            let predicted = segmenter.segment(&volumes.image, |done| {
                told.tell(TrainingEvent::Validating(&case.name, done, slices));
            })?;
            if told.stop {
                // The epoch's steps are done, its validation is not.
                drop(segmenter);
                self.save()?;
                return Err(self.stopped());
            }
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
        told.tell(TrainingEvent::Validated(&TrainingValidation {
            epochs,
            mean_dsc,
            organ_dsc,
            best,
        }));
        Ok(())
    }
}

fn ladder_device<S: SideEncoder>(ladder: &Ladder<S>) -> Device {
    let devices = ladder.devices();
    devices.into_iter().next().expect("it has parameters")
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
