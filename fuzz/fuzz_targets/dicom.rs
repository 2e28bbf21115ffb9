//! Reads arbitrary bytes as the only slice of a DICOM series.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sam_lst_datasets::{Orientation, read_dicom_image};

fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir().expect("temporary folder");
    std::fs::write(folder.path().join("slice.dcm"), bytes).expect("write file");
    let _ = read_dicom_image(folder.path(), Orientation::default());
});
