//! The unmodified SAM with prompts: a box on an image gives a mask.
//!
//! ```sh
//! cargo run --release --example prompts -- sam_vit_b_01ec64.pth photo.png 100,80,420,360 mask.png
//! ```

use anyhow::{Context, Result, ensure};
use burn::tensor::Tensor;
use image::imageops::FilterType;
use image::{GrayImage, Luma, Rgb, RgbImage};
use sam_lst::mask_decoder::Prompts;
use sam_lst::model::SamConfig;
use std::path::Path;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// SAM's input size in pixels.
const SIZE: u32 = 1024;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [checkpoint, image, corners, output] = &arguments[..] else {
        anyhow::bail!("usage: prompts CHECKPOINT IMAGE.png X0,Y0,X1,Y1 MASK.png");
    };
    ensure!(!Path::new(output).exists(), "{output} exists already");
    let corners: Vec<f32> = corners
        .split(',')
        .map(|number| number.trim().parse().context("a box is X0,Y0,X1,Y1 in pixels"))
        .collect::<Result<_>>()?;
    ensure!(corners.len() == 4, "a box is X0,Y0,X1,Y1 in pixels");
    sam_lst::compute_on_current_thread();
    let device = sam_lst::devices::open("cpu")?;
    let sam = SamConfig::vit_b().load(checkpoint, &device)?;

    // The longest side becomes 1024 pixels; zeros fill the rest.
    let image = image::open(image).with_context(|| format!("cannot read {image}"))?.to_rgb8();
    let scale = SIZE as f32 / image.width().max(image.height()) as f32;
    let resized = |side: u32| ((side as f32 * scale).round() as u32).max(1);
    let (width, height) = (resized(image.width()), resized(image.height()));
    let small: RgbImage = image::imageops::resize(&image, width, height, FilterType::Triangle);
    let pixel = |channel: usize, x: u32, y: u32| match small.get_pixel_checked(x, y) {
        Some(Rgb(colors)) => f32::from(colors[channel]) / 255.0,
        None => 0.0,
    };
    let pixels: Vec<f32> = (0..3)
        .flat_map(|channel| (0..SIZE * SIZE).map(move |i| (channel, i % SIZE, i / SIZE)))
        .map(|(channel, x, y)| pixel(channel, x, y))
        .collect();
    let input = Tensor::<1>::from_floats(pixels.as_slice(), &device).reshape([
        1,
        3,
        SIZE as usize,
        SIZE as usize,
    ]);

    let corners: Vec<f32> = corners.iter().map(|corner| corner * scale).collect();
    let boxes = Tensor::<1>::from_floats(corners.as_slice(), &device).reshape([1, 4]);
    let prompts = Prompts { boxes: Some(boxes), ..Prompts::default() };
    let prediction = sam.forward(input, &prompts).single();

    let logits: Vec<f32> = prediction.full_size(SIZE as usize).into_data().iter::<f32>().collect();
    let mask = GrayImage::from_fn(width, height, |x, y| {
        Luma([if logits[(y * SIZE + x) as usize] > 0.0 { 255 } else { 0 }])
    });
    let (width, height) = image.dimensions();
    image::imageops::resize(&mask, width, height, FilterType::Nearest).save(output)?;
    Ok(())
}
