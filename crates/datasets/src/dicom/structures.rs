//! Labels in DICOM: segmentations (SEG) and radiotherapy structure sets (RTSTRUCT).
//!
//! Both name their structures, and number them in each file anew, so a structure is found by its name.

use super::{Planes, decode_pixels, error, items, list_files, number, numbers, report, text};
use crate::{Geometry, ReadError};
use dicom_core::Tag;
use dicom_dictionary_std::tags;
use dicom_object::{DefaultDicomObject, InMemDicomObject, OpenFileOptions};
use dicom_pixeldata::ModalityLutOption;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The segmentations or the structure set of one image.
pub(crate) struct StructureFiles {
    files: Vec<StructureFile>,
}

enum StructureFile {
    Segmentation(Segmentation),
    StructureSet(StructureSet),
}

/// Largest distance in voxels of a pixel or contour from the image's grid.
const TOLERANCE_VOXELS: f64 = 0.1;
/// The same across the slices, where contours are often rounded to tenths of a millimetre.
const SLICE_TOLERANCE_VOXELS: f64 = 0.25;

/// Whether a DICOM file contains structures: whether its modality is SEG or RTSTRUCT.
fn has_structures(file: &Path) -> bool {
    matches!(modality(file).as_deref(), Some("SEG" | "RTSTRUCT"))
}

/// The modality in a file's header, `None` if it is not DICOM.
pub(crate) fn modality(file: &Path) -> Option<String> {
    let after = Tag(tags::MODALITY.group(), tags::MODALITY.element() + 1);
    let object = OpenFileOptions::new().read_until(after).open_file(file).ok()?;
    Some(text(&object, tags::MODALITY))
}

impl StructureFiles {
    /// Opens a file, or those in a folder and below it.
    ///
    /// # Errors
    ///
    /// [`ReadError`] if there is none, if a file is damaged, or if it is not clear which to take.
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        let mut files = Vec::new();
        if path.is_dir() {
            list_files(path, 0, &mut files)?;
            files.retain(|file| has_structures(file));
        } else {
            files.push(path.to_owned());
        }
        if files.is_empty() {
            let found = "it contains no DICOM segmentation (SEG) and no structure set (RTSTRUCT)";
            return Err(error(path, found, "add the file with its labels, or remove the case"));
        }
        let files: Vec<StructureFile> =
            files.iter().map(|file| StructureFile::open(file)).collect::<Result<_, _>>()?;
        let sets = files.iter().filter(|file| matches!(file, StructureFile::StructureSet(_)));
        let sets = sets.count();
        if sets > 1 || (sets == 1 && files.len() > 1) {
            let segmentations = files.len() - sets;
            let found =
                format!("it contains {sets} structure sets and {segmentations} segmentations");
            return Err(error(path, found, "move all but one structure set, or it, away"));
        }
        let mut names = BTreeSet::new();
        for name in files.iter().flat_map(StructureFile::names) {
            if !names.insert(name) {
                let found = format!("several of its segmentations have a structure `{name}`");
                return Err(error(path, found, "move all but one of them away"));
            }
        }
        Ok(Self { files })
    }

    /// The names of the structures, sorted.
    pub fn names(&self) -> BTreeSet<&str> {
        self.files.iter().flat_map(StructureFile::names).collect()
    }

    /// The voxels of a structure on the grid of an image, in the order of its array.
    pub fn mask(&self, name: &str, geometry: &Geometry) -> Result<Vec<bool>, ReadError> {
        let mut mask = Mask::new(geometry);
        for file in &self.files {
            match file {
                StructureFile::Segmentation(segmentation) => segmentation.fill(name, &mut mask)?,
                StructureFile::StructureSet(set) => set.fill(name, &mut mask)?,
            }
        }
        Ok(mask.voxels)
    }
}

impl StructureFile {
    fn open(file: &Path) -> Result<Self, ReadError> {
        let object = OpenFileOptions::new().open_file(file).map_err(|source| {
            error(
                file,
                format!("it is damaged: {}", report(&source)),
                "copy it again, or remove it",
            )
        })?;
        match text(&object, tags::MODALITY).as_str() {
            "SEG" => {
                let decoded = decode_if_compressed(file, &object)?;
                Segmentation::read(file, &object, decoded).map(Self::Segmentation)
            }
            "RTSTRUCT" => StructureSet::read(file, &object).map(Self::StructureSet),
            other => {
                let found = format!("its modality is `{other}`");
                Err(error(file, found, "expected labels: a segmentation (SEG) or RTSTRUCT"))
            }
        }
    }

