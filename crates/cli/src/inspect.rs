//! `sam-lst inspect`.

use crate::arguments::read_description;
use crate::progress::Progress;
use crate::staging::Staging;
use crate::{Status, output, report};
use anyhow::{Context, Result};
use clap::Args;
use sam_lst::datasets::ndarray::Axis;
use sam_lst::datasets::{Case, InspectedCase, Inspection, Intensity, inspect, label_ranges};
use sam_lst::evaluation::{Picture, write_png};
use sam_lst::image::{RgbImage, imageops};
use sam_lst::{Dataset, DatasetDescription, Split};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Recognises nnU-Net's and Decathlon's dataset.json, BTCV's RawData, preprocessed slices with their
lists, TotalSegmentator's folders, DICOM series with SEG or RTSTRUCT, and images (NIfTI, NRRD,
MetaImage, PNG, JPEG, TIFF) with labels in a second folder, in a folder for each case or in the same
folder. Reads all cases, says what it found and what looks wrong, and writes a dataset description
to edit and a picture of some cases in which each label occurs.

Examples:
  sam-lst inspect Task02_Heart
  sam-lst inspect mri --output descriptions/mri.toml
  sam-lst train --data Task02_Heart --dataset Task02_Heart.toml --sam lite_medsam.pth";

/// Say what lies in a folder and describe it as a dataset
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Folder of the dataset
    data: PathBuf,
    /// The description to write, .toml, with the picture as .png [default: the folder's name]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Overwrite existing outputs
    #[arg(long)]
    force: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Cases in the picture.
const PICTURED_CASES: usize = 4;
/// Lines of notes that are shown; all of them are in the description.
const SHOWN_NOTES: usize = 12;

pub fn run(arguments: &Arguments) -> Result<Status> {
    output::check_input(&arguments.data)?;
    let toml = arguments.toml();
    let png = toml.with_extension("png");
    output::check_ending(&toml, &[".toml"])?;
    for file in [&toml, &png] {
        output::check_file(file, &[&arguments.data], arguments.force)?;
    }
    let staging = Staging::for_file(&toml)?;
    let mut progress = Progress::new();
    let inspection = inspect(&arguments.data, |done, total| {
        progress.count("reading", done, total, "cases");
    })?;
    drop(progress);
    let file = staging.file(&toml);
    std::fs::write(&file, description_text(&inspection, arguments))
        .with_context(|| format!("cannot write {}", toml.display()))?;
    let dataset = Dataset::open(&arguments.data, inspection.description.clone())?;
    let picture = montage(&dataset, &inspection.cases)?;
    if let Some(picture) = &picture {
        write_png(picture, staging.file(&png))
            .with_context(|| format!("cannot write {}", png.display()))?;
    }
    staging.publish()?;
    let png = picture.map(|_| png);
    if arguments.json {
        output::print_json(&json!({
            "layout": inspection.layout,
            "cases": inspection.cases.iter().map(case_json).collect::<Vec<_>>(),
            "organs": inspection.description.organs,
            "notes": inspection.notes,
            "description": toml.display().to_string(),
            "picture": png.as_ref().map(|png| png.display().to_string()),
        }))?;
        return Ok(Status::Done);
    }
    let mut text = describe(&inspection, &dataset);
    let _ = writeln!(text, "description  {}", toml.display());
    if let Some(png) = png {
        let _ = writeln!(text, "picture      {}", png.display());
    }
    let _ = writeln!(
        text,
        "\nTo train on it, after a look at the description:\n  sam-lst train --data {} --dataset {} \
         --foundation demo --run runs/try",
        arguments.data.display(),
        toml.display()
    );
    output::print(&text)?;
    Ok(Status::Done)
}

impl Arguments {
    fn toml(&self) -> PathBuf {
        let named = || {
            let data = output::resolve(&self.data);
            let name = data.file_name().unwrap_or_default().to_string_lossy().into_owned();
            PathBuf::from(format!("{name}.toml"))
        };
        self.output.clone().unwrap_or_else(named)
    }
}

/// The description as TOML, with what was found as comments.
fn description_text(inspection: &Inspection, arguments: &Arguments) -> String {
    let mut text = format!(
        "# Written by `sam-lst inspect {}`: {}.\n# docs/guide.md explains the settings.\n",
        arguments.data.display(),
        inspection.layout
    );
    for note in &inspection.notes {
        let _ = writeln!(text, "# - {}", note.replace('\n', " "));
    }
    text.push('\n');
    text + &inspection.description.to_toml()
}

