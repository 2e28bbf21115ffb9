//! Reads arbitrary text as a dataset description; valid ones must survive a round trip.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sam_lst_datasets::DatasetDescription;

fuzz_target!(|text: &str| {
    if let Ok(description) = DatasetDescription::from_toml(text) {
        let again = DatasetDescription::from_toml(&description.to_toml());
        assert_eq!(again.expect("a valid description"), description);
        for class in description.report_classes() {
            let _ = (description.organ(class), description.color(class));
        }
    }
});
