//! `sam-lst segment`.

mod images;

use crate::arguments::open_device;
use crate::model::{ModelOptions, read_common_task};
use crate::overlays::{remove_overlays, write_overlays};
use crate::progress::{CaseProgress, Progress, note};
use crate::report::LabelVolume;
use crate::staging::Staging;
use crate::{Status, WrongUsage, interrupt, output, report};
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use images::{Cases, Images, Input, is_single};
use sam_lst::datasets::{
    SegmentationType, read_geometry, replace_file, write_dicom_segmentation, write_labels,
    write_map,
};
use sam_lst::embeddings::Embedder;
use sam_lst::model::Task;
use sam_lst::{DatasetDescription, Segmenter, Volume};
use serde::Serialize;
use serde_json::json;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Prints the volume of each organ in ml, of several images into OUTPUT/volumes.csv. Labels have the
numbers of the training dataset: NIfTI, PNG or TIFF of a picture, DICOM SEG (.dcm) of a series.

Examples:
  sam-lst segment ct.nii.gz organs.nii.gz --sam lite_medsam.pth \\
      --network runs/synapse/ladder.safetensors --overlays pictures
  sam-lst segment mri predictions --cases test --sam lite_medsam.pth --network ladder.safetensors";

/// Segment images with a trained network
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// The image (volume, folder of a DICOM series, picture), a folder, or a list (.txt)
    input: PathBuf,
    /// The labels to write, on the image's grid; of several images, their folder
    output: PathBuf,
    /// SAM's checkpoint, as in training, unless the method has none: .pth or .safetensors
    #[arg(long, value_name = "FILE")]
    sam: Option<PathBuf>,
    /// The trained network: .safetensors; several are averaged
    #[arg(long, value_name = "FILE", alias = "ladder", required = true)]
    network: Vec<PathBuf>,
    /// Segment these cases of the dataset in INPUT
    #[arg(long, value_name = "CASES")]
    cases: Option<Cases>,
    /// Folder for pictures of slices with organs [default: none]
    #[arg(long, value_name = "DIR")]
    overlays: Option<PathBuf>,
    /// File (folder of several images) for each voxel's uncertainty, 0 to 1
    #[arg(long, value_name = "PATH")]
    uncertainty: Option<PathBuf>,
    /// Dataset description, TOML [default: that in the network's file]
    #[arg(long, value_name = "FILE")]
    dataset: Option<PathBuf>,
    #[command(flatten)]
    model: ModelOptions,
    /// Write DICOM SEG of a DICOM series [default for OUTPUT.dcm: binary]
    #[arg(long, value_name = "TYPE")]
    dicom_seg: Option<DicomSeg>,
    /// Overwrite existing outputs; removes earlier pictures of slices
    #[arg(long)]
    force: bool,
    /// Of several images, leave out those whose labels exist
    #[arg(long, conflicts_with = "force")]
    skip_existing: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Endings of the files of uncertainty.
const MAP_ENDINGS: [&str; 5] = [".nii", ".nii.gz", ".png", ".tif", ".tiff"];

/// How a DICOM segmentation stores its segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DicomSeg {
    Binary,
    LabelMap,
}

/// The volume of an organ.
#[derive(Serialize)]
struct OrganVolume {
    organ: String,
    label: u16,
    #[serde(flatten)]
    volume: LabelVolume,
}

/// An image to segment with the place of its labels.
struct Job {
    input: Input,
    output: PathBuf,
    overlays: Option<PathBuf>,
    uncertainty: Option<PathBuf>,
}

/// A segmented image.
struct Segmented {
    organs: Vec<OrganVolume>,
    pictures: usize,
}

/// A segmented image whose files are complete, but not yet in their places.
struct Staged {
    segmented: Segmented,
    labels: Staging,
    overlays: Option<(PathBuf, Staging)>,
    uncertainty: Option<Staging>,
}

impl Staged {
    fn publish(self) -> Result<Segmented> {
        // Labels last: an image that has them counts as complete.
        if let Some(uncertainty) = self.uncertainty {
            uncertainty.publish()?;
        }
        self.labels.publish()?;
        if let Some((folder, staging)) = self.overlays {
            remove_overlays(&folder)?;
            staging.publish()?;
        }
        Ok(self.segmented)
    }
}

