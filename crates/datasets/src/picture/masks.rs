//! Label numbers of the pixels of masks.
//!
//! A mask that was drawn or resized with interpolation has soft edges: pixels whose value lies between
//! those of its labels. The noise of JPEG does the same. Such pixels get the closest label. A value that
//! covers an area is a label of its own, which must be described.

use super::{MAX_RATIO, Page, check_size, damaged, read_pages, same_shape, unpack};
use crate::{Color, LabelMap, ReadError, Volume};
use image::ImageFormat;
use ndarray::{Array3, Axis};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

/// Largest difference in a channel between a colour and a pixel that has it in JPEG. Labels whose values
/// are farther apart may have soft edges.
const NOISE: u32 = 32;
/// So few values have no soft edges.
const FEW_VALUES: usize = 16;

/// A value of a mask: a label number, or red, green and blue in one number.
type Key = u32;

fn key_of(Color([red, green, blue]): Color) -> Key {
    u32::from(red) << 16 | u32::from(green) << 8 | u32::from(blue)
}

fn color_of(key: Key) -> Color {
    Color([(key >> 16) as u8, (key >> 8) as u8, key as u8])
}

/// Whether the values of a mask are colours or label numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Values {
    Numbers,
    Colors,
}

impl Values {
    /// The largest difference in a channel.
    fn distance(self, a: Key, b: Key) -> u32 {
        match self {
            Self::Numbers => a.abs_diff(b),
            Self::Colors => [16, 8, 0]
                .map(|shift| (a >> shift & 255).abs_diff(b >> shift & 255))
                .into_iter()
                .fold(0, u32::max),
        }
    }

    fn name(self, key: Key) -> String {
        match self {
            Self::Numbers => key.to_string(),
            Self::Colors => color_of(key).into(),
        }
    }
}

/// How often the values of a mask occur, and which cover an area.
#[derive(Debug, Clone, Default)]
struct Histogram {
    pixels: BTreeMap<Key, usize>,
    /// Values of all pixels of some square of 3 x 3.
    small_areas: BTreeSet<Key>,
    /// The same of 5 x 5, which the ends of a smooth transition do not reach.
    areas: BTreeSet<Key>,
}

impl Histogram {
    fn add(&mut self, keys: &[Key], [rows, columns]: [usize; 2]) {
        for &key in keys {
            *self.pixels.entry(key).or_default() += 1;
        }
        for (half, areas) in [(1, &mut self.small_areas), (2, &mut self.areas)] {
            for row in half..rows.saturating_sub(half) {
                for column in half..columns.saturating_sub(half) {
                    let key = keys[row * columns + column];
                    let mut lines = row - half..=row + half;
                    let is_area = !areas.contains(&key)
                        && lines.all(|row| {
                            let first = row * columns + column;
                            keys[first - half..=first + half].iter().all(|&other| other == key)
                        });
                    if is_area {
                        areas.insert(key);
                    }
                }
            }
        }
    }

    /// Whether a value covers an area, so that it is not a soft edge of others, of which the closest is so
    /// far.
    fn is_area(&self, key: Key, distance: u32) -> bool {
        self.areas.contains(&key) || (self.small_areas.contains(&key) && distance > NOISE)
    }

    fn has_few_values(&self) -> bool {
        self.pixels.len() <= FEW_VALUES
    }
}

/// What a mask was drawn with.
#[derive(Debug, Clone)]
pub(crate) struct MaskLevels {
    values: Values,
    is_jpeg: bool,
    histogram: Histogram,
    /// Of a mask with a palette the colour of each index that occurs.
    palette: Option<BTreeMap<u16, Color>>,
}

impl MaskLevels {
    /// Whether its pixels have colours and not numbers.
    pub fn has_colors(&self) -> bool {
        self.values == Values::Colors
    }

    /// Of a mask with a palette the colour of each index that occurs.
    pub fn palette(&self) -> Option<&BTreeMap<u16, Color>> {
        self.palette.as_ref()
    }
}

