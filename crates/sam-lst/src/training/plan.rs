//! What a run will do, before it does it.

use super::folder::Position;
use super::{Told, TrainingConfig, TrainingError, TrainingEvent, TrainingPlan};
use crate::{Batches, EmbeddingCache, SamLst, SideEncoder, SliceHash};
use burn::tensor::Tensor;
use datasets::{Dataset, DatasetError, SliceStore, Split, View};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

pub(super) type ViewsBySlice = BTreeMap<usize, BTreeSet<View>>;

/// All that a plan is made from.
pub(super) struct Planner<'a, S: SideEncoder> {
    pub model: &'a SamLst<S>,
    pub dataset: &'a Dataset,
    pub config: &'a TrainingConfig,
    pub store: &'a SliceStore<'a>,
    pub batches: &'a Batches<'a>,
    pub cache: Option<&'a EmbeddingCache>,
    pub position: &'a Position,
    pub devices: usize,
}

impl<S: SideEncoder> Planner<'_, S> {
    /// The plan, and the embeddings to be kept that are not there yet.
    pub fn plan(&self, told: &mut Told<'_>) -> Result<(TrainingPlan, ViewsBySlice), TrainingError> {
        let config = self.config;
        let epoch_steps = self.batches.steps().div_ceil(config.accumulated_batches) as u64;
        let (kept, unkept) = self.embeddings(epoch_steps);
        let missing = self.missing(&kept, told)?;
        let trained = self.model.ladder.trained_tensors();
        let description = self.dataset.description();
        let organ = |class| description.organ(class).name.clone();
        let embedding_bytes = self.cache.map_or(0, EmbeddingCache::embedding_bytes);
        let count = |views: &ViewsBySlice| views.values().map(BTreeSet::len).sum::<usize>();
        let kept_embeddings = count(&kept);
        let mut plan = TrainingPlan {
            cases: self.cases(Split::Train),
            slices: self.store.len(),
            validation_cases: self.cases(Split::Validation),
            trained_values: trained.iter().map(|(_, values)| values).sum(),
            epoch_steps,
            steps: epoch_steps * config.epochs,
            steps_done: self.position.steps,
            kept_embeddings,
            found_embeddings: kept_embeddings - count(&missing),
            unkept_embeddings: unkept,
            kept_bytes: embedding_bytes * kept_embeddings as u64,
            embedding_time: None,
            devices: self.devices,
            organs: description
                .report_classes()
                .into_iter()
                .map(organ)
                .collect(),
        };
        if plan.missing_embeddings() > 0 {
            plan.embedding_time = Some(self.embedding_time());
        }
        Ok((plan, missing))
    }

    fn cases(&self, split: Split) -> usize {
        let cases = self.dataset.all_cases().iter();
        cases.filter(|case| case.split == split).count()
    }

    /// The embeddings that the steps ahead ask for: those that are kept, and how often others.
    fn embeddings(&self, epoch_steps: u64) -> (ViewsBySlice, usize) {
        let (mut kept, mut unkept) = (ViewsBySlice::new(), 0);
        if self.position.finished || !self.config.model.fusion.uses_sam() {
            return (kept, unkept);
        }
        for epoch in self.position.epochs..self.config.epochs {
            let steps_done = self.position.steps.saturating_sub(epoch * epoch_steps) as usize;
            let slices_done = steps_done * self.config.accumulated_batches * self.config.batch_size;
            for (slice, view) in self.batches.epoch(epoch).into_iter().skip(slices_done) {
                match self.cache.is_some() && self.config.cache.views.keeps(view) {
                    true => _ = kept.entry(slice).or_default().insert(view),
                    false => unkept += 1,
                }
            }
        }
        (kept, unkept)
    }

    /// Which of these are not in the cache. Their keys are known from the slices' pixels alone, so each slice is read.
    fn missing(
        &self,
        kept: &ViewsBySlice,
        told: &mut Told<'_>,
    ) -> Result<ViewsBySlice, TrainingError> {
        let Some(cache) = self.cache.filter(|cache| !cache.is_empty()) else {
            return Ok(kept.clone());
        };
        let missing = |slice: usize, views: &BTreeSet<View>| -> Result<_, DatasetError> {
            let hash = SliceHash::new(self.store.slice(slice)?.image.view());
            let is_missing = |&&view: &&View| !cache.contains(&self.batches.view(hash, view).key());
            let views: BTreeSet<View> = views.iter().filter(is_missing).copied().collect();
            Ok((slice, views))
        };
        let slices = Mutex::new(kept.iter());
        std::thread::scope(|scope| {
            let (sender, receiver) = channel();
            for _ in 0..self.config.workers {
                let (sender, slices, missing) = (sender.clone(), &slices, &missing);
                scope.spawn(move || {
                    let next = || slices.lock().ok()?.next();
                    while let Some((&slice, views)) = next() {
                        // The other end is gone when a slice could not be read.
                        if sender.send(missing(slice, views)).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(sender);
            let mut all = ViewsBySlice::new();
            for (done, found) in receiver.into_iter().enumerate() {
                let (slice, views) = found?;
                if !views.is_empty() {
                    all.insert(slice, views);
                }
                told.tell(TrainingEvent::Planning(done + 1, kept.len()));
            }
            Ok(all)
        })
    }

    fn embedding_time(&self) -> Duration {
        let device = self.model.foundation.device();
        let size = self.config.model.input_size;
        let embed = || {
            let image = Tensor::<4>::zeros([1, 3, size, size], &device);
            let start = Instant::now();
            self.model.foundation.embed(image).into_data();
            start.elapsed()
        };
        embed(); // the first time has work of its own
        embed()
    }
}
