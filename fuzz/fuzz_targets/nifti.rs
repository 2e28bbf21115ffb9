//! Reads arbitrary bytes as a NIfTI file, uncompressed and compressed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sam_lst_datasets::{LabelMap, Orientation, read_nifti_image, read_nifti_labels};
use std::io::Write;

fuzz_target!(|bytes: &[u8]| {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("write to memory");
    for bytes in [bytes, &encoder.finish().expect("write to memory")] {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        std::fs::write(file.path(), bytes).expect("write file");
        let _ = read_nifti_image(file.path(), Orientation::Axial);
        let _ = read_nifti_labels(
            file.path(),
            "LPS".parse().expect("an orientation"),
            &LabelMap::identity(9),
        );
    }
});
