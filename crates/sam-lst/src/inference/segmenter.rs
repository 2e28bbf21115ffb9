use crate::embeddings::{CacheError, CachedViews, Embedder, EmbeddingCache, SliceHash, SliceView};
use crate::model::{
    EmbeddingPrecision, NetworkConfig, SegmentationModel, SegmentationNetwork, SliceGeometry, Task,
    device_of, images,
};
use burn::tensor::{Device, Tensor};
use sam_lst_datasets::ndarray::{Array2, Array3, ArrayView2, ArrayView3, Axis};
use sam_lst_datasets::{Image, Interpolation, View, Volume, resample};
use sam_lst_sam_nn::resize_bilinear;
use serde::{Deserialize, Serialize};
use std::fmt::Debug;

/// How low-resolution logits become a class for each pixel of a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputResampling {
    /// As in the released code: logits are resized to the network's input size, the class map is
    /// their argmax, and the class map is resized to the slice by nearest neighbour.
    Reference,
    /// Logits are resized to the slice's own size before the argmax: smoother borders.
    Logits,
}

/// How a volume is segmented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegmentationConfig {
    /// How slices become the network's input: the same as in training.
    pub geometry: SliceGeometry,
    /// How the network's output becomes classes.
    pub output: OutputResampling,
    /// Slices in a batch.
    pub batch_size: usize,
    /// Precision to which embeddings are rounded: the same as in training.
    pub embedding_precision: EmbeddingPrecision,
}

impl SegmentationConfig {
    /// Output resampling of the released code, four slices in a batch, embeddings as computed.
    pub fn new(geometry: SliceGeometry) -> Self {
        Self {
            geometry,
            output: OutputResampling::Reference,
            batch_size: 4,
            embedding_precision: EmbeddingPrecision::F32,
        }
    }

    /// Slices and embeddings as in the training of a network; otherwise as [`new`](Self::new).
    pub fn of_task(task: &Task) -> Self {
        Self { embedding_precision: task.embedding_precision, ..Self::new(task.geometry) }
    }
}

/// Segments volumes with a model.
///
/// ```no_run
/// use burn::tensor::Device;
/// use sam_lst::{Dataset, DatasetDescription, SamLst, SegmentationConfig, Segmenter};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let dataset = Dataset::open("Synapse", DatasetDescription::synapse())?;
/// let volumes = dataset.read(&dataset.all_cases()[0])?;
/// let model =
///     SamLst::from_pretrained("sam_vit_b_01ec64.pth", "ladder.safetensors", &Device::flex())?;
/// let task = model.task.as_ref().expect("a trained ladder");
/// let config = SegmentationConfig::of_task(task);
/// let classes = Segmenter::new(&model, config).segment(&volumes.image, |_| {})?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Segmenter<'a> {
    network: Box<dyn LogitsPredictor>,
    device: Device,
    input_size: usize,
    config: SegmentationConfig,
    /// `None` if the network uses no embedding.
    embedder: Option<Embedder<'a>>,
}

/// A network whose type is not part of the segmenter's.
trait LogitsPredictor: Debug {
    fn logits(&self, image: Tensor<4>, embedding: Option<Tensor<4>>) -> Tensor<4>;
}

impl<N: SegmentationNetwork> LogitsPredictor for N {
    fn logits(&self, image: Tensor<4>, embedding: Option<Tensor<4>>) -> Tensor<4> {
        SegmentationNetwork::logits(self, image, embedding)
    }
}

impl<'a> Segmenter<'a> {
    /// Creates a segmenter without an embedding cache.
    ///
    /// # Panics
    ///
    /// If the batch size is zero.
    pub fn new<N: SegmentationNetwork>(
        model: &'a SegmentationModel<N>,
        config: SegmentationConfig,
    ) -> Self {
        assert!(config.batch_size > 0, "at least one slice in a batch");
        let network = model.network.valid();
        Self {
            device: device_of(&network),
            network: Box::new(network),
            input_size: model.config().input_size(),
            config,
            embedder: model
                .embedding_foundation()
                .map(|foundation| Embedder::new(foundation, config.embedding_precision)),
        }
    }

