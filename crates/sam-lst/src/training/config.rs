use crate::{
    CachePrecision, CachedViews, ConfigError, DecoderTuning, FoundationPrecision,
    OptimizationConfig, OptimizationError, OutputResampling, SamLstConfig, SliceGeometry,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Everything that decides a training run beside the data: the model, the protocol, and what is kept.
///
/// A preset is the place to start; a TOML file need only say what it changes:
///
/// ```
/// use sam_lst::TrainingConfig;
///
/// let text = r#"
///     epochs = 50
///     [optimization.schedule]
///     base = 5e-4
/// "#;
/// let config = TrainingConfig::released(9).changed_by(text, "short.toml")?;
/// assert_eq!((config.epochs, config.batch_size), (50, 24));
/// # Ok::<(), sam_lst::TrainingConfigError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingConfig {
    /// Times that every slice is seen.
    pub epochs: u64,
    /// Slices in a batch.
    pub batch_size: usize,
    /// Batches whose mean gradient makes a step. Batch norm and Dice see one batch at a time, so 2 batches of 12 are not
    /// quite one of 24.
    pub accumulated_batches: usize,
    /// Decides the order of slices and their views. Initial weights have their own, `model.seed`.
    pub seed: u64,
    /// Whether slices are seen in random views.
    pub augmentation: bool,
    /// Weight of the Dice loss; cross entropy has the rest.
    pub dice_weight: f64,
    /// Epochs between validations, where a dataset holds cases out for it. The last epoch is always validated.
    pub validation_epochs: u64,
    /// Validations in a row without a better one before training stops; never stops early without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience: Option<u64>,
    /// Steps between checkpoints, from which a run that was cut off goes on. There is one after each epoch, too.
    pub checkpoint_steps: u64,
    /// Threads that make batches ahead.
    pub workers: usize,
    /// How a validated case's logits become classes.
    pub output: OutputResampling,
    /// Sizes of slices on their way into the network.
    pub geometry: SliceGeometry,
    /// What the foundation computes in: `"f32"`, `"f16"` or `"bf16"`.
    #[serde(default)]
    pub foundation_precision: FoundationPrecision,
    /// Optimizer and learning rates.
    pub optimization: OptimizationConfig,
    /// What is kept of the foundation's work.
    pub cache: CacheConfig,
    /// The model.
    pub model: SamLstConfig,
}

/// Which embeddings are kept, and how.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheConfig {
    /// Views whose embeddings are kept: `"all"`, `"discrete"`, `"identity"`, or how many of the 44. With `"0"` nothing is.
    pub views: CachedViews,
    /// Precision of what is kept.
    pub precision: CachePrecision,
    /// Bytes that the cache may take, in units of 10^9; no limit without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_gb: Option<f64>,
}

