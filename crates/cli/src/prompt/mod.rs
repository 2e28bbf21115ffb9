//! `sam-lst prompt`.

mod image;
mod volume;

use crate::arguments::open_device;
use crate::{Status, WrongUsage, output};
use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use sam_lst::datasets::{Intensity, has_dicom_files};
use sam_lst::inference::{Predictor, VolumeBox};
use sam_lst::mask_decoder::PointLabel;
use sam_lst::model::SamConfig;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Coordinates are pixels of the image, from its upper left corner: a point x,y,+ on the object or
x,y,- outside it, a box x0,y0,x1,y1. In a volume they are voxels from 0, and a box is
x0,y0,z0,x1,y1,z1 for slices z0 to z1 along the file's third axis; it must fit on the middle slice
only, since each other slice is segmented from the mask before it. A mask of an image is 255 on the
object; the labels of a volume are 1, 2, ... in the order of the boxes.

Examples:
  sam-lst prompt slice.png mask.png --sam lite_medsam.pth --box 120,80,310,260
  sam-lst prompt photo.png mask.png --sam sam_vit_b_01ec64.pth --point 200,150,+ \\
      --point 40,60,- --overlay picture.png
  sam-lst prompt ct.nii.gz liver.nii.gz --sam lite_medsam.pth --box 90,120,40,330,300,95";

/// Segment an image or a volume from points and boxes, with the original SAM
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// The picture, or the volume: NIfTI, NRRD, MetaImage, folder of a DICOM series
    input: PathBuf,
    /// The mask to write, of the same size: .png, or .nii or .nii.gz
    output: PathBuf,
    /// Checkpoint of SAM, MedSAM, LiteMedSAM or MobileSAM: .pth or .safetensors
    #[arg(long, value_name = "FILE")]
    sam: PathBuf,
    /// MedSAM's tensors have SAM's names and shapes, so it must be named [default: any other]
    #[arg(long, value_name = "NAME", value_enum)]
    variant: Option<Variant>,
    /// A box around the object; in a volume it may be repeated
    #[arg(long = "box", value_name = "CORNERS", value_parser = prompt_box, allow_hyphen_values = true)]
    boxes: Vec<PromptBox>,
    /// A point on (+) or outside (-) the object of an image; may be repeated
    #[arg(long = "point", value_name = "X,Y,+", value_parser = point, allow_hyphen_values = true)]
    points: Vec<([f32; 2], PointLabel)>,
    /// Intensities of a volume that are black and white: two numbers, or `percentiles` for MRI
    #[arg(long, value_name = "LOW,HIGH", value_parser = window, allow_hyphen_values = true, default_value = "-160,240")]
    window: Intensity,
    /// Picture of the image with the outline (.png), or folder of pictures of slices [default: none]
    #[arg(long, value_name = "PATH")]
    overlay: Option<PathBuf>,
    /// Device, as `sam-lst devices` lists them
    #[arg(long, value_name = "NAME", default_value = "cpu")]
    device: String,
    /// Overwrite existing outputs; removes earlier pictures of slices
    #[arg(long)]
    force: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Variant {
    MedSam,
}

/// A box on an image or in a volume.
#[derive(Debug, Clone, PartialEq)]
enum PromptBox {
    Image([f32; 4]),
    Volume(VolumeBox),
}

