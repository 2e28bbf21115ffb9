//! What a run will do, worked out before it starts.

use super::checkpoint::Position;
use super::events::EventSink;
use super::{Batches, Shard, TrainingConfig, TrainingError, TrainingEvent, TrainingPlan};
use crate::embeddings::{EmbeddingCache, SliceHash};
use crate::model::{Foundation, NetworkConfig, SegmentationModel, SegmentationNetwork};
use burn::tensor::Tensor;
use sam_lst_datasets::{Dataset, DatasetError, SliceStore, Split, View};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

pub(super) type ViewsBySlice = BTreeMap<usize, BTreeSet<View>>;

/// The inputs of a plan.
pub(super) struct Planner<'a, N: SegmentationNetwork> {
    pub model: &'a SegmentationModel<N>,
    pub dataset: &'a Dataset,
    pub config: &'a TrainingConfig<N::Config>,
    pub store: &'a SliceStore<'a>,
    pub batches: &'a Batches<'a>,
    pub cache: Option<&'a EmbeddingCache>,
    pub position: &'a Position,
    pub devices: usize,
    /// The part of the slices to plan for; all of them without.
    pub shard: Option<Shard>,
}

/// Result of looking up a slice's embeddings in the cache.
struct Lookup {
    slice: usize,
    /// Views to embed in this shard, cached or not.
    views: usize,
    missing: BTreeSet<View>,
}

impl<N: SegmentationNetwork> Planner<'_, N> {
    /// Returns the plan, and the embeddings that belong in the cache and are not there yet.
    pub fn plan(
        &self,
        events: &mut EventSink<'_>,
    ) -> Result<(TrainingPlan, ViewsBySlice), TrainingError> {
        let config = self.config;
        let steps_per_epoch = self.batches.steps().div_ceil(config.accumulated_batches) as u64;
        let (cacheable, uncached) = self.needed_embeddings(steps_per_epoch);
        let (missing, cacheable_embeddings) = self.missing_embeddings(cacheable, events)?;
        let trained = self.model.trained_tensors();
        let description = self.dataset.description();
        let classes = description.report_classes();
        let organ = |class| description.organ(class).name.clone();
        let embedding_bytes = self.cache.map_or(0, EmbeddingCache::embedding_bytes);
        let mut plan = TrainingPlan {
            training_cases: self.cases(Split::Train),
            slices: self.store.len(),
            validation_cases: self.cases(Split::Validation),
            trained_parameters: trained.iter().map(|(_, values)| values).sum(),
            steps_per_epoch,
            total_steps: steps_per_epoch * config.epochs,
            completed_steps: self.position.steps,
            cacheable_embeddings,
            cached_embeddings: cacheable_embeddings - count(&missing),
            uncached_embeddings: uncached,
            cache_bytes: embedding_bytes * cacheable_embeddings as u64,
            time_per_embedding: None,
            devices: self.devices,
            organ_cases: classes.iter().map(|&class| self.store.cases_with_class(class)).collect(),
            organs: classes.into_iter().map(organ).collect(),
        };
        for (organ, _) in
            plan.organs.iter().zip(&plan.organ_cases).filter(|(_, cases)| **cases == 0)
        {
            log::warn!(
                "no training case contains `{organ}`, so it cannot be learned; check its labels in the \
                 dataset description"
            );
        }
        if let Some(foundation) = self.model.embedding_foundation()
            && plan.missing_embeddings() > 0
        {
            plan.time_per_embedding = Some(self.time_per_embedding(foundation));
        }
        Ok((plan, missing))
    }

    fn cases(&self, split: Split) -> usize {
        let cases = self.dataset.all_cases().iter();
        cases.filter(|case| case.split == split).count()
    }

    /// The embeddings that the remaining steps need: those that belong in the cache, and the number
    /// of times that others are needed.
    fn needed_embeddings(&self, steps_per_epoch: u64) -> (ViewsBySlice, usize) {
        let (mut cacheable, mut uncached) = (ViewsBySlice::new(), 0);
        if self.position.finished || self.model.embedding_foundation().is_none() {
            return (cacheable, uncached);
        }
        let slices_per_step = self.config.accumulated_batches * self.config.batch_size;
        for epoch in self.position.epochs..self.config.epochs {
            let completed = self.position.steps.saturating_sub(epoch * steps_per_epoch) as usize;
            let remaining = self.batches.epoch(epoch).into_iter().skip(completed * slices_per_step);
            for (slice, view) in remaining {
                let view = self.batches.encoded(view);
                if self.cache.is_some() && self.config.cache.views.contains(view) {
                    cacheable.entry(slice).or_default().insert(view);
                } else {
                    uncached += 1;
                }
            }
        }
        (cacheable, uncached)
    }

    /// The cacheable embeddings that are not in the cache, and the number of all cacheable ones in
    /// this shard. A key depends on the slice's pixels, so each slice is read.
    fn missing_embeddings(
        &self,
        cacheable: ViewsBySlice,
        events: &mut EventSink<'_>,
    ) -> Result<(ViewsBySlice, usize), TrainingError> {
        let total = count(&cacheable);
        let Some(cache) = self.cache else { return Ok((cacheable, total)) };
        if self.shard.is_none() && cache.is_empty()? {
            return Ok((cacheable, total));
        }
        let slices = Mutex::new(cacheable.iter());
        let (store, batches, shard) = (self.store, self.batches, self.shard);
        std::thread::scope(|scope| {
            let (sender, receiver) = channel();
            for _ in 0..self.config.workers {
                let (sender, slices) = (sender.clone(), &slices);
                scope.spawn(move || {
                    let next = || slices.lock().ok()?.next();
                    while let Some((&slice, views)) = next() {
                        // The receiver is gone after a slice that could not be read.
                        let lookup = look_up(store, batches, shard, cache, slice, views);
                        if sender.send(lookup).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(sender);
            let (mut missing, mut in_shard) = (ViewsBySlice::new(), 0);
            for (done, lookup) in (1..).zip(receiver) {
                let lookup = lookup?;
                in_shard += lookup.views;
                if !lookup.missing.is_empty() {
                    missing.insert(lookup.slice, lookup.missing);
                }
                events.emit(TrainingEvent::CheckingCache { done, total: cacheable.len() });
            }
            Ok((missing, in_shard))
        })
    }

    fn time_per_embedding(&self, foundation: &Foundation) -> Duration {
        let device = foundation.device();
        let size = self.config.model.input_size();
        let embed = || {
            let image = Tensor::<4>::zeros([1, 3, size, size], &device);
            let start = Instant::now();
            foundation.embed(image).into_data();
            start.elapsed()
        };
        embed(); // warm-up: the first call also compiles kernels and allocates
        embed()
    }
}

fn look_up(
    store: &SliceStore<'_>,
    batches: &Batches<'_>,
    shard: Option<Shard>,
    cache: &EmbeddingCache,
    slice: usize,
    views: &BTreeSet<View>,
) -> Result<Lookup, DatasetError> {
    let hash = SliceHash::new(store.slice(slice)?.image.view());
    if shard.is_some_and(|shard| hash.shard(shard.count()) != shard.index()) {
        return Ok(Lookup { slice, views: 0, missing: BTreeSet::new() });
    }
    let is_missing = |&&view: &&View| !cache.contains(&batches.view(hash, view).key());
    let missing = views.iter().filter(is_missing).copied().collect();
    Ok(Lookup { slice, views: views.len(), missing })
}

fn count(views: &ViewsBySlice) -> usize {
    views.values().map(BTreeSet::len).sum()
}
