//! Segments a CT with a trained ladder and writes the label volume on the CT's own grid.
//!
//! ```sh
//! cargo run --release --example segment_volume -- \
//!     ct.nii.gz organs.nii.gz sam_vit_b_01ec64.pth ladder.safetensors
//! ```
//!
//! `sam-lst segment` does the same with more options and checks.

use anyhow::{Context, Result, ensure};
use sam_lst::datasets::write_nifti_labels;
use sam_lst::{SamLst, SegmentationConfig, Segmenter};
use std::path::PathBuf;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[expect(clippy::print_stdout, reason = "a program's output")]
fn main() -> Result<()> {
    let arguments: Vec<PathBuf> = std::env::args().skip(1).map(PathBuf::from).collect();
    let [input, output, sam, ladder] = &arguments[..] else {
        anyhow::bail!("usage: segment_volume INPUT OUTPUT SAM_CHECKPOINT LADDER");
    };
    ensure!(!output.exists(), "{} exists already", output.display());
    sam_lst::compute_on_current_thread();
    let device = sam_lst::devices::open("cpu")?;
    let model = SamLst::from_pretrained(sam, ladder, &device)?;

    // The ladder's checkpoint says what it was trained for: intensities, organs and slice sizes.
    let task = model.task.clone().context("the ladder's checkpoint describes no dataset")?;
    let image = task.dataset.read_image(input)?; // Hounsfield units to [0, 1]

    let mut segmenter = Segmenter::new(&model, SegmentationConfig::of_task(&task));
    let classes = segmenter.segment(&image, |_slices_done| {})?;

    // Classes 0..K become the dataset's own label numbers.
    write_nifti_labels(output, &classes, &task.dataset.label_map())?;
    for class in task.dataset.report_classes() {
        let voxels = classes.voxels().iter().filter(|&&found| found == class).count();
        println!("{:>16}: {voxels} voxels", task.dataset.organ(class).name);
    }
    Ok(())
}
