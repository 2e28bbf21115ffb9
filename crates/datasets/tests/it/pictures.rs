//! Pictures and masks, compared with Pillow, and datasets of them.

use crate::support::{Cases, collect_warnings, fixture, warnings_with};
use sam_lst_datasets::ndarray::{Array3, Axis};
use sam_lst_datasets::{
    Color, Dataset, DatasetDescription, IgnoredLabels, Image, Intensity, LabelMap, Layout,
    Orientation, SliceStore, Split, Volume, inspect, prepare, read_geometry, read_image,
    read_label_numbers, read_labels, read_nifti_image, write_labels, write_map, write_nifti,
};
use std::collections::BTreeMap;
use std::path::Path;

const PICTURES: [&str; 14] = [
    "grey.png",
    "wide.png",
    "rgb.png",
    "rgba.png",
    "palette_image.png",
    "rgb.bmp",
    "palette_image.gif",
    "grey.jpg",
    "rgb.jpg",
    "progressive.jpg",
    "grey.tif",
    "wide.tif",
    "rgb.tif",
    "float.tif",
];

fn picture(name: &str) -> Image {
    let file = fixture("pictures").join(name);
    read_image(file, Orientation::LPS).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn pictures_of_all_kinds_match_pillow() {
    let cases = Cases::open("pictures");
    for name in PICTURES {
        let image = picture(name);
        let (expected, shape) = cases.numbers(&format!("{name}.image"));
        let channels = shape.get(2).copied().unwrap_or(1);
        assert_eq!((image.channels(), image.shape()), (channels, [1, 20, 27]), "{name}");
        assert!(image.geometry().is_none());
        // Decoders of JPEG round differently.
        let tolerance = if name.ends_with("jpg") { 2.0 } else { 0.0 };
        for ((channel, _, row, column), &ours) in image.voxels().indexed_iter() {
            let theirs = expected[(row * 27 + column) * channels + channel] as f32;
            let difference = (ours - theirs).abs();
            assert!(difference <= tolerance, "{name} at {row}, {column}: {ours}, not {theirs}");
        }
        let geometry = read_geometry(fixture("pictures").join(name), Orientation::LPS);
        assert!(geometry.expect("a picture").is_none());
    }
    let stack = picture("stack.tif");
    assert_eq!(stack.channel(0), cases.volume("stack.tif.pages").mapv(|value| value as f32));
}

fn labels(cases: &Cases, name: &str) -> Array3<u8> {
    cases.plane(name, |value| value as u8).insert_axis(Axis(0))
}

fn no_colors() -> BTreeMap<Color, u16> {
    BTreeMap::new()
}

fn colors() -> BTreeMap<Color, u16> {
    BTreeMap::from([(Color([230, 40, 40]), 1), (Color([40, 200, 90]), 2)])
}

fn mask(name: &str, map: &LabelMap, colors: &BTreeMap<Color, u16>) -> Array3<u8> {
    let file = fixture("pictures").join(name);
    let volume = read_labels(file, Orientation::LPS, map, colors);
    volume.unwrap_or_else(|error| panic!("{name}: {error}")).into_voxels()
}

#[test]
fn masks_have_numbers_indices_or_colours() {
    collect_warnings();
    let cases = Cases::open("pictures");
    let expected = labels(&cases, "labels");
    let identity = LabelMap::identity(3);
    for name in ["numbers.png", "numbers.tif", "indexed.png", "indexed_two_bits.png"] {
        assert_eq!(mask(name, &identity, &no_colors()), expected, "{name}");
        let numbers =
            read_label_numbers(fixture("pictures").join(name), &no_colors()).expect("a mask");
        assert_eq!(numbers.into_iter().collect::<Vec<_>>(), [0, 1, 2], "{name}");
    }
    let wide = LabelMap::new(&[vec![300], vec![600]], &IgnoredLabels::default());
    assert_eq!(mask("numbers_wide.png", &wide, &no_colors()), expected);
    for name in ["colours.png", "colours.jpg", "indexed.png"] {
        assert_eq!(mask(name, &identity, &colors()), expected, "{name}");
    }
    let binary = labels(&cases, "binary").mapv(|value| u8::from(value > 0));
    let map = LabelMap::new(&[vec![255]], &IgnoredLabels::default());
    // One bit is 0 and 255, as Pillow converts it.
    for name in [
        "binary.png",
        "binary.bmp",
        "binary.gif",
        "binary.jpg",
        "binary_rgb.jpg",
        "one_bit.png",
        "one_bit.tif",
    ] {
        assert_eq!(mask(name, &map, &no_colors()), binary, "{name}");
    }
    assert!(warnings_with("binary.png").is_empty() && warnings_with("colours.png").is_empty());
}

#[test]
fn soft_edges_are_the_closest_label_with_a_warning() {
    collect_warnings();
    let cases = Cases::open("pictures");
    let map = LabelMap::new(&[vec![255]], &IgnoredLabels::default());
    assert_eq!(mask("soft.png", &map, &no_colors()), labels(&cases, "soft"));
    assert_eq!(warnings_with("pictures/soft.png").len(), 1);

    // Enlarged eight times.
    let soft = mask("soft_colours.png", &LabelMap::identity(3), &colors());
    assert_eq!(warnings_with("pictures/soft_colours.png").len(), 1);
    let small = labels(&cases, "labels");
    let equal = soft
        .indexed_iter()
        .filter(|&((_, row, column), &class)| small[(0, row / 8, column / 8)] == class);
    assert!(100 * equal.count() > 98 * soft.len());
}

/// The error of reading a mask.
fn refused(name: &str, map: &LabelMap, colors: &BTreeMap<Color, u16>) -> String {
    let file = fixture("pictures").join(name);
    read_labels(file, Orientation::LPS, map, colors).expect_err(name).to_string()
}

#[test]
fn grey_masks_have_numbers_even_if_labels_have_colours() {
    let cases = Cases::open("pictures");
    let identity = LabelMap::identity(3);
    assert_eq!(mask("numbers.png", &identity, &colors()), labels(&cases, "labels"));
    let numbers = read_label_numbers(fixture("pictures/numbers.png"), &colors()).expect("a mask");
    assert_eq!(numbers.into_iter().collect::<Vec<_>>(), [0, 1, 2]);
    let numbers = read_label_numbers(fixture("pictures/colours.png"), &colors()).expect("a mask");
    assert_eq!(numbers.into_iter().collect::<Vec<_>>(), [0, 1, 2]);
}

#[test]
fn masks_that_do_not_fit_are_refused() {
    let identity = LabelMap::identity(3);
    let binary = LabelMap::new(&[vec![255]], &IgnoredLabels::default());
    for (error, expected) in [
        (
            refused("numbers.png", &LabelMap::identity(2), &no_colors()),
            "label 2 at voxel (17, 5, 0)",
        ),
        (refused("colours.png", &identity, &no_colors()), "is #e62828"),
        (refused("colours.png", &identity, &no_colors()), "label_colors"),
        (
            refused("colours.png", &identity, &BTreeMap::from([(Color([230, 40, 40]), 1)])),
            "have the value #28c85a, and described are #000000, #e62828",
        ),
        // Neither are 0 and 1 soft edges of 0 and 255.
        (
            refused("numbers.png", &binary, &no_colors()),
            "have the value 1, and described are 0, 255",
        ),
        // Grey levels of an image are no soft edges of a mask.
        (refused("grey.png", &binary, &no_colors()), "choose the mask if this is an image"),
        (refused("rgb.png", &identity, &colors()), "choose the mask if this is an image"),
    ] {
        assert!(error.contains(expected), "{error}");
    }
    // A class whose colour is a mixture of two others is not an edge.
    let black_and_green = BTreeMap::from([(Color([60, 255, 120]), 1)]);
    let error = refused("soft_colours.png", &LabelMap::identity(2), &black_and_green);
    assert!(error.contains("have the value #"), "{error}");
}

/// Writes a mask of grey values.
fn write_mask(file: &Path, size: u32, value: impl Fn(u32, u32) -> u8) {
    std::fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
    let toml = "name = \"x\"\nintensity = \"stored\"\nignored_labels = \"others\"\n\
                layout.files = { images = \"{case}.png\", labels = \"{case}_m.png\" }\norgans = [";
    let organs: String =
        (1..=255).map(|n| format!("{{ name = \"{n}\", labels = [{n}] }},")).collect();
    let description = DatasetDescription::from_toml(&format!("{toml}{organs}]")).expect("valid");
    let voxels = Array3::from_shape_fn((1, size as usize, size as usize), |(_, row, column)| {
        value(column as u32, row as u32)
    });
    write_labels(file, &Volume::new(voxels, None), &description).expect("writes");
}

/// The labels that an inspection of grey masks finds.
fn inspected_labels(value: impl Fn(u32, u32) -> u8) -> Vec<u16> {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path();
    write_mask(&root.join("images/a.png"), 64, |x, y| (x + y) as u8);
    write_mask(&root.join("masks/a.png"), 64, value);
    let inspection = inspect(root, |_, _| {}).expect("recognised");
    let description = inspection.description;
    let dataset = Dataset::open(root, description.clone()).expect("the same folder");
    dataset.read(&dataset.all_cases()[0]).expect("readable by its description");
    description.organs.iter().map(|organ| organ.labels[0]).collect()
}

#[test]
fn values_that_cover_an_area_are_labels_and_edges_are_not() {
    // A disc, with this value as its edge.
    let disc = |x: u32, y: u32, radius: f32, inside: u8, edge: u8| {
        let distance = (x as f32 - 32.0).hypot(y as f32 - 32.0);
        match distance {
            d if d < radius => inside,
            d if d < radius + 1.0 => edge,
            _ => 0,
        }
    };
    let gradient = |x: u32, y: u32| (x * 37 + y * 11) as u8 | 1;
    assert_eq!(inspected_labels(|x, y| disc(x, y, 20.0, 255, gradient(x, y))), [255]);
    // Three grey levels with soft edges.
    let nested = |x, y| {
        let inner = disc(x, y, 8.0, 128, gradient(x, y));
        if inner > 0 { inner } else { disc(x, y, 20.0, 255, gradient(x, y)) }
    };
    assert_eq!(inspected_labels(nested), [128, 255]);
    // Class numbers with a border of 255, as in VOC.
    assert_eq!(inspected_labels(|x, y| disc(x, y, 20.0, 1, 255)), [1, 255]);
    assert_eq!(inspected_labels(|x, y| if y == 9 && x < 40 { 7 } else { u8::from(x < 3) }), [1, 7]);
}

#[test]
fn truncated_jpeg_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("a.jpg");
    let bytes = std::fs::read(fixture("pictures/large.jpg")).expect("a fixture");
    std::fs::write(&file, &bytes[..bytes.len() - 200]).expect("writes");
    let error = read_image(&file, Orientation::LPS).expect_err("truncated").to_string();
    assert!(error.contains("the file is truncated"), "{error}");
}

