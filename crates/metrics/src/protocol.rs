use crate::{Comparison, Direction, LabelVolume, Presence, VolumeError, compare_all};
use serde::{Deserialize, Serialize};
use std::fmt;

/// How a case is scored. Tables are comparable only if they were made under the same protocol, so a
/// report always names it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// The protocol of the published Synapse tables: medpy's `dc`, `hd95` and `asd`, in voxels
    /// regardless of the spacing.
    ///
    /// An organ that is predicted but absent from the label has DSC 1 and HD95 0. An organ that is
    /// not predicted has DSC 0 and HD95 0, whether or not it is in the label. An HD95 of 0 for a
    /// false negative makes a worse model look better.
    Reference,
    /// Distances in millimetres, or in voxels for images without a spacing. An organ that is in only one of the two volumes has a DSC and a
    /// surface Dice of 0 and no HD95; an organ that is in neither is excluded.
    Strict(StrictOptions),
}

/// Options of [`Protocol::Strict`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StrictOptions {
    /// How the distances of the two directions are combined into one HD95.
    pub hd95: DirectedDistances,
    /// Distance up to which surfaces count as equal in the surface Dice.
    pub surface_dice_tolerance_mm: f64,
    /// Whether distances, and the tolerance, are in voxels regardless of the spacing, for pictures and
    /// other images that have none.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub in_voxels: bool,
}

/// How two sets of directed surface distances are combined into one percentile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DirectedDistances {
    /// The larger of the two percentiles, as the Hausdorff distance is the larger of two maxima.
    Larger,
    /// The percentile of both sets pooled, as in medpy.
    Pooled,
}

impl Default for StrictOptions {
    fn default() -> Self {
        Self { hd95: DirectedDistances::Larger, surface_dice_tolerance_mm: 1.0, in_voxels: false }
    }
}

impl Protocol {
    /// The strict protocol with its default options: the larger percentile, a tolerance of 1 mm.
    pub fn strict() -> Self {
        Self::Strict(StrictOptions::default())
    }

    /// This protocol for images without a spacing: with distances in voxels.
    pub fn in_voxels(self) -> Self {
        match self {
            Self::Reference => Self::Reference,
            Self::Strict(options) => Self::Strict(StrictOptions { in_voxels: true, ..options }),
        }
    }

    /// The name without the options: `reference` or `strict`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Reference => "reference",
            Self::Strict(_) => "strict",
        }
    }

    /// The unit of distances: `voxels` or `mm`.
    pub fn unit(&self) -> &'static str {
        match self {
            Self::Reference | Self::Strict(StrictOptions { in_voxels: true, .. }) => "voxels",
            Self::Strict(_) => "mm",
        }
    }

    /// Scores classes of a case in parallel; scores are in the order of `classes`. `spacing_mm` is
    /// the distance between voxel centres along each axis, or `None` if it is unknown.
    ///
    /// # Errors
    ///
    /// [`ScoreError`] if the volumes cannot be compared, or if the protocol is in millimetres and
    /// `spacing_mm` is `None`.
    pub fn score(
        &self,
        prediction: &[u8],
        label: &[u8],
        shape: [usize; 3],
        spacing_mm: Option<[f64; 3]>,
        classes: &[u8],
    ) -> Result<Vec<Score>, ScoreError> {
        let spacing = match self {
            Self::Reference | Self::Strict(StrictOptions { in_voxels: true, .. }) => [1.0; 3],
            Self::Strict(_) => spacing_mm.ok_or(ScoreError::UnknownSpacing)?,
        };
        let volume = |labels| LabelVolume::in_mm(labels, shape, spacing);
        let comparisons = compare_all(&volume(prediction)?, &volume(label)?, classes)?;
        Ok(comparisons.iter().map(|comparison| self.score_comparison(comparison)).collect())
    }

    /// Scores one class from its comparison, whose distances must be in this protocol's
    /// [`unit`](Self::unit).
    pub fn score_comparison(&self, comparison: &Comparison) -> Score {
        let presence = comparison.presence();
        let distances = comparison.surface_distances.as_ref();
        match self {
            Self::Reference => {
                let (dsc, distance) = match presence {
                    Presence::Both => (comparison.dsc(), None),
                    Presence::PredictionOnly => (Some(1.0), Some(0.0)),
                    Presence::LabelOnly | Presence::Neither => (Some(0.0), Some(0.0)),
                };
                Score {
                    presence,
                    dsc,
                    hd95: distance.or_else(|| distances.map(|d| d.pooled_percentile(95.0))),
                    average_surface_distance: distances.map(|d| d.mean(Direction::ToLabel)),
                    ..Score::undefined(presence)
                }
            }
            Self::Strict(options) => Score {
                presence,
                dsc: comparison.dsc(),
                hd95: distances.map(|d| match options.hd95 {
                    DirectedDistances::Larger => d.larger_percentile(95.0),
                    DirectedDistances::Pooled => d.pooled_percentile(95.0),
                }),
                hausdorff: distances.map(|d| d.hausdorff()),
                average_surface_distance: distances.map(|d| d.mean_of_both()),
                surface_dice: match presence {
                    Presence::Both => {
                        distances.map(|d| d.surface_dice(options.surface_dice_tolerance_mm))
                    }
                    Presence::LabelOnly | Presence::PredictionOnly => Some(0.0),
                    Presence::Neither => None,
                },
                volume_error: comparison.volume_error(),
            },
        }
    }
}