/// What was found, as a table of lines.
fn describe(inspection: &Inspection, dataset: &Dataset) -> String {
    let Inspection { layout, description, cases, notes } = inspection;
    let mut text = String::new();
    let mut line = |name: &str, value: String| _ = writeln!(text, "{name:<12} {value}");
    line("layout", layout.clone());
    let names: Vec<&str> = dataset.all_cases().iter().map(|case| case.name.as_str()).collect();
    line("cases", format!("{}: {}", names.len(), report::shortened(&names, 8)));
    for split in [Split::Validation, Split::Test] {
        let of_split = dataset.all_cases().iter().filter(|case| case.split == split);
        let names: Vec<&str> = of_split.map(|case| case.name.as_str()).collect();
        if !names.is_empty() {
            line(&split.to_string(), format!("{}: {}", names.len(), report::shortened(&names, 8)));
        }
    }
    if !cases.is_empty() {
        line(
            "voxels",
            between(cases, |case| case.shape.map(|n| n as f64), 0) + ", in the files' order",
        );
        let colored = cases.iter().filter(|case| case.channels > 1).count();
        if colored > 0 {
            line("channels", format!("3 in {colored} of {} cases", cases.len()));
        }
        if cases.iter().all(|case| case.spacing_mm.is_some()) {
            let spacing = |case: &InspectedCase| case.spacing_mm.unwrap_or_default();
            line("spacing", between(cases, spacing, 2) + " mm");
        } else {
            line("spacing", "none in pictures; distances are in pixels".to_owned());
        }
        let mut orientations: BTreeMap<&str, usize> = BTreeMap::new();
        for orientation in cases.iter().filter_map(|case| case.orientation.as_deref()) {
            *orientations.entry(orientation).or_default() += 1;
        }
        if !orientations.is_empty() {
            let stored: Vec<String> =
                orientations.iter().map(|(code, count)| format!("{code} in {count}")).collect();
            let read = description.orientation;
            line("orientation", format!("stored as {}; read as {read}", stored.join(", ")));
        }
        let min = cases.iter().map(|case| case.range[0]).fold(f32::MAX, f32::min);
        let max = cases.iter().map(|case| case.range[1]).fold(f32::MIN, f32::max);
        let becomes = match description.intensity {
            Intensity::Window([low, high]) => format!("the window from {low} to {high}"),
            Intensity::Percentiles([low, high]) => format!("percentiles {low} to {high}"),
            Intensity::Stored => "no normalisation".to_owned(),
        };
        line("intensity", format!("from {min} to {max}; {becomes}"));
    }
    let voxels: usize = cases.iter().map(|case| case.shape.iter().product::<usize>()).sum();
    for organ in &description.organs {
        let count = |case: &InspectedCase| -> usize {
            organ.labels.iter().filter_map(|label| case.labels.get(label)).sum()
        };
        let present = cases.iter().filter(|case| count(case) > 0).count();
        let labels = label_ranges(organ.labels.iter().copied());
        let share = 100.0 * cases.iter().map(count).sum::<usize>() as f64 / voxels.max(1) as f64;
        let found = if cases.is_empty() {
            String::new()
        } else {
            format!(" in {present} of {} cases, {share:.3} % of the voxels", cases.len())
        };
        let named = if organ.name == format!("label {labels}") {
            format!("{labels} without a name")
        } else {
            format!("{labels} {}", organ.name)
        };
        line("label", format!("{named}{found}"));
    }
    for note in notes.iter().take(SHOWN_NOTES) {
        line("note", note.clone());
    }
    if notes.len() > SHOWN_NOTES {
        let more = notes.len() - SHOWN_NOTES;
        line("note", format!("and {more} more, at the top of the description"));
    }
    text
}

/// Three numbers of all cases, as a range where they differ.
fn between(
    cases: &[InspectedCase],
    of: impl Fn(&InspectedCase) -> [f64; 3],
    digits: usize,
) -> String {
    let range = |axis: usize| {
        let values = || cases.iter().map(|case| of(case)[axis]);
        let low = values().fold(f64::MAX, f64::min);
        let high = values().fold(f64::MIN, f64::max);
        let [low, high] = [low, high].map(|value| format!("{value:.digits$}"));
        if low == high { low } else { format!("{low} to {high}") }
    };
    [0, 1, 2].map(range).join(" x ")
}

