//! Training a ladder on a dataset.

mod ahead;
mod config;
mod error;
mod events;
mod folder;
mod lane;
mod plan;
mod receipt;
#[cfg(feature = "tui")]
mod screen;
mod trainer;

pub use config::{CacheConfig, TrainingConfig, TrainingConfigError};
pub use error::TrainingError;
pub use events::{TrainingEvent, TrainingPlan, TrainingStep, TrainingValidation};
#[cfg(feature = "tui")]
pub use screen::TrainingScreen;

use crate::{
    Batches, CacheError, EmbeddingCache, Foundation, Ladder, SamLst, SideEncoder, Task, Waiting,
    write_reports,
};
use ahead::{Ahead, Embedded};
use burn::module::Module;
use burn::tensor::Device;
use datasets::{Case, Dataset, SliceStore, Split};
use events::Told;
use folder::{Position, RunFolder};
use lane::{Lane, Replica};
use losses::CrossEntropyDiceLossConfig;
use metrics::Report;
use plan::{Planner, ViewsBySlice};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;
use trainer::Trainer;

/// Where a run's files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainingFolders {
    /// The run's own: configuration, logs, checkpoints, ladders, receipt. The same settings in the same folder go on with
    /// the run; those that have no part in what is trained may differ: [`workers`](TrainingConfig::workers),
    /// [`checkpoint_steps`](TrainingConfig::checkpoint_steps), and how many embeddings the cache keeps.
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
/// First come the embeddings that the run asks for and that are kept, where they are not there yet; then the steps.
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
    model: SamLst<S>,
    dataset: &Dataset,
    config: &TrainingConfig,
    folders: &TrainingFolders,
    events: impl FnMut(TrainingEvent<'_>) -> ControlFlow<()>,
) -> Result<Trained<S>, TrainingError> {
    train_beside(model, &[], dataset, config, folders, events)
}

