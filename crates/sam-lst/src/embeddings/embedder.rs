use super::{CacheError, CachedViews, EmbeddingCache, EmbeddingKey, Insertion, SliceView};
use crate::model::{EmbeddingPrecision, Foundation};
use burn::tensor::{Device, Tensor, TensorData};
use sam_lst_datasets::Pose;
use std::sync::Arc;

/// Provides embeddings: read from a cache where present, computed by the foundation otherwise.
///
/// Every embedding is rounded to one precision, that of the cache if there is one, so it does not matter
/// whether an embedding was read or computed. On the CPU, nor does it matter with which others it was
/// computed in a batch; on a GPU, that may alter its last bits.
#[derive(Debug)]
pub struct Embedder<'a> {
    foundation: &'a Foundation,
    precision: EmbeddingPrecision,
    cache: Option<(&'a EmbeddingCache, CachedViews)>,
    /// The first error of a write to the cache.
    write_error: Option<Arc<CacheError>>,
    computed: usize,
}

impl<'a> Embedder<'a> {
    /// Creates an embedder without a cache, which rounds embeddings to a precision.
    pub fn new(foundation: &'a Foundation, precision: EmbeddingPrecision) -> Self {
        Self { foundation, precision, cache: None, write_error: None, computed: 0 }
    }

    /// Reads embeddings from `cache` and writes those of `views` that it computes. The cache must
    /// have been opened for this foundation.
    ///
    /// # Panics
    ///
    /// If the cache has another precision.
    pub fn with_cache(self, cache: &'a EmbeddingCache, views: CachedViews) -> Self {
        assert_eq!(cache.precision(), self.precision, "precision of the cache and of the embedder");
        Self { cache: Some((cache, views)), ..self }
    }

