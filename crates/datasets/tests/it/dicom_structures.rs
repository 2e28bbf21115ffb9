//! DICOM segmentations, structure sets and enhanced images, compared with highdicom, scikit-image and
//! SimpleITK.

use crate::bad_input::damaged;
use crate::support::{Cases, collect_warnings, fixture, warnings_with};
use proptest::prelude::*;
use sam_lst_datasets::ndarray::Array3;
use sam_lst_datasets::{
    Dataset, DatasetDescription, Orientation, RecognitionError, SegmentationType, SliceStore,
    inspect, read_dicom_image, read_image, read_nifti_labels, recognize_layout,
    write_dicom_segmentation, write_nifti,
};
use std::path::Path;
use tempfile::TempDir;

/// A dataset with one case: the series and a file with its labels.
fn case_with(label: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().join("p1");
    std::fs::create_dir_all(root.join("ct")).expect("a folder");
    for entry in std::fs::read_dir(fixture("dicom_structures/series")).expect("a fixture") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), root.join("ct").join(entry.file_name())).expect("copies");
    }
    let label_file = fixture("dicom_structures").join(label);
    std::fs::copy(label_file, root.join("labels.dcm")).expect("copies");
    folder
}

/// A description of two organs, by the names of their structures.
fn description(orientation: &str, organs: [&str; 2], more: &str) -> DatasetDescription {
    let [first, second] = organs;
    DatasetDescription::from_toml(&format!(
        "name = \"x\"\nintensity = \"stored\"\norientation = \"{orientation}\"\n{more}\n\
         layout.files = {{ images = \"{{case}}\", labels = \"{{case}}\" }}\n\
         organs = [{{ name = \"{first}\", labels = [1] }}, {{ name = \"{second}\", labels = [2] }}]"
    ))
    .expect("valid")
}

fn labels(root: &Path, description: DatasetDescription) -> Result<Array3<u8>, String> {
    let dataset = Dataset::open(root, description).map_err(|error| error.to_string())?;
    let volumes = dataset.read(&dataset.all_cases()[0]).map_err(|error| error.to_string())?;
    Ok(volumes.label.into_voxels())
}

/// The classes of two masks, of which the first stays where they overlap.
fn classes(cases: &Cases, names: [&str; 2]) -> Array3<u8> {
    let [first, second] = names.map(|name| cases.volume(name));
    Array3::from_shape_fn(first.dim(), |voxel| match (first[voxel] != 0.0, second[voxel] != 0.0) {
        (true, _) => 1,
        (false, true) => 2,
        (false, false) => 0,
    })
}

#[test]
fn segmentations_of_all_types_equal_highdicom_s() {
    collect_warnings();
    let cases = Cases::open("dicom_structures");
    let expected = classes(&cases, ["liver", "kidney"]);
    for name in ["binary.dcm", "fractional.dcm", "label_map.dcm"] {
        let folder = case_with(name);
        // Names whose words are separated otherwise are the same.
        let found = labels(folder.path(), description("stored", ["liver", "left kidney"], ""));
        assert_eq!(found, Ok(expected.clone()), "{name}");
        let overlap = warnings_with(&folder.path().join("p1").display().to_string());
        let overlap = overlap.iter().filter(|text| text.contains("in the masks of several organs"));
        assert_eq!(overlap.count(), usize::from(name != "label_map.dcm"), "{name}");
    }
}

#[test]
fn regions_of_structure_sets_equal_scikit_image_s() {
    let cases = Cases::open("dicom_structures");
    let folder = case_with("structure_set.dcm");
    let expected = classes(&cases, ["ring", "star"]);
    let found = labels(folder.path(), description("stored", ["Ring", "star"], ""));
    assert_eq!(found, Ok(expected));
}

#[test]
fn structures_follow_the_orientation_of_the_image() {
    for name in ["binary.dcm", "structure_set.dcm"] {
        let folder = case_with(name);
        let organs = if name == "binary.dcm" { ["Liver", "left_kidney"] } else { ["Ring", "Star"] };
        let count =
            |voxels: &Array3<u8>, class: u8| voxels.iter().filter(|&&voxel| voxel == class).count();
        let stored = labels(folder.path(), description("stored", organs, "")).expect("labels");
        for orientation in ["LPS", "RAI", "ASR", "SLP"] {
            let turned = labels(folder.path(), description(orientation, organs, ""));
            let turned = turned.expect("labels");
            for class in [1, 2] {
                assert_eq!(count(&turned, class), count(&stored, class), "{name} {orientation}");
            }
            // The image turns alike: its values under each label are the same.
            let sum = |orientation: &str, labels: &Array3<u8>| -> f64 {
                let orientation: Orientation = orientation.parse().expect("an orientation");
                let image = read_dicom_image(folder.path().join("p1/ct"), orientation);
                let image = image.expect("a series");
                let voxels = image.voxels().iter().zip(labels);
                voxels.map(|(&voxel, &label)| f64::from(voxel) * f64::from(label)).sum()
            };
            assert_eq!(sum(orientation, &turned), sum("stored", &stored), "{name} {orientation}");
        }
    }
}

