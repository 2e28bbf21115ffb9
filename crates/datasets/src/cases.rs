//! Finds the cases in a dataset's folder.

use crate::description::{CASE_PLACEHOLDER, ORGAN_PLACEHOLDER, SPLIT_PLACEHOLDER};
use crate::dicom::is_dicom;
use crate::patients::Patients;
use crate::{
    Case, CaseFiles, DatasetDescription, DatasetError, FilesLayout, PreparedLayout, ReadError,
    Split, SplitDescription,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The cases whose images and labels have files of their own.
pub(crate) fn file_cases(
    root: &Path,
    layout: &FilesLayout,
    description: &DatasetDescription,
    patients: &Patients,
) -> Result<Vec<Case>, DatasetError> {
    let split = &description.split;
    // Each folder with its split, or all cases in one.
    let mut folders: Vec<(Option<Split>, &str)> =
        split.folders.iter().map(|(&split, folder)| (Some(split), folder.as_str())).collect();
    if folders.is_empty() {
        folders.push((None, ""));
    }
    let mut found = Vec::new();
    for (split, folder) in folders {
        let within = |pattern: &String| pattern.replace(SPLIT_PLACEHOLDER, folder);
        let layout = FilesLayout {
            images: layout.images.iter().map(within).collect(),
            labels: within(&layout.labels),
            ..layout.clone()
        };
        let names = case_names(root, &layout)?;
        found.push((split, folder, layout, names));
    }
    let mut known: BTreeSet<String> =
        found.iter().flat_map(|(.., names)| names.iter().cloned()).collect();
    let are_unique = known.len() == found.iter().map(|(.., names)| names.len()).sum::<usize>();
    let name_of = |folder: &str, name: &str| match are_unique {
        true => name.to_owned(),
        false => format!("{}_{name}", folder.replace('/', "_")),
    };
    for (_, folder, _, names) in &found {
        known.extend(names.iter().map(|name| name_of(folder, name)));
    }
    check_names(root, split, &known)?;
    let validation = split.validation.cases();
    let mut cases = Vec::new();
    for (of_folder, folder, layout, names) in found {
        for of_file in names {
            let name = name_of(folder, &of_file);
            let is_in = |list: &[String]| list.contains(&name) || list.contains(&of_file);
            let assigned = match of_folder {
                Some(Split::Train) if is_in(validation) => Split::Validation,
                Some(split) => split,
                None if is_in(&split.test) => Split::Test,
                None if is_in(validation) => Split::Validation,
                None if split.train.is_empty() || is_in(&split.train) => Split::Train,
                None => continue, // `split.train` excludes it
            };
            let patient = patients.of(&name, &of_file)?;
            let files = files_of_case(root, &layout, description, &of_file)?;
            cases.push(Case { patient, name, split: assigned, files });
        }
    }
    Ok(cases)
}

/// The names of the cases whose images are there.
fn case_names(root: &Path, layout: &FilesLayout) -> Result<BTreeSet<String>, DatasetError> {
    let images = &layout.images[0];
    let mut names = matching_names(root, images)?;
    // A pattern such as `{case}.nii` also matches the label files beside the images.
    let file = |pattern: &str, name: &str| pattern.replace(CASE_PLACEHOLDER, name);
    let label_files: BTreeSet<String> =
        names.iter().map(|name| file(&layout.labels, name)).collect();
    // With one pattern for both, a folder has image and labels of its case.
    if layout.labels != *images {
        names.retain(|name| !label_files.contains(&file(images, name)));
    }
    if names.is_empty() {
        return Err(DatasetError::NoCases { pattern: root.join(images) });
    }
    Ok(names)
}

fn files_of_case(
    root: &Path,
    layout: &FilesLayout,
    description: &DatasetDescription,
    name: &str,
) -> Result<CaseFiles, DatasetError> {
    let path = |pattern: &String| root.join(pattern.replace(CASE_PLACEHOLDER, name));
    let images: Vec<PathBuf> = layout.images.iter().map(path).collect();
    let label = path(&layout.labels);
    if layout.has_organ_files() {
        let organs = organ_files(description, &label, name)?;
        Ok(CaseFiles::Organs { images, organs })
    } else if label.is_dir() || (label.is_file() && is_dicom(&label)) {
        Ok(CaseFiles::Structures { images, structures: label })
    } else if label.is_file() {
        Ok(CaseFiles::Volumes { images, label })
    } else {
        Err(DatasetError::MissingLabel { case: name.to_owned(), label })
    }
}

/// The masks of a case's organs, by a pattern with `{organ}`. An organ without a file is absent from the
/// case.
fn organ_files(
    description: &DatasetDescription,
    pattern: &Path,
    case: &str,
) -> Result<Vec<(u8, PathBuf)>, DatasetError> {
    let pattern = pattern.to_string_lossy();
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for class in 1..description.classes() as u8 {
        let before = found.len();
        for name in description.organ_file_names(class) {
            let file = PathBuf::from(pattern.replace(ORGAN_PLACEHOLDER, &name));
            if file.is_file() {
                found.push((class, file));
            }
        }
        if found.len() == before {
            missing.push(description.organ(class).name.as_str());
        }
    }
    if !missing.is_empty() && !found.is_empty() {
        log::warn!("case {case} has no file of {}; taken as absent", missing.join(", "));
    }
    if found.is_empty() {
        let first = description.organ_file_names(1).swap_remove(0);
        let expected = PathBuf::from(pattern.replace(ORGAN_PLACEHOLDER, &first));
        return Err(DatasetError::NoOrganFiles { case: case.to_owned(), expected });
    }
    Ok(found)
}

/// The values of a pattern's `{case}` in the names of the files in `root`.
fn matching_names(root: &Path, pattern: &str) -> Result<BTreeSet<String>, ReadError> {
    let (before, after) = pattern.split_once(CASE_PLACEHOLDER).unwrap_or((pattern, ""));
    let (folder, prefix) = before.rsplit_once('/').unwrap_or(("", before));
    let (suffix, below) = match after.split_once('/') {
        Some((suffix, below)) => (suffix, Some(below)),
        None => (after, None),
    };
    let folder = root.join(folder);
    let io = ReadError::io(&folder);
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(&folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        let Ok(file_name) = entry.file_name().into_string() else {
            continue; // patterns are UTF-8, so none matches
        };
        let name = file_name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(suffix));
        let exists = |name: &str| match below {
            Some(below) => entry.path().join(below.replace(CASE_PLACEHOLDER, name)).exists(),
            // A pattern that ends with the case's name is one of folders.
            None => !suffix.is_empty() || entry.path().is_dir(),
        };
        match name {
            // Hidden files, such as the `._img0001.nii.gz` in some archives, are not cases.
            Some(name) if !name.is_empty() && exists(name) && !file_name.starts_with('.') => {
                names.insert(name.to_owned());
            }
            _ => {}
        }
    }
    Ok(names)
}

