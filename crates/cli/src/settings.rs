//! Arguments that `train` and `embed` share: the data, the foundation and the settings.

use crate::arguments::{Precision, at_least_one, not_negative, share};
use crate::foundation::{self, Variant};
use crate::inspect::describe_data;
use crate::method::MethodName;
use crate::progress::Spinner;
use crate::{WrongUsage, output};
use anyhow::{Result, bail};
use burn::tensor::Device;
use clap::{Args, ValueEnum};
use sam_lst::datasets::Validation;
use sam_lst::{CachedViews, Dataset, NetworkConfig, SamLst, Split, TrainingConfig};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// What is trained on, over which foundation.
#[derive(Args, Clone)]
pub struct DataArguments {
    /// Folder of the dataset, as `sam-lst inspect` recognises it
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Dataset description, TOML [default: that of `sam-lst inspect`]
    #[arg(long, value_name = "FILE")]
    dataset: Option<PathBuf>,
    /// Share of the training patients for validation [default: none]
    #[arg(long, value_name = "SHARE", value_parser = share)]
    validation: Option<f64>,
    /// SAM, MedSAM, LiteMedSAM or MobileSAM: .pth or .safetensors
    #[arg(long, value_name = "FILE")]
    pub sam: Option<PathBuf>,
    /// `demo`: a random foundation, to try data without a checkpoint
    #[arg(long, value_name = "NAME", value_enum, hide_possible_values = true)]
    #[arg(conflicts_with = "sam")]
    pub foundation: Option<WithoutCheckpoint>,
    /// What --sam contains; only med-sam must be named [default: any]
    #[arg(long, value_name = "NAME", value_enum, hide_possible_values = true)]
    pub variant: Option<Variant>,
}

/// A foundation that needs no checkpoint.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum WithoutCheckpoint {
    Demo,
}

/// Settings that do not depend on the command.
#[derive(Args, Clone)]
pub struct SettingsArguments {
    /// Settings other than the preset's, as in config.toml; may be repeated
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// Passes over all slices [default: the preset's]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    epochs: Option<usize>,
    /// Seed of initial weights, slices and views [default: 0]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Slices in a batch [default: the preset's]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    batch_size: Option<usize>,
    /// Cached views: all, discrete, identity, 0 to 44 [default: preset's]
    #[arg(long, value_name = "VIEWS")]
    pub cache_views: Option<CachedViews>,
    /// Size limit of the embedding cache in 10^9 bytes [default: none]
    #[arg(long, value_name = "GB", value_parser = not_negative)]
    pub cache_limit_gb: Option<f64>,
    /// Devices: cpu, or cuda:0,cuda:1 ... to share the work
    #[arg(long, value_name = "LIST", default_value = "cpu", value_delimiter = ',')]
    pub device: Vec<String>,
    /// Precision of the foundation: f32, f16 or bf16 [default: f32]
    #[arg(long, value_name = "TYPE", value_enum, hide_possible_values = true)]
    pub precision: Option<Precision>,
    /// Folder of slices and embeddings for all runs
    #[arg(long, value_name = "DIR", default_value = "runs/cache")]
    pub cache: PathBuf,
}

impl DataArguments {
    /// Checks that there is a foundation.
    pub fn check_foundation(&self) -> Result<()> {
        if self.variant.is_some() && self.sam.is_none() {
            bail!(WrongUsage("--variant says what --sam contains; give --sam FILE too".to_owned()));
        }
        if self.sam.is_none() && self.foundation.is_none() {
            bail!(WrongUsage(
                "no foundation: give --sam FILE (`sam-lst weights` says how to get one), or \
                 --foundation demo to try the data without a checkpoint"
                    .to_owned()
            ));
        }
        Ok(())
    }

    /// Checks that all inputs exist.
    pub fn check_inputs(&self) -> Result<()> {
        output::check_input(&self.data)?;
        self.sam.as_deref().map_or(Ok(()), output::check_checkpoint)
    }

    /// The data and the checkpoint, which no output may replace.
    pub fn inputs(&self) -> Vec<&Path> {
        let sam = self.sam.as_deref();
        std::iter::once(self.data.as_path()).chain(sam).collect()
    }

    /// Opens the dataset.
    pub fn open(&self) -> Result<Dataset> {
        let mut description = describe_data(&self.data, self.dataset.as_deref())?;
        if let Some(fraction) = self.validation {
            description.split.validation = Validation::Fraction { fraction, seed: 0 };
        }
        Ok(Dataset::open(&self.data, description)?)
    }

