//! Folders of splits, channels of one file, regions, and labels whose grid is another's.

use crate::inspection::{folder, inspected, patterns, write};
use sam_lst_datasets::ndarray::{Array3, Axis, concatenate};
use sam_lst_datasets::{
    Dataset, DatasetDescription, DatasetError, Geometry, GeometryCheck, Layout, Orientation, Split,
    Validation, Volume, inspect, read_geometry, read_image, read_labels, recognize_layout,
    write_nifti,
};
use std::collections::BTreeMap;
use std::path::Path;

fn names(dataset: &Dataset, split: Split) -> Vec<&str> {
    dataset.cases(split).expect("cases").iter().map(|case| case.name.as_str()).collect()
}

#[test]
fn folders_of_a_split_assign_the_cases() {
    for (layout, expected) in [
        ("SPLIT/images", ["{split}/images/{case}.nii", "{split}/labels/{case}.nii"]),
        ("images/SPLIT", ["images/{split}/{case}.nii", "labels/{split}/{case}.nii"]),
    ] {
        let folder = folder();
        for (split, case) in [("train", "a"), ("train", "b"), ("val", "c"), ("test", "d")] {
            let image = layout.replace("SPLIT", split);
            let label = image.replace("images", "labels");
            write(
                folder.path(),
                &format!("{image}/{case}.nii"),
                &format!("{label}/{case}.nii"),
                &[1],
            );
        }
        let inspection = inspected(folder.path());
        assert_eq!(patterns(&inspection), expected);
        assert!(inspection.layout.ends_with("in a folder for each split"), "{}", inspection.layout);
        let text = inspection.description.to_toml();
        assert_eq!(DatasetDescription::from_toml(&text).expect("valid"), inspection.description);
        let dataset = Dataset::open(folder.path(), inspection.description).expect("four cases");
        assert_eq!(names(&dataset, Split::Train), ["a", "b"]);
        assert_eq!(names(&dataset, Split::Validation), ["c"]);
        assert_eq!(names(&dataset, Split::Test), ["d"]);
    }
}

#[test]
fn equal_names_in_folders_of_a_split_are_different_cases() {
    let folder = folder();
    for (split, case, label) in
        [("train", "1", 1), ("train", "2", 1), ("train", "3", 1), ("test", "1", 2)]
    {
        let file = |kind: &str| format!("{split}/{kind}/{case}.nii");
        write(folder.path(), &file("images"), &file("masks"), &[label]);
    }
    // A folder of a challenge whose labels are secret.
    write(folder.path(), "valid/images/9.nii", "valid/images/10.nii", &[]);
    let inspection = inspected(folder.path());
    assert!(inspection.notes.iter().any(|note| note.contains("folder valid has no labels")));
    let mut description = inspection.description;
    let dataset = Dataset::open(folder.path(), description.clone()).expect("four cases");
    assert_eq!(names(&dataset, Split::Test), ["test_1"]);
    let classes = |name: &str| {
        let case = dataset.all_cases().iter().find(|case| case.name == name).expect("a case");
        dataset.read(case).expect("readable").label.voxels()[(0, 0, 0)]
    };
    assert_eq!((classes("train_1"), classes("test_1")), (1, 2));
    // Validation cases and patients may be named as their files or as the case.
    description.split.validation = Validation::Cases { cases: vec!["2".to_owned()] };
    description.split.patients = BTreeMap::from([("3".to_owned(), "p3".to_owned())]);
    let dataset = Dataset::open(folder.path(), description.clone()).expect("four cases");
    assert_eq!(names(&dataset, Split::Validation), ["train_2"]);
    assert_eq!(dataset.cases(Split::Train).expect("two")[1].patient, "p3");
    // The pattern of patients is that of the files' names, so patient 1 is in two splits.
    description.split.patient_pattern = Some("^([0-9])$".to_owned());
    let error = Dataset::open(folder.path(), description).expect_err("one patient");
    assert!(matches!(error, DatasetError::PatientInTwoSplits { .. }), "{error}");
}

