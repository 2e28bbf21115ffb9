//! Dataset descriptions and splits.

use crate::support::{collect_warnings, warnings_with};
use sam_lst_datasets::ndarray::Array3;
use sam_lst_datasets::{
    Color, Dataset, DatasetDescription, DatasetError, DescriptionError, Geometry, IgnoredLabels,
    Intensity, PhantomConfig, SliceStore, Split, Validation, Volume, write_nifti,
};
use std::collections::BTreeSet;
use std::path::Path;

const LUNGS: &str = r##"
name = "lungs"
intensity = { window = [-1000, 400] }
ignored_labels = [9]
layout.nifti = { images = "{case}/ct.nii.gz", labels = "{case}/seg/lungs.nii.gz" }

[[organs]]
name = "left"
labels = [1, 2]

[[organs]]
name = "right"
labels = [3, 4, 5]
color = "#0080ff"
"##;

#[test]
fn descriptions_survive_a_round_trip_through_toml() {
    let lungs = DatasetDescription::from_toml(LUNGS).expect("a valid description");
    assert_eq!(lungs.classes(), 3);
    assert_eq!(lungs.intensity, Intensity::Window([-1000.0, 400.0]));
    assert_eq!(lungs.label_map().class_of(4), Some(2));
    assert_eq!(lungs.label_map().class_of(9), Some(0));
    assert_eq!(lungs.label_map().class_of(6), None);
    assert_eq!(lungs.color(2), Color([0, 128, 255]));
    assert_ne!(lungs.color(1), lungs.color(2));
    let mut with_validation = lungs.clone();
    with_validation.split.validation = Validation::Fraction { fraction: 0.25, seed: 3 };
    let mut with_cases = lungs.clone();
    with_cases.split.validation = Validation::Cases { cases: vec!["7".to_owned()] };
    let mut with_others = lungs.clone();
    with_others.ignored_labels = IgnoredLabels::Others;
    assert_eq!(with_others.label_map().class_of(65_535), Some(0));
    assert_eq!(with_others.label_map().class_of(3), Some(2));
    let built_in =
        [with_others, DatasetDescription::synapse(), DatasetDescription::synapse_prepared()];
    for description in [lungs, with_validation, with_cases].into_iter().chain(built_in) {
        let text = description.to_toml();
        assert_eq!(DatasetDescription::from_toml(&text).expect(&text), description);
    }
}

#[test]
fn reports_list_synapse_organs_in_the_order_of_table_1() {
    let synapse = DatasetDescription::synapse();
    let names: Vec<&str> =
        synapse.report_classes().iter().map(|&class| synapse.organ(class).name.as_str()).collect();
    assert_eq!(
        names,
        [
            "aorta",
            "gallbladder",
            "left kidney",
            "right kidney",
            "liver",
            "pancreas",
            "spleen",
            "stomach"
        ]
    );
    assert_eq!(synapse.label_map().to_string(), "0 to 13");
    assert_eq!(synapse.label_map().label_of(8), 11);
}