/// As [`train`], with other devices beside the model's own, which share the foundation's work and the batches of each step.
///
/// A step has [`accumulated_batches`](TrainingConfig::accumulated_batches), and each device takes as many of them; see
/// [`TrainingConfig::shared_by`]. Their gradients are added up in the batches' order, so the number of devices has no part in
/// the weights that come out: a run on two devices of one kind is the run on one, and either goes on where the other was cut
/// off. Only the running statistics are those of the batches that the model's own device saw, as in PyTorch's `DataParallel`.
///
/// # Errors
///
/// As [`train`], and [`TrainingError::UnevenDevices`].
pub fn train_beside<S: SideEncoder>(
    mut model: SamLst<S>,
    devices: &[Device],
    dataset: &Dataset,
    config: &TrainingConfig,
    folders: &TrainingFolders,
    mut events: impl FnMut(TrainingEvent<'_>) -> ControlFlow<()>,
) -> Result<Trained<S>, TrainingError> {
    let started = Instant::now();
    let mut told = Told::new(&mut events);
    prepare(&mut model, dataset, config)?;
    if !config.accumulated_batches.is_multiple_of(1 + devices.len()) {
        return Err(TrainingError::UnevenDevices {
            devices: 1 + devices.len(),
            batches: config.accumulated_batches,
        });
    }
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
        config,
        &[
            ("dataset.toml", description.to_toml()),
            ("cases.txt", case_list),
            ("foundation.sha256", foundation.to_owned()),
        ],
    )?;
    model.task = Some(Task {
        dataset: description.clone(),
        geometry: config.geometry,
    });
    let store = open_store(dataset, &cases, folders, &mut told)?;
    let batches = config.batches(&store);
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
        devices: 1 + devices.len(),
    };
    let (plan, missing) = planner.plan(&mut told)?;
    told.tell(TrainingEvent::Planned(&plan));
    let embedded = match &cache {
        Some(cache) if !told.stop => {
            let ahead = Ahead::new(&store, &batches, cache, config);
            embed_ahead(&ahead, missing, &model.foundation, devices, &mut told)?
        }
        _ => Embedded::default(),
    };
    if told.stop {
        return Err(TrainingError::Stopped {
            steps: position.steps,
        });
    }
    if plan.unkept_embeddings == 0 && !embedded.incomplete {
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
    let kept = cache.as_ref().map(|cache| (cache, config.cache.views));
    let loss = CrossEntropyDiceLossConfig::new()
        .with_dice_weight(config.dice_weight)
        .init();
    let steps_log = run.log("steps.csv", &STEPS_HEADER, position.steps)?;
    let validation_log = run.log(
        "validation.csv",
        &[["epochs", "mean_dsc"].as_slice(), &organs].concat(),
        validations_done as u64,
    )?;
    let (mut model, position) = std::thread::scope(|scope| {
        let replicas = devices.iter().map(|device| {
            let device = device.clone().autodiff();
            Replica::start(
                scope,
                &model.ladder,
                &foundation,
                kept,
                loss.clone(),
                &device,
            )
        });
        let mut trainer = Trainer {
            replicas: replicas.collect(),
            lane: Lane::new(
                &foundation,
                kept,
                loss.clone(),
                ladder_device(&model.ladder),
            ),
            steps_log,
            validation_log,
            seconds_before: position.seconds,
            embedded_ahead: embedded.computed,
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
        };
        trainer.run(&mut told)?;
        Ok::<_, TrainingError>((trainer.model, trainer.position))
    })?;
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

/// Computes the embeddings that a run with these settings will ask for and that are kept, and nothing else. The devices, the
/// model's own and those beside it, share the work.
///
/// Any number of processes, on one machine or on several, may do so at once with one cache folder that they share: each takes
/// the slices that no other has, and all end when the last embedding is there. A run that starts meanwhile takes part.
/// Returns how many this process computed.
///
/// # Errors
///
/// [`TrainingError`] for settings that cannot be or do not fit the model or the dataset, or if a file cannot be read or
/// written.
pub fn embed<S: SideEncoder>(
    mut model: SamLst<S>,
    devices: &[Device],
    dataset: &Dataset,
    config: &TrainingConfig,
    folders: &TrainingFolders,
    mut events: impl FnMut(TrainingEvent<'_>) -> ControlFlow<()>,
) -> Result<usize, TrainingError> {
    let mut told = Told::new(&mut events);
    prepare(&mut model, dataset, config)?;
    let Some(cache) = config.embedding_cache(&model, folders)? else {
        return Err(TrainingError::NothingKept);
    };
    let cases = dataset.cases(Split::Train)?;
    let store = open_store(dataset, &cases, folders, &mut told)?;
    let batches = config.batches(&store);
    let planner = Planner {
        model: &model,
        dataset,
        config,
        store: &store,
        batches: &batches,
        cache: Some(&cache),
        position: &Position::default(),
        devices: 1 + devices.len(),
    };
    let (mut plan, missing) = planner.plan(&mut told)?;
    plan.unkept_embeddings = 0; // the steps' work
    told.tell(TrainingEvent::Planned(&plan));
    if told.stop {
        return Err(TrainingError::Stopped { steps: 0 });
    }
    let ahead = Ahead::new(&store, &batches, &cache, config);
    let embedded = embed_ahead(&ahead, missing, &model.foundation, devices, &mut told)?;
    match told.stop {
        true => Err(TrainingError::Stopped { steps: 0 }),
        false => Ok(embedded.computed),
    }
}

fn open_store<'a>(
    dataset: &'a Dataset,
    cases: &[&Case],
    folders: &TrainingFolders,
    told: &mut Told<'_>,
) -> Result<SliceStore<'a>, TrainingError> {
    told.tell(TrainingEvent::Reading(0, cases.len()));
    let store = SliceStore::open(dataset, cases, folders.cache.join("slices"), |done| {
        told.tell(TrainingEvent::Reading(done, cases.len()));
    })?;
    match store.is_empty() {
        true => Err(TrainingError::NoSlices {
            dataset: dataset.description().name.clone(),
        }),
        false => Ok(store),
    }
}

fn embed_ahead(
    ahead: &Ahead<'_>,
    missing: ViewsBySlice,
    foundation: &Foundation,
    devices: &[Device],
    told: &mut Told<'_>,
) -> Result<Embedded, TrainingError> {
    if missing.is_empty() {
        return Ok(Embedded::default());
    }
    let others = devices.iter().map(|device| foundation.to_device(device));
    let foundations: Vec<Foundation> = std::iter::once(foundation.clone()).chain(others).collect();
    ahead.embed(missing, &foundations, told)
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

    fn batches<'a>(&self, store: &'a SliceStore<'a>) -> Batches<'a> {
        let batches = Batches::new(
            store,
            &self.model,
            self.geometry,
            self.batch_size,
            self.seed,
        );
        match self.augmentation {
            true => batches,
            false => batches.without_augmentation(),
        }
    }

    fn validates_after(&self, epochs: u64) -> bool {
        epochs.is_multiple_of(self.validation_epochs) || epochs == self.epochs
    }
}

/// Checks that all fits, and has the foundation compute in its precision.
fn prepare<S: SideEncoder>(
    model: &mut SamLst<S>,
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
    if model.ladder.trained_tensors().is_empty() {
        return Err(TrainingError::NothingTrains);
    }
    Ok(model
        .foundation
        .set_precision(config.foundation_precision)?)
}

fn ladder_device<S: SideEncoder>(ladder: &Ladder<S>) -> Device {
    let devices = ladder.devices();
    devices.into_iter().next().expect("it has parameters")
}