/// The cases of the prepared layout.
pub(crate) fn prepared_cases(
    root: &Path,
    layout: &PreparedLayout,
    description: &DatasetDescription,
    patients: &Patients,
) -> Result<Vec<Case>, DatasetError> {
    let [train_list, test_list] =
        [&layout.train_list, &layout.test_list].map(|list| root.join(list));
    let validation_cases = description.split.validation.cases();
    let mut slices: BTreeMap<String, BTreeMap<u64, PathBuf>> = BTreeMap::new();
    let mut cases = Vec::new();
    let mut lines = 0;
    if train_list.is_file() {
        for name in read_list(&train_list)? {
            lines += 1;
            let name = without_ending(&name, &[".npz"]).to_owned();
            let Some((case, slice)) = slice_of_case(&name) else {
                return Err(DatasetError::ListLine {
                    list: train_list.clone(),
                    line: name,
                    expected: "case0005_slice000",
                });
            };
            let file = root.join(&layout.train_slices).join(format!("{name}.npz"));
            check_listed(&train_list, &name, &file)?;
            if let Some(first) = slices.entry(case).or_default().insert(slice, file) {
                let first = first.file_stem().unwrap_or_default().display().to_string();
                return Err(DatasetError::ListedTwice { list: train_list, first, second: name });
            }
        }
    }
    for (case, files) in slices {
        let split = if validation_cases.contains(&case) { Split::Validation } else { Split::Train };
        let files = CaseFiles::Slices(files.into_values().collect());
        cases.push(Case { patient: patients.of(&case, &case)?, name: case, split, files });
    }
    if test_list.is_file() {
        for name in read_list(&test_list)? {
            lines += 1;
            const ENDINGS: [&str; 3] = [".npy.h5", ".h5", ".hdf5"];
            let name = without_ending(&name, &ENDINGS).to_owned();
            let case = case_name(&name);
            let folder = root.join(&layout.test_volumes);
            let files = ENDINGS.map(|ending| folder.join(format!("{name}{ending}")));
            let file = files.iter().find(|file| file.is_file()).unwrap_or(&files[0]).clone();
            check_listed(&test_list, &name, &file)?;
            if let Some(first) = cases.iter().find(|other| other.name == case) {
                if first.split == Split::Test {
                    let first = name.clone();
                    return Err(DatasetError::ListedTwice { list: test_list, first, second: name });
                }
                return Err(DatasetError::Description {
                    description: test_list.display().to_string(),
                    source: crate::DescriptionError::CaseInTwoSplits {
                        case: case.to_owned(),
                        first: first.split,
                        second: Split::Test,
                    },
                });
            }
            cases.push(Case {
                patient: patients.of(case, case)?,
                name: case.to_owned(),
                split: Split::Test,
                files: CaseFiles::Hdf5(file),
            });
        }
    }
    if lines == 0 {
        return Err(DatasetError::NoCases { pattern: train_list });
    }
    let names = cases.iter().map(|case| case.name.clone()).collect();
    check_names(root, &description.split, &names)?;
    Ok(cases)
}