    fn names(&self) -> BTreeSet<&str> {
        match self {
            Self::Segmentation(found) => found.segments.iter().map(|(_, name)| &**name).collect(),
            Self::StructureSet(set) => set.rois.iter().map(|roi| &*roi.name).collect(),
        }
    }
}

/// The voxels of a structure on the grid of an image.
struct Mask<'a> {
    geometry: &'a Geometry,
    /// From millimetres (x to the right, y to the front, z to the head) to column, row and slice.
    to_index: [[f64; 4]; 3],
    voxels: Vec<bool>,
}

impl<'a> Mask<'a> {
    fn new(geometry: &'a Geometry) -> Self {
        let voxels = vec![false; geometry.shape().iter().product()];
        Self { geometry, to_index: inverse(geometry.affine_mm()), voxels }
    }

    /// Column, row and slice of a point in DICOM's millimetres (x to the left, y to the back).
    fn index(&self, [x, y, z]: [f64; 3]) -> [f64; 3] {
        self.to_index.map(|[a, b, c, d]| a * -x + b * -y + c * z + d)
    }

    /// The voxel at column, row and slice; `None` outside the image.
    fn voxel(&mut self, index: [i64; 3]) -> Option<&mut bool> {
        let [slices, rows, columns] = self.geometry.shape();
        let [column, row, slice] = index.map(|at| usize::try_from(at).unwrap_or(usize::MAX));
        let inside = column < columns && row < rows && slice < slices;
        inside.then(|| &mut self.voxels[(slice * rows + row) * columns + column])
    }
}

/// The inverse of an affine, which geometries have.
fn inverse(affine: [[f64; 4]; 3]) -> [[f64; 4]; 3] {
    let [a, b, c] = affine.map(|[x, y, z, _]| [x, y, z]);
    let cross = |p: [f64; 3], q: [f64; 3]| {
        [p[1] * q[2] - p[2] * q[1], p[2] * q[0] - p[0] * q[2], p[0] * q[1] - p[1] * q[0]]
    };
    let determinant = super::dot(a, cross(b, c));
    // Columns of the inverse.
    let columns = [cross(b, c), cross(c, a), cross(a, b)];
    std::array::from_fn(|row| {
        let [x, y, z] = columns.map(|column| column[row] / determinant);
        [x, y, z, -(x * affine[0][3] + y * affine[1][3] + z * affine[2][3])]
    })
}

/// Source: DICOM PS3.3, A.51 (Segmentation) and A.51.5 (Label Map Segmentation).
struct Segmentation {
    file: PathBuf,
    rows: usize,
    columns: usize,
    kind: SegmentationKind,
    /// Number and name of each segment.
    segments: Vec<(u16, String)>,
    frames: Vec<Frame>,
}

/// The pixels of all frames, one after the other.
enum SegmentationKind {
    /// A bit for each pixel, the first in the lowest bit of a byte.
    Binary(Vec<u8>),
    /// A pixel belongs to the segment from this value.
    Fractional { pixels: Vec<u16>, threshold: u16 },
    /// A pixel is the number of its segment.
    LabelMap(Vec<u16>),
}

struct Frame {
    /// The segment's number; 0 in a label map.
    segment: u16,
    /// The first pixel, one column further and one row further, in millimetres.
    corner: [f64; 3],
    column_step: [f64; 3],
    row_step: [f64; 3],
}

/// The pixels of a compressed segmentation; `None` if it is not compressed.
fn decode_if_compressed(
    file: &Path,
    object: &DefaultDicomObject,
) -> Result<Option<Vec<u16>>, ReadError> {
    let pixels = object.element_opt(tags::PIXEL_DATA).ok().flatten();
    let is_compressed = pixels.is_some_and(|pixels| pixels.fragments().is_some());
    is_compressed.then(|| decode_pixels(file, object, ModalityLutOption::None)).transpose()
}