#[test]
fn an_enhanced_file_reads_as_its_series() {
    let cases = Cases::open("dicom_structures");
    let read = |name: &str| {
        let folder = fixture("dicom_structures").join(name);
        read_dicom_image(folder, Orientation::Stored).expect(name)
    };
    let (series, enhanced) = (read("series"), read("enhanced"));
    let expected = |name: &str| cases.volume(name).mapv(|voxel| voxel as f32);
    assert_eq!(series.voxels(), expected("series"));
    assert_eq!(enhanced.voxels(), expected("enhanced"));
    let affine = |volume: &sam_lst_datasets::Volume<f32>| {
        volume.geometry().expect("DICOM has one").affine_mm()
    };
    assert_eq!(affine(&series), affine(&enhanced));
}

#[test]
fn folders_of_series_and_structures_are_recognised_with_names() {
    let folder = case_with("binary.dcm");
    // A second patient with a structure set.
    let other = case_with("structure_set.dcm");
    std::fs::rename(other.path().join("p1"), folder.path().join("p2")).expect("moves");
    let inspection = inspect(folder.path(), |_, _| {}).expect("recognised");
    assert!(inspection.layout.contains("SEG or RTSTRUCT"), "{}", inspection.layout);
    let organs: Vec<&str> =
        inspection.description.organs.iter().map(|organ| organ.name.as_str()).collect();
    assert_eq!(organs, ["Liver", "Ring", "left_kidney", "star"]);
    let case = &inspection.cases[0];
    assert_eq!((case.name.as_str(), case.shape), ("p1", [26, 22, 5]));
    let cases = Cases::open("dicom_structures");
    let voxels = |name: &str| cases.volume(name).iter().filter(|&&voxel| voxel != 0.0).count();
    assert_eq!(case.labels.get(&1), Some(&voxels("liver")));
    assert_eq!(case.labels.get(&3), Some(&voxels("kidney")));
    let dataset = Dataset::open(folder.path(), inspection.description).expect("the same folder");
    for case in dataset.all_cases() {
        dataset.read(case).unwrap_or_else(|error| panic!("{error}"));
    }
    // The same, recognised without reading.
    assert!(recognize_layout(folder.path()).is_ok());
    let series = tempfile::tempdir().expect("a folder");
    std::fs::rename(folder.path().join("p1/ct"), series.path().join("ct")).expect("moves");
    let error = recognize_layout(series.path()).expect_err("no labels");
    assert!(matches!(error, RecognitionError::Unknown { .. }), "{error}");
}

#[test]
fn cached_slices_depend_on_the_names_of_structures() {
    let (folder, cache) = (case_with("binary.dcm"), tempfile::tempdir().expect("a folder"));
    let count = |organs: [&str; 2]| {
        let description = description("LPS", organs, "ignored_labels = \"others\"");
        let dataset = Dataset::open(folder.path(), description).expect("a case");
        let cases: Vec<_> = dataset.all_cases().iter().collect();
        let store = SliceStore::open(&dataset, &cases, &cache, |_| {}).expect("cached");
        let labels = (0..store.len()).map(|i| store.slice(i).expect("a slice").label);
        labels.map(|label| label.iter().filter(|&&class| class == 1).count()).sum::<usize>()
    };
    let cases = Cases::open("dicom_structures");
    let voxels = |name: &str| cases.volume(name).iter().filter(|&&voxel| voxel != 0.0).count();
    assert_eq!(count(["liver", "spleen"]), voxels("liver"));
    assert_eq!(count(["left kidney", "spleen"]), voxels("kidney"));
}

#[test]
fn structures_that_do_not_fit_are_refused() {
    let folder = case_with("binary.dcm");
    let root = folder.path();
    let described = |organs, more| labels(root, description("LPS", organs, more));
    let error = described(["liver", "spleen"], "").expect_err("the kidney is not described");
    assert!(error.contains("`left_kidney` is not in the dataset description"), "{error}");
    let liver = described(["liver", "spleen"], "ignored_labels = \"others\"").expect("ignored");
    assert!(liver.iter().all(|&class| class < 2));

    // On the grid of another image.
    for entry in std::fs::read_dir(root.join("p1/ct")).expect("a folder") {
        std::fs::remove_file(entry.expect("an entry").path()).expect("removes");
    }
    for entry in std::fs::read_dir(fixture("dicom/tilted")).expect("a fixture") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), root.join("p1/ct").join(entry.file_name())).expect("copies");
    }
    let error = described(["liver", "left kidney"], "").expect_err("another grid");
    assert!(error.contains("labels.dcm") && error.contains("resample"), "{error}");

    let folder = case_with("binary.dcm");
    let root = folder.path().join("p1");
    let expect = |expected: &str| {
        let description = description("LPS", ["liver", "left kidney"], "");
        let error = labels(folder.path(), description).expect_err(expected);
        assert!(error.contains(expected), "{error}");
    };
    let structure_set = fixture("dicom_structures/structure_set.dcm");
    std::fs::copy(&structure_set, root.join("more.dcm")).expect("copies");
    expect("1 structure sets and 1 segmentations");
    std::fs::copy(root.join("labels.dcm"), root.join("more.dcm")).expect("copies");
    expect("several of its segmentations have a structure `Liver`");
    std::fs::remove_file(root.join("more.dcm")).expect("removes");
    let bytes = std::fs::read(root.join("labels.dcm")).expect("a file");
    std::fs::write(root.join("labels.dcm"), &bytes[..bytes.len() - 100]).expect("writes");
    expect("labels.dcm");
    std::fs::remove_file(root.join("labels.dcm")).expect("removes");
    expect("no DICOM segmentation (SEG) and no structure set (RTSTRUCT)");
}

