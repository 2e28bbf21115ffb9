use crate::distance_transform::squared_distances;
use crate::surface::{Region, surface};
use crate::{LabelVolume, VolumeError};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::fmt;

/// In which of the two volumes a class occurs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Presence {
    /// In prediction and label.
    Both,
    /// In the label only: it was missed.
    LabelOnly,
    /// In the prediction only: a false positive.
    PredictionOnly,
    /// In neither.
    Neither,
}

impl fmt::Display for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Both => "both",
            Self::LabelOnly => "label_only",
            Self::PredictionOnly => "prediction_only",
            Self::Neither => "neither",
        })
    }
}

/// Which way surface distances are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the prediction's surface to the nearest point of the label's.
    ToLabel,
    /// From the label's surface to the nearest point of the prediction's.
    ToPrediction,
}

/// How prediction and label agree on one class.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Voxels of the class in the prediction.
    pub prediction_voxels: usize,
    /// Voxels of the class in the label.
    pub label_voxels: usize,
    /// Voxels of the class in both.
    pub common_voxels: usize,
    /// Distances between the surfaces, where both have one.
    pub surface_distances: Option<SurfaceDistances>,
}

impl Comparison {
    /// In which of the two volumes the class occurs.
    pub fn presence(&self) -> Presence {
        match (self.prediction_voxels > 0, self.label_voxels > 0) {
            (true, true) => Presence::Both,
            (false, true) => Presence::LabelOnly,
            (true, false) => Presence::PredictionOnly,
            (false, false) => Presence::Neither,
        }
    }

    /// Dice similarity coefficient, `2 |P and L| / (|P| + |L|)`; none where the class is in neither volume.
    pub fn dsc(&self) -> Option<f64> {
        let sum = self.prediction_voxels + self.label_voxels;
        (sum > 0).then(|| 2.0 * self.common_voxels as f64 / sum as f64)
    }

    /// Relative volume error, `(|P| - |L|) / |L|`; none where the class is not in the label.
    pub fn volume_error(&self) -> Option<f64> {
        let (prediction, label) = (self.prediction_voxels as f64, self.label_voxels as f64);
        (self.label_voxels > 0).then(|| (prediction - label) / label)
    }
}

/// Distances from each surface voxel of one volume to the nearest of the other, in the volume's unit.
#[derive(Debug, Clone, PartialEq)]
pub struct SurfaceDistances {
    /// Ascending; not empty.
    to_label: Vec<f64>,
    /// Ascending; not empty.
    to_prediction: Vec<f64>,
}

impl SurfaceDistances {
    /// The distances in one direction, ascending.
    pub fn directed(&self, direction: Direction) -> &[f64] {
        match direction {
            Direction::ToLabel => &self.to_label,
            Direction::ToPrediction => &self.to_prediction,
        }
    }

    /// Hausdorff distance: the largest in either direction (HD100).
    pub fn hausdorff(&self) -> f64 {
        self.larger_percentile(100.0)
    }

    /// The percentile of both directions' distances pooled: medpy's HD95 at `percent = 95`.
    ///
    /// # Panics
    ///
    /// If `percent` is not in `[0, 100]`.
    pub fn pooled_percentile(&self, percent: f64) -> f64 {
        let mut pooled = [self.to_label.as_slice(), &self.to_prediction].concat();
        pooled.sort_unstable_by(f64::total_cmp);
        percentile(&pooled, percent)
    }

    /// The larger of the two directions' percentiles, which one large surface cannot hide.
    ///
    /// # Panics
    ///
    /// If `percent` is not in `[0, 100]`.
    pub fn larger_percentile(&self, percent: f64) -> f64 {
        percentile(&self.to_label, percent).max(percentile(&self.to_prediction, percent))
    }

    /// Average surface distance in one direction: medpy's `asd(prediction, label)` is that to the label.
    pub fn mean(&self, direction: Direction) -> f64 {
        let distances = self.directed(direction);
        distances.iter().sum::<f64>() / distances.len() as f64
    }

