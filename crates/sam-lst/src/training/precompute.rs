//! Computes the embeddings that a run needs and that the cache keeps, before the first step.
//!
//! The work is divided between devices, and between the processes, on one machine or several, that
//! share the cache folder: each takes slices that no other has claimed, or its shard of them.

use super::events::EventSink;
use super::plan::ViewsBySlice;
use super::{Batches, Shard, TrainingConfig, TrainingError, TrainingEvent};
use crate::embeddings::{
    CacheError, Claim, EmbeddingCache, EmbeddingKey, Insertion, SliceHash, flat_values,
};
use crate::model::Foundation;
use burn::tensor::Device;
use sam_lst_datasets::ndarray::Array3;
use sam_lst_datasets::{SliceStore, View};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Time between two looks at the progress of other processes, and at a requested stop.
const POLL_INTERVAL: Duration = Duration::from_millis(300);

/// Which embeddings are computed, and where they are cached.
#[derive(Clone, Copy)]
pub(super) struct Precompute<'a> {
    store: &'a SliceStore<'a>,
    batches: &'a Batches<'a>,
    cache: &'a EmbeddingCache,
    /// Images in a batch of the foundation.
    batch_size: usize,
    /// Threads that prepare images.
    workers: usize,
    /// Whether slices are claimed. Shards are disjoint, so they need no claims.
    claims: bool,
}

/// Result of the computation.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Precomputed {
    /// Embeddings that this process computed.
    pub computed: usize,
    /// Whether some are still missing.
    pub incomplete: bool,
    /// How long it took.
    pub seconds: f64,
}

/// Messages of the threads to the thread that reports progress.
enum Message {
    Progress {
        /// Embeddings that became present.
        present: usize,
        /// How many of them were computed here.
        computed: usize,
    },
    CacheFull(CacheError),
    Failed(TrainingError),
}

/// A view of a slice, ready for the foundation.
struct Input {
    image: Array3<f32>,
    key: EmbeddingKey,
    /// Released when the last view of the slice is cached.
    _claim: Option<Arc<Claim>>,
}

/// The next thing for a thread to do.
enum Work {
    Slice(ClaimedSlice),
    /// Other processes, or batches that are not yet full, hold what remains.
    Wait,
    Done,
}

struct ClaimedSlice {
    claim: Option<Arc<Claim>>,
    pixels: Array3<f32>,
    views: Vec<(View, EmbeddingKey)>,
}

/// Slices with missing views.
#[derive(Default)]
struct Queue {
    pending: VecDeque<(usize, Vec<View>)>,
    /// Slices that another process or thread had claimed.
    claimed_elsewhere: VecDeque<(usize, Vec<View>)>,
}

impl<'a> Precompute<'a> {
    pub fn new<C>(
        store: &'a SliceStore<'a>,
        batches: &'a Batches<'a>,
        cache: &'a EmbeddingCache,
        config: &TrainingConfig<C>,
        shard: Option<Shard>,
    ) -> Self {
        Self {
            store,
            batches,
            cache,
            // Small training batches would leave a GPU idle.
            batch_size: config.batch_size.max(8),
            workers: config.workers,
            claims: shard.is_none(),
        }
    }

    /// Computes the missing embeddings on the foundation's device and on `others`.
    pub fn on_devices(
        &self,
        missing: ViewsBySlice,
        foundation: &Foundation,
        others: &[Device],
        events: &mut EventSink<'_>,
    ) -> Result<Precomputed, TrainingError> {
        if missing.is_empty() {
            return Ok(Precomputed::default());
        }
        if let Err(error) = self.cache.check_limit() {
            events.emit_cache_full(Some(&error));
            return Ok(Precomputed { incomplete: true, ..Precomputed::default() });
        }
        let copies: Vec<Foundation> =
            others.iter().map(|device| foundation.to_device(device)).collect();
        let started = Instant::now();
        let precomputed = self.compute_all(missing, foundation, &copies, events)?;
        Ok(Precomputed { seconds: started.elapsed().as_secs_f64(), ..precomputed })
    }

