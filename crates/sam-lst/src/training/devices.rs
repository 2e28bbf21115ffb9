//! Computes the batches of a step: on the model's own device, and on further devices.

use super::Batch;
use crate::embeddings::{CacheError, CachedViews, Embedder, EmbeddingCache};
use crate::model::{EmbeddingPrecision, Foundation, Ladder, SideEncoder};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};
use sam_lst_losses::CrossEntropyDiceLoss;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Scope;

/// Computes losses and gradients of batches on one device.
#[derive(Debug)]
pub(super) struct DeviceWorker<'a> {
    pub embedder: Embedder<'a>,
    pub loss: CrossEntropyDiceLoss,
    /// The ladder's device.
    pub device: Device,
}

/// Losses and gradients of a batch.
#[derive(Debug)]
pub(super) struct BatchResult {
    pub losses: Losses,
    /// Gradients of the batch's share in the step's loss.
    pub gradients: GradientsParams,
}

/// Losses of a batch, on a device that may still be computing them.
#[derive(Debug)]
pub(super) struct Losses(Tensor<1>);

impl Losses {
    /// Total, cross entropy and Dice loss. Waits for the device.
    pub fn values(self) -> [f64; 3] {
        let values = self.0.into_data();
        let mut values = values.iter::<f64>();
        [(); 3].map(|()| values.next().expect("three losses"))
    }
}

impl<'a> DeviceWorker<'a> {
    pub fn new(
        foundation: &'a Foundation,
        precision: EmbeddingPrecision,
        cache: Option<(&'a EmbeddingCache, CachedViews)>,
        loss: CrossEntropyDiceLoss,
        device: Device,
    ) -> Self {
        let embedder = Embedder::new(foundation, precision);
        let embedder = match cache {
            Some((cache, views)) => embedder.with_cache(cache, views),
            None => embedder,
        };
        Self { embedder, loss, device }
    }

    /// Computes a batch, one of `batches_in_step` whose mean gradient makes a step. It only queues
    /// work: nothing waits for a GPU between forward and backward.
    pub fn compute<S: SideEncoder>(
        &mut self,
        ladder: &Ladder<S>,
        batch: &Batch,
        batches_in_step: usize,
    ) -> Result<BatchResult, CacheError> {
        let images = batch.images(&self.device);
        let embedding = if ladder.fusion().uses_sam() {
            Some(self.embedder.embed(images.clone(), &batch.views)?)
        } else {
            None
        };
        let logits = ladder.forward(images, embedding).logits;
        let parts = self.loss.forward(logits, batch.labels(&self.device));
        // Concatenated, so that reading the three losses takes one transfer.
        let losses = [&parts.total, &parts.cross_entropy, &parts.dice];
        let losses = Losses(Tensor::cat(losses.map(|part| part.clone().inner()).into(), 0));
        let share = parts.total / batches_in_step as f64;
        let gradients = GradientsParams::from_grads(share.backward(), ladder);
        Ok(BatchResult { losses, gradients })
    }
}

/// A worker on another device, with a copy of the ladder, in a thread of its own: Burn's running
/// statistics and streams belong to a thread.
#[derive(Debug)]
pub(super) struct RemoteWorker {
    shares: Sender<StepShare>,
    results: Receiver<RemoteResult>,
    /// Embeddings that it has computed.
    pub computed_embeddings: usize,
}

/// A worker's share of a step.
struct StepShare {
    /// The trained parameters of the ladder.
    parameters: GradientsParams,
    batches: Vec<Batch>,
    batches_in_step: usize,
}

#[derive(Debug)]
struct RemoteResult {
    batch: Result<BatchResult, CacheError>,
    computed_embeddings: usize,
    cache_write_error: Option<Arc<CacheError>>,
}

impl RemoteWorker {
    /// Copies ladder and foundation to a device and starts its thread in `scope`.
    pub fn start<'scope, S: SideEncoder>(
        scope: &'scope Scope<'scope, '_>,
        ladder: &Ladder<S>,
        foundation: &Foundation,
        precision: EmbeddingPrecision,
        cache: Option<(&'scope EmbeddingCache, CachedViews)>,
        loss: CrossEntropyDiceLoss,
        device: &Device,
    ) -> Self {
        // `valid` and `train` give the copy running statistics of its own.
        let mut copy = ladder.valid().train().fork(device);
        let (foundation, device) = (foundation.to_device(device), device.clone());
        let (shares, received) = channel::<StepShare>();
        let (sender, results) = channel();
        scope.spawn(move || {
            let mut worker = DeviceWorker::new(&foundation, precision, cache, loss, device);
            for mut share in received {
                copy = copy.map(&mut ReplaceParameters {
                    new: &mut share.parameters,
                    device: &worker.device,
                });
                for batch in &share.batches {
                    let result = RemoteResult {
                        batch: worker.compute(&copy, batch, share.batches_in_step),
                        computed_embeddings: worker.embedder.computed(),
                        cache_write_error: worker.embedder.shared_cache_write_error(),
                    };
                    // The receiver is gone when the run has failed.
                    if sender.send(result).is_err() {
                        return;
                    }
                }
            }
        });
        Self { shares, results, computed_embeddings: 0 }
    }

    /// Starts its batches of a step; [`receive`](Self::receive) returns their results in order.
    pub fn start_step<S: SideEncoder>(
        &self,
        ladder: &Ladder<S>,
        batches: Vec<Batch>,
        batches_in_step: usize,
    ) {
        struct TrainedParameters(GradientsParams);
        impl ModuleVisitor for TrainedParameters {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                if param.is_require_grad() {
                    self.0.register(param.id, param.val().inner());
                }
            }
        }
        let mut trained = TrainedParameters(GradientsParams::new());
        ladder.visit(&mut trained);
        // If the thread has panicked, `receive` reports it.
        let _ = self.shares.send(StepShare { parameters: trained.0, batches, batches_in_step });
    }

    /// The result of the next batch with its gradients on `device`, and the cache's write error.
    pub fn receive<S: SideEncoder>(
        &mut self,
        ladder: &Ladder<S>,
        device: &Device,
    ) -> Result<(BatchResult, Option<Arc<CacheError>>), CacheError> {
        let result = self.results.recv().expect("the device's thread is running");
        self.computed_embeddings = result.computed_embeddings;
        let batch = result.batch?;
        let gradients = batch.gradients.to_device(&device.clone().inner(), ladder);
        Ok((BatchResult { gradients, ..batch }, result.cache_write_error))
    }
}

/// Replaces the values of trained parameters.
struct ReplaceParameters<'a> {
    new: &'a mut GradientsParams,
    device: &'a Device,
}

impl ModuleMapper for ReplaceParameters<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match self.new.remove::<D>(param.id) {
            Some(new) => param.map(|_| {
                let new = new.to_device(&self.device.clone().inner());
                Tensor::from_inner(new).require_grad()
            }),
            None => param,
        }
    }
}
