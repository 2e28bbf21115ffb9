use sam_lst_datasets::{
    Dataset, DatasetDescription, DatasetError, PhantomConfig, Validation, WriteError, replace_file,
};
use std::path::Path;

/// Synthetic patients for training and validation, and for testing.
const PATIENTS: [usize; 2] = [15, 4];
/// File that marks a folder of phantoms as complete. Its name changes with the phantoms, so that
/// those of an earlier version are replaced.
const MARKER: &str = "complete-3";

/// Opens the dataset of the demo: 19 synthetic phantoms, of which 4 are test cases. Writes them to
/// `folder` unless they are there. `progress` receives the number of written cases and of all.
///
/// # Errors
///
/// [`DatasetError`] if a file cannot be written or read.
pub fn demo_dataset(
    folder: impl AsRef<Path>,
    mut progress: impl FnMut(usize, usize),
) -> Result<Dataset, DatasetError> {
    let folder = folder.as_ref();
    let marker = folder.join(MARKER);
    if !marker.is_file() {
        let [train, test] = PATIENTS;
        let mut done = 0;
        progress(done, train + test);
        PhantomConfig::demo(0).write_dataset(folder, train, test, |_| {
            done += 1;
            progress(done, train + test);
        })?;
        replace_file(&marker, MARKER, |temporary| std::fs::write(temporary, ""))
            .map_err(|source| WriteError::Io { file: marker.clone(), source })?;
    }
    let mut description = DatasetDescription::synapse();
    description.name = "synthetic phantoms".to_owned();
    description.split.validation = Validation::Fraction { fraction: 0.2, seed: 0 };
    Dataset::open(folder, description)
}
