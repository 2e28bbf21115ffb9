//! The common preprocessed form of Synapse, written.

use crate::{Case, Dataset, DatasetError, Split, WriteError, write_h5_volume, write_npz_slice};
use crate::{PreparedLayout, write::write_beside};
use ndarray::Axis;
use std::path::Path;

/// What [`prepare`] has written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Prepared {
    /// Training cases, those of the validation split among them.
    pub train_cases: usize,
    /// Their slices.
    pub train_slices: usize,
    /// Test cases.
    pub test_cases: usize,
}

/// Writes a dataset as the published pipelines expect Synapse: `train_npz/caseNNNN_sliceDDD.npz`,
/// `test_vol_h5/caseNNNN.npy.h5`, all arrays `float32`, and the lists that name them. One case is in memory at a time.
/// `progress` is told each case when it is done.
///
/// Files that are there already are written anew.
///
/// # Errors
///
/// [`DatasetError`], naming the file, if a case cannot be read or the disk does not take one.
pub fn prepare(
    dataset: &Dataset,
    destination: impl AsRef<Path>,
    mut progress: impl FnMut(&Case),
) -> Result<Prepared, DatasetError> {
    let destination = destination.as_ref();
    let layout = PreparedLayout::default();
    let mut prepared = Prepared::default();
    let (mut train_list, mut test_list) = (String::new(), String::new());
    for case in dataset.all_cases() {
        let volumes = dataset.read(case)?;
        let name = format!("case{}", case.name);
        if case.split == Split::Test {
            let file = destination
                .join(&layout.test_volumes)
                .join(format!("{name}.npy.h5"));
            write_h5_volume(file, &volumes.image, &volumes.label)?;
            test_list += &format!("{name}\n");
            prepared.test_cases += 1;
        } else {
            let slices = volumes.image.voxels().axis_iter(Axis(0));
            let labels = volumes.label.voxels().axis_iter(Axis(0));
            for (i, (image, label)) in slices.zip(labels).enumerate() {
                let slice = format!("{name}_slice{i:03}");
                let file = destination
                    .join(&layout.train_slices)
                    .join(format!("{slice}.npz"));
                write_npz_slice(file, image, label)?;
                train_list += &format!("{slice}\n");
                prepared.train_slices += 1;
            }
            prepared.train_cases += 1;
        }
        progress(case);
    }
    for (list, text) in [
        (&layout.train_list, train_list),
        (&layout.test_list, test_list),
    ] {
        write_text(&destination.join(list), &text)?;
    }
    Ok(prepared)
}

fn write_text(file: &Path, text: &str) -> Result<(), WriteError> {
    write_beside(file, "list.txt", |beside| std::fs::write(beside, text))
}
