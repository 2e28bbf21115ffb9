//! Recognises how the files of a dataset are laid out.

use crate::description::case_of;
use crate::dicom::{is_dicom, list_files, modality};
use crate::{DatasetDescription, FilesLayout, Layout, PreparedLayout, ReadError, Split};
use rayon::prelude::*;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A layout that was recognised in a folder.
#[derive(Debug, Clone, PartialEq)]
pub struct RecognizedLayout {
    /// What it is, such as "nnU-Net raw (dataset.json)".
    pub name: String,
    /// Where images and labels are.
    pub layout: Layout,
    /// Names of labels, where the dataset gives them; without the background.
    pub label_names: BTreeMap<u16, String>,
    /// Names of the organs' files, where each organ has its own.
    pub organ_files: BTreeSet<String>,
    /// Labels that the dataset says are to be ignored.
    pub ignored_labels: Vec<u16>,
    /// Whether the images are CT, where the dataset says so.
    pub is_ct: Option<bool>,
    /// Cases that the dataset assigns to validation.
    pub validation: Vec<String>,
    /// Folders of the splits, where each split has one: what `{split}` stands for in the layout.
    pub split_folders: BTreeMap<Split, String>,
    /// Choices that were made, for the user to check.
    pub notes: Vec<String>,
    /// The whole description, for a dataset that is built in.
    pub built_in: Option<DatasetDescription>,
}

/// Why a layout is not recognised.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecognitionError {
    /// A file or folder cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The layout is known, but cannot be read.
    #[error("cannot use {}: {reason}", root.display())]
    Unsupported {
        /// The folder.
        root: PathBuf,
        /// What is not supported, and the remedy.
        reason: String,
    },
    /// The layout is not known.
    #[error(
        "cannot recognise the dataset in {}: {found}. Recognised are nnU-Net's and Decathlon's \
         dataset.json, BTCV's RawData/Training, preprocessed slices with their lists, \
         TotalSegmentator's folders of organs, and images (NIfTI, NRRD, MetaImage, PNG, \
         JPEG, TIFF, BMP, GIF) with labels in a folder of their own (such as images and labels), in a folder for each case, or \
         in one folder with an ending such as _seg. For others, write a dataset description \
         (--dataset)",
        root.display()
    )]
    Unknown {
        /// The folder.
        root: PathBuf,
        /// What it contains instead.
        found: String,
    },
}

impl RecognizedLayout {
    fn new(name: impl Into<String>, layout: Layout) -> Self {
        Self {
            name: name.into(),
            layout,
            label_names: BTreeMap::new(),
            organ_files: BTreeSet::new(),
            ignored_labels: Vec::new(),
            is_ct: None,
            validation: Vec::new(),
            split_folders: BTreeMap::new(),
            notes: Vec::new(),
            built_in: None,
        }
    }

    fn files(name: impl Into<String>, images: String, labels: String) -> Self {
        let layout = FilesLayout {
            images: vec![images],
            channels: Vec::new(),
            labels,
            label_colors: BTreeMap::new(),
        };
        Self::new(name, Layout::Files(layout))
    }
}

/// Recognises the layout of the dataset in a folder, by names alone.
///
/// # Errors
///
/// [`RecognitionError`] if the folder cannot be read, or nothing in it is recognised.
pub fn recognize_layout(root: impl AsRef<Path>) -> Result<RecognizedLayout, RecognitionError> {
    let root = root.as_ref();
    // An error if the folder cannot be read.
    std::fs::read_dir(root).map_err(ReadError::io(root))?;
    let json = root.join("dataset.json");
    if json.is_file() {
        return dataset_json(root, &json);
    }
    let synapse = DatasetDescription::synapse();
    if let Layout::Files(layout) = &synapse.layout
        && root.join(&layout.images[0]).parent().is_some_and(Path::is_dir)
        && root.join(&layout.labels).parent().is_some_and(Path::is_dir)
    {
        let layout = synapse.layout.clone();
        let mut found = RecognizedLayout::new("BTCV/Synapse as downloaded (RawData)", layout);
        found.built_in = Some(synapse);
        return Ok(found);
    }
    let prepared = PreparedLayout::default();
    if [&prepared.train_list, &prepared.test_list].iter().any(|list| root.join(list).is_file()) {
        let synapse = DatasetDescription::synapse_prepared();
        let layout = synapse.layout.clone();
        let mut found = RecognizedLayout::new("preprocessed slices (lists, npz, HDF5)", layout);
        found.built_in = Some(synapse);
        return Ok(found);
    }
    let tree = Tree::read(root)?;
    // Folders among the files are those of series.
    if tree.files.iter().any(|path| file_ending(path).is_empty())
        && let Some(found) = dicom_folders(root)?
    {
        return Ok(found);
    }
    if let Some(found) = tree.split_folders() {
        return Ok(found);
    }
    let mut found = tree.cases().ok_or_else(|| tree.unknown(root))?;
    let unused = tree.note_unused(&mut found);
    // Pictures lie in many layouts, such as folders of a split or of a diagnosis; one that most of them
    // do not have is a guess.
    let are_pictures = tree.files.iter().all(|path| is_picture(file_ending(path)));
    if are_pictures && 2 * unused > tree.files.len() || tree.is_split() {
        return Err(tree.unknown(root));
    }
    Ok(found)
}