    /// Average symmetric surface distance: the mean of the two directions' means, medpy's `assd`.
    pub fn mean_of_both(&self) -> f64 {
        (self.mean(Direction::ToLabel) + self.mean(Direction::ToPrediction)) / 2.0
    }

    /// Surface Dice: the share of both surfaces' voxels that lie within `tolerance` of the other (Nikolov et al.,
    /// arXiv 1809.04430, counting voxels instead of areas).
    pub fn surface_dice(&self, tolerance: f64) -> f64 {
        let within = |distances: &[f64]| distances.partition_point(|&d| d <= tolerance);
        let close = within(&self.to_label) + within(&self.to_prediction);
        close as f64 / (self.to_label.len() + self.to_prediction.len()) as f64
    }
}

/// Linear interpolation between the nearest ranks, as NumPy's `percentile`.
fn percentile(ascending: &[f64], percent: f64) -> f64 {
    assert!(
        (0.0..=100.0).contains(&percent),
        "a percentile lies in [0, 100], found {percent}"
    );
    let place = percent / 100.0 * (ascending.len() - 1) as f64;
    let below = place as usize;
    let above = (below + 1).min(ascending.len() - 1);
    ascending[below] + (place - below as f64) * (ascending[above] - ascending[below])
}

/// Compares prediction and label on one class.
///
/// Work and memory follow the smallest box around the class, not the volume.
///
/// # Errors
///
/// [`VolumeError::Shapes`] or [`VolumeError::Spacings`] if the volumes do not lie on one grid.
pub fn compare(
    prediction: &LabelVolume<'_>,
    label: &LabelVolume<'_>,
    class: u8,
) -> Result<Comparison, VolumeError> {
    if prediction.shape() != label.shape() {
        return Err(VolumeError::Shapes {
            prediction: prediction.shape(),
            label: label.shape(),
        });
    }
    if prediction.spacing() != label.spacing() {
        return Err(VolumeError::Spacings {
            prediction: prediction.spacing(),
            label: label.spacing(),
        });
    }
    let Some(region) = Region::around([prediction, label], class) else {
        return Ok(Comparison {
            prediction_voxels: 0,
            label_voxels: 0,
            common_voxels: 0,
            surface_distances: None,
        });
    };
    let masks = [prediction, label].map(|volume| region.mask(volume, class));
    let [prediction_voxels, label_voxels] =
        [0, 1].map(|i| masks[i].iter().filter(|&&inside| inside).count());
    let common_voxels = masks[0]
        .iter()
        .zip(&masks[1])
        .filter(|&(&p, &l)| p && l)
        .count();
    let surfaces = [0, 1].map(|i| surface(&masks[i], region.shape));
    let surface_distances = (prediction_voxels > 0 && label_voxels > 0).then(|| {
        let distances = |from: &[usize], to: &[usize]| -> Vec<f64> {
            let squared = squared_distances(to, region.shape, label.spacing());
            let mut distances: Vec<f64> = from.iter().map(|&voxel| squared[voxel].sqrt()).collect();
            distances.sort_unstable_by(f64::total_cmp);
            distances
        };
        SurfaceDistances {
            to_label: distances(&surfaces[0], &surfaces[1]),
            to_prediction: distances(&surfaces[1], &surfaces[0]),
        }
    });
    Ok(Comparison {
        prediction_voxels,
        label_voxels,
        common_voxels,
        surface_distances,
    })
}

/// Compares prediction and label on several classes, on all threads, in the order of `classes`.
///
/// # Errors
///
/// As [`compare`].
pub fn compare_all(
    prediction: &LabelVolume<'_>,
    label: &LabelVolume<'_>,
    classes: &[u8],
) -> Result<Vec<Comparison>, VolumeError> {
    classes
        .par_iter()
        .map(|&class| compare(prediction, label, class))
        .collect()
}
