//! How training varies slices.

use crate::pose::Pose;
use crate::random::{Purpose, generator, next_below, random_below};
use crate::view::{Degrees, Reflection, View};
use ndarray::Array3;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// How training varies the slices it sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", from = "AugmentationText")]
pub enum Augmentation {
    /// Slices are seen as they are.
    None,
    /// The published views: the identity, reflections, and rotations.
    #[default]
    Released,
    /// Small affine transformations that keep an abdomen upright and its organs on their sides, and
    /// changes of brightness, contrast and noise. The foundation encodes the unchanged slice; its
    /// features are moved with the slice. So there is one embedding for each slice, however many poses
    /// there are. Changes of intensity reach only what does not come from the foundation.
    Upright,
}

/// Configurations of earlier versions have `true` or `false`.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected \"none\", \"released\" or \"upright\"")]
enum AugmentationText {
    Flag(bool),
    Name(AugmentationName),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum AugmentationName {
    None,
    Released,
    Upright,
}

impl From<AugmentationText> for Augmentation {
    fn from(text: AugmentationText) -> Self {
        match text {
            AugmentationText::Flag(false) | AugmentationText::Name(AugmentationName::None) => {
                Self::None
            }
            AugmentationText::Flag(true) | AugmentationText::Name(AugmentationName::Released) => {
                Self::Released
            }
            AugmentationText::Name(AugmentationName::Upright) => Self::Upright,
        }
    }
}

impl Augmentation {
    /// Samples the view of example `index` in an epoch.
    ///
    /// [`Released`](Self::Released) has the released code's probabilities: each reflection 1/8, each
    /// rotation 1/160, the identity 1/4 + 1/160. [`Upright`](Self::Upright) has the identity with
    /// probability 1/5, otherwise a [`Pose`].
    pub fn draw(self, seed: u64, epoch: u64, index: u64) -> View {
        match self {
            Self::None => View::Identity,
            Self::Released => match random_below(160, Purpose::View, seed, epoch, index) {
                number @ 0..80 => View::Reflection(Reflection::ALL[(number / 20) as usize]),
                number @ 80..120 => match Degrees::try_from((number - 80) as i8 - 20) {
                    Ok(degrees) => View::Rotation(degrees),
                    Err(_) => View::Identity,
                },
                _ => View::Identity,
            },
            Self::Upright => {
                let mut generator = generator(Purpose::View, seed, epoch, index);
                match next_below(&mut generator, 5) {
                    0 => View::Identity,
                    _ => View::Pose(Pose::draw(&mut generator)),
                }
            }
        }
    }

    /// Samples the change of intensities of example `index` in an epoch; `None` unless this is
    /// [`Upright`](Self::Upright).
    pub fn draw_intensity(self, seed: u64, epoch: u64, index: u64) -> Option<IntensityChange> {
        (self == Self::Upright)
            .then(|| IntensityChange::draw(generator(Purpose::Intensity, seed, epoch, index)))
    }
}

/// A change of a slice's intensities: gamma, contrast, brightness and noise.
#[derive(Debug, Clone)]
pub struct IntensityChange {
    gamma: f32,
    contrast: f32,
    brightness: f32,
    noise: f32,
    generator: ChaCha8Rng,
}

impl IntensityChange {
    fn draw(mut generator: ChaCha8Rng) -> Self {
        let mut between = |from: f32, to: f32| {
            const STEPS: u64 = 1 << 20;
            from + (to - from) * next_below(&mut generator, STEPS) as f32 / STEPS as f32
        };
        Self {
            gamma: between(-0.25, 0.25).exp(),
            contrast: between(0.8, 1.25),
            brightness: between(-0.08, 0.08),
            noise: between(-0.04, 0.04).max(0.0),
            generator,
        }
    }

    /// Changes an image, whose intensities stay between their smallest and largest value. All channels
    /// change in the same way, except for the noise.
    pub fn apply(mut self, image: &mut Array3<f32>) {
        let limits =
            image.iter().fold([f32::INFINITY, f32::NEG_INFINITY], |[low, high], &pixel| {
                [low.min(pixel), high.max(pixel)]
            });
        let [low, high] = limits;
        let range = high - low;
        if !range.is_finite() || range <= 0.0 {
            return;
        }
        image.mapv_inplace(|pixel| (pixel - low) / range);
        let centre = image.mean().unwrap_or(0.0);
        for pixel in image.iter_mut() {
            // The sum of 4 uniform numbers is nearly normal; its variance is 1/3.
            let noise = if self.noise > 0.0 {
                let bits = next_below(&mut self.generator, u64::MAX);
                let parts = [0, 16, 32, 48].map(|shift| (bits >> shift & 0xffff) as f32 / 65536.0);
                (parts.iter().sum::<f32>() - 2.0) * 3.0_f32.sqrt() * self.noise
            } else {
                0.0
            };
            let bent = pixel.powf(self.gamma);
            let stretched = (bent - centre) * self.contrast + centre + self.brightness;
            *pixel = (stretched + noise).clamp(0.0, 1.0) * range + low;
        }
    }
}
