//! `sam-lst segment`.

use crate::arguments::open_device;
use crate::model::{ModelOptions, read_task};
use crate::overlays::{remove_overlays, write_overlays};
use crate::progress::{Progress, Spinner, note};
use crate::report::LabelVolume;
use crate::staging::Staging;
use crate::{Status, output, report};
use anyhow::Result;
use clap::Args;
use sam_lst::datasets::{read_geometry, write_nifti_labels};
use sam_lst::model::Task;
use sam_lst::{DatasetDescription, Segmenter, Volume};
use serde::Serialize;
use serde_json::json;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Prints the volume of each organ in ml. Labels are numbered as in the training dataset. Resampling
`reference` enlarges the class map, as the released code does; `logits` gives smoother borders.

Examples:
  sam-lst segment ct.nii.gz organs.nii.gz --sam sam_vit_b_01ec64.pth \\
      --ladder runs/synapse/ladder.safetensors
  sam-lst segment ct.nii.gz organs.nii.gz --sam sam_vit_b_01ec64.pth \\
      --ladder runs/synapse/ladder.safetensors --overlays pictures --device cuda:0";

/// Segment a CT with a trained ladder
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// The volume to segment: a NIfTI file, or the folder of a DICOM series
    input: PathBuf,
    /// The label volume to write, on the same grid: .nii or .nii.gz
    output: PathBuf,
    /// SAM's checkpoint, as in training: .pth or .safetensors
    #[arg(long, value_name = "FILE")]
    sam: PathBuf,
    /// The trained ladder: .safetensors
    #[arg(long, value_name = "FILE")]
    ladder: PathBuf,
    /// Folder for pictures of slices with organs [default: none]
    #[arg(long, value_name = "DIR")]
    overlays: Option<PathBuf>,
    /// Dataset description, TOML [default: that in the ladder]
    #[arg(long, value_name = "FILE")]
    dataset: Option<PathBuf>,
    #[command(flatten)]
    model: ModelOptions,
    /// Overwrite existing outputs; removes earlier pictures of slices
    #[arg(long)]
    force: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// The volume of an organ.
#[derive(Serialize)]
struct OrganVolume {
    organ: String,
    label: u16,
    #[serde(flatten)]
    volume: LabelVolume,
}

pub fn run(arguments: &Arguments) -> Result<Status> {
    check_paths(arguments)?;
    let Arguments { input, output, sam, ladder, overlays, model: options, .. } = arguments;
    options.check()?;
    let output_staging = Staging::for_file(output)?;
    let overlays_staging = overlays.as_deref().map(Staging::new).transpose()?;
    let device = open_device(&options.device)?;
    let description = arguments.dataset.as_ref().map(DatasetDescription::from_file).transpose()?;
    let task = read_task(ladder, description)?;
    read_geometry(input, task.dataset.orientation)?;
    let model = options.load(sam, ladder, &device)?;
    let image = read_image(input, &task)?;
    let cache = options.open_cache(&model, &task)?;
    let mut segmenter = Segmenter::new(&model, options.segmentation(&task));
    if let Some(cache) = &cache {
        segmenter = segmenter.with_cache(cache);
    }
    let mut progress = Progress::new();
    let slices = image.shape()[0];
    progress.count("segmenting", 0, slices, "slices");
    let classes =
        segmenter.segment(&image, |done| progress.count("segmenting", done, slices, "slices"))?;
    if let Some(error) = segmenter.embedder().cache_write_error() {
        note(&error.to_string());
    }
    let map = task.dataset.label_map();
    write_nifti_labels(output_staging.file(output), &classes, &map)?;
    let mut pictures = 0;
    if let Some(staging) = &overlays_staging {
        pictures =
            write_overlays(staging.folder(), &image, &classes, &task.dataset, &mut progress)?;
    }
    drop(progress);
    output_staging.publish()?;
    if let (Some(staging), Some(folder)) = (overlays_staging, overlays) {
        remove_overlays(folder)?;
        staging.publish()?;
    }
    print_result(arguments, &organ_volumes(&classes, &task), pictures)?;
    Ok(Status::Done)
}

/// Checks names and paths before anything is read.
fn check_paths(arguments: &Arguments) -> Result<()> {
    let Arguments { input, output, sam, ladder, force, .. } = arguments;
    output::check_ending(output, &[".nii", ".nii.gz"])?;
    output::check_input(input)?;
    output::check_checkpoint(sam)?;
    output::check_checkpoint(ladder)?;
    let mut inputs: Vec<&Path> = vec![input, sam, ladder];
    inputs.extend(arguments.dataset.as_deref());
    output::check_file(output, &inputs, *force)?;
    match &arguments.overlays {
        Some(folder) => output::check_folder(folder, &inputs, *force),
        None => Ok(()),
    }
}

fn read_image(file: &Path, task: &Task) -> Result<Volume<f32>> {
    let _spinner = Spinner::loading(file);
    Ok(task.dataset.read_image(file)?)
}

fn organ_volumes(classes: &Volume<u8>, task: &Task) -> Vec<OrganVolume> {
    let volumes = report::label_volumes(classes);
    let map = task.dataset.label_map();
    let organ = |class: u8| OrganVolume {
        organ: task.dataset.organ(class).name.clone(),
        label: map.label_of(class),
        volume: volumes[usize::from(class)],
    };
    task.dataset.report_classes().into_iter().map(organ).collect()
}

fn print_result(arguments: &Arguments, organs: &[OrganVolume], pictures: usize) -> Result<()> {
    let Arguments { output, overlays, .. } = arguments;
    if arguments.json {
        let overlays = overlays
            .as_ref()
            .map(|folder| json!({ "folder": folder.display().to_string(), "pictures": pictures }));
        return output::print_json(&json!({
            "output": output.display().to_string(),
            "organs": organs,
            "overlays": overlays,
        }));
    }
    let line = |organ: &OrganVolume| report::volume_line(&organ.organ, &organ.volume);
    let mut text: String = organs.iter().map(line).collect();
    text.push('\n');
    report::file_line(&mut text, "labels", output);
    if let Some(folder) = overlays {
        report::file_line(&mut text, &format!("{pictures} pictures"), folder);
    }
    output::print(&text)
}
