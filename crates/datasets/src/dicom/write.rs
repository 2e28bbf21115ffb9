//! Writes label volumes as DICOM segmentations on the series that they were segmented from.
//!
//! Source: DICOM PS3.3, A.51 and A.51.5; codes of PS3.16, CID 7150 (categories) and SNOMED CT.

use super::report;
use super::series::{Series, Slice};
use crate::description::plain_name;
use crate::{DatasetDescription, Volume, WriteError};
use dicom_core::chrono::Utc;
use dicom_core::value::DataSetSequence;
use dicom_core::{DataElement, PrimitiveValue, Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{FileMetaTableBuilder, InMemDicomObject, OpenFileOptions};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::Path;

/// How a DICOM segmentation stores its segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SegmentationType {
    /// A bit for each voxel and segment, which every viewer reads. Segments are numbered from 1 in the
    /// order of the classes that occur.
    Binary,
    /// The number of its segment for each voxel (DICOM of 2024 and later): smaller, and segments keep the
    /// label numbers of the dataset.
    LabelMap,
}

/// Writes classes as a DICOM segmentation (SEG) of the series in a folder, which it references: with the
/// series' patient, study and frame of reference, and standard codes for organs whose names are known.
///
/// # Errors
///
/// [`WriteError`] if the folder has no such series or the series has no UIDs, the classes are not on its
/// grid, or the file cannot be written; an existing file is then unchanged.
///
/// # Panics
///
/// If the description does not have a class of the volume.
pub fn write_dicom_segmentation(
    file: impl AsRef<Path>,
    folder: impl AsRef<Path>,
    classes: &Volume<u8>,
    description: &DatasetDescription,
    kind: SegmentationType,
) -> Result<(), WriteError> {
    let (file, folder) = (file.as_ref(), folder.as_ref());
    let unsupported = |reason: String| WriteError::Unsupported { file: file.to_owned(), reason };
    let series = Series::find(folder).map_err(|error| unsupported(error.to_string()))?;
    let source = Source::read(&series).map_err(unsupported)?;
    let shape = series.slices[0].shape;
    let stored = stored_classes(classes, [series.slices.len(), shape[0], shape[1]]);
    let stored = stored.ok_or_else(|| {
        unsupported(format!("the labels are not on the grid of the series in {}", folder.display()))
    })?;
    let object =
        Segmentation { series: &series, source: &source, classes: &stored, description, kind };
    let object = object.build();
    let class_uid = kind.class_uid();
    let meta = FileMetaTableBuilder::new()
        .transfer_syntax(uids::EXPLICIT_VR_LITTLE_ENDIAN)
        .media_storage_sop_class_uid(class_uid);
    let object = object.with_meta(meta).map_err(|error| unsupported(report(&error)))?;
    crate::write::write_file(file, "segmentation.dcm", |temporary| {
        object.write_to_file(temporary).map_err(std::io::Error::other)
    })
}

/// The classes in the order of the series: slices, rows, columns. `None` on another grid.
fn stored_classes(classes: &Volume<u8>, shape: [usize; 3]) -> Option<Vec<Vec<u8>>> {
    let geometry = classes.geometry()?;
    let stored = geometry.axis_mapping().to_file(classes.voxels().view()).reversed_axes();
    let slices: Vec<Vec<u8>> =
        stored.outer_iter().map(|slice| slice.iter().copied().collect()).collect();
    let found: [usize; 3] = stored.dim().into();
    (found == shape).then_some(slices)
}

impl SegmentationType {
    fn class_uid(self) -> &'static str {
        match self {
            Self::Binary => uids::SEGMENTATION_STORAGE,
            Self::LabelMap => "1.2.840.10008.5.1.4.1.1.66.7",
        }
    }
}

/// What a segmentation takes from its series.
struct Source {
    /// Attributes of patient, study and frame of reference.
    shared: InMemDicomObject,
    series_uid: String,
    /// Class and instance of each slice's object.
    instances: Vec<[String; 2]>,
}