/// Reads what a mask was drawn with; of a palette the colours.
pub(crate) fn read_mask_levels(file: &Path, format: ImageFormat) -> Result<MaskLevels, ReadError> {
    let is_jpeg = format == ImageFormat::Jpeg;
    let pages = mask_pages(file, format)?;
    let noise = page_noise(format);
    let has_colors = pages.iter().any(|page| page.colored(noise).is_some());
    let mut palette = None;
    if has_colors && let Some((indices, colors)) = read_palette(file, format)? {
        let used: BTreeSet<u16> = indices.values.iter().map(|&index| index as u16).collect();
        let color = |index: u16| {
            let at = 3 * usize::from(index);
            let found = colors.get(at..at + 3).and_then(|rgb| rgb.try_into().ok());
            (index, Color(found.unwrap_or_default()))
        };
        palette = Some(used.into_iter().map(color).collect());
    }
    let values = if has_colors { Values::Colors } else { Values::Numbers };
    let mut histogram = Histogram::default();
    for (i, page) in pages.iter().enumerate() {
        let keys = match values {
            Values::Colors => color_keys(file, i, page)?,
            Values::Numbers => number_keys(file, i, page, format)?,
        };
        histogram.add(&keys, [page.rows, page.columns]);
    }
    Ok(MaskLevels { values, is_jpeg, histogram, palette })
}

/// The values that masks of one kind were drawn with, without those of soft edges and noise. The first is
/// the background: 0 or black or, where that covers no area, the most frequent.
fn drawn_levels(masks: &[&MaskLevels]) -> Vec<Key> {
    let Some(first) = masks.first() else { return Vec::new() };
    let mut total: BTreeMap<Key, usize> = BTreeMap::new();
    for (&key, pixels) in masks.iter().flat_map(|mask| &mask.histogram.pixels) {
        *total.entry(key).or_default() += pixels;
    }
    let is_jpeg = masks.iter().any(|mask| mask.is_jpeg);
    let are_few = total.len() <= FEW_VALUES && !is_jpeg;
    let mut by_pixels: Vec<(Key, usize)> = total.into_iter().collect();
    by_pixels.sort_by_key(|&(key, pixels)| (Reverse(pixels), key));
    let is_background = |mask: &&MaskLevels| mask.histogram.areas.contains(&0);
    let zero = masks.iter().any(is_background).then_some(0);
    let background = zero.or(by_pixels.first().map(|(key, _)| *key));
    let mut drawn: Vec<Key> = background.into_iter().collect();
    for (key, _) in by_pixels {
        let distance = drawn.iter().map(|&other| first.values.distance(key, other)).min();
        let distance = distance.unwrap_or(0);
        let is_other = distance > if is_jpeg { NOISE } else { 0 };
        let is_area = || masks.iter().any(|mask| mask.histogram.is_area(key, distance));
        if is_other && (are_few || is_area()) {
            drawn.push(key);
        }
    }
    drawn
}

/// As [`drawn_levels`], of masks with colours.
pub(crate) fn drawn_colors(masks: &[&MaskLevels]) -> Vec<Color> {
    drawn_levels(masks).into_iter().map(color_of).collect()
}

/// As [`drawn_levels`], of masks with label numbers.
pub(crate) fn drawn_numbers(masks: &[&MaskLevels]) -> Vec<u16> {
    // Label numbers have 16 bits.
    drawn_levels(masks).into_iter().map(|key| key as u16).collect()
}

/// Whether label numbers are so far apart that values between them may be soft edges.
pub(crate) fn levels_are_apart(levels: impl IntoIterator<Item = u16>) -> bool {
    let mut levels: Vec<u16> = levels.into_iter().collect();
    levels.sort_unstable();
    levels.windows(2).all(|pair| u32::from(pair[1] - pair[0]) > NOISE)
}

/// The level that is closest to a number.
pub(crate) fn nearest(number: u16, levels: &[u16]) -> u16 {
    levels.iter().copied().min_by_key(|level| level.abs_diff(number)).unwrap_or(number)
}

