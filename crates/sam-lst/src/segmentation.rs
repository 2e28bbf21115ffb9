use crate::{
    CacheError, CachedViews, Embedder, EmbeddingCache, Ladder, ResNetSide, SamLst, SideEncoder,
    SliceGeometry, SliceHash, SliceView,
};
use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use datasets::ndarray::{Array2, Array3, ArrayView2, Axis};
use datasets::{Interpolation, View, Volume, resample};
use sam_nn::resize_bilinear;
use serde::{Deserialize, Serialize};
use std::borrow::Borrow;

/// How low-resolution logits become a class for each pixel of a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputResampling {
    /// As the released code: logits to the network's size, the largest makes the class, and the class map goes to the
    /// slice's size by nearest neighbours.
    Reference,
    /// Logits to the slice's own size, where the largest makes the class: smoother borders.
    Logits,
}

/// How a volume is segmented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegmentationConfig {
    /// How slices become the network's input: as in training.
    pub geometry: SliceGeometry,
    /// How its output becomes classes.
    pub output: OutputResampling,
    /// Slices that go through the network at once.
    pub batch_size: usize,
}

impl SegmentationConfig {
    /// Class maps as the released code makes them, four slices at once.
    pub fn new(geometry: SliceGeometry) -> Self {
        Self {
            geometry,
            output: OutputResampling::Reference,
            batch_size: 4,
        }
    }
}

/// Grey slices as a batch of images.
///
/// # Shapes
///
/// - slices: each `[S, S]`
/// - output: `[B, 3, S, S]`
pub(crate) fn images(
    slices: &[impl Borrow<Array2<f32>>],
    size: usize,
    device: &Device,
) -> Tensor<4> {
    let pixels: Vec<f32> = slices
        .iter()
        .flat_map(|slice| slice.borrow().iter().copied())
        .collect();
    let grey = TensorData::new(pixels, [slices.len(), 1, size, size]);
    Tensor::<4>::from_data(grey, device).expand([slices.len(), 3, size, size])
}

/// Segments volumes with a model.
///
/// ```no_run
/// use burn::tensor::Device;
/// use sam_lst::{Dataset, DatasetDescription, SamLst, SegmentationConfig, Segmenter, SliceGeometry};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let dataset = Dataset::open("Synapse", DatasetDescription::synapse())?;
/// let volumes = dataset.read(&dataset.all_cases()[0])?;
/// let model = SamLst::from_pretrained("sam_vit_b_01ec64.pth", "ladder.safetensors", &Device::flex())?;
/// let config = SegmentationConfig::new(SliceGeometry::released());
/// let classes = Segmenter::new(&model, config).segment(&volumes.image, |_| {})?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Segmenter<'a, S: SideEncoder = ResNetSide> {
    model: &'a SamLst<S>,
    ladder: Ladder<S>,
    config: SegmentationConfig,
    embedder: Embedder<'a>,
}

impl<'a, S: SideEncoder> Segmenter<'a, S> {
    /// A segmenter that computes every embedding.
    ///
    /// # Panics
    ///
    /// If the batch size is zero.
    pub fn new(model: &'a SamLst<S>, config: SegmentationConfig) -> Self {
        assert!(config.batch_size > 0, "at least one slice at once");
        Self {
            model,
            ladder: model.ladder.valid(),
            config,
            embedder: Embedder::new(&model.foundation),
        }
    }

    /// Takes embeddings from a cache of this model's foundation, where training slices' and those of earlier runs are, and
    /// keeps there what it computes.
    pub fn with_cache(self, cache: &'a EmbeddingCache) -> Self {
        Self {
            embedder: self.embedder.with_cache(cache, CachedViews::IDENTITY),
            ..self
        }
    }

    /// What gives the embeddings.
    pub fn embedder(&self) -> &Embedder<'a> {
        &self.embedder
    }

    /// Segments a volume slice by slice. `progress` is told how many slices are done.
    ///
    /// # Errors
    ///
    /// [`CacheError`] if the cache cannot be read any more.
    pub fn segment(
        &mut self,
        image: &Volume<f32>,
        mut progress: impl FnMut(usize),
    ) -> Result<Volume<u8>, CacheError> {
        let Self {
            model,
            ladder,
            config,
            embedder,
        } = self;
        let [slices, rows, columns] = image.shape();
        let size = model.config().input_size;
        let device = model.foundation.device();
        let mut classes = Array3::zeros((slices, rows, columns));
        for start in (0..slices).step_by(config.batch_size) {
            let batch: Vec<ArrayView2<'_, f32>> = (start..slices.min(start + config.batch_size))
                .map(|slice| image.voxels().index_axis(Axis(0), slice))
                .collect();
            let inputs: Vec<Array2<f32>> = batch
                .iter()
                .map(|slice| config.geometry.image(slice.view(), size))
                .collect();
            let images = images(&inputs, size, &device);
            let embedding = match ladder.fusion().uses_sam() {
                true => {
                    let views: Vec<SliceView> = batch
                        .iter()
                        .map(|slice| {
                            SliceView::new(
                                SliceHash::new(slice.view()),
                                View::Identity,
                                config.geometry,
                                size,
                            )
                        })
                        .collect();
                    Some(embedder.embed(images.clone(), &views)?)
                }
                false => None,
            };
            let prediction = ladder.forward(images, embedding);
            let (shape, map) = match config.output {
                OutputResampling::Reference => ([size, size], prediction.full_size(size)),
                OutputResampling::Logits => (
                    [rows, columns],
                    resize_bilinear(prediction.logits, [rows, columns]),
                ),
            };
            let map = map.argmax(1).into_data(); // [B, 1, height, width]
            let map: Vec<u8> = map.iter::<i64>().map(|class| class as u8).collect();
            for (i, map) in map.chunks_exact(shape[0] * shape[1]).enumerate() {
                let map = ArrayView2::from_shape((shape[0], shape[1]), map)
                    .expect("as many as asked for");
                let map = match config.output {
                    OutputResampling::Reference => resample(
                        map,
                        [rows, columns],
                        Interpolation::Nearest,
                        config.geometry.grid,
                    ),
                    OutputResampling::Logits => map.to_owned(),
                };
                classes.index_axis_mut(Axis(0), start + i).assign(&map);
            }
            progress(start + batch.len());
        }
        Ok(image.with_voxels(classes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datasets::Grid;

    #[test]
    fn a_grey_slice_is_every_colour() {
        let slice = Array2::from_shape_fn((2, 2), |(row, column)| (2 * row + column) as f32);
        let images = images(&[slice.clone(), slice + 10.0], 2, &Device::flex());
        let values: Vec<f32> = images.into_data().iter::<f32>().collect();
        assert_eq!(values[..4], values[4..8]);
        assert_eq!(values[12..16], [10.0, 11.0, 12.0, 13.0]);
        assert_eq!(values.len(), 24);
    }

    #[test]
    fn a_label_goes_through_the_images_sizes() {
        let label = Array2::from_shape_fn((9, 9), |(row, column)| (row * 9 + column) as u8);
        let geometry = SliceGeometry {
            train_size: Some(3),
            grid: Grid::CornerAligned,
        };
        let out = geometry.label(label.view(), 9, 3);
        assert_eq!(out, ndarray_of([[0, 4, 8], [36, 40, 44], [72, 76, 80]]));
        assert_eq!(SliceGeometry::direct().label(label.view(), 9, 9), label);
    }

    fn ndarray_of(rows: [[u8; 3]; 3]) -> Array2<u8> {
        Array2::from_shape_fn((3, 3), |(row, column)| rows[row][column])
    }
}
