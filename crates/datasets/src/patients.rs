//! The patient of each case.

use crate::{DatasetError, DescriptionError, ReadError, SplitDescription};
use regex_lite::Regex;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The patients of a dataset's cases.
#[derive(Debug)]
pub(crate) struct Patients {
    listed: BTreeMap<String, String>,
    table: Option<PathBuf>,
    pattern: Option<Regex>,
}

impl Patients {
    /// Reads the patients that the description of a split lists, those of its table in the dataset's
    /// folder, and its pattern.
    pub fn new(root: &Path, split: &SplitDescription) -> Result<Self, DatasetError> {
        let mut listed = split.patients.clone();
        let table = split.patient_table.as_ref().map(|table| root.join(table));
        if let Some(table) = &table {
            let mut of_table: BTreeMap<String, String> = BTreeMap::new();
            for (case, patient) in read_table(table)? {
                if let Some(other) = of_table.insert(case.clone(), patient.clone())
                    && other != patient
                {
                    let found = format!("it gives case {case} two patients, {other} and {patient}");
                    return Err(DatasetError::PatientTable { file: table.clone(), found });
                }
            }
            for (case, patient) in of_table {
                listed.entry(case).or_insert(patient);
            }
        }
        let pattern = split.patient_pattern.as_deref().map(patient_regex).transpose();
        let pattern = pattern.map_err(|source| DatasetError::Description {
            description: "the dataset description".to_owned(),
            source,
        })?;
        Ok(Self { listed, table, pattern })
    }

    /// The patient of a case: the listed one, or that of the pattern in the name of its file; without
    /// either, the case's name. Cases are listed by their name or by that of their file.
    pub fn of(&self, case: &str, of_file: &str) -> Result<String, DatasetError> {
        if let Some(patient) = self.listed.get(case).or_else(|| self.listed.get(of_file)) {
            return Ok(patient.clone());
        }
        let missing = |source_of_patients: String| DatasetError::NoPatient {
            case: case.to_owned(),
            source_of_patients,
        };
        match (&self.pattern, &self.table) {
            (Some(pattern), _) => {
                let found = pattern.captures(of_file).and_then(|found| found.get(1));
                found.map(|patient| patient.as_str().to_owned()).ok_or_else(|| {
                    missing(format!(
                        "`split.patient_pattern = \"{pattern}\"` does not match its name"
                    ))
                })
            }
            (None, Some(table)) => Err(missing(format!("{} has no line for it", table.display()))),
            (None, None) => Ok(case.to_owned()),
        }
    }
}

/// The expression whose first group is the patient in a case's name.
pub(crate) fn patient_regex(pattern: &str) -> Result<Regex, DescriptionError> {
    let invalid =
        |reason: String| DescriptionError::PatientPattern { pattern: pattern.to_owned(), reason };
    let regex = Regex::new(pattern).map_err(|error| invalid(error.to_string()))?;
    if regex.captures_len() < 2 {
        return Err(invalid("it has no group in parentheses".to_owned()));
    }
    Ok(regex)
}

/// Reads a CSV file with a case and its patient in the first two columns. A first line `case,patient`
/// is a heading.
fn read_table(table: &Path) -> Result<Vec<(String, String)>, DatasetError> {
    let text = std::fs::read_to_string(table).map_err(ReadError::io(table))?;
    let invalid = |found: String| DatasetError::PatientTable { file: table.to_owned(), found };
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .trim(csv::Trim::All)
        .from_reader(text.trim_start_matches('\u{feff}').as_bytes());
    let mut patients = Vec::new();
    for (i, record) in reader.records().enumerate() {
        let record = record.map_err(|error| invalid(error.to_string()))?;
        let (Some(case), Some(patient)) = (record.get(0), record.get(1)) else {
            return Err(invalid(format!("line {} has no two columns", i + 1)));
        };
        if case.is_empty() || patient.is_empty() {
            return Err(invalid(format!("line {} has an empty column", i + 1)));
        }
        let is_heading =
            i == 0 && case.eq_ignore_ascii_case("case") && patient.eq_ignore_ascii_case("patient");
        if !is_heading {
            patients.push((case.to_owned(), patient.to_owned()));
        }
    }
    Ok(patients)
}
