//! Synapse from raw files and in the preprocessed form, compared with files by numpy and h5py.

use crate::support::fixture;
use sam_lst_datasets::ndarray::Axis;
use sam_lst_datasets::{
    CaseVolumes, Dataset, DatasetDescription, LabelMap, SliceStore, Split, prepare, read_h5_volume,
    read_npz_slice,
};
use std::collections::BTreeSet;
use std::path::Path;

fn raw() -> Dataset {
    Dataset::open(fixture("synapse"), DatasetDescription::synapse()).expect("fixture")
}

fn read(dataset: &Dataset, name: &str) -> CaseVolumes {
    let case = dataset.all_cases().iter().find(|case| case.name == name).expect("fixture");
    dataset.read(case).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn raw_cases_match_the_common_preprocessing() {
    let dataset = raw();
    let names = |split| -> Vec<&str> {
        dataset.cases(split).expect("fixture").iter().map(|case| case.name.as_str()).collect()
    };
    assert_eq!(names(Split::Train), ["0005"]);
    assert_eq!(names(Split::Test), ["0001"]);
    let classes = LabelMap::identity(9);
    let prepared = fixture("synapse/prepared");
    let test = read(&dataset, "0001");
    let (image, label) =
        read_h5_volume(prepared.join("test_vol_h5/case0001.npy.h5"), &classes).expect("h5py's");
    assert_eq!(test.label.voxels(), label.voxels());
    for (ours, theirs) in test.image.voxels().iter().zip(image.voxels()) {
        assert!((ours - theirs).abs() <= 1e-6);
    }
    let train = read(&dataset, "0005");
    for i in 0..3 {
        let file = prepared.join(format!("train_npz/case0005_slice{i:03}.npz"));
        let slice = read_npz_slice(file, &classes).expect("numpy's");
        assert_eq!(train.label.voxels().index_axis(Axis(0), i), slice.label);
        for (ours, theirs) in train.image.slice(i).iter().zip(&slice.image) {
            assert!((ours - theirs).abs() <= 1e-6);
        }
    }
    assert_eq!(train.image.spacing_mm(), Some([3.0, 0.75, 0.75]));
}

#[test]
fn all_storage_variants_of_slices_and_volumes_are_read() {
    let classes = LabelMap::identity(9);
    let prepared = fixture("synapse/prepared");
    let plain = read_npz_slice(prepared.join("train_npz/case0005_slice000.npz"), &classes)
        .expect("numpy's");
    for name in ["compressed.npz", "fortran.npz", "big_endian.npz"] {
        assert_eq!(
            read_npz_slice(prepared.join(name), &classes).expect("numpy's"),
            plain,
            "{name}"
        );
    }
    let (image, label) = read_h5_volume(prepared.join("chunked.npy.h5"), &classes).expect("h5py's");
    assert_eq!(image.voxels().index_axis(Axis(0), 0), plain.image.index_axis(Axis(0), 0));
    assert_eq!(label.voxels().index_axis(Axis(0), 0), plain.label);
    assert_eq!(image.spacing_mm(), None);
}

fn files(folder: &Path) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let entry = entry.expect("a folder");
        if entry.path().is_dir() {
            let below = files(&entry.path());
            names
                .extend(below.iter().map(|name| format!("{}/{name}", entry.file_name().display())));
        } else {
            names.insert(entry.file_name().display().to_string());
        }
    }
    names
}

#[test]
fn prepared_files_are_read_back_unchanged() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dataset = raw();
    let mut done = Vec::new();
    let count =
        prepare(&dataset, folder.path(), |case| done.push(case.name.clone())).expect("write files");
    assert_eq!((count.train_cases, count.train_slices, count.test_cases), (1, 3, 1));
    assert_eq!(done, ["0001", "0005"]);
    let names = [
        "lists/lists_Synapse/test_vol.txt",
        "lists/lists_Synapse/train.txt",
        "test_vol_h5/case0001.npy.h5",
        "train_npz/case0005_slice000.npz",
        "train_npz/case0005_slice001.npz",
        "train_npz/case0005_slice002.npz",
    ];
    assert_eq!(files(folder.path()), names.map(str::to_owned).into());
    let prepared =
        Dataset::open(folder.path(), DatasetDescription::synapse_prepared()).expect("just written");
    for name in ["0001", "0005"] {
        let (ours, raw) = (read(&prepared, name), read(&dataset, name));
        assert_eq!(ours.image.voxels(), raw.image.voxels());
        assert_eq!(ours.label.voxels(), raw.label.voxels());
    }
    assert_eq!(prepared.cases(Split::Test).expect("one case").len(), 1);
}

