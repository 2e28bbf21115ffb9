//! Reads pictures (PNG, JPEG, TIFF, BMP, GIF) as images and as masks, and writes masks.

mod masks;
mod write;

pub(crate) use masks::{
    MaskLevels, drawn_colors, drawn_numbers, levels_are_apart, nearest, read_mask_levels,
    read_picture_labels, read_picture_mask, read_picture_numbers,
};
pub(crate) use write::{write_picture_labels, write_picture_map};

use crate::{Color, Image, MAX_VOXELS, ReadError};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};
use ndarray::{Array4, Axis};
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use tiff::decoder::{Decoder as TiffDecoder, DecodingResult};
use tiff::tags::Tag;

/// The most bytes of pixels that a decoder makes from one byte of a file: somewhat more than deflate
/// and LZW reach, and than a block of 8 x 8 equal pixels takes in JPEG.
const MAX_RATIO: u64 = 3000;
const MAX_JPEG_RATIO: u64 = 400;

/// The format of a picture by its first bytes; `None` if it is none.
pub(crate) fn picture_format(start: &[u8]) -> Option<ImageFormat> {
    let starts: [(&[u8], ImageFormat); 8] = [
        (b"\x89PNG", ImageFormat::Png),
        (b"\xff\xd8\xff", ImageFormat::Jpeg),
        (b"II*\0", ImageFormat::Tiff),
        (b"MM\0*", ImageFormat::Tiff),
        (b"II+\0", ImageFormat::Tiff),
        (b"MM\0+", ImageFormat::Tiff),
        (b"BM", ImageFormat::Bmp),
        (b"GIF8", ImageFormat::Gif),
    ];
    starts.iter().find(|(magic, _)| start.starts_with(magic)).map(|&(_, format)| format)
}

/// Reads the intensities of a picture: one slice with one channel, or three if it has colours, with
/// the numbers of its file (0 to 255, or to 65,535). The pages of a TIFF file are slices.
///
/// A picture whose colours are all grey has one channel. Transparency is ignored.
///
/// # Errors
///
/// [`ReadError`], naming the file, if it cannot be read or is damaged.
pub(crate) fn read_picture(file: &Path, format: ImageFormat) -> Result<Image, ReadError> {
    let mut pages = read_pages(file, format)?;
    for page in pages.iter_mut().filter(|page| page.bits < 8) {
        // As other formats are decoded: white is 255.
        let white = ((1_u16 << page.bits) - 1) as f32;
        page.values.iter_mut().for_each(|value| *value *= 255.0 / white);
    }
    let channels = if pages.iter().any(|page| page.colored(0.0).is_some()) { 3 } else { 1 };
    let [rows, columns] = same_shape(file, &pages)?;
    let mut voxels = Array4::zeros((channels, pages.len(), rows, columns));
    for (page, mut slice) in pages.iter().zip(voxels.axis_iter_mut(Axis(1))) {
        for (channel, mut pixels) in slice.axis_iter_mut(Axis(0)).enumerate() {
            let values = page.channel(channel);
            for (pixel, value) in pixels.iter_mut().zip(values) {
                *pixel = value;
            }
        }
    }
    if let Some(((_, slice, row, column), &value)) =
        voxels.indexed_iter().find(|(_, value)| !value.is_finite())
    {
        let voxel = [column, row, slice];
        return Err(ReadError::NonFinite { file: file.to_owned(), value: value.into(), voxel });
    }
    Ok(Image::new(voxels, None))
}

/// Checks that the header of a picture can be read.
///
/// # Errors
///
/// [`ReadError`], naming the file.
pub(crate) fn check_picture(file: &Path, format: ImageFormat) -> Result<(), ReadError> {
    if format == ImageFormat::Tiff {
        let opened = File::open(file).map_err(ReadError::io(file))?;
        let decoder = TiffDecoder::new(BufReader::new(opened));
        return decoder.map(|_| ()).map_err(|error| damaged(file, &error));
    }
    decoder(file, format).map(|_| ())
}

