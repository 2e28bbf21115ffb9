//! Segments a CT with a trained ladder.
//!
//! ```sh
//! cargo run --release --example segment_volume -- ct.nii.gz organs.nii.gz \
//!     --sam sam_vit_b_01ec64.pth --ladder ladder.safetensors --overlays pictures/
//! ```

#[path = "shared/device.rs"]
mod device;
#[path = "shared/model.rs"]
mod model;

use anyhow::{Context, Result};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use model::ModelArguments;
use sam_lst::rooms::datasets::ndarray::Axis;
use sam_lst::rooms::datasets::{read_nifti_image, write_nifti};
use sam_lst::{DatasetDescription, Segmenter, Volume, outlined, radiological, side_by_side};
use std::path::{Path, PathBuf};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(about = "Segments a CT (.nii, .nii.gz) with a trained ladder")]
struct Arguments {
    /// The CT.
    input: PathBuf,
    /// The label volume to write, on the CT's grid: .nii or .nii.gz.
    output: PathBuf,
    #[command(flatten)]
    model: ModelArguments,
    /// A description of the dataset, in TOML, for a ladder that carries none.
    #[arg(long, value_name = "FILE")]
    dataset: Option<PathBuf>,
    /// Folder for pictures of the slices that show organs, plain and outlined.
    #[arg(long, value_name = "DIR")]
    overlays: Option<PathBuf>,
}

#[expect(clippy::print_stdout, reason = "a program's output")]
fn main() -> Result<()> {
    let arguments: Arguments = device::parse();
    sam_lst::compute_on_this_thread();
    let description = arguments
        .dataset
        .as_ref()
        .map(DatasetDescription::from_file)
        .transpose()?;
    let (model, task, config) = arguments.model.load(description)?;
    let stored = read_nifti_image(&arguments.input, task.dataset.orientation)?;
    let (mut voxels, geometry) = stored.into_parts();
    task.dataset.intensity.apply(&mut voxels);
    let image = Volume::new(voxels, geometry);

    let cache = arguments.model.open_cache(&model)?;
    let mut segmenter = Segmenter::new(&model, config);
    if let Some(cache) = &cache {
        segmenter = segmenter.with_cache(cache);
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} slices, {eta} left")?;
    let bar = ProgressBar::new(image.shape()[0] as u64).with_style(style);
    bar.tick();
    let classes = segmenter.segment(&image, |done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    if let Some(error) = segmenter.embedder().full() {
        println!("{error}");
    }

    let map = task.dataset.label_map();
    let labels = classes.with_voxels(classes.voxels().mapv(|class| map.label_of(class)));
    write_nifti(&arguments.output, &labels)?;
    let voxel_ml: f64 = image
        .spacing_mm()
        .map_or(f64::NAN, |mm| mm.iter().product::<f64>() / 1000.0);
    for class in task.dataset.report_classes() {
        let count = classes
            .voxels()
            .iter()
            .filter(|&&found| found == class)
            .count();
        println!(
            "{:>16}: {:8.1} ml",
            task.dataset.organ(class).name,
            count as f64 * voxel_ml
        );
    }
    println!("{}", arguments.output.display());
    if let Some(folder) = &arguments.overlays {
        let pictures = write_overlays(folder, &image, &classes, &task.dataset)?;
        println!("{}: {pictures} pictures", folder.display());
    }
    Ok(())
}

/// One picture for each slice with an organ: as it is, and outlined.
fn write_overlays(
    folder: &Path,
    image: &Volume<f32>,
    classes: &Volume<u8>,
    dataset: &DatasetDescription,
) -> Result<usize> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // About 512 screen pixels wide.
    let scale = (512 / image.shape()[2].max(1)).max(1) as u32;
    let mut count = 0;
    let slices = image
        .voxels()
        .axis_iter(Axis(0))
        .zip(classes.voxels().axis_iter(Axis(0)));
    for (slice, (pixels, label)) in slices.enumerate() {
        if label.iter().all(|&class| class == 0) {
            continue;
        }
        let pixels = radiological(pixels, image.geometry());
        let label = radiological(label, image.geometry());
        let nothing = label.mapv(|_| 0);
        let [plain, found] =
            [nothing.view(), label].map(|label| outlined(pixels, label, dataset, scale));
        let file = folder.join(format!("slice{slice:03}.png"));
        side_by_side(&[plain, found])
            .save(&file)
            .with_context(|| format!("cannot write {}", file.display()))?;
        count += 1;
    }
    Ok(count)
}
