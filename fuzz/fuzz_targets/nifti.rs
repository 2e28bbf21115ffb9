//! Any bytes as a NIfTI file, as they are and compressed.
#![no_main]

use datasets::{LabelMap, Orientation, read_nifti_image, read_nifti_labels};
use libfuzzer_sys::fuzz_target;
use std::io::Write;

fuzz_target!(|bytes: &[u8]| {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("memory");
    for bytes in [bytes, &encoder.finish().expect("memory")] {
        let file = tempfile::NamedTempFile::new().expect("room");
        std::fs::write(file.path(), bytes).expect("room");
        let _ = read_nifti_image(file.path(), Orientation::Axial);
        let _ = read_nifti_labels(file.path(), "LPS".parse().expect("one"), &LabelMap::identity(9));
    }
});