#[test]
fn folders_of_a_split_must_fit_the_layout() {
    let layout = |images: &str, split: &str| {
        format!(
            "name = \"a\"\nintensity = \"stored\"\n[layout.files]\nimages = \"{images}\"\n\
             labels = \"{{split}}/l/{{case}}.nii\"\n[[organs]]\nname = \"a\"\nlabels = [1]\n[split]\n{split}"
        )
    };
    let good = "{split}/i/{case}.nii";
    let folders = "folders = { train = \"a\", test = \"b\" }";
    DatasetDescription::from_toml(&layout(good, folders)).expect("valid");
    for (images, split, expected) in [
        (good, String::new(), "name the folders"),
        ("i/{case}.nii", folders.to_owned(), "write `{split}`"),
        (good, format!("{folders}\ntest = [\"1\"]"), "remove `split.train` and `split.test`"),
        (good, "folders = { test = \"b\" }".to_owned(), "name the folder of the training cases"),
        (good, folders.replace("\"b\"", "\"a\""), "two splits have the same folder"),
    ] {
        let error = DatasetDescription::from_toml(&layout(images, &split)).expect_err(expected);
        assert!(error.to_string().contains(expected), "{error}");
    }
}

/// Writes an image of several channels, whose voxels are the channel's number plus their own, and a
/// label.
fn write_channels(root: &Path, case: &str, channels: u16) {
    write(root, &format!("imagesTr/{case}.nii"), &format!("labelsTr/{case}.nii"), &[1, 3, 2]);
    let file = root.join(format!("imagesTr/{case}.nii"));
    let image = read_image(&file, Orientation::Stored).expect("readable");
    let volumes: Vec<Array3<f32>> =
        (0..channels).map(|channel| image.channel(0).mapv(|v| v + f32::from(channel))).collect();
    let views: Vec<_> = volumes.iter().map(|volume| volume.view()).collect();
    let voxels = concatenate(Axis(0), &views).expect("one shape");
    let affine = image.geometry().expect("a volume").affine_mm();
    let geometry = Geometry::new([2 * usize::from(channels), 3, 4], affine);
    write_nifti(&file, &Volume::new(voxels, Some(geometry))).expect("writes");
    let mut bytes = std::fs::read(&file).expect("readable");
    for (axis, length) in [4, 4, 3, 2, channels].into_iter().enumerate() {
        bytes[40 + 2 * axis..][..2].copy_from_slice(&length.to_le_bytes());
    }
    std::fs::write(&file, bytes).expect("writes");
}

