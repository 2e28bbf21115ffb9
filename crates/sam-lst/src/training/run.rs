//! The training loop: steps, validations and checkpoints.

use super::checkpoint::{Identity, Log, Position, RunFolder};
use super::devices::{BatchResult, DeviceWorker, Losses, RemoteWorker};
use super::events::EventSink;
use super::precompute::Precomputed;
use super::{
    BEST, Batch, Batches, STEPS_LOG, TrainingConfig, TrainingError, TrainingEvent, TrainingPlan,
    TrainingStep, TrainingValidation, VALIDATION_LOG, WaitTime, last_network, summary,
};
use crate::embeddings::{Embedder, EmbeddingCache};
use crate::inference::{SegmentationConfig, Segmenter};
use crate::model::{NetworkConfig, SegmentationModel, SegmentationNetwork};
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{GradientsAccumulator, ModuleOptimizer};
use burn::tensor::{Device, Tensor, TensorData};
use sam_lst_datasets::{Case, Dataset, SliceStore, Split};
use sam_lst_losses::CrossEntropyDiceLossConfig;
use sam_lst_metrics::{dice, mean};
use std::ops::ControlFlow;
use std::time::Instant;

/// Everything about a run that its steps do not change.
pub(super) struct Run<'a, C> {
    pub config: &'a TrainingConfig<C>,
    pub folder: &'a RunFolder,
    pub identity: &'a Identity<'a, C>,
    pub dataset: &'a Dataset,
    pub store: &'a SliceStore<'a>,
    pub batches: Batches<'a>,
    pub cache: Option<&'a EmbeddingCache>,
    pub plan: &'a TrainingPlan,
    /// Devices other than the model's own.
    pub devices: &'a [Device],
    /// What this process computed before the first step.
    pub precomputed: Precomputed,
    pub started: Instant,
}

/// A run and what its steps change.
pub(super) struct Trainer<'a, N: SegmentationNetwork> {
    pub run: &'a Run<'a, N::Config>,
    pub model: SegmentationModel<N>,
    pub position: Position,
    pub wait_time: WaitTime,
    optimizer: ModuleOptimizer,
    worker: DeviceWorker<'a>,
    remote_workers: Vec<RemoteWorker>,
    steps_log: Log,
    validation_log: Log,
    validation_cases: Vec<&'a Case>,
    /// Duration of the run's earlier processes.
    earlier_seconds: f64,
    /// When the last step of the epoch ended, or the epoch began.
    step_started: Instant,
}

const STEPS_HEADER: [&str; 7] =
    ["step", "epoch", "loss", "cross_entropy", "dice_loss", "learning_rate", "gate"];

impl<'a, C: NetworkConfig> Run<'a, C> {
    /// Trains from `position` to the end, or until a stop is requested.
    pub fn train<N: SegmentationNetwork<Config = C>>(
        &'a self,
        model: SegmentationModel<N>,
        optimizer: ModuleOptimizer,
        position: Position,
        events: &mut EventSink<'_>,
    ) -> Result<(SegmentationModel<N>, Position), TrainingError> {
        let all_cases = self.dataset.all_cases().iter();
        let validation_cases: Vec<&Case> =
            all_cases.filter(|case| case.split == Split::Validation).collect();
        let validations = if validation_cases.is_empty() {
            0
        } else {
            (1..=position.epochs).filter(|&epochs| self.config.validates_after(epochs)).count()
        };
        let organs: Vec<&str> = self.plan.organs.iter().map(String::as_str).collect();
        let validation_header = [["epochs", "mean_dsc"].as_slice(), &organs].concat();
        let steps_log = self.folder.log(STEPS_LOG, &STEPS_HEADER, position.steps)?;
        let validation_log =
            self.folder.log(VALIDATION_LOG, &validation_header, validations as u64)?;
        let foundation = model.embedding_foundation().cloned();
        let foundation = foundation.as_ref();
        let precision = self.config.cache.precision;
        let cache = self.cache.map(|cache| (cache, self.config.cache.views));
        let loss = CrossEntropyDiceLossConfig::new()
            .with_dice_weight(self.config.dice_weight)
            .with_absent_classes(self.config.dice_absent_classes)
            .init();
        std::thread::scope(|scope| {
            let start = |device: &Device| {
                let device = device.clone().autodiff();
                RemoteWorker::start(
                    scope,
                    &model.network,
                    foundation,
                    precision,
                    cache,
                    loss.clone(),
                    &device,
                )
            };
            let remote_workers = self.devices.iter().map(start).collect();
            let device = model.device();
            let mut trainer = Trainer {
                run: self,
                worker: DeviceWorker::new(foundation, precision, cache, loss.clone(), device),
                remote_workers,
                earlier_seconds: position.seconds,
                step_started: Instant::now(),
                steps_log,
                validation_log,
                validation_cases,
                model,
                optimizer,
                position: Position {
                    precomputing_seconds: position.precomputing_seconds + self.precomputed.seconds,
                    ..position
                },
                wait_time: WaitTime::default(),
            };
            // Breaks after a requested stop, of which `position` tells.
            let _: ControlFlow<()> = trainer.run(events)?;
            Ok((trainer.model, trainer.position))
        })
    }
}