/// A folder for each case with a DICOM series and its segmentations or structure set.
fn dicom_folders(root: &Path) -> Result<Option<RecognizedLayout>, ReadError> {
    let mut complete = 0;
    for entry in std::fs::read_dir(root).map_err(ReadError::io(root))? {
        let folder = entry.map_err(ReadError::io(root))?.path();
        if !folder.is_dir() {
            continue;
        }
        let mut files = Vec::new();
        list_files(&folder, 0, &mut files)?;
        let modalities: BTreeSet<String> =
            files.par_iter().filter_map(|file| modality(file)).collect();
        let is_label = |modality: &&String| matches!(modality.as_str(), "SEG" | "RTSTRUCT");
        let labels = modalities.iter().filter(is_label).count();
        complete += usize::from(labels > 0 && modalities.len() > labels);
    }
    let name = "a folder for each case with a DICOM series and its SEG or RTSTRUCT";
    let folders = || "{case}".to_owned();
    Ok((complete > 0).then(|| RecognizedLayout::files(name, folders(), folders())))
}

/// nnU-Net's `dataset.json` of both versions, which Decathlon's is like.
fn dataset_json(root: &Path, json: &Path) -> Result<RecognizedLayout, RecognitionError> {
    let unsupported = |reason: String| RecognitionError::Unsupported {
        root: root.to_owned(),
        reason: format!("its dataset.json {reason}"),
    };
    let text = std::fs::read_to_string(json).map_err(ReadError::io(json))?;
    let value: Value = serde_json::from_str(&text)
        .map_err(|error| unsupported(format!("is not valid JSON: {error}; correct it")))?;
    let channels: BTreeMap<String, String> = ["channel_names", "modality"]
        .iter()
        .find_map(|key| value.get(key)?.as_object())
        .map(|names| {
            let name = |name: &Value| name.as_str().unwrap_or_default().to_owned();
            names.iter().map(|(number, value)| (number.clone(), name(value))).collect()
        })
        .unwrap_or_default();
    let ending = match value.get("file_ending").and_then(Value::as_str) {
        Some(ending) if FILE_ENDINGS.contains(&&ending.to_lowercase()[..]) => ending,
        None => ".nii.gz",
        Some(other) => {
            return Err(unsupported(format!(
                "says that files end in {other}; convert them to .nii.gz or, if they are pictures, .png"
            )));
        }
    };
    let [images, labels] = ["imagesTr", "labelsTr"].map(|folder| root.join(folder));
    let is_first = |name: &str| name.ends_with(&format!("_0000{ending}"));
    // Decathlon's cases may end in _0000, too; their labels then have the same name.
    let has_channel_files = value.get("file_ending").is_some()
        || has_name(&images, |name| is_first(name) && !labels.join(name).is_file());
    let channel_files = (0..10_000).map(|channel| format!("_{channel:04}{ending}"));
    let channel_files: Vec<String> =
        channel_files.take_while(|end| has_name(&images, |name| name.ends_with(end))).collect();
    let (name, patterns) = match has_channel_files {
        true if channel_files.is_empty() => {
            return Err(unsupported(format!(
                "describes files such as imagesTr/CASE_0000{ending}, but there is none; name the \
                 images so"
            )));
        }
        true => ("nnU-Net raw (dataset.json)", channel_files),
        false => ("Decathlon (dataset.json)", vec![ending.to_owned()]),
    };
    let mut patterns: Vec<String> =
        patterns.iter().map(|end| format!("imagesTr/{{case}}{end}")).collect();
    let names: Vec<&str> = channels.values().map(String::as_str).collect();
    let in_one_file = patterns.len() == 1 && names.len() > 1 && !is_picture(ending);
    if in_one_file && has_channel_files {
        return Err(unsupported(format!(
            "names {} channels, but only files of the first (CASE_0000{ending}) are in imagesTr; add \
             those of the others, or remove their names",
            names.len()
        )));
    }
    let total = if in_one_file { names.len() } else { patterns.len() };
    patterns.truncate(3);
    let mut found =
        RecognizedLayout::files(name, patterns[0].clone(), format!("labelsTr/{{case}}{ending}"));
    if total > 1 {
        let used = total.min(3);
        let key = if in_one_file { "channels" } else { "images" };
        found.notes.push(format!(
            "images have {total} channels; {used} are used ({}): choose up to three in `{key}` of the \
             layout",
            names[..names.len().min(used)].join(", ")
        ));
    }
    if let Layout::Files(layout) = &mut found.layout {
        layout.images = patterns;
        if in_one_file {
            layout.channels = (0..total.min(3)).collect();
        }
    }
    found.is_ct =
        (!names.is_empty()).then(|| names.iter().all(|name| name.eq_ignore_ascii_case("CT")));
    let labels = value.get("labels").and_then(Value::as_object);
    let labels = labels.ok_or_else(|| unsupported("has no `labels`".to_owned()))?;
    add_labels(&mut found, labels).map_err(unsupported)?;
    add_folds(&mut found, &root.join("splits_final.json"))?;
    Ok(found)
}

