use super::OptimizationConfig;
use crate::embeddings::CachedViews;
use crate::model::{
    Baseline, BaselineConfig, EmbeddingPrecision, EncoderConfig, EncoderTuning,
    FoundationPrecision, InvalidSetting, NetworkConfig, OutputResampling, SamLstConfig,
    SamTuningConfig, SideConfig, SliceGeometry, UNetLadderConfig, require,
};
use sam_lst_datasets::Augmentation;
use sam_lst_mask_decoder::DecoderTuning;
use serde::{Deserialize, Serialize};

mod error;
mod method;
mod overrides;

pub use error::TrainingConfigError;
pub use method::MethodName;

/// Every setting of a training run except the data: the model, the protocol, and the cache.
///
/// Start from a preset; a TOML file only needs the settings that differ:
///
/// ```
/// use sam_lst::TrainingConfig;
///
/// let text = r#"
///     epochs = 50
///     [optimization.schedule]
///     base = 5e-4
/// "#;
/// let config = TrainingConfig::released(9).with_overrides(text, "short.toml")?;
/// assert_eq!((config.epochs, config.batch_size), (50, 24));
/// # Ok::<(), sam_lst::training::TrainingConfigError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, bound = "C: NetworkConfig")]
pub struct TrainingConfig<C = SamLstConfig> {
    /// The method, which follows from the type of the model's configuration. Settings of another
    /// method are refused.
    #[serde(default, skip_serializing_if = "MethodName::is_ladder")]
    pub method: MethodName<C>,
    /// Number of passes over all slices.
    pub epochs: u64,
    /// Slices in a batch.
    pub batch_size: usize,
    /// Batches whose mean gradient makes a step. Batch norm and Dice see one batch at a time, so 2
    /// batches of 12 are not quite one of 24.
    pub accumulated_batches: usize,
    /// Seed of the order of slices and of their views. Initial weights have their own seed,
    /// `model.seed`.
    pub seed: u64,
    /// How training varies slices: `"none"`, `"released"` or `"upright"`.
    pub augmentation: Augmentation,
    /// Weight of the Dice loss, in `[0, 1]`; the weight of cross entropy is 1 minus this.
    pub dice_weight: f64,
    /// Whether classes without a pixel in a batch count in its Dice loss, as in the released code.
    #[serde(default = "yes")]
    pub dice_absent_classes: bool,
    /// Epochs between validations, if the dataset has validation cases. The last epoch is always
    /// validated.
    pub validation_epochs: u64,
    /// Consecutive validations without improvement after which training stops; without it, training
    /// never stops early.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience: Option<u64>,
    /// Steps between checkpoints, from which an interrupted run resumes. Each epoch also ends with a
    /// checkpoint.
    pub checkpoint_steps: u64,
    /// Threads that prepare batches.
    pub workers: usize,
    /// How logits of validation cases become classes.
    pub output: OutputResampling,
    /// Sizes through which slices are resampled on their way into the network.
    pub geometry: SliceGeometry,
    /// Precision of the foundation: `"f32"`, `"f16"` or `"bf16"`.
    #[serde(default)]
    pub foundation_precision: FoundationPrecision,
    /// Optimizer and learning rate.
    pub optimization: OptimizationConfig,
    /// The embedding cache.
    pub cache: CacheConfig,
    /// The model.
    pub model: C,
}

fn yes() -> bool {
    true
}

/// Which embeddings are cached, and how.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheConfig {
    /// Views whose embeddings are cached: `"all"`, `"discrete"`, `"identity"`, or how many of the 44;
    /// `"0"` disables the cache.
    pub views: CachedViews,
    /// Precision to which embeddings are rounded, whether they are cached or not.
    pub precision: EmbeddingPrecision,
    /// Largest size of the cache in GB (10^9 bytes); unlimited without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_gb: Option<f64>,
}