#[test]
fn damaged_and_hostile_pictures_are_errors() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("picture");
    let check = |bytes: &[u8], expected: &str| {
        std::fs::write(&file, bytes).expect("writes");
        let image = read_image(&file, Orientation::LPS).expect_err(expected).to_string();
        let label = read_labels(&file, Orientation::LPS, &LabelMap::identity(3), &no_colors());
        label.expect_err(expected);
        assert!(image.contains(expected), "{image}");
    };
    for name in ["rgb.png", "rgb.jpg", "rgb.tif", "rgb.bmp", "palette_image.gif", "indexed.png"] {
        let bytes = std::fs::read(fixture("pictures").join(name)).expect("a fixture");
        check(&bytes[..bytes.len() / 3], "cannot read");
    }
    // A width of two million in a file of some hundred bytes.
    let mut png = std::fs::read(fixture("pictures/rgb.png")).expect("a fixture");
    png[16..20].copy_from_slice(&2_000_000_u32.to_be_bytes());
    check(&png, "cannot read");
    let mut bmp = std::fs::read(fixture("pictures/rgb.bmp")).expect("a fixture");
    bmp[18..26].copy_from_slice(&[0, 0, 1, 0, 0, 0, 1, 0]);
    check(&bmp, "limit");
}

/// A dataset of pictures: images and masks of the fixtures, by names.
/// A TIFF file of 2 x 2 pixels whose tags are `tags`, each a number, and whose pixels are `strips`.
fn tiff(tags: &[(u16, u16)], strips: &[&[u8]]) -> Vec<u8> {
    let mut tags: Vec<(u16, Vec<u32>)> =
        tags.iter().map(|&(tag, value)| (tag, vec![value.into()])).collect();
    let lists = 8 + 2 + 12 * (tags.len() + 5) + 4;
    let mut pixels = (lists + 8 * strips.len()) as u32;
    let mut offsets = Vec::new();
    for strip in strips {
        offsets.push(pixels);
        pixels += strip.len() as u32;
    }
    let lengths = strips.iter().map(|strip| strip.len() as u32).collect();
    tags.extend([(256, vec![2]), (257, vec![2]), (278, vec![2]), (273, offsets), (279, lengths)]);
    tags.sort_unstable();
    let mut file = b"II*\0\x08\0\0\0".to_vec();
    let mut after = Vec::new();
    file.extend((tags.len() as u16).to_le_bytes());
    for (tag, values) in tags {
        file.extend(tag.to_le_bytes());
        file.extend(4_u16.to_le_bytes()); // LONG
        file.extend((values.len() as u32).to_le_bytes());
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        if values.len() == 1 {
            file.extend(bytes);
        } else {
            file.extend(((lists + after.len()) as u32).to_le_bytes());
            after.extend(bytes);
        }
    }
    file.extend(0_u32.to_le_bytes());
    after.resize(8 * strips.len(), 0);
    file.extend(after);
    file.extend(strips.concat());
    file
}

