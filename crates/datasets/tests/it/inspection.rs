//! Recognition and inspection of folders.

use sam_lst_datasets::ndarray::Array3;
use sam_lst_datasets::{
    Dataset, Geometry, IgnoredLabels, Inspection, Intensity, Layout, Split, Validation, Volume,
    inspect, recognize_layout, write_nifti,
};
use std::path::Path;
use tempfile::TempDir;

/// Writes an image and a label with these labels in its first voxels.
pub fn write(root: &Path, image: &str, label: &str, labels: &[u16]) {
    let affine = [[-2.0, 0.0, 0.0, 0.0], [0.0, -2.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0]];
    let geometry = || Some(Geometry::new([2, 3, 4], affine));
    let voxel = |i: usize| if i < 12 { 40.0 + i as f32 } else { -1000.0 };
    let mut i = 0;
    let voxels = Array3::from_shape_simple_fn((2, 3, 4), || {
        i += 1;
        voxel(i - 1)
    });
    let mut of_labels = vec![0; 24];
    of_labels[..labels.len()].copy_from_slice(labels);
    let of_labels = Array3::from_shape_vec((2, 3, 4), of_labels).expect("24 voxels");
    let path = |name: &str| {
        let file = root.join(name);
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
        file
    };
    write_nifti(path(image), &Volume::new(voxels, geometry())).expect("writes");
    write_nifti(path(label), &Volume::new(of_labels, geometry())).expect("writes");
}

pub fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

pub fn inspected(root: &Path) -> Inspection {
    let mut progress = Vec::new();
    let inspection = inspect(root, |done, total| progress.push((done, total)))
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(progress.last().map(|(done, total)| done == total), Some(true));
    // The description finds the cases and reads them.
    let dataset = Dataset::open(root, inspection.description.clone()).expect("the same folder");
    for case in dataset.all_cases() {
        dataset.read(case).unwrap_or_else(|error| panic!("{error}"));
    }
    inspection
}

pub fn patterns(inspection: &Inspection) -> [&str; 2] {
    match &inspection.description.layout {
        Layout::Files(layout) => [&layout.images[0], &layout.labels],
        Layout::Prepared(_) => panic!("NIfTI"),
    }
}

#[test]
fn nnu_net_s_folder_gives_names_modality_and_fold() {
    let folder = folder();
    let root = folder.path();
    for case in ["a_1", "a_2", "a_3"] {
        let image = format!("imagesTr/{case}_0000.nii.gz");
        write(root, &image, &format!("labelsTr/{case}.nii.gz"), &[1, 1, 3, 7]);
    }
    let json = r#"{"channel_names": {"0": "CT"}, "file_ending": ".nii.gz", "numTraining": 3,
        "labels": {"background": 0, "liver": 1, "tumour": 3, "vein": 2, "ignore": 7}}"#;
    std::fs::write(root.join("dataset.json"), json).expect("writes");
    let splits = r#"[{"train": ["a_1", "a_3"], "val": ["a_2"]}, {"train": [], "val": []}]"#;
    std::fs::write(root.join("splits_final.json"), splits).expect("writes");
    let inspection = inspected(root);
    assert_eq!(inspection.layout, "nnU-Net raw (dataset.json)");
    assert_eq!(patterns(&inspection), ["imagesTr/{case}_0000.nii.gz", "labelsTr/{case}.nii.gz"]);
    let description = &inspection.description;
    let organs: Vec<(&str, u16)> =
        description.organs.iter().map(|organ| (organ.name.as_str(), organ.labels[0])).collect();
    assert_eq!(organs, [("liver", 1), ("vein", 2), ("tumour", 3)]);
    assert_eq!(description.ignored_labels, IgnoredLabels::Listed(vec![7]));
    // 150 HU around the medians, 41 and 42.
    assert_eq!(description.intensity, Intensity::Window([-110.0, 190.0]));
    let validation = Validation::Cases { cases: vec!["a_2".to_owned()] };
    assert_eq!(description.split.validation, validation);
    assert!(inspection.notes.iter().any(|note| note.contains("no case contains `vein`")));
    let case = &inspection.cases[0];
    assert_eq!((case.shape, case.spacing_mm), ([4, 3, 2], Some([2.0, 2.0, 3.0])));
    assert_eq!((case.orientation.as_deref(), case.range), (Some("LPS"), [-1000.0, 51.0]));
    assert_eq!(
        case.labels.iter().map(|(&l, &n)| (l, n)).collect::<Vec<_>>(),
        [(0, 20), (1, 2), (3, 1), (7, 1)]
    );
}

