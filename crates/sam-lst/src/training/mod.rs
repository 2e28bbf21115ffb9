//! Training a network on a dataset.

mod adam;
mod batches;
mod checkpoint;
mod comparison;
mod config;
mod demo;
mod devices;
mod error;
mod events;
mod learning_curve;
mod optimization;
mod plan;
mod precompute;
mod report;
mod run;
#[cfg(feature = "tui")]
mod screen;
mod shard;
#[cfg(feature = "train")]
mod step;
mod summary;

pub use batches::{Batch, Batches, WaitTime};
pub use comparison::{ComparedRun, ComparedScores, Comparison};
pub use config::{CacheConfig, MethodName, TrainingConfig, TrainingConfigError};
pub use demo::demo_dataset;
pub use error::TrainingError;
pub use events::{TrainingEvent, TrainingPlan, TrainingStep, TrainingValidation};
pub use optimization::{OptimizationConfig, OptimizerConfig, WarmupPolynomial};
pub use report::RunReport;
#[cfg(feature = "tui")]
pub use screen::TrainingScreen;
pub use shard::{Shard, ShardError};
pub use summary::BURN_VERSION;
#[cfg(feature = "train")]
pub use {
    burn_train,
    step::{LadderBatch, LadderOutput},
};

use crate::embeddings::{CacheError, EmbeddingCache};
use crate::model::{
    Foundation, FoundationPrecision, FrozenPart, NetworkConfig, SamLstConfig, SegmentationModel,
    SegmentationNetwork, Task,
};
use burn::tensor::Device;
use checkpoint::{IdentifiedCase, Identity, Position, RunFolder};
use events::EventSink;
use plan::Planner;
use precompute::{Precompute, Precomputed};
use run::Run;
use sam_lst_datasets::{Case, Dataset, SliceStore, Split};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

/// Folders that a training run writes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainingFolders {
    /// Folder of the run: configuration, logs, checkpoints, ladders, summary. Training again with
    /// the same settings in the same folder resumes the run. Settings that do not affect the
    /// weights may change on resume: [`workers`](TrainingConfig::workers),
    /// [`checkpoint_steps`](TrainingConfig::checkpoint_steps), and the extent of the cache.
    pub run: PathBuf,
    /// Folder that runs share: decoded slices and embeddings.
    pub cache: PathBuf,
}

/// How training ended.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one in a program")]
pub enum Outcome<N: SegmentationNetwork> {
    /// The last step is done.
    Finished(Trained<N>),
    /// The callback requested a stop. The run is saved and can be resumed.
    Stopped {
        /// Completed steps.
        steps: u64,
    },
}

impl<N: SegmentationNetwork> Outcome<N> {
    /// The finished run; `None` if it was stopped.
    pub fn finished(self) -> Option<Trained<N>> {
        match self {
            Self::Finished(trained) => Some(trained),
            Self::Stopped { .. } => None,
        }
    }
}

/// A finished run.
#[derive(Debug)]
pub struct Trained<N: SegmentationNetwork> {
    /// The model with the network of the best validation, or of the last step without validation.
    pub model: SegmentationModel<N>,
    /// The checkpoint of that network.
    pub network_file: PathBuf,
    /// Mean DSC of the best validation.
    pub best_dsc: Option<f64>,
    steps_per_epoch: u64,
    config: TrainingConfig<N::Config>,
    folders: TrainingFolders,
}

/// Result of [`Training::precompute`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrecomputeOutcome {
    /// Embeddings that this process computed.
    pub computed: usize,
    /// Whether the callback requested a stop before the last embedding.
    pub stopped: bool,
}

/// Trains the network of a model on a dataset's training cases.
///
/// The run first computes the embeddings that its steps need and that the cache keeps, then trains.
/// Its folder receives `config.toml`, `dataset.toml` and `cases.txt`, which say what is trained on
/// what; `steps.csv` and `validation.csv`, the logs; a checkpoint; the network of the last step, in
/// a file named after its method such as `ladder.safetensors`, and, with validation cases,
/// `best.safetensors`; and `run_summary.json`. Called again with the same settings, an interrupted
/// run resumes from its checkpoint and ends with the weights of an uninterrupted one (bit for bit
/// on the CPU), and a finished run is loaded.
///
/// ```no_run
/// use sam_lst::{Dataset, SamLst, Training, TrainingConfig, TrainingFolders};
/// use std::ops::ControlFlow;
///
/// # fn train(model: SamLst, dataset: &Dataset) -> Result<(), sam_lst::training::TrainingError> {
/// let folders = TrainingFolders { run: "runs/mine".into(), cache: "runs/cache".into() };
/// let outcome = Training::new(TrainingConfig::released(9), folders)
///     .run(model, dataset, |_event| ControlFlow::Continue(()))?;
/// if let Some(trained) = outcome.finished() {
///     println!("{}", trained.network_file.display());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Training<C: NetworkConfig = SamLstConfig> {
    config: TrainingConfig<C>,
    folders: TrainingFolders,
    devices: Vec<Device>,
    shard: Option<Shard>,
}

