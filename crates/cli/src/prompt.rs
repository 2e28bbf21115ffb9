//! `sam-lst prompt`.

use crate::arguments::open_device;
use crate::progress::Spinner;
use crate::staging::Staging;
use crate::{Status, WrongUsage, output, report};
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use sam_lst::evaluation::write_png;
use sam_lst::inference::{ImagePrompts, Masks, Predictor};
use sam_lst::mask_decoder::PointLabel;
use sam_lst::model::SamConfig;
use serde_json::json;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
A point is x,y,+ on the object or x,y,- outside it; a box is x0,y0,x1,y1; both are in pixels of the
image, from its upper left corner. The mask is 255 on the object and 0 elsewhere. Prints the
predicted intersection over union, which tells how sure the model is.

Examples:
  sam-lst prompt slice.png mask.png --sam lite_medsam.pth --box 120,80,310,260
  sam-lst prompt photo.png mask.png --sam sam_vit_b_01ec64.pth --point 200,150,+ \\
      --point 40,60,- --overlay picture.png";

/// Segment an object on one image from points and a box, with the original SAM
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// The image: .png, grey or colour
    input: PathBuf,
    /// The mask to write: .png, of the image's size
    output: PathBuf,
    /// Checkpoint of SAM, MedSAM, LiteMedSAM or MobileSAM: .pth or .safetensors
    #[arg(long, value_name = "FILE")]
    sam: PathBuf,
    /// MedSAM's tensors have SAM's names and shapes, so it must be named [default: any other]
    #[arg(long, value_name = "NAME", value_enum)]
    variant: Option<Variant>,
    /// A box around the object
    #[arg(
        long = "box",
        value_name = "X0,Y0,X1,Y1",
        value_parser = corners,
        allow_hyphen_values = true
    )]
    bounding_box: Option<[f32; 4]>,
    /// A point on (+) or outside (-) the object; may be repeated
    #[arg(long = "point", value_name = "X,Y,+", value_parser = point, allow_hyphen_values = true)]
    points: Vec<([f32; 2], PointLabel)>,
    /// Picture of the image with the mask's outline: .png [default: none]
    #[arg(long, value_name = "FILE")]
    overlay: Option<PathBuf>,
    /// Device, as `sam-lst devices` lists them
    #[arg(long, value_name = "NAME", default_value = "cpu")]
    device: String,
    /// Overwrite existing outputs
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

pub fn run(arguments: &Arguments) -> Result<Status> {
    let Arguments { input, output, sam, points, bounding_box, overlay, .. } = arguments;
    check(arguments)?;
    let staging = Staging::for_file(output)?;
    let overlay_staging = overlay.as_deref().map(Staging::for_file).transpose()?;
    let device = open_device(&arguments.device)?;
    let image =
        sam_lst::image::open(input).with_context(|| format!("cannot read {}", input.display()))?;
    let prompts = ImagePrompts { points: points.clone(), bounding_box: *bounding_box, mask: None };
    check_inside(&prompts, image.width(), image.height())?;
    let spinner = Spinner::loading(sam);
    let mut predictor = match arguments.variant {
        None => Predictor::load(sam, &device)?,
        Some(Variant::MedSam) => Predictor::new(SamConfig::med_sam().load(sam, &device)?, 1024),
    };
    predictor.set_image(&image)?;
    let is_ambiguous = bounding_box.is_none() && points.len() == 1;
    let masks = predictor.predict(&prompts, is_ambiguous)?;
    drop(spinner);
    let best = masks.best();
    let mask = masks.image(best);
    let unwritable = |file: &Path| format!("cannot write {}", file.display());
    write_png(&mask, staging.file(output)).with_context(|| unwritable(output))?;
    if let (Some(staging), Some(file)) = (&overlay_staging, overlay) {
        let picture = masks.overlay(best, &image);
        write_png(&picture, staging.file(file)).with_context(|| unwritable(file))?;
    }
    staging.publish()?;
    overlay_staging.map(Staging::publish).transpose()?;
    let pixels = mask.as_raw().iter().filter(|&&value| value > 0).count();
    print_result(arguments, &masks, best, pixels)?;
    Ok(Status::Done)
}