/// The name with every option that affects the scores: `reference`, or
/// `strict (HD95 larger of both directions, surface Dice at 1 mm)`.
impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reference => f.write_str("reference"),
            Self::Strict(options) => {
                let hd95 = match options.hd95 {
                    DirectedDistances::Larger => "larger of both directions",
                    DirectedDistances::Pooled => "both directions pooled",
                };
                let tolerance = options.surface_dice_tolerance_mm;
                let unit = self.unit();
                write!(f, "strict (HD95 {hd95}, surface Dice at {tolerance} {unit})")
            }
        }
    }
}

/// Why a case cannot be scored.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ScoreError {
    /// The volumes cannot be compared.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The strict protocol needs a voxel spacing, which the volumes do not have.
    #[error(
        "cannot score in millimetres: the volumes have no voxel spacing; \
         use a protocol that measures in voxels"
    )]
    UnknownSpacing,
}

/// The scores of one organ of one case under a protocol. A value that the protocol does not define
/// is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// In which of the two volumes the organ occurs.
    pub presence: Presence,
    /// Dice similarity coefficient, 0 to 1.
    pub dsc: Option<f64>,
    /// 95th percentile of surface distances, in the protocol's unit.
    pub hd95: Option<f64>,
    /// Hausdorff distance, in the protocol's unit.
    pub hausdorff: Option<f64>,
    /// Average surface distance, in the protocol's unit: from the prediction to the label in the
    /// reference protocol, the mean of both directions in the strict protocol.
    pub average_surface_distance: Option<f64>,
    /// Fraction of both surfaces that lies within the tolerance of the other, 0 to 1.
    pub surface_dice: Option<f64>,
    /// Relative volume error: 0 for equal volumes, 1 for a prediction twice as large as the label.
    pub volume_error: Option<f64>,
}

