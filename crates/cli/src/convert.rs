//! `sam-lst convert`.

use crate::progress::{Progress, Spinner};
use crate::staging::Staging;
use crate::{Status, WrongUsage, output};
use anyhow::{Result, bail};
use burn::tensor::Device;
use clap::Args;
use indicatif::HumanCount;
use sam_lst::model::{
    EmbeddingPrecision, NetworkMetadata, OutputResampling, SamTuningConfig, SliceGeometry, Task,
};
use sam_lst::weights::StateDict;
use sam_lst::{DatasetDescription, NetworkConfig};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

const EXAMPLES: &str = "\
Tensors keep their names and are written as 32-bit floats. Integers, which are PyTorch's counters
of batches, are left out, since nothing reads them. With --samed, a file of SAMed's released code
becomes a network for `segment` and `evaluate`, with inputs of 512 pixels in [0, 1], and a network
of the method lora becomes a file with SAMed's names.

Examples:
  sam-lst convert sam_vit_b_01ec64.pth sam_vit_b.safetensors
  sam-lst convert resnet18-f37072fd.pth resnet18.safetensors --force
  sam-lst convert epoch_159.pth samed.safetensors --samed --sam sam_vit_b_01ec64.pth";

/// Convert a PyTorch checkpoint to safetensors, or a network from or to SAMed's files
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// The checkpoint: .pth or .safetensors, in full or half precision
    input: PathBuf,
    /// The file to write: .safetensors
    output: PathBuf,
    /// Convert a network from or to the format of SAMed's released code; needs --sam
    #[arg(long, requires = "sam")]
    samed: bool,
    /// SAM's checkpoint that the network was trained with
    #[arg(long, value_name = "FILE", requires = "samed")]
    sam: Option<PathBuf>,
    /// Description of the dataset that SAMed was trained on [default: Synapse, if it has 9 classes]
    #[arg(long, value_name = "FILE", requires = "samed")]
    dataset: Option<PathBuf>,
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
    arguments.sam.as_deref().map_or(Ok(()), output::check_checkpoint)?;
    let others = [&arguments.sam, &arguments.dataset].into_iter().flatten();
    let inputs: Vec<&Path> = std::iter::once(input).chain(others).map(PathBuf::as_path).collect();
    output::check_file(output, &inputs, arguments.force)?;
    let staging = Staging::for_file(output)?;
    let written = staging.file(output);
    match &arguments.sam {
        Some(sam) => convert_samed(arguments, sam, &written)?,
        None => {
            let state_dict = StateDict::open(input)?;
            let (_, parameters) = count(&state_dict);
            let bytes = parameters as u64 * size_of::<f32>() as u64;
            with_progress(&staging, bytes, || state_dict.save_safetensors(&written))?;
        }
    }
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

/// Writes a file of SAMed as a network, or a network as a file of SAMed.
fn convert_samed(arguments: &Arguments, sam: &Path, output: &Path) -> Result<()> {
    let Arguments { input, dataset, .. } = arguments;
    let device = Device::flex();
    if NetworkMetadata::read(input).is_ok() {
        if dataset.is_some() {
            bail!(WrongUsage(
                "--dataset is for files of SAMed; the network has its own".to_owned()
            ));
        }
        let _spinner = Spinner::loading(sam);
        return Ok(SamTuningConfig::from_pretrained(sam, input, &device)?.save_samed(output)?);
    }
    let config = SamTuningConfig::of_samed(sam, input)?;
    let classes = config.num_classes();
    let description = match dataset {
        Some(file) => DatasetDescription::from_file(file)?,
        None => DatasetDescription::synapse(),
    };
    if description.classes() != classes {
        let named = dataset.as_deref().map_or("Synapse".into(), |file| file.to_string_lossy());
        bail!(
            "the network in {} has {classes} classes with the background, but {named} has {}; \
             describe the dataset that it was trained on with --dataset FILE",
            input.display(),
            description.classes()
        );
    }
    let _spinner = Spinner::loading(sam);
    let mut model = config.from_samed(sam, input, &device)?;
    model.task = Some(Task {
        dataset: description,
        geometry: SliceGeometry::released(),
        embedding_precision: EmbeddingPrecision::F32,
        output: OutputResampling::Reference,
    });
    Ok(model.save_network(output)?)
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
