//! A trained model for `segment` and `evaluate`.

use crate::arguments::{Precision, at_least_one};
use crate::progress::Spinner;
use crate::{WrongUsage, output};
use anyhow::{Result, anyhow, bail};
use burn::tensor::Device;
use clap::{Args, ValueEnum};
use sam_lst::datasets::Pose;
use sam_lst::inference::OutputResampling;
use sam_lst::model::{EmbeddingPrecision, ModelError, NetworkMetadata, Task};
use sam_lst::{
    DatasetDescription, EmbeddingCache, FoundationPrecision, Fusion, PretrainedModel, SamLst,
    SamLstConfig, SegmentationConfig, Segmenter, SliceGeometry,
};
use std::path::{Path, PathBuf};

/// How a trained model is run.
#[derive(Args)]
pub struct ModelOptions {
    /// Resampling of the output: reference or logits
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Resampling::Reference)]
    #[arg(hide_possible_values = true)]
    resampling: Resampling,
    /// Average N small poses of each slice too, at most 8
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = poses)]
    poses: usize,
    /// Slices in a batch
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = at_least_one)]
    batch_size: usize,
    /// Device, as `sam-lst devices` lists them
    #[arg(long, value_name = "NAME", default_value = "cpu")]
    pub device: String,
    /// Precision of the foundation: f32, f16 or bf16
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = Precision::F32)]
    #[arg(hide_possible_values = true)]
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

fn poses(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 0..=Pose::MAX_AT_INFERENCE) => Ok(count),
        _ => Err("expected a whole number from 0 to 8".to_owned()),
    }
}

/// The common task of several networks, as [`read_task`].
pub fn read_common_task(
    networks: &[PathBuf],
    sam: Option<&Path>,
    description: Option<DatasetDescription>,
) -> Result<Task> {
    let [first, others @ ..] = networks else { bail!("no network; give --network") };
    let task = read_task(first, sam, description.clone())?;
    for other in others {
        let of_other = read_task(other, sam, description.clone())?;
        let organs = |task: &Task| task.dataset.organs.clone();
        if organs(&of_other) != organs(&task) {
            bail!(
                "cannot combine {} with {}: it is trained for other organs",
                other.display(),
                first.display()
            );
        }
        let preprocessing =
            |task: &Task| (task.dataset.intensity, task.dataset.orientation, task.geometry);
        if preprocessing(&of_other) != preprocessing(&task) {
            bail!(
                "cannot combine {} with {}: it is trained on slices with another orientation, \
                 intensities or sizes",
                other.display(),
                first.display()
            );
        }
    }
    Ok(task)
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

    /// Loads trained models, which share their foundation.
    pub fn load_all(
        &self,
        sam: Option<&Path>,
        networks: &[PathBuf],
        device: &Device,
    ) -> Result<Vec<PretrainedModel>> {
        let mut models: Vec<PretrainedModel> = Vec::with_capacity(networks.len());
        for network in networks {
            let mut model = self.load(sam, network, device)?;
            if let Some(first) = models.first() {
                model.share_foundation(first);
            }
            models.push(model);
        }
        Ok(models)
    }

    /// A segmenter of one model, or of an ensemble.
    pub fn segmenter<'a>(
        &self,
        models: &'a [PretrainedModel],
        task: &Task,
    ) -> Result<Segmenter<'a>> {
        let [first, others @ ..] = models else { bail!("no network; give --network") };
        let mut segmenter = first.segmenter(self.segmentation(task));
        for other in others {
            segmenter = other.join(segmenter)?;
        }
        Ok(segmenter)
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
            poses: self.poses,
            ..SegmentationConfig::of_task(task)
        }
    }

    /// The cache of the model's embeddings, if there is to be one.
    pub fn open_cache(
        &self,
        models: &[PretrainedModel],
        task: &Task,
    ) -> Result<Option<EmbeddingCache>> {
        let Some(model) = models.iter().find(|model| model.foundation().is_some()) else {
            return Ok(None);
        };
        let open = |cache: &PathBuf| {
            // The same folder as in training.
            model.embedding_cache(cache.join("embeddings"), task.embedding_precision, None)
        };
        Ok(self.cache.as_ref().map(open).transpose()?.flatten())
    }
}
