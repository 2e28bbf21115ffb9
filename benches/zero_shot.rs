//! Accuracy of the original SAM on a dataset's volumes, without any training: DSC per organ from a
//! box on each slice, and from one box per volume. `benches/zero_shot_pytorch.py` computes the same
//! with LiteMedSAM's published inference.
//!
//! ```sh
//! cargo bench --bench zero_shot -- --data "$PWD/Synapse" --sam "$PWD/lite_medsam.pth" \
//!     --save "$PWD/zero_shot.json"
//! ```

use anyhow::{Context, Result};
use burn::tensor::Device;
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use sam_lst::datasets::ndarray::{Array3, ArrayView2, Axis};
use sam_lst::datasets::{Intensity, Orientation};
use sam_lst::image::{DynamicImage, GrayImage};
use sam_lst::inference::{ImagePrompts, Predictor, VolumeBox};
use sam_lst::metrics::{dice, mean};
use sam_lst::{Dataset, DatasetDescription};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Window of Hounsfield units in MedSAM's preparation of abdominal CT.
const WINDOW: [f32; 2] = [-160.0, 240.0];

/// DSC of the original SAM from boxes around the organs of a dataset in Synapse's layout
#[derive(Parser)]
struct Arguments {
    /// Folder of the dataset, which contains RawData
    #[arg(long)]
    data: PathBuf,
    /// Checkpoint of SAM, LiteMedSAM or MobileSAM
    #[arg(long)]
    sam: PathBuf,
    /// Also write the results as JSON
    #[arg(long)]
    save: Option<PathBuf>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// DSC in percent of each organ, by case.
#[derive(Serialize, Default)]
struct Scores {
    slice_boxes: BTreeMap<String, BTreeMap<String, f64>>,
    volume_boxes: BTreeMap<String, BTreeMap<String, f64>>,
}

#[expect(clippy::print_stdout, reason = "a program's output")]
fn main() -> Result<()> {
    let arguments = Arguments::parse();
    sam_lst::compute_on_current_thread();
    let mut description = DatasetDescription::synapse();
    description.intensity = Intensity::Window(WINDOW);
    // The slices of the files, as the program in PyTorch reads them.
    description.orientation = Orientation::Stored;
    let dataset = Dataset::open(&arguments.data, description)?;
    let mut predictor = Predictor::load(&arguments.sam, &Device::flex())?;
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} cases, {eta} left")?;
    let progress = ProgressBar::new(dataset.all_cases().len() as u64).with_style(style);
    progress.tick();
    let mut scores = Scores::default();
    for case in dataset.all_cases() {
        let volumes = dataset.read(case)?;
        let image = volumes.image.channel(0).mapv(|voxel| (255.0 * voxel) as u8);
        let label = volumes.label.voxels();
        let organs: Vec<(u8, String)> = (1..dataset.description().classes() as u8)
            .filter(|class| label.iter().any(|found| found == class))
            .map(|class| (class, dataset.description().organ(class).name.clone()))
            .collect();
        let by_slice = slice_boxes(&mut predictor, &image, label, &organs)?;
        scores.slice_boxes.insert(case.name.clone(), by_slice);
        let by_volume = volume_boxes(&predictor, &image, label, &organs)?;
        scores.volume_boxes.insert(case.name.clone(), by_volume);
        progress.inc(1);
    }
    progress.finish_and_clear();
    println!("| organ | a box on each slice | a box for the volume |\n|---|---|---|");
    for organ in DatasetDescription::synapse().organs {
        let of = |cases: &BTreeMap<String, BTreeMap<String, f64>>| {
            let values: Vec<f64> =
                cases.values().filter_map(|organs| organs.get(&organ.name)).copied().collect();
            mean(&values).map_or("-".to_owned(), |value| format!("{value:.2}"))
        };
        let (slices, volumes) = (of(&scores.slice_boxes), of(&scores.volume_boxes));
        println!("| {} | {slices} | {volumes} |", organ.name);
    }
    if let Some(file) = arguments.save {
        std::fs::write(&file, serde_json::to_vec_pretty(&scores)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// DSC of each organ from a box around it on each of its slices.
fn slice_boxes(
    predictor: &mut Predictor,
    image: &Array3<u8>,
    label: &Array3<u8>,
    organs: &[(u8, String)],
) -> Result<BTreeMap<String, f64>> {
    let mut found = vec![Array3::zeros(label.dim()); organs.len()];
    for (slice, pixels) in image.axis_iter(Axis(0)).enumerate() {
        let label = label.index_axis(Axis(0), slice);
        let present = organs.iter().zip(&mut found).filter_map(|((class, _), found)| {
            Some((*class, corners(label, *class)?, found.index_axis_mut(Axis(0), slice)))
        });
        let mut present = present.peekable();
        if present.peek().is_none() {
            continue;
        }
        let (rows, columns) = pixels.dim();
        let grey =
            GrayImage::from_raw(columns as u32, rows as u32, pixels.iter().copied().collect());
        predictor.set_image(&DynamicImage::ImageLuma8(grey.context("a pixel for each voxel")?))?;
        for (class, corners, mut found) in present {
            let prompts = ImagePrompts { bounding_box: Some(corners), ..ImagePrompts::default() };
            let mask = predictor.predict(&prompts, false)?.image(0);
            for (found, value) in found.iter_mut().zip(mask.as_raw()) {
                *found = if *value > 0 { class } else { 0 };
            }
        }
    }
    let scores = organs.iter().zip(&found);
    Ok(scores
        .filter_map(|((class, name), found)| Some((name.clone(), percent(found, label, *class)?)))
        .collect())
}

/// DSC of each organ from the box around it on the middle one of its slices. An organ that this
/// slice does not show is left out; where two masks overlap, the later organ stands.
fn volume_boxes(
    predictor: &Predictor,
    image: &Array3<u8>,
    label: &Array3<u8>,
    organs: &[(u8, String)],
) -> Result<BTreeMap<String, f64>> {
    let (mut with_box, mut boxes) = (Vec::new(), Vec::new());
    for (class, name) in organs {
        let on_slice = |slice: usize| corners(label.index_axis(Axis(0), slice), *class);
        let mut slices = (0..label.len_of(Axis(0))).filter(|&slice| on_slice(slice).is_some());
        let first = slices.next().context("the organ is in the volume")?;
        let last = slices.next_back().unwrap_or(first);
        if let Some(corners) = on_slice(first + (last - first) / 2) {
            with_box.push((*class, name));
            boxes.push(VolumeBox { corners, slices: first..=last });
        }
    }
    let objects = predictor.segment_volume_with_boxes(image.view(), &boxes, |_, _| {})?;
    let found = objects.labels.mapv(|number| match number {
        0 => 0,
        _ => with_box[usize::from(number) - 1].0,
    });
    let scores = with_box.iter();
    Ok(scores
        .filter_map(|(class, name)| Some(((*name).clone(), percent(&found, label, *class)?)))
        .collect())
}

/// DSC of a class in percent.
fn percent(found: &Array3<u8>, label: &Array3<u8>, class: u8) -> Option<f64> {
    let [found, label] = [found, label].map(|volume| volume.iter().copied().collect::<Vec<u8>>());
    Some(100.0 * dice(&found, &label, class)?)
}

/// First and last column and row of a class; `None` if it is absent.
fn corners(label: ArrayView2<'_, u8>, class: u8) -> Option<[f32; 4]> {
    let mut inside = label.indexed_iter().filter(|(_, found)| **found == class);
    let ((row, column), _) = inside.next()?;
    let [x0, y0, x1, y1] =
        inside.fold([column, row, column, row], |[x0, y0, x1, y1], ((row, column), _)| {
            [x0.min(column), y0.min(row), x1.max(column), y1.max(row)]
        });
    Some([x0, y0, x1, y1].map(|value| value as f32))
}
