//! A trained model for `segment` and `evaluate`.

use crate::arguments::{Precision, at_least_one};
use crate::progress::Spinner;
use crate::{WrongUsage, output};
use anyhow::{Result, anyhow, bail};
use burn::tensor::Device;
use clap::{Args, ValueEnum};
use sam_lst::inference::OutputResampling;
use sam_lst::model::{EmbeddingPrecision, ModelError, NetworkMetadata, Task};
use sam_lst::{
    DatasetDescription, EmbeddingCache, FoundationPrecision, Fusion, PretrainedModel, SamLst,
    SamLstConfig, SegmentationConfig, SliceGeometry,
};
use std::path::{Path, PathBuf};

/// How a trained model is run.
#[derive(Args)]
pub struct ModelOptions {
    /// Resampling of the output
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Resampling::Reference)]
    resampling: Resampling,
    /// Slices in a batch
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = at_least_one)]
    batch_size: usize,
    /// Device, as `sam-lst devices` lists them
    #[arg(long, value_name = "NAME", default_value = "cpu")]
    pub device: String,
    /// Precision of the foundation
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = Precision::F32)]
    precision: Precision,
    /// Folder of cached embeddings, such as that of `train` [default: none]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Resampling {
    Reference,
    Logits,
}

/// The task of a trained network, with another description of the dataset if one is given. Reads only
/// its metadata, and checks that there is a foundation if, and only if, the network needs one.
pub fn read_task(
    network: &Path,
    sam: Option<&Path>,
    description: Option<DatasetDescription>,
) -> Result<Task> {
    let metadata = NetworkMetadata::read(network)?;
    PretrainedModel::check_foundation(&metadata, network, sam).map_err(|error| match error {
        ModelError::MissingFoundation { .. } => anyhow!("{error}; give it with --sam FILE"),
        ModelError::UnusedFoundation { .. } => anyhow!("{error}; remove --sam"),
        error => error.into(),
    })?;
    let masks = PretrainedModel::num_classes(&metadata)?;
    let task = match (metadata.task, description) {
        (Some(task), None) => task,
        (task, Some(dataset)) => {
            let task = task.unwrap_or_else(|| untrained_task(dataset.clone()));
            Task { dataset, ..task }
        }
        (None, None) => bail!(
            "cannot use {}: it does not say which organs its masks are; add --dataset FILE",
            network.display()
        ),
    };
    let classes = task.dataset.classes();
    if masks != classes {
        bail!(
            "cannot use {}: it predicts {masks} masks, but the dataset `{}` has {classes} classes \
             including the background; choose the network or the description that fits",
            network.display(),
            task.dataset.name
        );
    }
    Ok(task)
}

/// The task of a model without a ladder: slices and embeddings as in training by default.
pub fn untrained_task(dataset: DatasetDescription) -> Task {
    let (geometry, embedding_precision) = (SliceGeometry::released(), EmbeddingPrecision::F16);
    Task { dataset, geometry, embedding_precision }
}

impl ModelOptions {
    /// Checks what can be checked before the model is loaded.
    pub fn check(&self) -> Result<()> {
        match &self.cache {
            Some(cache) => output::check_writable(cache),
            None => Ok(()),
        }
    }

    /// Loads a trained model.
    pub fn load(
        &self,
        sam: Option<&Path>,
        network: &Path,
        device: &Device,
    ) -> Result<PretrainedModel> {
        let _spinner = Spinner::loading(sam.unwrap_or(network));
        self.with_precision(PretrainedModel::load(network, sam, device)?)
    }

    /// Loads SAM without a ladder: [`Fusion::Untrained`].
    pub fn load_untrained(
        &self,
        config: SamLstConfig,
        sam: &Path,
        device: &Device,
    ) -> Result<PretrainedModel> {
        let _spinner = Spinner::loading(sam);
        let config = config.with_fusion(Fusion::Untrained);
        let model = SamLst::from_official(&config, sam, None, device)?;
        self.with_precision(PretrainedModel::Ladder(model))
    }

    fn with_precision(&self, mut model: PretrainedModel) -> Result<PretrainedModel> {
        let precision = self.precision.into();
        match model.foundation_mut() {
            Some(foundation) => foundation.set_precision(precision)?,
            None if precision == FoundationPrecision::F32 => {}
            None => bail!(WrongUsage(
                "--precision is that of the foundation, and the model has none; remove it"
                    .to_owned()
            )),
        }
        Ok(model)
    }

    /// How volumes are segmented.
    pub fn segmentation(&self, task: &Task) -> SegmentationConfig {
        SegmentationConfig {
            output: match self.resampling {
                Resampling::Reference => OutputResampling::Reference,
                Resampling::Logits => OutputResampling::Logits,
            },
            batch_size: self.batch_size,
            ..SegmentationConfig::of_task(task)
        }
    }

    /// The cache of the model's embeddings, if there is to be one.
    pub fn open_cache(
        &self,
        model: &PretrainedModel,
        task: &Task,
    ) -> Result<Option<EmbeddingCache>> {
        let open = |cache: &PathBuf| {
            // The same folder as in training.
            model.embedding_cache(cache.join("embeddings"), task.embedding_precision, None)
        };
        Ok(self.cache.as_ref().map(open).transpose()?.flatten())
    }
}
