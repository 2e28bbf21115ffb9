//! Reads all cases of a folder and describes the dataset.

use crate::dicom::StructureFiles;
use crate::image_file::{mask_levels, read_channels, read_label_volume, read_mask};
use crate::picture::{MaskLevels, drawn_colors, drawn_numbers, levels_are_apart, nearest};
use crate::random::validation_order;
use crate::recognition::RecognizedLayout;
use crate::{
    Case, CaseFiles, Color, Dataset, DatasetDescription, DatasetError, Geometry, IgnoredLabels,
    Image, Intensity, Layout, Organ, Orientation, RecognitionError, Split, SplitDescription,
    Validation, Volume, label_ranges, recognize_layout,
};
use ndarray::Array3;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What lies in a folder: a description of the dataset, and what was found in each case.
#[derive(Debug, Clone, PartialEq)]
pub struct Inspection {
    /// What the layout is.
    pub layout: String,
    /// A description that fits, for the user to edit.
    pub description: DatasetDescription,
    /// The cases, by name.
    pub cases: Vec<InspectedCase>,
    /// Choices that were made, and what looks wrong.
    pub notes: Vec<String>,
}

/// What was found in a case.
#[derive(Debug, Clone, PartialEq)]
pub struct InspectedCase {
    /// The case's name.
    pub name: String,
    /// Columns, rows and slices of the image's file.
    pub shape: [usize; 3],
    /// Number of channels: 1 or 3.
    pub channels: usize,
    /// Millimetres between them; `None` without a geometry, as in a picture.
    pub spacing_mm: Option<[f64; 3]>,
    /// The sides towards which the axes of the image's file run, such as `LPS`; `None` without a
    /// geometry.
    pub orientation: Option<String>,
    /// The smallest and the largest intensity.
    pub range: [f32; 2],
    /// Number of voxels of each label.
    pub labels: BTreeMap<u16, usize>,
    /// Some intensities of the voxels of each label.
    labelled: BTreeMap<u16, Vec<f32>>,
}

/// Errors of [`inspect`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InspectionError {
    /// The layout is not recognised.
    #[error(transparent)]
    Recognition(#[from] RecognitionError),
    /// No case can be read.
    #[error("cannot read any case; the last: {reason}")]
    NoCases {
        /// The error of the last case.
        reason: String,
    },
    /// No label file has a voxel that is not 0.
    #[error(
        "cannot describe {}: no label file of its {cases} cases has a voxel that is not 0; check that \
         the label files are the right ones",
        root.display()
    )]
    NoLabels {
        /// The folder.
        root: std::path::PathBuf,
        /// Number of cases.
        cases: usize,
    },
    /// A case is wrong.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
}

/// Recognises the dataset in a folder, reads all cases, and describes it.
///
/// Labels without a name are called "label 1" and so on. A CT gets a window that reaches 150 HU beyond
/// the median intensities of all organs, other images percentiles. Where the dataset has no split, a fifth of
/// the cases become test cases. `progress` receives the number of cases that are read and of all.
///
/// # Errors
///
/// [`InspectionError`] if the layout is not recognised, or a file cannot be read.
pub fn inspect(
    root: impl AsRef<Path>,
    mut progress: impl FnMut(usize, usize),
) -> Result<Inspection, InspectionError> {
    let root = root.as_ref();
    let mut found = recognize_layout(root)?;
    let name = root.canonicalize().unwrap_or_else(|_| root.to_owned());
    let name = name.file_name().map_or("dataset".to_owned(), |name| name.display().to_string());
    let mut draft = draft(&found, name);
    let mut dataset = Dataset::open(root, draft.clone())?;
    let total = dataset.all_cases().len();
    progress(0, total);
    let mut cases = Vec::with_capacity(total);
    let mut notes = found.notes.clone();
    let structures = structure_names(&dataset);
    if !structures.is_empty() {
        found.organ_files = structures;
        draft = self::draft(&found, draft.name);
        dataset = Dataset::open(root, draft.clone())?;
    }
    let masks = if found.organ_files.is_empty() { read_masks(&dataset) } else { Vec::new() };
    let colors = label_colors(&masks, &mut notes);
    if let (Layout::Files(layout), false) = (&mut draft.layout, colors.is_empty()) {
        layout.label_colors = colors;
        dataset = Dataset::open(root, draft.clone())?;
    }
    for (i, case) in dataset.all_cases().iter().enumerate() {
        match &case.files {
            CaseFiles::Slices(_) | CaseFiles::Hdf5(_) => {}
            files => match inspect_case(&case.name, files, &draft, &mut notes) {
                Ok(case) => cases.push(case),
                // The other cases are described nevertheless.
                Err(error) => notes.push(format!("case {}: {error}", case.name)),
            },
        }
        progress(i + 1, total);
    }
    let mut description = draft;
    if found.built_in.is_none() {
        if cases.is_empty()
            && let Some(error) = notes.last()
        {
            return Err(InspectionError::NoCases { reason: error.clone() });
        }
        let is_labelled = |case: &InspectedCase| case.labels.keys().any(|&label| label != 0);
        if !cases.is_empty() && !cases.iter().any(is_labelled) {
            return Err(InspectionError::NoLabels { root: root.to_owned(), cases: cases.len() });
        }
        merge_soft_edges(&masks, &mut cases, &mut notes);
        describe_labels(&mut description, &found, &cases);
        description.intensity = intensity(found.is_ct, &cases);
        let names: Vec<&str> = dataset.all_cases().iter().map(|case| case.name.as_str()).collect();
        describe_split(&mut description, &found, &names, &mut notes);
    }
    check(&description, &dataset, &cases, &mut notes);
    Ok(Inspection { layout: found.name, description, cases, notes })
}

