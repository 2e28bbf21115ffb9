//! Reads pictures (PNG, JPEG, TIFF, BMP, GIF) as images and as masks, and writes masks.

use crate::write::write_file;
use crate::{Color, Image, LabelMap, MAX_VOXELS, ReadError, Volume, WriteError};
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};
use ndarray::{Array3, Array4, Axis};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Seek, Write};
use std::path::Path;
use tiff::decoder::{Decoder as TiffDecoder, DecodingResult};
use tiff::encoder::TiffEncoder;
use tiff::encoder::colortype::{Gray8, Gray16, RGB8};

/// The most bytes of pixels that a decoder makes from one byte of a file: somewhat more than deflate
/// and LZW reach.
const MAX_RATIO: u64 = 3000;
/// Largest difference in a channel between a colour and a pixel that has it, for the noise of JPEG.
const NOISE: u8 = 32;

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
    let pages = read_pages(file, format)?;
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

/// Reads the size of a picture: slices, rows and columns.
pub(crate) fn read_picture_shape(
    file: &Path,
    format: ImageFormat,
) -> Result<[usize; 3], ReadError> {
    if format == ImageFormat::Tiff {
        let [rows, columns] = same_shape(file, &read_pages(file, format)?)?;
        return Ok([1, rows, columns]);
    }
    let (columns, rows) = decoder(file, format)?.dimensions();
    Ok([1, rows as usize, columns as usize])
}

/// Reads the label numbers of a mask.
///
/// With `colors`, a pixel has the number of its colour; the background is black unless it is listed.
/// Otherwise the numbers are those of the file: grey values or, of a palette, the indices.
///
/// # Errors
///
/// [`ReadError`], naming the file, if it cannot be read, or has colours that are not listed.
pub(crate) fn read_picture_numbers(
    file: &Path,
    format: ImageFormat,
    colors: &BTreeMap<Color, u16>,
) -> Result<Volume<u16>, ReadError> {
    let pages = mask_pages(file, format, colors)?;
    let [rows, columns] = same_shape(file, &pages)?;
    let mut numbers = Array3::zeros((pages.len(), rows, columns));
    for (i, (page, mut slice)) in pages.iter().zip(numbers.axis_iter_mut(Axis(0))).enumerate() {
        let found = if colors.is_empty() {
            page.numbers(file, i, format)?
        } else {
            page.numbers_of_colors(file, i, colors)?
        };
        slice.iter_mut().zip(found).for_each(|(number, value)| *number = value);
    }
    Ok(Volume::new(numbers, None))
}

/// Reads a mask as classes.
///
/// A mask of one label, such as 0 and 255, may have soft edges or the noise of JPEG: other values are
/// then the closer of the two.
///
/// # Errors
///
/// As [`read_picture_numbers`]; and if a number is not in `labels`.
pub(crate) fn read_picture_labels(
    file: &Path,
    format: ImageFormat,
    labels: &LabelMap,
    colors: &BTreeMap<Color, u16>,
) -> Result<Volume<u8>, ReadError> {
    let numbers = read_picture_numbers(file, format, colors)?;
    let mut classes = Array3::zeros(numbers.shape());
    let mut edges = SoftEdges::default();
    let only = labels.only_label().filter(|&label| label >= 128 && colors.is_empty());
    for ((place, &number), class) in numbers.voxels().indexed_iter().zip(&mut classes) {
        *class = match (labels.class_of(number), only) {
            (Some(class), _) => {
                edges.exact += usize::from(class != 0);
                class
            }
            (None, Some(label)) if number < label => {
                let is_noise = number <= NOISE.into() || label - number <= NOISE.into();
                if !is_noise {
                    edges.add(number.to_string(), 1);
                }
                u8::from(number > label / 2)
            }
            _ => {
                let (slice, row, column) = place;
                return Err(ReadError::Label {
                    file: file.to_owned(),
                    value: number.into(),
                    voxel: [column, row, slice],
                    expected: Box::new(labels.clone()),
                });
            }
        };
    }
    edges.check(file)?;
    Ok(Volume::new(classes, None))
}

/// Pixels of a mask that have none of its colours, but a mixture of two: the edges of a mask that was
/// drawn or resized with interpolation.
#[derive(Debug, Default)]
struct SoftEdges {
    /// Pixels that have a colour other than the background's.
    exact: usize,
    /// Pixels of each mixture.
    soft: BTreeMap<String, usize>,
}

