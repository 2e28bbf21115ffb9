//! NIfTI files, compared with nibabel.

use crate::support::{Cases, collect_warnings, fixture, ndarray, warnings_with};
use ndarray::Array3;
use sam_lst_datasets::{
    Dataset, DatasetDescription, Geometry, IgnoredLabels, LabelMap, Orientation, ReadError, Volume,
    read_label_numbers, read_nifti_geometry, read_nifti_image, read_nifti_labels, write_nifti,
    write_nifti_labels,
};
use std::collections::BTreeMap;
use std::path::Path;

fn read(name: &str, orientation: Orientation) -> Volume<f32> {
    read_nifti_image(fixture("nifti").join(name), orientation)
        .unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
fn assert_read(cases: &Cases, key: &str, volume: &Volume<f32>) {
    let voxels = cases.volume(&format!("{key}.voxels"));
    assert_eq!(volume.voxels(), &voxels.mapv(|voxel| voxel as f32), "{key}");
    let (affine, _) = cases.numbers(&format!("{key}.affine"));
    let ours = volume.geometry().expect("NIfTI has one").affine_mm();
    for (ours, theirs) in ours.as_flattened().iter().zip(affine) {
        assert!((ours - theirs).abs() <= 1e-5, "{key}: {ours} differs from nibabel's {theirs}");
    }
}

#[test]
fn all_types_byte_orders_scalings_and_geometries_match_nibabel() {
    let cases = Cases::open("nifti");
    let files: Vec<String> = cases
        .names()
        .iter()
        .filter_map(|name| name.strip_suffix(".voxels"))
        .filter(|name| !name.starts_with("turned"))
        .map(str::to_owned)
        .collect();
    assert_eq!(files.len(), 32);
    for file in files {
        assert_read(&cases, &file, &read(&file, Orientation::Stored));
    }
}

#[test]
fn reoriented_volumes_match_nibabel() {
    let cases = Cases::open("nifti");
    for (codes, orientation) in [("RAS", "RAS"), ("LPS", "LPS"), ("ASR", "ASR")] {
        let orientation = orientation.parse().expect("an orientation");
        assert_read(&cases, &format!("turned.{codes}"), &read("sagittal.nii.gz", orientation));
    }
    // `Axial` exchanges axes and preserves their directions, which are RAI in this file.
    let axial = read("sagittal.nii.gz", Orientation::Axial);
    let turned = read("sagittal.nii.gz", "RAI".parse().expect("an orientation"));
    assert_eq!(turned.geometry().map(Geometry::shape), Some(axial.shape()));
    assert_eq!(axial, turned);
    assert_eq!(
        axial.spacing_mm().map(|mm| mm.map(|mm| (mm * 1e4).round() / 1e4)),
        Some([0.8, 0.9, 1.5])
    );
}

/// The 48 orders in which a file can store a patient.
fn storage_orders() -> Vec<Orientation> {
    let letters = [["L", "R"], ["P", "A"], ["S", "I"]];
    let mut orders = Vec::new();
    for axes in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        for signs in 0..8 {
            let code: String =
                axes.iter().enumerate().map(|(i, &axis)| letters[axis][signs >> i & 1]).collect();
            orders.push(code.parse().expect("an orientation"));
        }
    }
    orders
}

#[test]
fn by_default_a_patient_reads_alike_however_it_is_stored() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let expected = read("sagittal.nii.gz", Orientation::default());
    let rounded = |volume: &Volume<f32>| {
        let affine = volume.geometry().expect("NIfTI has one").affine_mm();
        affine.map(|row| row.map(|mm| (mm * 1e3).round()))
    };
    let file = folder.path().join("stored.nii");
    let orders = storage_orders();
    assert_eq!(orders.len(), 48);
    for order in orders {
        let stored = read("sagittal.nii.gz", order);
        let affine = stored.geometry().expect("NIfTI has one").affine_mm();
        let geometry = Geometry::new(stored.shape(), affine);
        write_nifti(&file, &Volume::new(stored.voxels().clone(), Some(geometry))).expect("writes");
        let volume = read_nifti_image(&file, Orientation::default()).expect("just written");
        assert_eq!(volume.voxels(), expected.voxels(), "{order}");
        assert_eq!(rounded(&volume), rounded(&expected), "{order}");
        // What is written on this grid lies in the file's own order again.
        write_nifti(&file, &volume).expect("writes");
        let again = read_nifti_image(&file, Orientation::Stored).expect("just written");
        assert_eq!(again.voxels(), stored.voxels(), "{order}");
    }
}

/// The geometry fields of a header: `pixdim`, the fields from `qform_code` to `srow_z`, and the
/// units.
fn geometry_bytes(file: &Path) -> (Vec<u8>, Vec<u8>, u8) {
    use std::io::Read;
    let bytes = std::fs::read(file).expect("written");
    let mut header = vec![0; 348];
    if file.extension().is_some_and(|extension| extension == "gz") {
        flate2::read::GzDecoder::new(bytes.as_slice()).read_exact(&mut header).expect("gzip");
    } else {
        header.copy_from_slice(&bytes[..348]);
    }
    (header[76..108].to_vec(), header[252..328].to_vec(), header[123])
}

