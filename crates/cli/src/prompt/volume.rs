//! Boxes in a volume.

use super::{Arguments, PromptBox, check_inside, corners, wrong_usage};
use crate::overlays::{remove_overlays, write_overlays};
use crate::progress::{Progress, Spinner};
use crate::report::LabelVolume;
use crate::staging::Staging;
use crate::{Status, output, report};
use anyhow::{Result, bail};
use sam_lst::datasets::{Organ, Orientation, read_nifti_image, write_nifti};
use sam_lst::inference::VolumeBox;
use sam_lst::{DatasetDescription, Volume};
use serde::Serialize;
use serde_json::json;
use std::path::Path;

/// Endings of a volume's name.
pub const ENDINGS: [&str; 2] = [".nii", ".nii.gz"];

/// A segmented object.
#[derive(Serialize)]
struct Object {
    label: u8,
    #[serde(flatten)]
    volume: LabelVolume,
}

pub fn run(arguments: &Arguments) -> Result<Status> {
    let Arguments { output, overlay, .. } = arguments;
    let boxes = boxes(arguments)?;
    arguments.check_files(&ENDINGS)?;
    if let Some(overlay) = overlay {
        output::check_folder(overlay, &arguments.files(), arguments.force)?;
    }
    let staging = Staging::for_file(output)?;
    let overlay_staging = overlay.as_deref().map(Staging::new).transpose()?;
    let image = read_image(arguments)?;
    check_boxes(&boxes, image.shape())?;
    let spinner = Spinner::loading(&arguments.sam);
    let predictor = arguments.load()?;
    drop(spinner);
    let mut progress = Progress::new();
    // As MedSAM's preparation, which cuts fractions off.
    let slices = image.voxels().mapv(|voxel| (255.0 * voxel) as u8);
    let labels = predictor.segment_volume_with_boxes(slices.view(), &boxes, |done, total| {
        progress.count("segmenting", done, total, "masks");
    })?;
    let labels = image.with_voxels(labels);
    write_nifti(staging.file(output), &labels)?;
    let mut pictures = 0;
    if let Some(staging) = &overlay_staging {
        let description = description(boxes.len());
        pictures = write_overlays(staging.folder(), &image, &labels, &description, &mut progress)?;
    }
    drop(progress);
    staging.publish()?;
    if let (Some(staging), Some(folder)) = (overlay_staging, overlay) {
        remove_overlays(folder)?;
        staging.publish()?;
    }
    print_result(arguments, &objects(&labels, boxes.len()), pictures)?;
    Ok(Status::Done)
}

fn boxes(arguments: &Arguments) -> Result<Vec<VolumeBox>> {
    if !arguments.points.is_empty() {
        return wrong_usage("a volume takes no --point; give a --box X0,Y0,Z0,X1,Y1,Z1");
    }
    let in_volume = |prompt: &PromptBox| match prompt {
        PromptBox::Volume(prompt) => Ok(prompt.clone()),
        PromptBox::Image(_) => {
            wrong_usage("a box in a volume is X0,Y0,Z0,X1,Y1,Z1, with its first and last slice")
        }
    };
    let boxes = arguments.boxes.iter().map(in_volume).collect::<Result<Vec<_>>>()?;
    if boxes.is_empty() {
        return wrong_usage("no prompt is given; add --box X0,Y0,Z0,X1,Y1,Z1");
    }
    Ok(boxes)
}

fn check_boxes(boxes: &[VolumeBox], [slices, rows, columns]: [usize; 3]) -> Result<()> {
    for prompt in boxes {
        check_inside(corners(prompt.corners), [columns as u32, rows as u32])?;
        let last = prompt.slices.end();
        if *last >= slices {
            bail!("slice {last} is outside the volume, which has slices 0 to {}", slices - 1);
        }
    }
    Ok(())
}

/// The volume, in the file's order of axes, with intensities from 0 to 1.
fn read_image(arguments: &Arguments) -> Result<Volume<f32>> {
    let _spinner = Spinner::loading(&arguments.input);
    let stored = read_nifti_image(&arguments.input, Orientation::Stored)?;
    let (mut voxels, geometry) = stored.into_parts();
    arguments.window.apply(&mut voxels);
    Ok(Volume::new(voxels, geometry))
}

/// Describes the objects for pictures.
fn description(objects: usize) -> DatasetDescription {
    let object = |number: usize| Organ {
        name: format!("object {number}"),
        labels: vec![number as u8],
        color: None,
    };
    DatasetDescription {
        organs: (1..=objects).map(object).collect(),
        report_order: Vec::new(),
        ..DatasetDescription::synapse()
    }
}

fn objects(labels: &Volume<u8>, count: usize) -> Vec<Object> {
    let volumes = report::label_volumes(labels);
    (1..=count).map(|label| Object { label: label as u8, volume: volumes[label] }).collect()
}

fn print_result(arguments: &Arguments, objects: &[Object], pictures: usize) -> Result<()> {
    let Arguments { output, overlay, .. } = arguments;
    let name = |path: &Path| path.display().to_string();
    if arguments.json {
        return output::print_json(&json!({
            "output": name(output),
            "objects": objects,
            "overlay": overlay
                .as_ref()
                .map(|folder| json!({ "folder": name(folder), "pictures": pictures })),
        }));
    }
    let line =
        |object: &Object| report::volume_line(&format!("object {}", object.label), &object.volume);
    let mut text: String = objects.iter().map(line).collect();
    text.push('\n');
    report::file_line(&mut text, "labels", output);
    if let Some(folder) = overlay {
        report::file_line(&mut text, &format!("{pictures} pictures"), folder);
    }
    output::print(&text)
}
