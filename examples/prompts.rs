//! The original SAM with prompts: a box on an image gives a mask, without any training.
//!
//! ```sh
//! cargo run --release --example prompts -- lite_medsam.pth slice.png 120,80,310,260 mask.png
//! ```
//!
//! The checkpoint may be SAM's, LiteMedSAM's or MobileSAM's; the program `sam-lst prompt` has more
//! options.

use anyhow::{Context, Result, ensure};
use sam_lst::evaluation::write_png;
use sam_lst::inference::{ImagePrompts, Predictor};
use std::path::Path;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[expect(clippy::print_stdout, reason = "a program's output")]
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
    let bounding_box: [f32; 4] =
        corners.try_into().ok().context("a box is X0,Y0,X1,Y1 in pixels")?;
    sam_lst::compute_on_current_thread();
    let device = sam_lst::devices::open("cpu")?;

    let image = sam_lst::image::open(image).with_context(|| format!("cannot read {image}"))?;
    let mut predictor = Predictor::load(checkpoint, &device)?;
    // The expensive part; afterwards, each prompt takes a fraction of a second.
    predictor.set_image(&image)?;
    let prompts = ImagePrompts { bounding_box: Some(bounding_box), ..ImagePrompts::default() };
    let masks = predictor.predict(&prompts, false)?;
    write_png(&masks.image(0), output).with_context(|| format!("cannot write {output}"))?;
    println!("{output}: predicted IoU {:.2}, box {:?}", masks.iou[0], masks.bounding_box(0));
    Ok(())
}