#[test]
fn orders_of_tiff_pixels_that_would_be_misread_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("a.tif");
    let read = |bytes: &[u8]| {
        std::fs::write(&file, bytes).expect("writes");
        read_image(&file, Orientation::LPS)
            .map(|image| image.voxels().iter().copied().collect::<Vec<f32>>())
    };
    // 258 bits, 262 white is 1, 266 order of bits, 277 samples, 284 planes.
    let bits = |order: u16| tiff(&[(258, 1), (262, 1), (266, order), (277, 1)], &[&[0x40, 0x80]]);
    let expected = [0.0, 255.0, 255.0, 0.0];
    assert_eq!(read(&bits(1)).expect("usual"), expected);
    let error = read(&bits(2)).expect_err("reversed").to_string();
    assert!(error.contains("its bits are stored in reverse order"), "{error}");
    let colors =
        |order, strips: &[&[u8]]| tiff(&[(258, 8), (262, 2), (277, 3), (284, order)], strips);
    let usual = colors(1, &[&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]]);
    let expected = [1, 4, 7, 10, 2, 5, 8, 11, 3, 6, 9, 12].map(|value| value as f32);
    assert_eq!(read(&usual).expect("usual"), expected);
    let planes = colors(2, &[&[1, 4, 7, 10], &[2, 5, 8, 11], &[3, 6, 9, 12]]);
    let error = read(&planes).expect_err("planes").to_string();
    assert!(error.contains("its colours are stored as separate planes"), "{error}");
}