impl Source {
    fn read(series: &Series) -> Result<Self, String> {
        let mut instances = Vec::with_capacity(series.slices.len());
        let mut first = None;
        for slice in &series.slices {
            let object = OpenFileOptions::new().read_until(tags::PIXEL_DATA).open_file(&slice.file);
            let object = object.map_err(|error| report(&error))?;
            let uid = |tag| super::text(&object, tag);
            instances.push([uid(tags::SOP_CLASS_UID), uid(tags::SOP_INSTANCE_UID)]);
            first.get_or_insert(object);
        }
        let Some(first) = first else { return Err("the series has no slice".to_owned()) };
        let required =
            [tags::STUDY_INSTANCE_UID, tags::SERIES_INSTANCE_UID, tags::FRAME_OF_REFERENCE_UID];
        let has_uids = required.iter().all(|&tag| !super::text(&first, tag).is_empty())
            && instances.iter().flatten().all(|uid| !uid.is_empty());
        if !has_uids {
            return Err(
                "the series has empty UIDs, which a segmentation references; use a name in \
                        .nii.gz"
                    .to_owned(),
            );
        }
        let mut shared = InMemDicomObject::new_empty();
        // Of type 2: present, if need be empty.
        for (tag, vr) in [
            (tags::PATIENT_NAME, VR::PN),
            (tags::PATIENT_ID, VR::LO),
            (tags::PATIENT_BIRTH_DATE, VR::DA),
            (tags::PATIENT_SEX, VR::CS),
            (tags::STUDY_INSTANCE_UID, VR::UI),
            (tags::STUDY_DATE, VR::DA),
            (tags::STUDY_TIME, VR::TM),
            (tags::STUDY_ID, VR::SH),
            (tags::ACCESSION_NUMBER, VR::SH),
            (tags::REFERRING_PHYSICIAN_NAME, VR::PN),
            (tags::FRAME_OF_REFERENCE_UID, VR::UI),
            (tags::POSITION_REFERENCE_INDICATOR, VR::LO),
        ] {
            put(&mut shared, tag, vr, super::text(&first, tag));
        }
        for (tag, vr) in [
            (tags::STUDY_DESCRIPTION, VR::LO),
            (tags::PATIENT_AGE, VR::AS),
            (tags::PATIENT_SIZE, VR::DS),
            (tags::PATIENT_WEIGHT, VR::DS),
        ] {
            let value = super::text(&first, tag);
            if !value.is_empty() {
                put(&mut shared, tag, vr, value);
            }
        }
        let series_uid = super::text(&first, tags::SERIES_INSTANCE_UID);
        Ok(Self { shared, series_uid, instances })
    }
}

struct Segmentation<'a> {
    series: &'a Series,
    source: &'a Source,
    /// By slice, in the order of rows.
    classes: &'a [Vec<u8>],
    description: &'a DatasetDescription,
    kind: SegmentationType,
}

/// A frame of the segmentation.
struct Frame {
    slice: usize,
    /// The segment's number; `None` in a label map.
    segment: Option<u16>,
}

