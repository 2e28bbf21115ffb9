//! Invalid files: each gives an error that names the file and the cause, and none a panic.

use crate::support::fixture;
use proptest::prelude::*;
use sam_lst_datasets::{
    Dataset, DatasetDescription, DatasetError, Intensity, LabelMap, Orientation, ReadError, Split,
    prepare, read_dicom_image, read_h5_volume, read_nifti_image, read_nifti_labels, read_npz_slice,
};
use std::io::Write;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn folder() -> TempDir {
    tempfile::tempdir().expect("temporary folder")
}

/// Writes `bytes` to a file in `folder`.
fn file(folder: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).expect("write file");
    path
}

fn nifti_bytes() -> Vec<u8> {
    std::fs::read(fixture("nifti/i2_little.nii")).expect("fixture")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("write to memory");
    encoder.finish().expect("write to memory")
}

/// The message for a compressed NIfTI file whose bytes from `at` are replaced; the uncompressed
/// file must give an error too.
fn nifti_error(at: usize, replacement: &[u8]) -> String {
    let mut bytes = nifti_bytes();
    bytes[at..at + replacement.len()].copy_from_slice(replacement);
    let folder = folder();
    let read = |name: &str, bytes: &[u8]| {
        let error = read_nifti_image(file(&folder, name, bytes), Orientation::Axial)
            .expect_err("an invalid file")
            .to_string();
        assert!(error.contains(name), "byte {at}: {error}");
        error
    };
    read("invalid.nii", &bytes);
    read("invalid.nii.gz", &gzip(&bytes))
}

#[test]
fn invalid_nifti_headers_are_reported() {
    let short = |n: i16| n.to_le_bytes();
    let single = |x: f32| x.to_le_bytes();
    for (at, replacement, expected) in [
        (42, &short(10_000)[..], "declares 300000 bytes of voxels, but a file of its size"),
        (
            42,
            &[short(20_000), short(20_000), short(3_000)].concat(),
            "its 1200000000000 voxels exceed the limit of 1073741824;",
        ),
        (40, &short(0), "Inconsistent value"),
        (42, &short(0), "must be positive"),
        (
            40,
            &[short(4), short(4), short(5), short(3), short(2)].concat(),
            "it has 2 volumes along its fourth axis; if they are channels",
        ),
        (42, &short(3), "it continues after the 90 bytes of voxels"),
        (70, &short(32), "voxel type Complex64 is not supported; convert"),
        (70, &short(99), "voxel type code 99 is not supported"),
        (108, &single(3.5), "its voxels start at byte 3.5"),
        (108, &single(f32::INFINITY), "its voxels start at byte inf"),
        (108, &single(1e6), "the file is truncated"),
        (280, &[single(0.0); 3].concat(), "cannot be inverted"),
        (280, &single(f32::NAN), "spacing"),
        (344, b"ni1\0", "the header of a file pair; name it .hdr and put the .img file beside it"),
        (344, b"nii\0", "does not begin with a NIfTI header; convert it to NIfTI"),
        (0, &540_i32.to_le_bytes(), "it ends after 472 bytes"),
    ] {
        let error = nifti_error(at, replacement);
        assert!(error.contains(expected), "byte {at}: {error}");
    }
}

#[test]
fn a_spacing_that_gives_the_geometry_must_be_positive() {
    let folder = folder();
    let mut bytes = std::fs::read(fixture("nifti/bare.nii")).expect("fixture");
    for value in [0.0, f32::NAN, f32::INFINITY] {
        bytes[84..88].copy_from_slice(&value.to_le_bytes());
        let error = read_nifti_image(file(&folder, "bare.nii", &bytes), Orientation::Stored)
            .expect_err("no spacing")
            .to_string();
        assert!(error.contains("positive and finite") && error.contains("pixdim"), "{error}");
    }
}

