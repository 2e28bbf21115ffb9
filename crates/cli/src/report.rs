//! Scores and lists of files as results.

use anyhow::Result;
use sam_lst::{Report, Volume};
use serde::Serialize;
use serde_json::Value;
use std::fmt::Write;
use std::path::Path;

/// The tables of reports, each with an empty line after it.
pub fn tables(reports: &[Report]) -> String {
    reports.iter().map(|report| format!("{report}\n\n")).collect()
}

/// Reports as JSON values.
pub fn json(reports: &[Report]) -> Result<Vec<Value>> {
    reports.iter().map(|report| Ok(serde_json::from_str(&report.to_json())?)).collect()
}

/// Volume of a label.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct LabelVolume {
    pub voxels: usize,
    pub volume_ml: f64,
}

/// The volumes of all labels.
pub fn label_volumes(labels: &Volume<u8>) -> [LabelVolume; 256] {
    let mut voxels = [0_usize; 256];
    labels.voxels().iter().for_each(|&label| voxels[usize::from(label)] += 1);
    // Not a number for a picture without spacing.
    let voxel_ml = labels.spacing_mm().map_or(f64::NAN, |mm| mm.iter().product::<f64>() / 1000.0);
    voxels.map(|voxels| LabelVolume { voxels, volume_ml: voxels as f64 * voxel_ml })
}

/// A line with the volume of an organ or object.
pub fn volume_line(name: &str, volume: &LabelVolume) -> String {
    if volume.volume_ml.is_nan() {
        return format!("{name:<16} {:8} pixels\n", volume.voxels);
    }
    format!("{name:<16} {:8.1} ml\n", volume.volume_ml)
}

/// A line that names a file or folder.
pub fn file_line(text: &mut String, name: &str, file: &Path) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "{name:<16} {}", file.display());
}

/// A list of names, of which the middle is left out if there are more than `shown`.
pub fn shortened(names: &[&str], shown: usize) -> String {
    match names {
        [_, .., last] if names.len() > shown => {
            let left_out = names.len() - shown;
            format!("{}, ... ({left_out} more), {last}", names[..shown - 1].join(", "))
        }
        _ => names.join(", "),
    }
}