/// A description with the layout alone, by which the cases are found.
fn draft(found: &RecognizedLayout, name: String) -> DatasetDescription {
    if let Some(description) = &found.built_in {
        return description.clone();
    }
    let organs = if found.organ_files.is_empty() {
        vec![Organ::new("organ", 1)]
    } else {
        let files = found.organ_files.iter().take(255).zip(1..);
        files
            .map(|(file, label)| Organ { files: vec![file.clone()], ..Organ::new(file, label) })
            .collect()
    };
    DatasetDescription {
        name,
        orientation: Orientation::default(),
        intensity: Intensity::Stored,
        ignored_labels: IgnoredLabels::default(),
        report_order: Vec::new(),
        layout: found.layout.clone(),
        organs,
        split: SplitDescription { folders: found.split_folders.clone(), ..Default::default() },
        ..DatasetDescription::synapse()
    }
}

/// The names of all structures in DICOM segmentations and structure sets.
fn structure_names(dataset: &Dataset) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for case in dataset.all_cases() {
        // What is wrong with a file is found when its case is inspected.
        if let CaseFiles::Structures { structures, .. } = &case.files
            && let Ok(files) = StructureFiles::open(structures)
        {
            names.extend(files.names().into_iter().map(str::to_owned));
        }
    }
    names
}

/// What the masks of the cases were drawn with, where they are pictures.
fn read_masks(dataset: &Dataset) -> Vec<MaskLevels> {
    let levels = |case: &Case| match &case.files {
        // What is wrong with a file is found when its case is inspected.
        CaseFiles::Volumes { label, .. } => mask_levels(label).ok().flatten(),
        _ => None,
    };
    dataset.all_cases().iter().filter_map(levels).collect()
}

/// Numbers for the colours of masks, the background's included; empty if masks have numbers. Indices of
/// palettes are numbers if all palettes agree and 0 is the background.
fn label_colors(masks: &[MaskLevels], notes: &mut Vec<String>) -> BTreeMap<Color, u16> {
    let colored: Vec<&MaskLevels> = masks.iter().filter(|mask| mask.has_colors()).collect();
    let drawn = drawn_colors(&colored);
    let Some(&background) = drawn.first() else { return BTreeMap::new() };
    let mut of_index: BTreeMap<u16, Color> = BTreeMap::new();
    let has_indices = colored.iter().all(|mask| {
        mask.palette().is_some_and(|palette| {
            palette.iter().all(|(&index, &color)| *of_index.entry(index).or_insert(color) == color)
        })
    });
    if has_indices && of_index.get(&0) == Some(&background) {
        return BTreeMap::new();
    }
    notes.push(format!(
        "masks have colours, of which {} is the background; the numbers of the others are \
         `label_colors` in the layout",
        String::from(background)
    ));
    drawn.into_iter().zip(0..).collect()
}

