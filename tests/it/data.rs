//! From folders of volumes to reports.

use sam_lst::datasets::ndarray::Array3;
use sam_lst::datasets::{Geometry, Orientation, read_nifti_image, write_nifti};
use sam_lst::evaluation::EvaluationError;
use sam_lst::{
    Dataset, DatasetDescription, PhantomConfig, Protocol, Split, Volume, evaluate_folders,
};
use std::path::Path;

fn write_phantoms(folder: &Path) {
    let config = PhantomConfig {
        shape: [10, 40, 44],
        spacing_mm: [18.0, 9.0, 8.5],
        ..PhantomConfig::small(6)
    };
    config.write_dataset(folder, 1, 2, |_| {}).expect("write phantoms");
}

/// Writes labels as predictions, with the liver moved by one row.
fn write_predictions(labels: &Path, predictions: &Path, rename: impl Fn(&str) -> String) {
    for entry in std::fs::read_dir(labels).expect("list labels") {
        let file = entry.expect("a directory entry").path();
        let volume = read_nifti_image(&file, Orientation::Stored).expect("a label volume");
        let mut voxels: Array3<u8> = volume.voxels().mapv(|voxel| voxel as u8);
        for ((slice, row, column), voxel) in voxels.indexed_iter_mut() {
            let above = volume.voxels()[(slice, row.saturating_sub(1), column)] as u8;
            if *voxel == 6 || above == 6 {
                *voxel = above;
            }
        }
        let prediction: Volume<u8> = volume.with_voxels(voxels);
        let name = file.file_name().and_then(|name| name.to_str()).expect("a UTF-8 name");
        write_nifti(predictions.join(rename(name)), &prediction).expect("write a prediction");
    }
}

#[test]
fn folders_of_predictions_are_scored() {
    let folder = tempfile::tempdir().expect("temporary folder");
    write_phantoms(folder.path());
    let labels = folder.path().join("RawData/Training/label");
    let description = DatasetDescription::synapse();
    for (i, rename) in
        [|name: &str| name.to_owned(), |name: &str| name.replace("label", "prediction-of-case_")]
            .into_iter()
            .enumerate()
    {
        let predictions = folder.path().join(format!("predictions{i}"));
        write_predictions(&labels, &predictions, rename);
        std::fs::remove_file(predictions.join(rename("label0005.nii.gz"))).expect("remove file");
        let mut progress = Vec::new();
        let evaluation = evaluate_folders(
            &predictions,
            &labels,
            &description,
            &[Protocol::Reference, Protocol::strict()],
            |done, total| progress.push((done, total)),
        )
        .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(progress, [(0, 2), (1, 2), (2, 2)]);
        assert_eq!(evaluation.unpredicted, [labels.join("label0005.nii.gz")]);
        let [reference, strict] = evaluation.reports.as_slice() else { panic!("two reports") };
        assert_eq!(reference.organs()[4], "liver");
        let cases: Vec<&str> = strict.cases().iter().map(|case| case.case.as_str()).collect();
        assert_eq!(cases, ["label0001", "label0002"]);
        for case in strict.cases() {
            let liver = case.scores[4];
            assert!((0.5..1.0).contains(&liver.dsc.expect("a liver")), "{liver:?}");
            assert_eq!(liver.hd95, Some(9.0), "one row is 9 mm");
        }
        for case in reference.cases() {
            assert_eq!(case.scores[4].hd95, Some(1.0), "one row is one voxel");
        }
    }
}

#[test]
fn invalid_predictions_are_reported() {
    let folder = tempfile::tempdir().expect("temporary folder");
    write_phantoms(folder.path());
    let labels = folder.path().join("RawData/Training/label");
    let predictions = folder.path().join("predictions");
    std::fs::create_dir(&predictions).expect("create folder");
    let evaluate = || {
        let description = DatasetDescription::synapse();
        evaluate_folders(&predictions, &labels, &description, &[Protocol::strict()], |_, _| {})
            .expect_err("invalid predictions")
    };
    assert!(matches!(evaluate(), EvaluationError::NoFiles { .. }));
    let copy = |from: &str, to: &str| {
        std::fs::copy(labels.join(from), predictions.join(to)).expect("copy file");
    };
    let remove = |name: &str| {
        std::fs::remove_file(predictions.join(name)).expect("remove file");
    };
    copy("label0001.nii.gz", "case0077.nii.gz");
    let message = evaluate().to_string();
    assert!(message.contains("no label file for") && message.contains("case0077"), "{message}");
    remove("case0077.nii.gz");
    copy("label0001.nii.gz", "case0001.nii.gz");
    copy("label0001.nii.gz", "other_1.nii.gz");
    let message = evaluate().to_string();
    assert!(message.contains("have the same number"), "{message}");
    remove("other_1.nii.gz");
    let image = folder.path().join("RawData/Training/img/img0001.nii.gz");
    std::fs::copy(image, predictions.join("case0001.nii.gz")).expect("copy file");
    let message = evaluate().to_string();
    assert!(
        message.contains("case0001.nii.gz: label -")
            && message.contains(" at voxel (0, 0, 0) is not in the dataset description"),
        "{message}"
    );
    let orientation = "LAS".parse().expect("a valid orientation");
    let moved =
        read_nifti_image(labels.join("label0001.nii.gz"), orientation).expect("a label volume");
    let mut affine = moved.geometry().expect("NIfTI has a geometry").affine_mm();
    affine[0][3] += 4.0;
    let geometry = Geometry::new(moved.shape(), affine);
    let moved = Volume::new(moved.voxels().mapv(|voxel| voxel as u8), Some(geometry));
    write_nifti(predictions.join("case0001.nii.gz"), &moved).expect("write a prediction");
    let message = evaluate().to_string();
    assert!(message.contains("up to 4.000 mm apart"), "{message}");
}

#[test]
fn the_dataset_description_in_the_guide_is_valid() {
    let guide = include_str!("../../docs/guide.md");
    let toml = guide
        .split("```toml")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .expect("a block of TOML");
    let description = DatasetDescription::from_toml(toml).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(description.classes(), 3);
    assert_eq!(description.organ(description.report_classes()[0]).name, "kidneys");
}

/// Reads CTs in Synapse's layout from the folder that `SAM_LST_SYNAPSE` names.
#[test]
fn real_cts_are_read() {
    let Some(root) = std::env::var_os("SAM_LST_SYNAPSE") else {
        print_skipped("SAM_LST_SYNAPSE is not set to a folder in Synapse's layout");
        return;
    };
    let dataset = Dataset::open(root, DatasetDescription::synapse())
        .unwrap_or_else(|error| panic!("{error}"));
    for split in [Split::Train, Split::Test] {
        for case in dataset.cases(split).unwrap_or_else(|error| panic!("{error}")) {
            let volumes = dataset.read(case).unwrap_or_else(|error| panic!("{error}"));
            assert!(volumes.image.voxels().iter().all(|voxel| (0.0..=1.0).contains(voxel)));
            assert!(volumes.label.voxels().iter().any(|&class| class == 5), "a liver");
            assert!(volumes.image.spacing_mm().is_some());
        }
    }
}

#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn print_skipped(reason: &str) {
    eprintln!("skipped: {reason}");
}
