use crate::{Geometry, Volume};
use ndarray::{Array2, Array3, Array4, ArrayView2, ArrayView3, ArrayViewMut3, Axis, stack};

/// The intensities of a case: one channel, or three, such as red, green and blue.
///
/// A network with three input channels receives three as they are, and one three times.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    voxels: Array4<f32>,
    geometry: Option<Geometry>,
}

impl Image {
    /// Creates an image from voxels `[channels, slices, rows, columns]`. The geometry is `None` if
    /// the source has none, such as a photograph.
    ///
    /// # Panics
    ///
    /// If there are not one or three channels, or voxels and geometry have different shapes.
    pub fn new(voxels: Array4<f32>, geometry: Option<Geometry>) -> Self {
        let (channels, slices, rows, columns) = voxels.dim();
        assert!(matches!(channels, 1 | 3), "expected one or three channels, found {channels}");
        if let Some(geometry) = &geometry {
            assert_eq!([slices, rows, columns], geometry.shape(), "voxels of the geometry's shape");
        }
        Self { voxels, geometry }
    }

    /// The voxels, `[channels, slices, rows, columns]`.
    pub fn voxels(&self) -> &Array4<f32> {
        &self.voxels
    }

    /// Number of channels: 1 or 3.
    pub fn channels(&self) -> usize {
        self.voxels.len_of(Axis(0))
    }

    /// One channel, `[slices, rows, columns]`.
    ///
    /// # Panics
    ///
    /// If the channel does not exist.
    pub fn channel(&self, channel: usize) -> ArrayView3<'_, f32> {
        self.voxels.index_axis(Axis(0), channel)
    }

    pub(crate) fn channels_mut(&mut self) -> impl Iterator<Item = ArrayViewMut3<'_, f32>> {
        self.voxels.axis_iter_mut(Axis(0))
    }

    /// One slice, `[channels, rows, columns]`.
    ///
    /// # Panics
    ///
    /// If the slice does not exist.
    pub fn slice(&self, slice: usize) -> ArrayView3<'_, f32> {
        self.voxels.index_axis(Axis(1), slice)
    }

    /// All slices, `[channels, rows, columns]` each.
    pub fn slices(&self) -> impl ExactSizeIterator<Item = ArrayView3<'_, f32>> {
        self.voxels.axis_iter(Axis(1))
    }

    /// Some of the slices, without a geometry.
    ///
    /// # Panics
    ///
    /// If a slice does not exist.
    pub fn select_slices(&self, slices: &[usize]) -> Self {
        Self::new(self.voxels.select(Axis(1), slices), None)
    }

    /// Number of slices, rows and columns.
    pub fn shape(&self) -> [usize; 3] {
        let (_, slices, rows, columns) = self.voxels.dim();
        [slices, rows, columns]
    }

    /// The geometry, `None` if the source has none.
    pub fn geometry(&self) -> Option<&Geometry> {
        self.geometry.as_ref()
    }

    /// Millimetres between slices, rows and columns, `None` if the source has no geometry.
    pub fn spacing_mm(&self) -> Option<[f64; 3]> {
        self.geometry.as_ref().map(Geometry::spacing_mm)
    }

    /// Creates a volume of other voxels with the same geometry.
    ///
    /// # Panics
    ///
    /// If `voxels` has another shape.
    pub fn with_voxels<U>(&self, voxels: Array3<U>) -> Volume<U> {
        let shape: [usize; 3] = voxels.dim().into();
        assert_eq!(shape, self.shape(), "voxels of the image's shape");
        Volume::new(voxels, self.geometry.clone())
    }
}

/// One channel.
impl From<Volume<f32>> for Image {
    fn from(volume: Volume<f32>) -> Self {
        let (voxels, geometry) = volume.into_parts();
        Self::new(voxels.insert_axis(Axis(0)), geometry)
    }
}

/// Applies a function to each channel and stacks the results.
///
/// # Shapes
///
/// - input and output: `[channels, rows, columns]`
///
/// # Panics
///
/// If there is no channel, or the results have different shapes.
pub fn map_channels<T: Copy>(
    channels: ArrayView3<'_, f32>,
    function: impl FnMut(ArrayView2<'_, f32>) -> Array2<T>,
) -> Array3<T> {
    let mapped: Vec<Array2<T>> = channels.outer_iter().map(function).collect();
    let views: Vec<ArrayView2<'_, T>> = mapped.iter().map(|channel| channel.view()).collect();
    stack(Axis(0), &views).expect("channels of one shape")
}