/// Counts the pixels of soft edges and noise of masks with the label that they are closest to.
fn merge_soft_edges(masks: &[MaskLevels], cases: &mut [InspectedCase], notes: &mut Vec<String>) {
    let numbered: Vec<&MaskLevels> = masks.iter().filter(|mask| !mask.has_colors()).collect();
    let levels = drawn_numbers(&numbered);
    let is_level = |label: &u16| levels.contains(label);
    let are_all = cases.iter().flat_map(|case| case.labels.keys()).all(is_level);
    if levels.len() < 2 || are_all || !levels_are_apart(levels.iter().copied()) {
        return;
    }
    let listed: Vec<String> = levels.iter().map(u16::to_string).collect();
    notes.push(format!(
        "masks have other values than {} at their edges; each is taken as the closest of these",
        listed.join(", ")
    ));
    for case in cases {
        let labels = std::mem::take(&mut case.labels);
        for (number, pixels) in labels {
            *case.labels.entry(nearest(number, &levels)).or_default() += pixels;
        }
        let labelled = std::mem::take(&mut case.labelled);
        for (number, values) in labelled {
            case.labelled.entry(nearest(number, &levels)).or_default().extend(values);
        }
        case.labelled.remove(&0);
    }
}

fn inspect_case(
    name: &str,
    files: &CaseFiles,
    draft: &DatasetDescription,
    notes: &mut Vec<String>,
) -> Result<InspectedCase, DatasetError> {
    let images = match files {
        CaseFiles::Volumes { images, .. }
        | CaseFiles::Organs { images, .. }
        | CaseFiles::Structures { images, .. } => images.as_slice(),
        CaseFiles::Slices(_) | CaseFiles::Hdf5(_) => &[],
    };
    let image = read_channels(images, draft.file_channels(), Orientation::Stored, None)?;
    let geometry = image.geometry();
    let [slices, rows, columns] = image.shape();
    let sides = |geometry: &Geometry| geometry.sides().iter().map(ToString::to_string).collect();
    let mut case = InspectedCase {
        name: name.to_owned(),
        shape: [columns, rows, slices],
        channels: image.channels(),
        spacing_mm: image.spacing_mm().map(|[slices, rows, columns]| [columns, rows, slices]),
        orientation: geometry.map(sides),
        range: [f32::MAX, f32::MIN],
        labels: BTreeMap::new(),
        labelled: BTreeMap::new(),
    };
    for &voxel in image.voxels() {
        case.range = [case.range[0].min(voxel), case.range[1].max(voxel)];
    }
    for (class, file, mask) in read_case_masks(files, &image, draft)? {
        if mask.shape() != image.shape() {
            notes.push(format!(
                "case {name}: {} has shape {:?} and the image {:?} (slices, rows, columns); resample one \
                 to the grid of the other",
                file.display(),
                mask.shape(),
                image.shape()
            ));
        } else if geometry.is_some() != mask.geometry().is_some() {
            notes.push(format!(
                "case {name}: only one of image and {} has a position in the patient; if their voxels \
                 correspond in order, set geometry = \"trust_voxels\"",
                file.display()
            ));
        } else if let (Some(geometry), Some(of_label)) = (geometry, mask.geometry())
            && !geometry.is_same_grid(of_label)
        {
            notes.push(format!(
                "case {name}: corners of {} lie up to {:.1} mm from the image's; if the voxels correspond \
                 in order, set geometry = \"trust_voxels\"",
                file.display(),
                geometry.max_corner_distance_mm(of_label)
            ));
        }
        // At most some thousand intensities of a case.
        let step = (mask.voxels().len() / 20_000).max(1);
        let fits = mask.shape() == image.shape();
        for &label in mask.voxels() {
            let label = if label == 0 { 0 } else { class.unwrap_or(label) };
            if label != 0 || class.is_none() {
                *case.labels.entry(label).or_default() += 1;
            }
        }
        let first_channel = image.channel(0);
        for (&label, &voxel) in mask.voxels().iter().zip(&first_channel).step_by(step) {
            if label != 0 && fits {
                case.labelled.entry(class.unwrap_or(label)).or_default().push(voxel);
            }
        }
    }
    Ok(case)
}

