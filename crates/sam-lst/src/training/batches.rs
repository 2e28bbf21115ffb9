use crate::embeddings::{SliceHash, SliceView};
use crate::model::{NetworkConfig, SliceGeometry, images};
use burn::tensor::{Device, Int, Tensor, TensorData};
use sam_lst_datasets::ndarray::{Array2, Array3, ArrayView3, Axis};
use sam_lst_datasets::{Augmentation, DatasetError, SliceStore, View, epoch_order, map_channels};
use std::ops::ControlFlow;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

/// The batches of training: which slices, in which views, in which order, at which sizes.
///
/// Every batch follows from (seed, epoch, step), so a resumed run sees the batches of an uninterrupted
/// one.
#[derive(Debug, Clone, Copy)]
pub struct Batches<'a> {
    store: &'a SliceStore<'a>,
    geometry: SliceGeometry,
    input_size: usize,
    logits_size: usize,
    batch_size: usize,
    seed: u64,
    augmentation: Augmentation,
    has_movable_features: bool,
}

/// Slices prepared for the network.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Index within the epoch, from 0.
    pub step: usize,
    /// Indices of its slices in the store.
    pub slices: Vec<usize>,
    /// Identity of each input in the embedding cache.
    pub views: Vec<SliceView>,
    inputs: Vec<Array3<f32>>,
    /// The slices as read, if the foundation does not see what the network sees.
    slices_as_read: Vec<Array3<f32>>,
    geometry: SliceGeometry,
    input_size: usize,
    labels: Vec<Array2<u8>>,
}

/// How long the consumer waited for prefetched batches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WaitTime {
    /// Total time, without the first batch, for which waiting is unavoidable.
    pub time: Duration,
    /// Number of batches that were waited for, without the first.
    pub batches: usize,
}

impl<'a> Batches<'a> {
    /// Creates batches of `batch_size` slices of `store` for a model, with the published augmentation.
    ///
    /// # Panics
    ///
    /// If the batch size is zero.
    pub fn new(
        store: &'a SliceStore<'a>,
        model: &impl NetworkConfig,
        geometry: SliceGeometry,
        batch_size: usize,
        seed: u64,
    ) -> Self {
        assert!(batch_size > 0, "at least one slice in a batch");
        Self {
            store,
            geometry,
            input_size: model.input_size(),
            logits_size: model.logits_size(),
            batch_size,
            seed,
            augmentation: Augmentation::Released,
            has_movable_features: model.has_movable_features(),
        }
    }

    /// With another augmentation.
    pub fn with_augmentation(self, augmentation: Augmentation) -> Self {
        Self { augmentation, ..self }
    }

    /// Batches in an epoch. The last may be smaller.
    pub fn steps(&self) -> usize {
        self.store.len().div_ceil(self.batch_size)
    }

    /// The slices of an epoch in order, each with its view.
    pub fn epoch(&self, epoch: u64) -> Vec<(usize, View)> {
        let view = |slice: usize| self.augmentation.draw(self.seed, epoch, slice as u64);
        epoch_order(self.seed, epoch, self.store.len())
            .into_iter()
            .map(|slice| (slice, view(slice)))
            .collect()
    }

    /// Prepares a batch.
    ///
    /// # Errors
    ///
    /// [`DatasetError`] if a slice cannot be read.
    ///
    /// # Panics
    ///
    /// If the epoch has no such step.
    pub fn batch(&self, epoch: u64, step: usize) -> Result<Batch, DatasetError> {
        self.batch_of(epoch, &self.epoch(epoch), step)
    }

    /// Prepares a batch of an epoch whose slices are `order`.
    fn batch_of(
        &self,
        epoch: u64,
        order: &[(usize, View)],
        step: usize,
    ) -> Result<Batch, DatasetError> {
        assert!(step < self.steps(), "step {step} of {}", self.steps());
        let start = step * self.batch_size;
        let plan = &order[start..order.len().min(start + self.batch_size)];
        let mut batch = Batch {
            step,
            slices: Vec::with_capacity(plan.len()),
            views: Vec::with_capacity(plan.len()),
            inputs: Vec::with_capacity(plan.len()),
            slices_as_read: Vec::new(),
            geometry: self.geometry,
            input_size: self.input_size,
            labels: Vec::with_capacity(plan.len()),
        };
        for &(index, view) in plan {
            let slice = self.store.slice(index)?;
            batch.slices.push(index);
            batch.views.push(self.view(SliceHash::new(slice.image.view()), view));
            let mut input = self.input(slice.image.view(), view);
            if let Some(change) = self.augmentation.draw_intensity(self.seed, epoch, index as u64) {
                change.apply(&mut input);
            }
            batch.inputs.push(input);
            let label = view.apply(slice.label.view());
            batch.labels.push(self.geometry.label(label.view(), self.input_size, self.logits_size));
            if self.augmentation == Augmentation::Upright && self.has_movable_features {
                batch.slices_as_read.push(slice.image);
            }
        }
        Ok(batch)
    }