impl SoftEdges {
    fn add(&mut self, mixture: String, pixels: usize) {
        *self.soft.entry(mixture).or_default() += pixels;
    }

    /// Logs a warning if there are soft edges. A mixture that has many pixels is no edge, and an error.
    fn check(&self, file: &Path) -> Result<(), ReadError> {
        let most = self.soft.iter().max_by_key(|(_, pixels)| **pixels);
        if let Some((color, &pixels)) = most.filter(|(_, pixels)| !is_edge(**pixels, self.exact)) {
            return Err(ReadError::Format {
                file: file.to_owned(),
                expected: "mask",
                found: format!("{pixels} pixels are {color}, which is not described"),
                remedy: "describe all labels or colours, or choose the mask if this is an image",
            });
        }
        let soft: usize = self.soft.values().sum();
        // Thin structures may have more edges than inside.
        if soft > 64 && soft > 2 * self.exact {
            return Err(ReadError::Format {
                file: file.to_owned(),
                expected: "mask",
                found: format!(
                    "{soft} pixels have mixtures of the described colours, and {} have one",
                    self.exact
                ),
                remedy: "describe all labels or colours, or choose the mask if this is an image",
            });
        }
        if soft > 0 {
            log::warn!(
                "{}: {soft} pixels at the edges of the mask have mixtures of its colours; each is taken \
                 as the closest",
                file.display()
            );
        }
        Ok(())
    }
}

/// Whether so many pixels of a mixture may be edges of structures that have `exact` pixels.
fn is_edge(pixels: usize, exact: usize) -> bool {
    pixels <= 64 || 20 * pixels <= exact
}

/// The colours of a mask and the number of their pixels; `None` if it has numbers instead.
pub(crate) fn mask_colors(
    file: &Path,
    format: ImageFormat,
) -> Result<Option<BTreeMap<Color, usize>>, ReadError> {
    let pages = mask_pages(file, format, &BTreeMap::new())?;
    let noise = noise(format);
    if pages.iter().all(|page| page.colored(noise).is_none()) {
        return Ok(None);
    }
    let mut colors = BTreeMap::new();
    for page in &pages {
        for pixel in 0..page.rows * page.columns {
            let color = page.color(pixel).ok_or_else(|| ReadError::Format {
                file: file.to_owned(),
                expected: "mask",
                found: "its colours have more than eight bits".to_owned(),
                remedy: "convert it to eight bits",
            })?;
            *colors.entry(color).or_default() += 1;
        }
    }
    Ok(Some(colors))
}

/// The colours that masks were drawn with, without those of soft edges, by the pixels of each colour in
/// each mask. The first is the background: black or, where there is none, the most frequent.
pub(crate) fn drawn_colors(masks: &[BTreeMap<Color, usize>]) -> Vec<Color> {
    let mut total: BTreeMap<Color, usize> = BTreeMap::new();
    for (&color, pixels) in masks.iter().flatten() {
        *total.entry(color).or_default() += pixels;
    }
    let mut by_pixels: Vec<(Color, usize)> = total.into_iter().collect();
    by_pixels.sort_by_key(|&(color, pixels)| (std::cmp::Reverse(pixels), color));
    let black = Color([0; 3]);
    let background = by_pixels.iter().find(|(color, _)| *color == black).or(by_pixels.first());
    let mut drawn: Vec<(Color, u16)> = background.iter().map(|(color, _)| (*color, 0)).collect();
    for &(color, _) in &by_pixels {
        let is_area = || {
            masks.iter().any(|mask| {
                let most = mask.iter().filter(|(other, _)| **other != drawn[0].0);
                let most = most.map(|(_, pixels)| *pixels).max().unwrap_or(0);
                mask.get(&color).is_some_and(|&pixels| !is_edge(pixels, most))
            })
        };
        let found = closest(color, &drawn);
        let is_new = match found {
            None => true,
            Some((_, is_mixture)) => is_mixture && is_area(),
        };
        if is_new {
            drawn.push((color, 0));
        }
    }
    drawn.into_iter().map(|(color, _)| color).collect()
}

/// Largest difference between the channels of a grey pixel.
fn noise(format: ImageFormat) -> f32 {
    if format == ImageFormat::Jpeg { f32::from(NOISE) } else { 0.0 }
}

