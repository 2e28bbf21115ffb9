use crate::evaluation::radiological;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::ZlibEncoder;
use image::codecs::jpeg::JpegEncoder;
use image::imageops::{FilterType, resize};
use image::{Rgb, RgbImage};
use sam_lst_datasets::ndarray::{ArrayView2, ArrayView3, Axis};
use sam_lst_datasets::{Geometry, Image, Volume};
use serde::Serialize;
use std::io::Write;

/// The slices of a case for the page's viewer.
#[derive(Debug, Clone, Serialize)]
pub(super) struct CaseSlices {
    name: String,
    width: u32,
    height: u32,
    /// Slices of the case in which there is an organ.
    with_organs: usize,
    /// Indices of the slices in the file.
    numbers: Vec<usize>,
    /// Each slice as JPEG, in Base64.
    images: Vec<String>,
    /// Base64 of the compressed (zlib) classes of all slices: of the prediction, then of the truth,
    /// one byte for each pixel.
    classes: String,
}

const MAX_SLICES: usize = 60;
const MAX_SIDE: u32 = 320;
const JPEG_QUALITY: u8 = 80;

impl CaseSlices {
    pub fn new(name: &str, image: &Image, prediction: &Volume<u8>, label: &Volume<u8>) -> Self {
        assert_eq!(image.shape(), prediction.shape(), "image and prediction of one shape");
        assert_eq!(image.shape(), label.shape(), "image and label of one shape");
        let [slices, rows, columns] = image.shape();
        let volumes = [prediction.voxels(), label.voxels()];
        let has_organ = |&slice: &usize| {
            volumes.iter().any(|v| v.index_axis(Axis(0), slice).iter().any(|&class| class != 0))
        };
        let with_organs: Vec<usize> = (0..slices).filter(has_organ).collect();
        let step = with_organs.len().div_ceil(MAX_SLICES).max(1);
        let numbers: Vec<usize> = with_organs.iter().copied().step_by(step).collect();
        let scale = (rows.max(columns) as f64 / f64::from(MAX_SIDE)).max(1.0);
        let [width, height] =
            [columns, rows].map(|side| ((side as f64 / scale).round() as u32).max(1));
        let geometry = image.geometry();
        let images = numbers.iter().map(|&n| jpeg(image.slice(n), geometry, [width, height]));
        let images = images.map(|bytes| STANDARD.encode(bytes)).collect();
        let mut classes = ZlibEncoder::new(Vec::new(), Compression::best());
        for volume in volumes {
            for &slice in &numbers {
                let slice = radiological(volume.index_axis(Axis(0), slice), geometry);
                classes
                    .write_all(&nearest(slice, [width, height]))
                    .expect("writing to memory does not fail");
            }
        }
        let classes = classes.finish().expect("writing to memory does not fail");
        Self {
            name: name.to_owned(),
            width,
            height,
            with_organs: with_organs.len(),
            numbers,
            images,
            classes: STANDARD.encode(classes),
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether no slice has an organ.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// Size in the page.
    pub fn bytes(&self) -> usize {
        self.images.iter().map(String::len).sum::<usize>() + self.classes.len()
    }
}

fn jpeg(slice: ArrayView3<'_, f32>, geometry: Option<&Geometry>, size: [u32; 2]) -> Vec<u8> {
    let slice = radiological(slice, geometry);
    let (channels, rows, columns) = slice.dim();
    let picture = RgbImage::from_fn(columns as u32, rows as u32, |x, y| {
        let value = |channel: usize| slice[(channel.min(channels - 1), y as usize, x as usize)];
        Rgb([0, 1, 2].map(|channel| (value(channel).clamp(0.0, 1.0) * 255.0).round() as u8))
    });
    let [width, height] = size;
    let picture = match picture.dimensions() == (width, height) {
        true => picture,
        false => resize(&picture, width, height, FilterType::Triangle),
    };
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY)
        .encode_image(&picture)
        .expect("writing to memory does not fail");
    bytes
}

/// The classes at the centres of `width` x `height` pixels.
fn nearest(slice: ArrayView2<'_, u8>, [width, height]: [u32; 2]) -> Vec<u8> {
    let (rows, columns) = slice.dim();
    let source = |target: u32, targets: u32, sources: usize| {
        let centre = (f64::from(target) + 0.5) * sources as f64 / f64::from(targets);
        (centre as usize).min(sources - 1)
    };
    let pixels = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    pixels.map(|(x, y)| slice[(source(y, height, rows), source(x, width, columns))]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::ZlibDecoder;
    use sam_lst_datasets::ndarray::{Array3, Array4};
    use std::io::Read;

    fn case(slices: usize, side: usize, organ: impl Fn(usize) -> bool) -> CaseSlices {
        let image = Image::new(Array4::from_elem([1, slices, side, side], 0.5), None);
        let classes = |class: u8| {
            let voxels = Array3::from_shape_fn([slices, side, side], |(slice, y, x)| {
                if organ(slice) && x == 0 && y < side / 2 { class } else { 0 }
            });
            Volume::new(voxels, None)
        };
        CaseSlices::new("1", &image, &classes(1), &classes(2))
    }

    fn decoded(case: &CaseSlices) -> Vec<u8> {
        let bytes = STANDARD.decode(&case.classes).expect("Base64");
        let mut classes = Vec::new();
        ZlibDecoder::new(&bytes[..]).read_to_end(&mut classes).expect("zlib");
        classes
    }

    #[test]
    fn the_slices_with_organs_are_kept_evenly_spaced() {
        let few = case(10, 4, |slice| slice % 2 == 1);
        assert_eq!(few.numbers, [1, 3, 5, 7, 9]);
        let classes = decoded(&few);
        assert_eq!(classes.len(), 2 * 5 * 16);
        assert_eq!(&classes[..8], [1, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(&classes[80..88], [2, 0, 0, 0, 2, 0, 0, 0]);
        let many = case(130, 2, |_| true);
        assert_eq!((many.with_organs, many.numbers.len()), (130, 44));
        assert_eq!(&many.numbers[..3], [0, 3, 6]);
        assert!(case(3, 2, |_| false).is_empty());
    }

    #[test]
    fn large_slices_are_reduced() {
        let large = case(1, 640, |_| true);
        assert_eq!((large.width, large.height), (320, 320));
        let classes = decoded(&large);
        let column: Vec<u8> = (0..320).map(|y| classes[y * 320]).collect();
        // A pixel takes the class at its centre, which lies in the second of two columns.
        assert!(column.iter().all(|&class| class == 0));
        let image = STANDARD.decode(&large.images[0]).expect("Base64");
        assert_eq!(&image[..2], [0xff, 0xd8], "JPEG");
    }
}
