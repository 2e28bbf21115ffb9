//! Synthetic phantoms.

use sam_lst_datasets::{Dataset, DatasetDescription, PhantomConfig, Split};
use std::collections::BTreeMap;

#[test]
fn patients_depend_on_the_seed_and_not_on_the_number_of_threads() {
    let config = PhantomConfig::small(4);
    let first = config.patient(5);
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    assert_eq!(one_thread.install(|| config.patient(5)), first);
    assert_ne!(config.patient(6).1.voxels(), first.1.voxels());
    assert_ne!(PhantomConfig::small(5).patient(5).1.voxels(), first.1.voxels());
}

#[test]
fn patients_vary_may_lack_organs_and_have_overlapping_contrasts() {
    let mut organs: BTreeMap<u8, Vec<(usize, f64)>> = BTreeMap::new();
    const PATIENTS: u64 = 24;
    for number in 0..PATIENTS {
        let (image, label) = PhantomConfig::small(1).patient(number);
        let mut sums: BTreeMap<u8, (usize, f64)> = BTreeMap::new();
        for (units, label) in image.voxels().iter().zip(label.voxels()) {
            let (count, sum) = sums.entry(*label).or_default();
            *count += 1;
            *sum += f64::from(*units);
        }
        for (label, (count, sum)) in sums {
            organs.entry(label).or_default().push((count, sum / count as f64));
        }
    }
    for label in [1, 2, 3, 4, 6, 7, 8, 11] {
        let sizes: Vec<f64> = organs[&label].iter().map(|(count, _)| *count as f64).collect();
        let largest = sizes.iter().copied().fold(0.0, f64::max);
        let smallest = sizes.iter().copied().fold(f64::INFINITY, f64::min);
        assert!(smallest >= 4.0 && largest / smallest > 1.2, "label {label}: {sizes:?}");
    }
    let absent = PATIENTS as usize - organs[&4].len();
    assert!(
        (1..PATIENTS as usize / 2).contains(&absent),
        "{absent} patients without a gallbladder"
    );
    // Intensity alone does not distinguish organs: the ranges of liver, spleen and pancreas
    // overlap.
    let range = |label: u8| {
        let means = organs[&label].iter().map(|(_, mean)| *mean);
        (means.clone().fold(f64::INFINITY, f64::min), means.fold(f64::NEG_INFINITY, f64::max))
    };
    for (a, b) in [(6, 1), (6, 11), (1, 11), (2, 8)] {
        let ((a_low, a_high), (b_low, b_high)) = (range(a), range(b));
        assert!(a_low < b_high && b_low < a_high, "labels {a} and {b} do not overlap");
    }
}

#[test]
fn written_datasets_have_the_synapse_layout() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let config = PhantomConfig {
        shape: [6, 20, 24],
        spacing_mm: [30.0, 18.0, 16.0],
        ..PhantomConfig::small(2)
    };
    let mut done = 0;
    let names = config.write_dataset(folder.path(), 20, 2, |_| done += 1).expect("write files");
    assert_eq!((names.len(), done), (22, 22));
    assert_eq!(names[..4], ["0001", "0002", "0005", "0006"]);
    let dataset =
        Dataset::open(folder.path(), DatasetDescription::synapse()).expect("just written");
    assert_eq!(dataset.cases(Split::Train).expect("20 cases").len(), 20);
    assert_eq!(dataset.cases(Split::Test).expect("2 cases").len(), 2);
    let volumes = dataset.read(&dataset.all_cases()[0]).expect("just written");
    assert_eq!(volumes.image.shape(), [6, 20, 24]);
    assert_eq!(volumes.image.spacing_mm(), Some([30.0, 18.0, 16.0]));
    assert!(volumes.image.voxels().iter().all(|voxel| (0.0..=1.0).contains(voxel)));
    assert!(volumes.label.voxels().iter().any(|&class| class == 5), "a liver");
}
