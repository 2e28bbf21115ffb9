//! Reads arbitrary bytes as an npz file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sam_lst_datasets::{LabelMap, read_npz_slice};

fuzz_target!(|bytes: &[u8]| {
    let file = tempfile::NamedTempFile::new().expect("temporary file");
    std::fs::write(file.path(), bytes).expect("write file");
    let _ = read_npz_slice(file.path(), &LabelMap::identity(9));
});
