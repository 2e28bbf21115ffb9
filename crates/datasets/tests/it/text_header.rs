//! NRRD and MetaImage files, compared with SimpleITK.

use crate::support::{Cases, fixture};
use sam_lst_datasets::ndarray::Array3;
use sam_lst_datasets::{
    Dataset, DatasetDescription, Geometry, IgnoredLabels, LabelMap, Orientation, inspect,
    read_geometry, read_image, read_label_numbers, read_labels,
};
use std::collections::BTreeMap;
use std::path::Path;

const FILES: [&str; 23] = [
    "u1.nrrd",
    "i1.nrrd",
    "u2.nrrd",
    "i2.nrrd",
    "u4.nrrd",
    "i4.nrrd",
    "f4.nrrd",
    "f8.nrrd",
    "u1.mha",
    "i1.mha",
    "u2.mha",
    "i2.mha",
    "u4.mha",
    "i4.mha",
    "f4.mha",
    "f8.mha",
    "detached.nhdr",
    "detached_gzip.nhdr",
    "detached_meta.mhd",
    "detached_meta_zlib.mhd",
    "big.nrrd",
    "spacings.nrrd",
    "big.mhd",
];

fn file(name: &str) -> std::path::PathBuf {
    fixture("text_header").join(name)
}

#[test]
fn files_of_all_kinds_match_simple_itk() {
    let cases = Cases::open("text_header");
    for name in FILES {
        let image = read_image(file(name), Orientation::Stored);
        let image = image.unwrap_or_else(|error| panic!("{name}: {error}"));
        let expected = cases.volume(&format!("{name}.voxels")).mapv(|voxel| voxel as f32);
        assert_eq!(image.channel(0), expected, "{name}");
        let geometry = image.geometry().expect("one");
        let (expected, _) = cases.numbers(&format!("{name}.affine"));
        for (ours, theirs) in geometry.affine_mm().as_flattened().iter().zip(expected) {
            assert!((ours - theirs).abs() <= 2e-5, "{name}: {ours}, not {theirs}");
        }
        let alone = read_geometry(file(name), Orientation::Stored).expect("one");
        assert_eq!(alone.as_ref().map(Geometry::affine_mm), Some(geometry.affine_mm()));
    }
}

#[test]
fn labels_are_read_and_turned() {
    let cases = Cases::open("text_header");
    let numbers = cases.volume("u1.mha.voxels").mapv(|voxel| voxel as u16);
    let map = LabelMap::new(&[(1..50).collect(), (50..100).collect()], &IgnoredLabels::default());
    let classes = numbers.mapv(|number| map.class_of(number).expect("known"));
    let read = |orientation| -> Array3<u8> {
        let volume = read_labels(file("u1.mha"), orientation, &map, &BTreeMap::new());
        volume.expect("labels").into_voxels()
    };
    assert_eq!(read(Orientation::Stored), classes);
    // Its slices run to the feet.
    let mut turned = classes.clone();
    turned.invert_axis(sam_lst_datasets::ndarray::Axis(0));
    assert_eq!(read(Orientation::LPS), turned);
    let found = read_label_numbers(file("u1.mha"), &BTreeMap::new()).expect("labels");
    let mut expected: Vec<u16> = numbers.iter().copied().collect();
    expected.sort_unstable();
    expected.dedup();
    assert_eq!(found.into_iter().collect::<Vec<_>>(), expected);
    let error = read_labels(file("f4.nrrd"), Orientation::LPS, &map, &BTreeMap::new());
    assert!(error.expect_err("halves").to_string().contains("whole numbers"));
}

