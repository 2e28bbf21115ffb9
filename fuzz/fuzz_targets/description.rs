//! Any text as the description of a dataset: what is taken is written and read again.
#![no_main]

use datasets::DatasetDescription;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(description) = DatasetDescription::from_toml(text) {
        let again = DatasetDescription::from_toml(&description.to_toml());
        assert_eq!(again.expect("just written"), description);
        for class in description.report_classes() {
            let _ = (description.organ(class), description.color(class));
        }
    }
});