/// Reads the label numbers of a mask.
///
/// With `colors`, a pixel has the number of its colour; the background is black unless it is listed.
/// Otherwise, and where a mask has only grey pixels and other greys than those of `colors`, the numbers
/// are those of the file: grey values or, of a palette with colours, the indices. One bit is 0 and 255.
/// Transparent pixels are black.
///
/// # Errors
///
/// [`ReadError`], naming the file, if it cannot be read, or has colours that are not listed.
pub(crate) fn read_picture_numbers(
    file: &Path,
    format: ImageFormat,
    colors: &BTreeMap<Color, u16>,
) -> Result<Volume<u16>, ReadError> {
    let mut pages = mask_pages(file, format)?;
    let noise = page_noise(format);
    if colors.is_empty()
        && pages.iter().any(|page| page.colored(noise).is_some())
        && let Some((indices, _)) = read_palette(file, format)?
    {
        pages = vec![indices];
    }
    let [rows, columns] = same_shape(file, &pages)?;
    let mut numbers = Array3::zeros((pages.len(), rows, columns));
    for (i, (page, mut slice)) in pages.iter().zip(numbers.axis_iter_mut(Axis(0))).enumerate() {
        let found = if colors.is_empty() || has_other_greys(page, format, colors) {
            number_keys(file, i, page, format)?
        } else {
            let mut known: BTreeMap<Key, u16> =
                colors.iter().map(|(&color, &label)| (key_of(color), label)).collect();
            if !colors.values().any(|&label| label == 0) {
                known.insert(0, 0);
            }
            let keys = color_keys(file, i, page)?;
            let mask = Pixels { file, format, page: i, columns, rows, keys: &keys };
            mask.labels(Values::Colors, &known)?.into_iter().map(Key::from).collect()
        };
        // Label numbers have 16 bits.
        slice.iter_mut().zip(found).for_each(|(number, value)| *number = value as u16);
    }
    Ok(Volume::new(numbers, None))
}

/// Reads a mask as classes. Where all labels are far apart, as 0 and 255, it may have soft edges.
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
    let known = labels.known();
    let may_be_soft = levels_are_apart(known.iter().copied());
    let [slices, rows, columns] = numbers.shape();
    let mut classes = Array3::zeros((slices, rows, columns));
    let planes = numbers.voxels().outer_iter().zip(classes.outer_iter_mut());
    for (page, (plane, mut of_plane)) in planes.enumerate() {
        let mut found: Vec<u16> = plane.iter().copied().collect();
        if may_be_soft && found.iter().any(|&number| labels.class_of(number).is_none()) {
            let keys: Vec<Key> = found.iter().map(|&number| number.into()).collect();
            let known = known.iter().map(|&label| (label.into(), label)).collect();
            let mask = Pixels { file, format, page, columns, rows, keys: &keys };
            found = mask.labels(Values::Numbers, &known)?;
        }
        for (pixel, (class, number)) in of_plane.iter_mut().zip(found).enumerate() {
            *class = labels.class_of(number).ok_or_else(|| ReadError::Label {
                file: file.to_owned(),
                value: number.into(),
                voxel: [pixel % columns, pixel / columns, page],
                expected: Box::new(labels.clone()),
            })?;
        }
    }
    Ok(Volume::new(classes, None))
}

/// Reads the mask of one organ: 1 where it is not 0 or, of a mask with soft edges, where it is closer to
/// the organ's value.
pub(crate) fn read_picture_mask(file: &Path, format: ImageFormat) -> Result<Volume<u8>, ReadError> {
    let none = BTreeMap::new();
    let numbers = read_picture_numbers(file, format, &none)?;
    let mut histogram = Histogram::default();
    let [_, rows, columns] = numbers.shape();
    for plane in numbers.voxels().outer_iter() {
        let keys: Vec<Key> = plane.iter().map(|&number| number.into()).collect();
        histogram.add(&keys, [rows, columns]);
    }
    let is_jpeg = format == ImageFormat::Jpeg;
    let levels = MaskLevels { values: Values::Numbers, is_jpeg, histogram, palette: None };
    let drawn = drawn_numbers(&[&levels]);
    let inside = |number: u16| match drawn.as_slice() {
        [0, _] if levels_are_apart(drawn.iter().copied()) => nearest(number, &drawn) != 0,
        _ => number != 0,
    };
    Ok(numbers.with_voxels(numbers.voxels().mapv(|number| u8::from(inside(number)))))
}

/// The values of one page of a mask.
struct Pixels<'a> {
    file: &'a Path,
    format: ImageFormat,
    page: usize,
    columns: usize,
    rows: usize,
    keys: &'a [Key],
}