/// Endings of the names of volumes.
const VOLUME_ENDINGS: [&str; 6] = [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"];

pub fn run(arguments: &Arguments) -> Result<Status> {
    let name = arguments.input.to_string_lossy().to_lowercase();
    if arguments.input.is_dir() && !has_dicom_files(&arguments.input) {
        return wrong_usage(format!(
            "cannot read {}: it is a folder without DICOM files; expected a picture, a volume, or the \
             folder of a DICOM series",
            arguments.input.display()
        ));
    }
    let is_volume =
        arguments.input.is_dir() || VOLUME_ENDINGS.iter().any(|ending| name.ends_with(ending));
    if is_volume { volume::run(arguments) } else { image::run(arguments) }
}

impl Arguments {
    /// Checks inputs and the name of the output.
    fn check_files(&self, endings: &[&str]) -> Result<()> {
        output::check_ending(&self.output, endings)?;
        output::check_input(&self.input)?;
        output::check_checkpoint(&self.sam)?;
        output::check_file(&self.output, &[&self.input, &self.sam], self.force)
    }

    /// Files that an overlay must not replace.
    fn files(&self) -> [&Path; 3] {
        [&self.input, &self.sam, &self.output]
    }

    fn load(&self) -> Result<Predictor> {
        let device = open_device(&self.device)?;
        Ok(match self.variant {
            None => Predictor::load(&self.sam, &device)?,
            Some(Variant::MedSam) => Predictor::new(SamConfig::med_sam().load(&self.sam, &device)?),
        })
    }
}

fn wrong_usage<T>(text: impl Into<String>) -> Result<T> {
    bail!(WrongUsage(text.into()))
}

/// Whether points lie in an image. One outside is a mistake, such as swapped axes.
fn is_inside(points: impl IntoIterator<Item = [f32; 2]>, [width, height]: [u32; 2]) -> bool {
    points
        .into_iter()
        .all(|[x, y]| (0.0..=width as f32).contains(&x) && (0.0..=height as f32).contains(&y))
}

fn corners([x0, y0, x1, y1]: [f32; 4]) -> [[f32; 2]; 2] {
    [[x0, y0], [x1, y1]]
}

/// Parses finite numbers separated by commas.
fn numbers<const N: usize>(text: &str) -> Option<[f32; N]> {
    let numbers: Vec<f32> = text
        .split(',')
        .map(|number| number.trim().parse().ok().filter(|number: &f32| number.is_finite()))
        .collect::<Option<_>>()?;
    numbers.try_into().ok()
}

/// Parses a box.
fn prompt_box(text: &str) -> Result<PromptBox, String> {
    let is_slice = |z: f32| z >= 0.0 && z.fract() == 0.0;
    let parsed = match (numbers::<4>(text), numbers::<6>(text)) {
        (Some([x0, y0, x1, y1]), _) if x0 < x1 && y0 < y1 => {
            Some(PromptBox::Image([x0, y0, x1, y1]))
        }
        (_, Some([x0, y0, z0, x1, y1, z1]))
            if x0 < x1 && y0 < y1 && z0 <= z1 && is_slice(z0) && is_slice(z1) =>
        {
            let slices = z0 as usize..=z1 as usize;
            Some(PromptBox::Volume(VolumeBox { corners: [x0, y0, x1, y1], slices }))
        }
        _ => None,
    };
    parsed.ok_or_else(|| {
        "expected X0,Y0,X1,Y1 on an image or X0,Y0,Z0,X1,Y1,Z1 in a volume, with X0 < X1, Y0 < Y1 \
         and whole numbers Z0 <= Z1"
            .to_owned()
    })
}

/// Parses a point with its label.
fn point(text: &str) -> Result<([f32; 2], PointLabel), String> {
    let error = || "expected X,Y,+ or X,Y,- in pixels".to_owned();
    let (coordinates, sign) = text.rsplit_once(',').ok_or_else(error)?;
    let label = match sign.trim() {
        "+" => PointLabel::Foreground,
        "-" => PointLabel::Background,
        _ => return Err(error()),
    };
    Ok((numbers(coordinates).ok_or_else(error)?, label))
}

/// Parses the window of a volume's intensities.
fn window(text: &str) -> Result<Intensity, String> {
    match (text, numbers(text)) {
        // As MedSAM's preparation of MRI.
        ("percentiles", _) => Ok(Intensity::Percentiles([0.5, 99.5])),
        (_, Some([low, high])) if low < high => Ok(Intensity::Window([low, high])),
        _ => Err("expected LOW,HIGH with LOW < HIGH, or percentiles".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_parsed() {
        assert_eq!(prompt_box("1, 2,3.5,4"), Ok(PromptBox::Image([1.0, 2.0, 3.5, 4.0])));
        let in_volume = VolumeBox { corners: [1.0, 2.0, 4.0, 5.5], slices: 3..=3 };
        assert_eq!(prompt_box("1,2,3,4,5.5,3"), Ok(PromptBox::Volume(in_volume)));
        for invalid in [
            "",
            "1,2,3",
            "1,2,3,4,5",
            "3,2,1,4",
            "1,2,NaN,4",
            "a,b,c,d",
            "1,2,3,4,5,2",
            "1,2,0.5,4,5,2",
            "1,2,-1,4,5,2",
            "4,2,1,4,5,2",
        ] {
            assert!(prompt_box(invalid).is_err(), "{invalid}");
        }
        assert_eq!(point("5,6,+"), Ok(([5.0, 6.0], PointLabel::Foreground)));
        assert_eq!(point("5,6,-"), Ok(([5.0, 6.0], PointLabel::Background)));
        for invalid in ["", "5,6", "5,6,1", "5,+", "5,6,7,+", "inf,6,+"] {
            assert!(point(invalid).is_err(), "{invalid}");
        }
        assert_eq!(window("-160,240"), Ok(Intensity::Window([-160.0, 240.0])));
        assert_eq!(window("percentiles"), Ok(Intensity::Percentiles([0.5, 99.5])));
        for invalid in ["", "5", "5,5", "percentile", "1,2,3"] {
            assert!(window(invalid).is_err(), "{invalid}");
        }
    }

    #[test]
    fn points_outside_the_image_are_found() {
        assert!(is_inside([[99.0, 49.0]], [100, 50]));
        assert!(!is_inside([[0.0, 0.0], [49.0, 99.0]], [100, 50]));
    }
}
