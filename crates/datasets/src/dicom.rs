//! Reads a DICOM series of single slices as a volume.

use crate::{Geometry, Orientation, ReadError, Volume};
use dicom_dictionary_std::tags;
use dicom_object::{DefaultDicomObject, OpenFileOptions};
use dicom_pixeldata::{ConvertOptions, ModalityLutOption, PixelDecoder};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Reads the series of CT or MR slices in a folder, or below it. Slices are sorted by their position;
/// intensities are rescaled, in a CT to Hounsfield units. Compressed slices are decoded (RLE, JPEG, JPEG
/// 2000). Files that are not DICOM images are skipped, and so are localizers.
///
/// # Errors
///
/// [`ReadError`], naming the folder or file: if there is no series or more than one; if slices are
/// missing, doubled or unevenly spaced; if they are colour pictures or several frames in one file; or if
/// a file cannot be read or decoded.
pub fn read_dicom_image(
    folder: impl AsRef<Path>,
    orientation: Orientation,
) -> Result<Volume<f32>, ReadError> {
    let folder = folder.as_ref();
    let series = Series::find(folder)?;
    let geometry = series.geometry(folder, orientation)?;
    let [rows, columns] = series.slices[0].shape;
    let slices: Vec<Vec<f32>> =
        series.slices.par_iter().map(Slice::decode).collect::<Result<_, _>>()?;
    let dim = [columns, rows, slices.len()];
    let voxels = geometry.axis_mapping().to_array(slices.concat(), dim);
    Ok(Volume::new(voxels, Some(geometry)))
}

/// Reads the geometry of the series in a folder without its pixels.
///
/// # Errors
///
/// As [`read_dicom_image`].
pub fn read_dicom_geometry(
    folder: impl AsRef<Path>,
    orientation: Orientation,
) -> Result<Geometry, ReadError> {
    let folder = folder.as_ref();
    Series::find(folder)?.geometry(folder, orientation)
}

/// Slices of one series, ordered along their normal.
struct Series {
    slices: Vec<Slice>,
}

/// The header of one slice.
#[derive(Debug, Clone)]
struct Slice {
    file: PathBuf,
    /// UID, number and description of its series.
    series: [String; 3],
    /// Rows and columns.
    shape: [usize; 2],
    /// Of the first pixel in mm, x to the patient's left, y to the back, z to the head.
    position: [f64; 3],
    /// Directions along a row and along a column.
    directions: [[f64; 3]; 2],
    /// Millimetres between rows and between columns.
    spacing: [f64; 2],
    /// Millimetres that a single slice stands for.
    thickness: Option<f64>,
}

/// Levels of folders below the given one.
const MAX_DEPTH: usize = 4;

fn error(path: &Path, found: impl Into<String>, remedy: impl Into<String>) -> ReadError {
    ReadError::Dicom { path: path.to_owned(), found: found.into(), remedy: remedy.into() }
}

impl Series {
    fn find(folder: &Path) -> Result<Self, ReadError> {
        let mut files = Vec::new();
        list_files(folder, 0, &mut files)?;
        let slices: Vec<Slice> = files
            .par_iter()
            .filter_map(|file| Slice::read(file).transpose())
            .collect::<Result<_, _>>()?;
        let mut series: BTreeMap<String, Vec<Slice>> = BTreeMap::new();
        for slice in slices {
            series.entry(slice.group()).or_default().push(slice);
        }
        let mut groups: Vec<Vec<Slice>> = series.into_values().collect();
        match groups.len() {
            0 => {
                let found = "it contains no DICOM image of a CT, MR or other series of slices";
                Err(error(folder, found, "choose the folder of a series"))
            }
            1 => Self { slices: groups.swap_remove(0) }.sorted(folder),
            count => {
                let list: Vec<String> =
                    groups.iter().map(|slices| describe(folder, slices)).collect();
                let found = format!("it contains {count} series: {}", list.join("; "));
                Err(error(folder, found, "choose the folder of one, or move the others away"))
            }
        }
    }