impl Pixels<'_> {
    /// The labels of the pixels by the known values. A warning is logged if there are soft edges.
    fn labels(&self, values: Values, known: &BTreeMap<Key, u16>) -> Result<Vec<u16>, ReadError> {
        let Self { file, keys, .. } = *self;
        let exact: Option<Vec<u16>> = keys.iter().map(|key| known.get(key).copied()).collect();
        if let Some(labels) = exact {
            return Ok(labels); // no edges to look for
        }
        let mut histogram = Histogram::default();
        histogram.add(keys, [self.rows, self.columns]);
        let is_jpeg = self.format == ImageFormat::Jpeg;
        let mut labels: BTreeMap<Key, u16> = BTreeMap::new();
        let (mut soft, mut exact) = (0, 0);
        for (&key, &pixels) in &histogram.pixels {
            let nearest = known
                .iter()
                .map(|(&other, &label)| (values.distance(key, other), label))
                .min_by_key(|(distance, _)| *distance);
            let (distance, label) = nearest.unwrap_or((0, 0));
            let is_exact = distance == 0 || (is_jpeg && distance <= NOISE);
            let is_few = !is_jpeg && histogram.has_few_values();
            if !is_exact && (is_few || histogram.is_area(key, distance)) {
                return Err(self.unknown(values, key, pixels, known));
            }
            if is_exact {
                exact += if label == 0 { 0 } else { pixels };
            } else {
                soft += pixels;
            }
            labels.insert(key, label);
        }
        // Thin structures may have more edges than inside.
        if soft > 64 && soft > 2 * exact {
            return Err(ReadError::Format {
                file: file.to_owned(),
                expected: "mask",
                found: format!(
                    "{soft} pixels have none of the described values, and only {exact} have one"
                ),
                remedy: "describe all labels or colours, or choose the mask if this is an image",
            });
        }
        if soft > 0 {
            log::warn!(
                "{}: {soft} pixels at the edges of the mask have values between those of its labels; each \
                 is taken as the closest",
                file.display()
            );
        }
        Ok(keys.iter().map(|key| labels[key]).collect())
    }

    fn unknown(
        &self,
        values: Values,
        key: Key,
        pixels: usize,
        known: &BTreeMap<Key, u16>,
    ) -> ReadError {
        let pixel = self.keys.iter().position(|&other| other == key).unwrap_or(0);
        let (column, row) = (pixel % self.columns, pixel / self.columns);
        let known: Vec<String> = known.keys().map(|&key| values.name(key)).collect();
        let page = if self.page == 0 { String::new() } else { format!(" on page {}", self.page) };
        let count = if pixels == 1 { "1 pixel".to_owned() } else { format!("{pixels} pixels") };
        ReadError::Format {
            file: self.file.to_owned(),
            expected: "mask of the described labels",
            found: format!(
                "{count}, such as ({column}, {row}){page}, have the value {}, and described are {}",
                values.name(key),
                known.join(", ")
            ),
            remedy: match values {
                Values::Numbers => {
                    "add it to an organ's labels or to ignored_labels, or choose the mask if this is an image"
                }
                Values::Colors => {
                    "add the colour to `label_colors` of the layout, or choose the mask if this is an image"
                }
            },
        }
    }
}

/// Largest difference between the channels of a grey pixel.
fn page_noise(format: ImageFormat) -> f32 {
    if format == ImageFormat::Jpeg { NOISE as f32 } else { 0.0 }
}

/// Whether a mask has label numbers although labels have colours: whether all of its pixels are grey, and
/// some grey is neither black nor listed, as far as noise allows.
fn has_other_greys(page: &Page, format: ImageFormat, colors: &BTreeMap<Color, u16>) -> bool {
    let noise = page_noise(format);
    let is_listed = |value: f32| {
        let grey =
            |Color(color): &Color| color.iter().all(|&c| (f32::from(c) - value).abs() <= noise);
        value <= noise || colors.keys().any(grey)
    };
    page.colored(noise).is_none() && !page.channel(0).all(is_listed)
}