#[test]
fn written_files_preserve_the_geometry_bit_for_bit() {
    let folder = tempfile::tempdir().expect("temporary folder");
    for source in [
        "sagittal.nii.gz",
        "qform.nii",
        "bare.nii",
        "four_axes.nii.gz",
        "i2_big.nii",
        "scaled.nii.gz",
    ] {
        for orientation in ["stored", "axial", "LPS", "ASR"] {
            let orientation: Orientation = orientation.parse().expect("an orientation");
            let volume = read(source, orientation);
            let classes = volume.voxels().mapv(|voxel| (voxel.abs() as u32 % 9) as u8);
            let labels = volume.with_voxels(classes);
            for name in ["out.nii", "out.nii.gz"] {
                let file = folder.path().join(name);
                write_nifti(&file, &labels).expect("write files");
                assert_eq!(
                    geometry_bytes(&file),
                    geometry_bytes(&fixture("nifti").join(source)),
                    "{source}"
                );
                let map = LabelMap::identity(9);
                let again = read_nifti_labels(&file, orientation, &map).expect("just written");
                assert_eq!(again.voxels(), labels.voxels(), "{source} as {orientation}");
                assert_eq!(
                    again.geometry().map(Geometry::affine_mm),
                    labels.geometry().map(Geometry::affine_mm)
                );
            }
        }
    }
}

#[test]
fn names_with_dots_are_preserved() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let volume = read("bare.nii", Orientation::Stored);
    for name in ["case.01.nii", "case.01.nii.gz"] {
        let file = folder.path().join(name);
        write_nifti(&file, &volume).expect("write files");
        assert_eq!(
            read_nifti_image(&file, Orientation::Stored).expect("just written").voxels(),
            volume.voxels()
        );
    }
    assert_eq!(
        std::fs::read_dir(folder.path()).expect("a folder").count(),
        2,
        "no temporary files remain"
    );
}

#[test]
fn the_geometry_is_read_without_the_voxels() {
    let file = fixture("nifti").join("sagittal.nii.gz");
    let geometry = read_nifti_geometry(&file, Orientation::Axial).expect("a valid file");
    assert_eq!(Some(&geometry), read("sagittal.nii.gz", Orientation::Axial).geometry());
}

#[test]
fn labels_become_classes_and_unknown_labels_are_reported() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let volume = read("bare.nii", Orientation::Stored);
    let mut labels: Array3<u8> = Array3::zeros(volume.shape());
    labels[(0, 1, 2)] = 6;
    labels[(2, 3, 1)] = 14;
    let file = folder.path().join("label.nii.gz");
    write_nifti(&file, &volume.with_voxels(labels)).expect("write files");
    let map = LabelMap::new(&[vec![6]], &IgnoredLabels::Listed(vec![14]));
    let classes = read_nifti_labels(&file, Orientation::Stored, &map).expect("known labels");
    assert_eq!(classes.voxels()[(0, 1, 2)], 1);
    assert_eq!(classes.voxels().iter().filter(|&&class| class != 0).count(), 1);
    let map = LabelMap::new(&[vec![6], vec![7, 9]], &IgnoredLabels::Listed(vec![8, 11]));
    let error = read_nifti_labels(&file, Orientation::Stored, &map).expect_err("14 is unknown");
    assert!(matches!(&error, ReadError::Label { value: 14.0, voxel: [1, 3, 2], .. }), "{error}");
    let message = error.to_string();
    assert!(
        message.contains("label.nii.gz")
            && message.ends_with(
                "label 14 at voxel (1, 3, 2) is not in the dataset description, which has labels \
                 0, 6 to 9, 11; add it to an organ's labels or to ignored_labels, or set \
                 ignored_labels = \"others\""
            ),
        "{message}"
    );
    let map = LabelMap::new(&[vec![6]], &IgnoredLabels::Others);
    let classes = read_nifti_labels(&file, Orientation::Stored, &map).expect("others are ignored");
    assert_eq!(classes.voxels().iter().filter(|&&class| class != 0).count(), 1);
}

#[test]
fn labels_of_16_bits_are_read_and_written() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let volume = read("bare.nii", Orientation::Stored);
    let mut labels: Array3<u16> = Array3::zeros(volume.shape());
    labels[(0, 1, 2)] = 1024;
    labels[(2, 3, 1)] = 65_535;
    let file = folder.path().join("label.nii.gz");
    write_nifti(&file, &volume.with_voxels(labels.clone())).expect("write files");
    assert!(
        read_label_numbers(&file, &BTreeMap::new())
            .expect("labels")
            .into_iter()
            .eq([0, 1024, 65_535])
    );
    let map = LabelMap::new(&[vec![1024], vec![65_535]], &IgnoredLabels::default());
    let classes = read_nifti_labels(&file, Orientation::Stored, &map).expect("known labels");
    assert_eq!((classes.voxels()[(0, 1, 2)], classes.voxels()[(2, 3, 1)]), (1, 2));
    let written = folder.path().join("written.nii");
    write_nifti_labels(&written, &classes, &map).expect("write files");
    let again = read_nifti_image(&written, Orientation::Stored).expect("just written");
    assert_eq!(again.voxels(), &labels.mapv(f32::from));
    // Small labels take one byte.
    let map = LabelMap::new(&[vec![7], vec![255]], &IgnoredLabels::default());
    write_nifti_labels(&written, &classes, &map).expect("write files");
    let bytes = std::fs::metadata(&written).expect("written").len();
    assert_eq!(bytes, 352 + labels.len() as u64);
}