/// Whether the program that checks DICOM files finds no error in one; `None` where it is not installed.
fn dciodvfy(file: &Path) -> Option<Vec<String>> {
    let output = std::process::Command::new("dciodvfy").arg(file).output().ok()?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let is_error = |line: &&str| line.starts_with("Error") || line.starts_with("Abort");
    Some(text.lines().filter(is_error).map(str::to_owned).collect())
}

#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn print_skipped(reason: &str) {
    eprintln!("skipped: {reason}");
}

#[test]
fn written_segmentations_are_read_back_and_valid() {
    let cases = Cases::open("dicom_structures");
    let stored = classes(&cases, ["liver", "kidney"]);
    // An empty segmentation is valid, too.
    for (masks, name) in [(stored.clone(), "two"), (Array3::zeros(stored.dim()), "none")] {
        for kind in [SegmentationType::Binary, SegmentationType::LabelMap] {
            for (series, orientation) in
                [("series", "stored"), ("series", "ASR"), ("enhanced", "RAI")]
            {
                let folder = tempfile::tempdir().expect("a folder");
                let root = folder.path().join("p1");
                std::fs::create_dir_all(root.join("ct")).expect("a folder");
                for entry in
                    std::fs::read_dir(fixture("dicom_structures").join(series)).expect("a fixture")
                {
                    let entry = entry.expect("an entry");
                    std::fs::copy(entry.path(), root.join("ct").join(entry.file_name()))
                        .expect("copies");
                }
                let organs = ["Liver", "left kidney"];
                let description = description(orientation, organs, "ignored_labels = [7]");
                // The classes in the orientation in which a model sees the image.
                let image = read_image(root.join("ct"), description.orientation).expect("a series");
                let nifti = folder.path().join("labels.nii");
                let in_order = read_image(root.join("ct"), Orientation::Stored).expect("a series");
                write_nifti(&nifti, &in_order.with_voxels(masks.clone())).expect("writes");
                let map = description.label_map();
                let turned =
                    read_nifti_labels(&nifti, description.orientation, &map).expect("reads");
                let turned = image.with_voxels(turned.into_voxels());
                let file = root.join("labels.dcm");
                write_dicom_segmentation(&file, root.join("ct"), &turned, &description, kind)
                    .unwrap_or_else(|error| panic!("{error}"));
                let again = labels(folder.path(), description).expect("just written");
                assert_eq!(&again, turned.voxels(), "{name} {kind:?} {series} {orientation}");
                // The installed version may not know label maps.
                match dciodvfy(&file).filter(|_| kind == SegmentationType::Binary) {
                    Some(errors) => assert!(errors.is_empty(), "{errors:?}"),
                    None => print_skipped(&format!("no dciodvfy for {kind:?}")),
                }
            }
        }
    }
}

#[test]
fn a_segmentation_needs_a_series_with_uids_and_its_grid() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("out.dcm");
    let description = description("stored", ["a", "b"], "");
    let write = |series: &str, of: &str| {
        let image = read_image(fixture(of), Orientation::Stored).expect("a series");
        let labels = image.with_voxels(Array3::zeros(image.shape()));
        let kind = SegmentationType::Binary;
        let written = write_dicom_segmentation(&file, fixture(series), &labels, &description, kind);
        written.expect_err("refused").to_string()
    };
    let error = write("dicom/without_uids", "dicom/without_uids");
    assert!(error.contains("empty UIDs") && error.contains(".nii.gz"), "{error}");
    let error = write("dicom_structures/series", "dicom/plain");
    assert!(error.contains("not on the grid of the series"), "{error}");
    assert!(!file.exists());
}

proptest! {
    // Each case writes eight files and decodes an image four times.
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn readers_of_structures_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        for name in ["binary.dcm", "fractional.dcm", "label_map.dcm", "structure_set.dcm"] {
            let folder = case_with(name);
            let file = folder.path().join("p1/labels.dcm");
            let whole = std::fs::read(&file).expect("a fixture");
            std::fs::write(&file, damaged(whole, &changes, cut)).expect("writes");
            let organs = if name == "structure_set.dcm" { ["ring", "star"] } else { ["liver", "left kidney"] };
            let _ = labels(folder.path(), description("stored", organs, "ignored_labels = \"others\""));
        }
    }
}
