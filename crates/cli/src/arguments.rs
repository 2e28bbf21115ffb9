//! Arguments that several commands share, and parsers of their values.

use crate::WrongUsage;
use anyhow::{Result, anyhow, bail};
use burn::tensor::Device;
use clap::ValueEnum;
use sam_lst::devices::DeviceError;
use sam_lst::{DatasetDescription, FoundationPrecision};
use std::path::Path;

/// Precision of the foundation.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Precision {
    F32,
    F16,
    Bf16,
}

impl From<Precision> for FoundationPrecision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::F16 => Self::F16,
            Precision::Bf16 => Self::BF16,
        }
    }
}

/// Opens a device by name.
pub fn open_device(name: &str) -> Result<Device> {
    sam_lst::devices::open(name).map_err(|error| {
        let text = format!("{error}; `sam-lst devices` lists the devices of this machine");
        match error {
            DeviceError::Unknown { .. } => WrongUsage(text).into(),
            _ => anyhow!(text),
        }
    })
}

/// Opens devices by name, none of them twice.
pub fn open_devices(names: &[String]) -> Result<Vec<Device>> {
    let mut devices = Vec::with_capacity(names.len());
    for name in names {
        let device = open_device(name)?;
        if devices.contains(&device) {
            let names = names.join(",");
            bail!(WrongUsage(format!("cannot use devices {names}: `{name}` is listed twice")));
        }
        devices.push(device);
    }
    Ok(devices)
}

/// The description in a file, or that of Synapse by its name.
pub fn read_description(file: &Path) -> Result<DatasetDescription> {
    if file == Path::new("synapse") && !file.exists() {
        return Ok(DatasetDescription::synapse());
    }
    Ok(DatasetDescription::from_file(file)?)
}

/// Parses a share: a number between 0 and 1, both excluded.
pub fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if share > 0.0 && share < 1.0 => Ok(share),
        _ => Err("expected a number between 0 and 1, such as 0.1".to_owned()),
    }
}

/// Parses a finite number of at least 0.
pub fn not_negative(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if (0.0..f64::INFINITY).contains(&number) => Ok(number),
        _ => Err("expected a number of at least 0".to_owned()),
    }
}

/// Parses a count of at least 1.
pub fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..) => Ok(count),
        _ => Err("expected a whole number of at least 1".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_checked() {
        assert_eq!(share("0.1"), Ok(0.1));
        for invalid in ["0", "1", "-0.5", "NaN", "a tenth"] {
            assert!(share(invalid).is_err(), "{invalid}");
        }
        assert_eq!(not_negative("0"), Ok(0.0));
        for invalid in ["-1", "inf", "NaN", ""] {
            assert!(not_negative(invalid).is_err(), "{invalid}");
        }
        assert_eq!(at_least_one("1"), Ok(1));
        for invalid in ["0", "-1", "1.5"] {
            assert!(at_least_one(invalid).is_err(), "{invalid}");
        }
    }

    #[test]
    fn devices_are_opened_once() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        assert_eq!(open_devices(&names(&["cpu"])).expect("the CPU").len(), 1);
        let message = |list: &[&str]| open_devices(&names(list)).expect_err("invalid").to_string();
        assert!(message(&["cpu", "cpu"]).contains("listed twice"));
        assert!(message(&["gpu"]).contains("sam-lst devices"));
    }
}
