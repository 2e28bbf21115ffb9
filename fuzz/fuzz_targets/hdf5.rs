//! Any bytes as an HDF5 file.
#![no_main]

use datasets::{LabelMap, read_h5_volume};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let file = tempfile::NamedTempFile::new().expect("room");
    std::fs::write(file.path(), bytes).expect("room");
    let _ = read_h5_volume(file.path(), &LabelMap::identity(9));
});
