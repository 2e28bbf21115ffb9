use crate::{CacheError, EmbeddingCache, EmbeddingKey, Foundation, Insertion, SliceGeometry};
use burn::tensor::{Tensor, TensorData};
use datasets::View;
use datasets::ndarray::ArrayView2;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Which of the 44 views' embeddings are kept. What is not kept is computed each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CachedViews(usize);

impl CachedViews {
    /// All 44.
    pub const ALL: Self = Self(View::COUNT);
    /// The identity and the four reflections, which three quarters of all draws are.
    pub const DISCRETE: Self = Self(5);
    /// The identity alone.
    pub const IDENTITY: Self = Self(1);

    /// Number of views.
    pub fn count(self) -> usize {
        self.0
    }

    /// Whether a view's embeddings are kept.
    pub fn keeps(self, view: View) -> bool {
        View::all().take(self.0).any(|kept| kept == view)
    }
}

/// A text that names no views.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{found}`: expected `all`, `discrete`, `identity` or a number from 0 to 44")]
pub struct CachedViewsError {
    /// The text.
    pub found: String,
}

impl FromStr for CachedViews {
    type Err = CachedViewsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "all" => Ok(Self::ALL),
            "discrete" => Ok(Self::DISCRETE),
            "identity" => Ok(Self::IDENTITY),
            _ => match text.parse() {
                Ok(count @ 0..=View::COUNT) => Ok(Self(count)),
                _ => Err(CachedViewsError {
                    found: text.to_owned(),
                }),
            },
        }
    }
}

impl fmt::Display for CachedViews {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ALL => f.write_str("all"),
            Self::DISCRETE => f.write_str("discrete"),
            Self::IDENTITY => f.write_str("identity"),
            Self(count) => write!(f, "{count}"),
        }
    }
}

impl TryFrom<String> for CachedViews {
    type Error = CachedViewsError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<CachedViews> for String {
    fn from(views: CachedViews) -> Self {
        views.to_string()
    }
}

/// A slice's pixels and shape, by their hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SliceHash(EmbeddingKey);

impl SliceHash {
    /// The hash of a whole slice, before anything is done to it.
    pub fn new(slice: ArrayView2<'_, f32>) -> Self {
        let (rows, columns) = slice.dim();
        let shape = format!("{rows} {columns}");
        let pixels: Vec<u8> = slice.iter().flat_map(|pixel| pixel.to_le_bytes()).collect();
        Self(EmbeddingKey::new(&[shape.as_bytes(), &pixels]))
    }

    pub(crate) fn key(self) -> EmbeddingKey {
        self.0
    }
}

/// What an input of the foundation is: a slice, a view of it, and what brings it to the network's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SliceView {
    view: View,
    key: EmbeddingKey,
}

impl SliceView {
    /// A slice that is seen in `view`, then brought to `input_size` by `geometry`.
    pub fn new(slice: SliceHash, view: View, geometry: SliceGeometry, input_size: usize) -> Self {
        let name = view.to_string();
        let parts: [&[u8]; 3] = [&slice.0.bytes(), name.as_bytes(), &geometry.key(input_size)];
        Self {
            view,
            key: EmbeddingKey::new(&parts),
        }
    }

    /// The view.
    pub fn view(&self) -> View {
        self.view
    }

    /// The embedding's key.
    pub fn key(&self) -> EmbeddingKey {
        self.key
    }
}

/// Gives embeddings, from a cache where they are there and from the foundation where they are not.
///
/// With a cache in half precision every embedding is rounded to it, whether kept or not: which ones are kept, and how
/// often a run was interrupted, has no part in what is computed.
#[derive(Debug)]
pub struct Embedder<'a> {
    foundation: &'a Foundation,
    cache: Option<(&'a EmbeddingCache, CachedViews)>,
    /// Why the cache took no more.
    full: Option<Arc<CacheError>>,
    computed: usize,
}