impl Segmentation<'_> {
    fn build(&self) -> InMemDicomObject {
        let numbers = self.segment_numbers();
        let frames = self.frames(&numbers);
        let mut object = self.source.shared.clone();
        let (date, time) = (Utc::now().format("%Y%m%d"), Utc::now().format("%H%M%S"));
        let (date, time) = (date.to_string(), time.to_string());
        // What determines this object, so that its UIDs are unique.
        let mut digest = Sha256::new();
        digest.update(format!("{date} {time} {:?} {:?}", self.kind, self.source.instances));
        self.classes.iter().for_each(|slice| digest.update(slice));
        let digest = digest.finalize();
        let uid = |name: &str| uid(&digest, name);
        let text = |object: &mut InMemDicomObject, tag, vr, value: &str| {
            put(object, tag, vr, value.to_owned());
        };
        for (tag, vr, value) in [
            (tags::SPECIFIC_CHARACTER_SET, VR::CS, "ISO_IR 192"),
            (tags::IMAGE_TYPE, VR::CS, "DERIVED\\PRIMARY"),
            (tags::SOP_CLASS_UID, VR::UI, self.kind.class_uid()),
            (tags::SOP_INSTANCE_UID, VR::UI, &uid("instance")),
            (tags::SERIES_INSTANCE_UID, VR::UI, &uid("series")),
            (tags::MODALITY, VR::CS, "SEG"),
            (tags::SERIES_NUMBER, VR::IS, "300"),
            (tags::SERIES_DESCRIPTION, VR::LO, "sam-lst segmentation"),
            (tags::SERIES_DATE, VR::DA, &date),
            (tags::SERIES_TIME, VR::TM, &time),
            (tags::CONTENT_DATE, VR::DA, &date),
            (tags::CONTENT_TIME, VR::TM, &time),
            (tags::INSTANCE_NUMBER, VR::IS, "1"),
            (tags::CONTENT_LABEL, VR::CS, "SEGMENTATION"),
            (tags::CONTENT_DESCRIPTION, VR::LO, ""),
            (tags::CONTENT_CREATOR_NAME, VR::PN, ""),
            (tags::MANUFACTURER, VR::LO, "sam-lst"),
            (tags::MANUFACTURER_MODEL_NAME, VR::LO, "sam-lst"),
            (tags::DEVICE_SERIAL_NUMBER, VR::LO, "0"),
            (tags::SOFTWARE_VERSIONS, VR::LO, env!("CARGO_PKG_VERSION")),
            (tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME2"),
            (tags::LOSSY_IMAGE_COMPRESSION, VR::CS, "00"),
            (tags::NUMBER_OF_FRAMES, VR::IS, &frames.len().to_string()),
        ] {
            text(&mut object, tag, vr, value);
        }
        self.put_pixels(&mut object, &frames, &numbers);
        let segments = numbers.iter().map(|&(class, number)| self.segment(class, number));
        put_items(&mut object, tags::SEGMENT_SEQUENCE, segments.collect());
        self.put_dimensions(&mut object, &uid("dimensions"));
        self.put_groups(&mut object, &frames, &numbers);
        self.put_references(&mut object);
        object
    }

    /// The classes that occur, with the numbers of their segments.
    fn segment_numbers(&self) -> Vec<(u8, u16)> {
        let mut present = [false; 256];
        self.classes.iter().flatten().for_each(|&class| present[usize::from(class)] = true);
        // An empty segmentation has a segment without voxels, since it needs one.
        let mut classes: Vec<u8> = (1..=255).filter(|&class| present[usize::from(class)]).collect();
        if classes.is_empty() {
            classes.push(1);
        }
        let map = self.description.label_map();
        let numbered = classes.into_iter().zip(1..).map(|(class, number)| match self.kind {
            SegmentationType::Binary => (class, number),
            SegmentationType::LabelMap => (class, map.label_of(class)),
        });
        let mut numbers: Vec<(u8, u16)> = numbered.collect();
        numbers.sort_by_key(|(_, number)| *number);
        numbers
    }

    /// The slices of each segment with voxels of it; of a label map the slices with voxels of any.
    fn frames(&self, numbers: &[(u8, u16)]) -> Vec<Frame> {
        let has = |slice: &usize, class: u8| self.classes[*slice].contains(&class);
        let slices = || 0..self.classes.len();
        let mut frames: Vec<Frame> = match self.kind {
            SegmentationType::Binary => {
                let of_segment = |&(class, number): &(u8, u16)| {
                    let slices = slices().filter(move |slice| has(slice, class));
                    slices.map(move |slice| Frame { slice, segment: Some(number) })
                };
                numbers.iter().flat_map(of_segment).collect()
            }
            SegmentationType::LabelMap => slices()
                .filter(|&slice| self.classes[slice].iter().any(|&class| class != 0))
                .map(|slice| Frame { slice, segment: None })
                .collect(),
        };
        if frames.is_empty() {
            let segment = (self.kind == SegmentationType::Binary).then_some(1);
            frames.push(Frame { slice: 0, segment });
        }
        frames
    }

    fn put_pixels(&self, object: &mut InMemDicomObject, frames: &[Frame], numbers: &[(u8, u16)]) {
        let mut number_of_class = [0_u16; 256];
        numbers.iter().for_each(|&(class, number)| number_of_class[usize::from(class)] = number);
        let is_wide = number_of_class.iter().any(|&number| number > 255);
        let pixels = || {
            frames.iter().flat_map(|frame| {
                let numbers = self.classes[frame.slice]
                    .iter()
                    .map(|&class| number_of_class[usize::from(class)]);
                numbers.map(|number| (number, frame.segment))
            })
        };
        let (name, bits, mut bytes): (&str, u16, Vec<u8>) = match self.kind {
            SegmentationType::Binary => {
                let mut bytes = Vec::new();
                for (i, (number, segment)) in pixels().enumerate() {
                    if i % 8 == 0 {
                        bytes.push(0);
                    }
                    if Some(number) == segment
                        && let Some(last) = bytes.last_mut()
                    {
                        *last |= 1 << (i % 8);
                    }
                }
                ("BINARY", 1, bytes)
            }
            SegmentationType::LabelMap if is_wide => {
                ("LABELMAP", 16, pixels().flat_map(|(number, _)| number.to_le_bytes()).collect())
            }
            SegmentationType::LabelMap => {
                ("LABELMAP", 8, pixels().map(|(number, _)| number as u8).collect())
            }
        };
        if bytes.len() % 2 == 1 {
            bytes.push(0);
        }
        let [rows, columns] = self.series.slices[0].shape;
        put(object, tags::SEGMENTATION_TYPE, VR::CS, name.to_owned());
        for (tag, value) in [
            (tags::SAMPLES_PER_PIXEL, 1),
            (tags::ROWS, rows as u16),
            (tags::COLUMNS, columns as u16),
            (tags::BITS_ALLOCATED, bits),
            (tags::BITS_STORED, bits),
            (tags::HIGH_BIT, bits - 1),
            (tags::PIXEL_REPRESENTATION, 0),
        ] {
            object.put(DataElement::new(tag, VR::US, PrimitiveValue::from(value)));
        }
        if self.kind == SegmentationType::Binary {
            // Required by its image module; of no meaning for masks.
            put(object, tags::BURNED_IN_ANNOTATION, VR::CS, "NO".to_owned());
        }
        let pixels = if bits == 16 {
            let words = bytes.as_chunks::<2>().0.iter().map(|&pair| u16::from_le_bytes(pair));
            DataElement::new(tags::PIXEL_DATA, VR::OW, PrimitiveValue::U16(words.collect()))
        } else {
            DataElement::new(tags::PIXEL_DATA, VR::OB, PrimitiveValue::from(bytes))
        };
        object.put(pixels);
    }

    fn segment(&self, class: u8, number: u16) -> InMemDicomObject {
        let name = &self.description.organ(class).name;
        let coded = organ_code(name);
        let mut segment = InMemDicomObject::new_empty();
        segment.put(DataElement::new(tags::SEGMENT_NUMBER, VR::US, PrimitiveValue::from(number)));
        put(&mut segment, tags::SEGMENT_LABEL, VR::LO, name.chars().take(64).collect());
        put(&mut segment, tags::SEGMENT_ALGORITHM_TYPE, VR::CS, "AUTOMATIC".to_owned());
        put(&mut segment, tags::SEGMENT_ALGORITHM_NAME, VR::LO, "sam-lst".to_owned());
        let category = code("91723000", "SCT", "Anatomical Structure");
        let category_tag = tags::SEGMENTED_PROPERTY_CATEGORY_CODE_SEQUENCE;
        put_items(&mut segment, category_tag, vec![category]);
        let mut property = code(coded.value, "SCT", coded.meaning);
        if let Some((value, meaning)) = coded.side {
            let side = code(value, "SCT", meaning);
            let side_tag = tags::SEGMENTED_PROPERTY_TYPE_MODIFIER_CODE_SEQUENCE;
            put_items(&mut property, side_tag, vec![side]);
        }
        put_items(&mut segment, tags::SEGMENTED_PROPERTY_TYPE_CODE_SEQUENCE, vec![property]);
        segment
    }

    fn put_dimensions(&self, object: &mut InMemDicomObject, uid: &str) {
        let mut organization = InMemDicomObject::new_empty();
        put(&mut organization, tags::DIMENSION_ORGANIZATION_UID, VR::UI, uid.to_owned());
        put_items(object, tags::DIMENSION_ORGANIZATION_SEQUENCE, vec![organization]);
        let index = |pointer: Tag, group: Tag, label: &str| {
            let mut index = InMemDicomObject::new_empty();
            put(&mut index, tags::DIMENSION_ORGANIZATION_UID, VR::UI, uid.to_owned());
            for (tag, value) in
                [(tags::DIMENSION_INDEX_POINTER, pointer), (tags::FUNCTIONAL_GROUP_POINTER, group)]
            {
                index.put(DataElement::new(
                    tag,
                    VR::AT,
                    PrimitiveValue::Tags([value].into_iter().collect()),
                ));
            }
            put(&mut index, tags::DIMENSION_DESCRIPTION_LABEL, VR::LO, label.to_owned());
            index
        };
        let position =
            index(tags::IMAGE_POSITION_PATIENT, tags::PLANE_POSITION_SEQUENCE, "Position");
        let indices = match self.kind {
            SegmentationType::Binary => {
                let (pointer, group) =
                    (tags::REFERENCED_SEGMENT_NUMBER, tags::SEGMENT_IDENTIFICATION_SEQUENCE);
                vec![index(pointer, group, "Segment"), position]
            }
            SegmentationType::LabelMap => vec![position],
        };
        put_items(object, tags::DIMENSION_INDEX_SEQUENCE, indices);
    }

    fn put_groups(&self, object: &mut InMemDicomObject, frames: &[Frame], numbers: &[(u8, u16)]) {
        let first = &self.series.slices[0];
        let mut orientation = InMemDicomObject::new_empty();
        let directions = first.directions.as_flattened();
        put_decimals(&mut orientation, tags::IMAGE_ORIENTATION_PATIENT, directions);
        let mut measures = InMemDicomObject::new_empty();
        put_decimals(&mut measures, tags::PIXEL_SPACING, &first.spacing);
        let step = self.series.step_mm().unwrap_or(1.0);
        put_decimals(&mut measures, tags::SLICE_THICKNESS, &[first.thickness.unwrap_or(step)]);
        put_decimals(&mut measures, tags::SPACING_BETWEEN_SLICES, &[step]);
        let mut shared = InMemDicomObject::new_empty();
        put_items(&mut shared, tags::PLANE_ORIENTATION_SEQUENCE, vec![orientation]);
        put_items(&mut shared, tags::PIXEL_MEASURES_SEQUENCE, vec![measures]);
        put_items(object, tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE, vec![shared]);
        let frames = frames.iter().map(|frame| self.groups_of(frame, numbers)).collect();
        put_items(object, tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE, frames);
    }

    fn groups_of(&self, frame: &Frame, numbers: &[(u8, u16)]) -> InMemDicomObject {
        let slice = &self.series.slices[frame.slice];
        let mut groups = InMemDicomObject::new_empty();
        let mut image = self.reference(frame.slice, slice);
        let purpose = code("121322", "DCM", "Source image for image processing operation");
        put_items(&mut image, tags::PURPOSE_OF_REFERENCE_CODE_SEQUENCE, vec![purpose]);
        let mut derivation = InMemDicomObject::new_empty();
        put_items(&mut derivation, tags::SOURCE_IMAGE_SEQUENCE, vec![image]);
        let segmentation = code("113076", "DCM", "Segmentation");
        put_items(&mut derivation, tags::DERIVATION_CODE_SEQUENCE, vec![segmentation]);
        put_items(&mut groups, tags::DERIVATION_IMAGE_SEQUENCE, vec![derivation]);
        let mut position = InMemDicomObject::new_empty();
        put_decimals(&mut position, tags::IMAGE_POSITION_PATIENT, &slice.position);
        put_items(&mut groups, tags::PLANE_POSITION_SEQUENCE, vec![position]);
        // From 1, in the order of segments and of positions.
        let place = frame.slice as u32 + 1;
        let mut indices = vec![place];
        if let Some(segment) = frame.segment {
            let order = numbers.iter().position(|(_, number)| *number == segment);
            indices.insert(0, order.unwrap_or(0) as u32 + 1);
            let mut identification = InMemDicomObject::new_empty();
            identification.put(DataElement::new(
                tags::REFERENCED_SEGMENT_NUMBER,
                VR::US,
                PrimitiveValue::from(segment),
            ));
            put_items(&mut groups, tags::SEGMENT_IDENTIFICATION_SEQUENCE, vec![identification]);
        }
        let mut content = InMemDicomObject::new_empty();
        let indices = PrimitiveValue::U32(indices.into_iter().collect());
        content.put(DataElement::new(tags::DIMENSION_INDEX_VALUES, VR::UL, indices));
        put_items(&mut groups, tags::FRAME_CONTENT_SEQUENCE, vec![content]);
        groups
    }

    /// A reference to the object of a slice, and to its frame there.
    fn reference(&self, number: usize, slice: &Slice) -> InMemDicomObject {
        let [class_uid, instance_uid] = &self.source.instances[number];
        let mut reference = InMemDicomObject::new_empty();
        put(&mut reference, tags::REFERENCED_SOP_CLASS_UID, VR::UI, class_uid.clone());
        put(&mut reference, tags::REFERENCED_SOP_INSTANCE_UID, VR::UI, instance_uid.clone());
        if let Some((frame, _)) = slice.frame {
            let frame = (frame + 1).to_string();
            put(&mut reference, tags::REFERENCED_FRAME_NUMBER, VR::IS, frame);
        }
        reference
    }

    fn put_references(&self, object: &mut InMemDicomObject) {
        let mut instances: Vec<InMemDicomObject> = Vec::new();
        let mut seen = std::collections::BTreeSet::new();
        for [class_uid, instance_uid] in &self.source.instances {
            if seen.insert(instance_uid) {
                let mut reference = InMemDicomObject::new_empty();
                put(&mut reference, tags::REFERENCED_SOP_CLASS_UID, VR::UI, class_uid.clone());
                let instance_tag = tags::REFERENCED_SOP_INSTANCE_UID;
                put(&mut reference, instance_tag, VR::UI, instance_uid.clone());
                instances.push(reference);
            }
        }
        let mut series = InMemDicomObject::new_empty();
        put(&mut series, tags::SERIES_INSTANCE_UID, VR::UI, self.source.series_uid.clone());
        put_items(&mut series, tags::REFERENCED_INSTANCE_SEQUENCE, instances);
        put_items(object, tags::REFERENCED_SERIES_SEQUENCE, vec![series]);
    }
}