    /// Ends early when a stop is requested or the cache is full.
    fn compute_all(
        &self,
        missing: ViewsBySlice,
        foundation: &Foundation,
        copies: &[Foundation],
        events: &mut EventSink<'_>,
    ) -> Result<Precomputed, TrainingError> {
        let total = missing.values().map(|views| views.len()).sum();
        let mut progress = Progress { total, ..Progress::default() };
        let pending =
            missing.into_iter().map(|(slice, views)| (slice, views.into_iter().collect()));
        let queue =
            Mutex::new(Queue { pending: pending.collect(), claimed_elsewhere: VecDeque::new() });
        let stop = AtomicBool::new(false);
        let (messages, received) = channel();
        let (prepared, batches) = sync_channel(1 + copies.len());
        let batches = Arc::new(Mutex::new(batches));
        std::thread::scope(|scope| {
            for _ in 0..self.workers {
                let (prepared, messages) = (prepared.clone(), messages.clone());
                let (queue, stop) = (&queue, &stop);
                scope.spawn(move || {
                    if let Err(failed) = self.prepare(queue, &prepared, &messages, stop) {
                        // The receiver is gone when the work has ended.
                        let _ = messages.send(failed);
                    }
                });
            }
            drop(prepared);
            for copy in copies {
                let (messages, stop) = (messages.clone(), &stop);
                // Each thread drops its reference at its end, so that senders never wait for a
                // receiver that nobody reads.
                let batches = Arc::clone(&batches);
                scope.spawn(move || {
                    while let (false, Ok(batch)) = (stop.load(Ordering::Relaxed), next(&batches)) {
                        if let Some(batch) = batch {
                            self.compute(copy, batch, &messages, stop);
                        }
                    }
                });
            }
            // The model's device works on this thread, which on the CPU may be in the compute pool.
            while let (false, Ok(batch)) = (stop.load(Ordering::Relaxed), next(&batches)) {
                if let Some(batch) = batch {
                    self.compute(foundation, batch, &messages, &stop);
                }
                for message in received.try_iter() {
                    progress.handle(message, events, &stop);
                }
            }
            drop((batches, messages));
            for message in received {
                progress.handle(message, events, &stop);
            }
        });
        progress.finish()
    }

    /// Prepares batches of slices until none is left.
    fn prepare(
        &self,
        queue: &Mutex<Queue>,
        prepared: &SyncSender<Vec<Input>>,
        messages: &Sender<Message>,
        stop: &AtomicBool,
    ) -> Result<(), Message> {
        let mut batch = Vec::with_capacity(self.batch_size);
        // The receiver is gone after a stop.
        let send = |batch: &mut Vec<Input>| {
            batch.is_empty() || prepared.send(std::mem::take(batch)).is_ok()
        };
        while !stop.load(Ordering::Relaxed) {
            match self.next_work(queue, messages)? {
                Work::Slice(slice) => {
                    for (view, key) in slice.views {
                        batch.push(Input {
                            image: self.batches.input(slice.pixels.view(), view),
                            key,
                            _claim: slice.claim.clone(),
                        });
                        if batch.len() == self.batch_size && !send(&mut batch) {
                            return Ok(());
                        }
                    }
                }
                Work::Wait => {
                    if !send(&mut batch) {
                        return Ok(());
                    }
                    std::thread::sleep(POLL_INTERVAL);
                }
                Work::Done => break,
            }
        }
        send(&mut batch);
        Ok(())
    }

