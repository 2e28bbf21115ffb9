use crate::{Comparison, Direction, LabelVolume, Presence, VolumeError, compare_all};
use serde::{Deserialize, Serialize};
use std::fmt;

/// How a case is scored. A table without its protocol's name is not comparable with another.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// What the published tables of Synapse were made with: medpy's `dc`, `hd95` and `asd`, in voxels whatever the spacing. An organ
    /// that is predicted where there is none scores (1, 0); one that is not predicted, whether it is there or not,
    /// scores (0, 0). An HD95 of 0 for a missed organ makes a worse model look better.
    Reference,
    /// Distances in millimetres. An organ that is in one of the two volumes only has a DSC and a surface Dice of 0 and no
    /// HD95; one that is in neither is left out.
    Strict(StrictOptions),
}

/// What [`Protocol::Strict`] leaves open.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StrictOptions {
    /// How the two directions' distances become one HD95.
    pub hd95: DirectedDistances,
    /// How far surfaces may lie apart and still count as equal in the surface Dice.
    pub surface_dice_tolerance_mm: f64,
}

/// How two sets of directed surface distances become one percentile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DirectedDistances {
    /// The larger of the two percentiles, as the Hausdorff distance is the larger of two maxima.
    Larger,
    /// The percentile of both sets together, as medpy's.
    Pooled,
}

impl Default for StrictOptions {
    fn default() -> Self {
        Self {
            hd95: DirectedDistances::Larger,
            surface_dice_tolerance_mm: 1.0,
        }
    }
}

impl Protocol {
    /// The strict protocol with its usual options: the larger percentile, a tolerance of 1 mm.
    pub fn strict() -> Self {
        Self::Strict(StrictOptions::default())
    }

    /// Its name without its options: `reference`, `strict`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Reference => "reference",
            Self::Strict(_) => "strict",
        }
    }

    /// Unit of its distances.
    pub fn unit(&self) -> &'static str {
        match self {
            Self::Reference => "voxels",
            Self::Strict(_) => "mm",
        }
    }

    /// Scores some classes of a case, on all threads, in the order of `classes`. `spacing_mm` is the distance between
    /// voxel centres along each axis, none where it is unknown.
    ///
    /// # Errors
    ///
    /// [`ScoreError`] if the volumes cannot be compared, or if [`Self::Strict`] is asked for without a spacing.
    pub fn score(
        &self,
        prediction: &[u8],
        label: &[u8],
        shape: [usize; 3],
        spacing_mm: Option<[f64; 3]>,
        classes: &[u8],
    ) -> Result<Vec<Score>, ScoreError> {
        let spacing = match self {
            Self::Reference => [1.0; 3],
            Self::Strict(_) => spacing_mm.ok_or(ScoreError::UnknownSpacing)?,
        };
        let volume = |labels| LabelVolume::in_mm(labels, shape, spacing);
        let comparisons = compare_all(&volume(prediction)?, &volume(label)?, classes)?;
        Ok(comparisons
            .iter()
            .map(|comparison| self.judge(comparison))
            .collect())
    }

    /// Scores one class from its comparison, whose distances are in this protocol's unit.
    pub fn judge(&self, comparison: &Comparison) -> Score {
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
                    ..Score::none(presence)
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

/// The name with all that numbers depend on: `reference`, `strict (HD95 larger, surface Dice at 1 mm)`.
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
                write!(f, "strict (HD95 {hd95}, surface Dice at {tolerance} mm)")
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
    /// Millimetres are asked for, and the source says nothing of the spacing.
    #[error("the strict protocol measures in millimetres, and the volumes have no voxel spacing")]
    UnknownSpacing,
}

/// One organ of one case under a protocol. What the protocol does not define for it is none.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// In which of the two volumes the organ is.
    pub presence: Presence,
    /// Dice similarity coefficient, 0 to 1.
    pub dsc: Option<f64>,
    /// 95th percentile of surface distances, in the protocol's unit.
    pub hd95: Option<f64>,
    /// Hausdorff distance, in the protocol's unit.
    pub hausdorff: Option<f64>,
    /// Average surface distance in the protocol's unit: from the prediction to the label in the reference protocol, the
    /// mean of the two directions' in the strict one.
    pub average_surface_distance: Option<f64>,
    /// Share of both surfaces within the tolerance of the other, 0 to 1.
    pub surface_dice: Option<f64>,
    /// Relative volume error: 0 is equal, 1 twice as large.
    pub volume_error: Option<f64>,
}