/// One decoded picture of a file.
struct Page {
    rows: usize,
    columns: usize,
    /// Values of a pixel: one, or red, green and blue.
    samples: usize,
    /// Pixels in the order of rows.
    values: Vec<f32>,
    /// Bits of a value, of which there are fewer than eight in some TIFF files.
    bits: u8,
    /// Pixels that are wholly transparent.
    transparent: Vec<usize>,
}

impl Page {
    /// The first pixel whose channels differ by more than `noise`.
    fn colored(&self, noise: f32) -> Option<usize> {
        let is_colored =
            |pixel: &[f32]| pixel.iter().any(|&value| (value - pixel[0]).abs() > noise);
        self.values.chunks_exact(self.samples).position(is_colored)
    }

    /// The values of one channel; of a grey picture, each channel is the same.
    fn channel(&self, channel: usize) -> impl Iterator<Item = f32> {
        self.values.iter().skip(channel.min(self.samples - 1)).step_by(self.samples).copied()
    }

    fn place(&self, pixel: usize, page: usize) -> [usize; 3] {
        [pixel % self.columns, pixel / self.columns, page]
    }

    /// The colour of a pixel of eight bits.
    fn color(&self, pixel: usize) -> Option<Color> {
        let at = |sample: usize| {
            let value = self.values[pixel * self.samples + sample.min(self.samples - 1)];
            ((0.0..=255.0).contains(&value) && value.fract() == 0.0).then_some(value as u8)
        };
        Some(Color([at(0)?, at(1)?, at(2)?]))
    }
}

/// The shape of all pages.
fn same_shape(file: &Path, pages: &[Page]) -> Result<[usize; 2], ReadError> {
    let shape = |page: &Page| [page.rows, page.columns];
    let first = pages.first().map_or([0, 0], shape);
    match pages.iter().map(shape).find(|&other| other != first) {
        None => Ok(first),
        Some(other) => Err(ReadError::Format {
            file: file.to_owned(),
            expected: "picture",
            found: format!("it has pages of {first:?} and of {other:?} pixels"),
            remedy: "save each page as a file of its own",
        }),
    }
}

fn read_pages(file: &Path, format: ImageFormat) -> Result<Vec<Page>, ReadError> {
    if format == ImageFormat::Tiff {
        return read_tiff(file);
    }
    let mut decoder = decoder(file, format)?;
    let (columns, rows) = decoder.dimensions();
    let max_ratio = if format == ImageFormat::Jpeg { MAX_JPEG_RATIO } else { MAX_RATIO };
    let pixels = u64::from(columns) * u64::from(rows);
    check_size(file, pixels, decoder.total_bytes(), max_ratio)?;
    if format == ImageFormat::Jpeg {
        check_jpeg_end(file)?;
    }
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    warn_of_orientation(file, orientation != Orientation::NoTransforms);
    let decoded = DynamicImage::from_decoder(decoder).map_err(|error| damaged(file, &error))?;
    Ok(vec![page_of(decoded)])
}

/// Checks that a JPEG file is complete. Decoders fill in what is missing with grey.
fn check_jpeg_end(file: &Path) -> Result<(), ReadError> {
    let bytes = std::fs::read(file).map_err(ReadError::io(file))?;
    let last = |marker: u8| bytes.windows(2).rposition(|pair| pair == [0xff, marker]);
    // The end of the image follows the start of its last scan; a preview in the header has its own.
    let [scan, end] = [0xda, 0xd9].map(last);
    if scan.is_some() && end <= scan {
        return Err(damaged(file, &"the file is truncated"));
    }
    Ok(())
}

/// Logs a warning about a picture that viewers show turned.
fn warn_of_orientation(file: &Path, is_turned: bool) {
    if is_turned {
        log::warn!(
            "{}: it is marked to be shown turned or mirrored (EXIF orientation); its pixels are taken as \
             they are stored",
            file.display()
        );
    }
}