#[test]
fn invalid_values_are_reported() {
    let message = |from: &str, to: &str| {
        assert!(LUNGS.contains(from));
        match DatasetDescription::from_toml(&LUNGS.replacen(from, to, 1)) {
            Ok(_) => panic!("`{to}` was accepted"),
            Err(error) => error.to_string(),
        }
    };
    for (from, to, expected) in [
        ("labels = [3, 4, 5]", "labels = [2, 4]", "label 2 is assigned to `left` and to `right`"),
        (
            "labels = [3, 4, 5]",
            "labels = [9]",
            "label 9 is assigned to the ignored labels and to `right`",
        ),
        ("labels = [3, 4, 5]", "labels = [0]", "label 0 is assigned to the background"),
        ("labels = [3, 4, 5]", "labels = []", "organ `right` has no labels"),
        ("labels = [3, 4, 5]", "labels = [70000]", "70000"),
        (
            "ignored_labels = [9]",
            "ignored_labels = \"all\"",
            "ignored_labels = \"all\" has no meaning",
        ),
        ("ignored_labels = [9]", "ignored_labels = [-1]", "expected a list of label numbers"),
        ("name = \"right\"", "name = \"left\"", "two organs are named `left`"),
        ("#0080ff", "blue", "invalid colour `blue`"),
        ("#0080ff", "#é80f", "invalid colour `#é80f`"),
        ("[-1000, 400]", "[400, -1000]", "`intensity` range 400 to -1000 is invalid"),
        ("[-1000, 400]", "[nan, 1]", "`intensity` range NaN to 1 is invalid"),
        (
            "window = [-1000, 400]",
            "percentiles = [-1, 99]",
            "`intensity` range -1 to 99 is invalid",
        ),
        (
            "\"{case}/ct.nii.gz\"",
            "\"ct.nii.gz\"",
            "`images = \"ct.nii.gz\"` must contain `{case}`, at most once",
        ),
        ("ignored_labels", "ignore_labels", "unknown field `ignore_labels`"),
        ("intensity = { window = [-1000, 400] }", "", "missing field `intensity`"),
        (
            "name = \"lungs\"",
            "name = \"lungs\"\norientation = \"LLS\"",
            "invalid orientation `LLS`",
        ),
        ("name = \"lungs\"", "name = \"lungs\"\nreport_order = [\"left\"]", "`right` is missing"),
        (
            "name = \"lungs\"",
            "name = \"lungs\"\nreport_order = [\"left\", \"left\"]",
            "`left` is listed twice",
        ),
        (
            "name = \"lungs\"",
            "name = \"lungs\"\nreport_order = [\"liver\"]",
            "`liver` is not an organ",
        ),
        (
            "name = \"lungs\"",
            "name = \"lungs\"\nsplit.validation = { fraction = 1.5, seed = 1 }",
            "found 1.5",
        ),
        (
            "name = \"lungs\"",
            "name = \"lungs\"\nsplit = { train = [\"1\", \"2\"], test = [\"2\"] }",
            "case 2 is in two splits",
        ),
    ] {
        let message = message(from, to);
        assert!(message.contains(expected), "{to}: {message}");
    }
    let no_organs = LUNGS.split("[[organs]]").next().expect("a start").to_owned() + "organs = []";
    let error = DatasetDescription::from_toml(&no_organs).expect_err("no organs");
    assert!(
        matches!(&error, DatasetError::Description { source: DescriptionError::NoOrgans, .. }),
        "{error}"
    );
}

fn phantoms(folder: &Path, train: usize) {
    let config = PhantomConfig {
        shape: [2, 8, 8],
        spacing_mm: [90.0, 45.0, 45.0],
        ..PhantomConfig::small(2)
    };
    config.write_dataset(folder, train, 1, |_| {}).expect("write files");
}

#[test]
fn validation_is_taken_from_training_by_patient() {
    let folder = tempfile::tempdir().expect("temporary folder");
    phantoms(folder.path(), 10);
    let mut description = DatasetDescription::synapse();
    description.split.validation = Validation::Fraction { fraction: 0.3, seed: 5 };
    for (case, patient) in
        [("0005", "A"), ("0006", "A"), ("0007", "A"), ("0009", "B"), ("0010", "B")]
    {
        description.split.patients.insert(case.to_owned(), patient.to_owned());
    }
    let splits = |description: &DatasetDescription| -> Vec<(String, String, Split)> {
        let dataset = Dataset::open(folder.path(), description.clone()).expect("phantoms");
        let cases = dataset.all_cases().iter();
        cases.map(|case| (case.name.clone(), case.patient.clone(), case.split)).collect()
    };
    let first = splits(&description);
    assert_eq!(first, splits(&description));
    let patients = |split| -> BTreeSet<String> {
        first.iter().filter(|case| case.2 == split).map(|case| case.1.clone()).collect()
    };
    assert!(patients(Split::Train).is_disjoint(&patients(Split::Validation)));
    // Training and validation have seven patients together.
    assert_eq!((patients(Split::Train).len(), patients(Split::Validation).len()), (5, 2));
    assert_eq!(patients(Split::Test).len(), 1);
    let others: BTreeSet<_> = (0..20)
        .map(|seed| {
            description.split.validation = Validation::Fraction { fraction: 0.3, seed };
            splits(&description)
        })
        .collect::<Vec<_>>()
        .into_iter()
        .map(|cases| {
            cases
                .into_iter()
                .filter(|case| case.2 == Split::Validation)
                .map(|case| case.0)
                .collect::<Vec<_>>()
        })
        .collect();
    assert!(others.len() > 5, "the patients depend on the seed");

    description.split.validation = Validation::Cases { cases: vec!["0006".to_owned()] };
    let error =
        Dataset::open(folder.path(), description.clone()).expect_err("A is in training too");
    assert_eq!(
        error.to_string(),
        "patient A is in two splits: case 0005 is in training, case 0006 in validation; assign all \
         cases of a patient to one split"
    );
    description.split.patients.clear();
    assert!(Dataset::open(folder.path(), description).is_ok());
}