#[test]
fn channels_of_one_file_are_chosen_in_the_layout() {
    let folder = folder();
    let root = folder.path();
    ["a", "b"].iter().for_each(|case| write_channels(root, case, 4));
    let json = r#"{"modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}, "file_ending": ".nii",
        "labels": {"0": "background", "1": "edema", "2": "core", "3": "enhancing"}}"#;
    std::fs::write(root.join("dataset.json"), json.replace("\"file_ending\": \".nii\",", ""))
        .expect("writes");
    // Decathlon's files end in .nii.gz.
    for case in ["a", "b"] {
        for kind in ["imagesTr", "labelsTr"] {
            let file = root.join(kind).join(format!("{case}.nii"));
            let bytes = std::fs::read(&file).expect("readable");
            std::fs::write(root.join(kind).join(format!("{case}.nii.gz")), gzip(&bytes))
                .expect("writes");
            std::fs::remove_file(file).expect("removes");
        }
    }
    let inspection = inspected(root);
    let used = "images have 4 channels; 3 are used (FLAIR, T1w, t1gd)";
    assert!(inspection.notes.iter().any(|note| note.contains(used)), "{:?}", inspection.notes);
    assert_eq!(inspection.cases[0].channels, 3);
    let mut description = inspection.description;
    let file = root.join("imagesTr/a.nii.gz");
    let mut channels = |chosen: &[usize]| {
        description.intensity = sam_lst_datasets::Intensity::Stored;
        let Layout::Files(layout) = &mut description.layout else { panic!("files") };
        layout.channels = chosen.to_vec();
        let image = description.read_image(&file)?;
        Ok::<_, sam_lst_datasets::ReadError>(
            (0..image.channels()).map(|i| image.channel(i)[(0, 0, 0)]).collect::<Vec<_>>(),
        )
    };
    assert_eq!(channels(&[0, 1, 2]).expect("read"), [40.0, 41.0, 42.0]);
    assert_eq!(channels(&[3]).expect("read"), [43.0]);
    assert_eq!(channels(&[3, 1]).expect("read"), [43.0, 41.0, 42.0]); // the third is their mean
    let error = channels(&[4]).expect_err("there are 4").to_string();
    assert!(
        error.contains("channel 4 does not exist, the file's 4 channels are numbered from 0"),
        "{error}"
    );
    let error = channels(&[]).expect_err("several").to_string();
    assert!(
        error.contains("4 volumes along its fourth axis") && error.contains("channels = [0, 1]")
    );
    let geometry = read_geometry(&file, Orientation::LPS).expect("readable").expect("a volume");
    assert_eq!(geometry.shape(), [2, 3, 4]);
    let text = description.to_toml();
    for (from, to, expected) in [
        ("channels = []", "", ""),
        ("images = ", "channels = [0, 1, 2, 3]\nimages = ", "names 4 channels"),
    ] {
        let changed = DatasetDescription::from_toml(&text.replace(from, to));
        assert_eq!(changed.is_ok(), expected.is_empty());
        if let Err(error) = changed {
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("in memory");
    encoder.finish().expect("in memory")
}

#[test]
fn each_label_of_overlapping_regions_is_a_class() {
    let folder = folder();
    write(folder.path(), "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", &[1, 2, 3, 4]);
    let json = r#"{"channel_names": {"0": "T1"}, "file_ending": ".nii.gz", "regions_class_order": [1, 2, 3],
        "labels": {"background": 0, "whole tumour": [1, 2, 3, 4], "core": [2, 3], "enhancing": 3}}"#;
    std::fs::write(folder.path().join("dataset.json"), json).expect("writes");
    let inspection = inspected(folder.path());
    let organs: Vec<(&str, u16)> = inspection
        .description
        .organs
        .iter()
        .map(|organ| (organ.name.as_str(), organ.labels[0]))
        .collect();
    let expected = [("whole tumour", 1), ("core", 2), ("enhancing", 3), ("whole tumour (4)", 4)];
    assert_eq!(organs, expected);
    assert!(inspection.notes.iter().any(|note| note.contains("regions, which overlap")));
    for (change, expected) in [
        // A second name for a label; channels without files.
        (json.replace("\"enhancing\"", "\"a\": 3, \"enhancing\""), "gives label 3 two names"),
        (json.replace("\"T1\"", "\"T1\", \"1\": \"T2\""), "only files of the first"),
    ] {
        std::fs::write(folder.path().join("dataset.json"), change).expect("writes");
        let error = recognize_layout(folder.path()).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn labels_lie_on_the_grid_of_the_other_volume() {
    let folder = folder();
    let root = folder.path();
    write(root, "images/a.nii", "labels/a.nii", &[1, 1, 0, 1]);
    let mut description = inspect(root, |_, _| {}).expect("a case").description;
    description.orientation = Orientation::LPS;
    let map = description.label_map();
    let label = root.join("labels/a.nii");
    let read = |file: &Path| {
        read_labels(file, Orientation::LPS, &map, &BTreeMap::new()).expect("readable")
    };
    let truth = read(&label);
    // The same classes as a picture, of which nobody knows which side is left.
    let flat = Volume::new(truth.voxels().slice_axis(Axis(0), (0..1).into()).to_owned(), None);
    let picture = root.join("a.png");
    sam_lst_datasets::write_labels(&picture, &flat, &description).expect("writes");
    let geometry = Geometry::new([1, 3, 4], truth.geometry().expect("a volume").affine_mm());
    let single = Volume::new(flat.voxels().clone(), Some(geometry));
    let error = description.read_labels_on_grid(&picture, (&label, &single)).expect_err("no place");
    assert!(matches!(error, DatasetError::OneGeometry { .. }), "{error}");
    let error = description.read_labels_on_grid(&label, (&picture, &flat)).expect_err("shapes");
    assert!(matches!(error, DatasetError::Shapes { .. }), "{error}");
    // Turned by 180 degrees: other corners, the same order of voxels.
    let turned = Geometry::new(
        [2, 3, 4],
        [[2.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0]],
    );
    let stored =
        read_labels(&label, Orientation::Stored, &map, &BTreeMap::new()).expect("readable");
    let other = root.join("turned.nii");
    write_nifti(&other, &Volume::new(stored.voxels().clone(), Some(turned))).expect("writes");
    let error = description.read_labels_on_grid(&other, (&label, &truth)).expect_err("elsewhere");
    assert!(matches!(error, DatasetError::Geometries { .. }), "{error}");
    description.geometry = GeometryCheck::TrustVoxels;
    let trusted = description.read_labels_on_grid(&other, (&label, &truth)).expect("trusted");
    assert_eq!(trusted, truth);
    let trusted = description.read_labels_on_grid(&picture, (&label, &single)).expect("trusted");
    assert_eq!(trusted.voxels(), single.voxels());
}

#[test]
fn channels_are_those_of_the_same_case() {
    let folder = folder();
    let root = folder.path();
    for (i, case) in ["p1", "p2"].iter().enumerate() {
        for kind in ["t1", "t2"] {
            let image = format!("test/{kind}/{case}/{case}.nii");
            write(root, &image, &format!("test/seg/{case}/{case}.nii"), &[1]);
            let volume = read_image(root.join(&image), Orientation::Stored).expect("readable");
            let add = 10.0 * i as f32 + if kind == "t2" { 1.0 } else { 0.0 };
            let voxels = volume.with_voxels(volume.channel(0).mapv(|voxel| voxel + add));
            write_nifti(root.join(image), &voxels).expect("writes");
        }
    }
    std::fs::create_dir_all(root.join("test/t1/p3")).expect("a folder");
    std::fs::copy(root.join("test/t1/p1/p1.nii"), root.join("test/t1/p3/p1.nii")).expect("copies");
    let description = |images: [&str; 2], split: &str| {
        DatasetDescription::from_toml(
            &format!(
                "name = \"a\"\nintensity = \"stored\"\n[layout.files]\nimages = {images:?}\n\
             labels = \"SPLIT/seg/{{case}}/{{case}}.nii\"\n[[organs]]\nname = \"a\"\nlabels = [1]\n\
             [split]\n{split}"
            )
            .replace("SPLIT", if split.is_empty() { "test" } else { "{split}" }),
        )
        .expect("valid")
    };
    let folders = "folders = { train = \"train\", test = \"test\" }";
    for (prefix, split) in [("test", ""), ("{split}", folders)] {
        let images = ["t1", "t2"].map(|kind| format!("{prefix}/{kind}/{{case}}/{{case}}.nii"));
        let description = description([&images[0], &images[1]], split);
        let first = |file: &str| {
            let image = description.read_image(root.join(file))?;
            Ok::<_, sam_lst_datasets::ReadError>([0, 1].map(|i| image.channel(i)[(0, 0, 0)]))
        };
        assert_eq!(first("test/t1/p1/p1.nii").expect("p1"), [40.0, 41.0]);
        assert_eq!(first("test/t1/p2/p2.nii").expect("p2"), [50.0, 51.0]);
        // A file of one patient in the folder of another.
        let error = first("test/t1/p3/p1.nii").expect_err("two patients").to_string();
        assert!(error.contains("cannot find the other channels of"), "{error}");
    }
}
