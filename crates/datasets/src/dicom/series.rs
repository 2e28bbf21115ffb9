//! Reads a DICOM series of single slices as a volume.

use super::{
    Planes, decode_pixels, dot, error, is_dicom, items, list_files, number, numbers, report, text,
    undecodable,
};
use crate::{Geometry, Orientation, ReadError, Volume};
use dicom_dictionary_std::tags;
use dicom_object::{DefaultDicomObject, OpenFileOptions};
use dicom_pixeldata::ModalityLutOption;
use rayon::prelude::*;
use std::path::{Path, PathBuf};

/// Reads the series of CT or MR slices in a folder, or below it, a file for each or several frames in a
/// file (enhanced CT and MR). Slices are sorted by their position; intensities are rescaled, in a CT to
/// Hounsfield units. Compressed slices are decoded (RLE, JPEG, JPEG 2000). Files that are not DICOM
/// images are skipped, and so are localizers.
///
/// # Errors
///
/// [`ReadError`], with the folder or file, if there is no series or more than one; if slices are
/// missing, duplicated or unevenly spaced; if they are colour images; or if a file cannot be read or
/// decoded.
pub fn read_dicom_image(
    folder: impl AsRef<Path>,
    orientation: Orientation,
) -> Result<Volume<f32>, ReadError> {
    let folder = folder.as_ref();
    let series = Series::find(folder)?;
    let geometry = series.geometry(folder, orientation)?;
    let [rows, columns] = series.slices[0].shape;
    let slices = series.decode()?;
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
pub(super) struct Series {
    pub slices: Vec<Slice>,
}

/// The header of one slice.
#[derive(Debug, Clone)]
pub(super) struct Slice {
    pub file: PathBuf,
    /// UID, number and description of its series.
    series: [String; 3],
    /// ID of the patient and UID of the study.
    patient: [String; 2],
    /// Rows and columns.
    pub shape: [usize; 2],
    /// Of the first pixel in mm, x to the patient's left, y to the back, z to the head.
    pub position: [f64; 3],
    /// Directions along a row and along a column.
    pub directions: [[f64; 3]; 2],
    /// Millimetres between rows and between columns.
    pub spacing: [f64; 2],
    /// Millimetres that a single slice stands for.
    pub thickness: Option<f64>,
    /// Number of its frame in the file, with the frame's slope and intercept; `None` for a file of one
    /// slice.
    pub frame: Option<(usize, [f64; 2])>,
}

/// What a file is.
enum Found {
    Slices(Vec<Slice>),
    /// Not DICOM, or without an image.
    Nothing,
    /// An image that is not a slice of a volume.
    Unusable {
        series: String,
        error: ReadError,
    },
    Damaged(ReadError),
}

impl Series {
    pub fn find(folder: &Path) -> Result<Self, ReadError> {
        let mut files = Vec::new();
        list_files(folder, 0, &mut files)?;
        let found: Vec<Found> = files.par_iter().map(|file| Slice::read(file)).collect();
        let mut groups: Vec<Vec<Slice>> = Vec::new();
        let mut unusable = Vec::new();
        for found in found {
            match found {
                Found::Nothing => {}
                Found::Damaged(error) => return Err(error),
                Found::Unusable { series, error } => unusable.push((series, error)),
                Found::Slices(slices) => {
                    for slice in slices {
                        let of_slice =
                            |group: &&mut Vec<Slice>| group[0].is_of_one_volume_with(&slice);
                        match groups.iter_mut().find(of_slice) {
                            Some(group) => group.push(slice),
                            None => groups.push(vec![slice]),
                        }
                    }
                }
            }
        }
        // Folders also contain reports, doses and screenshots, which are series of their own.
        let of_series = |series: &String| {
            groups.is_empty() || groups.iter().any(|group| group[0].series[0] == *series)
        };
        if let Some((_, error)) = unusable.into_iter().find(|(series, _)| of_series(series)) {
            return Err(error);
        }
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

    /// The intensities of all slices in order.
    fn decode(&self) -> Result<Vec<Vec<f32>>, ReadError> {
        let Some(of_frames) = self.slices.iter().find(|slice| slice.frame.is_some()) else {
            return self.slices.par_iter().map(Slice::decode).collect();
        };
        if self.slices.iter().any(|slice| slice.file != of_frames.file) {
            let found = "it belongs to a series of several files with several frames each";
            return Err(error(&of_frames.file, found, "convert it to NIfTI, as with dcm2niix"));
        }
        Slice::decode_frames(&self.slices.iter().collect::<Vec<_>>())
    }

    /// Millimetres from one slice to the next; `None` for one slice.
    fn step(&self) -> Option<[f64; 3]> {
        let (first, last) = (self.slices.first()?, self.slices.last()?);
        let count = self.slices.len().checked_sub(1).filter(|&count| count > 0)? as f64;
        Some(std::array::from_fn(|i| (last.position[i] - first.position[i]) / count))
    }

    /// As [`step`](Self::step), along the normal of the slices.
    pub fn step_mm(&self) -> Option<f64> {
        Some(dot(self.step()?, self.slices[0].normal()))
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

    /// Checks that the slices lie on one line, so that one affine places them all.
    fn check_line(&self, folder: &Path, step: [f64; 3]) -> Result<(), ReadError> {
        let first = &self.slices[0];
        let tolerance = 0.1 * first.spacing[0].min(first.spacing[1]).max(0.1);
        for (i, slice) in self.slices.iter().enumerate() {
            let off =
                |axis: usize| slice.position[axis] - first.position[axis] - i as f64 * step[axis];
            let off: [f64; 3] = std::array::from_fn(off);
            let distance = dot(off, off).sqrt();
            if distance > tolerance {
                return Err(error(
                    &slice.file,
                    format!("its slice lies {distance:.2} mm beside the line of the others"),
                    format!("resample the series in {} to one grid", folder.display()),
                ));
            }
        }
        Ok(())
    }

    fn geometry(&self, folder: &Path, orientation: Orientation) -> Result<Geometry, ReadError> {
        let first = &self.slices[0];
        let [rows, columns] = first.shape;
        let [row, column] = first.directions;
        let [between_rows, between_columns] = first.spacing;
        let thickness = || first.normal().map(|value| value * first.thickness.unwrap_or(1.0));
        let step = self.step().unwrap_or_else(thickness);
        self.check_line(folder, step)?;
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
    /// Reads the header of a file.
    fn read(file: &Path) -> Found {
        let object = match OpenFileOptions::new().read_until(tags::PIXEL_DATA).open_file(file) {
            Ok(object) => object,
            Err(source) if is_dicom(file) => {
                let found = format!("it is damaged: {}", report(&source));
                return Found::Damaged(error(file, found, "copy it again, or remove it"));
            }
            // Folders of series also contain other files.
            Err(_) => return Found::Nothing,
        };
        let is_other = text(&object, tags::IMAGE_TYPE).to_uppercase().contains("LOCALIZER")
            || text(&object, tags::MODALITY) == "SEG";
        if numbers(&object, tags::ROWS).is_none() || is_other {
            return Found::Nothing;
        }
        match Self::of_object(file, &object) {
            Ok(slices) => Found::Slices(slices),
            Err(error) => {
                Found::Unusable { series: text(&object, tags::SERIES_INSTANCE_UID), error }
            }
        }
    }

    fn of_object(file: &Path, object: &DefaultDicomObject) -> Result<Vec<Self>, ReadError> {
        let number = |tag| number(object, tag);
        let samples = number(tags::SAMPLES_PER_PIXEL).unwrap_or(1.0);
        let photometric = text(object, tags::PHOTOMETRIC_INTERPRETATION);
        if samples != 1.0 || photometric != "MONOCHROME2" {
            let found = format!("its pixels are {photometric} with {samples} samples");
            return Err(error(file, found, "expected grey values (MONOCHROME2); convert it"));
        }
        let allocated = number(tags::BITS_ALLOCATED).unwrap_or(0.0);
        let stored = number(tags::BITS_STORED).unwrap_or(allocated);
        if ![8.0, 16.0].contains(&allocated) || !(1.0..=allocated).contains(&stored) {
            let found = format!("its pixels have {stored} of {allocated} bits");
            return Err(error(file, found, "expected at most 8 of 8 or 16 of 16; convert it"));
        }
        if object.element_opt(tags::MODALITY_LUT_SEQUENCE).is_ok_and(|found| found.is_some()) {
            let found =
                "its intensities follow from a table (Modality LUT), which is not supported";
            return Err(error(file, found, "convert it to NIfTI, as with dcm2niix"));
        }
        let missing = |name: &str| {
            let found = format!("it has no valid {name}, so its place in the patient is not known");
            error(file, found, "choose a series of slices, or remove the file")
        };
        let shape = [tags::ROWS, tags::COLUMNS].map(|tag| number(tag).unwrap_or(0.0) as usize);
        if shape.contains(&0) {
            return Err(missing("Rows and Columns"));
        }
        let series = [tags::SERIES_INSTANCE_UID, tags::SERIES_NUMBER, tags::SERIES_DESCRIPTION];
        let series = series.map(|tag| text(object, tag));
        let patient = [tags::PATIENT_ID, tags::STUDY_INSTANCE_UID].map(|tag| text(object, tag));
        let slice = |planes: &Planes<'_>, frame| -> Result<Self, ReadError> {
            let position =
                planes.vector(tags::PLANE_POSITION_SEQUENCE, tags::IMAGE_POSITION_PATIENT);
            let position = position.ok_or_else(|| missing("Image Position (Patient)"))?;
            let directions =
                planes.vector(tags::PLANE_ORIENTATION_SEQUENCE, tags::IMAGE_ORIENTATION_PATIENT);
            let d: [f64; 6] = directions.ok_or_else(|| missing("Image Orientation (Patient)"))?;
            let spacing = planes.vector(tags::PIXEL_MEASURES_SEQUENCE, tags::PIXEL_SPACING);
            let spacing = spacing.filter(|spacing: &[f64; 2]| spacing.iter().all(|&mm| mm > 0.0));
            let thickness = [tags::SPACING_BETWEEN_SLICES, tags::SLICE_THICKNESS].into_iter();
            let slice = Self {
                file: file.to_owned(),
                series: series.clone(),
                patient: patient.clone(),
                shape,
                position,
                directions: [[d[0], d[1], d[2]], [d[3], d[4], d[5]]],
                spacing: spacing.ok_or_else(|| missing("Pixel Spacing"))?,
                thickness: thickness
                    .filter_map(|tag| planes.vector(tags::PIXEL_MEASURES_SEQUENCE, tag))
                    .find_map(|[mm]: [f64; 1]| (mm > 0.0).then_some(mm)),
                frame,
            };
            let normal = slice.normal();
            // Of two unit vectors at a right angle.
            if (dot(normal, normal) - 1.0).abs() > 0.01 {
                return Err(missing("Image Orientation (Patient)"));
            }
            Ok(slice)
        };
        let frames = items(object, tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE);
        let declared = number(tags::NUMBER_OF_FRAMES).unwrap_or(1.0);
        if frames.is_empty() && declared <= 1.0 {
            return Ok(vec![slice(&Planes::File(object), None)?]);
        }
        if frames.len() as f64 != declared {
            let found =
                format!("it has {declared} frames and positions of {} of them", frames.len());
            return Err(error(file, found, "convert it to NIfTI, as with dcm2niix"));
        }
        let of_frame = |(i, frame)| {
            let planes = Planes::of_frame(object, frame);
            let scale = |tag, otherwise: f64| {
                let found = planes.vector(tags::PIXEL_VALUE_TRANSFORMATION_SEQUENCE, tag);
                found.map_or(otherwise, |[value]: [f64; 1]| value)
            };
            let scale = [scale(tags::RESCALE_SLOPE, 1.0), scale(tags::RESCALE_INTERCEPT, 0.0)];
            slice(&planes, Some((i, scale)))
        };
        frames.iter().enumerate().map(of_frame).collect()
    }

    /// Whether two slices are of one patient, series and grid. Directions and spacings of one series
    /// differ by rounding.
    fn is_of_one_volume_with(&self, other: &Self) -> bool {
        let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-3);
        self.series[0] == other.series[0]
            && self.patient == other.patient
            && self.shape == other.shape
            && close(self.directions.as_flattened(), other.directions.as_flattened())
            && close(&self.spacing, &other.spacing)
    }

    fn normal(&self) -> [f64; 3] {
        let [[ax, ay, az], [bx, by, bz]] = self.directions;
        [ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx]
    }

    /// Intensities, rescaled.
    fn decode(&self) -> Result<Vec<f32>, ReadError> {
        self.checked(decode_file(&self.file, ModalityLutOption::Default)?)
    }

    /// The frames of one file, rescaled.
    fn decode_frames(slices: &[&Self]) -> Result<Vec<Vec<f32>>, ReadError> {
        let Some(first) = slices.first() else { return Ok(Vec::new()) };
        let stored = decode_file(&first.file, ModalityLutOption::None)?;
        let pixels = first.shape[0] * first.shape[1];
        let frame = |slice: &&Self| {
            let (number, [slope, intercept]) = slice.frame.unwrap_or((0, [1.0, 0.0]));
            let stored = stored.get(number * pixels..(number + 1) * pixels).unwrap_or_default();
            let rescaled =
                stored.iter().map(|&value| (f64::from(value) * slope + intercept) as f32);
            slice.checked(rescaled.collect())
        };
        slices.iter().map(frame).collect()
    }

    /// Pixels of the slice's shape that are finite.
    fn checked(&self, voxels: Vec<f32>) -> Result<Vec<f32>, ReadError> {
        let [rows, columns] = self.shape;
        if voxels.len() != rows * columns {
            let found = format!("it has {} pixels instead of {rows} x {columns}", voxels.len());
            return Err(error(&self.file, found, "copy it again"));
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

/// The pixels of all frames of a file.
fn decode_file(file: &Path, modality_lut: ModalityLutOption) -> Result<Vec<f32>, ReadError> {
    let object = OpenFileOptions::new().open_file(file);
    let object = object.map_err(|source| undecodable(file, report(&source)))?;
    decode_pixels(file, &object, modality_lut)
}
