//! `sam-lst convert`.

use crate::progress::Progress;
use crate::staging::Staging;
use crate::{Status, output};
use anyhow::Result;
use clap::Args;
use indicatif::HumanCount;
use sam_lst::weights::StateDict;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

const EXAMPLES: &str = "\
Tensors keep their names and are written as 32-bit floats. Integers, which are PyTorch's counters of
batches, are left out, since nothing reads them.

Examples:
  sam-lst convert sam_vit_b_01ec64.pth sam_vit_b.safetensors
  sam-lst convert resnet18-f37072fd.pth resnet18.safetensors --force";

/// Convert a PyTorch checkpoint to safetensors, which loads faster
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// The checkpoint: .pth or .safetensors, in full or half precision
    input: PathBuf,
    /// The file to write: .safetensors
    output: PathBuf,
    /// Overwrite the output if it exists
    #[arg(long)]
    force: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Result<Status> {
    let Arguments { input, output, .. } = arguments;
    output::check_ending(output, &[".safetensors"])?;
    output::check_checkpoint(input)?;
    output::check_file(output, &[input], arguments.force)?;
    let staging = Staging::for_file(output)?;
    let state_dict = StateDict::open(input)?;
    let (_, parameters) = count(&state_dict);
    let written = staging.file(output);
    let bytes = parameters as u64 * size_of::<f32>() as u64;
    with_progress(&staging, bytes, || state_dict.save_safetensors(&written))?;
    let (tensors, parameters) = count(&StateDict::open(&written)?);
    staging.publish()?;
    if arguments.json {
        output::print_json(&json!({
            "output": output.display().to_string(),
            "tensors": tensors,
            "parameters": parameters,
        }))?;
    } else {
        let parameters = HumanCount(parameters as u64);
        output::print(&format!(
            "{}: {tensors} tensors with {parameters} parameters\n",
            output.display()
        ))?;
    }
    Ok(Status::Done)
}

/// Number of tensors and of values in them.
fn count(state_dict: &StateDict) -> (usize, usize) {
    let sizes: Vec<usize> =
        state_dict.tensors().map(|tensor| tensor.shape.iter().product()).collect();
    (sizes.len(), sizes.iter().sum())
}

/// Calls `write`, and meanwhile shows how many of the bytes are in the temporary folder.
fn with_progress<T>(staging: &Staging, bytes: u64, write: impl FnOnce() -> T) -> T {
    const INTERVAL: Duration = Duration::from_millis(200);
    std::thread::scope(|scope| {
        let (done, is_done) = channel::<()>();
        scope.spawn(move || {
            let mut progress = Progress::new();
            while is_done.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                let fraction = folder_bytes(staging.folder()) as f64 / bytes.max(1) as f64;
                progress.update("converting", fraction.min(1.0), "written");
            }
        });
        let result = write();
        drop(done);
        result
    })
}

/// Size of all files in a folder. Files that disappear meanwhile count nothing.
fn folder_bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => folder_bytes(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.map(bytes).sum()
}