#[test]
fn percentiles_normalise_any_scale() {
    let mut voxels = sam_lst_datasets::ndarray::Array3::from_shape_fn((2, 10, 5), |(z, y, x)| {
        (z * 50 + y * 5 + x) as f32 * 7.0
    });
    Intensity::Percentiles([10.0, 90.0]).apply(&mut voxels);
    assert_eq!(voxels[(0, 0, 0)], 0.0);
    assert_eq!(voxels[(1, 9, 4)], 1.0);
    let inside = voxels.iter().filter(|&&voxel| voxel > 0.0 && voxel < 1.0).count();
    assert_eq!(inside, 78);
    let mut flat = sam_lst_datasets::ndarray::Array3::from_elem((1, 2, 2), 5.0);
    Intensity::Percentiles([1.0, 99.0]).apply(&mut flat);
    assert!(flat.iter().all(|voxel| *voxel == 0.0));
}

/// A NIfTI file of 3 x 4 x 5 voxels, read with a description's intensity.
fn warnings_of(
    folder: &Path,
    name: &str,
    intensity: &str,
    voxel: impl Fn(usize) -> f32,
) -> Vec<String> {
    collect_warnings();
    let file = folder.join(name);
    let identity = [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]];
    let mut index = 0;
    let voxels = Array3::from_shape_simple_fn((3, 4, 5), || {
        index += 1;
        voxel(index - 1)
    });
    let volume = Volume::new(voxels, Some(Geometry::new([3, 4, 5], identity)));
    write_nifti(&file, &volume).expect("writes");
    let text = LUNGS.replace("{ window = [-1000, 400] }", intensity);
    let description = DatasetDescription::from_toml(&text).expect("a valid description");
    description.read_image(&file).expect("just written");
    warnings_with(&file.display().to_string())
}

#[test]
fn implausible_intensities_are_reported_with_the_likely_remedy() {
    let folder = tempfile::tempdir().expect("a folder");
    let ct = "{ window = [-125, 275] }";
    let grey = |i: usize| i as f32 / 59.0;
    let of_ct = |i: usize| if i.is_multiple_of(2) { -1000.0 } else { i as f32 };
    for (name, intensity, voxel, expected) in [
        ("ct.nii", ct, &of_ct as &dyn Fn(usize) -> f32, None),
        ("shifted.nii", ct, &|i| of_ct(i) + 1024.0, Some("1024 added")),
        ("twice.nii", ct, &|i| of_ct(i) - 1024.0, Some("subtracted twice")),
        ("bytes.nii", ct, &|i| (4 * i) as f32, Some("8-bit grey levels")),
        ("unit.nii", ct, &grey, Some("`intensity = \"stored\"` is right")),
        ("far.nii", "{ window = [500, 600] }", &of_ct, Some("only 0.0 % of the voxels")),
        (
            "air.nii",
            ct,
            &|i| if i < 20 { -1000.0 } else { of_ct(i) },
            Some("1 of 3 slices lie wholly outside the window from -125 to 275"),
        ),
        ("stored.nii", "\"stored\"", &|i| -0.15 + 1.35 * grey(i), None),
        ("prepared.nii", "\"stored\"", &|i| (4 * i) as f32, Some("expects about 0 to 1")),
        ("hounsfield.nii", "\"stored\"", &of_ct, Some("from -1000 to 59")),
        ("mri.nii", "{ percentiles = [1, 99] }", &|i| (40 * i) as f32, None),
        ("empty.nii", "{ percentiles = [1, 99] }", &|_| 7.0, Some("all voxels are 7")),
    ] {
        let warnings = warnings_of(folder.path(), name, intensity, voxel);
        match expected {
            None => assert!(warnings.is_empty(), "{name}: {warnings:?}"),
            Some(part) => {
                assert!(warnings.len() == 1 && warnings[0].contains(part), "{name}: {warnings:?}");
            }
        }
    }
}

#[test]
fn the_prepared_layout_rejects_settings_without_effect() {
    let message = |change: fn(&mut DatasetDescription)| {
        let mut description = DatasetDescription::synapse_prepared();
        assert_eq!(description.check(), Ok(()));
        change(&mut description);
        description.check().expect_err("a setting without effect").to_string()
    };
    let intensity = message(|d| d.intensity = Intensity::Window([0.0, 1.0]));
    assert!(intensity.starts_with("`intensity` has no effect"), "{intensity}");
    let test = message(|d| d.split.test.push("0005".to_owned()));
    assert!(test.starts_with("`split.test` has no effect"), "{test}");
    let train = message(|d| d.split.train.push("0005".to_owned()));
    assert!(train.starts_with("`split.train` has no effect"), "{train}");
}

const ORGAN_FILES: &str = r#"
name = "one file per organ"
intensity = { window = [-125, 275] }
layout.nifti = { images = "{case}/{case}_ct.nii", labels = "{case}/organs/{organ}.nii" }
organs = [{ name = "left kidney" }, { name = "lungs", files = ["lung_left", "lung_right"] }]
"#;