    /// A slice that nobody else computes, with those of its views that are still missing.
    fn next_work(&self, queue: &Mutex<Queue>, messages: &Sender<Message>) -> Result<Work, Message> {
        loop {
            let Some((index, views)) = ({
                let mut queue = lock(queue);
                if queue.pending.is_empty() && queue.claimed_elsewhere.is_empty() {
                    return Ok(Work::Done);
                }
                if queue.pending.is_empty() {
                    queue.pending = std::mem::take(&mut queue.claimed_elsewhere);
                    return Ok(Work::Wait);
                }
                queue.pending.pop_front()
            }) else {
                continue;
            };
            let pixels = self.store.slice(index).map_err(failed)?.image;
            let hash = SliceHash::new(pixels.view());
            if self.missing(hash, &views).is_empty() {
                let _ = messages.send(Message::Progress { present: views.len(), computed: 0 });
                continue;
            }
            let claim = if self.claims {
                let Some(claim) = self.cache.claim(hash.key()).map_err(Message::CacheFull)? else {
                    lock(queue).claimed_elsewhere.push_back((index, views));
                    continue;
                };
                Some(Arc::new(claim))
            } else {
                None
            };
            // A previous holder of the claim may have computed some of them meanwhile.
            let missing = self.missing(hash, &views);
            if missing.len() < views.len() {
                let present = views.len() - missing.len();
                let _ = messages.send(Message::Progress { present, computed: 0 });
            }
            if !missing.is_empty() {
                return Ok(Work::Slice(ClaimedSlice { claim, pixels, views: missing }));
            }
        }
    }

    /// Those of a slice's views that are not in the cache.
    fn missing(&self, slice: SliceHash, views: &[View]) -> Vec<(View, EmbeddingKey)> {
        let keys = views.iter().map(|&view| (view, self.batches.view(slice, view).key()));
        keys.filter(|(_, key)| !self.cache.contains(key)).collect()
    }

    /// Embeds a batch and writes the embeddings to the cache.
    fn compute(
        &self,
        foundation: &Foundation,
        batch: Vec<Input>,
        messages: &Sender<Message>,
        stop: &AtomicBool,
    ) {
        // The receiver exists until the work has ended.
        let send = |message| _ = messages.send(message);
        let images: Vec<&Array3<f32>> = batch.iter().map(|input| &input.image).collect();
        let images = self.batches.images(&images, &foundation.device());
        let embeddings = match foundation.try_embed(images) {
            Ok(embeddings) => embeddings,
            Err(error) => return send(failed(CacheError::from(error))),
        };
        let values = flat_values(self.cache, embeddings);
        let size: usize = self.cache.shape().iter().product();
        let mut present = 0;
        for (values, input) in values.chunks_exact(size).zip(&batch) {
            match self.cache.insert(input.key, values) {
                Ok(Insertion::Written | Insertion::Present) => present += 1,
                // The error was already reported. Training steps compute what is not cached.
                Ok(Insertion::NoRoom) => stop.store(true, Ordering::Relaxed),
                Err(error) => send(Message::CacheFull(error)),
            }
        }
        send(Message::Progress { present, computed: batch.len() });
    }
}

/// The next batch; `None` if it is not ready within the poll interval. An error after the last one.
fn next(batches: &Mutex<Receiver<Vec<Input>>>) -> Result<Option<Vec<Input>>, RecvTimeoutError> {
    match lock(batches).recv_timeout(POLL_INTERVAL) {
        Err(RecvTimeoutError::Timeout) => Ok(None),
        batch => batch.map(Some),
    }
}

/// A thread that panicked leaves the queue whole: every change under the lock is one insertion or
/// removal.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Default)]
struct Progress {
    computed: usize,
    /// Embeddings that are present, of `total`.
    present: usize,
    total: usize,
    failed: Option<TrainingError>,
}

impl Progress {
    fn handle(&mut self, message: Message, events: &mut EventSink<'_>, stop: &AtomicBool) {
        match message {
            Message::Progress { present, computed } => {
                self.present += present;
                self.computed += computed;
                let (done, total) = (self.present, self.total);
                events.emit(TrainingEvent::Precomputing { done, total });
            }
            Message::CacheFull(error) => events.emit_cache_full(Some(&error)),
            Message::Failed(error) => self.failed = Some(error),
        }
        if events.stop_requested || events.cache_full || self.failed.is_some() {
            stop.store(true, Ordering::Relaxed);
        }
    }

    fn finish(self) -> Result<Precomputed, TrainingError> {
        let incomplete = self.present < self.total;
        match self.failed {
            Some(error) => Err(error),
            None => Ok(Precomputed { computed: self.computed, incomplete, seconds: 0.0 }),
        }
    }
}

fn failed(error: impl Into<TrainingError>) -> Message {
    Message::Failed(error.into())
}