#[test]
fn slices_are_read_in_any_order_and_cached_for_later_runs() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dataset = raw();
    let cases: Vec<_> = dataset.all_cases().iter().collect();
    let mut ready = Vec::new();
    let store = SliceStore::open(&dataset, &cases, folder.path(), |count| ready.push(count))
        .expect("write files");
    assert_eq!(ready, [1, 2]);
    assert_eq!(store.len(), 6);
    assert!(!store.is_empty());
    for index in [4, 0, 5, 2, 2] {
        let origin = store.origin(index);
        assert_eq!(
            (origin.case.as_str(), origin.slice),
            [("0001", index), ("0005", index.wrapping_sub(3))][index / 3]
        );
        let volumes = read(&dataset, &origin.case);
        let slice = store.slice(index).expect("a cached slice");
        assert_eq!(volumes.image.slice(origin.slice), slice.image);
        assert_eq!(volumes.label.voxels().index_axis(Axis(0), origin.slice), slice.label);
    }
    let times = || -> Vec<_> {
        let entries = std::fs::read_dir(folder.path()).expect("a folder");
        entries
            .map(|entry| {
                entry.expect("a folder").metadata().expect("a file").modified().expect("a time")
            })
            .collect()
    };
    let before = times();
    assert_eq!(before.len(), 2);
    SliceStore::open(&dataset, &cases, folder.path(), |_| {}).expect("cached files");
    assert_eq!(times(), before, "nothing is decoded twice");

    // Another window uses another file, and a damaged file is an error with a remedy.
    let mut other = DatasetDescription::synapse();
    other.intensity = sam_lst_datasets::Intensity::Window([-100.0, 300.0]);
    let other = Dataset::open(fixture("synapse"), other).expect("fixture");
    let all: Vec<_> = other.all_cases().iter().collect();
    SliceStore::open(&other, &all, folder.path(), |_| {}).expect("write files");
    assert_eq!(times().len(), 4);
    for entry in std::fs::read_dir(folder.path()).expect("a folder") {
        let path = entry.expect("a folder").path();
        let bytes = std::fs::read(&path).expect("a file");
        std::fs::write(&path, &bytes[..bytes.len() - 1]).expect("write files");
    }
    let error =
        SliceStore::open(&dataset, &cases, folder.path(), |_| {}).expect_err("a truncated file");
    assert!(
        error.to_string().contains(
            "its length does not match its header; delete the file and it will be created again"
        ),
        "{error}"
    );
}

#[test]
fn prepared_slices_are_not_cached() {
    let folder = tempfile::tempdir().expect("temporary folder");
    prepare(&raw(), folder.path(), |_| {}).expect("write files");
    let prepared =
        Dataset::open(folder.path(), DatasetDescription::synapse_prepared()).expect("just written");
    let cases = prepared.cases(Split::Train).expect("one case");
    let cache = folder.path().join("cache");
    let store = SliceStore::open(&prepared, &cases, &cache, |_| {}).expect("prepared slices");
    assert_eq!(store.len(), 3);
    assert_eq!(store.slice(1).expect("a prepared slice").image.dim(), (1, 6, 7));
    assert!(!cache.exists());
}

#[test]
fn lists_of_other_preprocessings_are_read() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let prepared = fixture("synapse/prepared");
    let copy = |from: &str, to: &str| {
        let to = folder.path().join(to);
        std::fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
        std::fs::copy(prepared.join(from), to).expect("copies");
    };
    let list = |name: &str, lines: &str| {
        let file = folder.path().join("lists/lists_Synapse").join(name);
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
        std::fs::write(file, lines).expect("writes");
    };
    for (to, from) in [("case_002_sliceED_3", 0), ("case_002_sliceED_1", 1), ("p7_v2_slice_12", 2)]
    {
        let from = format!("train_npz/case0005_slice00{from}.npz");
        copy(&from, &format!("train_npz/{to}.npz"));
    }
    copy("test_vol_h5/case0001.npy.h5", "test_vol_h5/patient9.h5");
    copy("test_vol_h5/case0001.npy.h5", "test_vol_h5/case10.hdf5");
    list("train.txt", "case_002_sliceED_3.npz\ncase_002_sliceED_1\n\np7_v2_slice_12\n");
    list("test_vol.txt", "patient9.h5\ncase10\n");
    let dataset = Dataset::open(folder.path(), DatasetDescription::synapse_prepared());
    let dataset = dataset.expect("lists");
    let names: Vec<(&str, usize)> = dataset
        .all_cases()
        .iter()
        .map(|case| (case.name.as_str(), case.files.paths().len()))
        .collect();
    assert_eq!(
        names,
        [("002_ED", 2), ("10", 1), ("p7_v2", 1), ("patient9", 1)]
            .into_iter()
            .collect::<std::collections::BTreeMap<_, _>>()
            .into_iter()
            .collect::<Vec<_>>()
    );
    // Slices are in the order of their numbers.
    let case = &dataset.all_cases()[0];
    assert!(case.files.paths()[0].ends_with("case_002_sliceED_1.npz"), "{case:?}");
}