fn case_json(case: &InspectedCase) -> serde_json::Value {
    json!({
        "case": case.name,
        "shape": case.shape,
        "channels": case.channels,
        "spacing_mm": case.spacing_mm,
        "orientation": case.orientation,
        "range": case.range,
        "label_voxels": case.labels,
    })
}

/// Some cases, such that each label occurs in them if so few can have it.
fn pictured<'a>(dataset: &'a Dataset, cases: &[InspectedCase]) -> Vec<&'a Case> {
    let mut seen: BTreeSet<u16> = BTreeSet::from([0]);
    let mut chosen: Vec<&str> = Vec::new();
    for _ in 0..PICTURED_CASES {
        let new = |case: &&InspectedCase| -> usize {
            case.labels.iter().filter(|(label, n)| **n > 0 && !seen.contains(*label)).count()
        };
        let rest = cases.iter().filter(|case| !chosen.contains(&&*case.name));
        // Of equal ones, the first.
        let Some(best) = rest.rev().max_by_key(new) else { break };
        seen.extend(best.labels.keys());
        chosen.push(&best.name);
    }
    let is_chosen = |case: &&Case| cases.is_empty() || chosen.contains(&&*case.name);
    dataset.all_cases().iter().filter(is_chosen).take(PICTURED_CASES).collect()
}

/// For some cases the slice with the most organs, alone and with outlines; `None` where there is no
/// case that can be read.
fn montage(dataset: &Dataset, cases: &[InspectedCase]) -> Result<Option<RgbImage>> {
    let mut pictures = Vec::new();
    for case in pictured(dataset, cases) {
        // What is wrong with a case is in the notes.
        if let Ok(picture) = picture(dataset, case) {
            pictures.push(picture);
        }
    }
    if pictures.is_empty() {
        return Ok(None);
    }
    let width = pictures.iter().map(RgbImage::width).max().unwrap_or(0);
    let height = pictures.iter().map(RgbImage::height).sum();
    let mut montage = RgbImage::new(width, height);
    let mut top = 0;
    for picture in &pictures {
        imageops::replace(&mut montage, picture, 0, top);
        top += i64::from(picture.height());
    }
    Ok(Some(montage))
}

fn picture(dataset: &Dataset, case: &Case) -> Result<RgbImage> {
    let volumes = dataset.read(case)?;
    let label = volumes.label.voxels();
    let organs = |slice: usize| {
        let mut voxels = [0_usize; 256];
        let slice = label.index_axis(Axis(0), slice);
        slice.iter().for_each(|&class| voxels[usize::from(class)] += 1);
        (voxels[1..].iter().filter(|&&count| count > 0).count(), voxels[1..].iter().sum::<usize>())
    };
    let slice = (0..label.shape()[0]).max_by_key(|&slice| organs(slice)).unwrap_or(0);
    let pixels = volumes.image.slice(slice);
    let labels = label.index_axis(Axis(0), slice);
    let background = labels.mapv(|_| 0);
    let title = match label.shape()[0] {
        1 => format!("case {}", case.name),
        _ => format!("case {}, slice {slice}", case.name),
    };
    Ok(Picture::new(title, dataset.description(), volumes.image.geometry())
        .panel("image", pixels, background.view())
        .panel("labels", pixels, labels)
        .render())
}

/// The description in a file, or of the dataset that is recognised in a folder.
pub fn describe_data(data: &Path, file: Option<&Path>) -> Result<DatasetDescription> {
    if let Some(file) = file {
        return read_description(file);
    }
    let layout = sam_lst::datasets::recognize_layout(data)?;
    if let Some(description) = layout.built_in {
        return Ok(description);
    }
    let mut progress = Progress::new();
    let inspection = inspect(data, |done, total| progress.count("reading", done, total, "cases"))?;
    drop(progress);
    crate::progress::note(&format!(
        "data        {}; `sam-lst inspect {}` shows and writes the description",
        inspection.layout,
        data.display()
    ));
    for note in inspection.notes.iter().take(SHOWN_NOTES) {
        crate::progress::note(&format!("            {note}"));
    }
    Ok(inspection.description)
}