impl Score {
    fn none(presence: Presence) -> Self {
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

    /// Surface distances in both directions by looking at every pair of voxels.
    fn brute_force(masks: [&[u8]; 2], shape: [usize; 3], spacing: [f64; 3]) -> [Vec<f64>; 2] {
        let [_, lines, width] = shape;
        let place =
            |i: usize| [i / (lines * width), i / width % lines, i % width].map(|p| p as isize);
        let inside = |mask: &[u8], p: [isize; 3]| {
            (0..3).all(|axis| (0..shape[axis] as isize).contains(&p[axis]))
                && mask[((p[0] as usize) * lines + p[1] as usize) * width + p[2] as usize] == 1
        };
        let surfaces = masks.map(|mask| -> Vec<[isize; 3]> {
            (0..mask.len())
                .map(place)
                .filter(|&p| {
                    let open = |axis: usize, step: isize| {
                        let mut neighbour = p;
                        neighbour[axis] += step;
                        !inside(mask, neighbour)
                    };
                    inside(mask, p) && (0..3).any(|axis| open(axis, 1) || open(axis, -1))
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
                .map(|a| {
                    to.iter()
                        .map(|b| distance(a, b))
                        .fold(f64::INFINITY, f64::min)
                })
                .collect();
            distances.sort_by(f64::total_cmp);
            distances
        };
        [
            nearest(&surfaces[0], &surfaces[1]),
            nearest(&surfaces[1], &surfaces[0]),
        ]
    }

    /// NumPy's percentile, written as its documentation words it.
    fn percentile(sorted: &[f64], percent: f64) -> f64 {
        let rank = percent / 100.0 * (sorted.len() as f64 - 1.0);
        let (low, high) = (rank.floor() as usize, rank.ceil() as usize);
        sorted[low] * (1.0 - rank.fract()) + sorted[high] * rank.fract()
    }

    proptest! {
        #[test]
        fn strict_is_what_looking_at_every_pair_gives(
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
            let options = StrictOptions { surface_dice_tolerance_mm: tolerance, ..StrictOptions::default() };
            let score = Protocol::Strict(options).score(&prediction, &label, shape, Some(spacing), &[1]).expect("one grid")[0];
            let [p, l] = [&prediction, &label].map(|mask| mask.iter().filter(|&&m| m == 1).count());
            let both = prediction.iter().zip(&label).filter(|&(&a, &b)| a == 1 && b == 1).count();
            prop_assert_eq!(score.dsc, (p + l > 0).then(|| 2.0 * both as f64 / (p + l) as f64));
            prop_assert_eq!(score.volume_error, (l > 0).then(|| (p as f64 - l as f64) / l as f64));
            if p == 0 || l == 0 {
                prop_assert_eq!(score.hd95, None);
                return Ok(());
            }
            let directed = brute_force([&prediction, &label], shape, spacing);
            let larger = |percent| directed.iter().map(|d| percentile(d, percent)).fold(0.0, f64::max);
            let mean = |d: &[f64]| d.iter().sum::<f64>() / d.len() as f64;
            let close = directed.iter().flatten().filter(|&&d| d <= tolerance).count();
            let expected = [
                (score.hd95, larger(95.0)),
                (score.hausdorff, larger(100.0)),
                (score.average_surface_distance, (mean(&directed[0]) + mean(&directed[1])) / 2.0),
                (score.surface_dice, close as f64 / (directed[0].len() + directed[1].len()) as f64),
            ];
            for (ours, expected) in expected {
                prop_assert!((ours.expect("in both") - expected).abs() <= 1e-9, "{:?}, {}", ours, expected);
            }
            // The two volumes' roles are exchangeable, but for the volume error.
            let exchanged = Protocol::Strict(options).score(&label, &prediction, shape, Some(spacing), &[1]).expect("one grid")[0];
            prop_assert_eq!(exchanged.hd95, score.hd95);
            prop_assert_eq!(exchanged.dsc, score.dsc);
        }
    }
}
