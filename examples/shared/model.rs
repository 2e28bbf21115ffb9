//! A trained model, as the command line names it.

use super::device::{DeviceArguments, Precision};
use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use sam_lst::{
    CachePrecision, DatasetDescription, EmbeddingCache, OutputResampling, SamLst,
    SegmentationConfig, SliceGeometry, Task,
};
use std::path::PathBuf;

#[derive(Args)]
pub struct ModelArguments {
    /// SAM's checkpoint, .pth or .safetensors, that the ladder was trained over.
    #[arg(long, value_name = "FILE", requires = "ladder")]
    pub sam: Option<PathBuf>,
    /// The trained ladder.
    #[arg(long, value_name = "FILE", requires = "sam")]
    pub ladder: Option<PathBuf>,
    #[command(flatten)]
    pub device: DeviceArguments,
    /// What the foundation computes in; the ladder always computes in 32 bits.
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    pub precision: Precision,
    /// Slices that go through the network at once.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    pub batch_size: u16,
    /// How the network's output becomes classes.
    #[arg(long, value_enum, default_value_t = Resampling::Reference)]
    pub resampling: Resampling,
    /// Folder that keeps the foundation's embeddings, so that the next time takes only the ladder.
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Resampling {
    /// The released code's: class maps enlarged by nearest neighbours.
    Reference,
    /// Logits resampled to the slice's own size.
    Logits,
}

impl ModelArguments {
    /// The model, what it is trained for, and how it segments.
    pub fn load(
        &self,
        dataset: Option<DatasetDescription>,
    ) -> Result<(SamLst, Task, SegmentationConfig)> {
        let (Some(sam), Some(ladder)) = (&self.sam, &self.ladder) else {
            bail!("--sam and --ladder name the model");
        };
        let devices = self.device.open()?;
        let [device] = &devices[..] else {
            bail!("--device names several; this program computes on one");
        };
        let mut model = SamLst::from_pretrained(sam, ladder, device)?;
        model.foundation.set_precision(self.precision.into())?;
        let task = match (model.task.clone(), dataset) {
            (Some(task), None) => task,
            (task, Some(dataset)) => Task {
                dataset,
                geometry: task.map_or(SliceGeometry::released(), |task| task.geometry),
            },
            (None, None) => bail!(
                "{} does not say which organs its masks are; give a description with --dataset",
                ladder.display()
            ),
        };
        let (masks, classes) = (model.config().num_classes(), task.dataset.classes());
        if masks != classes {
            bail!(
                "{} draws {masks} masks, but the dataset `{}` has {classes} classes, background included",
                ladder.display(),
                task.dataset.name
            );
        }
        let config = SegmentationConfig {
            output: match self.resampling {
                Resampling::Reference => OutputResampling::Reference,
                Resampling::Logits => OutputResampling::Logits,
            },
            batch_size: self.batch_size.into(),
            ..SegmentationConfig::new(task.geometry)
        };
        Ok((model, task, config))
    }

    /// The cache of this model's embeddings, if one is asked for.
    pub fn open_cache(&self, model: &SamLst) -> Result<Option<EmbeddingCache>> {
        let open = |folder| model.embedding_cache(folder, CachePrecision::F16, None);
        Ok(self.cache.as_ref().map(open).transpose()?)
    }
}
