//! Normalisation of intensities, and warnings about intensities that do not fit it.

use crate::DescriptionError;
use ndarray::{ArrayBase, ArrayView3, DataMut, Ix3};
use serde::{Deserialize, Serialize};

/// How intensities are normalised to `[0, 1]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Intensity {
    /// A window from the first value, which becomes 0, to the second, which becomes 1; intensities
    /// outside are clipped. In a CT, the values are Hounsfield units.
    Window([f32; 2]),
    /// A window from the first to the second percentile of each volume, for modalities without an
    /// absolute scale, such as MRI.
    Percentiles([f32; 2]),
    /// No normalisation.
    Stored,
}

impl Intensity {
    /// Normalises a volume, or one channel of it, in place.
    pub fn apply<D: DataMut<Elem = f32>>(self, voxels: &mut ArrayBase<D, Ix3>) {
        let [low, high] = match self {
            Self::Stored => return,
            Self::Window(window) => window,
            Self::Percentiles(percents) => percentiles(voxels, percents),
        };
        // A constant volume becomes 0, without a division by zero.
        let range = if high > low { high - low } else { 1.0 };
        voxels.mapv_inplace(|voxel| (voxel.clamp(low, high) - low) / range);
    }

    pub(crate) fn check(self) -> Result<(), DescriptionError> {
        let ([low, high], limits) = match self {
            Self::Stored => return Ok(()),
            Self::Window(window) => (window, f32::MIN..=f32::MAX),
            Self::Percentiles(percents) => (percents, 0.0..=100.0),
        };
        if low < high && limits.contains(&low) && limits.contains(&high) {
            return Ok(());
        }
        Err(DescriptionError::Intensity { low: low.into(), high: high.into() })
    }
}

/// Two percentiles of the voxels, by nearest rank.
fn percentiles<D: DataMut<Elem = f32>>(voxels: &ArrayBase<D, Ix3>, percents: [f32; 2]) -> [f32; 2] {
    let mut values: Vec<f32> = voxels.iter().copied().collect();
    if values.is_empty() {
        return [0.0; 2];
    }
    percents.map(|percent| {
        let rank = (f64::from(percent) / 100.0 * (values.len() - 1) as f64).round();
        *values.select_nth_unstable_by(rank as usize, f32::total_cmp).1
    })
}

/// What a volume's intensities are before they are normalised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct IntensityRange {
    pub min: f32,
    pub max: f32,
    /// Share of the voxels that the window does not clip.
    pub inside: f32,
    /// Slices of which the window clips every voxel.
    pub clipped_slices: u32,
}

impl IntensityRange {
    /// The range of slices, `[channels, rows, columns]` each.
    pub fn of<'a>(
        slices: impl IntoIterator<Item = ArrayView3<'a, f32>>,
        intensity: Intensity,
    ) -> Self {
        let [low, high] = match intensity {
            Intensity::Window(window) => window,
            Intensity::Percentiles(_) | Intensity::Stored => [f32::MIN, f32::MAX],
        };
        let mut range = Self { min: f32::MAX, max: f32::MIN, inside: 0.0, clipped_slices: 0 };
        let (mut inside, mut voxels) = (0_usize, 0_usize);
        for slice in slices {
            let before = inside;
            voxels += slice.len();
            for &voxel in &slice {
                range.min = range.min.min(voxel);
                range.max = range.max.max(voxel);
                inside += usize::from(low < voxel && voxel < high);
            }
            range.clipped_slices += u32::from(inside == before);
        }
        range.inside = inside as f32 / voxels.max(1) as f32;
        range
    }

    /// Why the intensities are not plausible for `intensity`, and the likely remedy.
    pub fn implausible(&self, intensity: Intensity, slices: usize) -> Option<String> {
        /// A window of soft tissue contains tens of percent of an abdominal CT.
        const LEAST_INSIDE: f32 = 0.01;
        let Self { min, max, inside, clipped_slices } = *self;
        let found = format!("intensities from {min} to {max}");
        match intensity {
            _ if min > max => None, // no voxels
            Intensity::Percentiles(_) if min == max => {
                Some(format!("all voxels are {min}, so the image is empty; choose another file"))
            }
            // The published preprocessed slices of Synapse reach from -0.15 to 1.2.
            Intensity::Stored if min < -0.5 || max > 2.0 => Some(format!(
                "{found}, but `intensity = \"stored\"` expects about 0 to 1; scale them, or describe \
                 them by a window or percentiles (`sam-lst prepare` writes normalised files)"
            )),
            Intensity::Percentiles(_) | Intensity::Stored => None,
            Intensity::Window([low, high]) => {
                let window = format!("the window from {low} to {high}");
                let remedy = self.window_remedy(low);
                if low < 0.0 && min >= 0.0 {
                    return Some(format!(
                        "{found}: no voxel is below 0, although {window} begins there; {remedy}"
                    ));
                }
                if inside < LEAST_INSIDE {
                    let share = 100.0 * inside;
                    return Some(format!(
                        "{found}: only {share:.1} % of the voxels are within {window}; {remedy}"
                    ));
                }
                (clipped_slices > 0).then(|| {
                    format!("{clipped_slices} of {slices} slices lie wholly outside {window}")
                })
            }
        }
    }

    /// The likely remedy for intensities that do not fit a window that begins at `low`.
    fn window_remedy(&self, low: f32) -> &'static str {
        let Self { min, max, .. } = *self;
        if min >= -0.5 && max <= 2.0 {
            "they look normalised already, for which `intensity = \"stored\"` is right"
        } else if min >= 0.0 && max <= 255.0 {
            "they look like 8-bit grey levels: use the original volume, or set \
             `intensity = { window = [0, 255] }`"
        } else if low < 0.0 && min >= 0.0 {
            "a CT whose values begin at 0 is often stored with 1024 added: subtract 1024, or move \
             the window; for MRI use percentiles"
        } else if low < 0.0 && min < -1500.0 {
            "1024 may have been subtracted twice: add 1024, or move the window"
        } else {
            "set `intensity` to a window of this image's values"
        }
    }
}