fn dataset(root: &Path, files: &[(&str, &str)]) {
    for (to, from) in files {
        let to = root.join(to);
        std::fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
        std::fs::copy(fixture("pictures").join(from), to).expect("copies");
    }
}

#[test]
fn folders_of_pictures_are_recognised_and_described() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path();
    dataset(
        root,
        &[
            ("Original/cat.jpg", "large.jpg"),
            ("Original/car.jpg", "large.jpg"),
            ("Original/other.jpg", "large.jpg"),
            ("Ground Truth/cat_mask.png", "soft.png"),
            ("Ground Truth/car_mask.png", "soft.png"),
            ("Ground Truth/other_mask.png", "large_mask.png"),
        ],
    );
    let inspection = inspect(root, |_, _| {}).expect("recognised");
    let Layout::Files(layout) = &inspection.description.layout else { panic!("files") };
    assert_eq!(layout.images, ["Original/{case}.jpg"]);
    assert_eq!(layout.labels, "Ground Truth/{case}_mask.png");
    assert_eq!(inspection.description.intensity, Intensity::Window([0.0, 255.0]));
    let organs = &inspection.description.organs;
    assert_eq!((organs.len(), &*organs[0].name), (1, "foreground"));
    assert_eq!(organs[0].labels, [255]);
    let case = &inspection.cases[0];
    assert_eq!((case.channels, case.spacing_mm, &case.orientation), (3, None, &None));
    assert_eq!(case.labels.keys().copied().collect::<Vec<_>>(), [0, 255]);

    let dataset = Dataset::open(root, inspection.description.clone()).expect("the same folder");
    let names: Vec<&str> = dataset.all_cases().iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names, ["car", "cat", "other"]);
    let volumes = dataset.read(&dataset.all_cases()[0]).expect("a case");
    assert_eq!(volumes.image.channels(), 3);
    assert!(volumes.image.voxels().iter().all(|voxel| (0.0..=1.0).contains(voxel)));
    // Training reads the same colours from its cache.
    let cases: Vec<_> = dataset.all_cases().iter().collect();
    for _ in 0..2 {
        let store = SliceStore::open(&dataset, &cases, root.join("cache"), |_| {}).expect("cached");
        let slice = store.slice(0).expect("a slice");
        assert_eq!(slice.image, volumes.image.slice(0));
        assert_eq!(slice.label, volumes.label.voxels().index_axis(Axis(0), 0));
    }
    let error = prepare(&dataset, root.join("prepared"), |_| {}).expect_err("three channels");
    assert!(error.to_string().contains("it has 3 channels"), "{error}");
}

