//! A trained model for `segment` and `evaluate`.

use crate::arguments::{Precision, at_least_one};
use crate::output;
use crate::progress::Spinner;
use anyhow::{Result, bail};
use burn::tensor::Device;
use clap::{Args, ValueEnum};
use sam_lst::inference::OutputResampling;
use sam_lst::model::{EmbeddingPrecision, NetworkMetadata, Task};
use sam_lst::{
    DatasetDescription, EmbeddingCache, Fusion, SamLst, SamLstConfig, SegmentationConfig,
    SliceGeometry,
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

/// The task of a ladder, with another description of the dataset if one is given. Reads only the
/// ladder's metadata.
pub fn read_task(ladder: &Path, description: Option<DatasetDescription>) -> Result<Task> {
    let metadata = NetworkMetadata::read(ladder)?;
    let masks = metadata.config::<SamLstConfig>()?.num_classes();
    let task = match (metadata.task, description) {
        (Some(task), None) => task,
        (task, Some(dataset)) => {
            let task = task.unwrap_or_else(|| untrained_task(dataset.clone()));
            Task { dataset, ..task }
        }
        (None, None) => bail!(
            "cannot use {}: it does not say which organs its masks are; add --dataset FILE",
            ladder.display()
        ),
    };
    let classes = task.dataset.classes();
    if masks != classes {
        bail!(
            "cannot use {}: it predicts {masks} masks, but the dataset `{}` has {classes} classes \
             including the background; choose the ladder or the description that fits",
            ladder.display(),
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

    /// Loads the model.
    pub fn load(&self, sam: &Path, ladder: &Path, device: &Device) -> Result<SamLst> {
        let _spinner = Spinner::loading(sam);
        self.with_precision(SamLst::from_pretrained(sam, ladder, device)?)
    }

    /// Loads SAM without a ladder: [`Fusion::Untrained`].
    pub fn load_untrained(
        &self,
        config: SamLstConfig,
        sam: &Path,
        device: &Device,
    ) -> Result<SamLst> {
        let _spinner = Spinner::loading(sam);
        let config = config.with_fusion(Fusion::Untrained);
        self.with_precision(SamLst::from_official(&config, sam, None, device)?)
    }

    fn with_precision(&self, mut model: SamLst) -> Result<SamLst> {
        model.foundation.set_precision(self.precision.into())?;
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
    pub fn open_cache(&self, model: &SamLst, task: &Task) -> Result<Option<EmbeddingCache>> {
        let open = |cache: &PathBuf| {
            // The same folder as in training.
            model.embedding_cache(cache.join("embeddings"), task.embedding_precision, None)
        };
        Ok(self.cache.as_ref().map(open).transpose()?.flatten())
    }
}