/// For the numbers of masks and their pixels: the one label of masks of 0 and 255 with soft edges or
/// noise; `None` if each number is a label of its own.
pub(crate) fn binary_label(numbers: &BTreeMap<u16, usize>) -> Option<u16> {
    let (&label, _) = numbers.last_key_value()?;
    let noise = u16::from(NOISE);
    let exact: usize =
        numbers.range(label.saturating_sub(noise)..).map(|(_, pixels)| *pixels).sum();
    let others = || numbers.iter().filter(|(number, _)| (1..label).contains(*number));
    let near_zero: usize = numbers.range(1..=noise).map(|(_, pixels)| *pixels).sum();
    let is_soft =
        others().all(|(number, &pixels)| *number + noise >= label || is_edge(pixels, exact));
    (label >= 128 && is_soft && 5 * near_zero <= exact).then_some(label)
}

/// One decoded picture of a file.
struct Page {
    rows: usize,
    columns: usize,
    /// Values of a pixel: one, or red, green and blue.
    samples: usize,
    /// Pixels in the order of rows.
    values: Vec<f32>,
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

    /// The numbers of a mask without colours.
    fn numbers(
        &self,
        file: &Path,
        page: usize,
        format: ImageFormat,
    ) -> Result<Vec<u16>, ReadError> {
        if let Some(pixel) = self.colored(noise(format)) {
            let [column, row, _] = self.place(pixel, page);
            let color = self.color(pixel).map_or("a colour".to_owned(), String::from);
            return Err(ReadError::Format {
                file: file.to_owned(),
                expected: "mask of label numbers",
                found: format!("pixel ({column}, {row}) is {color}"),
                remedy: "give each colour its label in `label_colors` of the layout \
                         (`sam-lst inspect` does)",
            });
        }
        let number = |(pixel, value): (usize, f32)| {
            let number = value as u16; // saturates
            if f32::from(number) == value {
                return Ok(number);
            }
            Err(ReadError::Label {
                file: file.to_owned(),
                value: value.into(),
                voxel: self.place(pixel, page),
                expected: Box::new(LabelMap::identity(256)),
            })
        };
        self.channel(0).enumerate().map(number).collect()
    }

    /// The colour of a pixel of eight bits.
    fn color(&self, pixel: usize) -> Option<Color> {
        let at = |sample: usize| {
            let value = self.values[pixel * self.samples + sample.min(self.samples - 1)];
            ((0.0..=255.0).contains(&value) && value.fract() == 0.0).then_some(value as u8)
        };
        Some(Color([at(0)?, at(1)?, at(2)?]))
    }

    /// The numbers of a mask by its colours.
    fn numbers_of_colors(
        &self,
        file: &Path,
        page: usize,
        colors: &BTreeMap<Color, u16>,
    ) -> Result<Vec<u16>, ReadError> {
        let mut known: Vec<(Color, u16)> =
            colors.iter().map(|(&color, &label)| (color, label)).collect();
        if !colors.values().any(|&label| label == 0) {
            known.push((Color([0; 3]), 0));
        }
        let mut edges = SoftEdges::default();
        // Masks have few colours, but soft edges and JPEG's noise add hundreds.
        let mut seen: BTreeMap<Color, (u16, bool)> = BTreeMap::new();
        let mut numbers = Vec::with_capacity(self.rows * self.columns);
        for pixel in 0..self.rows * self.columns {
            let unknown = |color: String| {
                let [column, row, _] = self.place(pixel, page);
                let listed: Vec<String> =
                    known.iter().map(|(color, _)| String::from(*color)).collect();
                ReadError::Format {
                    file: file.to_owned(),
                    expected: "mask of the described colours",
                    found: format!(
                        "pixel ({column}, {row}) is {color}, and the colours are {}",
                        listed.join(", ")
                    ),
                    remedy: "add the colour to `label_colors` of the layout",
                }
            };
            let color = self.color(pixel).ok_or_else(|| unknown("not of eight bits".to_owned()))?;
            let (number, is_soft) = match seen.get(&color) {
                Some(&found) => found,
                None => {
                    let found = closest(color, &known).ok_or_else(|| unknown(color.into()))?;
                    seen.insert(color, found);
                    found
                }
            };
            if is_soft {
                edges.add(color.into(), 1);
            } else {
                edges.exact += usize::from(number != 0);
            }
            numbers.push(number);
        }
        edges.check(file)?;
        Ok(numbers)
    }
}