#[test]
fn colours_of_masks_become_labels() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path();
    dataset(
        root,
        &[
            ("a.png", "grey.png"),
            ("b.png", "grey.png"),
            ("a_seg.png", "colours.png"),
            ("b_seg.png", "colours.png"),
        ],
    );
    let inspection = inspect(root, |_, _| {}).expect("recognised");
    let description = inspection.description;
    // The disc has fewer pixels than the rectangle has not.
    let listed: Vec<(String, u16)> =
        description.label_colors().iter().map(|(color, &label)| ((*color).into(), label)).collect();
    assert_eq!(listed.len(), 3, "{listed:?}");
    assert!(listed.contains(&("#000000".to_owned(), 0)), "{listed:?}");
    let again = DatasetDescription::from_toml(&description.to_toml()).expect("just written");
    assert_eq!(again, description);
    let dataset = Dataset::open(root, description.clone()).expect("the same folder");
    let volumes = dataset.read(&dataset.all_cases()[0]).expect("a case");
    // Written as they were drawn.
    let file = root.join("out.png");
    write_labels(&file, &volumes.label, &description).expect("writes");
    let [ours, theirs] = [file, root.join("a_seg.png")]
        .map(|file| read_image(file, Orientation::LPS).expect("a mask"));
    assert_eq!(ours.voxels(), theirs.voxels());
}

#[test]
fn edges_of_coloured_masks_are_no_labels_and_large_mixtures_are() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path();
    dataset(root, &[("image/a.png", "rgb.png"), ("mask/a.png", "soft_colours.png")]);
    let found = inspect(root, |_, _| {}).expect("recognised").description;
    let labels: Vec<String> = found.label_colors().keys().map(|&color| color.into()).collect();
    assert_eq!(labels, ["#000000", "#28c85a", "#e62828"]);
}