impl<'a> Embedder<'a> {
    /// Computes every embedding.
    pub fn new(foundation: &'a Foundation) -> Self {
        Self {
            foundation,
            cache: None,
            full: None,
            computed: 0,
        }
    }

    /// Takes embeddings from `cache`, and keeps there those of `views` that it computes. The cache must have been opened
    /// with this foundation's hash.
    pub fn with_cache(self, cache: &'a EmbeddingCache, views: CachedViews) -> Self {
        Self {
            cache: Some((cache, views)),
            ..self
        }
    }

    /// Number of embeddings that were computed, not found.
    pub fn computed(&self) -> usize {
        self.computed
    }

    /// Why nothing is kept any more, if the disk or the cache's limit did not take an embedding.
    pub fn full(&self) -> Option<&CacheError> {
        self.full.as_deref()
    }

    pub(crate) fn shared_full(&self) -> Option<Arc<CacheError>> {
        self.full.clone()
    }

    /// Embeds images, of each of which `views` says what it is.
    ///
    /// # Shapes
    ///
    /// - images: `[B, 3, S, S]`, pixels in `[0, 1]`
    /// - output: `[B, C, S / 16, S / 16]`, on a device without autodiff
    ///
    /// # Errors
    ///
    /// [`CacheError::Read`] if the cache was there and cannot be read any more, [`CacheError::Foundation`] if the foundation
    /// was left on disk and cannot. A cache that cannot be written is no
    /// error: see [`full`](Self::full).
    ///
    /// # Panics
    ///
    /// If there are not as many views as images, or the cache is of another shape than the foundation's embeddings.
    pub fn embed(
        &mut self,
        images: Tensor<4>,
        views: &[SliceView],
    ) -> Result<Tensor<4>, CacheError> {
        let [batch, ..] = images.dims();
        assert_eq!(batch, views.len(), "a view for each image");
        let Some((cache, kept)) = self.cache else {
            self.computed += batch;
            return Ok(self.foundation.try_embed(images)?);
        };
        let device = images.device().inner();
        let mut found = Vec::with_capacity(batch);
        for view in views {
            found.push(cache.get(&view.key)?);
        }
        let missing: Vec<usize> = (0..batch).filter(|&i| found[i].is_none()).collect();
        if !missing.is_empty() {
            let inputs: Vec<Tensor<4>> = missing
                .iter()
                .map(|&i| images.clone().inner().narrow(0, i, 1))
                .collect();
            let embeddings = self.foundation.try_embed(Tensor::cat(inputs, 0))?;
            self.computed += missing.len();
            let values = values_for(cache, embeddings);
            let size: usize = cache.shape().iter().product();
            for (values, &i) in values.chunks_exact(size).zip(&missing) {
                if kept.keeps(views[i].view) && self.full.is_none() {
                    self.keep(cache, views[i].key, values);
                }
                found[i] = Some(cache.precision().rounded(values));
            }
        }
        let values = found.into_iter().flatten().flatten().collect::<Vec<f32>>();
        let [channels, rows, columns] = cache.shape();
        let data = TensorData::new(values, [batch, channels, rows, columns]);
        Ok(Tensor::from_data(data, &device))
    }

    fn keep(&mut self, cache: &EmbeddingCache, key: EmbeddingKey, values: &[f32]) {
        match cache.insert(key, values) {
            Ok(Insertion::Kept | Insertion::Present | Insertion::NoRoom) => {}
            Err(error) => self.full = Some(Arc::new(error)),
        }
    }
}

/// The values of embeddings, one after the other.
///
/// # Panics
///
/// If the cache is for embeddings of another shape.
pub(crate) fn values_for(cache: &EmbeddingCache, embeddings: Tensor<4>) -> Vec<f32> {
    let [_, channels, rows, columns] = embeddings.dims();
    assert_eq!(
        [channels, rows, columns],
        cache.shape(),
        "a cache for embeddings of another shape"
    );
    let values = embeddings.into_data().convert::<f32>().try_into_vec();
    values.unwrap_or_else(|error| panic!("converted to f32: {error:?}"))
}