impl Segmentation {
    fn read(
        file: &Path,
        object: &InMemDicomObject,
        decoded: Option<Vec<u16>>,
    ) -> Result<Self, ReadError> {
        let invalid = |found: &str| error(file, found, "export it again, or convert it to NIfTI");
        let [rows, columns] =
            [tags::ROWS, tags::COLUMNS].map(|tag| number(object, tag).unwrap_or(0.0) as usize);
        let segments = items(object, tags::SEGMENT_SEQUENCE);
        let segments = segments.iter().filter_map(|segment| {
            let number = number(segment, tags::SEGMENT_NUMBER)? as u16;
            (number != 0).then(|| (number, segment_name(segment, number)))
        });
        let segments: Vec<(u16, String)> = segments.collect();
        let frames = frames(object).map_err(invalid)?;
        let count = rows * columns * frames.len();
        if count == 0 || segments.is_empty() {
            return Err(invalid("it has no segment or no frame"));
        }
        let bits = number(object, tags::BITS_ALLOCATED).unwrap_or(0.0) as usize;
        let bytes = match &decoded {
            Some(_) => Vec::new(),
            None => {
                let pixels = object.element_opt(tags::PIXEL_DATA).ok().flatten();
                let bytes = pixels.and_then(|pixels| pixels.to_bytes().ok());
                bytes.unwrap_or_default().into_owned()
            }
        };
        if decoded.as_ref().map_or(8 * bytes.len() < count * bits, |pixels| pixels.len() < count) {
            return Err(invalid("it has fewer pixels than its header declares"));
        }
        let kind = text(object, tags::SEGMENTATION_TYPE);
        let kind = match (kind.as_str(), bits) {
            ("BINARY", 1) if decoded.is_none() => SegmentationKind::Binary(bytes),
            ("FRACTIONAL", 8) => {
                let most = number(object, tags::MAXIMUM_FRACTIONAL_VALUE).unwrap_or(255.0);
                let pixels = decoded.unwrap_or_else(|| values(&bytes, bits));
                SegmentationKind::Fractional { pixels, threshold: (most / 2.0).ceil() as u16 }
            }
            ("LABELMAP", 8 | 16) => {
                SegmentationKind::LabelMap(decoded.unwrap_or_else(|| values(&bytes, bits)))
            }
            (kind, bits) => {
                return Err(invalid(&format!(
                    "it is of type `{kind}` with {bits} bits in a pixel"
                )));
            }
        };
        Ok(Self { file: file.to_owned(), rows, columns, kind, segments, frames })
    }

    /// Adds the voxels of a structure to a mask.
    fn fill(&self, name: &str, mask: &mut Mask<'_>) -> Result<(), ReadError> {
        let numbers: Vec<u16> = self
            .segments
            .iter()
            .filter(|(_, segment)| segment == name)
            .map(|(number, _)| *number)
            .collect();
        let pixels = self.rows * self.columns;
        let mut outside = 0_usize;
        for (i, frame) in self.frames.iter().enumerate() {
            if frame.segment != 0 && !numbers.contains(&frame.segment) {
                continue;
            }
            let is_inside = |pixel: usize| match &self.kind {
                SegmentationKind::Binary(bytes) => {
                    let bit = i * pixels + pixel;
                    bytes[bit / 8] >> (bit % 8) & 1 == 1
                }
                SegmentationKind::Fractional { pixels: values, threshold } => {
                    values[i * pixels + pixel] >= *threshold
                }
                SegmentationKind::LabelMap(values) => numbers.contains(&values[i * pixels + pixel]),
            };
            if !(0..pixels).any(is_inside) {
                continue;
            }
            let [corner, column_step, row_step] = self.place(frame, mask).map_err(|found| {
                let remedy = "resample the segmentation to the grid of the image";
                error(&self.file, format!("frame {} {found}", i + 1), remedy)
            })?;
            for pixel in (0..pixels).filter(|&pixel| is_inside(pixel)) {
                let (row, column) = ((pixel / self.columns) as i64, (pixel % self.columns) as i64);
                let index = std::array::from_fn(|axis| {
                    corner[axis] + column * column_step[axis] + row * row_step[axis]
                });
                match mask.voxel(index) {
                    Some(voxel) => *voxel = true,
                    None => outside += 1,
                }
            }
        }
        if outside > 0 {
            log::warn!(
                "{}: {outside} voxels of `{name}` lie outside the image and are left out",
                self.file.display()
            );
        }
        Ok(())
    }

    /// The index of a frame's first pixel in the image, and the steps to the next column and row.
    fn place(&self, frame: &Frame, mask: &Mask<'_>) -> Result<[[i64; 3]; 3], String> {
        let Frame { corner, column_step, row_step, .. } = frame;
        let at = |columns: f64, rows: f64| {
            mask.index(std::array::from_fn(|axis| {
                corner[axis] + columns * column_step[axis] + rows * row_step[axis]
            }))
        };
        let first = at(0.0, 0.0);
        let (last_column, last_row) = (self.columns as f64 - 1.0, self.rows as f64 - 1.0);
        for corner in [first, at(last_column, 0.0), at(0.0, last_row)] {
            for (axis, name) in ["columns", "rows", "slices"].into_iter().enumerate() {
                let off = (corner[axis] - corner[axis].round()).abs();
                if off > TOLERANCE_VOXELS {
                    return Err(format!("lies between the {name} of the image"));
                }
            }
        }
        let step = |to: [f64; 3]| -> Option<[i64; 3]> {
            let step: [i64; 3] =
                std::array::from_fn(|axis| (to[axis] - first[axis]).round() as i64);
            let is_unit = step.iter().map(|step| step.abs()).sum::<i64>() == 1;
            let exact = (0..3)
                .all(|axis| (to[axis] - first[axis] - step[axis] as f64).abs() <= TOLERANCE_VOXELS);
            (is_unit && exact).then_some(step)
        };
        match (step(at(1.0, 0.0)), step(at(0.0, 1.0))) {
            (Some(column), Some(row)) => Ok([first.map(|value| value.round() as i64), column, row]),
            _ => Err("has pixels of another size or direction than the image".to_owned()),
        }
    }
}

