//! Reads arbitrary bytes as a picture, an NRRD file or a MetaImage file, whichever they begin as.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sam_lst_datasets::{LabelMap, Orientation, read_geometry, read_image, read_labels};
use std::collections::BTreeMap;

fuzz_target!(|bytes: &[u8]| {
    let file = tempfile::NamedTempFile::new().expect("temporary file");
    std::fs::write(file.path(), bytes).expect("write file");
    let colors = BTreeMap::from([("#ff0000".to_owned().try_into().expect("a colour"), 1)]);
    for colors in [BTreeMap::new(), colors] {
        let labels = LabelMap::identity(9);
        let _ = read_labels(file.path(), Orientation::LPS, &labels, &colors);
    }
    let _ = read_image(file.path(), Orientation::LPS);
    let _ = read_geometry(file.path(), Orientation::LPS);
});
