//! Prompts on one image.

use super::{Arguments, PromptBox, corners, is_inside, wrong_usage};
use crate::progress::Spinner;
use crate::staging::Staging;
use crate::{Status, output, report};
use anyhow::{Context, Result, bail};
use sam_lst::evaluation::write_png;
use sam_lst::inference::{ImagePrompts, Masks};
use serde_json::json;
use std::path::Path;

pub fn run(arguments: &Arguments) -> Result<Status> {
    let Arguments { input, output, sam, overlay, .. } = arguments;
    let prompts = prompts(arguments)?;
    arguments.check_files(&[".png"])?;
    if let Some(overlay) = overlay {
        output::check_ending(overlay, &[".png"])?;
        output::check_file(overlay, &arguments.files(), arguments.force)?;
    }
    let staging = Staging::for_file(output)?;
    let overlay_staging = overlay.as_deref().map(Staging::for_file).transpose()?;
    let image =
        sam_lst::image::open(input).with_context(|| format!("cannot read {}", input.display()))?;
    check_prompts(&prompts, [image.width(), image.height()])
        .with_context(|| format!("cannot segment {}", input.display()))?;
    let spinner = Spinner::loading(sam);
    let mut predictor = arguments.load()?;
    predictor.set_image(&image)?;
    let is_ambiguous = prompts.bounding_box.is_none() && prompts.points.len() == 1;
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

fn prompts(arguments: &Arguments) -> Result<ImagePrompts> {
    let points = arguments.points.clone();
    let bounding_box = match &arguments.boxes[..] {
        [] if points.is_empty() => {
            return wrong_usage("no prompt is given; add --box X0,Y0,X1,Y1 or --point X,Y,+");
        }
        [] => None,
        [PromptBox::Image(corners)] => Some(*corners),
        [PromptBox::Volume(_)] => {
            return wrong_usage("a box on an image is X0,Y0,X1,Y1; slices are for volumes");
        }
        _ => return wrong_usage("an image takes one --box; call the program once for each object"),
    };
    Ok(ImagePrompts { points, bounding_box, mask: None })
}

fn check_prompts(prompts: &ImagePrompts, size: [u32; 2]) -> Result<()> {
    let [width, height] = size;
    for (point, _) in &prompts.points {
        let [x, y] = *point;
        if !is_inside([*point], size) {
            bail!("the point {x},{y} is outside the image of {width} x {height} pixels");
        }
    }
    let outside =
        prompts.bounding_box.filter(|bounding_box| !is_inside(corners(*bounding_box), size));
    if let Some([x0, y0, x1, y1]) = outside {
        bail!("the box {x0},{y0},{x1},{y1} is not inside the image of {width} x {height} pixels");
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
