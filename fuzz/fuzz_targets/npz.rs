//! Any bytes as an npz file.
#![no_main]

use datasets::{LabelMap, read_npz_slice};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let file = tempfile::NamedTempFile::new().expect("room");
    std::fs::write(file.path(), bytes).expect("room");
    let _ = read_npz_slice(file.path(), &LabelMap::identity(9));
});