/// The labels of a case, or the mask of each organ with its class and file.
type CaseMasks<'a> = Vec<(Option<u16>, &'a Path, Volume<u16>)>;

fn read_case_masks<'a>(
    files: &'a CaseFiles,
    image: &Image,
    draft: &DatasetDescription,
) -> Result<CaseMasks<'a>, DatasetError> {
    let mut masks = Vec::new();
    match files {
        CaseFiles::Volumes { label, .. } => {
            let labels = read_label_volume(label, Orientation::Stored, draft.label_colors())?;
            masks.push((None, label.as_path(), labels));
        }
        CaseFiles::Organs { organs, .. } => {
            for (class, file) in organs {
                let mask = read_mask(file, Orientation::Stored)?;
                let labels = mask.with_voxels(mask.voxels().mapv(u16::from));
                masks.push((Some(u16::from(*class)), file.as_path(), labels));
            }
        }
        CaseFiles::Structures { images, structures } => {
            let files = StructureFiles::open(structures)?;
            let geometry = image.geometry().ok_or_else(|| DatasetError::NoGeometry {
                image: images[0].clone(),
                structures: structures.clone(),
            })?;
            let names = files.names();
            for (class, of_organ) in (1..).zip(draft.structures_of_organs(&names)) {
                for name in of_organ {
                    let mask = files.mask(name, geometry)?.into_iter().map(u16::from).collect();
                    let mask = Array3::from_shape_vec(image.shape(), mask);
                    let mask = image.with_voxels(mask.expect("a mask on the image's grid"));
                    masks.push((Some(class), structures.as_path(), mask));
                }
            }
        }
        CaseFiles::Slices(_) | CaseFiles::Hdf5(_) => {}
    }
    Ok(masks)
}

/// Organs by the labels that occur, with the dataset's names.
fn describe_labels(
    description: &mut DatasetDescription,
    found: &RecognizedLayout,
    cases: &[InspectedCase],
) {
    if !found.organ_files.is_empty() {
        return; // organs are those of the files
    }
    let mut names = found.label_names.clone();
    for &label in cases.iter().flat_map(|case| case.labels.keys()) {
        if label != 0 && !found.ignored_labels.contains(&label) {
            names.entry(label).or_insert_with(|| format!("label {label}"));
        }
    }
    if names.len() == 1 && found.label_names.is_empty() && is_picture(cases) {
        names.values_mut().for_each(|name| *name = "foreground".to_owned());
    }
    description.ignored_labels = IgnoredLabels::Listed(found.ignored_labels.clone());
    let color_of = |label: u16| {
        let mut colors = description.label_colors().iter();
        colors.find(|(_, number)| **number == label).map(|(color, _)| *color)
    };
    description.organs = names
        .into_iter()
        .map(|(label, name)| Organ { color: color_of(label), ..Organ::new(name, label) })
        .collect();
    if description.organs.len() > 255 {
        description.organs.truncate(255);
        description.ignored_labels = IgnoredLabels::Others;
    }
}

/// Whether the cases are pictures without a geometry.
fn is_picture(cases: &[InspectedCase]) -> bool {
    cases.iter().all(|case| case.spacing_mm.is_none())
}

