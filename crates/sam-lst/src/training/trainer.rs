//! A run on its way: steps, validations, checkpoints.

use super::events::Told;
use super::folder::{Log, Position, RunFolder};
use super::lane::{Computed, Lane, Replica};
use super::{
    BEST, LAST, TrainingConfig, TrainingError, TrainingEvent, TrainingPlan, TrainingStep,
    TrainingValidation, receipt,
};
use crate::{
    Batch, Batches, EmbeddingCache, Ladder, SamLst, SegmentationConfig, Segmenter, SideEncoder,
    Waiting,
};
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{GradientsAccumulator, ModuleOptimizer};
use burn::tensor::{Tensor, TensorData};
use datasets::{Case, Dataset, SliceStore, Volume};
use std::ops::ControlFlow;
use std::time::Instant;

/// A run on its way.
pub(super) struct Trainer<'a, S: SideEncoder> {
    pub model: SamLst<S>,
    pub optimizer: ModuleOptimizer,
    pub lane: Lane<'a>,
    /// On the devices beside.
    pub replicas: Vec<Replica>,
    /// Embeddings computed before the first step.
    pub embedded_ahead: usize,
    pub steps_log: Log,
    pub validation_log: Log,
    pub position: Position,
    pub seconds_before: f64,
    pub config: &'a TrainingConfig,
    pub run: &'a RunFolder,
    pub cache: Option<&'a EmbeddingCache>,
    pub batches: Batches<'a>,
    pub store: &'a SliceStore<'a>,
    pub plan: &'a TrainingPlan,
    pub dataset: &'a Dataset,
    pub validation: Vec<&'a Case>,
    pub started: Instant,
    pub waiting: Waiting,
}

impl<S: SideEncoder> Trainer<'_, S> {
    pub fn run(&mut self, told: &mut Told<'_>) -> Result<(), TrainingError> {
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
        let mut together = Vec::with_capacity(self.config.accumulated_batches);
        let mut failed = None;
        // What makes the batches is copied out, since each step changes the rest.
        let (batches, workers) = (self.batches, self.config.workers);
        let waiting = batches.prefetched(epoch, first, workers, |batch| {
            together.push(batch);
            let last = together.last().map_or(0, |batch| batch.step) + 1;
            if together.len() < self.config.accumulated_batches && last < batches.steps() {
                return ControlFlow::Continue(());
            }
            match self.step(epoch, std::mem::take(&mut together), told) {
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

    /// A step of the optimizer with the mean gradient of some batches.
    fn step(
        &mut self,
        epoch: u64,
        batches: Vec<Batch>,
        told: &mut Told<'_>,
    ) -> Result<(), TrainingError> {
        let together = batches.len();
        let slices: Vec<Vec<usize>> = batches.iter().map(|batch| batch.slices.clone()).collect();
        let last_of_epoch = batches
            .last()
            .is_some_and(|batch| batch.step + 1 == self.batches.steps());
        let own = self.share_out(batches);
        let mut own = own.into_iter();
        let mut gradients = GradientsAccumulator::new();
        let mut computed_losses = Vec::with_capacity(together);
        // In the batches' order, whichever device is ready first: sums then do not depend on it.
        for index in 0..together {
            let computed = match index % (1 + self.replicas.len()) {
                0 => {
                    let batch = own.next().expect("its share");
                    self.lane.compute(&self.model.ladder, &batch, together)?
                }
                device => self.next_of(device - 1, told)?,
            };
            told.tell_full(self.lane.embedder.full());
            gradients.accumulate(&self.model.ladder, computed.gradients);
            computed_losses.push(computed.losses);
        }
        let step = self.position.steps;
        let learning_rate = self.config.optimization.schedule.at(step, self.plan.steps);
        self.model.ladder =
            self.optimizer
                .step(learning_rate, self.model.ladder.clone(), gradients.grads());
        // Only now is a value asked for, which waits for the device. A loss that is not finite has spoilt these weights, but
        // not the checkpoint, with which the run goes on.
        let mut losses = [0.0; 3];
        for (computed, slices) in computed_losses.into_iter().zip(&slices) {
            let computed = computed.values();
            if !computed.iter().all(|loss| loss.is_finite()) {
                return Err(self.not_finite(epoch, slices, "the loss"));
            }
            for (sum, loss) in losses.iter_mut().zip(computed) {
                *sum += loss / together as f64;
            }
        }
        let [loss, cross_entropy, dice_loss] = losses;
        let done = TrainingStep {
            step,
            epoch,
            loss,
            cross_entropy,
            dice_loss,
            learning_rate,
            gate: self.model.ladder.gate_value(),
            computed_embeddings: self.computed_embeddings(),
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
        let due = self
            .position
            .steps
            .is_multiple_of(self.config.checkpoint_steps);
        told.tell(TrainingEvent::Stepped(&done));
        let save = told.stop || (due && !last_of_epoch);
        if (save || last_of_epoch) && !weights_are_finite(&self.model.ladder) {
            return Err(self.not_finite(epoch, &slices.concat(), "a weight after the step"));
        }
        if save {
            self.save()?;
        }
        match told.stop {
            true => Err(self.stopped()),
            false => Ok(()),
        }
    }

    /// Gives the devices beside their batches of a step, and keeps those of the model's own.
    fn share_out(&self, batches: Vec<Batch>) -> Vec<Batch> {
        let together = batches.len();
        let mut shares: Vec<Vec<Batch>> = Vec::new();
        shares.resize_with(1 + self.replicas.len(), Vec::new);
        let devices = shares.len();
        for (index, batch) in batches.into_iter().enumerate() {
            shares[index % devices].push(batch);
        }
        let own = shares.remove(0);
        for (replica, share) in self.replicas.iter().zip(shares) {
            if !share.is_empty() {
                replica.begin(&self.model.ladder, share, together);
            }
        }
        own
    }

    fn next_of(&mut self, replica: usize, told: &mut Told<'_>) -> Result<Computed, TrainingError> {
        let ladder = &self.model.ladder;
        let (computed, full) = self.replicas[replica].next(ladder, &self.lane.device)?;
        told.tell_full(full.as_deref());
        Ok(computed)
    }

    /// Embeddings that this process computed.
    pub fn computed_embeddings(&self) -> usize {
        let replicas: usize = self.replicas.iter().map(|replica| replica.computed).sum();
        self.embedded_ahead + self.lane.embedder.computed() + replicas
    }

    fn save(&mut self) -> Result<(), TrainingError> {
        self.position.seconds = self.seconds();
        self.run
            .save(&self.model.ladder, &self.optimizer, &self.position)
    }

    /// Time that the run has taken, interruptions left out.
    pub fn seconds(&self) -> f64 {
        self.seconds_before + self.started.elapsed().as_secs_f64()
    }

    fn not_finite(&self, epoch: u64, slices: &[usize], what: &'static str) -> TrainingError {
        let name = |&slice: &usize| {
            let origin = self.store.origin(slice);
            format!("{} {}", origin.case, origin.slice)
        };
        TrainingError::NotFinite {
            step: self.position.steps,
            epoch,
            what,
            slices: slices.iter().map(name).collect(),
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
            told.tell_full(segmenter.embedder().full());
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