pub fn run(arguments: &Arguments) -> Result<Status> {
    let Arguments { input, output, network, model: options, .. } = arguments;
    let sam = arguments.sam.as_deref();
    output::check_input(input)?;
    if is_single(input, arguments.cases) {
        arguments.check_single()?;
    }
    sam.map_or(Ok(()), output::check_checkpoint)?;
    for network in network {
        output::check_checkpoint(network)?;
    }
    options.check()?;
    let device = open_device(&options.device)?;
    let description = arguments.dataset.as_ref().map(DatasetDescription::from_file).transpose()?;
    let task = read_common_task(network, sam, description)?;
    let images = Images::find(input, arguments.cases, &task.dataset)?;
    let (jobs, _staging) = match &images {
        Images::One(image) => (vec![arguments.single_job(image, &task)?], None),
        Images::Many(images) => {
            let jobs = arguments.jobs(images, &task)?;
            // Shows that the folder can be written.
            (jobs, Some(Staging::new(output)?))
        }
    };
    if jobs.is_empty() {
        note(&format!("all labels exist in {}", output.display()));
        return Ok(Status::Done);
    }
    let models = options.load_all(sam, network, &device)?;
    let cache = options.open_cache(&models, &task)?;
    let mut segmenter = options.segmenter(&models, network, &task)?;
    if let Some(cache) = &cache {
        segmenter = segmenter.with_cache(cache);
    }
    let status = match images {
        Images::One(_) => {
            let mut progress = Progress::new();
            let staged =
                segment(arguments, &jobs[0], &mut segmenter, &task, |work, done, slices| {
                    progress.count(work, done, slices, "slices");
                })?;
            drop(progress);
            print_result(arguments, &staged.publish()?)?;
            Status::Done
        }
        Images::Many(_) => segment_all(arguments, &jobs, &mut segmenter, &task)?,
    };
    if let Some(error) = segmenter.embedder().and_then(Embedder::cache_write_error) {
        note(&error.to_string());
    }
    Ok(status)
}

impl Arguments {
    /// Files that are read besides the images.
    fn inputs(&self) -> Vec<&Path> {
        let files = self.sam.iter().chain(&self.network).chain(&self.dataset);
        files.map(PathBuf::as_path).collect()
    }

    /// Checks the paths of one image and its labels before anything is read.
    fn check_single(&self) -> Result<()> {
        if self.skip_existing {
            bail!(WrongUsage("--skip-existing is for several images".to_owned()));
        }
        let endings: &[&str] = match self.dicom_seg {
            Some(_) => &[".dcm"],
            None => &[".nii", ".nii.gz", ".png", ".tif", ".tiff", ".dcm"],
        };
        output::check_ending(&self.output, endings)?;
        if is_dicom_name(&self.output) && !self.input.is_dir() {
            bail!(WrongUsage(format!(
                "cannot write {}: a DICOM segmentation needs the DICOM series of the image, and {} is \
                 no folder of one",
                self.output.display(),
                self.input.display()
            )));
        }
        let mut inputs = self.inputs();
        inputs.push(&self.input);
        output::check_file(&self.output, &inputs, self.force)?;
        // Created and removed, which shows that they can be written.
        Staging::for_file(&self.output)?;
        if let Some(file) = &self.uncertainty {
            if output::resolve(file) == output::resolve(&self.output) {
                bail!(WrongUsage(format!(
                    "the labels and the uncertainty cannot both be written to {}",
                    file.display()
                )));
            }
            output::check_ending(file, &MAP_ENDINGS)?;
            output::check_file(file, &inputs, self.force)?;
            Staging::for_file(file)?;
        }
        if let Some(folder) = &self.overlays {
            output::check_folder(folder, &inputs, self.force)?;
            check_overlays(folder, &self.input)?;
            Staging::new(folder)?;
        }
        Ok(())
    }

