//! Reads arbitrary bytes as the DICOM segmentation or structure set of a small image.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sam_lst_datasets::ndarray::Array3;
use sam_lst_datasets::{Geometry, Volume, inspect, write_nifti};
use std::sync::LazyLock;

/// A folder with one case, whose image does not change.
static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("temporary folder");
    let affine = [[2.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0]];
    let image = Volume::new(Array3::<i16>::zeros((3, 34, 36)), Some(Geometry::new([3, 34, 36], affine)));
    std::fs::create_dir(folder.path().join("case")).expect("create folder");
    write_nifti(folder.path().join("case/image.nii"), &image).expect("write image");
    folder
});

fuzz_target!(|bytes: &[u8]| {
    let folder = FOLDER.path().join("case/labels");
    let _ = std::fs::create_dir(&folder);
    std::fs::write(folder.join("labels.dcm"), bytes).expect("write file");
    let _ = inspect(FOLDER.path(), |_, _| {});
});