/// The labels of nnU-Net's regions, each with the name of the smallest region that has it.
fn labels_of_regions(labels: &Map<String, Value>) -> BTreeMap<u16, String> {
    let numbers = |value: &Value| -> Vec<u16> {
        let listed = value.as_array().into_iter().flatten().chain([value]);
        listed.filter_map(|number| number.as_u64()?.try_into().ok()).collect()
    };
    let mut regions: Vec<(Vec<u16>, &String)> =
        labels.iter().map(|(name, value)| (numbers(value), name)).collect();
    regions.sort_by_key(|(numbers, _)| numbers.len());
    let mut names: BTreeMap<u16, String> = BTreeMap::new();
    let mut used: BTreeSet<&str> = BTreeSet::new();
    for (numbers, region) in &regions {
        for &label in numbers {
            names.entry(label).or_insert_with(|| match used.insert(region) {
                true => (*region).clone(),
                false => format!("{region} ({label})"),
            });
        }
    }
    names
}

/// Adds the labels of a `dataset.json`; an error says what is not supported.
fn add_labels(found: &mut RecognizedLayout, labels: &Map<String, Value>) -> Result<(), String> {
    let names = labels_of_regions(labels);
    let region = labels.values().find(|value| value.as_array().is_some_and(|of| of.len() > 1));
    if region.is_some() {
        found.notes.push(
            "its dataset.json has regions, which overlap; each label number is a class of its own, named \
             after the smallest region that has it"
                .to_owned(),
        );
    }
    for (key, value) in labels {
        // Version 1 maps numbers to names, version 2 names to numbers.
        let (number, name) = match (key.parse::<u16>(), value) {
            (Ok(number), Value::String(name)) => (Some(number), name.clone()),
            (_, Value::Number(number)) => {
                (number.as_u64().and_then(|number| u16::try_from(number).ok()), key.clone())
            }
            (_, Value::Array(numbers)) => {
                for number in numbers {
                    let label = number.as_u64().and_then(|number| u16::try_from(number).ok());
                    let label = label.ok_or_else(|| {
                        format!(
                            "gives `{key}` the label {number}, expected numbers from 0 to 65535"
                        )
                    })?;
                    if label != 0 {
                        found.label_names.insert(label, names[&label].clone());
                    }
                }
                continue;
            }
            _ => (None, key.clone()),
        };
        let number = number.ok_or_else(|| {
            format!("has a label `{name}` without a number from 0 to 65535; correct it")
        })?;
        if name == "ignore" {
            found.ignored_labels.push(number);
            found.notes.push(format!(
                "label {number}, which the dataset says to ignore, is trained as background"
            ));
        } else if number != 0
            && let Some(other) = found.label_names.insert(number, name.clone())
            && (region.is_none() || other != name)
        {
            return Err(format!(
                "gives label {number} two names, `{other}` and `{name}`; correct it"
            ));
        }
    }
    Ok(())
}

