use crate::embeddings::{CacheError, CachedViews, Embedder, EmbeddingCache, SliceHash, SliceView};
use crate::model::{
    EmbeddingPrecision, NetworkConfig, OutputResampling, SegmentationModel, SegmentationNetwork,
    SliceGeometry, Task, device_of, images,
};
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor};
use sam_lst_datasets::ndarray::{Array2, Array3, ArrayView2, ArrayView3, Axis};
use sam_lst_datasets::{
    Grid, Image, Interpolation, Pixel, Pose, View, Volume, map_channels, resample,
};
use sam_lst_sam_nn::resize_bilinear;
use serde::{Deserialize, Serialize};
use std::fmt::Debug;

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
    /// Small poses in which each slice is seen besides the slice as it is, from 0 to
    /// [`Pose::MAX_AT_INFERENCE`]; the class of a pixel is that of the largest mean probability. The
    /// foundation sees the slice once, and its features are moved with the slice.
    #[serde(default)]
    pub poses: usize,
}

impl SegmentationConfig {
    /// Output resampling of the released code, four slices in a batch, embeddings as computed.
    pub fn new(geometry: SliceGeometry) -> Self {
        Self {
            geometry,
            output: OutputResampling::Reference,
            batch_size: 4,
            embedding_precision: EmbeddingPrecision::F32,
            poses: 0,
        }
    }

    /// Slices, embeddings and output as in the training of a network; otherwise as
    /// [`new`](Self::new).
    pub fn of_task(task: &Task) -> Self {
        Self {
            embedding_precision: task.embedding_precision,
            output: task.output,
            ..Self::new(task.geometry)
        }
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
    networks: Vec<Member>,
    classes: usize,
    device: Device,
    input_size: usize,
    config: SegmentationConfig,
    /// `None` if no network uses an embedding.
    embedder: Option<Embedder<'a>>,
    evaluates_uncertainty: bool,
    has_movable_features: bool,
}

/// A network whose probabilities are averaged with those of the others.
#[derive(Debug)]
struct Member {
    network: Box<dyn LogitsPredictor>,
    uses_embedding: bool,
}

impl Member {
    /// Logits at the size of the maps.
    fn logits(
        &self,
        images: Tensor<4>,
        embedding: Option<Tensor<4>>,
        map_size: [usize; 2],
    ) -> Tensor<4> {
        let embedding = embedding.filter(|_| self.uses_embedding);
        resize_bilinear(self.network.logits(images, embedding), map_size)
    }
}

/// Why a model cannot join an ensemble.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnsembleError {
    /// Another number of classes.
    #[error("networks of {expected} and of {found} classes cannot be combined")]
    Classes {
        /// Classes of the first model.
        expected: usize,
        /// Classes of this model.
        found: usize,
    },
    /// Another size of the input.
    #[error(
        "networks for inputs of {expected} x {expected} and of {found} x {found} pixels cannot be \
         combined"
    )]
    InputSize {
        /// Side of the first model's input in pixels.
        expected: usize,
        /// Side of this model's input in pixels.
        found: usize,
    },
    /// Another foundation, or other features of it.
    #[error("networks over different foundations, or over different features, cannot be combined")]
    Foundation,
}

/// The result of a slice.
struct SliceMaps {
    classes: Array2<u8>,
    uncertainty: Option<Array2<f32>>,
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
    /// If the batch size is zero, or there are more poses than [`Pose::MAX_AT_INFERENCE`].
    pub fn new<N: SegmentationNetwork>(
        model: &'a SegmentationModel<N>,
        config: SegmentationConfig,
    ) -> Self {
        assert!(config.batch_size > 0, "at least one slice in a batch");
        assert!(config.poses <= Pose::MAX_AT_INFERENCE, "at most eight poses");
        let mut segmenter = Self {
            networks: Vec::new(),
            classes: model.config().num_classes(),
            device: device_of(&model.network),
            input_size: model.config().input_size(),
            config,
            embedder: None,
            evaluates_uncertainty: false,
            has_movable_features: true,
        };
        segmenter.add(model);
        segmenter
    }

    /// Adds a model to an ensemble, whose mean probabilities decide the classes. All models with a
    /// foundation must have the same one, which sees each slice once for all.
    ///
    /// Call it before [`with_cache`](Self::with_cache).
    ///
    /// # Errors
    ///
    /// [`EnsembleError`] if the model does not fit the others.
    pub fn with_model<N: SegmentationNetwork>(
        mut self,
        model: &'a SegmentationModel<N>,
    ) -> Result<Self, EnsembleError> {
        let (classes, size) = (model.config().num_classes(), model.config().input_size());
        if classes != self.classes {
            return Err(EnsembleError::Classes { expected: self.classes, found: classes });
        }
        if size != self.input_size {
            return Err(EnsembleError::InputSize { expected: self.input_size, found: size });
        }
        if let (Some(embedder), Some(foundation)) = (&self.embedder, model.embedding_foundation())
            && embedder.foundation().cache_name() != foundation.cache_name()
        {
            return Err(EnsembleError::Foundation);
        }
        self.add(model);
        Ok(self)
    }

