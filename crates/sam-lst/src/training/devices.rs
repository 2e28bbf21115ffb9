//! Computes the batches of a step: on the model's own device, and on further devices.

use super::Batch;
use crate::embeddings::{CacheError, CachedViews, Embedder, EmbeddingCache};
use crate::model::{EmbeddingPrecision, Foundation, SegmentationNetwork, SupervisedLogits};
use burn::module::{ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Int, Tensor};
use sam_lst_losses::{CrossEntropyDiceLoss, LossParts};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Scope;

/// Computes losses and gradients of batches on one device.
#[derive(Debug)]
pub(super) struct DeviceWorker<'a> {
    /// `None` if the network uses no embedding.
    pub embedder: Option<Embedder<'a>>,
    pub loss: CrossEntropyDiceLoss,
    /// The network's device.
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
        foundation: Option<&'a Foundation>,
        precision: EmbeddingPrecision,
        cache: Option<(&'a EmbeddingCache, CachedViews)>,
        loss: CrossEntropyDiceLoss,
        device: Device,
    ) -> Self {
        let embedder = foundation.map(|foundation| {
            let embedder = Embedder::new(foundation, precision);
            match cache {
                Some((cache, views)) => embedder.with_cache(cache, views),
                None => embedder,
            }
        });
        Self { embedder, loss, device }
    }

    /// Embeddings that it has computed.
    pub fn computed_embeddings(&self) -> usize {
        self.embedder.as_ref().map_or(0, Embedder::computed)
    }

    /// Computes a batch, one of `batches_in_step` whose mean gradient makes a step. It only queues
    /// work, unless features must be moved that are not cached: otherwise nothing waits for a GPU
    /// between forward and backward.
    pub fn compute<N: SegmentationNetwork>(
        &mut self,
        network: &N,
        batch: &Batch,
        batches_in_step: usize,
    ) -> Result<BatchResult, CacheError> {
        let images = batch.images(&self.device);
        let embedding = match &mut self.embedder {
            Some(embedder) => {
                let images = || batch.encoded_images(&self.device);
                Some(embedder.embed_with(images, &batch.views, &self.device)?)
            }
            None => None,
        };
        let logits = network.supervised_logits(images, embedding);
        let parts = self.supervised_loss(logits, batch.labels(&self.device));
        // Concatenated, so that reading the three losses takes one transfer.
        let losses = [&parts.total, &parts.cross_entropy, &parts.dice];
        let losses = Losses(Tensor::cat(losses.map(|part| part.clone().inner()).into(), 0));
        let share = parts.total / batches_in_step as f64;
        let gradients = GradientsParams::from_grads(share.backward(), network);
        Ok(BatchResult { losses, gradients })
    }

    /// The weighted sum of the losses of logits, each with labels of its size.
    fn supervised_loss(&self, logits: Vec<SupervisedLogits>, labels: Tensor<3, Int>) -> LossParts {
        let weighted = logits.into_iter().map(|SupervisedLogits { logits, weight }| {
            let [_, _, rows, columns] = logits.dims();
            let parts = self.loss.forward(logits, subsampled(labels.clone(), [rows, columns]));
            LossParts {
                total: parts.total * weight,
                cross_entropy: parts.cross_entropy * weight,
                dice: parts.dice * weight,
            }
        });
        let sum = |sum: LossParts, parts: LossParts| LossParts {
            total: sum.total + parts.total,
            cross_entropy: sum.cross_entropy + parts.cross_entropy,
            dice: sum.dice + parts.dice,
        };
        weighted.reduce(sum).expect("a network has logits")
    }
}

/// A worker on another device, with a copy of the network, in a thread of its own: Burn's running
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
    /// The trained parameters of the network.
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
    /// Copies network and foundation to a device and starts its thread in `scope`.
    pub fn start<'scope, N: SegmentationNetwork>(
        scope: &'scope Scope<'scope, '_>,
        network: &N,
        foundation: Option<&Foundation>,
        precision: EmbeddingPrecision,
        cache: Option<(&'scope EmbeddingCache, CachedViews)>,
        loss: CrossEntropyDiceLoss,
        device: &Device,
    ) -> Self {
        // `valid` and `train` give the copy running statistics of its own.
        let mut copy = network.valid().train().fork(device);
        let foundation = foundation.map(|foundation| foundation.to_device(device));
        let device = device.clone();
        let (shares, received) = channel::<StepShare>();
        let (sender, results) = channel();
        scope.spawn(move || {
            let mut worker = DeviceWorker::new(foundation.as_ref(), precision, cache, loss, device);
            for mut share in received {
                copy = copy.map(&mut ReplaceParameters {
                    new: &mut share.parameters,
                    device: &worker.device,
                });
                for batch in &share.batches {
                    let result = RemoteResult {
                        batch: worker.compute(&copy, batch, share.batches_in_step),
                        computed_embeddings: worker.computed_embeddings(),
                        cache_write_error: worker
                            .embedder
                            .as_ref()
                            .and_then(Embedder::shared_cache_write_error),
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
    pub fn start_step<N: SegmentationNetwork>(
        &self,
        network: &N,
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
        network.visit(&mut trained);
        // If the thread has panicked, `receive` reports it.
        let _ = self.shares.send(StepShare { parameters: trained.0, batches, batches_in_step });
    }

    /// The result of the next batch with its gradients on `device`, and the cache's write error.
    pub fn receive<N: SegmentationNetwork>(
        &mut self,
        network: &N,
        device: &Device,
    ) -> Result<(BatchResult, Option<Arc<CacheError>>), CacheError> {
        let result = self.results.recv().expect("the device's thread is running");
        self.computed_embeddings = result.computed_embeddings;
        let batch = result.batch?;
        let gradients = batch.gradients.to_device(&device.clone().inner(), network);
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

/// Labels at a size that divides theirs: the pixel at the centre of each block, or after it.
///
/// # Panics
///
/// If a size does not divide the labels'.
fn subsampled(labels: Tensor<3, Int>, [rows, columns]: [usize; 2]) -> Tensor<3, Int> {
    let [batch, from_rows, from_columns] = labels.dims();
    if [rows, columns] == [from_rows, from_columns] {
        return labels;
    }
    let (row_step, column_step) = (from_rows / rows, from_columns / columns);
    assert_eq!(
        [rows * row_step, columns * column_step],
        [from_rows, from_columns],
        "the size of logits divides that of labels"
    );
    let blocks = labels.reshape([batch, rows, row_step, columns, column_step]);
    let centres = blocks.narrow(2, row_step / 2, 1).narrow(4, column_step / 2, 1);
    centres.reshape([batch, rows, columns])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subsampled_labels_are_those_at_the_centres_of_blocks() {
        let labels = Tensor::<1, Int>::arange(0..16, &Device::flex()).reshape([1, 4, 4]);
        let halved = subsampled(labels.clone(), [2, 2]).into_data();
        assert_eq!(halved.iter::<i64>().collect::<Vec<_>>(), [5, 7, 13, 15]);
        assert_eq!(subsampled(labels.clone(), [4, 4]).into_data(), labels.into_data());
    }
}
