//! A side network of your own: implement [`SideEncoder`], and train, save and load it as the built-in
//! one.
//!
//! ```sh
//! cargo run --release --example custom_side_network
//! ```

use anyhow::Result;
use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{PaddingConfig2d, Relu};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Distribution, Int, Tensor};
use sam_lst::model::SideConfig;
use sam_lst::{CrossEntropyDiceLossConfig, SamLst, SamLstConfig, SideEncoder};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Four convolutions of stride 2: an embedding of a sixteenth of the image's size.
#[derive(Module, Debug)]
struct SmallSide {
    layers: Vec<Conv2d>,
}

impl SmallSide {
    /// `channels` must be the foundation's: 256 for SAM.
    fn new(channels: usize, device: &Device) -> Self {
        let widths = [3, 16, 32, 64, channels];
        let layer = |pair: &[usize]| {
            Conv2dConfig::new([pair[0], pair[1]], [3, 3])
                .with_stride([2, 2])
                .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
                .init(device)
        };
        Self { layers: widths.windows(2).map(layer).collect() }
    }
}

impl SideEncoder for SmallSide {
    fn forward(&self, image: Tensor<4>) -> Tensor<4> {
        let (last, first) = self.layers.split_last().expect("four layers");
        let hidden =
            first.iter().fold(image, |hidden, layer| Relu::new().forward(layer.forward(hidden)));
        last.forward(hidden) // [B, C, S / 16, S / 16]
    }
}

#[expect(clippy::print_stdout, reason = "a program's output")]
fn main() -> Result<()> {
    let device = Device::flex().autodiff();
    // The name is stored in checkpoints, so that they are not loaded into another network.
    let config = SamLstConfig::tiny(2).with_side(SideConfig::Custom("small-side".to_owned()));
    let channels = config.decoder.embed_dim;
    let build = |device: &Device| SmallSide::new(channels, device);
    let mut model = config.init_with_side(build, &device)?;

    let image = Tensor::<4>::random([4, 3, 128, 128], Distribution::Uniform(0.0, 1.0), &device);
    // Ground truth at a quarter of the image's size: class 1 where the image is bright on average.
    let bright = image.clone().inner().mean_dim(1).reshape([4, 32, 4, 32, 4]);
    let bright = bright.mean_dim(4).mean_dim(2).reshape([4, 32, 32]).greater_elem(0.5);
    let labels: Tensor<3, Int> = Tensor::from_inner(bright.int());

    let embedding = model.foundation.embed(image.clone());
    let loss = CrossEntropyDiceLossConfig::new().init();
    let mut optimizer = AdamWConfig::new().init();
    for step in 0..10 {
        let logits = model.network.forward(image.clone(), embedding.clone()).logits;
        let total = loss.forward(logits, labels.clone()).total;
        println!("step {step}: loss {:.4}", total.clone().into_scalar::<f32>());
        let gradients = GradientsParams::from_grads(total.backward(), &model.network);
        model.network = optimizer.step(1e-3, model.network, gradients);
    }

    let folder = tempfile::tempdir()?;
    let (sam, ladder) =
        (folder.path().join("sam.safetensors"), folder.path().join("ladder.safetensors"));
    model.save_sam(&sam)?;
    model.save_network(&ladder)?;
    let mut loaded = SamLst::from_official_with_side(&config, &sam, build, &Device::flex())?;
    loaded.load_network(&ladder)?;
    println!("loaded a ladder with {} tensors' weights", loaded.network.trained_tensors().len());
    Ok(())
}