fn put(object: &mut InMemDicomObject, tag: Tag, vr: VR, value: String) {
    let value = if value.is_empty() { PrimitiveValue::Empty } else { PrimitiveValue::from(value) };
    object.put(DataElement::new(tag, vr, value));
}

fn put_items(object: &mut InMemDicomObject, tag: Tag, items: Vec<InMemDicomObject>) {
    object.put(DataElement::new(tag, VR::SQ, DataSetSequence::from(items)));
}

/// Numbers as text of at most 16 characters, which DICOM's decimals have.
fn put_decimals(object: &mut InMemDicomObject, tag: Tag, values: &[f64]) {
    let decimal = |value: &f64| {
        let exact = value.to_string();
        if exact.len() <= 16 {
            return exact;
        }
        (0..=14)
            .rev()
            .map(|digits| format!("{value:.digits$}"))
            .find(|text| text.len() <= 16)
            .unwrap_or_else(|| format!("{value:.8e}"))
    };
    let texts = values.iter().map(decimal).collect::<Vec<_>>().join("\\");
    put(object, tag, VR::DS, texts);
}

fn code(value: &str, scheme: &str, meaning: &str) -> InMemDicomObject {
    let mut code = InMemDicomObject::new_empty();
    put(&mut code, tags::CODE_VALUE, VR::SH, value.to_owned());
    put(&mut code, tags::CODING_SCHEME_DESIGNATOR, VR::SH, scheme.to_owned());
    put(&mut code, tags::CODE_MEANING, VR::LO, meaning.to_owned());
    code
}

