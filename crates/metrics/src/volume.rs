/// A volume of class labels with its voxel spacing. The last axis is contiguous, as in a C array or
/// NumPy.
#[derive(Debug, Clone, Copy)]
pub struct LabelVolume<'a> {
    labels: &'a [u8],
    shape: [usize; 3],
    spacing: [f64; 3],
}

/// Why a label volume is invalid, or why two volumes cannot be compared.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum VolumeError {
    /// The number of labels does not match the shape.
    #[error("a label volume of shape {shape:?} needs {expected} labels, found {found}")]
    Length {
        /// The shape.
        shape: [usize; 3],
        /// Its number of voxels.
        expected: VoxelCount,
        /// The number of labels.
        found: usize,
    },
    /// A spacing is not a positive number.
    #[error("voxel spacing must be positive and finite, found {found:?}")]
    Spacing {
        /// The spacing.
        found: [f64; 3],
    },
    /// Prediction and label have different shapes.
    #[error("prediction and label must have the same shape, found {prediction:?} and {label:?}")]
    Shapes {
        /// The prediction's shape.
        prediction: [usize; 3],
        /// The label's shape.
        label: [usize; 3],
    },
    /// Prediction and label have different spacings.
    #[error("prediction and label must have the same spacing, found {prediction:?} and {label:?}")]
    Spacings {
        /// The prediction's spacing.
        prediction: [f64; 3],
        /// The label's spacing.
        label: [f64; 3],
    },
}

/// A number of voxels; `None` if it overflows `usize`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VoxelCount(Option<usize>);

impl std::fmt::Display for VoxelCount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(count) => write!(f, "{count}"),
            None => write!(f, "more than {}", usize::MAX),
        }
    }
}

impl<'a> LabelVolume<'a> {
    /// Creates a volume measured in voxels: spacing 1 along each axis.
    ///
    /// # Errors
    ///
    /// [`VolumeError::Length`] if the number of labels does not match `shape`.
    pub fn in_voxels(labels: &'a [u8], shape: [usize; 3]) -> Result<Self, VolumeError> {
        Self::in_mm(labels, shape, [1.0; 3])
    }

    /// Creates a volume measured in millimetres, with `spacing_mm` between voxel centres along each
    /// axis.
    ///
    /// # Errors
    ///
    /// [`VolumeError::Length`] if the number of labels does not match `shape`,
    /// [`VolumeError::Spacing`] if a spacing is not positive and finite.
    pub fn in_mm(
        labels: &'a [u8],
        shape: [usize; 3],
        spacing_mm: [f64; 3],
    ) -> Result<Self, VolumeError> {
        let count = shape.iter().try_fold(1_usize, |n, &axis| n.checked_mul(axis));
        if count != Some(labels.len()) {
            return Err(VolumeError::Length {
                shape,
                expected: VoxelCount(count),
                found: labels.len(),
            });
        }
        if !spacing_mm.iter().all(|s| s.is_finite() && *s > 0.0) {
            return Err(VolumeError::Spacing { found: spacing_mm });
        }
        Ok(Self { labels, shape, spacing: spacing_mm })
    }

    /// Number of voxels along each axis.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// Distance between voxel centres along each axis, in voxels for a volume from
    /// [`in_voxels`](Self::in_voxels) and in millimetres for one from [`in_mm`](Self::in_mm).
    pub fn spacing(&self) -> [f64; 3] {
        self.spacing
    }

    pub(crate) fn labels(&self) -> &'a [u8] {
        self.labels
    }
}
