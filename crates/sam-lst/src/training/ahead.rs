//! The foundation's work, done before the first step: every embedding that a run will ask for and that is kept.
//!
//! It spreads over devices, and over the processes, on one machine or several, that share the cache's folder: each takes the
//! slices that no other has.

use super::plan::ViewsBySlice;
use super::{Told, TrainingConfig, TrainingError, TrainingEvent};
use crate::embedder::values_for;
use crate::embedding_cache::Claim;
use crate::{Batches, CacheError, EmbeddingCache, EmbeddingKey, Foundation, Insertion, SliceHash};
use datasets::ndarray::Array2;
use datasets::{SliceStore, View};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long to wait for other processes before looking again at what they have done.
const PATIENCE: Duration = Duration::from_millis(300);

/// What is embedded, and where it is kept.
#[derive(Clone, Copy)]
pub(super) struct Ahead<'a> {
    pub store: &'a SliceStore<'a>,
    pub batches: &'a Batches<'a>,
    pub cache: &'a EmbeddingCache,
    /// Images that go through the foundation at once.
    pub batch_size: usize,
    /// Threads that make images ready.
    pub workers: usize,
}

/// What became of it.
#[derive(Default)]
pub(super) struct Embedded {
    /// Embeddings that this process computed.
    pub computed: usize,
    /// Whether some are still missing.
    pub incomplete: bool,
}

/// What the threads say.
enum News {
    /// So many more embeddings are there, of which so many were computed here.
    There(usize, usize),
    Full(CacheError),
    Failed(TrainingError),
}

/// A view of a slice, ready for the foundation.
struct Input {
    image: Array2<f32>,
    key: EmbeddingKey,
    /// Given up when the slice's last view is kept.
    _claim: Arc<Claim>,
}

/// What a thread gets to do.
enum Task {
    Slice(Claimed),
    /// Other processes, or batches that are not yet full, have what is left.
    Wait,
    Nothing,
}

struct Claimed {
    claim: Arc<Claim>,
    slice: Array2<f32>,
    views: Vec<(View, EmbeddingKey)>,
}

/// Slices with views that are missing.
#[derive(Default)]
struct Queue {
    todo: VecDeque<(usize, Vec<View>)>,
    /// Those that others had.
    held: VecDeque<(usize, Vec<View>)>,
}

impl<'a> Ahead<'a> {
    pub fn new(
        store: &'a SliceStore<'a>,
        batches: &'a Batches<'a>,
        cache: &'a EmbeddingCache,
        config: &TrainingConfig,
    ) -> Self {
        Self {
            store,
            batches,
            cache,
            batch_size: config.batch_size,
            workers: config.workers,
        }
    }

    /// Embeds what is missing, on each of the foundations' devices. Ends early when the run is asked to stop or the cache
    /// takes no more.
    pub fn embed(
        &self,
        missing: ViewsBySlice,
        foundations: &[Foundation],
        told: &mut Told<'_>,
    ) -> Result<Embedded, TrainingError> {
        if let Err(error) = self.cache.check_limit() {
            told.tell_full(Some(&error));
            return Ok(Embedded {
                computed: 0,
                incomplete: true,
            });
        }
        let mut progress = Progress {
            all: missing.values().map(|views| views.len()).sum(),
            ..Progress::default()
        };
        let queue = Mutex::new(Queue {
            todo: missing
                .into_iter()
                .map(|(slice, views)| (slice, views.into_iter().collect()))
                .collect(),
            held: VecDeque::new(),
        });
        let stop = AtomicBool::new(false);
        let (news, heard) = channel();
        let (ready, taken) = sync_channel(foundations.len());
        let taken = Arc::new(Mutex::new(taken));
        std::thread::scope(|scope| {
            for _ in 0..self.workers {
                let (ready, news, queue, stop) = (ready.clone(), news.clone(), &queue, &stop);
                scope.spawn(move || {
                    if let Err(failed) = self.prepare(queue, &ready, &news, stop) {
                        // The other end is gone when the work has ended.
                        let _ = news.send(failed);
                    }
                });
            }
            // The first device's work is done here: on the CPU this thread may be one of those that compute.
            let (own, others) = foundations.split_first().expect("a device");
            for foundation in others {
                let (foundation, news, stop) = (foundation.clone(), news.clone(), &stop);
                // Gone with the last device, so that nobody waits for one.
                let taken = Arc::clone(&taken);
                scope.spawn(move || {
                    while let (false, Ok(batch)) = (stop.load(Ordering::Relaxed), take(&taken)) {
                        if let Some(batch) = batch {
                            self.compute(&foundation, batch, &news, stop);
                        }
                    }
                });
            }
            drop(ready);
            while let (false, Ok(batch)) = (stop.load(Ordering::Relaxed), take(&taken)) {
                if let Some(batch) = batch {
                    self.compute(own, batch, &news, &stop);
                }
                for said in heard.try_iter() {
                    progress.hear(said, told, &stop);
                }
            }
            drop((taken, news));
            for said in heard {
                progress.hear(said, told, &stop);
            }
        });
        progress.end()
    }

