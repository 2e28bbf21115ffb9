//! From folders to reports, as a user has them.

use sam_lst::rooms::datasets::ndarray::Array3;
use sam_lst::rooms::datasets::{Orientation, Split, Volume, read_nifti_image, write_nifti};
use sam_lst::{
    Dataset, DatasetDescription, EvaluationError, PhantomConfig, Protocol, evaluate_folders,
};
use std::path::Path;

fn phantoms(folder: &Path) {
    let config = PhantomConfig {
        shape: [10, 40, 44],
        spacing_mm: [18.0, 9.0, 8.5],
        ..PhantomConfig::small(6)
    };
    config.write_dataset(folder, 1, 2, |_| {}).expect("room");
}

/// Labels as predictions, the liver moved by a row.
fn predict(labels: &Path, predictions: &Path, rename: impl Fn(&str) -> String) {
    for entry in std::fs::read_dir(labels).expect("a folder") {
        let file = entry.expect("a file").path();
        let volume = read_nifti_image(&file, Orientation::Stored).expect("a label");
        let mut voxels: Array3<u8> = volume.voxels().mapv(|voxel| voxel as u8);
        for ((slice, row, column), voxel) in voxels.indexed_iter_mut() {
            let above = volume.voxels()[(slice, row.saturating_sub(1), column)] as u8;
            if *voxel == 6 || above == 6 {
                *voxel = above;
            }
        }
        let prediction: Volume<u8> = volume.with_voxels(voxels);
        let name = file
            .file_name()
            .and_then(|name| name.to_str())
            .expect("a name");
        write_nifti(predictions.join(rename(name)), &prediction).expect("room");
    }
}

#[test]
fn folders_of_labels_become_a_report() {
    let folder = tempfile::tempdir().expect("a folder");
    phantoms(folder.path());
    let labels = folder.path().join("RawData/Training/label");
    let description = DatasetDescription::synapse();
    for (i, rename) in [
        |name: &str| name.to_owned(),
        |name: &str| name.replace("label", "prediction-of-case_"),
    ]
    .into_iter()
    .enumerate()
    {
        let predictions = folder.path().join(format!("predictions{i}"));
        predict(&labels, &predictions, rename);
        std::fs::remove_file(predictions.join(rename("label0005.nii.gz"))).expect("it was there");
        let mut progress = Vec::new();
        let evaluation = evaluate_folders(
            &predictions,
            &labels,
            &description,
            &[Protocol::Reference, Protocol::strict()],
            |done, all| progress.push((done, all)),
        )
        .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(progress, [(0, 2), (1, 2), (2, 2)]);
        assert_eq!(evaluation.unpredicted, [labels.join("label0005.nii.gz")]);
        let [reference, strict] = evaluation.reports.as_slice() else {
            panic!("two protocols")
        };
        assert_eq!(reference.organs()[4], "liver");
        let cases: Vec<&str> = strict
            .cases()
            .iter()
            .map(|case| case.case.as_str())
            .collect();
        assert_eq!(cases, ["label0001", "label0002"]);
        for case in strict.cases() {
            let liver = case.scores[4];
            assert!((0.5..1.0).contains(&liver.dsc.expect("there")), "{liver:?}");
            assert_eq!(liver.hd95, Some(9.0), "a row is 9 mm");
        }
        for case in reference.cases() {
            assert_eq!(case.scores[4].hd95, Some(1.0), "a row is a voxel");
        }
    }
}

#[test]
fn predictions_that_cannot_be_scored() {
    let folder = tempfile::tempdir().expect("a folder");
    phantoms(folder.path());
    let labels = folder.path().join("RawData/Training/label");
    let predictions = folder.path().join("predictions");
    std::fs::create_dir(&predictions).expect("room");
    let evaluate = || {
        let description = DatasetDescription::synapse();
        evaluate_folders(
            &predictions,
            &labels,
            &description,
            &[Protocol::strict()],
            |_, _| {},
        )
        .expect_err("wrong")
    };
    assert!(matches!(evaluate(), EvaluationError::NoFiles { .. }));
    let copy = |from: &str, to: &str| {
        std::fs::copy(labels.join(from), predictions.join(to)).expect("room");
    };
    copy("label0001.nii.gz", "case0077.nii.gz");
    let message = evaluate().to_string();
    assert!(
        message.contains("no label for") && message.contains("case0077"),
        "{message}"
    );
    std::fs::remove_file(predictions.join("case0077.nii.gz")).expect("it was there");
    copy("label0001.nii.gz", "case0001.nii.gz");
    copy("label0001.nii.gz", "other_1.nii.gz");
    let message = evaluate().to_string();
    assert!(message.contains("have the same number"), "{message}");
    std::fs::remove_file(predictions.join("other_1.nii.gz")).expect("it was there");
    let image = folder.path().join("RawData/Training/img/img0001.nii.gz");
    std::fs::copy(image, predictions.join("case0001.nii.gz")).expect("room");
    let message = evaluate().to_string();
    assert!(
        message.contains("case0001.nii.gz: voxel [0, 0, 0] has label -"),
        "{message}"
    );
    let moved = read_nifti_image(labels.join("label0001.nii.gz"), "LAS".parse().expect("one"))
        .expect("a label");
    let mut affine = moved.geometry().expect("NIfTI has one").affine_mm();
    affine[0][3] += 4.0;
    let geometry = sam_lst::rooms::datasets::Geometry::new(moved.shape(), affine);
    let moved = Volume::new(moved.voxels().mapv(|voxel| voxel as u8), Some(geometry));
    write_nifti(predictions.join("case0001.nii.gz"), &moved).expect("room");
    let message = evaluate().to_string();
    assert!(message.contains("up to 4.000 mm apart"), "{message}");
}

#[test]
fn the_guides_description_is_one() {
    let guide = include_str!("../../docs/guide.md");
    let toml = guide
        .split("```toml")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .expect("a block");
    let description = DatasetDescription::from_toml(toml).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(description.classes(), 3);
    assert_eq!(
        description.organ(description.report_classes()[0]).name,
        "kidneys"
    );
}

/// A CT of a patient in Synapse's layout, where the environment names one.
#[test]
fn a_real_ct() {
    let Some(root) = std::env::var_os("SAM_LST_SYNAPSE") else {
        skipped("SAM_LST_SYNAPSE names no folder in Synapse's layout");
        return;
    };
    let dataset = Dataset::open(root, DatasetDescription::synapse())
        .unwrap_or_else(|error| panic!("{error}"));
    for split in [Split::Train, Split::Test] {
        for case in dataset
            .cases(split)
            .unwrap_or_else(|error| panic!("{error}"))
        {
            let volumes = dataset.read(case).unwrap_or_else(|error| panic!("{error}"));
            assert!(
                volumes
                    .image
                    .voxels()
                    .iter()
                    .all(|voxel| (0.0..=1.0).contains(voxel))
            );
            assert!(
                volumes.label.voxels().iter().any(|&class| class == 5),
                "a liver"
            );
            assert!(volumes.image.spacing_mm().is_some());
        }
    }
}

#[expect(clippy::print_stderr, reason = "a test that does nothing says so")]
fn skipped(why: &str) {
    eprintln!("skipped: {why}");
}
