use super::{EnsembleError, SegmentationConfig, Segmenter};
use crate::embeddings::{CacheError, EmbeddingCache};
use crate::model::{
    BaselineConfig, EmbeddingPrecision, Foundation, ModelError, NetworkConfig, NetworkMetadata,
    SamLst, SamLstConfig, SamTuningConfig, SegmentationModel, Task, TunedSam, UNetLadder,
    UNetLadderConfig,
};
use burn::tensor::Device;
use sam_lst_baselines::{
    AttentionUNet, AttentionUNetConfig, SwinUNet, SwinUNetConfig, TransUNet, TransUNetConfig, UNet,
    UNetConfig,
};
use std::path::Path;

/// A trained model of any method of this library, which its checkpoint names.
///
/// ```no_run
/// use burn::tensor::Device;
/// use sam_lst::{PretrainedModel, SegmentationConfig};
/// use std::path::Path;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let sam = Some(Path::new("sam_vit_b_01ec64.pth")); // `None` for a U-Net
/// let model = PretrainedModel::load("ladder.safetensors", sam, &Device::flex())?;
/// let task = model.task().ok_or("the file does not say which organs it has")?;
/// let image = task.dataset.read_image("case.nii.gz")?;
/// let mut segmenter = model.segmenter(SegmentationConfig::of_task(task));
/// let classes = segmenter.segment(&image, |_| {})?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum PretrainedModel {
    /// Ladder side-tuning.
    Ladder(SamLst),
    /// SAM with a fine-tuned image encoder or decoder.
    Tuned(SegmentationModel<TunedSam>),
    /// A U-Net beside the foundation.
    UNetLadder(SegmentationModel<UNetLadder>),
    /// The U-Net.
    UNet(SegmentationModel<UNet>),
    /// Attention U-Net.
    AttentionUNet(SegmentationModel<AttentionUNet>),
    /// TransUNet.
    TransUNet(SegmentationModel<TransUNet>),
    /// Swin-Unet.
    SwinUNet(SegmentationModel<SwinUNet>),
}

/// The same expression of the model of any method.
macro_rules! of_any {
    ($any:expr, $model:ident => $value:expr) => {
        match $any {
            PretrainedModel::Ladder($model) => $value,
            PretrainedModel::Tuned($model) => $value,
            PretrainedModel::UNetLadder($model) => $value,
            PretrainedModel::UNet($model) => $value,
            PretrainedModel::AttentionUNet($model) => $value,
            PretrainedModel::TransUNet($model) => $value,
            PretrainedModel::SwinUNet($model) => $value,
        }
    };
}

/// The same expression of the configuration of any network without a foundation, or `None` for other
/// methods.
macro_rules! of_baseline {
    ($method:expr, $config:ident, $variant:ident => $value:expr) => {
        match $method {
            BaselineConfig::<UNetConfig>::METHOD => {
                type $config = BaselineConfig<UNetConfig>;
                let $variant = PretrainedModel::UNet;
                Some($value)
            }
            BaselineConfig::<AttentionUNetConfig>::METHOD => {
                type $config = BaselineConfig<AttentionUNetConfig>;
                let $variant = PretrainedModel::AttentionUNet;
                Some($value)
            }
            BaselineConfig::<TransUNetConfig>::METHOD => {
                type $config = BaselineConfig<TransUNetConfig>;
                let $variant = PretrainedModel::TransUNet;
                Some($value)
            }
            BaselineConfig::<SwinUNetConfig>::METHOD => {
                type $config = BaselineConfig<SwinUNetConfig>;
                let $variant = PretrainedModel::SwinUNet;
                Some($value)
            }
            _ => None,
        }
    };
}

impl PretrainedModel {
    /// Loads a trained network and, for a method with a foundation, the foundation's checkpoint.
    ///
    /// # Errors
    ///
    /// [`ModelError::MissingFoundation`] or [`ModelError::UnusedFoundation`] if a checkpoint of a
    /// foundation is missing or superfluous, [`ModelError::UnknownMethod`] for a network of a
    /// program of your own; otherwise as [`SamLst::from_pretrained`].
    pub fn load(
        network: impl AsRef<Path>,
        foundation: Option<&Path>,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let network = network.as_ref();
        let metadata = NetworkMetadata::read(network)?;
        Self::check_foundation(&metadata, network, foundation)?;
        let method = metadata.method.as_str();
        let baseline = of_baseline!(method, C, variant => C::load(network, device).map(variant));
        if let Some(loaded) = baseline {
            return loaded;
        }
        let sam = foundation.expect("checked: the method has a foundation");
        if metadata.method == SamTuningConfig::METHOD {
            return SamTuningConfig::from_pretrained(sam, network, device).map(Self::Tuned);
        }
        if metadata.method == UNetLadderConfig::METHOD {
            return UNetLadderConfig::from_pretrained(sam, network, device).map(Self::UNetLadder);
        }
        SamLst::from_pretrained(sam, network, device).map(Self::Ladder)
    }