impl<N: SegmentationNetwork> Trainer<'_, N> {
    /// Breaks when a stop was requested and the run is saved, as do the steps and the validation.
    fn run(&mut self, events: &mut EventSink<'_>) -> Result<ControlFlow<()>, TrainingError> {
        let config = self.run.config;
        while !self.position.finished {
            let epoch = self.position.epochs;
            if self.epoch(epoch, events)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            let epochs = epoch + 1;
            let validates = !self.validation_cases.is_empty() && config.validates_after(epochs);
            if validates && self.validate(epochs, events)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            self.position.epochs = epochs;
            let out_of_patience = config
                .patience
                .is_some_and(|patience| self.position.without_improvement >= patience);
            self.position.finished = epochs == config.epochs || out_of_patience;
            if self.position.finished {
                self.model.save_network(self.run.folder.file(&last_network::<N>()))?;
                summary::write(self)?;
            }
            self.save()?;
            if events.stop_requested && !self.position.finished {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Does the steps of an epoch that are not yet done.
    fn epoch(
        &mut self,
        epoch: u64,
        events: &mut EventSink<'_>,
    ) -> Result<ControlFlow<()>, TrainingError> {
        let batches_per_step = self.run.config.accumulated_batches;
        let completed = self.position.steps - epoch * self.run.plan.steps_per_epoch;
        let first = completed as usize * batches_per_step;
        let mut step_batches = Vec::with_capacity(batches_per_step);
        let mut result = Ok(ControlFlow::Continue(()));
        self.step_started = Instant::now();
        // Copied, since the closure borrows the rest mutably.
        let (batches, workers) = (self.run.batches, self.run.config.workers);
        let wait_time = batches.prefetched(epoch, first, workers, |batch| {
            let is_last = batch.step + 1 == batches.steps();
            step_batches.push(batch);
            if step_batches.len() < batches_per_step && !is_last {
                return ControlFlow::Continue(());
            }
            result = self.step(epoch, std::mem::take(&mut step_batches), events);
            self.step_started = Instant::now();
            match result {
                Ok(ControlFlow::Continue(())) => ControlFlow::Continue(()),
                _ => ControlFlow::Break(()),
            }
        })?;
        self.wait_time.time += wait_time.time;
        self.wait_time.batches += wait_time.batches;
        result
    }

    /// Updates the trained parameters with the mean gradient of some batches.
    fn step(
        &mut self,
        epoch: u64,
        batches: Vec<Batch>,
        events: &mut EventSink<'_>,
    ) -> Result<ControlFlow<()>, TrainingError> {
        let slices: Vec<Vec<usize>> = batches.iter().map(|batch| batch.slices.clone()).collect();
        let is_last_of_epoch =
            batches.last().is_some_and(|batch| batch.step + 1 == self.run.batches.steps());
        let step = self.position.steps;
        let schedule = self.run.config.optimization.schedule;
        let learning_rate = schedule.at(step, self.run.plan.total_steps);
        let results = self.update(batches, learning_rate, events)?;
        let [loss, cross_entropy, dice_loss] = self.mean_losses(epoch, results, &slices)?;
        self.position.step_seconds += self.step_started.elapsed().as_secs_f64();
        let completed = TrainingStep {
            step,
            epoch,
            loss,
            cross_entropy,
            dice_loss,
            learning_rate,
            gate: self.model.network.gate_value(),
            computed_embeddings: self.computed_embeddings(),
        };
        self.log_step(&completed)?;
        self.position.steps += 1;
        let is_due = self.position.steps.is_multiple_of(self.run.config.checkpoint_steps);
        events.emit(TrainingEvent::Step(&completed));
        let saves = events.stop_requested || (is_due && !is_last_of_epoch);
        if (saves || is_last_of_epoch) && !parameters_are_finite(&self.model.network) {
            return Err(self.not_finite(epoch, &slices.concat(), "a parameter after the step"));
        }
        if saves {
            self.save()?;
        }
        Ok(if events.stop_requested { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    /// Queues forward, backward and optimizer of a step. The losses, still on their device, are in
    /// the batches' order.
    fn update(
        &mut self,
        batches: Vec<Batch>,
        learning_rate: f64,
        events: &mut EventSink<'_>,
    ) -> Result<Vec<Losses>, TrainingError> {
        let batches_in_step = batches.len();
        let mut own_batches = self.distribute(batches).into_iter();
        let mut gradients = GradientsAccumulator::new();
        let mut losses = Vec::with_capacity(batches_in_step);
        // Summed in the batches' order, whichever device is ready first, so that the sum does not
        // depend on the devices' speed.
        for index in 0..batches_in_step {
            let result = match index % (1 + self.remote_workers.len()) {
                0 => {
                    let batch = own_batches.next().expect("the own device's share");
                    self.worker.compute(&self.model.network, &batch, batches_in_step)?
                }
                device => self.receive(device - 1, events)?,
            };
            events.emit_cache_full(
                self.worker.embedder.as_ref().and_then(Embedder::cache_write_error),
            );
            gradients.accumulate(&self.model.network, result.gradients);
            losses.push(result.losses);
        }
        self.model.network =
            self.optimizer.step(learning_rate, self.model.network.clone(), gradients.grads());
        Ok(losses)
    }

    /// Reads the losses, which waits for the device. The parameters are updated already: after a
    /// loss that is not finite the run continues from its checkpoint.
    fn mean_losses(
        &self,
        epoch: u64,
        losses: Vec<Losses>,
        slices: &[Vec<usize>],
    ) -> Result<[f64; 3], TrainingError> {
        let batches = losses.len();
        let mut means = [0.0; 3];
        for (losses, slices) in losses.into_iter().zip(slices) {
            let losses = losses.values();
            if !losses.iter().all(|loss| loss.is_finite()) {
                return Err(self.not_finite(epoch, slices, "the loss"));
            }
            for (mean, loss) in means.iter_mut().zip(losses) {
                *mean += loss / batches as f64;
            }
        }
        Ok(means)
    }

    fn log_step(&mut self, step: &TrainingStep) -> Result<(), TrainingError> {
        self.steps_log.row(&[
            step.step.to_string(),
            step.epoch.to_string(),
            step.loss.to_string(),
            step.cross_entropy.to_string(),
            step.dice_loss.to_string(),
            step.learning_rate.to_string(),
            step.gate.map_or(String::new(), |gate| gate.to_string()),
        ])
    }

    /// Starts the other devices' batches of a step and returns those of the model's own device.
    fn distribute(&self, batches: Vec<Batch>) -> Vec<Batch> {
        let batches_in_step = batches.len();
        let devices = 1 + self.remote_workers.len();
        let mut shares: Vec<Vec<Batch>> = Vec::new();
        shares.resize_with(devices, Vec::new);
        for (index, batch) in batches.into_iter().enumerate() {
            shares[index % devices].push(batch);
        }
        let own = shares.remove(0);
        for (worker, share) in self.remote_workers.iter().zip(shares) {
            if !share.is_empty() {
                worker.start_step(&self.model.network, share, batches_in_step);
            }
        }
        own
    }

    fn receive(
        &mut self,
        worker: usize,
        events: &mut EventSink<'_>,
    ) -> Result<BatchResult, TrainingError> {
        let network = &self.model.network;
        let (result, write_error) =
            self.remote_workers[worker].receive(network, &self.worker.device)?;
        events.emit_cache_full(write_error.as_deref());
        Ok(result)
    }

    /// Embeddings that this process has computed.
    pub fn computed_embeddings(&self) -> usize {
        let remote: usize =
            self.remote_workers.iter().map(|worker| worker.computed_embeddings).sum();
        self.run.precomputed.computed + self.worker.computed_embeddings() + remote
    }

    fn save(&mut self) -> Result<(), TrainingError> {
        self.position.seconds = self.seconds();
        self.run.folder.save_checkpoint(&self.model.network, &self.optimizer, &self.position)
    }

    /// Duration of the run without interruptions.
    pub fn seconds(&self) -> f64 {
        self.earlier_seconds + self.run.started.elapsed().as_secs_f64()
    }

    fn not_finite(&self, epoch: u64, slices: &[usize], what: &'static str) -> TrainingError {
        let name = |&slice: &usize| {
            let origin = self.run.store.origin(slice);
            format!("{} {}", origin.case, origin.slice)
        };
        TrainingError::NotFinite {
            step: self.position.steps,
            epoch,
            what,
            slices: slices.iter().map(name).collect(),
        }
    }

    /// Scores the validation cases after so many epochs and saves the network if it is the best.
    fn validate(
        &mut self,
        epochs: u64,
        events: &mut EventSink<'_>,
    ) -> Result<ControlFlow<()>, TrainingError> {
        let Some(organ_dsc) = self.organ_dsc(events)? else {
            // The epoch's steps are saved; its validation is repeated on resume.
            self.save()?;
            return Ok(ControlFlow::Break(()));
        };
        let present: Vec<f64> = organ_dsc.iter().flatten().copied().collect();
        let mean_dsc = mean(&present).unwrap_or(0.0);
        let best = self.position.best_dsc.is_none_or(|best| mean_dsc > best);
        if best {
            self.model.save_network(self.run.folder.file(BEST))?;
            self.position.best_dsc = Some(mean_dsc);
            self.position.best_epoch = epochs;
            self.position.without_improvement = 0;
        } else {
            self.position.without_improvement += 1;
        }
        let organs = organ_dsc.iter().map(|dsc| dsc.map_or(String::new(), |dsc| dsc.to_string()));
        let cells: Vec<String> =
            [epochs.to_string(), mean_dsc.to_string()].into_iter().chain(organs).collect();
        self.validation_log.row(&cells)?;
        let validation = TrainingValidation { epochs, mean_dsc, organ_dsc, best };
        events.emit(TrainingEvent::Validated(&validation));
        Ok(ControlFlow::Continue(()))
    }

    /// Mean DSC of each organ over the validation cases; `None` if a stop was requested. Only DSC is
    /// computed: the distances of a full report would take most of the time.
    fn organ_dsc(
        &self,
        events: &mut EventSink<'_>,
    ) -> Result<Option<Vec<Option<f64>>>, TrainingError> {
        let config = SegmentationConfig {
            output: self.run.config.output,
            batch_size: self.run.config.batch_size.max(4),
            embedding_precision: self.run.config.cache.precision,
            ..SegmentationConfig::new(self.run.config.geometry)
        };
        let mut segmenter = Segmenter::new(&self.model, config);
        if let Some(cache) = self.run.cache {
            segmenter = segmenter.with_cache(cache);
        }
        let classes = self.run.dataset.description().report_classes();
        let mut organ_scores = vec![Vec::new(); classes.len()];
        for case in &self.validation_cases {
            let volumes = self.run.dataset.read(case)?;
            let (name, total) = (case.name.as_str(), volumes.image.shape()[0]);
            events.emit(TrainingEvent::Validating { case: name, done: 0, total });
            let predicted = segmenter.segment(&volumes.image, |done| {
                events.emit(TrainingEvent::Validating { case: name, done, total });
            })?;
            events.emit_cache_full(segmenter.embedder().and_then(Embedder::cache_write_error));
            if events.stop_requested {
                return Ok(None);
            }
            let standard = "volumes are in standard layout";
            let [predicted, truth] =
                [&predicted, &volumes.label].map(|volume| volume.voxels().as_standard_layout());
            let predicted = predicted.as_slice().expect(standard);
            let truth = truth.as_slice().expect(standard);
            for (scores, &class) in organ_scores.iter_mut().zip(&classes) {
                scores.extend(dice(predicted, truth, class));
            }
        }
        Ok(Some(organ_scores.iter().map(|scores| mean(scores)).collect()))
    }
}

fn parameters_are_finite(network: &impl Module) -> bool {
    struct Finite(bool);
    impl ModuleVisitor for Finite {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if self.0 && param.is_require_grad() {
                // A sum is NaN or infinite wherever one of its terms is.
                let sum: TensorData = param.val().inner().sum().into_data();
                self.0 = sum.iter::<f64>().all(f64::is_finite);
            }
        }
    }
    let mut finite = Finite(true);
    network.visit(&mut finite);
    finite.0
}