    /// The view that the foundation encodes for a view that the network sees: itself, or that whose
    /// features are moved instead.
    pub(crate) fn encoded(&self, view: View) -> View {
        if self.has_movable_features { view.encoded() } else { view }
    }

    /// What the foundation encodes for a view of a slice, with its identity in the embedding cache.
    pub(crate) fn view(&self, slice: SliceHash, view: View) -> SliceView {
        let encoded = self.encoded(view);
        let pose = view.pose().filter(|_| encoded != view);
        SliceView::new(slice, encoded, self.geometry, self.input_size).with_pose(pose)
    }

    /// A view of a slice at the network's input size.
    pub(crate) fn input(&self, slice: ArrayView3<'_, f32>, view: View) -> Array3<f32> {
        let image = map_channels(slice, |channel| view.apply_to_image(channel));
        self.geometry.image(image.view(), self.input_size)
    }

    /// Stacks inputs into the network's input, `[B, 3, S, S]`.
    pub(crate) fn images(&self, inputs: &[&Array3<f32>], device: &Device) -> Tensor<4> {
        images(inputs, self.input_size, device)
    }

    /// Prepares an epoch's batches from step `first` on `workers` threads while `consume`, which may
    /// break, receives them in order. Besides the consumed batch, memory holds one for each worker.
    ///
    /// # Errors
    ///
    /// [`DatasetError`] of the first batch that cannot be prepared; those before it are consumed.
    ///
    /// # Panics
    ///
    /// If there are no workers.
    pub fn prefetched(
        &self,
        epoch: u64,
        first: usize,
        workers: usize,
        mut consume: impl FnMut(Batch) -> ControlFlow<()>,
    ) -> Result<WaitTime, DatasetError> {
        assert!(workers > 0, "at least one worker");
        let order = self.epoch(epoch);
        std::thread::scope(|scope| {
            // Workers take turns, and each holds its batch until it is consumed, so no worker gets ahead
            // of a slower one.
            let receivers: Vec<_> = (0..workers)
                .map(|worker| {
                    let (sender, receiver) = sync_channel(0);
                    let order = &order;
                    scope.spawn(move || {
                        for step in (first + worker..self.steps()).step_by(workers) {
                            // The receiver is gone after the consumer broke.
                            if sender.send(self.batch_of(epoch, order, step)).is_err() {
                                break;
                            }
                        }
                    });
                    receiver
                })
                .collect();
            let mut wait_time = WaitTime::default();
            for (step, receiver) in (first..self.steps()).zip(receivers.iter().cycle()) {
                let start = Instant::now();
                let batch = receiver.try_recv().or_else(|_| {
                    let batch = receiver.recv();
                    if step > first {
                        wait_time.time += start.elapsed();
                        wait_time.batches += 1;
                    }
                    batch
                });
                if consume(batch.expect("a worker sends each of its steps")?).is_break() {
                    break;
                }
            }
            Ok(wait_time)
        })
    }
}

impl Batch {
    /// Number of slices.
    pub fn len(&self) -> usize {
        self.slices.len()
    }

    /// Whether it has no slices.
    pub fn is_empty(&self) -> bool {
        self.slices.is_empty()
    }

    /// Returns the network's input.
    ///
    /// # Shapes
    ///
    /// - output: `[B, 3, S, S]`
    pub fn images(&self, device: &Device) -> Tensor<4> {
        let size = self.inputs.first().map_or(0, |input| input.len_of(Axis(1)));
        images(&self.inputs, size, device)
    }

    /// Returns the foundation's input. It is the network's, unless an augmentation changes only the
    /// latter and moves the foundation's features instead.
    ///
    /// # Shapes
    ///
    /// - output: `[B, 3, S, S]`
    pub fn encoded_images(&self, device: &Device) -> Tensor<4> {
        if self.slices_as_read.is_empty() {
            return self.images(device);
        }
        let as_read = self.slices_as_read.iter();
        let inputs: Vec<Array3<f32>> =
            as_read.map(|slice| self.geometry.image(slice.view(), self.input_size)).collect();
        images(&inputs, self.input_size, device)
    }

    /// Returns the labels at the size of the logits.
    ///
    /// # Shapes
    ///
    /// - output: `[B, L, L]`, where `L` is [`NetworkConfig::logits_size`]
    pub fn labels(&self, device: &Device) -> Tensor<3, Int> {
        let (rows, columns) = self.labels.first().map_or((0, 0), |label| label.dim());
        let classes: Vec<i32> =
            self.labels.iter().flatten().map(|&class| i32::from(class)).collect();
        Tensor::from_data(TensorData::new(classes, [self.len(), rows, columns]), device)
    }
}
