//! The model: a frozen foundation and a trainable ladder, combined in [`SamLst`].

mod checkpoint;
mod config;
mod embedding_precision;
mod encoder;
mod error;
mod foundation;
mod ladder;
mod recognition;
mod sam;
mod sam_lst;
mod side_encoder;
mod task;

pub use checkpoint::LadderMetadata;
pub use config::{PixelScale, SamLstConfig, SideConfig};
pub use embedding_precision::EmbeddingPrecision;
pub use encoder::{CustomEncoderConfig, EncoderConfig, ImageEncoder};
pub use error::{ConfigError, InvalidSetting, ModelError};
pub use foundation::{Foundation, FoundationPrecision, PrecisionError};
pub use ladder::Ladder;
pub use sam::{Sam, SamConfig};
pub use sam_lst::SamLst;
pub use side_encoder::SideEncoder;
pub use task::{SliceGeometry, Task};

pub(crate) use error::require;
pub(crate) use task::images;