/// Adds the validation cases of nnU-Net's first fold.
fn add_folds(found: &mut RecognizedLayout, splits: &Path) -> Result<(), RecognitionError> {
    if !splits.is_file() {
        return Ok(());
    }
    let text = std::fs::read_to_string(splits).map_err(ReadError::io(splits))?;
    let folds: Value = serde_json::from_str(&text).unwrap_or_default();
    let validation = folds.get(0).and_then(|fold| fold.get("val")).and_then(Value::as_array);
    let names = validation.into_iter().flatten().filter_map(Value::as_str);
    found.validation = names.map(str::to_owned).collect();
    found.notes.push(match found.validation.len() {
        0 => format!("{} has no validation cases and is ignored", splits.display()),
        _ => "validation cases are those of fold 0 of splits_final.json".to_owned(),
    });
    Ok(())
}

fn has_name(folder: &Path, is_wanted: impl Fn(&str) -> bool) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| is_wanted(&entry.file_name().to_string_lossy()))
}

/// Endings of files that can be read as images and as labels.
const FILE_ENDINGS: [&str; 13] = [
    ".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".png", ".jpg", ".jpeg", ".tif", ".tiff",
    ".bmp", ".gif",
];
/// Those of pictures.
const PICTURE_ENDINGS: [&str; 7] = [".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif"];

/// The ending of a file that can be read as an image or labels, as it is written and with its dot;
/// empty for other names, such as that of a folder.
pub fn file_ending(name: &str) -> &str {
    let lower = name.to_lowercase();
    // Lower case may change the length of other letters, but not that of these endings.
    let ending = FILE_ENDINGS.iter().find(|ending| lower.ends_with(**ending));
    ending.map_or("", |ending| name.get(name.len() - ending.len()..).unwrap_or(""))
}

/// Whether files with this ending are pictures.
fn is_picture(ending: &str) -> bool {
    PICTURE_ENDINGS.contains(&&ending.to_lowercase()[..])
}

/// The files below a folder.
struct Tree {
    /// Paths of images and label files and of folders of DICOM series relative to the folder, with `/`.
    files: Vec<String>,
    /// Endings of other files, with their number.
    others: BTreeMap<String, usize>,
    /// One of the other files.
    other: Option<PathBuf>,
}

const MAX_FILES: usize = 100_000;
const MAX_DEPTH: usize = 4;

impl Tree {
    fn read(root: &Path) -> Result<Self, ReadError> {
        let mut tree = Self { files: Vec::new(), others: BTreeMap::new(), other: None };
        tree.read_below(root, "", 0)?;
        tree.files.sort();
        Ok(tree)
    }

    fn read_below(&mut self, folder: &Path, prefix: &str, depth: usize) -> Result<(), ReadError> {
        let io = ReadError::io(folder);
        let mut is_series = false;
        for entry in std::fs::read_dir(folder).map_err(io)? {
            let entry = entry.map_err(io)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name.starts_with('.') || self.files.len() >= MAX_FILES {
                continue;
            }
            let path = format!("{prefix}{name}");
            if entry.path().is_dir() {
                if depth < MAX_DEPTH {
                    self.read_below(&entry.path(), &format!("{path}/"), depth + 1)?;
                }
            } else if !file_ending(&name).is_empty() && !is_series {
                self.files.push(path);
            } else if !is_series && !prefix.is_empty() && is_dicom(&entry.path()) {
                // The folder of a series is an image.
                is_series = true;
                self.files.push(prefix.trim_end_matches('/').to_owned());
            } else if !is_series {
                let ending = Path::new(&name).extension().unwrap_or_default().to_string_lossy();
                *self.others.entry(ending.to_lowercase()).or_default() += 1;
                self.other.get_or_insert_with(|| entry.path());
            }
        }
        Ok(())
    }

    /// A layout of the files, by their names.
    fn cases(&self) -> Option<RecognizedLayout> {
        self.case_folders().or_else(|| self.two_folders()).or_else(|| self.one_folder())
    }

    /// A folder for each split, at the top or within the folders of images and of labels, with the same
    /// layout in each.
    fn split_folders(&self) -> Option<RecognizedLayout> {
        (0..2).find_map(|depth| self.split_folders_at(depth))
    }