/// A name without one of these endings.
fn without_ending<'a>(name: &'a str, endings: &[&str]) -> &'a str {
    endings.iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(name)
}

/// The case and the number in the name of a slice: `case0005_slice000` is slice 0 of case 0005,
/// `case_002_sliceED_3` of other datasets slice 3 of case 002_ED.
fn slice_of_case(name: &str) -> Option<(String, u64)> {
    let (case, slice) = name.rsplit_once("_slice")?;
    let part = slice.trim_end_matches(|c: char| c.is_ascii_digit());
    let number = slice[part.len()..].parse().ok()?;
    let case = case_name(case);
    let part = part.trim_matches('_');
    let separator = if part.is_empty() { "" } else { "_" };
    (!case.is_empty()).then(|| (format!("{case}{separator}{part}"), number))
}

/// The name of a case in a list file: without "case", if a number follows.
fn case_name(name: &str) -> &str {
    let number = name.strip_prefix("case").map(|rest| rest.trim_start_matches('_'));
    number.filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit())).unwrap_or(name)
}

/// The lines of a list file that are not empty.
fn read_list(list: &Path) -> Result<Vec<String>, ReadError> {
    let text = std::fs::read_to_string(list).map_err(ReadError::io(list))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    Ok(lines.map(str::to_owned).collect())
}

fn check_listed(list: &Path, name: &str, file: &Path) -> Result<(), DatasetError> {
    if file.is_file() {
        return Ok(());
    }
    Err(DatasetError::ListedFileMissing {
        list: list.to_owned(),
        name: name.to_owned(),
        file: file.to_owned(),
    })
}

/// Checks that every case that a split names exists.
fn check_names(
    root: &Path,
    split: &SplitDescription,
    cases: &BTreeSet<String>,
) -> Result<(), DatasetError> {
    match split.names().find(|(_, name)| !split.partial && !cases.contains(*name)) {
        None => Ok(()),
        Some((key, name)) => Err(DatasetError::UnknownCase {
            key,
            name: name.clone(),
            root: root.to_owned(),
            cases: cases.iter().cloned().collect(),
        }),
    }
}
