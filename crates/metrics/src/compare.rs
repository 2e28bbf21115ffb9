use crate::distance_transform::squared_distances;
use crate::statistics::{mean, percentile};
use crate::surface::{Region, surface};
use crate::{LabelVolume, VolumeError};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::fmt;

/// In which of the two volumes a class occurs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Presence {
    /// In both prediction and label.
    Both,
    /// In the label only: a false negative.
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

/// The direction in which surface distances are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From each voxel of the prediction's surface to the nearest voxel of the label's.
    ToLabel,
    /// From each voxel of the label's surface to the nearest voxel of the prediction's.
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
    /// Distances between the surfaces; `None` unless the class is in both volumes.
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

    /// Dice similarity coefficient, `2 |P and L| / (|P| + |L|)`; `None` if the class is in neither
    /// volume.
    pub fn dsc(&self) -> Option<f64> {
        dice_coefficient(self.prediction_voxels, self.label_voxels, self.common_voxels)
    }

    /// Relative volume error, `(|P| - |L|) / |L|`; `None` if the class is not in the label.
    pub fn volume_error(&self) -> Option<f64> {
        let (prediction, label) = (self.prediction_voxels as f64, self.label_voxels as f64);
        (self.label_voxels > 0).then(|| (prediction - label) / label)
    }
}

/// Dice similarity coefficient of voxel counts; `None` if the class is in neither volume.
fn dice_coefficient(predicted: usize, truth: usize, common: usize) -> Option<f64> {
    let sum = predicted + truth;
    (sum > 0).then(|| 2.0 * common as f64 / sum as f64)
}

/// Distances from each surface voxel of one volume to the nearest surface voxel of the other, in
/// the volumes' unit.
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

    /// Hausdorff distance: the largest distance in either direction (HD100).
    pub fn hausdorff(&self) -> f64 {
        self.larger_percentile(100.0)
    }

    /// The percentile of the pooled distances of both directions: medpy's HD95 at `percent = 95`.
    ///
    /// # Panics
    ///
    /// If `percent` is not in `[0, 100]`.
    pub fn pooled_percentile(&self, percent: f64) -> f64 {
        let mut pooled = [self.to_label.as_slice(), &self.to_prediction].concat();
        pooled.sort_unstable_by(f64::total_cmp);
        percentile(&pooled, percent)
    }

    /// The larger of the two directions' percentiles. Unlike the pooled percentile, it is not
    /// dominated by the volume with the larger surface.
    ///
    /// # Panics
    ///
    /// If `percent` is not in `[0, 100]`.
    pub fn larger_percentile(&self, percent: f64) -> f64 {
        percentile(&self.to_label, percent).max(percentile(&self.to_prediction, percent))
    }

    /// Average surface distance in one direction. [`Direction::ToLabel`] gives medpy's
    /// `asd(prediction, label)`.
    pub fn mean(&self, direction: Direction) -> f64 {
        mean(self.directed(direction)).expect("a surface has at least one voxel")
    }

    /// Average symmetric surface distance: the mean of the two directions' means, medpy's `assd`.
    pub fn mean_of_both(&self) -> f64 {
        (self.mean(Direction::ToLabel) + self.mean(Direction::ToPrediction)) / 2.0
    }

    /// Surface Dice: the fraction of both surfaces' voxels that lie within `tolerance` of the other
    /// surface (Nikolov et al., arXiv 1809.04430, but counting voxels instead of areas).
    pub fn surface_dice(&self, tolerance: f64) -> f64 {
        let within = |distances: &[f64]| distances.partition_point(|&d| d <= tolerance);
        let close = within(&self.to_label) + within(&self.to_prediction);
        close as f64 / (self.to_label.len() + self.to_prediction.len()) as f64
    }
}