#[test]
fn incomplete_pairs_and_analyze_files_are_reported() {
    let folder = folder();
    let header = std::fs::read(fixture("nifti/pair.hdr")).expect("fixture");
    let read = |name: &str| {
        let file = folder.path().join(name);
        read_nifti_image(file, Orientation::Stored).expect_err("incomplete").to_string()
    };
    file(&folder, "alone.hdr", &header);
    assert!(read("alone.hdr").contains("alone.img: No such file"), "{}", read("alone.hdr"));
    file(&folder, "short.hdr", &header);
    file(&folder, "short.img", &[0; 60]);
    assert!(read("short.img").contains("declares 120 bytes of voxels"), "{}", read("short.img"));
    let mut analyze = header;
    analyze[344..348].fill(0);
    file(&folder, "old.hdr", &analyze);
    assert!(
        read("old.hdr").contains("Analyze file, which has no orientation"),
        "{}",
        read("old.hdr")
    );
}

#[test]
fn truncated_and_foreign_nifti_files_are_reported() {
    let folder = folder();
    let whole = nifti_bytes();
    let zipped = gzip(&whole);
    let cases = [
        ("cut.nii", whole[..whole.len() - 7].to_vec(), "file of its size can hold at most 113"),
        ("cut_header.nii", whole[..100].to_vec(), "it ends after 100 bytes"),
        (
            "cut_early.nii.gz",
            zipped[..zipped.len() / 3].to_vec(),
            "cut_early.nii.gz: not a valid compressed file:",
        ),
        (
            "cut_voxels.nii.gz",
            zipped[..zipped.len() - 30].to_vec(),
            "is truncated: its header declares 120 bytes",
        ),
        ("cut_checksum.nii.gz", zipped[..zipped.len() - 4].to_vec(), "is truncated"),
        ("text.nii", b"not a NIfTI file\n".to_vec(), "it ends after 17 bytes"),
        ("empty.nii.gz", Vec::new(), "ends after 0 bytes"),
    ];
    for (name, bytes, expected) in cases {
        let error = read_nifti_image(file(&folder, name, &bytes), Orientation::Stored)
            .expect_err(name)
            .to_string();
        assert!(error.contains(expected) && error.contains(name), "{name}: {error}");
    }
    let mut flipped = zipped.clone();
    let checksum = flipped.len() - 6;
    flipped[checksum] ^= 1;
    let error = read_nifti_image(file(&folder, "flipped.nii.gz", &flipped), Orientation::Stored);
    assert!(matches!(error, Err(ReadError::Format { .. })), "the checksum must be verified");
    // Damage that alters the number of columns is reported as damage.
    let mut altered = whole;
    altered[43] = 0x7f;
    let mut altered = gzip(&altered);
    let checksum = altered.len() - 8;
    altered[checksum..].copy_from_slice(&zipped[zipped.len() - 8..]);
    let error = read_nifti_image(file(&folder, "header.nii.gz", &altered), Orientation::Stored)
        .expect_err("damaged")
        .to_string();
    assert!(error.contains("not a valid compressed file"), "{error}");
    let missing = folder.path().join("missing.nii");
    let error = read_nifti_image(&missing, Orientation::Stored).expect_err("missing").to_string();
    assert!(error.contains("cannot read") && error.contains("missing.nii"), "{error}");
}

#[test]
fn invalid_voxels_are_reported() {
    let mut bytes = std::fs::read(fixture("nifti/f4_little.nii")).expect("fixture");
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        // Voxel (1, 2, 0) of a file of 4 x 5 x 3.
        bytes[352 + 4 * (1 + 2 * 4)..][..4].copy_from_slice(&value.to_le_bytes());
        let folder = folder();
        let error = read_nifti_image(file(&folder, "invalid.nii", &bytes), Orientation::Axial)
            .expect_err("not finite");
        assert!(matches!(&error, ReadError::NonFinite { voxel: [1, 2, 0], .. }), "{error}");
        let message = error.to_string();
        assert!(message.contains("invalid.nii: voxel (1, 2, 0) is"), "{error}");
        assert_eq!(message.contains("set `fill_nan`"), value.is_nan(), "{message}");
        let mut description = DatasetDescription::synapse();
        description.orientation = Orientation::Stored;
        description.intensity = Intensity::Stored;
        description.fill_nan = Some(-7.0);
        let filled = description.read_image(folder.path().join("invalid.nii"));
        assert_eq!(filled.is_ok(), value.is_nan());
        if let Ok(filled) = filled {
            assert_eq!(filled.voxels()[(0, 0, 2, 1)], -7.0);
        }
    }
    let map = LabelMap::identity(9);
    let error = read_nifti_labels(fixture("nifti/f4_little.nii"), Orientation::Stored, &map)
        .expect_err("fractions");
    assert!(matches!(&error, ReadError::Label { voxel: [0, 0, 0], .. }), "{error}");
    assert!(error.to_string().contains("; labels are whole numbers from 0 to 65535;"), "{error}");
    let error = read_nifti_labels(fixture("nifti/i1_little.nii"), Orientation::Stored, &map)
        .expect_err("negative");
    assert!(error.to_string().contains("which has labels 0 to 8;"), "{error}");
}