/// The pixels of a decoded picture, without transparency.
fn page_of(decoded: DynamicImage) -> Page {
    let (columns, rows) = (decoded.width() as usize, decoded.height() as usize);
    let has_color = decoded.color().has_color();
    let is_wide = decoded.color().bytes_per_pixel() / decoded.color().channel_count() > 1;
    let mut transparent = Vec::new();
    if decoded.color().has_alpha() {
        let alpha = decoded.to_rgba16();
        let pixels = alpha.pixels().enumerate();
        transparent = pixels.filter(|(_, pixel)| pixel.0[3] == 0).map(|(i, _)| i).collect();
    }
    let values: Vec<f32> = match (has_color, is_wide) {
        (false, false) => decoded.into_luma8().iter().map(|&value| value.into()).collect(),
        (false, true) => decoded.into_luma16().iter().map(|&value| value.into()).collect(),
        (true, false) => decoded.into_rgb8().iter().map(|&value| value.into()).collect(),
        (true, true) => decoded.into_rgb16().iter().map(|&value| value.into()).collect(),
    };
    let samples = if has_color { 3 } else { 1 };
    Page { rows, columns, samples, values, bits: if is_wide { 16 } else { 8 }, transparent }
}

fn decoder(file: &Path, format: ImageFormat) -> Result<impl ImageDecoder, ReadError> {
    let opened = File::open(file).map_err(ReadError::io(file))?;
    let mut reader = ImageReader::with_format(BufReader::new(opened), format);
    let mut limits = Limits::default();
    limits.max_alloc = Some(8 * MAX_VOXELS);
    reader.limits(limits);
    reader.into_decoder().map_err(|error| damaged(file, &error))
}

/// Checks that a file can hold this many pixels, so that memory can be allocated for them.
fn check_size(
    file: &Path,
    pixels: u64,
    declared_bytes: u64,
    max_ratio: u64,
) -> Result<(), ReadError> {
    if pixels > MAX_VOXELS {
        return Err(ReadError::TooManyVoxels { file: file.to_owned(), voxels: pixels });
    }
    let file_bytes = std::fs::metadata(file).map_err(ReadError::io(file))?.len();
    let max_bytes = file_bytes.saturating_mul(max_ratio);
    if declared_bytes > max_bytes {
        return Err(ReadError::HeaderSize { file: file.to_owned(), declared_bytes, max_bytes });
    }
    Ok(())
}

fn damaged(file: &Path, error: &dyn std::fmt::Display) -> ReadError {
    ReadError::Format {
        file: file.to_owned(),
        expected: "picture",
        found: error.to_string(),
        remedy: "copy or export it again, or convert it to PNG",
    }
}

