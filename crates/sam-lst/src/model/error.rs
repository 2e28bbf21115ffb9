use crate::weights::WeightsError;
use std::path::PathBuf;

/// A setting whose value is out of range or does not fit another setting.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` is {found}; expected {expected}")]
pub struct InvalidSetting {
    /// Name of the setting, as in a TOML file.
    pub field: &'static str,
    /// Its value.
    pub found: String,
    /// The valid values.
    pub expected: &'static str,
}

/// Returns an error that names the setting if `holds` is false.
pub(crate) fn require(
    holds: bool,
    field: &'static str,
    found: impl ToString,
    expected: &'static str,
) -> Result<(), InvalidSetting> {
    if holds { Ok(()) } else { Err(InvalidSetting { field, found: found.to_string(), expected }) }
}

/// An invalid model configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A value is out of range or does not fit another setting.
    #[error(transparent)]
    Invalid(#[from] InvalidSetting),
    /// The configuration names an encoder of the user's own, which this library cannot build.
    #[error(
        "cannot build the encoder \"{name}\"; build it in your program and pass it to \
         `SamLstConfig::init_over`"
    )]
    CustomEncoder {
        /// Name of the encoder.
        name: String,
    },
    /// The foundation does not fit the configuration.
    #[error(
        "the foundation has {found}, but the configuration {expected}; create the foundation with the \
         configuration's values"
    )]
    WrongFoundation {
        /// Values of the configuration, such as stride, channels and pixel scale.
        expected: String,
        /// Those of the foundation.
        found: String,
    },
    /// There are no published weights for the network's encoder.
    #[error("there are no ImageNet weights for the encoder of the method `{method}`")]
    NoPublishedEncoder {
        /// The method.
        method: &'static str,
    },
    /// The configuration names a custom side network, which this library cannot build.
    #[error(
        "cannot build the custom side network \"{name}\"; build it in your program and pass it to \
         `init_with_side` or `from_official_with_side`"
    )]
    CustomSide {
        /// Name of the side network.
        name: String,
    },
}

/// Why a model could not be built, loaded or saved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A weights file is wrong, or could not be read or written.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The checkpoint is of another method than the model.
    #[error(
        "cannot load {}: it contains a network of the method `{found}`, not of `{expected}`",
        path.display()
    )]
    WrongMethod {
        /// The checkpoint.
        path: PathBuf,
        /// The model's method.
        expected: &'static str,
        /// The checkpoint's method.
        found: String,
    },
    /// The checkpoint is of a method that this library does not know.
    #[error(
        "cannot load {}: it contains a network of the method `{method}`, which this program does not \
         know; load it in the program that trained it",
        path.display()
    )]
    UnknownMethod {
        /// The checkpoint.
        path: PathBuf,
        /// Its method.
        method: String,
    },
    /// The method needs the foundation that the network was trained over.
    #[error(
        "cannot load {}: a network of the method `{method}` needs the checkpoint of the foundation \
         that it was trained over",
        path.display()
    )]
    MissingFoundation {
        /// The checkpoint of the network.
        path: PathBuf,
        /// Its method.
        method: String,
    },
    /// The method has no foundation.
    #[error(
        "cannot use {}: the network in {} is of the method `{method}`, which has no foundation",
        foundation.display(),
        path.display()
    )]
    UnusedFoundation {
        /// The checkpoint of the network.
        path: PathBuf,
        /// Its method.
        method: String,
        /// The checkpoint of the foundation.
        foundation: PathBuf,
    },
    /// SAMed's files have no place for the network.
    #[error(
        "cannot write {}: SAMed's files hold LoRA of the queries and values of all blocks of a ViT \
         (the method `lora` with `targets = \"QueryValue\"` and `first_block = 0`) over pixels in [0, 1] \
         (`pixel_scale = \"Unit\"`), which this network is not",
        path.display()
    )]
    NotSamed {
        /// The file that was to be written.
        path: PathBuf,
    },
    /// The network was trained with other frozen weights than the model's.
    #[error(
        "cannot load {}: it was trained with another {part} (SHA-256 {expected}) than the \
         model's ({found}); load the SAM checkpoint that it was trained with",
        path.display()
    )]
    WrongFoundation {
        /// The checkpoint.
        path: PathBuf,
        /// The frozen part that differs.
        part: &'static str,
        /// The hash in the checkpoint.
        expected: String,
        /// The model's hash.
        found: String,
    },
    /// The checkpoint has another configuration than the model.
    #[error(
        "cannot load {}: its `{field}` is {found}, but the model's is {expected}; create the model \
         with the checkpoint's configuration",
        path.display()
    )]
    WrongConfig {
        /// The checkpoint.
        path: PathBuf,
        /// The first setting that differs.
        field: String,
        /// The model's value.
        expected: String,
        /// The checkpoint's value.
        found: String,
    },
}
