//! Conversion of a dataset to the common preprocessed form of Synapse.

use crate::{Case, Dataset, DatasetError, Split, WriteError, write_h5_volume, write_npz_slice};
use crate::{PreparedLayout, write::write_file};
use ndarray::Axis;
use std::path::Path;

/// Number of cases and slices that [`prepare`] has written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PreparedCounts {
    /// Training cases, including those of the validation split.
    pub train_cases: usize,
    /// Slices of the training cases.
    pub train_slices: usize,
    /// Test cases.
    pub test_cases: usize,
}

/// Writes a dataset in the form in which the published pipelines read Synapse:
/// `train_npz/caseNNNN_sliceDDD.npz`, `test_vol_h5/caseNNNN.npy.h5`, all arrays `float32`, and the
/// lists that name them. One case is in memory at a time. `progress` is called with each case when
/// it is written.
///
/// Existing files are overwritten.
///
/// # Errors
///
/// [`DatasetError`], naming the file, if a case cannot be read or a file cannot be written.
pub fn prepare(
    dataset: &Dataset,
    destination: impl AsRef<Path>,
    mut progress: impl FnMut(&Case),
) -> Result<PreparedCounts, DatasetError> {
    let destination = destination.as_ref();
    let layout = PreparedLayout::default();
    let mut counts = PreparedCounts::default();
    let (mut train_list, mut test_list) = (String::new(), String::new());
    for case in dataset.all_cases() {
        let volumes = dataset.read(case)?;
        if volumes.image.channels() > 1 {
            return Err(DatasetError::PreparedChannels {
                case: case.name.clone(),
                channels: volumes.image.channels(),
            });
        }
        let image = volumes.image.with_voxels(volumes.image.channel(0).to_owned());
        let name = format!("case{}", case.name);
        if case.split == Split::Test {
            let file = destination.join(&layout.test_volumes).join(format!("{name}.npy.h5"));
            write_h5_volume(file, &image, &volumes.label)?;
            test_list += &format!("{name}\n");
            counts.test_cases += 1;
        } else {
            let slices = image.voxels().axis_iter(Axis(0));
            let labels = volumes.label.voxels().axis_iter(Axis(0));
            for (i, (image, label)) in slices.zip(labels).enumerate() {
                let slice = format!("{name}_slice{i:03}");
                let file = destination.join(&layout.train_slices).join(format!("{slice}.npz"));
                write_npz_slice(file, image, label)?;
                train_list += &format!("{slice}\n");
                counts.train_slices += 1;
            }
            counts.train_cases += 1;
        }
        progress(case);
    }
    for (list, text) in [(&layout.train_list, train_list), (&layout.test_list, test_list)] {
        write_text(&destination.join(list), &text)?;
    }
    Ok(counts)
}

fn write_text(file: &Path, text: &str) -> Result<(), WriteError> {
    write_file(file, "list.txt", |temporary| std::fs::write(temporary, text))
}