/// All pages of a TIFF file, without reduced copies and masks of transparency.
fn read_tiff(file: &Path) -> Result<Vec<Page>, ReadError> {
    let failed = |error: tiff::TiffError| damaged(file, &error);
    let unsupported = |found: String| ReadError::Format {
        file: file.to_owned(),
        expected: "picture",
        found,
        remedy: "convert it to grey or RGB of 8 or 16 bits, or to PNG",
    };
    let opened = File::open(file).map_err(ReadError::io(file))?;
    let mut decoder = TiffDecoder::new(BufReader::new(opened)).map_err(failed)?;
    let mut pages = Vec::new();
    let mut pixels = 0;
    loop {
        let mut tag = |tag: Tag| decoder.find_tag_unsigned::<u16>(tag).ok().flatten();
        let is_page = tag(Tag::NewSubfileType).unwrap_or(0) & 5 == 0;
        let (planar, fill_order) = (tag(Tag::PlanarConfiguration), tag(Tag::FillOrder));
        let orientation = tag(Tag::Orientation).unwrap_or(1);
        if is_page {
            let (columns, rows) = decoder.dimensions().map_err(failed)?;
            let color = decoder.colortype().map_err(failed)?;
            let samples = match color {
                tiff::ColorType::Gray(_) => 1,
                tiff::ColorType::GrayA(_) | tiff::ColorType::Multiband { num_samples: 2, .. } => 2,
                tiff::ColorType::RGB(_) => 3,
                tiff::ColorType::RGBA(_) => 4,
                other => return Err(unsupported(format!("its colours are {other:?}"))),
            };
            let bits = color.bit_depth();
            if !matches!(bits, 1 | 2 | 4 | 8 | 16 | 32 | 64) {
                return Err(unsupported(format!("its pixels have {bits} bits")));
            }
            if samples > 1 && planar == Some(2) {
                return Err(unsupported("its colours are stored as separate planes".to_owned()));
            }
            if bits < 8 && fill_order == Some(2) {
                return Err(unsupported("its bits are stored in reverse order".to_owned()));
            }
            warn_of_orientation(file, orientation != 1);
            pixels += u64::from(columns) * u64::from(rows);
            let bytes = pixels * samples as u64 * u64::from(bits).div_ceil(8);
            check_size(file, pixels, bytes, MAX_RATIO)?;
            let decoded = decoder.read_image().map_err(failed)?;
            let (rows, columns) = (rows as usize, columns as usize);
            let all = tiff_values(decoded, bits, [rows, columns * samples]);
            if all.len() != rows * columns * samples {
                return Err(unsupported("its pixels are stored in an unusual order".to_owned()));
            }
            let kept = if samples < 3 { 1 } else { 3 };
            let transparent = match samples {
                2 | 4 => {
                    let alpha = all.chunks_exact(samples).map(|pixel| pixel[samples - 1]);
                    alpha.enumerate().filter(|(_, value)| *value == 0.0).map(|(i, _)| i).collect()
                }
                _ => Vec::new(),
            };
            let values = if samples == kept {
                all
            } else {
                all.chunks_exact(samples).flat_map(|pixel| pixel[..kept].to_vec()).collect()
            };
            pages.push(Page { rows, columns, samples: kept, values, bits, transparent });
        }
        if !decoder.more_images() {
            break;
        }
        decoder.next_image().map_err(failed)?;
    }
    if pages.is_empty() {
        return Err(unsupported("it has no page".to_owned()));
    }
    Ok(pages)
}

/// The values of a page, `shape` lines and values in a line.
fn tiff_values(decoded: DecodingResult, bits: u8, shape: [usize; 2]) -> Vec<f32> {
    fn single<T: Copy>(values: Vec<T>, convert: impl Fn(T) -> f32) -> Vec<f32> {
        values.into_iter().map(convert).collect()
    }
    match decoded {
        DecodingResult::U8(packed) if bits < 8 => unpack(&packed, bits.into(), shape),
        DecodingResult::U8(values) => single(values, f32::from),
        DecodingResult::U16(values) => single(values, f32::from),
        DecodingResult::U32(values) => single(values, |value| value as f32),
        DecodingResult::U64(values) => single(values, |value| value as f32),
        DecodingResult::F16(values) => single(values, f32::from),
        DecodingResult::F32(values) => values,
        DecodingResult::F64(values) => single(values, |value| value as f32),
        DecodingResult::I8(values) => single(values, f32::from),
        DecodingResult::I16(values) => single(values, f32::from),
        DecodingResult::I32(values) => single(values, |value| value as f32),
        DecodingResult::I64(values) => single(values, |value| value as f32),
    }
}

/// Values of less than eight bits, whose lines begin at whole bytes.
fn unpack(packed: &[u8], bits: usize, [lines, length]: [usize; 2]) -> Vec<f32> {
    let line_bytes = (length * bits).div_ceil(8);
    let mask = ((1_u16 << bits) - 1) as u8;
    let value = |line: usize, at: usize| {
        let byte = packed.get(line * line_bytes + at * bits / 8).copied().unwrap_or(0);
        f32::from(byte >> (8 - bits - at * bits % 8) & mask)
    };
    (0..lines).flat_map(|line| (0..length).map(move |at| value(line, at))).collect()
}