/// Values of 16 or 8 bits.
fn values(bytes: &[u8], bits: usize) -> Vec<u16> {
    match bits {
        16 => bytes.as_chunks::<2>().0.iter().map(|&pair| u16::from_le_bytes(pair)).collect(),
        _ => bytes.iter().map(|&byte| byte.into()).collect(),
    }
}

/// The label of a segment or, without one, the meaning of its code.
fn segment_name(segment: &InMemDicomObject, number: u16) -> String {
    let label = text(segment, tags::SEGMENT_LABEL);
    if !label.is_empty() {
        return label;
    }
    let codes = items(segment, tags::SEGMENTED_PROPERTY_TYPE_CODE_SEQUENCE);
    let meaning = codes.first().map(|code| text(code, tags::CODE_MEANING)).unwrap_or_default();
    if meaning.is_empty() { format!("segment {number}") } else { meaning }
}

/// The frames of a segmentation, by its functional groups.
fn frames(object: &InMemDicomObject) -> Result<Vec<Frame>, &'static str> {
    let frames = items(object, tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE);
    let mut found = Vec::with_capacity(frames.len());
    for frame in frames {
        let planes = Planes::of_frame(object, frame);
        let position = planes.vector(tags::PLANE_POSITION_SEQUENCE, tags::IMAGE_POSITION_PATIENT);
        let corner = position.ok_or("a frame has no position in the patient")?;
        let directions =
            planes.vector(tags::PLANE_ORIENTATION_SEQUENCE, tags::IMAGE_ORIENTATION_PATIENT);
        let d: [f64; 6] = directions.ok_or("a frame has no orientation in the patient")?;
        let spacing = planes.vector(tags::PIXEL_MEASURES_SEQUENCE, tags::PIXEL_SPACING);
        let [between_rows, between_columns] = spacing.ok_or("a frame has no pixel spacing")?;
        let segment =
            planes.vector(tags::SEGMENT_IDENTIFICATION_SEQUENCE, tags::REFERENCED_SEGMENT_NUMBER);
        found.push(Frame {
            segment: segment.map_or(0, |[number]: [f64; 1]| number as u16),
            corner,
            column_step: [d[0], d[1], d[2]].map(|value| value * between_columns),
            row_step: [d[3], d[4], d[5]].map(|value| value * between_rows),
        });
    }
    Ok(found)
}

/// Source: DICOM PS3.3, A.19 (RT Structure Set).
struct StructureSet {
    file: PathBuf,
    rois: Vec<Roi>,
}

struct Roi {
    name: String,
    /// Points of each closed contour in millimetres.
    contours: Vec<Vec<[f64; 3]>>,
}

impl StructureSet {
    fn read(file: &Path, object: &InMemDicomObject) -> Result<Self, ReadError> {
        let invalid = |found: String| error(file, found, "export it again, or convert it to NIfTI");
        let names: Vec<(i64, String)> = items(object, tags::STRUCTURE_SET_ROI_SEQUENCE)
            .iter()
            .filter_map(|roi| {
                let number = number(roi, tags::ROI_NUMBER)? as i64;
                Some((number, text(roi, tags::ROI_NAME)))
            })
            .collect();
        let mut rois: Vec<Roi> = Vec::new();
        for roi in items(object, tags::ROI_CONTOUR_SEQUENCE) {
            let number = number(roi, tags::REFERENCED_ROI_NUMBER).unwrap_or(-1.0) as i64;
            let Some((_, name)) = names.iter().find(|(other, _)| *other == number) else {
                return Err(invalid(format!(
                    "it has contours of a region {number} without a name"
                )));
            };
            let mut contours = Vec::new();
            for contour in items(roi, tags::CONTOUR_SEQUENCE) {
                // Points and open lines have no inside.
                if !text(contour, tags::CONTOUR_GEOMETRIC_TYPE).starts_with("CLOSED_PLANAR") {
                    continue;
                }
                let data = numbers(contour, tags::CONTOUR_DATA).unwrap_or_default();
                let (points, rest) = data.as_chunks::<3>();
                if !rest.is_empty() || !data.iter().all(|value| value.is_finite()) {
                    return Err(invalid(format!("a contour of `{name}` has invalid points")));
                }
                contours.push(points.to_vec());
            }
            if contours.is_empty() {
                continue;
            }
            match rois.iter_mut().find(|roi| roi.name == *name) {
                Some(roi) => roi.contours.append(&mut contours),
                None => rois.push(Roi { name: name.clone(), contours }),
            }
        }
        if rois.is_empty() {
            return Err(invalid("it has no region with closed contours".to_owned()));
        }
        Ok(Self { file: file.to_owned(), rois })
    }

