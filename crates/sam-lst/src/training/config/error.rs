use crate::model::{ConfigError, InvalidSetting};
use std::path::PathBuf;

/// An invalid training configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainingConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The text is not TOML.
    #[error("cannot read {}: {source}", file.display())]
    Toml {
        /// The file.
        file: PathBuf,
        /// What is wrong, and where.
        source: Box<toml::de::Error>,
    },
    /// An unknown key.
    #[error(
        "cannot read {}: unknown setting `{key}`; expected one of {}",
        file.display(),
        known.join(", ")
    )]
    UnknownKey {
        /// The file.
        file: PathBuf,
        /// The key with the tables that contain it.
        key: String,
        /// The keys of that table.
        known: Vec<String>,
    },
    /// A value of the wrong type.
    #[error("cannot read {}: `{key}`: {problem}", file.display())]
    WrongType {
        /// The file.
        file: PathBuf,
        /// The key with the tables that contain it.
        key: String,
        /// What was found, and what was expected.
        problem: String,
    },
    /// A value out of range.
    #[error(transparent)]
    Invalid(#[from] InvalidSetting),
    /// An invalid model configuration.
    #[error(transparent)]
    Model(#[from] ConfigError),
}