impl<C: NetworkConfig> Training<C> {
    /// Creates a training on the model's own device.
    pub fn new(config: TrainingConfig<C>, folders: TrainingFolders) -> Self {
        Self { config, folders, devices: Vec::new(), shard: None }
    }

    /// Trains on several devices, of which the first must be the model's own. Experimental: so far
    /// tested with several devices of one CPU and of a software GPU only.
    ///
    /// The devices share the foundation's work and the
    /// [`accumulated_batches`](TrainingConfig::accumulated_batches) of each step; see
    /// [`TrainingConfig::split_across`]. Gradients are summed in the order of the batches, so the
    /// number of devices does not affect the weights: a run may be resumed on another number of
    /// devices of the same kind. Only the running statistics of batch norms are those of the first
    /// device's batches, as in PyTorch's `DataParallel`.
    pub fn devices(self, devices: &[Device]) -> Self {
        Self { devices: devices.iter().map(|device| device.clone().inner()).collect(), ..self }
    }

    /// Restricts [`precompute`](Self::precompute) to one shard of the slices. Shards are fixed by
    /// the slices' content, so processes need neither locks nor communication.
    pub fn shard(self, shard: Shard) -> Self {
        Self { shard: Some(shard), ..self }
    }

    /// Checks that the run's folder has no run yet or one of these settings, which
    /// [`run`](Self::run) would resume. It changes nothing.
    ///
    /// # Errors
    ///
    /// [`TrainingError`] if the run in the folder has other settings, or cannot be read.
    pub fn check_settings(&self) -> Result<(), TrainingError> {
        checkpoint::check_settings(&self.folders.run, &self.config)
    }