/// A UID of the root for UUIDs, from a digest and a name.
fn uid(digest: &[u8], name: &str) -> String {
    let hash = Sha256::new().chain_update(digest).chain_update(name).finalize();
    let bytes: [u8; 16] = std::array::from_fn(|i| hash[i]);
    // As a UUID made of a name (version 5).
    let number = u128::from_be_bytes(bytes) & !(0xf << 76) & !(0b11 << 62);
    format!("2.25.{}", number | 5 << 76 | 0b10 << 62)
}

/// The SNOMED CT code of an organ.
struct OrganCode {
    value: &'static str,
    meaning: &'static str,
    /// Code and meaning of its side.
    side: Option<(&'static str, &'static str)>,
}

/// The code of an organ by its name; that of tissue for other names.
fn organ_code(name: &str) -> OrganCode {
    const ORGANS: [(&str, &str, &str); 33] = [
        ("spleen", "78961009", "Spleen"),
        ("kidney", "64033007", "Kidney"),
        ("gallbladder", "28231008", "Gallbladder"),
        ("gall bladder", "28231008", "Gallbladder"),
        ("liver", "10200004", "Liver"),
        ("stomach", "69695003", "Stomach"),
        ("aorta", "15825003", "Aorta"),
        ("pancreas", "15776009", "Pancreas"),
        ("esophagus", "32849002", "Esophagus"),
        ("oesophagus", "32849002", "Esophagus"),
        ("inferior vena cava", "64131007", "Inferior vena cava"),
        ("portal vein", "32764006", "Portal vein"),
        ("adrenal gland", "23451007", "Adrenal gland"),
        ("duodenum", "38848004", "Duodenum"),
        ("bladder", "89837001", "Bladder"),
        ("urinary bladder", "89837001", "Bladder"),
        ("prostate", "41216001", "Prostate"),
        ("heart", "80891009", "Heart"),
        ("lung", "39607008", "Lung"),
        ("brain", "12738006", "Brain"),
        ("spinal cord", "2748008", "Spinal cord"),
        ("uterus", "35039007", "Uterus"),
        ("colon", "71854001", "Colon"),
        ("small intestine", "30315005", "Small intestine"),
        ("small bowel", "30315005", "Small intestine"),
        ("trachea", "44567001", "Trachea"),
        ("thyroid", "69748006", "Thyroid"),
        ("bone", "272673000", "Bone"),
        ("muscle", "71616004", "Muscle"),
        ("skin", "39937001", "Skin"),
        ("rectum", "34402009", "Rectum"),
        ("breast", "76752008", "Breast"),
        ("ovary", "15497006", "Ovary"),
    ];
    let plain = plain_name(name);
    let sides = [("left", ("7771000", "Left")), ("right", ("24028007", "Right"))];
    let (mut side, mut organ) = (None, plain.as_str());
    for (word, code) in sides {
        let rest = organ.strip_prefix(word).or_else(|| organ.strip_suffix(word)).map(str::trim);
        if let Some(rest) = rest {
            (side, organ) = (Some(code), rest);
            break;
        }
    }
    let organ =
        organ.strip_suffix('s').filter(|_| organ == "kidneys" || organ == "lungs").unwrap_or(organ);
    match ORGANS.iter().find(|(name, ..)| *name == organ) {
        Some(&(_, value, meaning)) => OrganCode { value, meaning, side },
        None => OrganCode { value: "85756007", meaning: "Tissue", side: None },
    }
}
