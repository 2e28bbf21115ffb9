use datasets::ndarray::{Array2, ArrayView2};
use datasets::{DatasetDescription, Grid, Interpolation, resample};
use serde::{Deserialize, Serialize};

/// What a ladder is trained for: which labels its masks mean, and how slices become its input. A ladder checkpoint
/// carries it, so that a volume is segmented as the ladder was trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// Intensities, labels and organs; also which cases trained.
    pub dataset: DatasetDescription,
    /// Sizes.
    pub geometry: SliceGeometry,
}

/// How a slice is brought to the network's size: images by cubic interpolation, labels by nearest neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SliceGeometry {
    /// A size that slices are brought to first, whatever the network's, and lose their finer detail at; none to go to the
    /// network's at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_size: Option<usize>,
    /// Where the pixels of a size lie on those of another.
    pub grid: Grid,
}

impl SliceGeometry {
    /// The released code's: to 224 x 224 first, corners aligned as `scipy.ndimage.zoom` does.
    pub fn released() -> Self {
        Self {
            train_size: Some(224),
            grid: Grid::CornerAligned,
        }
    }

    /// To the network's size at once, half-pixel centres as the network itself resizes.
    pub fn direct() -> Self {
        Self {
            train_size: None,
            grid: Grid::HalfPixel,
        }
    }

    /// The network's input from a slice.
    ///
    /// # Shapes
    ///
    /// - slice: `[rows, columns]`
    /// - output: `[input_size, input_size]`
    pub fn image(&self, slice: ArrayView2<'_, f32>, input_size: usize) -> Array2<f32> {
        let cubic = |pixels: ArrayView2<'_, f32>, size: usize| {
            resample(pixels, [size; 2], Interpolation::Cubic, self.grid)
        };
        match self.train_size {
            Some(size) => cubic(cubic(slice, size).view(), input_size),
            None => cubic(slice, input_size),
        }
    }

    /// The label that low-resolution logits are compared with: brought to the sizes that the image goes through, then to
    /// theirs.
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

    /// Bytes that differ wherever the input that [`image`](Self::image) makes may.
    pub(crate) fn key(&self, input_size: usize) -> Vec<u8> {
        format!("{self:?} {input_size}").into_bytes()
    }
}
