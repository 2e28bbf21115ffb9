//! Pictures of the slices of a segmented volume.

use anyhow::{Context, Result};
use sam_lst::datasets::Image;
use sam_lst::datasets::ndarray::Axis;
use sam_lst::evaluation::{Picture, write_png};
use sam_lst::{DatasetDescription, Volume};
use std::path::Path;

/// Writes one picture of each slice with an organ: the slice alone, and with outlines. Returns
/// their number. `progress` receives the number of slices that are done and of all.
pub fn write_overlays(
    folder: &Path,
    image: &Image,
    classes: &Volume<u8>,
    dataset: &DatasetDescription,
    mut progress: impl FnMut(usize, usize),
) -> Result<usize> {
    let mut count = 0;
    let total = image.shape()[0];
    let slices = image.slices().zip(classes.voxels().axis_iter(Axis(0)));
    for (slice, (pixels, label)) in slices.enumerate() {
        progress(slice, total);
        if label.iter().all(|&class| class == 0) {
            continue;
        }
        let background = label.mapv(|_| 0);
        let picture = Picture::new(format!("slice {slice}"), dataset, image.geometry())
            .panel("image", pixels, background.view())
            .panel("prediction", pixels, label)
            .render();
        let file = folder.join(format!("slice{slice:03}.png"));
        write_png(&picture, &file).with_context(|| format!("cannot write {}", file.display()))?;
        count += 1;
    }
    Ok(count)
}

/// Removes the pictures of an earlier segmentation, which would look like pictures of this one.
pub fn remove_overlays(folder: &Path) -> Result<()> {
    let failed = || format!("cannot write to folder {}", folder.display());
    for entry in std::fs::read_dir(folder).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let number = name.strip_prefix("slice").and_then(|rest| rest.strip_suffix(".png"));
        if number.is_some_and(|digits| digits.len() >= 3 && digits.parse::<u32>().is_ok()) {
            std::fs::remove_file(entry.path())
                .with_context(|| format!("cannot replace {}", entry.path().display()))?;
        }
    }
    Ok(())
}