    fn split_folders_at(&self, depth: usize) -> Option<RecognizedLayout> {
        let mut splits: BTreeMap<Split, (&str, BTreeSet<String>)> = BTreeMap::new();
        for path in &self.files {
            let mut parts: Vec<&str> = path.split('/').collect();
            let folder = (depth + 1 < parts.len()).then(|| parts.remove(depth))?;
            let (first, files) =
                splits.entry(split_of(folder)?).or_insert((folder, BTreeSet::new()));
            if *first != folder {
                return None; // two folders of one split
            }
            files.insert(parts.join("/"));
        }
        if splits.len() < 2 {
            return None;
        }
        let within = |files: Vec<String>| Self { files, others: BTreeMap::new(), other: None };
        let (_, training) = splits.get(&Split::Train)?;
        let mut found = within(training.iter().cloned().collect()).cases()?;
        let Layout::Files(layout) = found.layout.clone() else { return None };
        let labels = layout.labels.split("{organ}").next().unwrap_or_default().to_owned();
        let mut used = Vec::new();
        for (split, (folder, files)) in splits {
            let has_label = |path: &String| {
                case_of(&layout.images[0], path).is_some_and(|case| {
                    let label = labels.replace("{case}", &case);
                    files.range(label.clone()..).next().is_some_and(|file| file.starts_with(&label))
                })
            };
            if files.iter().any(has_label) {
                found.split_folders.insert(split, folder.to_owned());
                used.extend(files);
            } else {
                found.notes.push(format!(
                    "folder {folder} has no labels and is left out; `sam-lst segment` predicts them"
                ));
            }
        }
        let used = within(used);
        let unused = used.note_unused(&mut found);
        // As elsewhere, a layout that most of the files do not have is a guess.
        if found.split_folders.len() < 2 || 2 * unused > used.files.len() {
            return None;
        }
        let with_split = |pattern: &String| {
            let mut parts: Vec<&str> = pattern.split('/').collect();
            parts.insert(depth, "{split}");
            parts.join("/")
        };
        let layout = FilesLayout {
            images: layout.images.iter().map(with_split).collect(),
            labels: with_split(&layout.labels),
            ..layout
        };
        found.layout = Layout::Files(layout);
        found.name.push_str(", in a folder for each split");
        Some(found)
    }

    /// A folder for each case, in which files have the same names but for the case's.
    fn case_folders(&self) -> Option<RecognizedLayout> {
        let mut cases: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for path in &self.files {
            let (case, below) = path.split_once('/')?;
            let pattern = with_placeholder(below, case);
            cases.entry(case).or_default().push(pattern);
        }
        let mut counts: BTreeMap<&String, usize> = BTreeMap::new();
        cases.values().flatten().for_each(|pattern| *counts.entry(pattern).or_default() += 1);
        let in_most = |count: usize| 2 * count > cases.len();
        let (labels, images): (Vec<&String>, Vec<&String>) = counts
            .iter()
            .filter(|(_, count)| in_most(**count))
            .map(|(pattern, _)| *pattern)
            .partition(|pattern| is_label(pattern));
        let image = images.first()?;
        let name_of = |path: &&String| path.rsplit('/').next().unwrap_or(path).to_owned();
        let [image_names, label_names] =
            [&images, &labels].map(|paths| paths.iter().map(name_of).collect::<BTreeSet<_>>());
        if images.len() > 1 && !label_names.is_disjoint(&image_names) {
            return None; // folders of a split, each with cases of equal names
        }
        let images_pattern = format!("{{case}}/{image}");
        let folder_of = |path: &&String| Some(path.rsplit_once('/')?.0.to_owned());
        let label_folders: BTreeSet<String> = labels.iter().filter_map(folder_of).collect();
        let mut found = match (labels.as_slice(), label_folders.first()) {
            // Several files in one folder of labels: one per organ.
            ([first, _, ..], Some(folder)) if label_folders.len() == 1 => {
                let ending = file_ending(first);
                // The names may begin with the case's.
                let case = format!("{folder}/{{case}}_");
                let has_case = labels.iter().all(|label| label.starts_with(&case));
                let before = if has_case { case } else { format!("{folder}/") };
                let labels_pattern = format!("{{case}}/{before}{{organ}}{ending}");
                let name = "a folder for each case, a file for each organ";
                let mut found = RecognizedLayout::files(name, images_pattern, labels_pattern);
                let organ = |pattern: &&&String| {
                    let organ = pattern.strip_prefix(&before)?.strip_suffix(ending)?;
                    (!organ.contains('.')).then(|| organ.to_owned())
                };
                found.organ_files = counts.keys().filter_map(|pattern| organ(&pattern)).collect();
                found
            }
            ([label, ..], _) => {
                let labels_pattern = format!("{{case}}/{label}");
                let name = "a folder for each case";
                RecognizedLayout::files(name, images_pattern, labels_pattern)
            }
            ([], _) => return None,
        };
        note_others(&mut found, "images", &images);
        if found.organ_files.is_empty() {
            note_others(&mut found, "labels", &labels);
        }
        Some(found)
    }

