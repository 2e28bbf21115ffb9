//! DICOM series, compared with SimpleITK.

use crate::support::{Cases, collect_warnings, fixture, warnings_with};
use sam_lst_datasets::{
    Case, Dataset, DatasetDescription, Geometry, LabelMap, Orientation, SliceStore,
    read_dicom_image, read_geometry, read_image, read_nifti_image, read_nifti_labels, write_nifti,
};
use std::path::Path;
use tempfile::TempDir;

const SERIES: [&str; 7] =
    ["plain", "implicit", "without_uids", "rle", "jpeg_lossless", "jpeg_2000", "tilted"];

#[test]
fn series_of_all_kinds_match_simple_itk() {
    collect_warnings();
    let cases = Cases::open("dicom");
    for name in SERIES {
        let folder = fixture("dicom").join(name);
        let volume = read_dicom_image(&folder, Orientation::Stored)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let expected = cases.volume(&format!("{name}.voxels")).mapv(|voxel| voxel as f32);
        assert_eq!(volume.voxels(), &expected, "{name}");
        let affine = volume.geometry().expect("DICOM has one").affine_mm();
        let (expected, _) = cases.numbers(&format!("{name}.affine"));
        for (ours, theirs) in affine.as_flattened().iter().zip(expected) {
            assert!((ours - theirs).abs() <= 2e-5, "{name}: {ours} differs from {theirs}");
        }
        let tilted = !warnings_with(&format!("dicom/{name}: slices are tilted")).is_empty();
        assert_eq!(tilted, name == "tilted");
    }
}

#[test]
fn a_series_is_turned_and_labels_are_written_on_its_grid() {
    let series = fixture("dicom/plain");
    let folder = tempfile::tempdir().expect("a folder");
    for orientation in ["stored", "LPS", "RAS", "ASR"] {
        let orientation: Orientation = orientation.parse().expect("an orientation");
        let image = read_image(&series, orientation).expect("a series");
        let volume = image.with_voxels(image.channel(0).to_owned());
        let geometry = read_geometry(&series, orientation).expect("a series");
        assert_eq!(volume.geometry(), geometry.as_ref());
        // As the same image in NIfTI.
        let file = folder.path().join("image.nii");
        write_nifti(&file, &volume).expect("writes");
        let again = read_nifti_image(&file, orientation).expect("just written");
        assert_eq!(again.voxels(), volume.voxels(), "{orientation}");
        assert_eq!(
            again.geometry().map(Geometry::affine_mm),
            geometry.as_ref().map(Geometry::affine_mm)
        );
        let stored = read_nifti_image(&file, Orientation::Stored).expect("just written");
        let original = read_image(&series, Orientation::Stored).expect("a series");
        assert_eq!(stored.voxels(), original.channel(0), "{orientation}");
        let labels = volume.with_voxels(volume.voxels().mapv(|voxel| u8::from(voxel > 0.0)));
        write_nifti(&file, &labels).expect("writes");
        let map = LabelMap::identity(2);
        let read = read_nifti_labels(&file, orientation, &map).expect("just written");
        assert_eq!(read.voxels(), labels.voxels());
    }
}

/// A copy of the plain series below a folder.
fn copy_series(to: &Path, series: &str) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(fixture("dicom").join(series)).expect("a fixture") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("copies");
    }
}

/// Replaces a text in a file by one of the same length.
fn replace(file: &Path, from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let mut bytes = std::fs::read(file).expect("a file");
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes());
    let at = at.unwrap_or_else(|| panic!("no `{from}` in {}", file.display()));
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    std::fs::write(file, bytes).expect("writes");
}

#[track_caller]
fn refused(folder: &TempDir, parts: &[&str]) {
    let error = read_dicom_image(folder.path(), Orientation::Stored).expect_err("refused");
    let error = error.to_string();
    for part in parts {
        assert!(error.contains(part), "no `{part}` in {error}");
    }
}

#[test]
fn series_that_are_no_volume_are_refused_by_their_cause() {
    // Slices are IM3, IM0 and IM7 in the order of their positions: 100, 102.5 and 105 mm.
    let with = |change: &dyn Fn(&Path)| {
        let folder = tempfile::tempdir().expect("a folder");
        copy_series(folder.path(), "plain");
        change(folder.path());
        folder
    };
    let position = |path: &Path, from: &str, to: &str| replace(path, from, to);
    refused(
        &with(&|at| {
            std::fs::remove_dir_all(at).and_then(|()| std::fs::create_dir(at)).expect("empties")
        }),
        &["it contains no DICOM image"],
    );
    refused(
        &with(&|at| _ = std::fs::copy(at.join("IM0"), at.join("copy")).expect("copies")),
        &["IM0", "copy", "are slices at the same position", "phases"],
    );
    refused(
        &with(&|at| copy_series(&at.join("below"), "without_uids")),
        &["it contains 2 series", "number 7", "3 slices such as"],
    );
    refused(
        &with(&|at| position(&at.join("IM7"), "105.000000", "106.000000")),
        &["IM0 and IM7 are 3.500 mm apart, other slices"],
    );
    refused(
        &with(&|at| replace(&at.join("IM7"), "MONOCHROME2", "MONOCHROME1")),
        &["IM7", "its pixels are MONOCHROME1"],
    );
    refused(
        &with(&|at| replace(&at.join("IM7"), "0.75\\0.8", "0.00\\0.0")),
        &["IM7", "it has no valid Pixel Spacing"],
    );
    let cut = with(&|at| {
        let bytes = std::fs::read(at.join("IM0")).expect("a file");
        std::fs::write(at.join("IM0"), &bytes[..bytes.len() - 100]).expect("writes");
    });
    refused(&cut, &["IM0"]);
    assert!(read_dicom_image("does/not/exist", Orientation::Stored).is_err());
}