#[test]
fn organs_with_files_of_their_own_become_classes() {
    collect_warnings();
    let folder = tempfile::tempdir().expect("a folder");
    let identity = [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]];
    let geometry = || Some(Geometry::new([1, 2, 4], identity));
    let write = |name: &str, voxels: [u8; 8]| {
        let file = folder.path().join(name);
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
        let voxels = Array3::from_shape_vec((1, 2, 4), voxels.to_vec()).expect("8 voxels");
        write_nifti(&file, &Volume::new(voxels, geometry())).expect("writes");
    };
    let open = || {
        let description = DatasetDescription::from_toml(ORGAN_FILES).expect("a valid description");
        assert_eq!(
            DatasetDescription::from_toml(&description.to_toml()).expect("again"),
            description
        );
        assert_eq!((description.label_map().label_of(2), description.classes()), (2, 3));
        Dataset::open(folder.path(), description)
    };
    write("a/a_ct.nii", [0, 50, 100, 150, 200, 0, 0, 0]);
    write("b/b_ct.nii", [0; 8]);
    let error = open().expect_err("no organs").to_string();
    assert!(error.contains("case a") && error.contains("a/organs/left_kidney.nii"), "{error}");

    write("a/organs/left_kidney.nii", [1, 0, 0, 0, 1, 0, 0, 0]);
    write("a/organs/lung_left.nii", [0, 7, 0, 0, 0, 0, 0, 0]);
    write("a/organs/lung_right.nii", [0, 1, 255, 0, 1, 0, 0, 0]);
    write("b/organs/lung_right.nii", [0, 0, 0, 0, 0, 0, 0, 1]);
    let dataset = open().expect("two cases");
    let [a, b] = dataset.all_cases() else { panic!("two cases") };
    assert_eq!((a.name.as_str(), a.files.paths().len(), b.files.paths().len()), ("a", 4, 2));
    let classes = |case| dataset.read(case).expect("readable").label.into_voxels();
    let of = |classes: Array3<u8>| {
        // By default, rows run to the back and columns to the left.
        let mut classes: Vec<u8> = classes.into_iter().collect();
        classes.reverse();
        classes
    };
    assert_eq!(of(classes(a)), [1, 2, 2, 0, 1, 0, 0, 0]);
    assert_eq!(of(classes(b)), [0, 0, 0, 0, 0, 0, 0, 2]);
    let image = a.files.paths()[0].display().to_string();
    let warnings = warnings_with(&image);
    assert!(warnings.iter().any(|text| text.contains("1 voxels are in the masks")), "{warnings:?}");
}

/// What a description changes about the slices of equal files is part of the name of their cache.
#[test]
fn cached_slices_depend_on_all_that_a_description_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let identity = [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]];
    let geometry = || Some(Geometry::new([1, 2, 4], identity));
    let write = |name: &str, voxels: Array3<f32>| {
        let file = folder.path().join(name);
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
        write_nifti(&file, &Volume::new(voxels, geometry())).expect("writes");
    };
    let mut image = Array3::from_elem((1, 2, 4), 50.0);
    image[(0, 0, 0)] = f32::NAN;
    write("a/ct.nii", image);
    for (i, organ) in ["x", "y", "z"].into_iter().enumerate() {
        let mut mask = Array3::zeros((1, 2, 4));
        mask[(0, 1, i)] = 1.0;
        write(&format!("a/{organ}.nii"), mask);
    }
    let slices = |fill: &str, organs: &str| {
        let text = format!(
            "name = \"a\"\nfill_nan = {fill}\nintensity = {{ window = [0, 100] }}\n\
             layout.nifti = {{ images = \"{{case}}/ct.nii\", labels = \"{{case}}/{{organ}}.nii\" }}\n\
             organs = [{organs}]"
        );
        let description = DatasetDescription::from_toml(&text).expect("a valid description");
        let dataset = Dataset::open(folder.path(), description).expect("one case");
        let cases: Vec<_> = dataset.all_cases().iter().collect();
        let store = SliceStore::open(&dataset, &cases, folder.path().join("cache"), |_| {});
        let slice = store.expect("cached").slice(0).expect("a slice");
        let label = |class: u8| slice.label.iter().filter(|&&found| found == class).count();
        (slice.image.iter().copied().fold(0.0, f32::max), label(1), label(2))
    };
    let two = "{ name = \"p\", files = [\"x\", \"y\"] }, { name = \"q\", files = [\"z\"] }";
    let other = "{ name = \"p\", files = [\"x\"] }, { name = \"q\", files = [\"y\", \"z\"] }";
    assert_eq!(slices("50", two), (0.5, 2, 1));
    assert_eq!(slices("50", other), (0.5, 1, 2));
    assert_eq!(slices("100", two), (1.0, 2, 1));
}