#[test]
fn labels_are_written_in_the_format_of_the_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str| folder.path().join(name);
    let toml = |labels: &str| {
        DatasetDescription::from_toml(&format!(
            "name = \"x\"\nintensity = {{ window = [0, 255] }}\n\
             layout.files = {{ images = \"{{case}}.png\", labels = \"{{case}}_m.png\" }}\n\
             organs = [{{ name = \"a\", labels = [{labels}] }}]"
        ))
        .expect("valid")
    };
    let classes = |slices: usize| {
        let voxels = Array3::from_shape_fn((slices, 4, 5), |(slice, row, column)| {
            u8::from((slice + row + column) % 2 == 0)
        });
        Volume::new(voxels, None)
    };
    for (name, slices, label) in [
        ("one.png", 1, 1),
        ("one.tif", 1, 255),
        ("wide.png", 1, 300),
        ("stack.tif", 3, 300),
        ("STACK.TIFF", 2, 7),
    ] {
        let description = toml(&label.to_string());
        write_labels(file(name), &classes(slices), &description).expect("writes");
        let map = description.label_map();
        let read = read_labels(file(name), Orientation::LPS, &map, &no_colors()).expect("reads");
        assert_eq!(read, classes(slices), "{name}");
        let numbers = read_label_numbers(file(name), &no_colors()).expect("reads");
        assert_eq!(numbers.into_iter().collect::<Vec<_>>(), [0, label], "{name}");
    }
    let geometry = read_image(fixture("dicom/plain"), Orientation::LPS).expect("a series");
    let in_patient = geometry.with_voxels(Array3::zeros(geometry.shape()));
    for (name, volume, expected) in [
        ("a.png", &classes(2), "PNG has one slice, not 2"),
        ("a.nii.gz", &classes(1), "use a name in .png or .tif"),
        ("a.png", &in_patient, "use a name in .nii.gz"),
    ] {
        let error = write_labels(file(name), volume, &toml("1")).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
        let map = volume.with_voxels(volume.voxels().mapv(f32::from));
        let error = write_map(file(name), &map).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!file(name).exists());
    }
}

#[test]
fn maps_are_grey_pictures_or_volumes_of_floats() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str| folder.path().join(name);
    let voxels =
        Array3::from_shape_fn((1, 3, 4), |(_, row, column)| (row * 4 + column) as f32 / 11.0);
    let map = Volume::new(voxels.clone(), None);
    for name in ["map.png", "map.tif"] {
        write_map(file(name), &map).expect("writes");
        let read = read_image(file(name), Orientation::LPS).expect("reads");
        let expected: Vec<f32> = voxels.iter().map(|value| (value * 255.0).round()).collect();
        let slice = read.slice(0);
        assert_eq!(slice.iter().copied().collect::<Vec<_>>(), expected, "{name}");
    }
    let series = read_image(fixture("dicom/plain"), Orientation::LPS).expect("a series");
    let mut next = 0.0;
    let in_patient = series.with_voxels(Array3::from_shape_fn(series.shape(), |_| {
        next += 0.001;
        next
    }));
    write_map(file("map.nii.gz"), &in_patient).expect("writes");
    let read = read_nifti_image(file("map.nii.gz"), Orientation::LPS).expect("reads");
    assert_eq!(read.voxels(), in_patient.voxels(), "without loss");
    assert_eq!(read.spacing_mm(), series.spacing_mm());
}

#[test]
fn channels_of_several_files_are_one_image() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path();
    let series = read_image(fixture("dicom/plain"), Orientation::Stored).expect("a series");
    let write = |name: &str, add: f32| {
        let volume = series.with_voxels(series.channel(0).mapv(|voxel| voxel + add));
        write_nifti(root.join(name), &volume).expect("writes");
    };
    (0..3).for_each(|channel| write(&format!("p1_000{channel}.nii"), channel as f32));
    let labels = series.with_voxels(series.channel(0).mapv(|voxel| u8::from(voxel > 0.0)));
    write_nifti(root.join("p1_seg.nii"), &labels).expect("writes");
    let description = |channels: usize| {
        let images: Vec<String> =
            (0..channels).map(|channel| format!("\"{{case}}_000{channel}.nii\"")).collect();
        DatasetDescription::from_toml(&format!(
            "name = \"x\"\nintensity = \"stored\"\norgans = [{{ name = \"a\", labels = [1] }}]\n\
             layout.files = {{ images = [{}], labels = \"{{case}}_seg.nii\" }}",
            images.join(", ")
        ))
    };
    for channels in [1, 2, 3] {
        let description = description(channels).expect("valid");
        let dataset = Dataset::open(root, description.clone()).expect("a case");
        let case = &dataset.all_cases()[0];
        assert_eq!((&*case.name, case.files.paths().len()), ("p1", channels + 1));
        let image = dataset.read(case).expect("reads").image;
        assert_eq!(image.channels(), if channels == 1 { 1 } else { 3 });
        let added = |channel: usize| {
            let channel = &image.channel(channel) - &image.channel(0);
            channel.iter().copied().fold(0.0, f32::max)
        };
        // Of two channels, the third is their mean.
        let expected = [[0.0; 3], [0.0, 1.0, 0.5], [0.0, 1.0, 2.0]][channels - 1];
        let found: Vec<f32> = (0..image.channels()).map(added).collect();
        assert_eq!(found, expected[..image.channels()]);
        // The first file stands for all of them.
        let alone = description.read_image(root.join("p1_0000.nii")).expect("reads");
        assert_eq!(alone, image);
    }
    let error = description(3).expect("valid").read_image(root.join("p1_seg.nii"));
    assert!(error.expect_err("no channel").to_string().contains("name the files as in training"));
    let error = description(4).expect_err("four channels").to_string();
    assert!(error.contains("`images` has 4 patterns"), "{error}");
    // Another grid.
    let first = root.join("p1_0001.nii");
    let moved = read_image(fixture("dicom/tilted"), Orientation::Stored).expect("a series");
    write_nifti(&first, &moved.with_voxels(moved.channel(0).to_owned())).expect("writes");
    let dataset = Dataset::open(root, description(2).expect("valid")).expect("a case");
    let error = dataset.read(&dataset.all_cases()[0]).expect_err("other corners").to_string();
    assert!(error.contains("as a channel of the image") && error.contains("mm apart"), "{error}");
}