#[test]
fn labels_near_whole_numbers_are_rounded_and_others_refused() {
    collect_warnings();
    let folder = tempfile::tempdir().expect("temporary folder");
    let volume = read("bare.nii", Orientation::Stored);
    let write = |name: &str, value: f32| {
        let mut labels: Array3<f32> = Array3::zeros(volume.shape());
        labels[(0, 1, 2)] = value;
        let file = folder.path().join(name);
        write_nifti(&file, &volume.with_voxels(labels)).expect("write files");
        file
    };
    let map = LabelMap::identity(9);
    let read = |file: &Path| read_nifti_labels(file, Orientation::Stored, &map);
    for (name, value) in [("scaled.nii", 3.000_045_8), ("below.nii", 2.99), ("exact.nii", 3.0)] {
        let file = write(name, value);
        assert_eq!(read(&file).expect("rounded").voxels()[(0, 1, 2)], 3, "{name}");
        let warnings = warnings_with(&file.display().to_string());
        assert_eq!(warnings.len(), usize::from(value != 3.0), "{warnings:?}");
    }
    for (name, value) in [("mixed.nii", 2.5), ("far.nii", 2.97), ("minus.nii", -1.0)] {
        let error = read(&write(name, value)).expect_err("not a label").to_string();
        assert!(error.contains("labels are whole numbers from 0 to 65535"), "{error}");
    }
}

#[test]
fn labels_with_a_wrong_header_are_taken_voxel_by_voxel_if_the_description_says_so() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let stored = read("sagittal.nii.gz", Orientation::Stored);
    let labels = stored.voxels().mapv(|voxel| (voxel as i32 % 3) as u8);
    let image = folder.path().join("1-image.nii");
    write_nifti(&image, &stored).expect("writes");
    // The label lost its orientation and its origin.
    let shape = stored.shape();
    let identity = [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]];
    let wrong = Volume::new(labels.clone(), Some(Geometry::new(shape, identity)));
    write_nifti(folder.path().join("1-label.nii"), &wrong).expect("writes");
    let text = r#"
        name = "a"
        intensity = "stored"
        ignored_labels = "others"
        layout.nifti = { images = "{case}-image.nii", labels = "{case}-label.nii" }
        organs = [{ name = "b", labels = [1] }]
    "#;
    let read = |text: &str| {
        let description = DatasetDescription::from_toml(text).expect("a valid description");
        let dataset = Dataset::open(folder.path(), description).expect("one case");
        dataset.read(&dataset.all_cases()[0])
    };
    let error = read(text).expect_err("other grids").to_string();
    assert!(error.contains("cannot pair volumes of different shapes"), "{error}");
    let volumes = read(&format!("geometry = \"trust_voxels\"\n{text}")).expect("trusted");
    assert_eq!(volumes.label.geometry(), volumes.image.geometry());
    for (&image, &class) in volumes.image.voxels().iter().zip(volumes.label.voxels()) {
        assert_eq!(class, u8::from(image as i32 % 3 == 1), "{image}");
    }
}

#[test]
fn a_mask_for_each_label_is_read_as_labels() {
    collect_warnings();
    let cases = Cases::open("nifti");
    let expected = cases.volume("one_hot.labels").mapv(|label| label as u8);
    let map = LabelMap::identity(3);
    for (name, labels) in [("one_hot.nii.gz", "0 to 2"), ("masks.nii.gz", "1 to 2")] {
        let file = fixture("nifti").join(name);
        let volume = read_nifti_labels(&file, Orientation::Stored, &map).expect("masks");
        assert_eq!(volume.voxels(), &expected, "{name}");
        assert!(
            read_label_numbers(&file, &BTreeMap::new()).expect("masks").into_iter().eq([0, 1, 2])
        );
        let warnings = warnings_with(&file.display().to_string());
        assert!(warnings[0].contains(&format!("masks of the labels {labels}")), "{warnings:?}");
        // What is written on this grid has three axes.
        let folder = tempfile::tempdir().expect("temporary folder");
        let written = folder.path().join("labels.nii");
        write_nifti(&written, &volume).expect("writes");
        let again = read_nifti_labels(&written, Orientation::Stored, &map).expect("just written");
        assert_eq!(again.voxels(), &expected, "{name}");
        let error = read_nifti_image(&file, Orientation::Stored).expect_err("several volumes");
        assert!(matches!(error, ReadError::FileChannels { .. }), "{error}");
    }
    let two = LabelMap::identity(2);
    let error = read_nifti_labels(fixture("nifti/one_hot.nii.gz"), Orientation::Stored, &two);
    assert!(matches!(error, Err(ReadError::Label { value: 2.0, .. })), "{error:?}");
}
