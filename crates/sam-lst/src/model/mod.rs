//! Models: a [`SegmentationNetwork`] that is trained and, where it uses one, a frozen
//! [`Foundation`], combined in a [`SegmentationModel`]. [`SamLst`] is that of ladder side-tuning.

mod baseline;
mod checkpoint;
mod config;
mod embedding_precision;
mod encoder;
mod error;
mod foundation;
mod ladder;
mod network;
mod recognition;
mod sam;
mod sam_lst;
mod samed;
mod segmentation_model;
mod side_encoder;
mod side_network;
mod task;
mod tuned_sam;
mod tuning_config;
mod unet_ladder;

pub use baseline::{Baseline, BaselineConfig};
pub use checkpoint::NetworkMetadata;
pub use config::{PixelScale, SamLstConfig};
pub use embedding_precision::EmbeddingPrecision;
pub use encoder::{CustomEncoderConfig, EncoderConfig, ImageEncoder, Tap};
pub use error::{ConfigError, InvalidSetting, ModelError};
pub use foundation::{Foundation, FoundationPrecision, PrecisionError};
pub use ladder::Ladder;
pub use network::{FrozenPart, NetworkConfig, NoFoundation, SegmentationNetwork, SupervisedLogits};
pub use sam::{Sam, SamConfig};
pub use sam_lst::SamLst;
pub use segmentation_model::SegmentationModel;
pub use side_encoder::SideEncoder;
pub use side_network::{
    SideConfig, SideNetwork, SwinNeck, SwinSide, VisionTransformerSide, VisionTransformerSideConfig,
};
pub use task::{OutputResampling, SliceGeometry, Task};
pub use tuned_sam::{EncoderPart, TunedSam};
pub use tuning_config::{EncoderTuning, SamTuningConfig};
pub use unet_ladder::{UNetLadder, UNetLadderConfig};

pub(crate) use error::require;
pub(crate) use network::device_of;
pub(crate) use task::images;
