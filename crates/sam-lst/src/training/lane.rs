//! Where a step's batches are computed: on the run's own device, and on others beside it.

use crate::{
    Batch, CacheError, CachedViews, Embedder, EmbeddingCache, Foundation, Ladder, SideEncoder,
};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};
use losses::CrossEntropyDiceLoss;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Scope;

/// What a batch is computed with on one device.
#[derive(Debug)]
pub(super) struct Lane<'a> {
    pub embedder: Embedder<'a>,
    pub loss: CrossEntropyDiceLoss,
    /// The ladder's.
    pub device: Device,
}

/// What comes of a batch.
#[derive(Debug)]
pub(super) struct Computed {
    pub losses: Losses,
    /// Of the batch's share in its step's loss.
    pub gradients: GradientsParams,
}

/// A batch's losses, on their device, which may still be at work on them.
#[derive(Debug)]
pub(super) struct Losses(Tensor<1>);

impl Losses {
    /// Total, cross entropy, Dice. Waits for the device.
    pub fn values(self) -> [f64; 3] {
        let values = self.0.into_data();
        let mut values = values.iter::<f64>();
        [(); 3].map(|()| values.next().expect("three losses"))
    }
}

impl<'a> Lane<'a> {
    pub fn new(
        foundation: &'a Foundation,
        cache: Option<(&'a EmbeddingCache, CachedViews)>,
        loss: CrossEntropyDiceLoss,
        device: Device,
    ) -> Self {
        let embedder = Embedder::new(foundation);
        Self {
            embedder: match cache {
                Some((cache, views)) => embedder.with_cache(cache, views),
                None => embedder,
            },
            loss,
            device,
        }
    }

    /// Computes a batch, one of `together` whose mean gradient makes a step. Waits for nothing: a GPU has its way through the
    /// whole step before anybody asks for a value.
    pub fn compute<S: SideEncoder>(
        &mut self,
        ladder: &Ladder<S>,
        batch: &Batch,
        together: usize,
    ) -> Result<Computed, CacheError> {
        let images = batch.images(&self.device);
        let embedding = match ladder.fusion().uses_sam() {
            true => Some(self.embedder.embed(images.clone(), &batch.views)?),
            false => None,
        };
        let logits = ladder.forward(images, embedding).logits;
        let parts = self.loss.forward(logits, batch.labels(&self.device));
        // For one transfer of the three.
        let losses = [&parts.total, &parts.cross_entropy, &parts.dice];
        let losses = Losses(Tensor::cat(
            losses.map(|part| part.clone().inner()).into(),
            0,
        ));
        let share = parts.total / together as f64;
        let gradients = GradientsParams::from_grads(share.backward(), ladder);
        Ok(Computed { losses, gradients })
    }
}

/// A copy of the ladder on another device, in a thread of its own, which has Burn's running statistics and streams.
#[derive(Debug)]
pub(super) struct Replica {
    steps: Sender<StepShare>,
    answers: Receiver<Answer>,
    /// Embeddings that it computed.
    pub computed: usize,
}

/// A replica's part of a step.
struct StepShare {
    /// Of the ladder that trains, by parameter.
    weights: GradientsParams,
    batches: Vec<Batch>,
    together: usize,
}

#[derive(Debug)]
struct Answer {
    computed: Result<Computed, CacheError>,
    embeddings: usize,
    full: Option<Arc<CacheError>>,
}

impl Replica {
    /// Puts a copy of the ladder, and of the foundation, on a device, whose work is done in `scope`.
    pub fn start<'scope, S: SideEncoder>(
        scope: &'scope Scope<'scope, '_>,
        ladder: &Ladder<S>,
        foundation: &Foundation,
        cache: Option<(&'scope EmbeddingCache, CachedViews)>,
        loss: CrossEntropyDiceLoss,
        device: &Device,
    ) -> Self {
        // `valid` and `train` make running statistics that the ladder's own do not share.
        let mut copy = ladder.valid().train().fork(device);
        let (foundation, device) = (foundation.to_device(device), device.clone());
        let (steps, received) = channel::<StepShare>();
        let (said, answers) = channel();
        scope.spawn(move || {
            let mut lane = Lane::new(&foundation, cache, loss, device);
            for mut step in received {
                copy = copy.map(&mut Weights {
                    new: &mut step.weights,
                    device: &lane.device,
                });
                for batch in &step.batches {
                    let answer = Answer {
                        computed: lane.compute(&copy, batch, step.together),
                        embeddings: lane.embedder.computed(),
                        full: lane.embedder.shared_full(),
                    };
                    // The other end is gone when the run has failed.
                    if said.send(answer).is_err() {
                        return;
                    }
                }
            }
        });
        Self {
            steps,
            answers,
            computed: 0,
        }
    }

    /// Begins with batches of a step; [`next`](Self::next) gives what comes of each, in their order.
    pub fn begin<S: SideEncoder>(&self, ladder: &Ladder<S>, batches: Vec<Batch>, together: usize) {
        struct Trained(GradientsParams);
        impl ModuleVisitor for Trained {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                if param.is_require_grad() {
                    self.0.register(param.id, param.val().inner());
                }
            }
        }
        let mut trained = Trained(GradientsParams::new());
        ladder.visit(&mut trained);
        let share = StepShare {
            weights: trained.0,
            batches,
            together,
        };
        // A thread that has panicked takes nothing; `next` says so.
        let _ = self.steps.send(share);
    }

    /// What came of the next batch, its gradients on `device`, and what the disk said if it takes no more embeddings.
    pub fn next<S: SideEncoder>(
        &mut self,
        ladder: &Ladder<S>,
        device: &Device,
    ) -> Result<(Computed, Option<Arc<CacheError>>), CacheError> {
        let answer = self.answers.recv().expect("the device's thread goes on");
        self.computed = answer.embeddings;
        let computed = answer.computed?;
        let gradients = computed
            .gradients
            .to_device(&device.clone().inner(), ladder);
        let computed = Computed {
            gradients,
            ..computed
        };
        Ok((computed, answer.full))
    }
}

/// Puts new values in place of what trains.
struct Weights<'a> {
    new: &'a mut GradientsParams,
    device: &'a Device,
}

impl ModuleMapper for Weights<'_> {
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