#[test]
fn a_missing_slice_is_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    copy_series(folder.path(), "plain");
    for (file, from, to) in
        [("IM7", "105.000000", "107.500000"), ("IM0", "102.500000", "102.500000")]
    {
        replace(&folder.path().join(file), from, to);
    }
    std::fs::copy(folder.path().join("IM3"), folder.path().join("IM9")).expect("copies");
    replace(&folder.path().join("IM9"), "100.000000", "97.5000000");
    refused(&folder, &["1 slices are missing between IM0 and IM7", "add the missing slices"]);
}

#[test]
fn damaged_displaced_and_foreign_files_are_told_apart() {
    let with = |change: &dyn Fn(&Path)| {
        let folder = tempfile::tempdir().expect("a folder");
        copy_series(folder.path(), "plain");
        change(folder.path());
        folder
    };
    let cut = |at: &Path, length: usize| {
        let bytes = std::fs::read(at.join("IM7")).expect("a file");
        std::fs::write(at.join("IM7"), &bytes[..length]).expect("writes");
    };
    refused(&with(&|at| cut(at, 200)), &["IM7", "it is damaged"]);
    refused(
        &with(&|at| replace(&at.join("IM0"), "-60.250000\\102", "-61.250000\\102")),
        &["IM0", "beside the line of the others"],
    );
    refused(
        &with(&|at| replace(&at.join("IM7"), "\\0.93969262", "\\0.00000000")),
        &["IM7", "no valid Image Orientation"],
    );
    // A picture in the series is refused; hidden files are skipped.
    let folder = with(&|at| {
        std::fs::copy(at.join("IM3"), at.join("screen")).expect("copies");
        replace(&at.join("screen"), "MONOCHROME2", "RGB        ");
        std::fs::write(at.join(".DS_Store"), "x").expect("writes");
    });
    refused(&folder, &["screen", "its pixels are RGB"]);
    std::fs::remove_file(folder.path().join("screen")).expect("removes");
    assert!(read_dicom_image(folder.path(), Orientation::Stored).is_ok());
}

#[test]
fn localizers_are_skipped() {
    let folder = tempfile::tempdir().expect("a folder");
    copy_series(folder.path(), "plain");
    std::fs::copy(folder.path().join("IM3"), folder.path().join("scout")).expect("copies");
    replace(&folder.path().join("scout"), "PRIMARY\\AXIAL", "P\\LOCALIZER  ");
    let volume = read_dicom_image(folder.path(), Orientation::Stored).expect("three slices");
    assert_eq!(volume.shape(), [3, 34, 36]);
}

#[test]
fn a_dataset_has_series_as_images() {
    let folder = tempfile::tempdir().expect("a folder");
    let description = r#"
        name = "series"
        intensity = { window = [-125, 275] }
        layout.nifti = { images = "{case}/ct", labels = "{case}/organs.nii" }
        organs = [{ name = "high", labels = [5] }]
    "#;
    let description = DatasetDescription::from_toml(description).expect("a valid description");
    for case in ["a", "b"] {
        copy_series(&folder.path().join(case).join("ct"), "rle");
        let image = read_image(fixture("dicom/rle"), Orientation::Stored).expect("a series");
        let labels = image.with_voxels(image.channel(0).mapv(|voxel| 5 * u8::from(voxel > 0.0)));
        write_nifti(folder.path().join(case).join("organs.nii"), &labels).expect("writes");
    }
    let dataset = Dataset::open(folder.path(), description).expect("two cases");
    let cases: Vec<&Case> = dataset.all_cases().iter().collect();
    assert_eq!(cases.len(), 2);
    let volumes = dataset.read(cases[0]).expect("on one grid");
    for (&image, &class) in volumes.image.voxels().iter().zip(volumes.label.voxels()) {
        assert_eq!(class, u8::from(image > 125.0 / 400.0));
    }
    // Equal contents in other folders, and slices that are cached.
    let [a, b] = [cases[0], cases[1]].map(|case| case.files.sha256().expect("readable"));
    assert_eq!(a, b);
    let store = SliceStore::open(&dataset, &cases, folder.path().join("cache"), |_| {});
    let store = store.expect("cached");
    assert_eq!((store.len(), store.cases_with_class(1)), (6, 2));
}
