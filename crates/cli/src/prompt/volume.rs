//! Boxes in a volume.

use super::{Arguments, PromptBox, corners, is_inside, wrong_usage};
use crate::overlays::{remove_overlays, write_overlays};
use crate::progress::{Progress, Spinner};
use crate::report::LabelVolume;
use crate::staging::Staging;
use crate::{Status, output, report};
use anyhow::{Context, Result, bail};
use sam_lst::datasets::{Image, Organ, Orientation, write_nifti};
use sam_lst::inference::{VolumeBox, VolumeObject};
use sam_lst::{DatasetDescription, Volume};
use serde::Serialize;
use serde_json::json;
use std::path::Path;

/// A segmented object.
#[derive(Serialize)]
struct Object {
    label: u8,
    #[serde(flatten)]
    volume: LabelVolume,
    /// Mean over the slices of the box.
    predicted_iou: f64,
    /// By slice of the box, from the first.
    predicted_iou_of_slices: Vec<f32>,
    /// Voxels that later objects cover.
    hidden_voxels: usize,
}

pub fn run(arguments: &Arguments) -> Result<Status> {
    let Arguments { output, overlay, .. } = arguments;
    let boxes = boxes(arguments)?;
    arguments.check_files(&[".nii", ".nii.gz"])?;
    if let Some(overlay) = overlay {
        if overlay.extension().is_some_and(|ending| ending == "png") {
            return wrong_usage(format!(
                "a volume has a picture of each slice, so --overlay names a folder, not a file as {}",
                overlay.display()
            ));
        }
        output::check_folder(overlay, &arguments.files(), arguments.force)?;
    }
    let staging = Staging::for_file(output)?;
    let overlay_staging = overlay.as_deref().map(Staging::new).transpose()?;
    let image = read_image(arguments)?;
    check_boxes(&boxes, image.shape())
        .with_context(|| format!("cannot segment {}", arguments.input.display()))?;
    let spinner = Spinner::loading(&arguments.sam);
    let predictor = arguments.load()?;
    drop(spinner);
    let mut progress = Progress::new();
    // As MedSAM's preparation, which cuts fractions off.
    let slices = image.channel(0).mapv(|voxel| (255.0 * voxel) as u8);
    let found = predictor.segment_volume_with_boxes(slices.view(), &boxes, |done, total| {
        progress.count("segmenting", done, total, "masks");
    })?;
    let labels = image.with_voxels(found.labels);
    write_nifti(staging.file(output), &labels)?;
    let mut pictures = 0;
    if let Some(staging) = &overlay_staging {
        let description = description(boxes.len());
        pictures =
            write_overlays(staging.folder(), &image, &labels, &description, |done, total| {
                progress.count("drawing", done, total, "slices");
            })?;
    }
    drop(progress);
    staging.publish()?;
    if let (Some(staging), Some(folder)) = (overlay_staging, overlay) {
        remove_overlays(folder)?;
        staging.publish()?;
    }
    print_result(arguments, &objects(&labels, found.objects), pictures)?;
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
    for (number, prompt) in (1..).zip(boxes) {
        let [x0, y0, x1, y1] = prompt.corners;
        let (first, last) = (prompt.slices.start(), prompt.slices.end());
        let inside = is_inside(corners(prompt.corners), [columns as u32, rows as u32]);
        if !inside || *last >= slices {
            bail!(
                "box {number}, {x0},{y0},{first},{x1},{y1},{last}, is not inside the volume of {columns} x {rows} \
                 x {slices} voxels, which are numbered from 0"
            );
        }
    }
    Ok(())
}

/// The volume, in the file's order of axes, with intensities from 0 to 1.
fn read_image(arguments: &Arguments) -> Result<Image> {
    let _spinner = Spinner::loading(&arguments.input);
    let stored = sam_lst::datasets::read_image(&arguments.input, Orientation::Stored)?;
    let mut voxels = stored.channel(0).to_owned();
    arguments.window.apply(&mut voxels);
    Ok(stored.with_voxels(voxels).into())
}

/// Describes the objects for pictures.
fn description(objects: usize) -> DatasetDescription {
    let object = |number: usize| Organ::new(format!("object {number}"), number as u16);
    DatasetDescription {
        organs: (1..=objects).map(object).collect(),
        report_order: Vec::new(),
        ..DatasetDescription::synapse()
    }
}

fn objects(labels: &Volume<u8>, found: Vec<VolumeObject>) -> Vec<Object> {
    let volumes = report::label_volumes(labels);
    let object = |(label, object): (u8, VolumeObject)| Object {
        label,
        volume: volumes[usize::from(label)],
        predicted_iou: mean(&object.iou),
        predicted_iou_of_slices: object.iou,
        hidden_voxels: object.hidden_voxels,
    };
    (1..).zip(found).map(object).collect()
}

fn mean(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value)).sum::<f64>() / values.len() as f64
}

/// Lines on an object: its volume, and what a user should look at.
fn describe(object: &Object) -> String {
    let Object { label, volume, predicted_iou, hidden_voxels, .. } = object;
    let line = report::volume_line(&format!("object {label}"), volume);
    let mut text = format!("{}   predicted IoU {predicted_iou:.3}\n", line.trim_end());
    if *hidden_voxels > 0 {
        text +=
            &format!("                 {hidden_voxels} more voxels overlap with later objects\n");
    }
    text
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
    let mut text: String = objects.iter().map(describe).collect();
    text.push('\n');
    report::file_line(&mut text, "labels", output);
    if let Some(folder) = overlay {
        report::file_line(&mut text, &format!("{pictures} pictures"), folder);
    }
    output::print(&text)
}
