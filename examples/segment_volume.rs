//! Segments a CT with a trained ladder.
//!
//! ```sh
//! cargo run --release --example segment_volume -- ct.nii.gz organs.nii.gz \
//!     --sam sam_vit_b_01ec64.pth --ladder ladder.safetensors --overlays pictures/
//! ```

#[path = "shared/device.rs"]
mod device;

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use sam_lst::rooms::datasets::ndarray::Axis;
use sam_lst::rooms::datasets::{read_nifti_image, write_nifti};
use sam_lst::{
    CachePrecision, CachedViews, DatasetDescription, Embedder, EmbeddingCache, OutputResampling,
    SamLst, SegmentationConfig, SliceGeometry, Task, Volume, outlined, side_by_side,
};
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
    /// SAM's checkpoint, .pth or .safetensors, that the ladder was trained over.
    #[arg(long, value_name = "FILE")]
    sam: PathBuf,
    /// The trained ladder.
    #[arg(long, value_name = "FILE")]
    ladder: PathBuf,
    /// Where to compute: cpu, cuda:0, wgpu, vulkan, …
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Slices that go through the network at once.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    batch_size: u16,
    /// How the network's output becomes classes.
    #[arg(long, value_enum, default_value_t = Resampling::Logits)]
    resampling: Resampling,
    /// A description of the dataset, in TOML, for a ladder that carries none.
    #[arg(long, value_name = "FILE")]
    dataset: Option<PathBuf>,
    /// Folder that keeps the foundation's embeddings, so that segmenting again takes only the ladder.
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Folder for pictures of the slices that show organs, plain and outlined.
    #[arg(long, value_name = "DIR")]
    overlays: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Resampling {
    /// The released code's: class maps enlarged by nearest neighbours.
    Reference,
    /// Logits resampled to the slice's own size.
    Logits,
}

#[expect(clippy::print_stdout, reason = "a program's output")]
fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let device = device::device(&arguments.device)?;
    let model = SamLst::from_pretrained(&arguments.sam, &arguments.ladder, &device)?;
    let task = task(&model, &arguments)?;
    let stored = read_nifti_image(&arguments.input, task.dataset.orientation)?;
    let (mut voxels, geometry) = stored.into_parts();
    task.dataset.intensity.apply(&mut voxels);
    let image = Volume::new(voxels, geometry);

    let config = SegmentationConfig {
        output: match arguments.resampling {
            Resampling::Reference => OutputResampling::Reference,
            Resampling::Logits => OutputResampling::Logits,
        },
        batch_size: arguments.batch_size.into(),
        ..SegmentationConfig::new(task.geometry)
    };
    let cache = arguments
        .cache
        .as_deref()
        .map(|folder| open_cache(folder, &model))
        .transpose()?;
    let mut embedder = Embedder::new(&model.foundation);
    if let Some(cache) = &cache {
        embedder = embedder.with_cache(cache, CachedViews::IDENTITY);
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} slices, {eta} left")?;
    let bar = ProgressBar::new(image.shape()[0] as u64).with_style(style);
    bar.tick();
    let classes = model.segment(&image, &config, &mut embedder, |done| {
        bar.set_position(done as u64)
    })?;
    bar.finish_and_clear();
    if let Some(error) = embedder.full() {
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

/// What the ladder was trained for, or what the user says it was.
fn task(model: &SamLst, arguments: &Arguments) -> Result<Task> {
    let task = match (&model.task, &arguments.dataset) {
        (Some(task), None) => task.clone(),
        (Some(task), Some(file)) => Task {
            dataset: DatasetDescription::from_file(file)?,
            geometry: task.geometry,
        },
        (None, Some(file)) => Task {
            dataset: DatasetDescription::from_file(file)?,
            geometry: SliceGeometry::released(),
        },
        (None, None) => bail!(
            "{} does not say which organs its masks are; give a description with --dataset",
            arguments.ladder.display()
        ),
    };
    let (masks, classes) = (model.config().num_classes(), task.dataset.classes());
    if masks != classes {
        bail!(
            "{} draws {masks} masks, but the dataset `{}` has {classes} classes, background included",
            arguments.ladder.display(),
            task.dataset.name
        );
    }
    Ok(task)
}

fn open_cache(folder: &Path, model: &SamLst) -> Result<EmbeddingCache> {
    let config = model.config();
    let shape = [config.encoder.out_channels, config.grid(), config.grid()];
    let hash = model.foundation.weights_sha256();
    Ok(EmbeddingCache::open(
        folder,
        hash,
        config.input_size,
        shape,
        CachePrecision::F16,
        None,
    )?)
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
