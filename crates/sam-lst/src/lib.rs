#![doc = include_str!("../../../README.md")]

mod batches;
mod config;
mod embedder;
mod embedding_cache;
mod evaluation;
mod foundation;
mod ladder;
mod memory;
mod model;
mod optimization;
mod pictures;
mod sam;
mod segmentation;
mod side_encoder;
mod task;
mod threads;
mod training;
pub mod weights;

pub use batches::{Batch, Batches, Waiting};
pub use config::{ConfigError, PixelScale, SamLstConfig, SideConfig};
pub use datasets::{Dataset, DatasetDescription, PhantomConfig, Volume};
pub use embedder::{CachedViews, CachedViewsError, Embedder, SliceHash, SliceView};
pub use embedding_cache::{
    CacheError, CachePrecision, EmbeddingCache, EmbeddingKey, EmbeddingKind, Insertion,
};
pub use evaluation::{EvaluationError, FolderEvaluation, evaluate_folders, write_reports};
pub use foundation::{Foundation, FoundationPrecision, PrecisionError};
pub use gated_fusion::Fusion;
pub use ladder::Ladder;
pub use losses::{CrossEntropyDiceLoss, CrossEntropyDiceLossConfig, LossParts, SoftDiceLoss};
pub use mask_decoder::{
    DecoderTuning, MaskDecoderConfig, MaskPrediction, PointLabel, Points, Prompts,
};
pub use memory::peak_memory_bytes;
pub use metrics::{Protocol, Report};
pub use model::SamLst;
pub use optimization::{OptimizationConfig, OptimizationError, OptimizerConfig, WarmupPolynomial};
pub use pictures::{outlined, radiological, side_by_side};
pub use resnet_side::{ResNetSide, ResNetSideConfig};
pub use sam::{Sam, SamConfig};
pub use sam_encoder::{SamEncoder, SamEncoderConfig};
pub use segmentation::{OutputResampling, SegmentationConfig, Segmenter};
pub use side_encoder::SideEncoder;
pub use task::{SliceGeometry, Task};
pub use threads::compute_on_this_thread;
#[cfg(feature = "tui")]
pub use training::TrainingScreen;
pub use training::{
    CacheConfig, Trained, TrainingConfig, TrainingConfigError, TrainingError, TrainingEvent,
    TrainingFolders, TrainingPlan, TrainingStep, TrainingValidation, embed, train, train_beside,
};

/// The rooms of the house, each for itself.
pub mod rooms {
    pub use datasets;
    pub use gated_fusion;
    pub use losses;
    pub use mask_decoder;
    pub use metrics;
    pub use resnet_side;
    pub use sam_encoder;
    pub use sam_nn;
}
