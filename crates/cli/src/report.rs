//! Scores and lists of files as results.

use anyhow::Result;
use sam_lst::Report;
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

/// A line that names a file or folder.
pub fn file_line(text: &mut String, name: &str, file: &Path) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "{name:<16} {}", file.display());
}