    /// Orders the slices, and checks that they are one volume.
    fn sorted(mut self, folder: &Path) -> Result<Self, ReadError> {
        let normal = self.slices[0].normal();
        let along = |slice: &Slice| dot(slice.position, normal);
        self.slices.sort_by(|a, b| along(a).total_cmp(&along(b)));
        let gaps: Vec<f64> =
            self.slices.windows(2).map(|pair| along(&pair[1]) - along(&pair[0])).collect();
        let mut ordered = gaps.clone();
        ordered.sort_by(f64::total_cmp);
        let Some(&usual) = ordered.get(ordered.len().saturating_sub(1) / 2) else {
            return Ok(self);
        };
        let name = |slice: &Slice| slice.file.file_name().unwrap_or_default().display().to_string();
        for (gap, pair) in gaps.iter().zip(self.slices.windows(2)) {
            let names = format!("{} and {}", name(&pair[0]), name(&pair[1]));
            if *gap < 0.001 {
                return Err(error(
                    folder,
                    format!("{names} are slices at the same position"),
                    "it may be several phases or time points: move all but one of them away",
                ));
            }
            // Positions are rounded to about a hundredth of a millimetre.
            if (gap - usual).abs() > (0.01 * usual).max(0.02) {
                let times = gap / usual;
                let is_missing = times > 1.5 && (times - times.round()).abs() < 0.05;
                let found = if is_missing {
                    format!("{:.0} slices are missing between {names}", times.round() - 1.0)
                } else {
                    format!("{names} are {gap:.3} mm apart, other slices {usual:.3} mm")
                };
                let remedy = "add the missing slices, or resample the series to an even spacing";
                return Err(error(folder, found, remedy));
            }
        }
        Ok(self)
    }

    fn geometry(&self, folder: &Path, orientation: Orientation) -> Result<Geometry, ReadError> {
        let first = &self.slices[0];
        let [rows, columns] = first.shape;
        let [row, column] = first.directions;
        let [between_rows, between_columns] = first.spacing;
        let step = match self.slices.last() {
            Some(last) if self.slices.len() > 1 => {
                let count = (self.slices.len() - 1) as f64;
                std::array::from_fn(|i| (last.position[i] - first.position[i]) / count)
            }
            _ => first.normal().map(|value| value * first.thickness.unwrap_or(1.0)),
        };
        let cosine = dot(step, first.normal()) / dot(step, step).sqrt();
        let tilt = cosine.clamp(-1.0, 1.0).acos().to_degrees();
        if tilt > 0.5 {
            log::warn!(
                "{}: slices are tilted by {tilt:.1} degrees against their stack (gantry tilt); the \
                 volume and what is written on its grid are sheared accordingly",
                folder.display()
            );
        }
        // From DICOM's axes (x to the left, y to the back) to NIfTI's.
        let affine: [[f64; 4]; 3] = std::array::from_fn(|i| {
            let sign = if i < 2 { -1.0 } else { 1.0 };
            [
                sign * row[i] * between_columns,
                sign * column[i] * between_rows,
                sign * step[i],
                sign * first.position[i],
            ]
        });
        Geometry::oriented([self.slices.len(), rows, columns], affine, orientation, folder)
    }
}