    /// Images in one folder, labels in another.
    fn two_folders(&self) -> Option<RecognizedLayout> {
        let mut folders: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for path in &self.files {
            let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
            folders.entry(folder).or_default().push(name);
        }
        let mut pairs = Vec::new();
        for (&label_folder, labels) in folders.iter().filter(|(folder, _)| is_label(folder)) {
            for (&image_folder, images) in folders.iter().filter(|(folder, _)| !is_label(folder)) {
                if let Some(names) = patterns(images, labels) {
                    pairs.push((image_folder, label_folder, names));
                }
            }
        }
        // Of several candidates, one whose name says that it has images.
        if pairs.len() > 1 && pairs.iter().filter(|(folder, ..)| is_image(folder)).count() == 1 {
            pairs.retain(|(folder, ..)| is_image(folder));
        }
        let [(image_folder, label_folder, (image, label))] = pairs.as_slice() else { return None };
        let below = |folder: &str, pattern: &str| match folder {
            "" => pattern.to_owned(),
            folder => format!("{folder}/{pattern}"),
        };
        Some(RecognizedLayout::files(
            "a folder of images and a folder of labels",
            below(image_folder, image),
            below(label_folder, label),
        ))
    }

    /// Images and labels in one folder, distinguished by a suffix.
    fn one_folder(&self) -> Option<RecognizedLayout> {
        let names: Vec<&str> =
            self.files.iter().map(String::as_str).filter(|path| !path.contains('/')).collect();
        let (labels, images): (Vec<&str>, Vec<&str>) =
            names.into_iter().partition(|name| is_label(name));
        let (image, label) = patterns(&images, &labels)?;
        Some(RecognizedLayout::files("images and labels in one folder", image, label))
    }

    /// Notes images that no pattern of the layout has, as where a folder holds several datasets.
    /// Returns their number.
    fn note_unused(&self, found: &mut RecognizedLayout) -> usize {
        let Layout::Files(layout) = &found.layout else { return 0 };
        let ends = |pattern: &str| {
            let (before, _) = pattern.split_once("{case}").unwrap_or((pattern, ""));
            let after = pattern.rsplit('}').next().unwrap_or_default();
            (before.to_owned(), after.to_owned())
        };
        let patterns: Vec<_> =
            layout.images.iter().chain([&layout.labels]).map(|pattern| ends(pattern)).collect();
        let is_used = |path: &&String| {
            patterns.iter().any(|(before, after)| {
                path.starts_with(before.as_str()) && path.ends_with(after.as_str())
            })
        };
        let unused: Vec<&String> = self.files.iter().filter(|path| !is_used(path)).collect();
        if let Some(first) = unused.first() {
            found.notes.push(format!(
                "{} images are not part of this layout, such as {first}; if the folder holds several \
                 datasets, give the folder of one",
                unused.len()
            ));
        }
        unused.len()
    }

    /// Whether the folders at the top are those of a split, each with images and labels of its own.
    fn is_split<'a>(&'a self) -> bool {
        let top = |path: &'a String| path.split_once('/').map_or("", |(top, _)| top);
        let tops: BTreeSet<&str> = self.files.iter().map(top).collect();
        tops.len() > 1 && tops.iter().all(|top| split_of(top).is_some())
    }

    fn unknown(&self, root: &Path) -> RecognitionError {
        let count = |ending: &str| self.others.get(ending).copied().unwrap_or(0);
        let found = if !self.files.is_empty() {
            let first = &self.files[0];
            let hint = if self.is_split() {
                "; its folders are those of a split: put all cases into one folder of images and one of \
                 labels, and list the test cases in the description"
            } else {
                ""
            };
            format!(
                "it has {}, such as {first}, but no images with labels, or several possible folders of \
                 them{hint}",
                match self.files.len() {
                    1 => "one image".to_owned(),
                    count => format!("{count} images"),
                }
            )
        } else if count("dcm") > 0 || self.other.as_deref().is_some_and(is_dicom) {
            "it has DICOM files and no labels in NIfTI, and no folder for each case with a series and \
             its SEG or RTSTRUCT. `sam-lst segment` reads a series without labels"
                .to_owned()
        } else {
            "it has no image (.nii, .nii.gz, .nrrd, .mha, .mhd, .png, .jpg, .tif, .bmp, .gif)"
                .to_owned()
        };
        RecognitionError::Unknown { root: root.to_owned(), found }
    }
}

