//! Trains a ladder in burn-train's own loop instead of [`sam_lst::Training`], with Burn's data loader,
//! metrics and checkpoints. [`Ladder`] implements `TrainStep` and `InferenceStep`, so burn-train's
//! strategies for several devices work too: `MultiDevice` and, on CUDA, `DistributedDataParallel`.
//!
//! ```sh
//! cargo run --release --features train --example own_training_loop
//! ```

use anyhow::Result;
use burn::data::dataloader::DataLoaderBuilder;
use burn::data::dataloader::batcher::Batcher;
use burn::data::dataset::InMemDataset;
use burn::optim::AdamWConfig;
use burn::tensor::{Device, Tensor, TensorData};
use sam_lst::datasets::{Augmentation, SliceStore, Split};
use sam_lst::training::burn_train::metric::LossMetric;
use sam_lst::training::burn_train::{
    ExecutionStrategy, Learner, MultiDeviceOptim, SupervisedTraining, TrainingStrategy,
};
use sam_lst::training::{Batches, LadderBatch, demo_dataset};
use sam_lst::{CrossEntropyDiceLossConfig, Foundation, SamLst, SamLstConfig, SliceGeometry};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A slice ready for training. Its embedding was computed once, before the first epoch.
#[derive(Debug, Clone)]
struct Item {
    image: TensorData,
    embedding: TensorData,
    label: TensorData,
}

struct LadderBatcher;

impl Batcher<Item, LadderBatch> for LadderBatcher {
    fn batch(&self, items: Vec<Item>, device: &Device) -> LadderBatch {
        let stack = |data: fn(&Item) -> &TensorData| {
            let tensors = items.iter().map(|item| Tensor::from_data(data(item).clone(), device));
            Tensor::<4>::cat(tensors.collect(), 0)
        };
        let labels = items.iter().map(|item| Tensor::from_data(item.label.clone(), device));
        LadderBatch {
            images: stack(|item| &item.image),
            embeddings: Some(stack(|item| &item.embedding)),
            labels: Tensor::cat(labels.collect(), 0),
            loss: CrossEntropyDiceLossConfig::new().init(),
        }
    }
}

/// Every slice of a split, in its identity view.
fn items(
    dataset: &sam_lst::Dataset,
    split: Split,
    foundation: &Foundation,
    config: &SamLstConfig,
) -> Result<InMemDataset<Item>> {
    let cases = dataset.cases(split)?;
    let store = SliceStore::open(dataset, &cases, "runs/cache/slices", |_| {})?;
    let batches = Batches::new(&store, config, SliceGeometry::direct(), 1, 0)
        .with_augmentation(Augmentation::None);
    let device = foundation.device();
    let mut items = Vec::with_capacity(batches.steps());
    for step in 0..batches.steps() {
        let batch = batches.batch(0, step)?;
        let image = batch.images(&device);
        items.push(Item {
            embedding: foundation.embed(image.clone()).into_data(),
            image: image.into_data(),
            label: batch.labels(&device).into_data(),
        });
    }
    Ok(InMemDataset::new(items))
}

#[expect(clippy::print_stdout, reason = "a program's output")]
fn main() -> Result<()> {
    let dataset = demo_dataset("runs/cache/phantoms", |_, _| {})?;
    let config = SamLstConfig::tiny(dataset.description().classes());
    // Two devices would be `[Device::cuda(0), Device::cuda(1)]`.
    let devices = [Device::flex()];
    let SamLst { foundation, network: ladder, .. } = config.init(&devices[0].clone().autodiff())?;
    let loader = |split| -> Result<_> {
        let items = items(&dataset, split, &foundation, &config)?;
        Ok(DataLoaderBuilder::new(LadderBatcher)
            .batch_size(8)
            .shuffle(0)
            .num_workers(1)
            .build(items))
    };
    let execution = match &devices[..] {
        [device] => ExecutionStrategy::single(device.clone().autodiff()),
        devices => {
            let devices = devices.iter().map(|device| device.clone().autodiff()).collect();
            ExecutionStrategy::multi(devices, MultiDeviceOptim::OptimMainDevice)
        }
    };
    let optimizer = AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(0.1).init();
    let result = SupervisedTraining::new(
        "runs/own_training_loop",
        loader(Split::Train)?,
        loader(Split::Validation)?,
    )
    .metrics((LossMetric::new(),))
    .with_training_strategy(TrainingStrategy::Default(execution))
    .with_default_checkpointers()
    .num_epochs(2)
    .summary()
    .launch(Learner::new(ladder, optimizer, 1e-3));
    println!("weight of SAM's embedding: {:?}", result.model.gate_value());
    Ok(())
}
