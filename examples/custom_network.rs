//! A network of your own, trained as the built-in ones: implement [`SegmentationNetwork`] for it and
//! [`NetworkConfig`] for its configuration. [`Training`], [`Segmenter`] and checkpoints take any.
//!
//! ```sh
//! cargo run --release --example custom_network
//! ```
//!
//! This one uses no foundation; with `type Foundation = Foundation`, it would be given the cached
//! embedding of each image.

use anyhow::{Context, Result};
use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{PaddingConfig2d, Relu};
use burn::tensor::{Device, Tensor};
use sam_lst::model::{
    ConfigError, NetworkConfig, NoFoundation, SegmentationModel, SegmentationNetwork,
};
use sam_lst::training::demo_dataset;
use sam_lst::{CachedViews, Training, TrainingConfig, TrainingEvent, TrainingFolders};
use serde::{Deserialize, Serialize};
use std::ops::ControlFlow;
use std::path::PathBuf;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Dilated convolutions at an eighth of the image's size.
#[derive(Module, Debug)]
struct DilatedNet {
    patches: Conv2d,
    layers: Vec<Conv2d>,
    classes: Conv2d,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct DilatedNetConfig {
    num_classes: usize,
    channels: usize,
    input_size: usize,
    seed: u64,
}

impl DilatedNetConfig {
    fn init(&self, device: &Device) -> DilatedNet {
        let dilated = |dilation: usize| {
            Conv2dConfig::new([self.channels, self.channels], [3, 3])
                .with_dilation([dilation, dilation])
                .with_padding(PaddingConfig2d::Explicit(dilation, dilation, dilation, dilation))
                .init(device)
        };
        DilatedNet {
            patches: Conv2dConfig::new([3, self.channels], [8, 8]).with_stride([8, 8]).init(device),
            layers: [1, 2, 4].map(dilated).into(),
            classes: Conv2dConfig::new([self.channels, self.num_classes], [1, 1]).init(device),
        }
    }
}

impl NetworkConfig for DilatedNetConfig {
    // Stored in checkpoints, so that they are not loaded into another network.
    const METHOD: &'static str = "dilated-net";

    fn num_classes(&self) -> usize {
        self.num_classes
    }

    fn input_size(&self) -> usize {
        self.input_size
    }

    fn logits_size(&self) -> usize {
        self.input_size / 8
    }

    fn seed(&self) -> u64 {
        self.seed
    }

    fn set_seed(&mut self, seed: u64) {
        self.seed = seed;
    }

    fn validate(&self) -> Result<(), ConfigError> {
        Ok(())
    }
}

impl SegmentationNetwork for DilatedNet {
    type Config = DilatedNetConfig;
    type Foundation = NoFoundation;

    fn logits(&self, image: Tensor<4>, _embedding: Option<Tensor<4>>) -> Tensor<4> {
        let layers = [&self.patches].into_iter().chain(&self.layers);
        let hidden = layers.fold(image, |hidden, layer| Relu::new().forward(layer.forward(hidden)));
        self.classes.forward(hidden) // [B, K, S / 8, S / 8]
    }
}

#[expect(clippy::print_stdout, reason = "a program's output")]
fn main() -> Result<()> {
    sam_lst::compute_on_current_thread();
    let device = sam_lst::devices::open("cpu")?.autodiff();
    let dataset = demo_dataset(PathBuf::from("runs/cache/phantoms"), |_done, _total| {})?;

    let num_classes = dataset.description().classes();
    let network = DilatedNetConfig { num_classes, channels: 32, input_size: 256, seed: 0 };
    let model =
        SegmentationModel::new(&network, NoFoundation, |device| network.init(device), &device)?;
    let mut config = TrainingConfig::demo(num_classes).with_model(network);
    config.epochs = 2;
    config.validation_epochs = 1;
    config.cache.views = CachedViews::NONE; // without a foundation, there are no embeddings

    let folder = tempfile::tempdir()?;
    let folders =
        TrainingFolders { run: folder.path().join("run"), cache: PathBuf::from("runs/cache") };
    let outcome = Training::new(config, folders).run(model, &dataset, |event| {
        match event {
            TrainingEvent::Step(step) if step.step % 20 == 0 => {
                println!("step {:3}: loss {:.4}", step.step, step.loss);
            }
            TrainingEvent::Validated(validation) => {
                println!("validation DSC {:.2} %", 100.0 * validation.mean_dsc);
            }
            _ => {}
        }
        ControlFlow::Continue(())
    })?;
    let trained = outcome.finished().context("nothing stopped the run")?;
    println!("trained {}", trained.network_file.file_name().unwrap_or_default().display());
    Ok(())
}