impl TrainingConfig {
    /// The settings of the authors' code: ViT-B at 512, batches of 24, 200 epochs, AdamW.
    pub fn released(num_classes: usize) -> Self {
        Self {
            method: MethodName::new(),
            epochs: 200,
            batch_size: 24,
            accumulated_batches: 1,
            seed: 0,
            augmentation: Augmentation::Released,
            dice_weight: 0.8,
            dice_absent_classes: true,
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
                precision: EmbeddingPrecision::F16,
                limit_gb: None,
            },
            model: SamLstConfig::vit_b(num_classes),
        }
    }

    /// The settings of the paper: as [`released`](Self::released), with Adam.
    pub fn paper(num_classes: usize) -> Self {
        Self { optimization: OptimizationConfig::paper(), ..Self::released(num_classes) }
    }

    /// The settings of [`released`](Self::released) for a network without a foundation: the same
    /// slices, views, loss, optimizer and schedule, so that only the network differs. Slices are not
    /// enlarged from 224 x 224 pixels.
    pub fn baseline<C: Baseline>(network: C) -> TrainingConfig<BaselineConfig<C>> {
        let released = Self::released(network.num_classes());
        let cache = CacheConfig { views: CachedViews::NONE, ..released.cache };
        let model = BaselineConfig { network, input_size: 224, seed: 0 };
        TrainingConfig { cache, ..released.with_model(model) }
    }

    /// The settings of [`released`](Self::released) for another way to fine-tune SAM, with the
    /// learning rate of its authors: 5e-3 for LoRA (SAMed), 1e-4 without warm-up and with Adam for
    /// adapters (Medical SAM Adapter), 2e-4 for frequency prompts (SAM-Adapter). Training the whole
    /// encoder has 1e-4, all others the ladder's 1e-3. Where the foundation is a few layers only, its
    /// output is not cached.
    pub fn sam_tuning(model: SamTuningConfig) -> TrainingConfig<SamTuningConfig> {
        let released = Self::released(model.decoder.num_masks);
        let mut optimization = released.optimization;
        match model.tuning {
            EncoderTuning::Lora { .. } => optimization.schedule.base = 5e-3,
            EncoderTuning::Adapters { .. } => {
                optimization.optimizer = OptimizationConfig::paper().optimizer;
                optimization.schedule.base = 1e-4;
                optimization.schedule.warmup_steps = 0;
            }
            EncoderTuning::FrequencyPrompts { .. } => optimization.schedule.base = 2e-4,
            EncoderTuning::Full => optimization.schedule.base = 1e-4,
            EncoderTuning::Decoder | EncoderTuning::Prompts { .. } | EncoderTuning::Biases => {}
        }
        let mut cache = released.cache;
        if !model.tuning.has_cached_blocks() {
            cache.views = CachedViews::NONE;
        }
        TrainingConfig { optimization, cache, ..released.with_model(model) }
    }

    /// The preset `accurate`, or `fast` if the model is [`UNetLadderConfig::fast`]: a U-Net that
    /// receives the foundation's features, with the settings of
    /// [`with_accurate_training`](Self::with_accurate_training).
    pub fn unet_ladder(model: UNetLadderConfig) -> TrainingConfig<UNetLadderConfig> {
        Self::released(model.num_classes).with_model(model).with_accurate_training()
    }

    /// A tiny model over a random foundation, for synthetic phantoms at 256 x 256: minutes on a
    /// laptop.
    pub fn demo(num_classes: usize) -> Self {
        let mut optimization = OptimizationConfig::released();
        optimization.schedule.base = 3e-3;
        optimization.schedule.warmup_steps = 20;
        Self {
            epochs: 16,
            batch_size: 8,
            validation_epochs: 4,
            geometry: SliceGeometry::direct(),
            foundation_precision: FoundationPrecision::F32,
            optimization,
            cache: CacheConfig { views: CachedViews::ALL, ..Self::released(num_classes).cache },
            // Frozen parts of a random decoder hold no knowledge worth preserving.
            model: SamLstConfig::tiny(num_classes)
                .with_tuning(DecoderTuning::Full)
                .with_input_size(256),
            ..Self::released(num_classes)
        }
    }

    /// As [`demo`](Self::demo), over the encoder of a checkpoint: a narrow side network and few
    /// epochs without augmentation, which embed each slice once, at 128 x 128 pixels for an encoder
    /// of stride 4, else 256 x 256. Minutes on a laptop over LiteMedSAM.
    pub fn demo_over(encoder: EncoderConfig, num_classes: usize) -> Self {
        let input_size = if encoder.stride() == 4 { 128 } else { 256 };
        let mut config = Self::demo(num_classes);
        config.epochs = 6;
        config.validation_epochs = 2;
        config.augmentation = Augmentation::None;
        config.optimization.schedule.base = 1e-3;
        config.model = SamLstConfig::for_encoder(encoder, num_classes)
            .with_tuning(DecoderTuning::Full)
            .with_input_size(input_size);
        // Without a pyramid, the width follows from the embedding's channels.
        if let SideConfig::ResNet(side) = &mut config.model.side
            && side.pyramid_channels.is_some()
        {
            side.width = 24;
        }
        config
    }
}

impl<C: NetworkConfig> TrainingConfig<C> {
    /// This configuration for another model, which may be of another method.
    pub fn with_model<M: NetworkConfig>(self, model: M) -> TrainingConfig<M> {
        TrainingConfig {
            method: MethodName::new(),
            epochs: self.epochs,
            batch_size: self.batch_size,
            accumulated_batches: self.accumulated_batches,
            seed: self.seed,
            augmentation: self.augmentation,
            dice_weight: self.dice_weight,
            dice_absent_classes: self.dice_absent_classes,
            validation_epochs: self.validation_epochs,
            patience: self.patience,
            checkpoint_steps: self.checkpoint_steps,
            workers: self.workers,
            output: self.output,
            geometry: self.geometry,
            foundation_precision: self.foundation_precision,
            optimization: self.optimization,
            cache: self.cache,
            model,
        }
    }