/// Computes the Dice similarity coefficient of one class, in one pass and without surface
/// distances; `None` if the class is in neither volume.
///
/// ```
/// use sam_lst_metrics::dice;
///
/// assert_eq!(dice(&[0, 1, 1, 2], &[0, 1, 0, 2], 1), Some(2.0 / 3.0));
/// assert_eq!(dice(&[0, 1, 1, 2], &[0, 1, 0, 2], 3), None);
/// ```
///
/// # Panics
///
/// If `predicted` and `truth` differ in length.
pub fn dice(predicted: &[u8], truth: &[u8], class: u8) -> Option<f64> {
    assert_eq!(
        predicted.len(),
        truth.len(),
        "predicted and truth must have the same length, found {} and {}",
        predicted.len(),
        truth.len()
    );
    let (mut predicted_voxels, mut true_voxels, mut common_voxels) = (0, 0, 0);
    for (&predicted, &truth) in predicted.iter().zip(truth) {
        let (in_prediction, in_truth) = (predicted == class, truth == class);
        predicted_voxels += usize::from(in_prediction);
        true_voxels += usize::from(in_truth);
        common_voxels += usize::from(in_prediction && in_truth);
    }
    dice_coefficient(predicted_voxels, true_voxels, common_voxels)
}

/// Compares prediction and label on one class.
///
/// After a scan for the bounding box of the class, time and memory are proportional to that box,
/// not to the volume.
///
/// # Errors
///
/// [`VolumeError::Shapes`] or [`VolumeError::Spacings`] if the volumes are not on the same grid.
pub fn compare(
    prediction: &LabelVolume<'_>,
    label: &LabelVolume<'_>,
    class: u8,
) -> Result<Comparison, VolumeError> {
    if prediction.shape() != label.shape() {
        return Err(VolumeError::Shapes { prediction: prediction.shape(), label: label.shape() });
    }
    if prediction.spacing() != label.spacing() {
        return Err(VolumeError::Spacings {
            prediction: prediction.spacing(),
            label: label.spacing(),
        });
    }
    let Some(region) = Region::bounding([prediction, label], class) else {
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
    let common_voxels = masks[0].iter().zip(&masks[1]).filter(|&(&p, &l)| p && l).count();
    let is_picture = label.shape()[0] == 1;
    let surfaces = [0, 1].map(|i| surface(&masks[i], region.shape, is_picture));
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
    Ok(Comparison { prediction_voxels, label_voxels, common_voxels, surface_distances })
}

/// Compares prediction and label on several classes in parallel; results are in the order of
/// `classes`.
///
/// # Errors
///
/// As [`compare`].
pub fn compare_all(
    prediction: &LabelVolume<'_>,
    label: &LabelVolume<'_>,
    classes: &[u8],
) -> Result<Vec<Comparison>, VolumeError> {
    classes.par_iter().map(|&class| compare(prediction, label, class)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn dice_of_equal_disjoint_and_absent_classes() {
        let truth = [0, 1, 1, 2, 2, 2];
        assert_eq!(dice(&truth, &truth, 1), Some(1.0));
        assert_eq!(dice(&[1, 0, 0, 0, 2, 2], &truth, 1), Some(0.0));
        assert_eq!(dice(&[1, 0, 0, 0, 2, 2], &truth, 2), Some(0.8));
        // In one of the two only, then in neither.
        assert_eq!(dice(&[3, 0, 0, 0, 0, 0], &truth, 3), Some(0.0));
        assert_eq!(dice(&[0; 6], &truth, 2), Some(0.0));
        assert_eq!(dice(&truth, &truth, 9), None);
        assert_eq!(dice(&[], &[], 0), None);
    }

    #[test]
    #[should_panic(expected = "must have the same length, found 3 and 2")]
    fn dice_of_different_lengths_panics() {
        dice(&[0, 1, 1], &[0, 1], 1);
    }

    proptest! {
        #[test]
        fn dice_equals_the_dsc_of_a_comparison(
            labels in prop::collection::vec((0_u8..3, 0_u8..3), 0..40),
            class in 0_u8..4,
        ) {
            let (prediction, label): (Vec<u8>, Vec<u8>) = labels.into_iter().unzip();
            let shape = [1, 1, label.len()];
            let volume = |labels| LabelVolume::in_voxels(labels, shape).expect("fits");
            let comparison =
                compare(&volume(&prediction), &volume(&label), class).expect("same grid");
            prop_assert_eq!(dice(&prediction, &label, class), comparison.dsc());
        }
    }
}