    pub(crate) fn foundation(&self) -> &'a Foundation {
        self.foundation
    }

    /// Number of embeddings that were computed rather than read.
    pub fn computed(&self) -> usize {
        self.computed
    }

    /// Why nothing more is written to the cache: the disk or the size limit rejected an embedding.
    pub fn cache_write_error(&self) -> Option<&CacheError> {
        self.write_error.as_deref()
    }

    pub(crate) fn shared_cache_write_error(&self) -> Option<Arc<CacheError>> {
        self.write_error.clone()
    }

    /// Embeds images; `views` identifies each of them, and says how its features are moved.
    ///
    /// # Shapes
    ///
    /// - images: `[B, 3, S, S]`, pixels in `[0, 1]`
    /// - output: `[B, C, G, G]`, on a device without autodiff
    ///
    /// # Errors
    ///
    /// [`CacheError::Read`] if a cached embedding cannot be read, [`CacheError::Foundation`] if the
    /// foundation was offloaded and cannot be loaded again. A cache that cannot be written is not an
    /// error: see [`cache_write_error`](Self::cache_write_error).
    ///
    /// # Panics
    ///
    /// If there are not as many views as images, or the cache is for embeddings of another shape.
    pub fn embed(
        &mut self,
        images: Tensor<4>,
        views: &[SliceView],
    ) -> Result<Tensor<4>, CacheError> {
        let device = images.device();
        self.embed_with(|| images, views, &device)
    }

    /// As [`embed`](Self::embed), with images that are only computed if an embedding is missing.
    pub(crate) fn embed_with(
        &mut self,
        images: impl FnOnce() -> Tensor<4>,
        views: &[SliceView],
        device: &Device,
    ) -> Result<Tensor<4>, CacheError> {
        let batch = views.len();
        let images = || {
            let images = images();
            assert_eq!(batch, images.dims()[0], "a view for each image");
            images
        };
        let Some((cache, cached_views)) = self.cache else {
            self.computed += batch;
            let embeddings = self.rounded(self.foundation.try_embed(images())?);
            return Ok(self.moved(embeddings, views));
        };
        let mut found = Vec::with_capacity(batch);
        for view in views {
            found.push(cache.get(&view.key())?);
        }
        let missing: Vec<usize> = (0..batch).filter(|&i| found[i].is_none()).collect();
        if !missing.is_empty() {
            let images = images().inner();
            let inputs: Vec<Tensor<4>> =
                missing.iter().map(|&i| images.clone().narrow(0, i, 1)).collect();
            let embeddings = self.foundation.try_embed(Tensor::cat(inputs, 0))?;
            self.computed += missing.len();
            let values = flat_values(cache, embeddings);
            let size: usize = cache.shape().iter().product();
            for (values, &i) in values.chunks_exact(size).zip(&missing) {
                if cached_views.contains(views[i].view()) && self.write_error.is_none() {
                    self.write(cache, views[i].key(), values);
                }
                found[i] = Some(cache.precision().rounded(values));
            }
        }
        let [channels, rows, columns] = cache.shape();
        let mut values = Vec::with_capacity(batch * channels * rows * columns);
        for (mut features, view) in found.into_iter().flatten().zip(views) {
            if let Some(pose) = view.pose() {
                self.foundation.move_features(&mut features, rows, pose);
            }
            values.extend(features);
        }
        let data = TensorData::new(values, [batch, channels, rows, columns]);
        Ok(Tensor::from_data(data, &device.clone().inner()))
    }

    /// Embeddings, each moved as its view.
    fn moved(&self, embeddings: Tensor<4>, views: &[SliceView]) -> Tensor<4> {
        let poses: Vec<Option<Pose>> = views.iter().map(SliceView::pose).collect();
        self.move_to_poses(embeddings, &poses)
    }

    /// Embeddings of images, each moved as a pose moves its image.
    pub(crate) fn move_to_poses(&self, embeddings: Tensor<4>, poses: &[Option<Pose>]) -> Tensor<4> {
        if poses.iter().all(Option::is_none) {
            return embeddings;
        }
        let (shape, device) = (embeddings.dims(), embeddings.device());
        let mut values = values(embeddings);
        let [batch, _, grid, _] = shape;
        let size = values.len() / batch;
        for (features, pose) in values.chunks_exact_mut(size).zip(poses) {
            if let &Some(pose) = pose {
                self.foundation.move_features(features, grid, pose);
            }
        }
        Tensor::from_data(TensorData::new(values, shape), &device)
    }

    /// Computes embeddings without the cache.
    pub(crate) fn embed_uncached(&self, images: Tensor<4>) -> Tensor<4> {
        self.rounded(self.foundation.embed(images))
    }

    fn rounded(&self, embeddings: Tensor<4>) -> Tensor<4> {
        if self.precision == EmbeddingPrecision::F32 {
            return embeddings;
        }
        let (shape, device) = (embeddings.dims(), embeddings.device());
        let values = self.precision.rounded(&values(embeddings));
        Tensor::from_data(TensorData::new(values, shape), &device)
    }

    fn write(&mut self, cache: &EmbeddingCache, key: EmbeddingKey, values: &[f32]) {
        match cache.insert(key, values) {
            Ok(Insertion::Written | Insertion::Present | Insertion::NoRoom) => {}
            Err(error) => self.write_error = Some(Arc::new(error)),
        }
    }
}

/// The values of a batch of embeddings, one embedding after the other.
///
/// # Panics
///
/// If the cache is for embeddings of another shape.
pub(crate) fn flat_values(cache: &EmbeddingCache, embeddings: Tensor<4>) -> Vec<f32> {
    let [_, channels, rows, columns] = embeddings.dims();
    assert_eq!([channels, rows, columns], cache.shape(), "a cache for embeddings of another shape");
    values(embeddings)
}

fn values(embeddings: Tensor<4>) -> Vec<f32> {
    let values = embeddings.into_data().convert::<f32>().try_into_vec();
    values.unwrap_or_else(|error| panic!("converted to f32: {error:?}"))
}