    /// Reads embeddings from a cache of this model's foundation, which training and earlier runs
    /// filled, and writes those that it computes.
    ///
    /// # Panics
    ///
    /// If the cache has another precision than
    /// [`embedding_precision`](SegmentationConfig::embedding_precision), since results would then
    /// depend on what is cached.
    pub fn with_cache(self, cache: &'a EmbeddingCache) -> Self {
        let cached = |embedder: Embedder<'a>| embedder.with_cache(cache, CachedViews::IDENTITY);
        Self { embedder: self.embedder.map(cached), ..self }
    }

    /// The source of embeddings; `None` if the network uses none.
    pub fn embedder(&self) -> Option<&Embedder<'a>> {
        self.embedder.as_ref()
    }

    /// Segments a volume slice by slice into classes `0..K`. `progress` receives the number of
    /// slices that are done.
    ///
    /// # Errors
    ///
    /// [`CacheError`] if the cache cannot be read.
    pub fn segment(
        &mut self,
        image: &Image,
        mut progress: impl FnMut(usize),
    ) -> Result<Volume<u8>, CacheError> {
        let [slices, rows, columns] = image.shape();
        let mut classes = Array3::zeros((slices, rows, columns));
        for start in (0..slices).step_by(self.config.batch_size) {
            let end = slices.min(start + self.config.batch_size);
            let batch: Vec<ArrayView3<'_, f32>> =
                (start..end).map(|slice| image.slice(slice)).collect();
            for (slice, map) in (start..end).zip(self.class_maps(&batch)?) {
                classes.index_axis_mut(Axis(0), slice).assign(&map);
            }
            progress(end);
        }
        Ok(image.with_voxels(classes))
    }

    /// The class map of each slice of a batch, at the slice's own size.
    fn class_maps(&mut self, batch: &[ArrayView3<'_, f32>]) -> Result<Vec<Array2<u8>>, CacheError> {
        let SegmentationConfig { geometry, output, .. } = self.config;
        let size = self.input_size;
        let slice_size = batch.first().map_or([0, 0], |slice| [slice.dim().1, slice.dim().2]);
        let inputs: Vec<Array3<f32>> =
            batch.iter().map(|slice| geometry.image(slice.view(), size)).collect();
        let images = images(&inputs, size, &self.device);
        let embedding = self.embedding(batch, &images)?;
        let logits = self.network.logits(images, embedding);
        let map_size = match output {
            OutputResampling::Reference => [size, size],
            OutputResampling::Logits => slice_size,
        };
        let logits = resize_bilinear(logits, map_size);
        let classes = logits.argmax(1).into_data(); // [B, 1, height, width]
        let classes: Vec<u8> = classes.iter::<i64>().map(|class| class as u8).collect();
        let maps = classes.chunks_exact(map_size[0] * map_size[1]).map(|map| {
            let map = ArrayView2::from_shape((map_size[0], map_size[1]), map)
                .expect("a chunk has the map's size");
            match output {
                OutputResampling::Reference => {
                    resample(map, slice_size, Interpolation::Nearest, geometry.grid)
                }
                OutputResampling::Logits => map.to_owned(),
            }
        });
        Ok(maps.collect())
    }

    /// The foundation's embedding of a batch, where the network uses one.
    fn embedding(
        &mut self,
        batch: &[ArrayView3<'_, f32>],
        images: &Tensor<4>,
    ) -> Result<Option<Tensor<4>>, CacheError> {
        let Some(embedder) = &mut self.embedder else { return Ok(None) };
        let size = self.input_size;
        let view = |slice: &ArrayView3<'_, f32>| {
            let hash = SliceHash::new(slice.view());
            SliceView::new(hash, View::Identity, self.config.geometry, size)
        };
        let views: Vec<SliceView> = batch.iter().map(view).collect();
        embedder.embed(images.clone(), &views).map(Some)
    }
}