/// Lists the files below a folder, sorted; `depth` is 0.
pub(crate) fn list_files(
    folder: &Path,
    depth: usize,
    files: &mut Vec<PathBuf>,
) -> Result<(), ReadError> {
    let io = ReadError::io(folder);
    let entries = std::fs::read_dir(folder).map_err(io)?.collect::<Result<Vec<_>, _>>();
    let mut paths: Vec<PathBuf> = entries.map_err(io)?.iter().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            if depth < MAX_DEPTH {
                list_files(&path, depth + 1, files)?;
            }
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// A series in a message.
fn describe(folder: &Path, slices: &[Slice]) -> String {
    let [_, number, description] = &slices[0].series;
    let file = slices[0].file.strip_prefix(folder).unwrap_or(&slices[0].file);
    let number = if number.is_empty() { String::new() } else { format!("number {number}, ") };
    let description =
        if description.is_empty() { String::new() } else { format!("\"{description}\", ") };
    format!("{number}{description}{} slices such as {}", slices.len(), file.display())
}

impl Slice {
    /// Reads the header of a file; `None` if it is not a DICOM image, or a localizer.
    fn read(file: &Path) -> Result<Option<Self>, ReadError> {
        let opened = OpenFileOptions::new().read_until(tags::PIXEL_DATA).open_file(file);
        // Folders of series also contain other files.
        let Ok(object) = opened else { return Ok(None) };
        let [Some(rows), Some(columns)] =
            [tags::ROWS, tags::COLUMNS].map(|tag| numbers(&object, tag).and_then(first))
        else {
            return Ok(None);
        };
        let image_type = text(&object, tags::IMAGE_TYPE).to_uppercase();
        if image_type.contains("LOCALIZER") {
            return Ok(None);
        }
        if text(&object, tags::MODALITY) == "SEG" {
            return Ok(None);
        }
        let frames = numbers(&object, tags::NUMBER_OF_FRAMES).and_then(first).unwrap_or(1.0);
        if frames > 1.0 {
            let found =
                format!("it has {frames} frames in one file (enhanced or multi-frame DICOM)");
            return Err(error(file, found, "convert it to NIfTI, as with dcm2niix"));
        }
        let samples = numbers(&object, tags::SAMPLES_PER_PIXEL).and_then(first).unwrap_or(1.0);
        let photometric = text(&object, tags::PHOTOMETRIC_INTERPRETATION);
        if samples != 1.0 || photometric == "MONOCHROME1" {
            let found = format!("its pixels are {photometric} with {samples} samples");
            return Err(error(file, found, "expected grey values (MONOCHROME2); convert it"));
        }
        let vector = |tag, length: usize| {
            let found = numbers(&object, tag).filter(|found| found.len() == length);
            found.filter(|found| found.iter().all(|value| value.is_finite()))
        };
        let missing = |name: &str| {
            let found = format!("it has no {name}, so its place in the patient is not known");
            error(file, found, "choose a series of slices, or remove the file")
        };
        let position = vector(tags::IMAGE_POSITION_PATIENT, 3);
        let position = position.ok_or_else(|| missing("Image Position (Patient)"))?;
        let directions = vector(tags::IMAGE_ORIENTATION_PATIENT, 6);
        let directions = directions.ok_or_else(|| missing("Image Orientation (Patient)"))?;
        let spacing = vector(tags::PIXEL_SPACING, 2)
            .filter(|spacing| spacing.iter().all(|&spacing| spacing > 0.0));
        let spacing = spacing.ok_or_else(|| missing("Pixel Spacing"))?;
        let thickness = [tags::SPACING_BETWEEN_SLICES, tags::SLICE_THICKNESS]
            .into_iter()
            .find_map(|tag| numbers(&object, tag).and_then(first).filter(|&value| value > 0.0));
        let series = [tags::SERIES_INSTANCE_UID, tags::SERIES_NUMBER, tags::SERIES_DESCRIPTION];
        let [a, b, c, d, e, f] = *directions.as_slice() else { return Ok(None) };
        Ok(Some(Self {
            file: file.to_owned(),
            series: series.map(|tag| text(&object, tag)),
            shape: [rows, columns].map(|number| number as usize),
            position: [position[0], position[1], position[2]],
            directions: [[a, b, c], [d, e, f]],
            spacing: [spacing[0], spacing[1]],
            thickness,
        }))
    }

    /// What the slices of one volume have in common.
    fn group(&self) -> String {
        let Self { series, shape, directions, spacing, .. } = self;
        // Directions and spacings of one series differ by rounding.
        let round = |value: f64| (value * 1e3).round() + 0.0;
        let directions = directions.as_flattened().iter().map(|&value| round(value) as i64);
        let directions: Vec<i64> = directions.collect();
        format!("{} {shape:?} {directions:?} {:?}", series[0], spacing.map(round))
    }

    fn normal(&self) -> [f64; 3] {
        let [[ax, ay, az], [bx, by, bz]] = self.directions;
        [ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx]
    }

    /// Intensities, rescaled.
    fn decode(&self) -> Result<Vec<f32>, ReadError> {
        let failed = |found: String| {
            let remedy =
                "decompress it with another program (such as gdcmconv --raw), or copy it again";
            error(&self.file, found, remedy)
        };
        let object = OpenFileOptions::new().open_file(&self.file);
        let object = object.map_err(|source| failed(report(&source)))?;
        let pixels = object.decode_pixel_data().map_err(|source| failed(report(&source)))?;
        let options = ConvertOptions::new().with_modality_lut(ModalityLutOption::Default);
        let voxels: Vec<f32> =
            pixels.to_vec_with_options(&options).map_err(|source| failed(report(&source)))?;
        let [rows, columns] = self.shape;
        if voxels.len() != rows * columns {
            return Err(failed(format!(
                "it has {} pixels instead of {rows} x {columns}",
                voxels.len()
            )));
        }
        if let Some(index) = voxels.iter().position(|voxel| !voxel.is_finite()) {
            let voxel = [index % columns, index / columns, 0];
            return Err(ReadError::NonFinite {
                file: self.file.clone(),
                value: voxels[index].into(),
                voxel,
            });
        }
        Ok(voxels)
    }
}

/// An error with its causes in one line.
fn report(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

fn text(object: &DefaultDicomObject, tag: dicom_core::Tag) -> String {
    let element = object.element_opt(tag).ok().flatten();
    let text = element.and_then(|element| element.to_str().ok().map(|text| text.into_owned()));
    text.unwrap_or_default().trim().trim_end_matches('\0').to_owned()
}

fn numbers(object: &DefaultDicomObject, tag: dicom_core::Tag) -> Option<Vec<f64>> {
    object.element_opt(tag).ok().flatten()?.to_multi_float64().ok()
}

fn first(numbers: Vec<f64>) -> Option<f64> {
    numbers.first().copied()
}

fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
