//! Converts SAM's or torchvision's `.pth` to safetensors: the same tensors under the same names, as `f32`.
//!
//! ```sh
//! cargo run --example convert_weights -- sam_vit_b_01ec64.pth sam_vit_b.safetensors
//! ```

use anyhow::{Result, bail};
use clap::Parser;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use sam_lst::weights::StateDict;
use std::path::PathBuf;
use std::time::Duration;

/// Converts a checkpoint of PyTorch to safetensors, which loads faster and which other programs read.
#[derive(Parser)]
struct Arguments {
    /// The checkpoint: .pth, in full or half precision.
    input: PathBuf,
    /// The file to write: .safetensors.
    output: PathBuf,
    /// Overwrite the output if it exists.
    #[arg(long)]
    force: bool,
}

#[expect(clippy::print_stdout, reason = "a command's answer")]
fn main() -> Result<()> {
    let Arguments {
        input,
        output,
        force,
    } = Arguments::parse();
    if output.exists() && !force {
        bail!(
            "{}: exists already; --force overwrites it",
            output.display()
        );
    }
    let size = std::fs::metadata(&input).map_or(0, |file| file.len());
    let style = ProgressStyle::with_template("{spinner} {msg}, {elapsed}")?;
    let spinner = ProgressBar::new_spinner()
        .with_style(style)
        .with_message(format!("converting {}", HumanBytes(size)));
    spinner.enable_steady_tick(Duration::from_millis(100));
    let state_dict = StateDict::open(&input)?;
    state_dict.save_safetensors(&output)?;
    spinner.finish_and_clear();
    let (mut tensors, mut values) = (0, 0);
    for tensor in StateDict::open(&output)?.tensors() {
        tensors += 1;
        values += tensor.shape.iter().product::<usize>();
    }
    println!("{}: {tensors} tensors, {values} values", output.display());
    Ok(())
}