/// A configuration of training that cannot be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainingConfigError {
    /// The file cannot be read.
    #[error("{}: cannot be read: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The text is not TOML.
    #[error("{}: {source}", file.display())]
    Toml {
        /// The file.
        file: PathBuf,
        /// What is wrong, and where.
        source: Box<toml::de::Error>,
    },
    /// A key that no setting has.
    #[error("{}: there is no setting `{key}`; here are {}", file.display(), known.join(", "))]
    UnknownKey {
        /// The file.
        file: PathBuf,
        /// The key, with those that it lies in.
        key: String,
        /// The keys that there are.
        known: Vec<String>,
    },
    /// A value of the wrong kind.
    #[error("{}: {source}", file.display())]
    Kind {
        /// The file.
        file: PathBuf,
        /// What was expected.
        source: serde_json::Error,
    },
    /// A value out of its range.
    #[error("`{field}` is {found}; expected {expected}")]
    Value {
        /// Which.
        field: &'static str,
        /// What it is.
        found: String,
        /// What it must be.
        expected: &'static str,
    },
    /// A value of the optimisation.
    #[error(transparent)]
    Optimization(#[from] OptimizationError),
    /// A value of the model.
    #[error(transparent)]
    Model(#[from] ConfigError),
}

impl TrainingConfig {
    /// What the authors' code runs: ViT-B at 512, batches of 24, 200 epochs, AdamW.
    pub fn released(num_classes: usize) -> Self {
        Self {
            epochs: 200,
            batch_size: 24,
            accumulated_batches: 1,
            seed: 0,
            augmentation: true,
            dice_weight: 0.8,
            validation_epochs: 5,
            patience: None,
            checkpoint_steps: 50,
            workers: 2,
            output: OutputResampling::Reference,
            geometry: SliceGeometry::released(),
            foundation_precision: FoundationPrecision::F32,
            optimization: OptimizationConfig::released(),
            cache: CacheConfig {
                views: CachedViews::DISCRETE,
                precision: CachePrecision::F16,
                limit_gb: None,
            },
            model: SamLstConfig::vit_b(num_classes),
        }
    }

    /// What the paper says: as released, with Adam.
    pub fn paper(num_classes: usize) -> Self {
        Self {
            optimization: OptimizationConfig::paper(),
            ..Self::released(num_classes)
        }
    }

    /// Minutes on a laptop: a tiny model over a random foundation, for phantoms.
    pub fn demo(num_classes: usize) -> Self {
        let mut optimization = OptimizationConfig::released();
        optimization.schedule.base = 3e-3;
        optimization.schedule.warmup_steps = 20;
        Self {
            epochs: 24,
            batch_size: 8,
            validation_epochs: 4,
            geometry: SliceGeometry::direct(),
            foundation_precision: FoundationPrecision::F32,
            optimization,
            cache: CacheConfig {
                views: CachedViews::ALL,
                ..Self::released(num_classes).cache
            },
            // The frozen part of a random decoder knows nothing that could be kept.
            model: SamLstConfig::tiny(num_classes).with_tuning(DecoderTuning::Full),
            ..Self::released(num_classes)
        }
    }

    /// This configuration with what a TOML text says otherwise. `origin` names the text in messages.
    ///
    /// Tables are changed key by key, but for `geometry`, `optimization.optimizer` and `model.side`, which are given whole.
    ///
    /// # Errors
    ///
    /// [`TrainingConfigError`] for a text that is not TOML, a key that no setting has, or a value that cannot be.
    pub fn changed_by(
        &self,
        text: &str,
        origin: impl AsRef<Path>,
    ) -> Result<Self, TrainingConfigError> {
        let file = origin.as_ref();
        let changes: Map<String, Value> =
            toml::from_str(text).map_err(|source| TrainingConfigError::Toml {
                file: file.to_owned(),
                source: Box::new(source),
            })?;
        let kind = |source| TrainingConfigError::Kind {
            file: file.to_owned(),
            source,
        };
        let mut whole = serde_json::to_value(self).map_err(kind)?;
        change(&mut whole, changes, "", file)?;
        let config: Self = serde_json::from_value(whole).map_err(kind)?;
        config.validate()?;
        Ok(config)
    }

    /// As [`Self::changed_by`], from a file.
    ///
    /// # Errors
    ///
    /// As [`Self::changed_by`], and [`TrainingConfigError::Read`] if the file cannot be read.
    pub fn changed_by_file(&self, file: impl AsRef<Path>) -> Result<Self, TrainingConfigError> {
        let file = file.as_ref();
        let text = std::fs::read_to_string(file).map_err(|source| TrainingConfigError::Read {
            file: file.to_owned(),
            source,
        })?;
        self.changed_by(&text, file)
    }

    /// This configuration with its steps cut into batches that so many devices can share: 24 slices a step become two batches
    /// of 12. Batch norm and Dice then see 12 at a time, as with PyTorch's `DataParallel`, which the released code runs. What
    /// can be shared as it is stays as it is.
    ///
    /// # Errors
    ///
    /// [`TrainingConfigError::Value`] if a step's slices cannot be shared evenly.
    pub fn shared_by(&self, devices: usize) -> Result<Self, TrainingConfigError> {
        let mut config = self.clone();
        if devices > 1 && !self.accumulated_batches.is_multiple_of(devices) {
            require(
                self.batch_size.is_multiple_of(devices),
                "batch_size",
                format!("{}, for {devices} devices", self.batch_size),
                "a multiple of the number of devices, so that each has as much to do",
            )?;
            config.batch_size /= devices;
            config.accumulated_batches *= devices;
        }
        Ok(config)
    }

    /// A configuration that was written, with this one's values where these have no part in what is trained; as it is if it
    /// cannot be read.
    pub(super) fn adapted(&self, written: &str) -> String {
        let Ok(mut config) = toml::from_str::<Self>(written) else {
            return written.to_owned();
        };
        config.workers = self.workers;
        config.checkpoint_steps = self.checkpoint_steps;
        config.cache.limit_gb = self.cache.limit_gb;
        // Without a cache nothing is rounded to its precision.
        if config.cache.views.count() > 0 && self.cache.views.count() > 0 {
            config.cache.views = self.cache.views;
        }
        config.to_toml()
    }

    /// The whole configuration as a TOML file has it.
    ///
    /// # Panics
    ///
    /// If a seed is not below 2^63, which TOML has no numbers for; [`validate`](Self::validate) says so.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("valid settings are plain data")
    }

    /// Checks every value, before anything is computed.
    ///
    /// # Errors
    ///
    /// The first value that cannot be.
    pub fn validate(&self) -> Result<(), TrainingConfigError> {
        let at_least_one = [
            ("epochs", self.epochs),
            ("batch_size", self.batch_size as u64),
            ("accumulated_batches", self.accumulated_batches as u64),
            ("validation_epochs", self.validation_epochs),
            ("patience", self.patience.unwrap_or(1)),
            ("checkpoint_steps", self.checkpoint_steps),
            ("workers", self.workers as u64),
            (
                "geometry.train_size",
                self.geometry.train_size.unwrap_or(1) as u64,
            ),
        ];
        for (field, found) in at_least_one {
            require(found > 0, field, found, "at least 1")?;
        }
        for (field, found) in [("seed", self.seed), ("model.seed", self.model.seed)] {
            require(i64::try_from(found).is_ok(), field, found, "below 2^63")?;
        }
        let weight = self.dice_weight;
        require(
            (0.0..=1.0).contains(&weight),
            "dice_weight",
            weight,
            "between 0 and 1",
        )?;
        let limit = self.cache.limit_gb.unwrap_or(1.0);
        require(
            limit.is_finite() && limit >= 0.0,
            "cache.limit_gb",
            limit,
            "0 or positive",
        )?;
        self.optimization.validate()?;
        Ok(self.model.validate()?)
    }
}