    /// Makes batches of what no other process has, until nothing is left.
    fn prepare(
        &self,
        queue: &Mutex<Queue>,
        ready: &SyncSender<Vec<Input>>,
        news: &Sender<News>,
        stop: &AtomicBool,
    ) -> Result<(), News> {
        let mut batch = Vec::with_capacity(self.batch_size);
        // The other end is gone when the work was broken off.
        let send =
            |batch: &mut Vec<Input>| batch.is_empty() || ready.send(std::mem::take(batch)).is_ok();
        while !stop.load(Ordering::Relaxed) {
            match self.next(queue, news)? {
                Task::Slice(claimed) => {
                    for (view, key) in claimed.views {
                        batch.push(Input {
                            image: self.batches.input(claimed.slice.view(), view),
                            key,
                            _claim: Arc::clone(&claimed.claim),
                        });
                        if batch.len() == self.batch_size && !send(&mut batch) {
                            return Ok(());
                        }
                    }
                }
                Task::Wait => {
                    if !send(&mut batch) {
                        return Ok(());
                    }
                    std::thread::sleep(PATIENCE);
                    self.cache.refresh().map_err(failed)?;
                }
                Task::Nothing => break,
            }
        }
        send(&mut batch);
        Ok(())
    }

    /// A slice that no other process has, and those of its views that are still missing.
    fn next(&self, queue: &Mutex<Queue>, news: &Sender<News>) -> Result<Task, News> {
        loop {
            let next = {
                let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
                let next = queue.todo.pop_front();
                if next.is_none() {
                    if queue.held.is_empty() {
                        return Ok(Task::Nothing);
                    }
                    let held = std::mem::take(&mut queue.held);
                    queue.todo = held;
                    return Ok(Task::Wait);
                }
                next
            };
            let Some((index, views)) = next else { continue };
            let slice = self.store.slice(index).map_err(failed)?.image;
            let hash = SliceHash::new(slice.view());
            let missing = || -> Vec<(View, EmbeddingKey)> {
                let keys = views
                    .iter()
                    .map(|&view| (view, self.batches.view(hash, view).key()));
                keys.filter(|(_, key)| !self.cache.contains(key)).collect()
            };
            if missing().is_empty() {
                let _ = news.send(News::There(views.len(), 0));
                continue;
            }
            let Some(claim) = self.cache.claim(hash.key()).map_err(News::Full)? else {
                let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
                queue.held.push_back((index, views));
                continue;
            };
            // Who had the slice before may have done it.
            self.cache.refresh().map_err(failed)?;
            let missing = missing();
            if missing.len() < views.len() {
                let _ = news.send(News::There(views.len() - missing.len(), 0));
            }
            if !missing.is_empty() {
                return Ok(Task::Slice(Claimed {
                    claim: Arc::new(claim),
                    slice,
                    views: missing,
                }));
            }
        }
    }

    /// Embeds a batch and keeps what comes out.
    fn compute(
        &self,
        foundation: &Foundation,
        batch: Vec<Input>,
        news: &Sender<News>,
        stop: &AtomicBool,
    ) {
        // The other end is there until the work has ended.
        let say = |said| _ = news.send(said);
        let images: Vec<&Array2<f32>> = batch.iter().map(|input| &input.image).collect();
        let images = self.batches.images(&images, &foundation.device());
        let embeddings = match foundation.try_embed(images) {
            Ok(embeddings) => embeddings,
            Err(error) => return say(failed(CacheError::from(error))),
        };
        let values = values_for(self.cache, embeddings);
        let size: usize = self.cache.shape().iter().product();
        let mut kept = 0;
        for (values, input) in values.chunks_exact(size).zip(&batch) {
            match self.cache.insert(input.key, values) {
                Ok(Insertion::Kept | Insertion::Present) => kept += 1,
                // Why was said where it was met with. The rest is computed when it is asked for.
                Ok(Insertion::NoRoom) => stop.store(true, Ordering::Relaxed),
                Err(error) => say(News::Full(error)),
            }
        }
        say(News::There(kept, batch.len()));
    }
}

/// The next batch; none yet, if it takes a while to be made. An error when there will be no more.
fn take(taken: &Mutex<Receiver<Vec<Input>>>) -> Result<Option<Vec<Input>>, RecvTimeoutError> {
    let taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
    match taken.recv_timeout(PATIENCE) {
        Err(RecvTimeoutError::Timeout) => Ok(None),
        batch => batch.map(Some),
    }
}

/// What was heard so far.
#[derive(Default)]
struct Progress {
    embedded: Embedded,
    /// Embeddings that are there, of how many.
    done: usize,
    all: usize,
    failed: Option<TrainingError>,
}

impl Progress {
    fn hear(&mut self, said: News, told: &mut Told<'_>, stop: &AtomicBool) {
        match said {
            News::There(there, computed) => {
                self.done += there;
                self.embedded.computed += computed;
                told.tell(TrainingEvent::Embedding(self.done, self.all));
            }
            News::Full(error) => told.tell_full(Some(&error)),
            News::Failed(error) => self.failed = Some(error),
        }
        if told.stop || told.cache_full || self.failed.is_some() {
            stop.store(true, Ordering::Relaxed);
        }
    }

    fn end(mut self) -> Result<Embedded, TrainingError> {
        self.embedded.incomplete = self.done < self.all;
        self.failed.map_or(Ok(self.embedded), Err)
    }
}

fn failed(error: impl Into<TrainingError>) -> News {
    News::Failed(error.into())
}