/// Checks names and paths before anything is read.
fn check(arguments: &Arguments) -> Result<()> {
    let Arguments { input, output, sam, points, bounding_box, overlay, force, .. } = arguments;
    if points.is_empty() && bounding_box.is_none() {
        let text = "no prompt is given; add --box X0,Y0,X1,Y1 or --point X,Y,+";
        bail!(WrongUsage(text.to_owned()));
    }
    output::check_input(input)?;
    output::check_checkpoint(sam)?;
    for file in [Some(output), overlay.as_ref()].into_iter().flatten() {
        output::check_ending(file, &[".png"])?;
        output::check_file(file, &[input, sam], *force)?;
    }
    match overlay {
        Some(overlay) => output::check_not_input(overlay, &[output]),
        None => Ok(()),
    }
}

/// A point outside the image is a mistake, such as swapped axes.
fn check_inside(prompts: &ImagePrompts, width: u32, height: u32) -> Result<()> {
    let corners = prompts.bounding_box.iter().flat_map(|[x0, y0, x1, y1]| [[*x0, *y0], [*x1, *y1]]);
    for [x, y] in prompts.points.iter().map(|(point, _)| *point).chain(corners) {
        let is_inside = (0.0..=width as f32).contains(&x) && (0.0..=height as f32).contains(&y);
        if !is_inside {
            bail!("({x}, {y}) is outside the image, which has {width} x {height} pixels");
        }
    }
    Ok(())
}

fn print_result(arguments: &Arguments, masks: &Masks, best: usize, pixels: usize) -> Result<()> {
    let Arguments { output, overlay, .. } = arguments;
    let (iou, bounding_box) = (masks.iou[best], masks.bounding_box(best));
    if arguments.json {
        return output::print_json(&json!({
            "output": output.display().to_string(),
            "overlay": overlay.as_ref().map(|file| file.display().to_string()),
            "predicted_iou": iou,
            "pixels": pixels,
            "bounding_box": bounding_box,
        }));
    }
    let mut text = format!("predicted IoU    {iou:8.3}\nmask             {pixels:8} pixels\n");
    if let Some([x0, y0, x1, y1]) = bounding_box {
        text.push_str(&format!("box of the mask  {x0},{y0},{x1},{y1}\n"));
    }
    text.push('\n');
    report::file_line(&mut text, "mask", output);
    if let Some(overlay) = overlay {
        report::file_line(&mut text, "picture", overlay);
    }
    output::print(&text)
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
fn corners(text: &str) -> Result<[f32; 4], String> {
    match numbers(text) {
        Some([x0, y0, x1, y1]) if x0 < x1 && y0 < y1 => Ok([x0, y0, x1, y1]),
        _ => Err("expected X0,Y0,X1,Y1 in pixels with X0 < X1 and Y0 < Y1".to_owned()),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_parsed() {
        assert_eq!(corners("1, 2,3.5,4"), Ok([1.0, 2.0, 3.5, 4.0]));
        for invalid in ["", "1,2,3", "1,2,3,4,5", "3,2,1,4", "1,2,NaN,4", "a,b,c,d"] {
            assert!(corners(invalid).is_err(), "{invalid}");
        }
        assert_eq!(point("5,6,+"), Ok(([5.0, 6.0], PointLabel::Foreground)));
        assert_eq!(point("5,6,-"), Ok(([5.0, 6.0], PointLabel::Background)));
        for invalid in ["", "5,6", "5,6,1", "5,+", "5,6,7,+", "inf,6,+"] {
            assert!(point(invalid).is_err(), "{invalid}");
        }
    }

    #[test]
    fn points_outside_the_image_are_refused() {
        let prompts = |x, y| ImagePrompts {
            points: vec![([x, y], PointLabel::Foreground)],
            ..ImagePrompts::default()
        };
        check_inside(&prompts(99.0, 49.0), 100, 50).expect("inside");
        let message = check_inside(&prompts(49.0, 99.0), 100, 50).expect_err("outside").to_string();
        assert_eq!(message, "(49, 99) is outside the image, which has 100 x 50 pixels");
    }
}