    /// A preset over the checkpoint's encoder, or the demo's settings.
    pub fn over_foundation(
        &self,
        preset: TrainingConfig,
        classes: usize,
    ) -> Result<TrainingConfig> {
        Ok(match &self.sam {
            Some(sam) => {
                let model = foundation::model(sam, self.variant, classes)?;
                TrainingConfig { model, ..preset }
            }
            None => TrainingConfig::demo(classes),
        })
    }

    /// The model of a configuration on a device, over the checkpoint or a random foundation.
    pub fn load(
        &self,
        config: &TrainingConfig,
        pretrained: Option<&Path>,
        device: &Device,
    ) -> Result<SamLst> {
        let device = device.clone().autodiff();
        let Some(sam) = &self.sam else { return Ok(config.model.init(&device)?) };
        let _spinner = Spinner::loading(sam);
        Ok(SamLst::from_official(&config.model, sam, pretrained, &device)?)
    }
}

impl SettingsArguments {
    /// A preset with the settings of the file and of the arguments.
    pub fn apply<C: NetworkConfig>(&self, preset: TrainingConfig<C>) -> Result<TrainingConfig<C>> {
        let mut config = preset;
        for file in &self.config {
            config = config.with_overrides_from_file(file)?;
        }
        if let Some(seed) = self.seed {
            config.seed = seed;
            config.model.set_seed(seed);
        }
        if let Some(epochs) = self.epochs {
            config.epochs = epochs as u64;
        }
        if let Some(batch_size) = self.batch_size {
            config.batch_size = batch_size;
        }
        if let Some(views) = self.cache_views {
            config.cache.views = views;
        }
        if self.cache_limit_gb.is_some() {
            config.cache.limit_gb = self.cache_limit_gb;
        }
        if let Some(precision) = self.precision {
            config.foundation_precision = precision.into();
        }
        Ok(config)
    }
}

impl DataArguments {
    /// Passes the arguments on to another command, without those that the description of the
    /// dataset contains.
    pub fn pass_on(&self, uses_sam: bool, option: &mut impl FnMut(&str, &dyn AsRef<OsStr>)) {
        option("--data", &self.data);
        if uses_sam {
            self.sam.iter().for_each(|sam| option("--sam", sam));
            self.foundation.iter().for_each(|name| option("--foundation", &value_name(name)));
            self.variant.iter().for_each(|variant| option("--variant", &value_name(variant)));
        }
    }
}

impl SettingsArguments {
    /// Passes the arguments that a method uses on to another command, but for the seed, with
    /// further files of settings.
    pub fn pass_on(
        &self,
        method: MethodName,
        further: &[&Path],
        option: &mut impl FnMut(&str, &dyn AsRef<OsStr>),
    ) {
        let files = self.config.iter().map(PathBuf::as_path).chain(further.iter().copied());
        files.for_each(|file| option("--config", &file));
        self.epochs.iter().for_each(|epochs| option("--epochs", &epochs.to_string()));
        self.batch_size.iter().for_each(|size| option("--batch-size", &size.to_string()));
        if method.has_cached_blocks() {
            self.cache_views.iter().for_each(|views| option("--cache-views", &views.to_string()));
            self.cache_limit_gb.iter().for_each(|gb| option("--cache-limit-gb", &gb.to_string()));
        }
        if method.has_foundation() {
            self.precision.iter().for_each(|name| option("--precision", &value_name(name)));
        }
        option("--device", &self.device.join(","));
        option("--cache", &self.cache);
    }
}

/// The name of an argument's value.
pub fn value_name(value: &impl ValueEnum) -> String {
    value.to_possible_value().expect("no value is skipped").get_name().to_owned()
}

/// A preset with the settings of a file, if there is one.
pub fn with_file<C: NetworkConfig>(
    preset: TrainingConfig<C>,
    file: Option<&Path>,
) -> Result<TrainingConfig<C>> {
    Ok(match file {
        Some(file) => preset.with_overrides_from_file(file)?,
        None => preset,
    })
}

/// Checks that settings are valid and fit the dataset, and that there is something to train on.
pub fn check<C: NetworkConfig>(config: &TrainingConfig<C>, dataset: &Dataset) -> Result<()> {
    config.validate()?;
    dataset.cases(Split::Train)?;
    let description = dataset.description();
    let (masks, classes) = (config.model.num_classes(), description.classes());
    if masks != classes {
        bail!(
            "cannot train: the settings are for {masks} classes, but the dataset `{}` has {classes} \
             including the background",
            description.name
        );
    }
    Ok(())
}