/// An npz file with these members.
fn npz(folder: &TempDir, members: &[(&str, &[u8])]) -> PathBuf {
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in members {
        archive
            .start_file(*name, zip::write::SimpleFileOptions::default())
            .expect("write to memory");
        archive.write_all(bytes).expect("write to memory");
    }
    file(folder, "slice.npz", &archive.finish().expect("write to memory").into_inner())
}

fn npy(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// An npy stream with these header entries and `bytes` bytes of ones.
fn plane(descr: &str, shape: &str, bytes: usize) -> Vec<u8> {
    npy(
        &format!("{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n"),
        &vec![1; bytes],
    )
}

type Members = Vec<(&'static str, Vec<u8>)>;

/// Members of invalid npz files, with the expected message. A valid label is added where it is not
/// what is tested.
fn invalid_npz_cases() -> Vec<(Members, &'static str)> {
    let image = plane("'|u1'", "(2, 3)", 6);
    vec![
        (vec![("image.npy", image.clone())], "array `label` is missing, found image;"),
        (vec![], "array `image` is missing, found none;"),
        (
            vec![("image.npy", plane("'|u1'", "(3, 2)", 6))],
            "`image` has shape [3, 2] and `label` [2, 3]",
        ),
        (vec![("image.npy", plane("'|u1'", "(2, 3)", 5))], "is truncated"),
        (vec![("image.npy", plane("'|u1'", "(2, 3)", 7))], "it continues after the 6 bytes"),
        (vec![("image.npy", plane("'<f8'", "(20000, 20000)", 6))], "declares 3200000000 bytes"),
        (
            vec![("image.npy", plane("'<f8'", "(4000000000, 4000000000)", 6))],
            "its 16000000000000000000 voxels exceed the limit",
        ),
        (
            vec![("image.npy", plane("'<f8'", "(99999999999999999999, 9)", 6))],
            "its shape is not a tuple of axis lengths",
        ),
        (
            vec![("image.npy", plane("'<f8'", "(-1, 9)", 6))],
            "its shape is not a tuple of axis lengths",
        ),
        (vec![("image.npy", plane("'<f8'", "(0, 9)", 6))], "expected at least one row and column"),
        (vec![("image.npy", plane("'<f8'", "(2, 3, 1)", 48))], "expected [rows, columns];"),
        (vec![("image.npy", plane("'<c8'", "(2, 3)", 48))], "voxel type '<c8' is not supported"),
        (vec![("image.npy", plane("'|O'", "(2, 3)", 48))], "voxel type '|O' is not supported"),
        (vec![("image.npy", plane("[('a', '<f4')]", "(2, 3)", 24))], "voxel type [("),
        (
            vec![("image.npy", npy("{'descr': '<f4'}", &[]))],
            "lacks `descr`, `fortran_order` or `shape`",
        ),
        (vec![("image.npy", npy(&"(".repeat(4000), &[]))], "does not describe a plain array"),
        (vec![("image.npy", npy("nonsense", &[]))], "not a Python literal"),
        (
            vec![("image.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff".to_vec())],
            "its header has 4294967295 bytes, which exceeds the limit of 4096",
        ),
        (vec![("image.npy", b"\x93NUMPY\x07\x00".to_vec())], "unknown npy version 7"),
        (vec![("image.npy", b"PK nonsense".to_vec())], "not begin with NumPy's magic string"),
        (
            vec![
                ("image.npy", plane("'<f4'", "(2, 3)", 24)),
                ("label.npy", plane("'|u1'", "(2, 4)", 8)),
            ],
            "`label` [2, 4]",
        ),
        (
            vec![
                ("image.npy", image),
                (
                    "label.npy",
                    npy(
                        "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 3), }",
                        &[0, 1, 2, 3, 4, 9],
                    ),
                ),
            ],
            "label 9 at voxel (2, 1, 0) is not in the dataset description, which has labels 0 to \
             8; add it to an organ's labels or to ignored_labels",
        ),
    ]
}

#[test]
fn invalid_npz_files_are_reported() {
    let map = LabelMap::identity(9);
    for (mut members, expected) in invalid_npz_cases() {
        let has_label = members.iter().any(|(name, _)| *name == "label.npy");
        if !has_label && !expected.contains("is missing") {
            members.push(("label.npy", plane("'|u1'", "(2, 3)", 6)));
        }
        let members: Vec<(&str, &[u8])> =
            members.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
        let folder = folder();
        let error = read_npz_slice(npz(&folder, &members), &map).expect_err(expected).to_string();
        assert!(error.contains(expected) && error.contains("slice.npz"), "{expected}: {error}");
    }
    let folder = folder();
    let error = read_npz_slice(file(&folder, "no.npz", b"text"), &map)
        .expect_err("not an archive")
        .to_string();
    assert!(error.contains("no.npz: not a valid npz file:"), "{error}");
}

#[test]
fn invalid_h5_files_are_reported() {
    let map = LabelMap::identity(9);
    let write = |folder: &TempDir, datasets: &[(&str, &[f32], &[u64])]| {
        let mut builder = hdf5_pure::FileBuilder::new();
        for (name, data, shape) in datasets {
            builder.create_dataset(name).with_f32_data(data).with_shape(shape);
        }
        let path = folder.path().join("volume.npy.h5");
        builder.write(&path).expect("write file");
        path
    };
    let ones = [1.0; 8];
    let cube: &[u64] = &[2, 2, 2];
    for (datasets, expected) in [
        (
            vec![("image", &ones[..], cube), ("mask", &ones[..], cube)],
            "array `label` is missing, found image, mask;",
        ),
        (vec![("image", &ones[..], cube), ("label", &ones[..4], &[1, 2, 2])], "`label` [1, 2, 2]"),
        (
            vec![("image", &ones[..], &[4, 2]), ("label", &ones[..], cube)],
            "expected [slices, rows, columns];",
        ),
        (
            vec![
                ("image", &ones[..], cube),
                ("label", &[1.0, 2.0, 3.5, 0.0, 0.0, 0.0, 0.0, 0.0][..], cube),
            ],
            "label 3.5 at voxel (0, 1, 0) is not in the dataset description",
        ),
        (
            vec![
                ("image", &[1.0, f32::NAN, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0][..], cube),
                ("label", &ones[..], cube),
            ],
            "voxel (0, 0, 1) is NaN",
        ),
    ] {
        let folder = folder();
        let error =
            read_h5_volume(write(&folder, &datasets), &map).expect_err(expected).to_string();
        assert!(error.contains(expected) && error.contains("volume.npy.h5"), "{expected}: {error}");
    }
    let whole =
        std::fs::read(fixture("synapse/prepared/test_vol_h5/case0001.npy.h5")).expect("fixture");
    let folder = folder();
    for bytes in [&whole[..whole.len() - 100], &whole[..300], b"text", b""] {
        let path = file(&folder, "cut.h5", bytes);
        let error = read_h5_volume(&path, &map).expect_err("cut").to_string();
        assert!(error.contains("cut.h5"), "{error}");
    }
}

fn copy_synapse(to: &Path) {
    for part in ["img/img0001", "img/img0005", "label/label0001", "label/label0005"] {
        let file = format!("RawData/Training/{part}.nii.gz");
        let destination = to.join(&file);
        std::fs::create_dir_all(destination.parent().expect("a folder")).expect("write file");
        std::fs::copy(fixture("synapse").join(&file), destination).expect("fixture");
    }
}

#[test]
fn invalid_dataset_folders_are_reported() {
    let folder = folder();
    let open = || Dataset::open(folder.path(), DatasetDescription::synapse());
    let error = open().expect_err("no image folder").to_string();
    assert!(error.contains("cannot read") && error.contains("RawData/Training/img"), "{error}");
    std::fs::create_dir_all(folder.path().join("RawData/Training/img")).expect("write file");
    let error = open().expect_err("no images").to_string();
    assert!(
        error.contains("cannot find any case at") && error.contains("img{case}.nii.gz"),
        "{error}"
    );

    copy_synapse(folder.path());
    let raw = folder.path().join("RawData/Training");
    assert!(open().is_ok());
    std::fs::write(raw.join("img/._img0007.nii.gz"), "an archive's hidden file")
        .expect("write file");
    assert_eq!(open().expect("hidden files are ignored").all_cases().len(), 2);
    let error = open()
        .expect("two cases")
        .cases(Split::Validation)
        .expect_err("no validation cases")
        .to_string();
    assert!(
        error.contains("cannot use the validation split")
            && error.contains("the dataset's cases are 0001, 0005;"),
        "{error}"
    );

    // Label and image with different shapes, then with different geometries.
    let nifti = fixture("nifti/bare.nii");
    let read_first = || {
        let dataset = open().expect("two cases");
        let case = dataset.all_cases()[0].clone();
        dataset.read(&case).expect_err("image and label differ").to_string()
    };
    let volume = read_nifti_image(&nifti, Orientation::Stored).expect("fixture");
    let labels = volume.with_voxels(volume.voxels().mapv(|_| 0_u8));
    sam_lst_datasets::write_nifti(raw.join("label/label0001.nii.gz"), &labels).expect("write file");
    let error = read_first();
    assert!(
        error.contains("img0001.nii.gz is [3, 6, 7]")
            && error.contains("label0001.nii.gz is [3, 5, 4]"),
        "{error}"
    );
    let image =
        read_nifti_image(raw.join("img/img0001.nii.gz"), Orientation::Stored).expect("fixture");
    let mut affine = image.geometry().expect("NIfTI has one").affine_mm();
    affine[2][3] += 1.5;
    let moved = sam_lst_datasets::Geometry::new(image.shape(), affine);
    let labels = sam_lst_datasets::Volume::new(image.voxels().mapv(|_| 0_u8), Some(moved));
    sam_lst_datasets::write_nifti(raw.join("label/label0001.nii.gz"), &labels).expect("write file");
    let error = read_first();
    assert!(error.contains("up to 1.500 mm apart") && error.contains("label0001"), "{error}");

    std::fs::remove_file(raw.join("label/label0001.nii.gz")).expect("an existing file");
    let error = open().expect_err("a label is missing").to_string();
    assert!(
        error.contains("cannot read case 0001: its image has no label file")
            && error.contains("label0001.nii.gz"),
        "{error}"
    );
}

#[test]
fn invalid_prepared_folders_are_reported() {
    let folder = folder();
    let open = || Dataset::open(folder.path(), DatasetDescription::synapse_prepared());
    assert!(matches!(open(), Err(DatasetError::NoCases { .. })));
    let raw = Dataset::open(fixture("synapse"), DatasetDescription::synapse()).expect("fixture");
    prepare(&raw, folder.path(), |_| {}).expect("write file");
    assert!(open().is_ok());
    let lists = folder.path().join("lists/lists_Synapse");
    for (list, line, expected) in [
        ("train.txt", "case0005-000", "`case0005-000` is not a name like case0005_slice000"),
        ("train.txt", "case0009_slice000", "names case0009_slice000, but"),
        ("test_vol.txt", "volume7", "names volume7, but"),
        ("train.txt", "case0005_slice000\ncase0005_slice0.npz", "which are the same"),
        ("test_vol.txt", "case0001\ncase0001.npy.h5", "which are the same"),
        ("test_vol.txt", "case0005", "is missing"),
    ] {
        let path = lists.join(list);
        let before = std::fs::read_to_string(&path).expect("written");
        std::fs::write(&path, format!("{before}{line}\n")).expect("write file");
        let error = open().expect_err(expected).to_string();
        assert!(error.contains(expected) && error.contains(list), "{error}");
        std::fs::write(&path, before).expect("write file");
    }
    let volumes = folder.path().join("test_vol_h5");
    std::fs::copy(volumes.join("case0001.npy.h5"), volumes.join("case0005.npy.h5"))
        .expect("write file");
    std::fs::write(lists.join("test_vol.txt"), "case0005\n").expect("write file");
    let error = open().expect_err("0005 is a training case").to_string();
    assert!(error.contains("case 0005 is in two splits, training and test"), "{error}");
}

/// Changes some bytes, and truncates at `cut`.
pub fn damaged(
    mut bytes: Vec<u8>,
    changes: &[(prop::sample::Index, u8)],
    cut: Option<prop::sample::Index>,
) -> Vec<u8> {
    for (position, value) in changes {
        let position = position.index(bytes.len());
        bytes[position] = *value;
    }
    if let Some(cut) = cut {
        bytes.truncate(cut.index(bytes.len()));
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn readers_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        early in prop::collection::vec((0_usize..352, any::<u8>()), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let folder = folder();
        let map = LabelMap::identity(9);
        let mut plain = damaged(nifti_bytes(), &changes, cut);
        for (position, value) in early {
            if let Some(byte) = plain.get_mut(position) {
                *byte = value;
            }
        }
        for bytes in [gzip(&plain), damaged(gzip(&nifti_bytes()), &changes, cut), plain] {
            let path = file(&folder, "damaged.nii", &bytes);
            for orientation in [Orientation::Axial, Orientation::Stored] {
                let _ = read_nifti_image(&path, orientation);
                let _ = read_nifti_labels(&path, orientation, &map);
            }
        }
        for name in ["nifti2_big.nii", "one_hot.nii.gz"] {
            let whole = std::fs::read(fixture("nifti").join(name)).expect("fixture");
            let path = file(&folder, "odd.nii", &damaged(whole, &changes, cut));
            let _ = read_nifti_image(&path, Orientation::default());
            let _ = read_nifti_labels(&path, Orientation::default(), &map);
        }
        for name in ["compressed.npz", "train_npz/case0005_slice000.npz"] {
            let whole = std::fs::read(fixture("synapse/prepared").join(name)).expect("fixture");
            let path = file(&folder, "damaged.npz", &damaged(whole, &changes, cut));
            let _ = read_npz_slice(path, &map);
        }
        for name in ["chunked.npy.h5", "test_vol_h5/case0001.npy.h5"] {
            let whole = std::fs::read(fixture("synapse/prepared").join(name)).expect("fixture");
            let path = file(&folder, "damaged.h5", &damaged(whole, &changes, cut));
            let _ = read_h5_volume(path, &map);
        }
        let text = damaged(DatasetDescription::synapse().to_toml().into_bytes(), &changes, cut);
        let _ = DatasetDescription::from_toml(&String::from_utf8_lossy(&text));
    }
}

proptest! {
    // Each case decodes eight slices.
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn the_reader_of_dicom_series_never_panics(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let folder = folder();
        for name in ["implicit", "rle", "jpeg_lossless", "jpeg_2000"] {
            let series = folder.path().join(name);
            std::fs::create_dir_all(&series).expect("a folder");
            for slice in ["IM0", "IM3"] {
                let whole = std::fs::read(fixture("dicom").join(name).join(slice));
                let mut bytes = whole.expect("fixture");
                if slice == "IM3" {
                    bytes = damaged(bytes, &changes, cut);
                }
                std::fs::write(series.join(slice), bytes).expect("writes");
            }
            let _ = read_dicom_image(&series, Orientation::default());
        }
    }
}