    /// Trains the model's network, or resumes or loads the run in the folder. `callback` receives
    /// each event; it may request a stop, upon which the run is saved.
    ///
    /// # Errors
    ///
    /// [`TrainingError`]: before anything is computed for invalid settings and for settings that do
    /// not fit the model or the dataset; later if a file cannot be read or written, or the loss is
    /// not finite.
    pub fn run<N: SegmentationNetwork<Config = C>>(
        &self,
        mut model: SegmentationModel<N>,
        dataset: &Dataset,
        mut callback: impl FnMut(TrainingEvent<'_>) -> ControlFlow<()>,
    ) -> Result<Outcome<N>, TrainingError> {
        let started = Instant::now();
        let mut events = EventSink::new(&mut callback);
        let others = self.prepare(&mut model, dataset)?;
        let (devices, batches) = (1 + others.len(), self.config.accumulated_batches);
        if !batches.is_multiple_of(devices) {
            return Err(TrainingError::UnevenDevices { devices, batches });
        }
        let cases = dataset.cases(Split::Train)?;
        let folder = RunFolder::open(&self.folders.run, &last_network::<N>())?;
        let mut identity = self.identity(&model, dataset);
        folder.check_identity(&identity)?;
        model.task = Some(Task {
            dataset: dataset.description().clone(),
            geometry: self.config.geometry,
            embedding_precision: self.config.cache.precision,
            output: self.config.output,
        });
        let store = self.open_store(dataset, &cases, &mut events)?;
        identity.add_hashes(&store)?;
        folder.check_identity(&identity)?;
        let batches = self.config.batches(&store);
        let cache = self.config.embedding_cache(&model, &self.folders)?;
        let (network, optimizer, position) = folder
            .load_checkpoint(model.network.clone(), self.config.optimization.optimizer.init())?;
        model.network = network;
        let planner = Planner {
            model: &model,
            dataset,
            config: &self.config,
            store: &store,
            batches: &batches,
            cache: cache.as_ref(),
            position: &position,
            devices,
            shard: None,
        };
        let (plan, missing) = planner.plan(&mut events)?;
        events.emit(TrainingEvent::Planned(&plan));
        let warmup_steps = self.config.optimization.schedule.warmup_steps;
        if 2 * warmup_steps > plan.total_steps {
            log::warn!(
                "the learning rate only rises during the first {warmup_steps} steps, and there are {}; \
                 for a useful model raise `epochs`, or lower `batch_size` or \
                 `optimization.schedule.warmup_steps`",
                plan.total_steps
            );
        }
        folder.begin(&identity)?;
        let precomputed = match (&cache, model.embedding_foundation()) {
            (Some(cache), Some(foundation)) if !events.stop_requested => {
                let precompute = Precompute::new(&store, &batches, cache, &self.config, None);
                precompute.on_devices(missing, foundation, others, &mut events)?
            }
            _ => Precomputed::default(),
        };
        if events.stop_requested {
            return Ok(Outcome::Stopped { steps: position.steps });
        }
        if plan.uncached_embeddings == 0 && !precomputed.incomplete {
            model.foundation.foundation_mut().into_iter().for_each(Foundation::offload);
        }
        let run = Run {
            config: &self.config,
            folder: &folder,
            identity: &identity,
            dataset,
            store: &store,
            batches,
            cache: cache.as_ref(),
            plan: &plan,
            devices: others,
            precomputed,
            started,
        };
        match run.train(model, optimizer, position, &mut events)? {
            (_, position) if !position.finished => Ok(Outcome::Stopped { steps: position.steps }),
            (model, position) => {
                self.finish(model, &folder, &position, plan.steps_per_epoch).map(Outcome::Finished)
            }
        }
    }

    /// Computes the embeddings that a run with these settings needs and that the cache keeps, and
    /// nothing else.
    ///
    /// Any number of processes, on one machine or on several, may do so at the same time with one
    /// cache folder: each takes slices that no other process has, and all end when the last
    /// embedding is there. With a [`shard`](Self::shard) each process computes its own slices only.
    ///
    /// # Errors
    ///
    /// [`TrainingError`] for invalid settings and for settings that do not fit the model or the
    /// dataset, or if a file cannot be read or written.
    pub fn precompute<N: SegmentationNetwork<Config = C>>(
        &self,
        mut model: SegmentationModel<N>,
        dataset: &Dataset,
        mut callback: impl FnMut(TrainingEvent<'_>) -> ControlFlow<()>,
    ) -> Result<PrecomputeOutcome, TrainingError> {
        let mut events = EventSink::new(&mut callback);
        let others = self.prepare(&mut model, dataset)?;
        let cache = self.config.embedding_cache(&model, &self.folders)?;
        let (Some(cache), Some(foundation)) = (cache, model.embedding_foundation()) else {
            return Err(TrainingError::NothingToCache);
        };
        let cases = dataset.cases(Split::Train)?;
        let store = self.open_store(dataset, &cases, &mut events)?;
        let batches = self.config.batches(&store);
        let planner = Planner {
            model: &model,
            dataset,
            config: &self.config,
            store: &store,
            batches: &batches,
            cache: Some(&cache),
            position: &Position::default(),
            devices: 1 + others.len(),
            shard: self.shard,
        };
        let (mut plan, missing) = planner.plan(&mut events)?;
        plan.uncached_embeddings = 0; // computed in training steps
        events.emit(TrainingEvent::Planned(&plan));
        let mut computed = 0;
        if !events.stop_requested {
            let precompute = Precompute::new(&store, &batches, &cache, &self.config, self.shard);
            computed = precompute.on_devices(missing, foundation, others, &mut events)?.computed;
        }
        Ok(PrecomputeOutcome { computed, stopped: events.stop_requested })
    }

    /// Checks that settings, model, dataset and devices fit each other, and sets the foundation's
    /// precision. Returns the devices other than the model's own.
    fn prepare<N: SegmentationNetwork<Config = C>>(
        &self,
        model: &mut SegmentationModel<N>,
        dataset: &Dataset,
    ) -> Result<&[Device], TrainingError> {
        let config = &self.config;
        config.validate()?;
        if *model.config() != config.model {
            return Err(TrainingError::OtherModel { found: format!("{:?}", model.config()) });
        }
        let (masks, classes) = (config.model.num_classes(), dataset.description().classes());
        if masks != classes {
            let dataset = dataset.description().name.clone();
            return Err(TrainingError::Classes { dataset, classes, masks });
        }
        if !model.network.devices().iter().all(Device::is_autodiff) {
            return Err(TrainingError::NoAutodiff);
        }
        if model.trained_tensors().is_empty() {
            return Err(TrainingError::NothingTrains);
        }
        let others = match self.devices.split_first() {
            Some((first, _)) if *first != model.device().inner() => {
                return Err(TrainingError::FirstDevice);
            }
            Some((_, others)) => others,
            None => &[],
        };
        match model.foundation.foundation_mut() {
            Some(foundation) => foundation.set_precision(config.foundation_precision)?,
            None => config.check_without_foundation()?,
        }
        Ok(others)
    }

    fn identity<'a, N: SegmentationNetwork<Config = C>>(
        &'a self,
        model: &SegmentationModel<N>,
        dataset: &'a Dataset,
    ) -> Identity<'a, C> {
        let of = |split| dataset.all_cases().iter().filter(move |case| case.split == split);
        let cases = of(Split::Train)
            .chain(of(Split::Validation))
            .map(|case| IdentifiedCase { case, files_sha256: None });
        Identity {
            config: &self.config,
            dataset: dataset.description().to_toml(),
            cases: cases.collect(),
            foundation_sha256: model.foundation_sha256().map(str::to_owned),
            pretrained_sha256: model.pretrained_sha256().map(str::to_owned),
        }
    }