fn note_others(found: &mut RecognizedLayout, key: &str, patterns: &[&String]) {
    if let [used, others @ ..] = patterns
        && !others.is_empty()
    {
        let others: Vec<&str> = others.iter().map(|other| other.as_str()).collect();
        let others = others.join(", ");
        found.notes.push(format!(
            "{used} is taken as `{key}`; there are also {others}: choose another in the layout"
        ));
    }
}

/// A path below the folder of a case, with `{case}` for the case's name where it is a word of its own.
fn with_placeholder(path: &str, case: &str) -> String {
    let mut pattern = String::new();
    let mut rest = path;
    while let Some(at) = rest.find(case) {
        let (before, after) = (&rest[..at], &rest[at + case.len()..]);
        let is_part = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        let previous = before.chars().next_back().or_else(|| pattern.chars().next_back());
        pattern.push_str(before);
        let whole = !is_part(previous) && !is_part(after.chars().next());
        pattern.push_str(if whole { "{case}" } else { case });
        rest = after;
    }
    pattern + rest
}

/// The split that the name of a folder says.
fn split_of(folder: &str) -> Option<Split> {
    match folder.to_lowercase().as_str() {
        "train" | "training" => Some(Split::Train),
        "val" | "valid" | "validation" | "dev" => Some(Split::Validation),
        "test" | "testing" => Some(Split::Test),
        _ => None,
    }
}

/// Whether the name of a folder is one of images.
fn is_image(path: &str) -> bool {
    const WORDS: [&str; 9] =
        ["image", "img", "ct", "scan", "volume", "mr", "picture", "photo", "original"];
    let path = path.to_lowercase();
    let mut words = path.split(|c: char| !c.is_ascii_alphabetic());
    words.any(|word| {
        WORDS.iter().any(|image| word == *image || (image.len() > 2 && word.starts_with(image)))
    })
}

/// Whether the name of a file or folder is one of labels.
fn is_label(path: &str) -> bool {
    const WORDS: [&str; 11] = [
        "label",
        "seg",
        "mask",
        "gt",
        "truth",
        "groundtruth",
        "annotation",
        "roi",
        "organs",
        "contour",
        "manual",
    ];
    let path = path.to_lowercase();
    // Words of a path: "case1_seg.nii.gz" has "seg", "segmentations" begins with it.
    let words = path.split(|c: char| !c.is_ascii_alphabetic()).filter(|word| !word.is_empty());
    words.into_iter().any(|word| {
        WORDS.iter().any(|label| {
            let is_long = label.len() > 3;
            word == *label || (word.starts_with(label) && (is_long || *label == "seg"))
        })
    })
}

/// The patterns of the names of images and of labels, such that most labels have an image.
fn patterns(images: &[&str], labels: &[&str]) -> Option<(String, String)> {
    let [images, labels] = [images, labels].map(most_frequent_ending);
    let (first_image, first_label) = (images.first()?, labels.first()?);
    let [image_ending, label_ending] = [first_image, first_label].map(|name| file_ending(name));
    if labels.iter().all(|label| images.contains(label)) {
        return Some((format!("{{case}}{image_ending}"), format!("{{case}}{label_ending}")));
    }
    by_common_parts(&images, &labels).or_else(|| {
        // The names of labels contain those of images.
        let stem = |name: &str, ending: &str| name[..name.len() - ending.len()].to_owned();
        let stems: BTreeSet<String> = images.iter().map(|name| stem(name, image_ending)).collect();
        let names: Vec<String> = labels.iter().map(|name| stem(name, label_ending)).collect();
        let of_first = stems.iter().filter(|stem| !stem.is_empty());
        let candidates = of_first.filter_map(|stem| names[0].split_once(stem.as_str()));
        let fitting = |(prefix, suffix): &(&str, &str)| {
            let cases = names.iter().filter_map(|name| {
                let case = name.strip_prefix(prefix)?.strip_suffix(suffix)?;
                stems.contains(case).then_some(())
            });
            cases.count()
        };
        let best = candidates.max_by_key(fitting)?;
        let (prefix, suffix) = best;
        (2 * fitting(&best) > names.len()).then(|| {
            (format!("{{case}}{image_ending}"), format!("{prefix}{{case}}{suffix}{label_ending}"))
        })
    })
}