#[test]
fn decathlon_s_folder_is_recognised() {
    let folder = folder();
    let root = folder.path();
    write(root, "imagesTr/la_007.nii.gz", "labelsTr/la_007.nii.gz", &[1]);
    let json = r#"{"name": "Heart", "modality": {"0": "MRI"}, "labels": {"0": "background",
        "1": "left atrium"}, "training": [{"image": "./imagesTr/la_007.nii.gz",
        "label": "./labelsTr/la_007.nii.gz"}]}"#;
    std::fs::write(root.join("dataset.json"), json).expect("writes");
    let inspection = inspected(root);
    assert_eq!(inspection.layout, "Decathlon (dataset.json)");
    assert_eq!(inspection.description.organs[0].name, "left atrium");
    assert_eq!(inspection.description.intensity, Intensity::Percentiles([0.5, 99.5]));
    assert!(inspection.notes.iter().any(|note| note.contains("too few to test on")));
    for (change, expected) in [
        (json.replace("\"1\": \"left atrium\"", "\"atria\": [1, -2]"), "`atria` the label -2"),
        (json.replace("\"labels\"", "\"classes\""), "has no `labels`"),
        ("{".to_owned(), "is not valid JSON"),
    ] {
        std::fs::write(root.join("dataset.json"), change).expect("writes");
        let error = recognize_layout(root).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn images_and_labels_are_paired_by_their_names() {
    // Names of images and labels of two cases, and the patterns.
    for (files, expected) in [
        (
            [("images/a.nii", "labels/a.nii"), ("images/b.nii", "labels/b.nii")],
            ["images/{case}.nii", "labels/{case}.nii"],
        ),
        (
            [
                ("img/img0001.nii.gz", "seg/label0001.nii.gz"),
                ("img/img0012.nii.gz", "seg/label0012.nii.gz"),
            ],
            ["img/img{case}.nii.gz", "seg/label{case}.nii.gz"],
        ),
        (
            [("ct_11_0000.nii", "ct_11_seg.nii"), ("ct_21_0000.nii", "ct_21_seg.nii")],
            ["ct_{case}_0000.nii", "ct_{case}_seg.nii"],
        ),
        (
            [("anna.nii", "anna-mask.nii"), ("bert.nii", "bert-mask.nii")],
            ["{case}.nii", "{case}-mask.nii"],
        ),
        (
            [("p1/p1_t1.nii", "p1/p1_seg.nii"), ("p2/p2_t1.nii", "p2/p2_seg.nii")],
            ["{case}/{case}_t1.nii", "{case}/{case}_seg.nii"],
        ),
        (
            [("p1/mr/image.nii", "p1/mr/gt.nii"), ("p2/mr/image.nii", "p2/mr/gt.nii")],
            ["{case}/mr/image.nii", "{case}/mr/gt.nii"],
        ),
    ] {
        let folder = folder();
        for (image, label) in files {
            write(folder.path(), image, label, &[2]);
        }
        let inspection = inspected(folder.path());
        assert_eq!(patterns(&inspection), expected);
        assert_eq!(inspection.cases.len(), 2, "{expected:?}");
        assert_eq!(inspection.description.organs[0].name, "label 2");
        assert_eq!(inspection.description.split.test.len(), 1);
    }
}

#[test]
fn totalsegmentator_s_folders_have_a_file_for_each_organ() {
    let folder = folder();
    for case in ["s0001", "s0002"] {
        for (organ, labels) in [("liver", [1, 1, 0]), ("kidney_left", [0, 0, 1])] {
            let label = format!("{case}/segmentations/{organ}.nii.gz");
            write(folder.path(), &format!("{case}/ct.nii.gz"), &label, &labels);
        }
    }
    let inspection = inspected(folder.path());
    assert_eq!(patterns(&inspection), ["{case}/ct.nii.gz", "{case}/segmentations/{organ}.nii.gz"]);
    let names: Vec<&str> =
        inspection.description.organs.iter().map(|organ| organ.name.as_str()).collect();
    assert_eq!(names, ["kidney_left", "liver"]);
    let dataset = Dataset::open(folder.path(), inspection.description).expect("two cases");
    let classes = dataset.read(&dataset.all_cases()[0]).expect("readable").label;
    assert_eq!(classes.voxels().iter().filter(|&&class| class == 2).count(), 2);
    assert_eq!(dataset.cases(Split::Test).expect("one").len(), 1);
}

#[test]
fn what_is_not_recognised_is_named() {
    for (file, bytes, expected) in [
        ("a.png", b"".to_vec(), "one image, such as a.png"),
        ("IM0001", [vec![0; 128], b"DICM".to_vec()].concat(), "DICOM files"),
        ("readme.txt", b"text".to_vec(), "it has no image"),
        ("alone.nii", b"".to_vec(), "one image, such as alone.nii"),
    ] {
        let folder = folder();
        std::fs::write(folder.path().join(file), bytes).expect("writes");
        let error = recognize_layout(folder.path()).expect_err(expected).to_string();
        assert!(error.contains(expected) && error.contains("--dataset"), "{error}");
    }
    assert!(recognize_layout("does/not/exist").is_err());
}

#[test]
fn suspicious_cases_are_noted() {
    let folder = folder();
    let root = folder.path();
    for case in ["a", "b", "c"] {
        let labels: &[u16] = if case == "b" { &[] } else { &[1] };
        write(root, &format!("images/{case}.nii"), &format!("labels/{case}.nii"), labels);
    }
    // Another shape.
    let mut voxels = Array3::<u8>::zeros((1, 3, 4));
    voxels[(0, 0, 0)] = 4;
    let small = Volume::new(
        voxels,
        Some(Geometry::new(
            [1, 3, 4],
            [[2.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0]],
        )),
    );
    write_nifti(root.join("labels/c.nii"), &small).expect("writes");
    write(root, "other/images/z.nii", "other/notes/z.nii", &[1]);
    let inspection = inspect(root, |_, _| {}).expect("readable");
    let notes = inspection.notes.join("\n");
    assert!(notes.contains("2 images are not part of this layout"), "{notes}");
    // A label counts even where its volume does not fit.
    assert_eq!(
        inspection.cases[2].labels.iter().map(|(&l, &n)| (l, n)).collect::<Vec<_>>(),
        [(0, 11), (4, 1)]
    );
    assert_eq!(inspection.description.organs.len(), 2);
    assert!(notes.contains("case b has no labelled voxel"), "{notes}");
    assert!(notes.contains("case c: ") && notes.contains("has shape [1, 3, 4]"), "{notes}");
}

#[test]
fn folders_without_any_label_are_refused() {
    let folder = folder();
    write(folder.path(), "images/a.nii", "labels/a.nii", &[]);
    let error = inspect(folder.path(), |_, _| {}).expect_err("no labels").to_string();
    assert!(error.contains("no label file of its 1 cases has a voxel that is not 0"), "{error}");
}

#[test]
fn a_single_patient_and_series_of_dicom_are_recognised() {
    let folder = folder();
    let series = crate::support::fixture("dicom/plain");
    let copy = |case: &str| {
        let ct = folder.path().join(case).join("ct");
        std::fs::create_dir_all(&ct).expect("a folder");
        for file in ["IM0", "IM3", "IM7"] {
            std::fs::copy(series.join(file), ct.join(file)).expect("copies");
        }
        let image = sam_lst_datasets::read_image(&ct, Default::default()).expect("a series");
        let labels = image.with_voxels(image.channel(0).mapv(|voxel| u8::from(voxel > 0.0)));
        write_nifti(folder.path().join(case).join("seg.nii.gz"), &labels).expect("writes");
    };
    copy("p1");
    assert_eq!(patterns(&inspected(folder.path())), ["{case}/ct", "{case}/seg.nii.gz"]);
    copy("p2");
    let inspection = inspected(folder.path());
    assert_eq!(patterns(&inspection), ["{case}/ct", "{case}/seg.nii.gz"]);
    assert_eq!((inspection.cases.len(), inspection.cases[0].shape), (2, [36, 34, 3]));
}

#[test]
fn folders_that_could_mean_several_things_are_not_guessed() {
    let labels: &[u16] = &[1];
    // Two folders of one split; two candidates for images.
    for files in [
        &[
            ("train/images/1.nii", "train/labels/1.nii"),
            ("training/images/2.nii", "training/labels/2.nii"),
            ("test/images/1.nii", "test/labels/1.nii"),
            ("test/images/2.nii", "test/labels/2.nii"),
        ][..],
        &[("adc/1.nii", "mask/1.nii"), ("t2/1.nii", "mask/1.nii")],
    ] {
        let folder = folder();
        files.iter().for_each(|(image, label)| write(folder.path(), image, label, labels));
        let error = recognize_layout(folder.path()).expect_err("ambiguous").to_string();
        assert!(error.contains("several possible folders"), "{error}");
    }
    // Of several, the one that is named after images; a case's name as a word of its own only.
    for (files, expected) in [
        (
            &[("predictions/1.nii", "labels/1.nii"), ("scans/1.nii", "labels/1.nii")][..],
            ["scans/{case}.nii", "labels/{case}.nii"],
        ),
        (
            &[
                ("1/t1.nii", "1/seg.nii"),
                ("1/t2.nii", "1/seg.nii"),
                ("2/t1.nii", "2/seg.nii"),
                ("2/t2.nii", "2/seg.nii"),
            ],
            ["{case}/t1.nii", "{case}/seg.nii"],
        ),
        (
            &[
                ("p01/ct.nii", "p01/masks/p01_liver.nii"),
                ("p01/ct.nii", "p01/masks/p01_spleen.nii"),
            ],
            ["{case}/ct.nii", "{case}/masks/{case}_{organ}.nii"],
        ),
    ] {
        let folder = folder();
        files.iter().for_each(|(image, label)| write(folder.path(), image, label, labels));
        assert_eq!(patterns(&inspected(folder.path())), expected);
    }
}