impl Score {
    fn undefined(presence: Presence) -> Self {
        Self {
            presence,
            dsc: None,
            hd95: None,
            hausdorff: None,
            average_surface_distance: None,
            surface_dice: None,
            volume_error: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Surface distances in both directions, from every pair of surface voxels.
    fn brute_force(masks: [&[u8]; 2], shape: [usize; 3], spacing: [f64; 3]) -> [Vec<f64>; 2] {
        let [_, lines, width] = shape;
        let position =
            |i: usize| [i / (lines * width), i / width % lines, i % width].map(|p| p as isize);
        let inside = |mask: &[u8], p: [isize; 3]| {
            (0..3).all(|axis| (0..shape[axis] as isize).contains(&p[axis]))
                && mask[((p[0] as usize) * lines + p[1] as usize) * width + p[2] as usize] == 1
        };
        let surfaces = masks.map(|mask| -> Vec<[isize; 3]> {
            (0..mask.len())
                .map(position)
                .filter(|&p| {
                    let open = |axis: usize, step: isize| {
                        let mut neighbour = p;
                        neighbour[axis] += step;
                        !inside(mask, neighbour)
                    };
                    // One slice is a picture.
                    let first_axis = usize::from(shape[0] == 1);
                    inside(mask, p) && (first_axis..3).any(|axis| open(axis, 1) || open(axis, -1))
                })
                .collect()
        });
        let nearest = |from: &[[isize; 3]], to: &[[isize; 3]]| {
            let distance = |a: &[isize; 3], b: &[isize; 3]| -> f64 {
                (0..3)
                    .map(|axis| (spacing[axis] * (a[axis] - b[axis]) as f64).powi(2))
                    .sum::<f64>()
                    .sqrt()
            };
            let mut distances: Vec<f64> = from
                .iter()
                .map(|a| to.iter().map(|b| distance(a, b)).fold(f64::INFINITY, f64::min))
                .collect();
            distances.sort_by(f64::total_cmp);
            distances
        };
        [nearest(&surfaces[0], &surfaces[1]), nearest(&surfaces[1], &surfaces[0])]
    }

    /// NumPy's percentile, implemented from the formula in its documentation.
    fn percentile(sorted: &[f64], percent: f64) -> f64 {
        let rank = percent / 100.0 * (sorted.len() as f64 - 1.0);
        let (low, high) = (rank.floor() as usize, rank.ceil() as usize);
        sorted[low] * (1.0 - rank.fract()) + sorted[high] * rank.fract()
    }

    proptest! {
        #[test]
        fn strict_scores_equal_brute_force(
            shape in [1_usize..6, 1_usize..7, 1_usize..8],
            spacing in [0.4_f64..5.0, 0.4_f64..5.0, 0.4_f64..5.0],
            seed in prop::collection::vec((0_u8..3, 0_u8..3), 6 * 7 * 8),
            tolerance in 0.1_f64..6.0,
        ) {
            let count = shape.iter().product();
            let [prediction, label]: [Vec<u8>; 2] = [
                seed.iter().take(count).map(|pair| pair.0.min(1)).collect(),
                seed.iter().take(count).map(|pair| pair.1.min(1)).collect(),
            ];
            let options = StrictOptions {
                surface_dice_tolerance_mm: tolerance,
                ..StrictOptions::default()
            };
            let strict = |prediction: &[u8], label: &[u8]| {
                Protocol::Strict(options)
                    .score(prediction, label, shape, Some(spacing), &[1])
                    .expect("same grid")[0]
            };
            let score = strict(&prediction, &label);
            let [p, l] =
                [&prediction, &label].map(|mask| mask.iter().filter(|&&m| m == 1).count());
            let both = prediction.iter().zip(&label).filter(|&(&a, &b)| a == 1 && b == 1).count();
            prop_assert_eq!(score.dsc, (p + l > 0).then(|| 2.0 * both as f64 / (p + l) as f64));
            let volume_error = (l > 0).then(|| (p as f64 - l as f64) / l as f64);
            prop_assert_eq!(score.volume_error, volume_error);
            if p == 0 || l == 0 {
                prop_assert_eq!(score.hd95, None);
                return Ok(());
            }
            let directed = brute_force([&prediction, &label], shape, spacing);
            let larger =
                |percent| directed.iter().map(|d| percentile(d, percent)).fold(0.0, f64::max);
            let mean = |d: &[f64]| d.iter().sum::<f64>() / d.len() as f64;
            let close = directed.iter().flatten().filter(|&&d| d <= tolerance).count();
            let expected = [
                (score.hd95, larger(95.0)),
                (score.hausdorff, larger(100.0)),
                (score.average_surface_distance, (mean(&directed[0]) + mean(&directed[1])) / 2.0),
                (
                    score.surface_dice,
                    close as f64 / (directed[0].len() + directed[1].len()) as f64,
                ),
            ];
            for (ours, expected) in expected {
                let difference = (ours.expect("in both") - expected).abs();
                prop_assert!(difference <= 1e-9, "{:?}, {}", ours, expected);
            }
            // All scores but the volume error are symmetric in the two volumes.
            let exchanged = strict(&label, &prediction);
            prop_assert_eq!(exchanged.hd95, score.hd95);
            prop_assert_eq!(exchanged.dsc, score.dsc);
        }
    }
}