/// The names with the ending that most of them have.
fn most_frequent_ending<'a>(names: &[&'a str]) -> Vec<&'a str> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    names.iter().for_each(|name| *counts.entry(file_ending(name)).or_default() += 1);
    let most = counts.into_iter().max_by_key(|&(_, count)| count).map(|(ending, _)| ending);
    names.iter().copied().filter(|name| Some(file_ending(name)) == most).collect()
}

/// The patterns by what the names of all images have in common, and those of all labels.
fn by_common_parts(images: &[&str], labels: &[&str]) -> Option<(String, String)> {
    let [of_images, of_labels] = [images, labels].map(common_parts);
    let cases = |names: &[&str], (prefix, suffix): &(String, String)| -> Option<BTreeSet<String>> {
        names
            .iter()
            .map(|name| {
                let case = name.strip_prefix(prefix.as_str())?.strip_suffix(suffix.as_str())?;
                (!case.is_empty()).then(|| case.to_owned())
            })
            .collect()
    };
    let (image_cases, label_cases) = (cases(images, &of_images)?, cases(labels, &of_labels)?);
    let pattern = |(prefix, suffix): (String, String)| format!("{prefix}{{case}}{suffix}");
    label_cases.is_subset(&image_cases).then(|| (pattern(of_images), pattern(of_labels)))
}

/// What all names begin and end with, without the digits and parts of words next to the part that
/// differs.
fn common_parts(names: &[&str]) -> (String, String) {
    let first = names[0];
    let ending = file_ending(first);
    let common = |name: &str, reversed: bool, length: usize| {
        let pairs: Box<dyn Iterator<Item = (char, char)>> = if reversed {
            Box::new(name.chars().rev().zip(first.chars().rev()))
        } else {
            Box::new(name.chars().zip(first.chars()))
        };
        pairs.take(length).take_while(|(a, b)| a == b).count()
    };
    let length = first.chars().count();
    let (mut prefix, mut suffix) = (length, length);
    for name in &names[1..] {
        prefix = common(name, false, prefix);
        suffix = common(name, true, suffix);
    }
    if names.len() == 1 {
        // One name: the case is its first number, or all of it up to a label's word.
        let start = first.find(|c: char| c.is_ascii_digit());
        let Some(start) = start else { return (String::new(), single_suffix(first, ending)) };
        let end =
            first[start..].find(|c: char| !c.is_ascii_digit()).map_or(first.len(), |n| start + n);
        return (first[..start].to_owned(), first[end..].to_owned());
    }
    // Part of a word is not a common part: "cat" and "car" have none.
    let in_word = |at: Option<char>| at.is_some_and(char::is_alphabetic);
    let cuts_prefix = names.iter().any(|name| in_word(name.chars().nth(prefix)));
    let cuts_suffix = names.iter().any(|name| in_word(name.chars().rev().nth(suffix)));
    let is_part = |c: char, cuts: bool| c.is_ascii_digit() || (cuts && c.is_alphabetic());
    // A case keeps its brackets: "a (1).png" is not the case "1" of "a ({case}).png".
    let is_part = |c: char, cuts: bool| is_part(c, cuts) || "()[]{}".contains(c);
    let prefix: String = first.chars().take(prefix).collect();
    let prefix = prefix.trim_end_matches(|c| is_part(c, cuts_prefix)).to_owned();
    let suffix: String = first.chars().skip(length - suffix).collect();
    let suffix = suffix.trim_start_matches(|c| is_part(c, cuts_suffix)).to_owned();
    (prefix, suffix)
}

/// The end of a single name from its label's word on.
fn single_suffix(name: &str, ending: &str) -> String {
    let stem = name.strip_suffix(ending).unwrap_or(name);
    let from = stem.rfind(['_', '-']).filter(|&at| is_label(&stem[at..]));
    name[from.unwrap_or(stem.len())..].to_owned()
}
