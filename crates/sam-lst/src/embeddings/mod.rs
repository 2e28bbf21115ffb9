//! Embeddings of the frozen foundation: computed once per image, then read from a cache on disk.

mod cache;
mod cached_views;
mod embedder;
mod key;

pub use cache::{CacheError, EmbeddingCache, EmbeddingKind, Insertion};
pub use cached_views::{CachedViews, CachedViewsError};
pub use embedder::Embedder;
pub use key::{EmbeddingKey, SliceHash, SliceView};

pub(crate) use cache::Claim;
pub(crate) use embedder::flat_values;