    /// The job of one image.
    fn single_job(&self, image: &Path, task: &Task) -> Result<Job> {
        // An unreadable image is reported before the model is loaded.
        read_geometry(image, task.dataset.orientation)?;
        let is_nifti =
            self.labels_ending(image, task)? == ".nii.gz" && !is_dicom_name(&self.output);
        let check_name = |file: &Path, what: &str, is_nifti: bool| {
            let name = file.to_string_lossy();
            if is_nifti == (name.ends_with(".nii") || name.ends_with(".nii.gz")) {
                return Ok(());
            }
            let kind = if is_nifti { "a volume in the patient" } else { "a picture" };
            bail!(WrongUsage(format!(
                "cannot write {}: {} is {kind}, so its {what} a name in {}",
                file.display(),
                image.display(),
                if is_nifti { ".nii.gz or .nii" } else { ".png or .tif" }
            )));
        };
        check_name(&self.output, "labels need", is_nifti)?;
        if let Some(file) = &self.uncertainty {
            check_name(
                file,
                "uncertainty needs",
                map_ending(self.labels_ending(image, task)?) == ".nii.gz",
            )?;
        }
        let input = Input::new(String::new(), image.to_owned());
        Ok(Job {
            input,
            output: self.output.clone(),
            overlays: self.overlays.clone(),
            uncertainty: self.uncertainty.clone(),
        })
    }

    /// The jobs of several images, without those whose labels exist if these are to be left out.
    fn jobs(&self, images: &[Input], task: &Task) -> Result<Vec<Job>> {
        if self.output.is_file() {
            bail!(WrongUsage(format!(
                "cannot write to {}: it is a file; the labels of several images need a folder",
                self.output.display()
            )));
        }
        if let Some(folder) = &self.uncertainty {
            let name = folder.to_string_lossy();
            let is_file_name = MAP_ENDINGS.iter().any(|ending| name.ends_with(ending));
            if folder.is_file() || is_file_name {
                bail!(WrongUsage(format!(
                    "cannot write to {}: of several images, --uncertainty names a folder",
                    folder.display()
                )));
            }
            Staging::new(folder)?;
        }
        let mut jobs = Vec::with_capacity(images.len());
        let files: Vec<&Path> = images
            .iter()
            .flat_map(|input| [&input.image].into_iter().chain(&input.others))
            .map(PathBuf::as_path)
            .collect();
        for input in images {
            // An unreadable image is reported when it is its turn.
            let ending = self.labels_ending(&input.image, task).unwrap_or(".nii.gz");
            let output = self.output.join(format!("{}{ending}", input.name));
            let uncertainty = self
                .uncertainty
                .as_ref()
                .map(|folder| folder.join(format!("{}{}", input.name, map_ending(ending))));
            let is_complete = uncertainty.as_ref().is_none_or(|file| file.exists());
            if self.skip_existing && output.exists() && is_complete {
                continue;
            }
            let mut inputs = self.inputs();
            inputs.extend(&files);
            output::check_file(&output, &inputs, self.force || self.skip_existing)?;
            if let Some(file) = &uncertainty {
                output::check_file(file, &inputs, self.force || self.skip_existing)?;
            }
            let overlays = self.overlays.as_ref().map(|folder| folder.join(&input.name));
            if let Some(folder) = &overlays {
                output::check_folder(folder, &inputs, self.force)?;
                check_overlays(folder, &input.image)?;
            }
            jobs.push(Job { input: input.clone(), output, overlays, uncertainty });
        }
        if !self.skip_existing {
            output::check_file(&self.output.join(VOLUMES), &[], self.force)?;
        }
        Ok(jobs)
    }

    /// The ending of the labels of an image.
    fn labels_ending(&self, image: &Path, task: &Task) -> Result<&'static str> {
        if image.is_dir() {
            // A DICOM series, whose headers need not be read for this.
            return Ok(if self.dicom_seg.is_some() { ".dcm" } else { ".nii.gz" });
        }
        let name = image.to_string_lossy().to_lowercase();
        Ok(match read_geometry(image, task.dataset.orientation)? {
            Some(_) => ".nii.gz",
            None if name.ends_with(".tif") || name.ends_with(".tiff") => ".tif",
            None => ".png",
        })
    }

    /// Writes the labels of a job's image to a file.
    fn write(&self, file: &Path, job: &Job, classes: &Volume<u8>, task: &Task) -> Result<()> {
        if !is_dicom_name(file) {
            return Ok(write_labels(file, classes, &task.dataset)?);
        }
        let kind = match self.dicom_seg {
            None | Some(DicomSeg::Binary) => SegmentationType::Binary,
            Some(DicomSeg::LabelMap) => SegmentationType::LabelMap,
        };
        Ok(write_dicom_segmentation(file, &job.input.image, classes, &task.dataset, kind)?)
    }
}