    /// Adds the voxels of a region to a mask: those whose centre is inside an odd number of contours, so
    /// that a contour inside another is a hole.
    fn fill(&self, name: &str, mask: &mut Mask<'_>) -> Result<(), ReadError> {
        let Some(roi) = self.rois.iter().find(|roi| roi.name == name) else { return Ok(()) };
        let mut outside = 0_usize;
        for contour in &roi.contours {
            let points: Vec<[f64; 3]> = contour.iter().map(|&point| mask.index(point)).collect();
            let range = |axis: usize| {
                let values = points.iter().map(|point| point[axis]);
                let low = values.clone().fold(f64::INFINITY, f64::min);
                let high = values.fold(f64::NEG_INFINITY, f64::max);
                (low, high)
            };
            // The axis of the image that is perpendicular to the contour.
            let extent = |axis: usize| range(axis).1 - range(axis).0;
            let Some(normal) = (0..3).min_by(|&a, &b| extent(a).total_cmp(&extent(b))) else {
                continue;
            };
            let (low, high) = range(normal);
            let plane = ((low + high) / 2.0).round();
            let off = (low - plane).abs().max((high - plane).abs());
            if points.len() < 3 {
                continue;
            }
            if off > SLICE_TOLERANCE_VOXELS {
                let found =
                    format!("a contour of `{name}` is up to {off:.2} slices away from a slice");
                let remedy = "take the structure set of this image, or resample it";
                return Err(error(&self.file, found, remedy));
            }
            let [across, down] = [[1, 2], [0, 2], [0, 1]][normal];
            let outline: Vec<[f64; 2]> =
                points.iter().map(|point| [point[across], point[down]]).collect();
            let [slices, rows, columns] = mask.geometry.shape();
            let size = [columns, rows, slices];
            let reaches_out = |axis: usize| {
                let (low, high) = range(axis);
                low < -0.5 || high > size[axis] as f64 - 0.5
            };
            outside += usize::from((0..3).any(reaches_out));
            fill_polygon(&outline, [size[across], size[down]], |column, row| {
                let mut index = [plane as i64; 3];
                (index[across], index[down]) = (column, row);
                if let Some(voxel) = mask.voxel(index) {
                    *voxel = !*voxel;
                }
            });
        }
        if outside > 0 {
            log::warn!(
                "{}: {outside} contours of `{name}` reach outside the image and are cut off",
                self.file.display()
            );
        }
        Ok(())
    }
}

/// Visits the points of a grid of columns and rows that are inside a polygon, by the even-odd rule.
fn fill_polygon(
    outline: &[[f64; 2]],
    [columns, rows]: [usize; 2],
    mut visit: impl FnMut(i64, i64),
) {
    let [last_column, last_row] = [columns, rows].map(|count| count as f64 - 1.0);
    let heights = outline.iter().map(|point| point[1]);
    let first = heights.clone().fold(f64::INFINITY, f64::min).ceil().max(0.0);
    let last = heights.fold(f64::NEG_INFINITY, f64::max).floor().min(last_row);
    let mut crossings = Vec::new();
    for row in first as i64..=last as i64 {
        crossings.clear();
        let at = row as f64;
        for (i, &[x0, y0]) in outline.iter().enumerate() {
            let [x1, y1] = outline[(i + 1) % outline.len()];
            // The upper end of an edge belongs to it, the lower does not.
            if (y0 <= at) != (y1 <= at) {
                crossings.push(x0 + (at - y0) / (y1 - y0) * (x1 - x0));
            }
        }
        crossings.sort_by(f64::total_cmp);
        for pair in crossings.as_chunks::<2>().0 {
            let (from, to) = (pair[0].ceil().max(0.0), pair[1].floor().min(last_column));
            for column in from as i64..=to as i64 {
                visit(column, row);
            }
        }
    }
}
