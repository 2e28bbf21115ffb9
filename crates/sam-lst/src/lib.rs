#![doc = include_str!("../../../README.md")]

pub mod devices;
pub mod embeddings;
pub mod evaluation;
pub mod inference;
pub mod model;
mod system;
pub mod training;
pub mod weights;

pub use image;
pub use sam_lst_backbones as backbones;
pub use sam_lst_baselines as baselines;
pub use sam_lst_datasets as datasets;
pub use sam_lst_gated_fusion as gated_fusion;
pub use sam_lst_losses as losses;
pub use sam_lst_mask_decoder as mask_decoder;
pub use sam_lst_metrics as metrics;
pub use sam_lst_peft as peft;
pub use sam_lst_resnet_side as resnet_side;
pub use sam_lst_sam_encoder as sam_encoder;
pub use sam_lst_sam_nn as sam_nn;
pub use sam_lst_tiny_vit as tiny_vit;

pub use datasets::{Dataset, DatasetDescription, PhantomConfig, Split, Volume};
pub use embeddings::{CachedViews, EmbeddingCache};
pub use evaluation::FolderPairs;
pub use gated_fusion::Fusion;
pub use inference::{PretrainedModel, SegmentationConfig, Segmenter};
pub use losses::CrossEntropyDiceLossConfig;
pub use mask_decoder::DecoderTuning;
pub use metrics::{Protocol, Report};
pub use model::{
    Foundation, FoundationPrecision, Ladder, NetworkConfig, NoFoundation, Sam, SamLst,
    SamLstConfig, SegmentationModel, SegmentationNetwork, SideEncoder, SliceGeometry,
};
pub use system::{compute_on_current_thread, peak_memory_bytes};
pub use training::{Outcome, Trained, Training, TrainingConfig, TrainingEvent, TrainingFolders};

/// Compiles and runs the code on the page.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/foundations.md")]
mod foundations_page {}
