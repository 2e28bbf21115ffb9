//! From folders of volumes to reports.

use sam_lst::datasets::ndarray::Array3;
use sam_lst::datasets::{Geometry, Orientation, read_nifti_image, write_nifti};
use sam_lst::evaluation::{EvaluationError, LabelNumbers};
use sam_lst::{Dataset, DatasetDescription, FolderPairs, PhantomConfig, Protocol, Split, Volume};
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
        let folders = FolderPairs::find(&predictions, &labels).expect("pairs");
        assert_eq!(folders.unpredicted(), [labels.join("label0005.nii.gz")]);
        let reports = folders
            .evaluate(&description, &[Protocol::Reference, Protocol::strict()], |done, total| {
                progress.push((done, total));
            })
            .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(progress, [(0, 2), (1, 2), (2, 2)]);
        let [reference, strict] = reports.as_slice() else { panic!("two reports") };
        let subject = format!("{} compared with {}", predictions.display(), labels.display());
        assert!(reference.to_markdown().starts_with(&subject));
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
        let folders = FolderPairs::find(&predictions, &labels);
        let reports = folders
            .and_then(|folders| folders.evaluate(&description, &[Protocol::strict()], |_, _| {}));
        reports.expect_err("invalid predictions")
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

/// Pairs of names, or a part of the message.
type Expected<'a> = Result<&'a [(&'a str, &'a str)], &'a str>;

/// Names of files in folders of predictions and of labels, and what is expected of them.
#[test]
fn files_are_paired_only_where_their_names_are_unambiguous() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let cases: [(&[&str], &[&str], Expected<'_>); 10] = [
        (
            &["b.nii", "a.nii"],
            &["a.nii.gz", "b.nii", "c.nii"],
            Ok(&[("a.nii", "a.nii.gz"), ("b.nii", "b.nii")]),
        ),
        (
            &["case_1_v2.nii", "case_7_v2.nii"],
            &["l007.nii", "l001.nii"],
            Ok(&[("case_1_v2.nii", "l001.nii"), ("case_7_v2.nii", "l007.nii")]),
        ),
        // The date agrees, the patient does not.
        (&["p12_20240101.nii"], &["q13_20240101.nii"], Err("no label file for")),
        (
            &["p12_visit1.nii", "p13_visit2.nii"],
            &["q12_visit2.nii", "q13_visit1.nii"],
            Err("no label file for"),
        ),
        (&["p10_1.nii", "p10_2.nii"], &["q11_1.nii", "q11_2.nii"], Err("no label file for")),
        // An old and a new file.
        (&["a.nii", "a.nii.gz"], &["a.nii"], Err("are files of one case")),
        (&["a.nii"], &["a.nii", "a.nii.gz"], Err("are files of one case")),
        (&["left_1.nii", "right_2.nii"], &["l1.nii", "l2.nii"], Err("not named alike")),
        (&["case1.nii", "case2.nii"], &["mri_1.nii", "ct_2.nii"], Err("not named alike")),
        (&["case1.nii", "case01.nii"], &["l1.nii"], Err("the same number")),
    ];
    for (i, (predictions, labels, expected)) in cases.into_iter().enumerate() {
        let root = folder.path().join(i.to_string());
        for (name, files) in [("predictions", predictions), ("labels", labels)] {
            std::fs::create_dir_all(root.join(name)).expect("a folder");
            for file in files {
                std::fs::write(root.join(name).join(file), "").expect("a file");
            }
        }
        let pairs = FolderPairs::find(root.join("predictions"), root.join("labels"));
        match (pairs, expected) {
            (Ok(pairs), Ok(expected)) => {
                let name = |file: &Path| file.file_name().expect("a name").to_owned();
                let pairs = pairs.pairs().iter();
                let found: Vec<_> =
                    pairs.map(|pair| (name(&pair.prediction), name(&pair.label))).collect();
                let expected: Vec<_> =
                    expected.iter().map(|&(a, b)| (a.into(), b.into())).collect();
                assert_eq!(found, expected, "{i}");
            }
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{i}: {error}"),
            (found, _) => panic!("{i}: {found:?}"),
        }
    }
}

#[test]
fn classes_are_not_scored_as_labels() {
    let synapse = DatasetDescription::synapse();
    let numbers = |predicted: &[u16], truth: &[u16]| LabelNumbers {
        predicted: predicted.iter().copied().collect(),
        truth: truth.iter().copied().collect(),
    };
    let (btcv, of_organs) = ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13], [0, 1, 2, 3, 6, 11]);
    let classes = [0, 1, 2, 3, 4, 5, 6, 7, 8];
    for (predicted, truth, fits) in [
        (&of_organs[..], &btcv[..], true),
        (&btcv, &btcv, true),
        (&classes, &btcv, false),
        // The user says that these are numbers of Synapse.
        (&classes, &classes, true),
    ] {
        let checked = numbers(predicted, truth).check(&synapse);
        assert_eq!(checked.is_ok(), fits, "{predicted:?} {truth:?}");
        if let Err(error) = checked {
            let error = error.to_string();
            assert!(error.contains("numbered 0 to 8") && error.contains("--dataset"), "{error}");
        }
    }
    // Without a description, every number is a label of its own.
    let unnamed = numbers(&[0, 1, 9], &[0, 1, 300]).description();
    assert_eq!(unnamed.check(), Ok(()));
    let names: Vec<&str> = unnamed.organs.iter().map(|organ| organ.name.as_str()).collect();
    assert_eq!(names, ["label 1", "label 9", "label 300"]);
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
