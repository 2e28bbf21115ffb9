use super::EmbeddingPrecision;
use burn::tensor::{Device, Tensor, TensorData};
use sam_lst_datasets::ndarray::{Array2, Array3, ArrayView2, ArrayView3, Axis};
use sam_lst_datasets::{DatasetDescription, Grid, Interpolation, map_channels, resample};
use serde::{Deserialize, Serialize};
use std::borrow::Borrow;

/// The task that a ladder is trained for: the classes of its masks, and the preprocessing of
/// slices. It is saved in ladder checkpoints, so that volumes are preprocessed as in training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// Intensities, labels, organs and splits.
    pub dataset: DatasetDescription,
    /// Resampling of slices.
    pub geometry: SliceGeometry,
    /// Precision to which embeddings are rounded, whether they come from a cache or were just
    /// computed. Version 0.1.0 trained with `f16` and did not record it.
    #[serde(default = "f16")]
    pub embedding_precision: EmbeddingPrecision,
    /// How logits became classes in the evaluation of the training.
    #[serde(default)]
    pub output: OutputResampling,
}

/// How low-resolution logits become a class for each pixel of a slice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputResampling {
    /// As in the released code: logits are resized to the network's input size, the class map is
    /// their argmax, and the class map is resized to the slice by nearest neighbour.
    #[default]
    Reference,
    /// Logits are resized to the slice's own size before the argmax: smoother borders.
    Logits,
}

fn f16() -> EmbeddingPrecision {
    EmbeddingPrecision::F16
}

/// How slices are resampled to the network's input size. Images use cubic interpolation, labels the
/// nearest neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SliceGeometry {
    /// Intermediate size, at which finer detail is lost; `None` to resample to the network's size
    /// directly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_size: Option<usize>,
    /// Alignment of the pixel grids.
    pub grid: Grid,
}

impl SliceGeometry {
    /// The geometry of the released code: first to 224 x 224, with aligned corners as in
    /// `scipy.ndimage.zoom`.
    pub fn released() -> Self {
        Self { train_size: Some(224), grid: Grid::CornerAligned }
    }

    /// Directly to the network's size, with half-pixel centres as within the network.
    pub fn direct() -> Self {
        Self { train_size: None, grid: Grid::HalfPixel }
    }

    /// Resamples a slice to the network's input size.
    ///
    /// # Shapes
    ///
    /// - slice: `[channels, rows, columns]`
    /// - output: `[channels, input_size, input_size]`
    pub fn image(&self, slice: ArrayView3<'_, f32>, input_size: usize) -> Array3<f32> {
        let cubic = |pixels: ArrayView2<'_, f32>, size: usize| {
            resample(pixels, [size; 2], Interpolation::Cubic, self.grid)
        };
        map_channels(slice, |channel| match self.train_size {
            Some(size) => cubic(cubic(channel, size).view(), input_size),
            None => cubic(channel, input_size),
        })
    }

    /// Resamples a label to the size of the low-resolution logits, by way of the sizes that the
    /// image is resampled to.
    ///
    /// # Shapes
    ///
    /// - label: `[rows, columns]`
    /// - output: `[logits_size, logits_size]`
    pub fn label(
        &self,
        label: ArrayView2<'_, u8>,
        input_size: usize,
        logits_size: usize,
    ) -> Array2<u8> {
        let sizes = self.train_size.into_iter().chain([input_size, logits_size]);
        sizes.fold(label.to_owned(), |label, size| {
            resample(label.view(), [size; 2], Interpolation::Nearest, self.grid)
        })
    }

    /// Cache key: differs whenever the results of [`image`](Self::image) can differ.
    pub(crate) fn key(&self, input_size: usize) -> Vec<u8> {
        format!("{self:?} {input_size}").into_bytes()
    }
}

/// Stacks slices into a batch of images with three channels, which are equal for a slice with one.
///
/// # Shapes
///
/// - slices: each `[channels, S, S]`, with one channel or three
/// - output: `[B, 3, S, S]`
pub(crate) fn images(
    slices: &[impl Borrow<Array3<f32>>],
    size: usize,
    device: &Device,
) -> Tensor<4> {
    let is_grey = |slice: &Array3<f32>| slice.len_of(Axis(0)) == 1;
    // Grey slices are copied once and repeated on the device.
    let channels = if slices.iter().all(|slice| is_grey(slice.borrow())) { 1 } else { 3 };
    let mut pixels: Vec<f32> = Vec::with_capacity(slices.len() * channels * size * size);
    for slice in slices {
        let slice = slice.borrow();
        let repeated = if is_grey(slice) { channels } else { 1 };
        (0..repeated).for_each(|_| pixels.extend(slice));
    }
    let data = TensorData::new(pixels, [slices.len(), channels, size, size]);
    Tensor::<4>::from_data(data, device).expand([slices.len(), 3, size, size])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_is_repeated_in_all_three_channels() {
        let slice = Array3::from_shape_fn((1, 2, 2), |(_, row, column)| (2 * row + column) as f32);
        let images = images(&[slice.clone(), slice + 10.0], 2, &Device::flex());
        let values: Vec<f32> = images.into_data().iter::<f32>().collect();
        assert_eq!(values[..4], values[4..8]);
        assert_eq!(values[12..16], [10.0, 11.0, 12.0, 13.0]);
        assert_eq!(values.len(), 24);
    }

    #[test]
    fn colours_are_kept_in_a_batch_with_a_grey_slice() {
        let grey = Array3::from_shape_fn((1, 1, 1), |_| 5.0);
        let colours = Array3::from_shape_fn((3, 1, 1), |(channel, ..)| channel as f32);
        let images = images(&[grey, colours], 1, &Device::flex());
        let values: Vec<f32> = images.into_data().iter::<f32>().collect();
        assert_eq!(values, [5.0, 5.0, 5.0, 0.0, 1.0, 2.0]);
    }

    #[test]
    fn a_label_is_resampled_through_the_sizes_of_the_image() {
        let label = Array2::from_shape_fn((9, 9), |(row, column)| (row * 9 + column) as u8);
        let geometry = SliceGeometry { train_size: Some(3), grid: Grid::CornerAligned };
        let out = geometry.label(label.view(), 9, 3);
        assert_eq!(out, ndarray_of([[0, 4, 8], [36, 40, 44], [72, 76, 80]]));
        assert_eq!(SliceGeometry::direct().label(label.view(), 9, 9), label);
    }

    fn ndarray_of(rows: [[u8; 3]; 3]) -> Array2<u8> {
        Array2::from_shape_fn((3, 3), |(row, column)| rows[row][column])
    }
}