/// The numbers of a mask without colours.
fn number_keys(
    file: &Path,
    number: usize,
    page: &Page,
    format: ImageFormat,
) -> Result<Vec<Key>, ReadError> {
    if let Some(pixel) = page.colored(page_noise(format)) {
        let [column, row, _] = page.place(pixel, number);
        let color = page.color(pixel).map_or("a colour".to_owned(), String::from);
        return Err(ReadError::Format {
            file: file.to_owned(),
            expected: "mask of label numbers",
            found: format!("pixel ({column}, {row}) is {color}"),
            remedy: "give each colour its label in `label_colors` of the layout, with 8 bits in a channel",
        });
    }
    let key = |(pixel, value): (usize, f32)| {
        let number_of_pixel = value as u16; // saturates
        if f32::from(number_of_pixel) == value {
            return Ok(number_of_pixel.into());
        }
        Err(ReadError::Label {
            file: file.to_owned(),
            value: value.into(),
            voxel: page.place(pixel, number),
            expected: Box::new(LabelMap::identity(256)),
        })
    };
    page.channel(0).enumerate().map(key).collect()
}

/// The colours of a mask.
fn color_keys(file: &Path, number: usize, page: &Page) -> Result<Vec<Key>, ReadError> {
    let key = |pixel: usize| {
        page.color(pixel).map(key_of).ok_or_else(|| {
            let [column, row, _] = page.place(pixel, number);
            ReadError::Format {
                file: file.to_owned(),
                expected: "mask",
                found: format!("the colour of pixel ({column}, {row}) has more than eight bits"),
                remedy: "convert it to eight bits",
            }
        })
    };
    (0..page.rows * page.columns).map(key).collect()
}

/// The pages of a mask: one bit is 0 and 255, and transparent pixels are black.
fn mask_pages(file: &Path, format: ImageFormat) -> Result<Vec<Page>, ReadError> {
    let mut pages = match read_numbered_png(file, format)? {
        Some(page) => vec![page],
        None => read_pages(file, format)?,
    };
    for page in &mut pages {
        if page.bits == 1 {
            page.values.iter_mut().for_each(|value| *value *= 255.0);
        }
        for &pixel in &page.transparent {
            page.values[pixel * page.samples..(pixel + 1) * page.samples].fill(0.0);
        }
    }
    Ok(pages)
}

/// A PNG file of two or four bits of grey, whose numbers decoding to eight bits would change.
fn read_numbered_png(file: &Path, format: ImageFormat) -> Result<Option<Page>, ReadError> {
    let is_numbered = |color: png::ColorType, bits: u8| {
        color == png::ColorType::Grayscale && matches!(bits, 2 | 4)
    };
    Ok(read_packed_png(file, format, is_numbered)?.map(|(page, _)| page))
}

/// The indices of a PNG file with a palette, and the palette: red, green and blue of each index.
fn read_palette(file: &Path, format: ImageFormat) -> Result<Option<(Page, Vec<u8>)>, ReadError> {
    read_packed_png(file, format, |color, _| color == png::ColorType::Indexed)
}

/// The values of a PNG file as they are stored, and its palette, if its colours and bits are wanted.
fn read_packed_png(
    file: &Path,
    format: ImageFormat,
    is_wanted: impl Fn(png::ColorType, u8) -> bool,
) -> Result<Option<(Page, Vec<u8>)>, ReadError> {
    if format != ImageFormat::Png {
        return Ok(None);
    }
    let opened = File::open(file).map_err(ReadError::io(file))?;
    let mut decoder = png::Decoder::new(BufReader::new(opened));
    decoder.set_transformations(png::Transformations::IDENTITY);
    let mut reader = decoder.read_info().map_err(|error| damaged(file, &error))?;
    let info = reader.info();
    let bits = info.bit_depth as u8;
    if !is_wanted(info.color_type, bits) {
        return Ok(None);
    }
    let palette = info.palette.as_deref().unwrap_or_default().to_vec();
    let (rows, columns) = (info.height as usize, info.width as usize);
    let pixels = (rows * columns) as u64;
    check_size(file, pixels, pixels, MAX_RATIO)?;
    let mut packed = vec![0; reader.output_buffer_size().unwrap_or_default()];
    reader.next_frame(&mut packed).map_err(|error| damaged(file, &error))?;
    let values = unpack(&packed, bits.into(), [rows, columns]);
    let page = Page { rows, columns, samples: 1, values, bits: 8, transparent: Vec::new() };
    Ok(Some((page, palette)))
}
