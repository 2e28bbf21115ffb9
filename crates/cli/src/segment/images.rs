//! Which images are segmented, and where their labels are written.

use crate::WrongUsage;
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use sam_lst::datasets::{CaseFiles, Layout, file_ending, has_dicom_files};
use sam_lst::{Dataset, DatasetDescription, Split};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// An image to segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// The name of its labels, without ending.
    pub name: String,
    /// A file, or the folder of a DICOM series.
    pub image: PathBuf,
    /// Other files of its case, such as its labels, which no output may replace.
    pub others: Vec<PathBuf>,
}

impl Input {
    /// An image alone.
    pub fn new(name: String, image: PathBuf) -> Self {
        Self { name, image, others: Vec::new() }
    }
}

/// The cases of a dataset to segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Cases {
    Training,
    Validation,
    Test,
    All,
}

/// What there is to segment.
pub enum Images {
    /// One image, whose labels go to a file.
    One(PathBuf),
    /// Images whose labels go to a folder.
    Many(Vec<Input>),
}

/// Whether an input is one image, by its path alone.
pub fn is_single(input: &Path, cases: Option<Cases>) -> bool {
    let is_folder = input.is_dir() && !has_dicom_files(input);
    cases.is_none() && !is_folder && !is_list(input)
}

impl Images {
    /// Finds the images: those of a dataset's cases, the one that `input` is, those that lie in a folder,
    /// or those that a list names.
    pub fn find(
        input: &Path,
        cases: Option<Cases>,
        description: &DatasetDescription,
    ) -> Result<Self> {
        let images = match cases {
            Some(cases) => of_dataset(input, cases, description)?,
            None if is_single(input, cases) => return Ok(Self::One(input.to_owned())),
            None if input.is_dir() => in_folder(input, description)?,
            None => in_list(input)?,
        };
        let mut names: BTreeMap<&str, &Path> = BTreeMap::new();
        for image in &images {
            if let Some(first) = names.insert(&image.name, &image.image) {
                bail!(
                    "cannot write the labels of {} and {} to one folder: their names are the same; \
                     rename one of them",
                    first.display(),
                    image.image.display()
                );
            }
        }
        Ok(Self::Many(images))
    }
}

fn is_list(input: &Path) -> bool {
    input.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("txt"))
}

fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name[..name.len() - file_ending(&name).len()].to_owned()
}

fn of_dataset(root: &Path, cases: Cases, description: &DatasetDescription) -> Result<Vec<Input>> {
    let dataset = Dataset::open(root, description.clone())?;
    let cases = match cases {
        Cases::Training => dataset.cases(Split::Train)?,
        Cases::Validation => dataset.cases(Split::Validation)?,
        Cases::Test => dataset.cases(Split::Test)?,
        Cases::All => dataset.all_cases().iter().collect(),
    };
    let input = |case: &sam_lst::datasets::Case| match &case.files {
        CaseFiles::Volumes { images, .. }
        | CaseFiles::Organs { images, .. }
        | CaseFiles::Structures { images, .. } => {
            let others = case.files.paths().into_iter().map(Path::to_owned).collect();
            Ok(Input { name: case.name.clone(), image: images[0].clone(), others })
        }
        _ => bail!(
            "cannot segment case {}: the preprocessed form has no position in the patient; segment \
             the original files",
            case.name
        ),
    };
    cases.into_iter().map(input).collect()
}

/// The images in a folder: files, and folders of DICOM series. Of several channels, the first.
fn in_folder(folder: &Path, description: &DatasetDescription) -> Result<Vec<Input>> {
    let patterns = match &description.layout {
        Layout::Files(layout) => layout.images.as_slice(),
        Layout::Prepared(_) => &[],
    };
    // With several channels, what follows the case's name in the file of the first.
    let last = patterns.first().filter(|_| patterns.len() > 1);
    let suffix = last.and_then(|pattern| pattern.rsplit('}').next()).unwrap_or_default();
    let unreadable = || format!("cannot read folder {}", folder.display());
    let mut images = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(unreadable)? {
        let path = entry.with_context(unreadable)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_image = !file_ending(&name).is_empty() && name.ends_with(suffix);
        if !name.starts_with('.') && if path.is_dir() { has_dicom_files(&path) } else { is_image } {
            let stem = name.strip_suffix(suffix).filter(|_| !suffix.is_empty());
            let name = stem.map_or_else(|| name_of(&path), str::to_owned);
            images.push(Input::new(name, path));
        }
    }
    remove_labels(&mut images, description);
    images.sort_by(|a, b| a.name.cmp(&b.name));
    if images.is_empty() {
        bail!(WrongUsage(format!(
            "folder {} has no image: no volume, picture or folder of a DICOM series{}; of a dataset's \
             folder, --cases says which cases to segment",
            folder.display(),
            if suffix.is_empty() { String::new() } else { format!(" that ends in {suffix}") }
        )));
    }
    Ok(images)
}

/// Removes the labels of other images, where both lie in one folder in the dataset, too.
fn remove_labels(images: &mut Vec<Input>, description: &DatasetDescription) {
    let Layout::Files(layout) = &description.layout else { return };
    let [image, label] = [&layout.images[0], &layout.labels]
        .map(|pattern| pattern.rsplit('/').next().unwrap_or(pattern));
    let name_of = |input: &Input| -> String {
        input.image.file_name().unwrap_or_default().to_string_lossy().into_owned()
    };
    let Some((before, after)) = image.split_once("{case}") else { return };
    let label_of = |input: &Input| {
        let name = name_of(input);
        let case = name.strip_prefix(before)?.strip_suffix(after)?.to_owned();
        let label = label.replace("{case}", &case);
        (label != name).then_some(label)
    };
    let labels: Vec<String> = images.iter().filter_map(label_of).collect();
    images.retain(|input| !labels.contains(&name_of(input)));
}

/// The images that a text file lists, one in a line, relative to the current folder or to the list's.
fn in_list(list: &Path) -> Result<Vec<Input>> {
    let text =
        std::fs::read_to_string(list).with_context(|| format!("cannot read {}", list.display()))?;
    let folder = list.parent().unwrap_or(Path::new(""));
    let lines =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let input = |line: &str| {
        let image = [PathBuf::from(line), folder.join(line)].into_iter().find(|path| path.exists());
        let image = image.with_context(|| {
            format!(
                "cannot read {line}, which {} lists: it is neither in the current folder nor in that of \
                 the list",
                list.display()
            )
        })?;
        Ok(Input::new(name_of(&image), image))
    };
    let images: Vec<Input> = lines.map(input).collect::<Result<_>>()?;
    if images.is_empty() {
        bail!(WrongUsage(format!("the list {} names no image", list.display())));
    }
    Ok(images)
}
