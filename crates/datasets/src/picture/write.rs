//! Writes masks.

use crate::write::write_file;
use crate::{Color, LabelMap, Volume, WriteError};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Seek, Write};
use std::path::Path;
use tiff::encoder::TiffEncoder;
use tiff::encoder::colortype::{Gray8, Gray16, RGB8};

/// Writes classes as the pixels of a mask: PNG for one slice, TIFF with a page for each slice. Pixels
/// have the label numbers of the classes or, with `colors`, their colours.
pub(crate) fn write_picture_labels(
    file: &Path,
    classes: &Volume<u8>,
    map: &LabelMap,
    colors: &BTreeMap<Color, u16>,
) -> Result<(), WriteError> {
    let unsupported = |reason: String| WriteError::Unsupported { file: file.to_owned(), reason };
    let [_, rows, columns] = check_slices(file, classes)?;
    let labels: Vec<u16> = (0..map.classes()).map(|class| map.label_of(class as u8)).collect();
    let pixels = classes.voxels().iter().map(|&class| labels[usize::from(class)]);
    let pages = if colors.is_empty() {
        if labels.iter().all(|&label| label <= u8::MAX.into()) {
            Pages::Gray8(pixels.map(|label| label as u8).collect())
        } else {
            Pages::Gray16(pixels.collect())
        }
    } else {
        let color_of = |label: u16| {
            let color =
                colors.iter().find(|(_, number)| **number == label).map(|(color, _)| *color);
            // The background is black unless it is listed.
            color.or((label == 0).then_some(Color([0; 3])))
        };
        let known: Vec<Option<Color>> = labels.iter().map(|&label| color_of(label)).collect();
        if let Some(class) = known.iter().position(Option::is_none) {
            let label = labels[class];
            return Err(unsupported(format!("label {label} has no colour in `label_colors`")));
        }
        let classes = classes.voxels().iter();
        Pages::Rgb8(
            classes.flat_map(|&class| known[usize::from(class)].map_or([0; 3], |c| c.0)).collect(),
        )
    };
    write_pages(file, &pages, [rows, columns])
}

/// Writes values in `[0, 1]` as grey pixels from 0 to 255: PNG for one slice, TIFF with a page for each
/// slice.
pub(crate) fn write_picture_map(file: &Path, map: &Volume<f32>) -> Result<(), WriteError> {
    let [_, rows, columns] = check_slices(file, map)?;
    let grey = map.voxels().iter().map(|value| (value.clamp(0.0, 1.0) * 255.0).round() as u8);
    write_pages(file, &Pages::Gray8(grey.collect()), [rows, columns])
}

/// The shape of a volume that a picture of this name can hold.
fn check_slices<T>(file: &Path, volume: &Volume<T>) -> Result<[usize; 3], WriteError> {
    let [slices, ..] = volume.shape();
    if ending_of(file) == "png" && slices != 1 {
        return Err(WriteError::Unsupported {
            file: file.to_owned(),
            reason: format!("PNG has one slice, not {slices}; use a name in .tif"),
        });
    }
    Ok(volume.shape())
}

fn write_pages(file: &Path, pages: &Pages, [rows, columns]: [usize; 2]) -> Result<(), WriteError> {
    write_file(file, "mask", |temporary| {
        let mut out = BufWriter::new(File::create(temporary)?);
        let (width, height) = (columns as u32, rows as u32); // at most 2^30 voxels
        match ending_of(file).as_str() {
            "png" => pages.write_png(&mut out, width, height)?,
            _ => pages.write_tiff(&mut out, width, height)?,
        }
        out.into_inner()?.sync_all()
    })
}

/// The ending of a file's name in lower case, without the dot.
fn ending_of(file: &Path) -> String {
    file.extension().unwrap_or_default().to_string_lossy().to_lowercase()
}

/// Pixels of all slices, one after the other.
enum Pages {
    Gray8(Vec<u8>),
    Gray16(Vec<u16>),
    Rgb8(Vec<u8>),
}

impl Pages {
    fn write_png(&self, out: impl Write, width: u32, height: u32) -> std::io::Result<()> {
        let mut encoder = png::Encoder::new(out, width, height);
        let (color, depth) = match self {
            Self::Gray8(_) => (png::ColorType::Grayscale, png::BitDepth::Eight),
            Self::Gray16(_) => (png::ColorType::Grayscale, png::BitDepth::Sixteen),
            Self::Rgb8(_) => (png::ColorType::Rgb, png::BitDepth::Eight),
        };
        encoder.set_color(color);
        encoder.set_depth(depth);
        let mut writer = encoder.write_header().map_err(std::io::Error::other)?;
        let wide: Vec<u8>;
        let bytes = match self {
            Self::Gray8(pixels) | Self::Rgb8(pixels) => pixels,
            Self::Gray16(pixels) => {
                wide = pixels.iter().flat_map(|pixel| pixel.to_be_bytes()).collect();
                &wide
            }
        };
        writer.write_image_data(bytes).map_err(std::io::Error::other)?;
        writer.finish().map_err(std::io::Error::other)
    }

    fn write_tiff(&self, out: impl Write + Seek, width: u32, height: u32) -> std::io::Result<()> {
        let failed = std::io::Error::other::<tiff::TiffError>;
        let mut encoder = TiffEncoder::new(out).map_err(failed)?;
        let page = width as usize * height as usize;
        let write = |encoder: &mut TiffEncoder<_>| -> Result<(), tiff::TiffError> {
            match self {
                Self::Gray8(pixels) => pixels
                    .chunks(page)
                    .try_for_each(|page| encoder.write_image::<Gray8>(width, height, page)),
                Self::Gray16(pixels) => pixels
                    .chunks(page)
                    .try_for_each(|page| encoder.write_image::<Gray16>(width, height, page)),
                Self::Rgb8(pixels) => pixels
                    .chunks(3 * page)
                    .try_for_each(|page| encoder.write_image::<RGB8>(width, height, page)),
            }
        };
        write(&mut encoder).map_err(failed)
    }
}