    fn open_store<'a>(
        &self,
        dataset: &'a Dataset,
        cases: &[&Case],
        events: &mut EventSink<'_>,
    ) -> Result<SliceStore<'a>, TrainingError> {
        let total = cases.len();
        events.emit(TrainingEvent::ReadingCases { done: 0, total });
        let folder = self.folders.cache.join("slices");
        let store = SliceStore::open(dataset, cases, folder, |done| {
            events.emit(TrainingEvent::ReadingCases { done, total });
        })?;
        if store.is_empty() {
            return Err(TrainingError::NoSlices { dataset: dataset.description().name.clone() });
        }
        Ok(store)
    }

    fn finish<N: SegmentationNetwork<Config = C>>(
        &self,
        mut model: SegmentationModel<N>,
        folder: &RunFolder,
        position: &Position,
        steps_per_epoch: u64,
    ) -> Result<Trained<N>, TrainingError> {
        let network_file = match position.best_dsc {
            Some(_) => folder.file(BEST),
            None => folder.file(&last_network::<N>()),
        };
        model.load_network(&network_file)?;
        Ok(Trained {
            model,
            network_file,
            best_dsc: position.best_dsc,
            steps_per_epoch,
            config: self.config.clone(),
            folders: self.folders.clone(),
        })
    }
}

/// Files and a folder of a run.
const BEST: &str = "best.safetensors";
const STEPS_LOG: &str = "steps.csv";
const VALIDATION_LOG: &str = "validation.csv";
const LEARNING_CURVE: &str = "learning-curve.svg";
const PICTURES: &str = "pictures";

impl<C: NetworkConfig> TrainingConfig<C> {
    /// The cache that a run with these settings uses; `None` if it caches nothing.
    ///
    /// # Errors
    ///
    /// [`CacheError`] if its folder can neither be read nor created.
    pub fn embedding_cache<N: SegmentationNetwork<Config = C>>(
        &self,
        model: &SegmentationModel<N>,
        folders: &TrainingFolders,
    ) -> Result<Option<EmbeddingCache>, CacheError> {
        if self.cache.views.count() == 0 {
            return Ok(None);
        }
        let folder = folders.cache.join("embeddings");
        model.embedding_cache(folder, self.cache.precision, self.cache.limit_bytes())
    }

    fn batches<'a>(&self, store: &'a SliceStore<'a>) -> Batches<'a> {
        Batches::new(store, &self.model, self.geometry, self.batch_size, self.seed)
            .with_augmentation(self.augmentation)
    }

    /// Checks that no setting of a foundation is set, for a method without one.
    ///
    /// # Errors
    ///
    /// [`TrainingError::NoFoundation`] for the first such setting.
    pub fn check_without_foundation(&self) -> Result<(), TrainingError> {
        let setting = if self.foundation_precision != FoundationPrecision::F32 {
            "foundation_precision"
        } else if self.cache.views.count() > 0 {
            "cache.views"
        } else {
            return Ok(());
        };
        Err(TrainingError::NoFoundation { setting, method: C::METHOD })
    }

    fn validates_after(&self, epochs: u64) -> bool {
        epochs.is_multiple_of(self.validation_epochs) || epochs == self.epochs
    }
}

/// Name of the file of the last step's network.
fn last_network<N: SegmentationNetwork>() -> String {
    format!("{}.safetensors", N::Config::METHOD)
}