/// A window around the organs for a CT, all values of 8-bit pictures, percentiles for other images.
fn intensity(is_ct: Option<bool>, cases: &[InspectedCase]) -> Intensity {
    /// Hounsfield units around the organs' medians, which leave soft tissue a window like the usual
    /// ones for the abdomen.
    const MARGIN: f32 = 150.0;
    /// Below this, only air in Hounsfield units lies.
    const AIR: f32 = -500.0;
    let is_byte = |case: &InspectedCase| case.range[0] >= 0.0 && case.range[1] <= 255.0;
    if is_picture(cases) && cases.iter().all(is_byte) {
        return Intensity::Window([0.0, 255.0]);
    }
    let looks_like_ct = || cases.iter().any(|case| case.range[0] < AIR && case.range[1] < 5000.0);
    if !is_ct.unwrap_or_else(looks_like_ct) {
        return Intensity::Percentiles([0.5, 99.5]);
    }
    let mut of_labels: BTreeMap<u16, Vec<f32>> = BTreeMap::new();
    for (&label, voxels) in cases.iter().flat_map(|case| &case.labelled) {
        of_labels.entry(label).or_default().extend(voxels);
    }
    // Medians, since masks contain gas and bone at their borders.
    let medians = of_labels.values_mut().filter_map(|voxels| {
        let middle = voxels.len() / 2;
        (!voxels.is_empty()).then(|| *voxels.select_nth_unstable_by(middle, f32::total_cmp).1)
    });
    let (low, high) = medians
        .fold((f32::MAX, f32::MIN), |(low, high), median| (low.min(median), high.max(median)));
    if low > high {
        return Intensity::Window([-160.0, 240.0]);
    }
    // To whole tens, so that the description is easy to read.
    let tens = |hounsfield: f32| (hounsfield / 10.0).round() * 10.0;
    let (low, high) = (tens((low - MARGIN).max(-1000.0)), tens(high + MARGIN));
    if low < high { Intensity::Window([low, high]) } else { Intensity::Percentiles([0.5, 99.5]) }
}

/// The dataset's own validation, and a fifth of the other cases for testing.
fn describe_split(
    description: &mut DatasetDescription,
    found: &RecognizedLayout,
    cases: &[&str],
    notes: &mut Vec<String>,
) {
    let split = &mut description.split;
    if !split.folders.is_empty() {
        return;
    }
    let is_validation = |case: &str| found.validation.iter().any(|name| name == case);
    let validation: Vec<String> =
        cases.iter().filter(|case| is_validation(case)).map(|&case| case.to_owned()).collect();
    if !validation.is_empty() {
        split.validation = Validation::Cases { cases: validation };
        return;
    }
    let count = match cases.len() {
        0 | 1 => 0,
        2..5 => 1,
        count => count / 5,
    };
    let chosen = validation_order(0, cases.len()).into_iter().take(count);
    split.test = chosen.map(|i| cases[i].to_owned()).collect();
    split.test.sort();
    if count > 0 {
        notes.push(format!(
            "the dataset has no split, so {count} of {} cases were chosen at random for testing: {}; if \
             several cases are of one patient, set `patient_pattern`, `patient_table` or `patients` in `split`",
            cases.len(),
            split.test.join(", ")
        ));
    } else {
        notes.push("one case is too few to test on; it is trained and scored on itself".to_owned());
    }
}

/// Notes of what looks wrong.
fn check(
    description: &DatasetDescription,
    dataset: &Dataset,
    cases: &[InspectedCase],
    notes: &mut Vec<String>,
) {
    if cases.is_empty() {
        return;
    }
    let map = description.label_map();
    for (class, organ) in (1..).zip(&description.organs) {
        let has = |case: &&InspectedCase| {
            case.labels.keys().any(|&label| map.class_of(label) == Some(class))
        };
        if !cases.iter().any(|case| has(&case)) {
            notes.push(format!("no case contains `{}`", organ.name));
        }
    }
    let unknown: std::collections::BTreeSet<u16> = cases
        .iter()
        .flat_map(|case| case.labels.keys().copied())
        .filter(|&label| map.class_of(label).is_none())
        .collect();
    if !unknown.is_empty() {
        let unknown = label_ranges(unknown);
        notes.push(format!("labels {unknown} occur, but are not described"));
    }
    for case in cases {
        if case.labels.keys().all(|&label| map.class_of(label) == Some(0)) {
            notes.push(format!("case {} has no labelled voxel", case.name));
        }
    }
    let large = |case: &InspectedCase| {
        case.spacing_mm.filter(|spacing| spacing.iter().any(|&spacing| spacing > 20.0))
    };
    if let Some((case, spacing)) = cases.iter().find_map(|case| Some((case, large(case)?))) {
        notes
            .push(format!("case {}: voxels are {spacing:.2?} mm apart; is that right?", case.name));
    }
    let is_test = dataset.all_cases().iter().any(|case| case.split == Split::Test);
    if matches!(description.layout, Layout::Files(_))
        && !is_test
        && description.split.test.is_empty()
    {
        notes.push("there are no test cases; scores will be those of the validation".to_owned());
    }
}