    /// Whether a trained network needs the checkpoint of a foundation; `None` if its method is unknown.
    pub fn needs_foundation(metadata: &NetworkMetadata) -> Option<bool> {
        match metadata.method.as_str() {
            SamLstConfig::METHOD | SamTuningConfig::METHOD | UNetLadderConfig::METHOD => Some(true),
            method => of_baseline!(method, C, _variant => C::METHOD).map(|_| false),
        }
    }

    /// Checks whether a trained network is of a known method and has a foundation's checkpoint if,
    /// and only if, it needs one. Reads no tensors.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn check_foundation(
        metadata: &NetworkMetadata,
        network: &Path,
        foundation: Option<&Path>,
    ) -> Result<(), ModelError> {
        let (path, method) = (network.to_owned(), metadata.method.clone());
        let Some(needs_foundation) = Self::needs_foundation(metadata) else {
            return Err(ModelError::UnknownMethod { path, method });
        };
        match (needs_foundation, foundation) {
            (true, None) => Err(ModelError::MissingFoundation { path, method }),
            (false, Some(foundation)) => {
                let foundation = foundation.to_owned();
                Err(ModelError::UnusedFoundation { path, method, foundation })
            }
            _ => Ok(()),
        }
    }

    /// Number of classes of a trained network, including the background.
    ///
    /// # Errors
    ///
    /// [`ModelError::UnknownMethod`] for a network of a program of your own, [`ModelError::Weights`]
    /// if its configuration is damaged.
    pub fn num_classes(metadata: &NetworkMetadata) -> Result<usize, ModelError> {
        let method = metadata.method.as_str();
        let baseline = of_baseline!(method, C, _variant => {
            metadata.config::<C>().map(|config| config.num_classes())
        });
        if let Some(classes) = baseline {
            return classes;
        }
        Ok(match method {
            SamTuningConfig::METHOD => metadata.config::<SamTuningConfig>()?.num_classes(),
            UNetLadderConfig::METHOD => metadata.config::<UNetLadderConfig>()?.num_classes(),
            _ => metadata.config::<SamLstConfig>()?.num_classes(),
        })
    }

    /// The task that the network is trained for, if the checkpoint says so.
    pub fn task(&self) -> Option<&Task> {
        of_any!(self, model => model.task.as_ref())
    }

    /// The foundation, to set its precision; `None` for a method without one.
    pub fn foundation_mut(&mut self) -> Option<&mut Foundation> {
        match self {
            Self::Ladder(model) => Some(&mut model.foundation),
            Self::Tuned(model) => model.foundation.as_mut(),
            Self::UNetLadder(model) => Some(&mut model.foundation),
            _ => None,
        }
    }

    /// The foundation; `None` for a method without one.
    pub fn foundation(&self) -> Option<&Foundation> {
        match self {
            Self::Ladder(model) => Some(&model.foundation),
            Self::Tuned(model) => model.foundation.as_ref(),
            Self::UNetLadder(model) => Some(&model.foundation),
            _ => None,
        }
    }

    /// Frees this model's foundation if another model has the same one, and uses that.
    pub fn share_foundation(&mut self, other: &Self) {
        if let (Some(own), Some(other)) = (self.foundation_mut(), other.foundation())
            && own.cache_name() == other.cache_name()
        {
            *own = other.clone();
        }
    }

    /// As [`SegmentationModel::embedding_cache`].
    ///
    /// # Errors
    ///
    /// [`CacheError`] if the folder can neither be read nor created.
    pub fn embedding_cache(
        &self,
        folder: impl AsRef<Path>,
        precision: EmbeddingPrecision,
        limit_bytes: Option<u64>,
    ) -> Result<Option<EmbeddingCache>, CacheError> {
        of_any!(self, model => model.embedding_cache(folder, precision, limit_bytes))
    }

    /// Adds this model to the ensemble of a segmenter, as [`Segmenter::with_model`].
    ///
    /// # Errors
    ///
    /// [`EnsembleError`] if it does not fit the others.
    pub fn add_to<'a>(&'a self, segmenter: Segmenter<'a>) -> Result<Segmenter<'a>, EnsembleError> {
        of_any!(self, model => segmenter.with_model(model))
    }

    /// A segmenter of this model, as [`Segmenter::new`].
    ///
    /// # Panics
    ///
    /// As [`Segmenter::new`].
    pub fn segmenter(&self, config: SegmentationConfig) -> Segmenter<'_> {
        of_any!(self, model => Segmenter::new(model, config))
    }
}