    fn add<N: SegmentationNetwork>(&mut self, model: &'a SegmentationModel<N>) {
        let foundation = model.embedding_foundation();
        let network = Box::new(model.network.valid());
        self.has_movable_features &= model.config().has_movable_features();
        self.networks.push(Member { network, uses_embedding: foundation.is_some() });
        if let (None, Some(foundation)) = (&self.embedder, foundation) {
            self.embedder = Some(Embedder::new(foundation, self.config.embedding_precision));
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

    /// Makes [`evaluate_each`](Self::evaluate_each) pass on the uncertainty of each case.
    pub fn with_uncertainty(self) -> Self {
        Self { evaluates_uncertainty: true, ..self }
    }

    pub(crate) fn evaluates_uncertainty(&self) -> bool {
        self.evaluates_uncertainty
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
        progress: impl FnMut(usize),
    ) -> Result<Volume<u8>, CacheError> {
        self.segment_volume(image, None, progress)
    }

    /// Segments a volume as [`segment`](Self::segment) and says how uncertain each pixel is: the
    /// entropy of the mean probabilities over poses and networks, divided by that of equal
    /// probabilities, so that it lies in `[0, 1]`.
    ///
    /// # Errors
    ///
    /// [`CacheError`] if the cache cannot be read.
    pub fn segment_with_uncertainty(
        &mut self,
        image: &Image,
        progress: impl FnMut(usize),
    ) -> Result<(Volume<u8>, Volume<f32>), CacheError> {
        let [slices, rows, columns] = image.shape();
        let mut uncertainty = Array3::zeros((slices, rows, columns));
        let classes = self.segment_volume(image, Some(&mut uncertainty), progress)?;
        Ok((classes, image.with_voxels(uncertainty)))
    }

    fn segment_volume(
        &mut self,
        image: &Image,
        mut uncertainty: Option<&mut Array3<f32>>,
        mut progress: impl FnMut(usize),
    ) -> Result<Volume<u8>, CacheError> {
        let [slices, rows, columns] = image.shape();
        let mut classes = Array3::zeros((slices, rows, columns));
        for start in (0..slices).step_by(self.config.batch_size) {
            let end = slices.min(start + self.config.batch_size);
            let batch: Vec<ArrayView3<'_, f32>> =
                (start..end).map(|slice| image.slice(slice)).collect();
            let maps = self.maps(&batch, uncertainty.is_some())?;
            for (slice, maps) in (start..end).zip(maps) {
                classes.index_axis_mut(Axis(0), slice).assign(&maps.classes);
                if let (Some(all), Some(map)) = (&mut uncertainty, maps.uncertainty) {
                    all.index_axis_mut(Axis(0), slice).assign(&map);
                }
            }
            progress(end);
        }
        Ok(image.with_voxels(classes))
    }

    /// The results of each slice of a batch, at the slice's own size.
    fn maps(
        &mut self,
        batch: &[ArrayView3<'_, f32>],
        with_uncertainty: bool,
    ) -> Result<Vec<SliceMaps>, CacheError> {
        let SegmentationConfig { geometry, output, poses, .. } = self.config;
        let size = self.input_size;
        let slice_size = batch.first().map_or([0, 0], |slice| [slice.dim().1, slice.dim().2]);
        let map_size = match output {
            OutputResampling::Reference => [size, size],
            OutputResampling::Logits => slice_size,
        };
        let inputs: Vec<Array3<f32>> =
            batch.iter().map(|slice| geometry.image(slice.view(), size)).collect();
        let images = images(&inputs, size, &self.device);
        let embedding = self.embedding(batch, &images)?;
        let (classes, uncertainty) = match &self.networks[..] {
            [network] if poses == 0 && !with_uncertainty => {
                let logits = network.logits(images, embedding, map_size);
                let classes = logits.argmax(1).into_data(); // [B, 1, height, width]
                (classes.iter::<i64>().map(|class| class as u8).collect(), None)
            }
            _ => {
                let sums = self.summed_probabilities(&inputs, images, embedding, map_size);
                let of_pixels = PixelProbabilities {
                    sums: &sums,
                    classes: self.classes,
                    pixels: map_size[0] * map_size[1],
                };
                (of_pixels.most_probable(), with_uncertainty.then(|| of_pixels.entropies()))
            }
        };
        let plane = |pixels: usize| pixels * map_size[0] * map_size[1];
        let maps = (0..batch.len()).map(|slice| {
            let range = plane(slice)..plane(slice + 1);
            let at_slice_size = |interpolation| match output {
                OutputResampling::Reference => Some((interpolation, geometry.grid)),
                OutputResampling::Logits => None,
            };
            SliceMaps {
                classes: resized(
                    &classes[range.clone()],
                    map_size,
                    slice_size,
                    at_slice_size(Interpolation::Nearest),
                ),
                uncertainty: uncertainty.as_ref().map(|uncertainty: &Vec<f32>| {
                    let linear = at_slice_size(Interpolation::Linear);
                    resized(&uncertainty[range], map_size, slice_size, linear)
                }),
            }
        });
        Ok(maps.collect())
    }

    /// The sums of probabilities over poses and networks, `[B, K, height, width]`. Where a pose moves
    /// a pixel out of the picture, it adds nothing.
    fn summed_probabilities(
        &self,
        inputs: &[Array3<f32>],
        images: Tensor<4>,
        embedding: Option<Tensor<4>>,
        map_size: [usize; 2],
    ) -> Vec<f32> {
        let mut sums = self.probabilities(images, embedding.clone(), map_size);
        for pose in Pose::at_inference(self.config.poses) {
            let (images, embedding) = self.in_pose(pose, inputs, embedding.clone());
            let mut moved = self.probabilities(images, embedding, map_size);
            pose.move_back(&mut moved, map_size);
            sums.iter_mut().zip(moved).for_each(|(sum, value)| *sum += value);
        }
        sums
    }

    /// The sums of the networks' probabilities, `[B, K, height, width]`.
    fn probabilities(
        &self,
        images: Tensor<4>,
        embedding: Option<Tensor<4>>,
        map_size: [usize; 2],
    ) -> Vec<f32> {
        let of_networks = self
            .networks
            .iter()
            .map(|network| softmax(network.logits(images.clone(), embedding.clone(), map_size), 1));
        let sum = of_networks.reduce(|sum, other| sum + other).expect("at least one network");
        sum.into_data().iter::<f32>().collect()
    }

    /// The networks' input and the foundation's features of slices in a pose.
    fn in_pose(
        &self,
        pose: Pose,
        inputs: &[Array3<f32>],
        embedding: Option<Tensor<4>>,
    ) -> (Tensor<4>, Option<Tensor<4>>) {
        let moved = |input: &Array3<f32>| map_channels(input.view(), |channel| pose.image(channel));
        let moved: Vec<Array3<f32>> = inputs.iter().map(moved).collect();
        let images = images(&moved, self.input_size, &self.device);
        let embedding = embedding.zip(self.embedder.as_ref()).map(|(embedding, embedder)| {
            if self.has_movable_features {
                embedder.move_to_poses(embedding, &vec![Some(pose); inputs.len()])
            } else {
                embedder.embed_uncached(images.clone())
            }
        });
        (images, embedding)
    }

    /// The foundation's embedding of a batch, where a network uses one.
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

/// Probabilities of the classes of each pixel of each slice, up to a factor of each pixel.
struct PixelProbabilities<'a> {
    /// `[B, K, pixels]`
    sums: &'a [f32],
    classes: usize,
    pixels: usize,
}

impl PixelProbabilities<'_> {
    /// What `function` makes of the probabilities of each pixel, up to a factor.
    fn map<T>(&self, function: impl Fn(&[f32]) -> T) -> Vec<T> {
        let mut of_classes = vec![0.0; self.classes];
        let mut results = Vec::with_capacity(self.sums.len() / self.classes);
        for slice in self.sums.chunks_exact(self.classes * self.pixels) {
            for pixel in 0..self.pixels {
                for (class, value) in of_classes.iter_mut().enumerate() {
                    *value = slice[class * self.pixels + pixel];
                }
                results.push(function(&of_classes));
            }
        }
        results
    }

    /// The class with the largest probability, of equal ones the first.
    fn most_probable(&self) -> Vec<u8> {
        self.map(|of_classes| {
            let better =
                |best, class| if of_classes[class] > of_classes[best] { class } else { best };
            (0..of_classes.len()).fold(0, better) as u8
        })
    }

    /// The entropy of the probabilities, divided by that of equal ones.
    fn entropies(&self) -> Vec<f32> {
        let largest = (self.classes.max(2) as f32).ln();
        self.map(|of_classes| {
            let sum: f32 = of_classes.iter().sum();
            let terms = of_classes.iter().map(|value| value / sum).filter(|share| *share > 0.0);
            let entropy: f32 = terms.map(|share| -share * share.ln()).sum();
            (entropy / largest).clamp(0.0, 1.0)
        })
    }
}

/// A map at the size of the slice.
fn resized<T: Pixel>(
    map: &[T],
    map_size: [usize; 2],
    slice_size: [usize; 2],
    how: Option<(Interpolation, Grid)>,
) -> Array2<T> {
    let map = ArrayView2::from_shape(map_size, map).expect("as many pixels as the map has");
    match how {
        Some((interpolation, grid)) => resample(map, slice_size, interpolation, grid),
        None => map.to_owned(),
    }
}