/// Checks that an image does not lie in the folder of pictures, where one may have its name.
fn check_overlays(folder: &Path, image: &Path) -> Result<()> {
    if output::resolve(output::folder_of(image)) == output::resolve(folder) {
        bail!(WrongUsage(format!(
            "cannot write pictures to {}: it is the folder of {}; choose another",
            folder.display(),
            image.display()
        )));
    }
    Ok(())
}

/// The ending of an image's uncertainty, whose labels have an ending.
fn map_ending(ending: &'static str) -> &'static str {
    if ending == ".dcm" { ".nii.gz" } else { ending }
}

/// Whether a name is that of a DICOM file.
fn is_dicom_name(file: &Path) -> bool {
    file.extension().is_some_and(|ending| ending == "dcm")
}

/// Segments an image and writes its labels and pictures to temporary folders. `progress` receives what
/// is done, the number of slices that are done, and that of all.
fn segment(
    arguments: &Arguments,
    job: &Job,
    segmenter: &mut Segmenter<'_>,
    task: &Task,
    mut progress: impl FnMut(&'static str, usize, usize),
) -> Result<Staged> {
    let image = task.dataset.read_image(&job.input.image)?;
    let slices = image.shape()[0];
    progress("segmenting", 0, slices);
    let count = |done| progress("segmenting", done, slices);
    let (classes, uncertainty) = match &job.uncertainty {
        None => (segmenter.segment(&image, count)?, None),
        Some(file) => {
            let (classes, map) = segmenter.segment_with_uncertainty(&image, count)?;
            let staging = Staging::for_file(file)?;
            write_map(staging.file(file), &map)
                .with_context(|| format!("cannot write {}", file.display()))?;
            (classes, Some(staging))
        }
    };
    let overlays = job.overlays.as_deref().map(Staging::new).transpose()?;
    let mut pictures = 0;
    if let Some(staging) = &overlays {
        pictures =
            write_overlays(staging.folder(), &image, &classes, &task.dataset, |done, all| {
                progress("drawing", done, all);
            })?;
    }
    let labels = Staging::for_file(&job.output)?;
    arguments
        .write(&labels.file(&job.output), job, &classes, task)
        .with_context(|| format!("cannot write {}", job.output.display()))?;
    let segmented = Segmented { organs: organ_volumes(&classes, task), pictures };
    let overlays = job.overlays.clone().zip(overlays);
    Ok(Staged { segmented, labels, overlays, uncertainty })
}

/// Segments several images. One that cannot be read is reported, and the others are segmented.
fn segment_all(
    arguments: &Arguments,
    jobs: &[Job],
    segmenter: &mut Segmenter<'_>,
    task: &Task,
) -> Result<Status> {
    interrupt::set_keeps_output();
    let table = arguments.output.join(VOLUMES);
    let mut volumes = Volumes::open(table.clone(), arguments.skip_existing)?;
    let mut results = Vec::new();
    let mut failed = 0;
    let mut progress = CaseProgress::new("segmenting", jobs.len());
    for job in jobs {
        let staged = segment(arguments, job, segmenter, task, |work, done, slices| {
            if work == "segmenting" {
                progress.update(&job.input.name, done, slices);
            }
        });
        // A stopped program leaves labels with their volumes.
        let _writing = interrupt::hold();
        match staged.and_then(Staged::publish) {
            Ok(segmented) => {
                volumes.add(job, &segmented)?;
                results.push((job, segmented));
            }
            Err(error) => {
                failed += 1;
                note(&format!("error: {error:#}"));
            }
        }
    }
    drop(progress);
    if arguments.json {
        let result = |(job, segmented): &(&Job, Segmented)| {
            json!({
                "image": job.input.image.display().to_string(),
                "output": job.output.display().to_string(),
                "organs": segmented.organs,
                "uncertainty": job.uncertainty.as_ref().map(|file| file.display().to_string()),
            })
        };
        output::print_json(&json!({
            "images": results.iter().map(result).collect::<Vec<_>>(),
            "failed": failed,
        }))?;
    } else {
        let mut text = String::new();
        let files = match results.len() {
            1 => "1 label file".to_owned(),
            count => format!("{count} label files"),
        };
        report::file_line(&mut text, &files, &arguments.output);
        report::file_line(&mut text, "volumes", &table);
        if let Some(folder) = &arguments.uncertainty {
            report::file_line(&mut text, "uncertainty", folder);
        }
        if let Some(folder) = &arguments.overlays {
            let pictures: usize = results.iter().map(|(_, segmented)| segmented.pictures).sum();
            report::file_line(&mut text, &format!("{pictures} pictures"), folder);
        }
        output::print(&text)?;
    }
    if failed > 0 {
        bail!("{failed} of {} images could not be segmented; the errors are above", jobs.len());
    }
    Ok(Status::Done)
}

/// The table of the volumes of all organs in a folder of labels.
const VOLUMES: &str = "volumes.csv";

/// The volumes of all organs as CSV, written anew after each image.
struct Volumes {
    file: PathBuf,
    text: String,
}

impl Volumes {
    /// Begins a table, or continues that of earlier images.
    fn open(file: PathBuf, continues: bool) -> Result<Self> {
        let earlier = std::fs::read_to_string(&file).ok().filter(|_| continues);
        let text = earlier.unwrap_or_else(|| "image,organ,label,voxels,volume_ml\n".to_owned());
        let volumes = Self { file, text };
        volumes.write()?;
        Ok(volumes)
    }

    fn add(&mut self, job: &Job, segmented: &Segmented) -> Result<()> {
        self.text += &volume_rows(&job.input.name, &segmented.organs)?;
        self.write()
    }

    fn write(&self) -> Result<()> {
        replace_file(&self.file, VOLUMES, |temporary| std::fs::write(temporary, &self.text))
            .with_context(|| format!("cannot write {}", self.file.display()))
    }
}

/// The rows of an image in the table; a volume that is not known is empty.
fn volume_rows(image: &str, organs: &[OrganVolume]) -> Result<String> {
    let mut rows = csv::Writer::from_writer(Vec::new());
    for OrganVolume { organ, label, volume } in organs {
        let known_ml = Some(volume.volume_ml).filter(|ml| !ml.is_nan());
        // As text: the writer's own form of a whole number is "12.0".
        let ml = known_ml.map(|ml| ml.to_string());
        rows.serialize((image, organ, label, volume.voxels, ml))?;
    }
    Ok(String::from_utf8(rows.into_inner()?)?)
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

fn print_result(arguments: &Arguments, segmented: &Segmented) -> Result<()> {
    let Segmented { organs, pictures } = segmented;
    let Arguments { output, overlays, uncertainty, .. } = arguments;
    if arguments.json {
        let overlays = overlays
            .as_ref()
            .map(|folder| json!({ "folder": folder.display().to_string(), "pictures": pictures }));
        return output::print_json(&json!({
            "output": output.display().to_string(),
            "organs": organs,
            "overlays": overlays,
            "uncertainty": uncertainty.as_ref().map(|file| file.display().to_string()),
        }));
    }
    let line = |organ: &OrganVolume| report::volume_line(&organ.organ, &organ.volume);
    let mut text: String = organs.iter().map(line).collect();
    text.push('\n');
    report::file_line(&mut text, "labels", output);
    if let Some(file) = uncertainty {
        report::file_line(&mut text, "uncertainty", file);
    }
    if let Some(folder) = overlays {
        report::file_line(&mut text, &format!("{pictures} pictures"), folder);
    }
    output::print(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_volumes_quote_names_and_leave_unknown_volumes_empty() {
        let organ = |organ: &str, label, voxels, volume_ml| OrganVolume {
            organ: organ.into(),
            label,
            volume: LabelVolume { voxels, volume_ml },
        };
        let organs = [
            organ("liver", 6, 8, 12.0),
            organ("kidney, left", 3, 0, 0.0),
            organ("the \"nodule\"", 1, 5, f64::NAN),
        ];
        let rows = volume_rows("case 1", &organs).expect("rows");
        let expected = "case 1,liver,6,8,12\ncase 1,\"kidney, left\",3,0,0\n\
                        case 1,\"the \"\"nodule\"\"\",1,5,\n";
        assert_eq!(rows, expected);
    }
}