#[test]
fn patients_follow_from_a_table_or_the_names() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path();
    for case in ["p1_left", "p1_right", "p2_left"] {
        let (image, label) = (format!("img/{case}.png"), format!("seg/{case}.png"));
        dataset(root, &[(&image, "grey.png"), (&label, "numbers.png")]);
    }
    let open = |split: &str| {
        let description = DatasetDescription::from_toml(&format!(
            "name = \"x\"\nintensity = {{ window = [0, 255] }}\n\
             organs = [{{ name = \"a\", labels = [1, 2] }}]\n\
             layout.files = {{ images = \"img/{{case}}.png\", labels = \"seg/{{case}}.png\" }}\n\
             [split]\n{split}"
        ))
        .map_err(|error| error.to_string())?;
        Dataset::open(root, description).map_err(|error| error.to_string())
    };
    let patients = |dataset: Dataset| -> Vec<String> {
        dataset.all_cases().iter().map(|case| case.patient.clone()).collect()
    };
    std::fs::write(root.join("p.csv"), "case, patient\np1_left,A\np1_right,A\n\"p2_left\",B\n")
        .expect("writes");
    for (split, expected) in [
        ("", ["p1_left", "p1_right", "p2_left"]),
        ("patient_table = \"p.csv\"", ["A", "A", "B"]),
        ("patient_table = \"p.csv\"\npatients = { p2_left = \"C\" }", ["A", "A", "C"]),
        ("patient_pattern = \"^(p[0-9]+)_\"", ["p1", "p1", "p2"]),
    ] {
        assert_eq!(patients(open(split).expect(split)), expected, "{split}");
    }
    // A validation by patients keeps both sides together.
    let split = "patient_pattern = \"^(p[0-9]+)_\"\nvalidation = { fraction = 0.5, seed = 0 }";
    let dataset = open(split).expect("valid");
    let of = |split| dataset.cases(split).expect("cases").len();
    assert_eq!(of(Split::Train) + of(Split::Validation), 3);
    assert_ne!(of(Split::Validation), 0);
    std::fs::write(root.join("short.csv"), "p1_left,A\np1_right,A\n").expect("writes");
    std::fs::write(root.join("one.csv"), "p1_left\n").expect("writes");
    for (split, expected) in [
        ("patient_pattern = \"^(p[0-9]_\"", "`split.patient_pattern"),
        ("patient_pattern = \"^p[0-9]_\"", "no group in parentheses"),
        ("patient_pattern = \"^(x)\"", "does not match its name"),
        ("patient_table = \"short.csv\"", "has no line for it"),
        ("patient_table = \"one.csv\"", "line 1 has no two columns"),
        ("patient_table = \"none.csv\"", "none.csv"),
        ("patient_pattern = \"^(p[0-9]+)_\"\ntest = [\"p1_left\"]", "patient p1 is in two splits"),
    ] {
        let error = open(split).expect_err(expected);
        assert!(error.contains(expected), "{error}");
    }
}