/// The label of the colour that a pixel has, or of the closer of the two that it is a mixture of, and
/// whether it is a mixture; `None` if it is neither.
fn closest(color: Color, known: &[(Color, u16)]) -> Option<(u16, bool)> {
    let numbers = |Color(color): Color| color.map(f32::from);
    let distance = |a: [f32; 3], b: [f32; 3]| -> f32 {
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    let pixel = numbers(color);
    let by_distance = |&(color, label): &(Color, u16)| (distance(numbers(color), pixel), label);
    let nearest = known.iter().map(by_distance).min_by(|a, b| a.0.total_cmp(&b.0))?;
    if nearest.0 <= f32::from(NOISE) {
        return Some((nearest.1, false));
    }
    let mut best: Option<(f32, u16)> = None;
    for (i, &(first, first_label)) in known.iter().enumerate() {
        for &(second, second_label) in &known[i + 1..] {
            let [a, b] = [first, second].map(numbers);
            let along: [f32; 3] = std::array::from_fn(|channel| b[channel] - a[channel]);
            let length: f32 = along.iter().map(|value| value * value).sum();
            let share = (0..3).map(|c| (pixel[c] - a[c]) * along[c]).sum::<f32>() / length.max(1.0);
            let share = share.clamp(0.0, 1.0);
            let mixture: [f32; 3] = std::array::from_fn(|c| a[c] + share * along[c]);
            let off = distance(mixture, pixel);
            if off <= f32::from(NOISE) && best.is_none_or(|(least, _)| off < least) {
                best = Some((off, if share > 0.5 { second_label } else { first_label }));
            }
        }
    }
    best.map(|(_, label)| (label, true))
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

/// The pages of a mask; of a palette the indices, unless colours are asked for.
fn mask_pages(
    file: &Path,
    format: ImageFormat,
    colors: &BTreeMap<Color, u16>,
) -> Result<Vec<Page>, ReadError> {
    if format == ImageFormat::Png
        && colors.is_empty()
        && let Some(page) = read_indexed_png(file)?
    {
        return Ok(vec![page]);
    }
    read_pages(file, format)
}

fn read_pages(file: &Path, format: ImageFormat) -> Result<Vec<Page>, ReadError> {
    if format == ImageFormat::Tiff {
        return read_tiff(file);
    }
    let decoder = decoder(file, format)?;
    let (columns, rows) = decoder.dimensions();
    check_size(file, u64::from(columns) * u64::from(rows), decoder.total_bytes())?;
    let decoded = DynamicImage::from_decoder(decoder).map_err(|error| damaged(file, &error))?;
    Ok(vec![page_of(decoded)])
}

/// The pixels of a decoded picture, without transparency.
fn page_of(decoded: DynamicImage) -> Page {
    let (columns, rows) = (decoded.width() as usize, decoded.height() as usize);
    let has_color = decoded.color().has_color();
    let is_wide = decoded.color().bytes_per_pixel() / decoded.color().channel_count() > 1;
    let values: Vec<f32> = match (has_color, is_wide) {
        (false, false) => decoded.into_luma8().iter().map(|&value| value.into()).collect(),
        (false, true) => decoded.into_luma16().iter().map(|&value| value.into()).collect(),
        (true, false) => decoded.into_rgb8().iter().map(|&value| value.into()).collect(),
        (true, true) => decoded.into_rgb16().iter().map(|&value| value.into()).collect(),
    };
    Page { rows, columns, samples: if has_color { 3 } else { 1 }, values }
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
fn check_size(file: &Path, pixels: u64, declared_bytes: u64) -> Result<(), ReadError> {
    if pixels > MAX_VOXELS {
        return Err(ReadError::TooManyVoxels { file: file.to_owned(), voxels: pixels });
    }
    let file_bytes = std::fs::metadata(file).map_err(ReadError::io(file))?.len();
    let max_bytes = file_bytes.saturating_mul(MAX_RATIO);
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

/// The indices of a PNG file with a palette, or the numbers of one with less than eight bits of grey;
/// `None` for other files, which have nothing that decoding to colours would lose.
fn read_indexed_png(file: &Path) -> Result<Option<Page>, ReadError> {
    let opened = File::open(file).map_err(ReadError::io(file))?;
    let mut decoder = png::Decoder::new(BufReader::new(opened));
    decoder.set_transformations(png::Transformations::IDENTITY);
    let mut reader = decoder.read_info().map_err(|error| damaged(file, &error))?;
    let info = reader.info();
    let bits = info.bit_depth as usize;
    let has_numbers = match info.color_type {
        png::ColorType::Indexed => true,
        png::ColorType::Grayscale => bits < 8,
        _ => false,
    };
    if !has_numbers {
        return Ok(None);
    }
    let (rows, columns) = (info.height as usize, info.width as usize);
    check_size(file, (rows * columns) as u64, (rows * columns) as u64)?;
    let bytes = reader.output_buffer_size().unwrap_or_default();
    let mut packed = vec![0; bytes];
    reader.next_frame(&mut packed).map_err(|error| damaged(file, &error))?;
    let values = unpack(&packed, bits, [rows, columns]);
    Ok(Some(Page { rows, columns, samples: 1, values }))
}

/// All pages of a TIFF file.
fn read_tiff(file: &Path) -> Result<Vec<Page>, ReadError> {
    let failed = |error: tiff::TiffError| damaged(file, &error);
    let opened = File::open(file).map_err(ReadError::io(file))?;
    let mut decoder = TiffDecoder::new(BufReader::new(opened)).map_err(failed)?;
    let mut pages = Vec::new();
    let mut pixels = 0;
    loop {
        let (columns, rows) = decoder.dimensions().map_err(failed)?;
        let color = decoder.colortype().map_err(failed)?;
        let samples = match color {
            tiff::ColorType::Gray(_) => 1,
            tiff::ColorType::GrayA(_) => 2,
            tiff::ColorType::RGB(_) => 3,
            tiff::ColorType::RGBA(_) => 4,
            other => {
                let found = format!("its colours are {other:?}");
                let remedy = "convert it to grey or RGB, or to PNG";
                return Err(ReadError::Format {
                    file: file.to_owned(),
                    expected: "picture",
                    found,
                    remedy,
                });
            }
        };
        pixels += u64::from(columns) * u64::from(rows);
        let bytes = pixels * samples as u64 * u64::from(color.bit_depth()).div_ceil(8);
        check_size(file, pixels, bytes)?;
        let decoded = decoder.read_image().map_err(failed)?;
        let (rows, columns) = (rows as usize, columns as usize);
        let all = tiff_values(decoded, color.bit_depth(), [rows, columns * samples]);
        let kept = if samples < 3 { 1 } else { 3 };
        let values = if samples == kept {
            all
        } else {
            all.chunks_exact(samples).flat_map(|pixel| pixel[..kept].to_vec()).collect()
        };
        pages.push(Page { rows, columns, samples: kept, values });
        if !decoder.more_images() {
            return Ok(pages);
        }
        decoder.next_image().map_err(failed)?;
    }
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

/// Writes classes as the pixels of a mask: PNG for one slice, TIFF with a page for each slice. Pixels
/// have the label numbers of the classes or, with `colors`, their colours.
pub(crate) fn write_picture_labels(
    file: &Path,
    classes: &Volume<u8>,
    map: &LabelMap,
    colors: &BTreeMap<Color, u16>,
) -> Result<(), WriteError> {
    let unsupported = |reason: String| WriteError::Unsupported { file: file.to_owned(), reason };
    let [slices, rows, columns] = classes.shape();
    let is_png = ending_of(file) == "png";
    if is_png && slices != 1 {
        return Err(unsupported(format!("PNG has one slice, not {slices}; use a name in .tif")));
    }
    let labels: Vec<u16> = (0..map.classes()).map(|class| map.label_of(class as u8)).collect();
    let pixels = classes.voxels().iter().map(|&class| labels[usize::from(class)]);
    let format = if is_png { ImageFormat::Png } else { ImageFormat::Tiff };
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
    write_file(file, "mask", |temporary| {
        let mut out = BufWriter::new(File::create(temporary)?);
        let (width, height) = (columns as u32, rows as u32); // at most 2^30 voxels
        match format {
            ImageFormat::Png => pages.write_png(&mut out, width, height)?,
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