impl CacheConfig {
    /// The limit in bytes.
    pub fn limit_bytes(&self) -> Option<u64> {
        self.limit_gb.map(|gb| (gb * 1e9) as u64)
    }
}

fn require(
    holds: bool,
    field: &'static str,
    found: impl ToString,
    expected: &'static str,
) -> Result<(), TrainingConfigError> {
    match holds {
        true => Ok(()),
        false => Err(TrainingConfigError::Value {
            field,
            found: found.to_string(),
            expected,
        }),
    }
}

/// Tables of which one variant or setting excludes others, so that keys of two may not mix.
const GIVEN_WHOLE: [&str; 3] = ["geometry", "optimization.optimizer", "model.side"];
/// Settings that a written configuration may lack.
const OPTIONAL: [&str; 2] = ["patience", "cache.limit_gb"];

fn change(
    whole: &mut Value,
    changes: Map<String, Value>,
    within: &str,
    file: &Path,
) -> Result<(), TrainingConfigError> {
    let Value::Object(settings) = whole else {
        *whole = Value::Object(changes);
        return Ok(());
    };
    for (key, value) in changes {
        let path = match within {
            "" => key.clone(),
            _ => format!("{within}.{key}"),
        };
        if !settings.contains_key(&key) && !OPTIONAL.contains(&path.as_str()) {
            return Err(TrainingConfigError::UnknownKey {
                file: file.to_owned(),
                key: path,
                known: settings.keys().cloned().collect(),
            });
        }
        match (settings.get_mut(&key), value) {
            (Some(inner @ Value::Object(_)), Value::Object(changes))
                if !GIVEN_WHOLE.contains(&path.as_str()) =>
            {
                change(inner, changes, &path, file)?;
            }
            (_, value) => {
                settings.insert(key, value);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Fusion, OptimizerConfig};

    #[test]
    fn a_file_changes_what_it_says_and_a_written_one_says_everything() {
        let released = TrainingConfig::released(9);
        let changed = released
            .changed_by(
                r#"
                patience = 3
                geometry = { grid = "half_pixel" }
                [optimization.optimizer.adam]
                betas = [0.8, 0.99]
                epsilon = 1e-7
                [cache]
                views = "all"
                limit_gb = 2.5
                [model]
                fusion = "SideOnly"
                "#,
                "mine.toml",
            )
            .expect("it can be");
        assert_eq!(changed.patience, Some(3));
        assert_eq!(changed.geometry, SliceGeometry::direct());
        assert!(matches!(
            changed.optimization.optimizer,
            OptimizerConfig::Adam {
                betas: [0.8, 0.99],
                ..
            }
        ));
        assert_eq!(
            changed.optimization.schedule,
            released.optimization.schedule
        );
        assert_eq!(changed.cache.limit_bytes(), Some(2_500_000_000));
        assert_eq!(changed.model.fusion, Fusion::SideOnly);
        assert_eq!(changed.model.encoder, released.model.encoder);
        let again = TrainingConfig::demo(4)
            .changed_by(&changed.to_toml(), "config.toml")
            .expect("it was written");
        assert_eq!(again, changed);
    }

    #[test]
    fn what_cannot_be_is_named() {
        let message = |text: &str| {
            TrainingConfig::released(9)
                .changed_by(text, "mine.toml")
                .expect_err("it cannot be")
                .to_string()
        };
        let unknown = message("[optimization.schedule]\nwarmup = 3");
        assert!(
            unknown.starts_with("mine.toml: there is no setting `optimization.schedule.warmup`")
                && unknown.contains("warmup_steps"),
            "{unknown}"
        );
        assert!(message("model.input = 5").contains("`model.input`"));
        assert!(message("epochs = ").starts_with("mine.toml: "));
        assert!(message("epochs = -1").starts_with("mine.toml: "));
        assert!(message("optimization = 3").starts_with("mine.toml: "));
        assert_eq!(message("epochs = 0"), "`epochs` is 0; expected at least 1");
        assert_eq!(
            message("dice_weight = 1.5"),
            "`dice_weight` is 1.5; expected between 0 and 1"
        );
        assert!(message("[model]\ninput_size = 500").contains("multiple of 16"));
        assert!(message("[cache]\nviews = \"some\"").contains("`some`"));
        let both =
            "[optimization.optimizer]\nadam = { betas = [0.9, 0.9], epsilon = 1e-8 }\nsgd = 1";
        assert!(message(both).starts_with("mine.toml: "));
    }

    #[test]
    fn presets_are_valid() {
        for config in [
            TrainingConfig::released(9),
            TrainingConfig::paper(9),
            TrainingConfig::demo(9),
        ] {
            config.validate().expect("it can be");
        }
    }
}