    /// This configuration with the slices, views and steps of the preset `accurate`, which were
    /// chosen on validation patients: small batches and therefore many steps, views that keep a slice
    /// upright, slices resampled directly to the network's size, and logits enlarged before they
    /// become classes.
    pub fn with_accurate_training(self) -> Self {
        let mut config = self;
        config.batch_size = 2;
        // About as many slices between checkpoints as in the released settings.
        config.checkpoint_steps = 500;
        config.augmentation = Augmentation::Upright;
        config.output = OutputResampling::Logits;
        config.geometry = SliceGeometry::direct();
        config.optimization.schedule.warmup_steps = 100;
        if config.cache.views.count() > 0 {
            // The only view that is embedded.
            config.cache.views = CachedViews::IDENTITY;
        }
        config
    }

    /// This configuration with the batches of each step split, so that several devices share a step:
    /// 24 slices in a step become two batches of 12. Batch norm and Dice then see 12 slices at a time,
    /// as in PyTorch's `DataParallel`, which the released code uses. A configuration whose batches
    /// can be shared already is returned unchanged.
    ///
    /// # Errors
    ///
    /// [`TrainingConfigError::Invalid`] if the slices of a step cannot be shared evenly.
    pub fn split_across(&self, devices: usize) -> Result<Self, TrainingConfigError> {
        let mut config = self.clone();
        if devices > 1 && !self.accumulated_batches.is_multiple_of(devices) {
            require(
                self.batch_size.is_multiple_of(devices),
                "batch_size",
                format!("{}, for {devices} devices", self.batch_size),
                "a multiple of the number of devices, so that each has the same share",
            )?;
            config.batch_size /= devices;
            config.accumulated_batches *= devices;
        }
        Ok(config)
    }

    /// A configuration as written by an earlier process, with this one's values of the settings that
    /// do not affect the weights; unchanged if it cannot be parsed.
    pub(super) fn normalized_for_resume(&self, written: &str) -> String {
        let Ok(mut config) = toml::from_str::<Self>(written) else {
            return written.to_owned();
        };
        config.workers = self.workers;
        config.checkpoint_steps = self.checkpoint_steps;
        config.cache.limit_gb = self.cache.limit_gb;
        // Embeddings are rounded to the cache's precision with a cache and not without, so a cache
        // can neither appear nor disappear.
        if config.cache.views.count() > 0 && self.cache.views.count() > 0 {
            config.cache.views = self.cache.views;
        }
        config.to_toml()
    }

    /// The whole configuration as TOML.
    ///
    /// # Panics
    ///
    /// If a seed is not below 2^63, the limit of TOML's integers; [`validate`](Self::validate) checks
    /// that.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("valid settings are plain data")
    }

    /// Checks every value, before anything is computed.
    ///
    /// # Errors
    ///
    /// The first invalid value.
    pub fn validate(&self) -> Result<(), TrainingConfigError> {
        self.validate_own()?;
        self.optimization.validate()?;
        Ok(self.model.validate()?)
    }

    fn validate_own(&self) -> Result<(), InvalidSetting> {
        let at_least_one = [
            ("epochs", self.epochs),
            ("batch_size", self.batch_size as u64),
            ("accumulated_batches", self.accumulated_batches as u64),
            ("validation_epochs", self.validation_epochs),
            ("patience", self.patience.unwrap_or(1)),
            ("checkpoint_steps", self.checkpoint_steps),
            ("workers", self.workers as u64),
            ("geometry.train_size", self.geometry.train_size.unwrap_or(1) as u64),
        ];
        for (field, found) in at_least_one {
            require(found > 0, field, found, "at least 1")?;
        }
        // Far more than any scanner's slices, and it fits in memory.
        const MAX_TRAIN_SIZE: usize = 4096;
        let train_size = self.geometry.train_size.unwrap_or(1);
        require(train_size <= MAX_TRAIN_SIZE, "geometry.train_size", train_size, "at most 4096")?;
        for (field, found) in [("seed", self.seed), ("model.seed", self.model.seed())] {
            require(i64::try_from(found).is_ok(), field, found, "below 2^63")?;
        }
        let weight = self.dice_weight;
        require((0.0..=1.0).contains(&weight), "dice_weight", weight, "between 0 and 1")?;
        let limit = self.cache.limit_gb.unwrap_or(1.0);
        require(limit.is_finite() && limit >= 0.0, "cache.limit_gb", limit, "0 or positive")
    }
}

impl CacheConfig {
    /// The limit in bytes.
    pub fn limit_bytes(&self) -> Option<u64> {
        self.limit_gb.map(|gb| (gb * 1e9) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_valid() {
        for config in
            [TrainingConfig::released(9), TrainingConfig::paper(9), TrainingConfig::demo(9)]
        {
            config.validate().expect("valid");
            let model = UNetLadderConfig::from_ladder(&config.model);
            config.with_accurate_training().validate().expect("valid");
            for model in [model.clone().fast(), model] {
                TrainingConfig::unet_ladder(model).validate().expect("valid");
            }
        }
    }
}