#[test]
fn invalid_headers_are_errors() {
    let folder = tempfile::tempdir().expect("a folder");
    let refused = |name: &str, bytes: &[u8]| -> String {
        let file = folder.path().join(name);
        std::fs::write(&file, bytes).expect("writes");
        read_geometry(&file, Orientation::LPS).err().map_or_else(
            || read_image(&file, Orientation::LPS).expect_err(name).to_string(),
            |error| error.to_string(),
        )
    };
    let nrrd =
        "NRRD0004\ntype: short\ndimension: 3\nsizes: 2 2 2\nencoding: raw\nendian: little\n\n";
    let meta = "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_SHORT\n\
                ElementDataFile = LOCAL\n";
    for (from, to, expected) in [
        ("short", "block", "its type is `block`"),
        ("2 2 2", "2 2 2 3", "expected one volume with three axes"),
        ("2 2 2", "2 2", "expected one volume with three axes"),
        ("2 2 2", "2 0 2", "expected one volume with three axes"),
        ("2 2 2", "30000 30000 30000", "exceed the limit"),
        ("2 2 2", "300 300 300", "can hold at most"),
        ("raw", "bzip2", "its encoding is `bzip2`"),
        ("endian: little\n", "", "little or big endian"),
        ("\n\n", "\nspace: scanner-xyz\n\n", "its space is `scanner-xyz`"),
        ("\n\n", "\nspacings: a b c\n\n", "its `spacings` is `a b c`"),
        ("\n\n", "\nspace directions: (1,0,0) (0,1,0) (0,0,0)\n\n", "spacing must be positive"),
        ("\n\n", "\ndata file: LIST\n\n", "in several files"),
        ("\n\n", "\ndata file: none.raw\n\n", "none.raw"),
        ("\n\n", "\nnonsense\n\n", "line 7 is not a field"),
        ("\n\n", "\n", "has no end"),
    ] {
        let error = refused("a.nrrd", (nrrd.replace(from, to) + "1234567890123456").as_bytes());
        assert!(error.contains(expected), "{error}");
    }
    for (from, to, expected) in [
        ("MET_SHORT", "MET_STRING", "element type is `MET_STRING`"),
        ("DimSize = 2 2 2\n", "", "no `dimsize`"),
        ("NDims = 3\n", "NDims = 3\nElementNumberOfChannels = 3\n", "several channels"),
        ("NDims = 3\n", "NDims = 3\nBinaryData = False\n", "are text"),
        ("NDims = 3\n", "NDims = 3\nHeaderSize = x\n", "`HeaderSize` is x"),
        ("LOCAL", "slice%03d.raw", "in several files"),
        ("ElementDataFile = LOCAL\n", "", "no end"),
    ] {
        let error = refused("a.mha", (meta.replace(from, to) + "1234567890123456").as_bytes());
        assert!(error.contains(expected), "{error}");
    }
    let compressed = std::fs::read(file("i2.nrrd")).expect("a fixture");
    let error = refused("b.nrrd", &compressed[..compressed.len() - 20]);
    assert!(error.contains("truncated"), "{error}");
    let error = refused("b.nrrd", "NRRD0004\ntype: short".as_bytes());
    assert!(error.contains("no end"), "{error}");
}

#[test]
fn a_case_is_identified_by_the_voxels_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path();
    let copy = |from: &str, to: &Path| {
        std::fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
        std::fs::copy(file(from), to).expect("copies");
    };
    copy("big.mhd", &root.join("images/a.mhd"));
    copy("big.raw", &root.join("images/big.raw"));
    copy("u1.mha", &root.join("labels/a.mha"));
    let layout =
        "layout.files = { images = \"images/{case}.mhd\", labels = \"labels/{case}.mha\" }";
    let toml = format!(
        "name = \"x\"\nintensity = \"stored\"\norgans = [{{ name = \"a\", labels = [1] }}]\n{layout}"
    );
    let description = DatasetDescription::from_toml(&toml).expect("valid");
    let dataset = Dataset::open(root, description).expect("a case");
    let files = &dataset.all_cases()[0].files;
    let before = files.sha256().expect("readable");
    let mut voxels = std::fs::read(root.join("images/big.raw")).expect("readable");
    *voxels.last_mut().expect("voxels") ^= 1;
    std::fs::write(root.join("images/big.raw"), voxels).expect("writes");
    assert_ne!(files.sha256().expect("readable"), before);

    // Recognised, although image and label have other endings.
    let inspection = inspect(root, |_, _| {}).expect("recognised");
    assert!(
        inspection.notes.iter().any(|note| note.contains("corners of")),
        "{:?}",
        inspection.notes
    );
}
