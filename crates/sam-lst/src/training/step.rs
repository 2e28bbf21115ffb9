//! The ladder in burn-train's own training loop.

use crate::model::{Ladder, SideEncoder};
use burn::tensor::{ExecutionError, Int, Tensor};
use burn_train::metric::{Adaptor, LossInput};
use burn_train::{InferenceStep, ItemLazy, TrainOutput, TrainStep};
use sam_lst_losses::{CrossEntropyDiceLoss, LossParts};

/// A batch for a [`Ladder`] in burn-train's loop.
#[derive(Debug, Clone)]
pub struct LadderBatch {
    /// Images `[B, 3, S, S]`, pixels in `[0, 1]`.
    pub images: Tensor<4>,
    /// The foundation's embeddings `[B, C, G, G]`; `None` for a ladder that does not use them.
    pub embeddings: Option<Tensor<4>>,
    /// Classes `[B, S / 4, S / 4]`.
    pub labels: Tensor<3, Int>,
    /// The loss.
    pub loss: CrossEntropyDiceLoss,
}

/// Result of a [`Ladder`]'s step in burn-train's loop. [`LossMetric`] shows its total loss.
///
/// [`LossMetric`]: burn_train::metric::LossMetric
#[derive(Debug, Clone)]
pub struct LadderOutput {
    /// Total loss `[1]`.
    pub loss: Tensor<1>,
    /// Logits `[B, K, S / 4, S / 4]`.
    pub logits: Tensor<4>,
    /// Classes `[B, S / 4, S / 4]`.
    pub labels: Tensor<3, Int>,
}

impl<S: SideEncoder> Ladder<S> {
    fn forward_with_loss(&self, batch: LadderBatch) -> (LossParts, LadderOutput) {
        let LadderBatch { images, embeddings, labels, loss } = batch;
        let logits = self.forward(images, embeddings).logits;
        let parts = loss.forward(logits.clone(), labels.clone());
        let output = LadderOutput { loss: parts.total.clone(), logits, labels };
        (parts, output)
    }
}

impl<S: SideEncoder> TrainStep for Ladder<S> {
    type Input = LadderBatch;
    type Output = LadderOutput;

    fn step(&self, batch: LadderBatch) -> TrainOutput<LadderOutput> {
        let (parts, output) = self.forward_with_loss(batch);
        TrainOutput::new(self, parts.total.backward(), output)
    }
}

impl<S: SideEncoder> InferenceStep for Ladder<S> {
    type Input = LadderBatch;
    type Output = LadderOutput;

    fn step(&self, batch: LadderBatch) -> LadderOutput {
        self.forward_with_loss(batch).1
    }
}

impl ItemLazy for LadderOutput {
    fn sync(self) -> Result<Self, ExecutionError> {
        // Metrics read only their final scalars, so nothing is transferred here.
        self.loss.device().flush()?;
        Ok(Self {
            loss: self.loss.without_autodiff(),
            logits: self.logits.without_autodiff(),
            labels: self.labels.without_autodiff(),
        })
    }
}

impl Adaptor<LossInput> for LadderOutput {
    fn adapt(&self) -> LossInput {
        LossInput::new(self.loss.clone())
    }
}
