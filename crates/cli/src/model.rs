//! A trained model for `segment` and `evaluate`.

use crate::arguments::{Precision, at_least_one};
use crate::progress::Spinner;
use crate::{WrongUsage, output};
use anyhow::{Context, Result, anyhow, bail};
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
    /// Resampling of the output: reference or logits [default: as in training]
    #[arg(long, value_name = "HOW", value_enum, hide_possible_values = true)]
    resampling: Option<Resampling>,
    /// Test-time augmentation: also average N rotations, scalings and shifts, at most 8
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
        _ => Err(format!("expected a whole number from 0 to {}", Pose::MAX_AT_INFERENCE)),
    }
}

/// The common task of several networks, as they were trained or with another description of the
/// dataset. Checks that they can be averaged and that there is a foundation if, and only if, one of them
/// needs it. Reads only their metadata.
pub fn read_common_task(
    networks: &[PathBuf],
    sam: Option<&Path>,
    description: Option<DatasetDescription>,
) -> Result<Task> {
    let [first, others @ ..] = networks else { bail!("no network; give --network") };
    let of_first = NetworkMetadata::read(first)?;
    let mut uses_sam = foundation_of(&of_first, sam, networks).is_some();
    let task = read_task(first, &of_first, foundation_of(&of_first, sam, networks), &description)?;
    for other in others {
        let of_other = NetworkMetadata::read(other)?;
        let own_sam = foundation_of(&of_other, sam, networks);
        uses_sam |= own_sam.is_some();
        read_task(other, &of_other, own_sam, &description)?;
        // As they were trained, whatever the description for this run says.
        let (Some(first_task), Some(task)) = (&of_first.task, &of_other.task) else { continue };
        let names = |task: &Task| {
            task.dataset.organs.iter().map(|organ| organ.name.clone()).collect::<Vec<_>>()
        };
        let preprocessing = |task: &Task| {
            let dataset = &task.dataset;
            (dataset.intensity, dataset.orientation, task.geometry, task.embedding_precision)
        };
        let difference = if names(task) != names(first_task) {
            "it is trained for other organs, or in another order"
        } else if preprocessing(task) != preprocessing(first_task) {
            "it is trained on slices with another orientation, intensities, sizes or precision"
        } else {
            continue;
        };
        bail!("cannot combine {} with {}: {difference}", other.display(), first.display());
    }
    if let (Some(sam), false) = (sam, uses_sam) {
        bail!("no network uses {}; remove --sam", sam.display());
    }
    Ok(task)
}

/// The foundation's checkpoint for one of several networks, of which some may need none. A single one
/// gets it in any case, so that an unnecessary one is an error.
fn foundation_of<'a>(
    metadata: &NetworkMetadata,
    sam: Option<&'a Path>,
    networks: &[PathBuf],
) -> Option<&'a Path> {
    let needs_none = PretrainedModel::needs_foundation(metadata) == Some(false);
    sam.filter(|_| networks.len() == 1 || !needs_none)
}

/// The task of a trained network, with another description of the dataset if one is given. Checks that
/// there is a foundation if, and only if, the network needs one. Reads no tensors.
fn read_task(
    network: &Path,
    metadata: &NetworkMetadata,
    sam: Option<&Path>,
    description: &Option<DatasetDescription>,
) -> Result<Task> {
    PretrainedModel::check_foundation(metadata, network, sam).map_err(|error| match error {
        ModelError::MissingFoundation { .. } => anyhow!("{error}; give it with --sam FILE"),
        ModelError::UnusedFoundation { .. } => anyhow!("{error}; remove --sam"),
        error => error.into(),
    })?;
    let masks = PretrainedModel::num_classes(metadata)?;
    let task = match (metadata.task.clone(), description.clone()) {
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
    Task {
        dataset,
        geometry: SliceGeometry::released(),
        embedding_precision: EmbeddingPrecision::F16,
        output: OutputResampling::Reference,
    }
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
            let sam = foundation_of(&NetworkMetadata::read(network)?, sam, networks);
            let mut model = self.load(sam, network, device)?;
            models.iter().for_each(|other| model.share_foundation(other));
            models.push(model);
        }
        Ok(models)
    }

    /// A segmenter of one model, or of an ensemble, whose files are `networks`.
    pub fn segmenter<'a>(
        &self,
        models: &'a [PretrainedModel],
        networks: &[PathBuf],
        task: &Task,
    ) -> Result<Segmenter<'a>> {
        let [first, others @ ..] = models else { bail!("no network; give --network") };
        let mut segmenter = first.segmenter(self.segmentation(task));
        for (other, file) in others.iter().zip(networks.iter().skip(1)) {
            segmenter = other.add_to(segmenter).with_context(|| {
                format!("cannot combine {} with {}", file.display(), networks[0].display())
            })?;
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
                Some(Resampling::Reference) => OutputResampling::Reference,
                Some(Resampling::Logits) => OutputResampling::Logits,
                None => task.output,
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
        let Some(folder) = &self.cache else { return Ok(None) };
        // The same folder as in training. A network that uses no embedding has no cache.
        let folder = folder.join("embeddings");
        for model in models {
            let cache = model.embedding_cache(&folder, task.embedding_precision, None)?;
            if cache.is_some() {
                return Ok(cache);
            }
        }
        Ok(None)
    }
}
