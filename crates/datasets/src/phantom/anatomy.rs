//! The patients of a phantom dataset, as a function from a point to its tissue.

use crate::random::{Purpose, generator};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal, StandardUniform};
use std::f64::consts::TAU;

const AIR: f64 = -1000.0;
const LUNG: f64 = -850.0;
const FAT: f64 = -105.0;
const MUSCLE: f64 = 55.0;
const HEART: f64 = 110.0;
const CORTICAL_BONE: f64 = 420.0;
const SPONGY_BONE: f64 = 170.0;
/// Distance between vertebrae.
const VERTEBRA_MM: f64 = 34.0;
const LIVER: u8 = 6;

/// The anatomy of one patient. Millimetres from the centre: x to the right, y to the front, z to
/// the head.
pub struct Anatomy {
    /// Half axes of the body's elliptic cross-section.
    body: [f64; 2],
    fat_mm: f64,
    ribs_phase: f64,
    /// Centre of the vertebral bodies.
    spine: [f64; 2],
    spine_phase: f64,
    /// Height of the two domes of the diaphragm.
    dome_mm: f64,
    liver_vessels: Vessels,
    /// Standard deviation of the image noise in Hounsfield units.
    pub noise: f64,
    /// Where organs overlap, the first one has the voxel.
    organs: Vec<Organ>,
    /// Bowel loops.
    loops: Vec<Organ>,
}

/// What one slice of a patient contains.
pub struct AnatomySlice<'a> {
    anatomy: &'a Anatomy,
    z: f64,
    /// Organs and bowel loops that intersect the slice, in order of precedence.
    organs: Vec<&'a Organ>,
}

/// Branching vessels of the liver: where two waves are close to zero.
struct Vessels {
    phases: [f64; 2],
    /// What they add to the liver's Hounsfield units.
    contrast: f64,
}

/// An ellipsoid with waves on its surface, rotated about the z axis.
struct Organ {
    label: u8,
    centre: [f64; 3],
    radii: [f64; 3],
    /// Sine and cosine of the rotation.
    rotation: [f64; 2],
    /// Direction times frequency, and phase, of the surface waves.
    waves: [[f64; 4]; 3],
    /// Curvature of the first axis towards the back, in 1/mm.
    bend: f64,
    /// Centre and radius of a ball that is cut out, as a kidney's hilum.
    hilum: Option<([f64; 3], f64)>,
    hounsfield: f64,
    core_hounsfield: f64,
    /// Whether there is gas at the front.
    gas: bool,
}

impl Organ {
    fn intersects(&self, z: f64) -> bool {
        (z - self.centre[2]).abs() <= 1.3 * self.radii[2]
    }

    /// Squared distance from the centre relative to the surface: 0 in the centre, below 1 inside.
    fn squared_distance(&self, point: [f64; 3]) -> f64 {
        if self.hilum.is_some_and(|(centre, radius)| squared(point, centre) < radius * radius) {
            return f64::INFINITY;
        }
        let [x, y, z] = point;
        let [dx, dy, dz] = [x - self.centre[0], y - self.centre[1], z - self.centre[2]];
        let [sin, cos] = self.rotation;
        let (first, second) = (cos * dx + sin * dy, cos * dy - sin * dx);
        let along = [
            first / self.radii[0],
            (second + self.bend * first * first) / self.radii[1],
            dz / self.radii[2],
        ];
        let squared: f64 = along.iter().map(|a| a * a).sum();
        if squared > 1.7 {
            return squared;
        }
        let wave = |[kx, ky, kz, phase]: [f64; 4]| (kx * x + ky * y + kz * z + phase).sin();
        squared + 0.13 * self.waves.iter().copied().map(wave).sum::<f64>() * squared.sqrt()
    }
}

/// Squared distance of two points.
fn squared(a: [f64; 3], b: [f64; 3]) -> f64 {
    a.into_iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum()
}

/// Squared distance from the centre of an ellipse relative to its surface.
fn ellipse(x: f64, y: f64, radii: [f64; 2]) -> f64 {
    (x / radii[0]).powi(2) + (y / radii[1]).powi(2)
}

struct Sampler<'a>(&'a mut ChaCha8Rng);

impl Sampler<'_> {
    fn uniform(&mut self, low: f64, high: f64) -> f64 {
        let fraction: f64 = StandardUniform.sample(self.0);
        low + (high - low) * fraction
    }

    /// A normal distribution, clamped at 2.5 standard deviations.
    fn normal(&mut self, mean: f64, deviation: f64) -> f64 {
        let normal: f64 = StandardNormal.sample(self.0);
        mean + deviation * normal.clamp(-2.5, 2.5)
    }

    /// `true` with this probability.
    fn bernoulli(&mut self, probability: f64) -> bool {
        self.uniform(0.0, 1.0) < probability
    }

    fn organ(&mut self, label: u8, centre: [f64; 3], radii: [f64; 3], hounsfield: f64) -> Organ {
        let size = self.normal(1.0, 0.1);
        let angle = self.normal(0.0, 0.25);
        let longest = radii.into_iter().fold(0.0, f64::max);
        Organ {
            label,
            centre: centre.map(|coordinate| self.normal(coordinate, 7.0)),
            radii: radii.map(|radius| size * self.normal(radius, 0.1 * radius)),
            rotation: [angle.sin(), angle.cos()],
            waves: std::array::from_fn(|_| {
                let direction: [f64; 3] = std::array::from_fn(|_| self.normal(0.0, 1.0));
                let frequency = self.uniform(2.0, 4.0) / longest;
                let [x, y, z] = direction.map(|d| d * frequency);
                [x, y, z, self.uniform(0.0, TAU)]
            }),
            bend: 0.0,
            hilum: None,
            hounsfield,
            core_hounsfield: hounsfield,
            gas: false,
        }
    }

    /// The organs of a patient, in order of precedence.
    fn organs(&mut self) -> Vec<Organ> {
        // Progress of the contrast agent from the arteries (0) to the veins (1).
        let phase = self.uniform(0.0, 1.0);
        let fatty_liver = self.bernoulli(0.2);
        let mut organs = self.vessels(phase);
        // Oesophagus.
        organs.push(self.organ(5, [-14.0, 0.0, 110.0], [8.0, 7.0, 45.0], 45.0));
        for (label, side) in [(2, 1.0), (3, -1.0)] {
            let kidney = self.kidney(label, side, phase);
            if !self.bernoulli(0.06) {
                organs.push(kidney);
            }
        }
        let bile = self.normal(12.0, 7.0);
        let gallbladder = self.organ(4, [48.0, 34.0, -2.0], [14.0, 20.0, 22.0], bile);
        if !self.bernoulli(0.25) {
            organs.push(gallbladder);
        }
        let parenchyma = self.normal(85.0, 12.0);
        let mut pancreas = self.organ(11, [-8.0, 14.0, 2.0], [56.0, 12.0, 16.0], parenchyma);
        pancreas.rotation = {
            let angle = self.normal(-0.35, 0.15);
            [angle.sin(), angle.cos()]
        };
        // It lies across the spine like an arch.
        pancreas.bend = self.normal(0.006, 0.0015);
        organs.push(pancreas);
        // Adrenal glands.
        for x in [32.0, -34.0] {
            let label = if x > 0.0 { 12 } else { 13 };
            organs.push(self.organ(label, [x, -30.0, 36.0], [8.0, 11.0, 9.0], 60.0));
        }
        let pulp = self.normal(115.0, 14.0);
        let spleen = self.organ(1, [-98.0, -22.0, 38.0], [24.0, 42.0, 44.0], pulp);
        if !self.bernoulli(0.06) {
            organs.push(spleen);
        }
        let wall = self.normal(55.0, 12.0);
        let mut stomach = self.organ(7, [-52.0, 38.0, 36.0], [44.0, 32.0, 42.0], wall);
        stomach.core_hounsfield = self.uniform(5.0, 60.0);
        stomach.gas = self.bernoulli(0.5);
        organs.push(stomach);
        let liver = if fatty_liver { self.normal(50.0, 8.0) } else { self.normal(105.0, 12.0) };
        // The right and the left lobe.
        organs.push(self.organ(LIVER, [68.0, 10.0, 34.0], [66.0, 74.0, 66.0], liver));
        organs.push(self.organ(LIVER, [12.0, 50.0, 42.0], [56.0, 26.0, 40.0], liver));
        organs
    }

    fn kidney(&mut self, label: u8, side: f64, phase: f64) -> Organ {
        let cortex = self.normal(150.0 + 30.0 * phase, 15.0);
        let mut kidney = self.organ(label, [side * 60.0, -42.0, -22.0], [27.0, 25.0, 52.0], cortex);
        kidney.core_hounsfield = self.normal(60.0 + 90.0 * phase, 15.0);
        // The hilum lies towards the middle and the front.
        let [x, y, z] = kidney.centre;
        let hilum = [x - side * 0.95 * kidney.radii[0], y + 0.35 * kidney.radii[1], z];
        kidney.hilum = Some((hilum, self.normal(15.0, 2.0)));
        kidney
    }

    /// Aorta and vena cava: straight tubes, since waves would interrupt them.
    fn vessels(&mut self, phase: f64) -> Vec<Organ> {
        let arteries = 240.0 - 90.0 * phase;
        let aorta_x = self.normal(-9.0, 3.0);
        let mut aorta = self.organ(8, [aorta_x, -15.0, 0.0], [11.0, 11.0, 400.0], arteries);
        aorta.waves = [[0.0; 4]; 3];
        aorta.rotation = [0.0, 1.0];
        let veins = self.normal(70.0 + 80.0 * phase, 10.0);
        let mut cava = self.organ(9, [20.0, -9.0, 0.0], [12.0, 9.0, 400.0], veins);
        cava.waves = [[0.0; 4]; 3];
        vec![aorta, cava]
    }

    fn bowel_loops(&mut self) -> Vec<Organ> {
        (0..26)
            .map(|_| {
                let centre = [
                    self.uniform(-105.0, 105.0),
                    self.uniform(-25.0, 75.0),
                    self.uniform(-130.0, 15.0),
                ];
                let radii = std::array::from_fn(|_| self.uniform(11.0, 24.0));
                let units = self.uniform(20.0, 110.0);
                let mut bowel = self.organ(0, centre, radii, units);
                bowel.core_hounsfield = self.uniform(-10.0, 60.0);
                bowel.gas = self.bernoulli(0.2);
                bowel
            })
            .collect()
    }
}

impl Anatomy {
    /// The patient with this number in the dataset of a seed.
    pub fn sample(seed: u64, number: u64) -> Self {
        let mut generator = generator(Purpose::Phantom, seed, number, 0);
        let mut sampler = Sampler(&mut generator);
        let body = [sampler.normal(158.0, 10.0), sampler.normal(112.0, 8.0)];
        let organs = sampler.organs();
        let loops = sampler.bowel_loops();
        Self {
            body,
            fat_mm: sampler.uniform(8.0, 26.0),
            ribs_phase: sampler.uniform(0.0, TAU),
            spine: [sampler.normal(0.0, 3.0), -body[1] + sampler.normal(56.0, 3.0)],
            spine_phase: sampler.uniform(0.0, 1.0),
            dome_mm: sampler.normal(98.0, 7.0),
            liver_vessels: Vessels {
                phases: [sampler.uniform(0.0, TAU), sampler.uniform(0.0, TAU)],
                contrast: sampler.normal(35.0, 15.0),
            },
            noise: sampler.uniform(10.0, 22.0),
            organs,
            loops,
        }
    }

    /// The slice at height `z`.
    pub fn slice(&self, z: f64) -> AnatomySlice<'_> {
        let organs =
            self.organs.iter().chain(&self.loops).filter(|organ| organ.intersects(z)).collect();
        AnatomySlice { anatomy: self, z, organs }
    }
}

impl AnatomySlice<'_> {
    /// Hounsfield units and label at a point.
    pub fn tissue(&self, [x, y]: [f64; 2]) -> (f64, u8) {
        let [a, b] = self.anatomy.body;
        let relative = ellipse(x, y, [a, b]).sqrt();
        if relative > 1.0 {
            return (AIR, 0);
        }
        if let Some(bone) = self.vertebra(x, y) {
            return (bone, 0);
        }
        let radial = (x * x + y * y).sqrt();
        let depth_mm = if relative > 0.0 { radial / relative - radial } else { b };
        if let Some(wall) = self.wall(y, depth_mm) {
            return (wall, 0);
        }
        let texture = 6.0 * (0.21 * x + 0.13 * self.z).sin() * (0.17 * y - 0.11 * self.z).sin();
        if let Some((units, label)) = self.organ([x, y, self.z]) {
            return (units + texture, label);
        }
        if self.is_above_diaphragm(x, y) {
            let from_heart = ellipse(x + 8.0, y - 12.0, [46.0, 62.0]);
            return match from_heart {
                ..0.7 => (HEART, 0),
                ..1.0 => (FAT, 0),
                _ => (LUNG + 3.0 * texture, 0),
            };
        }
        if self.is_muscle(x, y) {
            return (MUSCLE, 0);
        }
        // Fat between the organs, with texture.
        (FAT + 10.0 + 2.0 * texture, 0)
    }

    /// Skin, fat, muscles and ribs around the abdomen.
    fn wall(&self, y: f64, depth_mm: f64) -> Option<f64> {
        let Anatomy { body: [_, b], fat_mm, ribs_phase, .. } = *self.anatomy;
        let in_muscle = depth_mm - fat_mm;
        if depth_mm < 2.0 {
            return Some(20.0);
        }
        if in_muscle < 0.0 {
            return Some(FAT);
        }
        if in_muscle >= 14.0 {
            return None;
        }
        let rib_here = (self.z / 5.0 + 3.0 * y / b + ribs_phase).sin() > 0.55;
        let is_rib = rib_here && self.z > -30.0 && y < 60.0 && (4.0..11.0).contains(&in_muscle);
        Some(if is_rib { 330.0 } else { MUSCLE })
    }

    /// Body, canal, arch and processes of a vertebra.
    fn vertebra(&self, x: f64, y: f64) -> Option<f64> {
        let [x, y] = [x - self.anatomy.spine[0], y - self.anatomy.spine[1]];
        let body = ellipse(x, y, [22.0, 18.0]);
        let level = (self.z / VERTEBRA_MM + self.anatomy.spine_phase).rem_euclid(1.0);
        if body < 1.0 {
            // A disc lies between two bodies.
            return Some(match body {
                _ if level < 0.15 => 85.0,
                ..0.78 => SPONGY_BONE,
                _ => CORTICAL_BONE,
            });
        }
        let canal = ellipse(x, y + 25.0, [10.0, 8.5]);
        if canal < 1.0 {
            return Some(30.0);
        }
        let has_arch = level > 0.35;
        let is_arch = ellipse(x, y + 25.0, [15.0, 13.0]) < 1.0;
        let is_spinous = x.abs() < 3.5 && (-45.0..-34.0).contains(&y);
        let is_transverse = (y + 20.0 + 0.15 * x.abs()).abs() < 4.0 && x.abs() < 38.0;
        (has_arch && (is_arch || is_spinous || is_transverse)).then_some(350.0)
    }

    /// Hounsfield units and label of the organ or the bowel loop at a point.
    fn organ(&self, point: [f64; 3]) -> Option<(f64, u8)> {
        let inside = |organ: &&Organ| {
            let distance = organ.squared_distance(point);
            (distance < 1.0).then_some(distance)
        };
        let (organ, distance) =
            self.organs.iter().find_map(|organ| Some((organ, inside(organ)?)))?;
        let at_front = point[1] > organ.centre[1] + 0.25 * organ.radii[1];
        let units = match distance {
            ..0.75 if organ.gas && at_front => LUNG,
            ..0.45 => organ.core_hounsfield,
            _ => organ.hounsfield,
        };
        let vessels = &self.anatomy.liver_vessels;
        let is_vessel = organ.label == LIVER && distance < 0.9 && vessels.contain(point);
        Some((units + if is_vessel { vessels.contrast } else { 0.0 }, organ.label))
    }

    /// Whether a point that belongs to no organ lies above the diaphragm: a dome on each side.
    fn is_above_diaphragm(&self, x: f64, y: f64) -> bool {
        let from_dome = (x.abs() - 70.0).powi(2) + y * y;
        self.z > self.anatomy.dome_mm - from_dome / 110.0
    }

    /// Psoas and the extensors of the back, which accompany the spine.
    fn is_muscle(&self, x: f64, y: f64) -> bool {
        let [x, y] = [(x - self.anatomy.spine[0]).abs(), y - self.anatomy.spine[1]];
        let psoas_mm = (16.0 - 0.12 * (self.z + 60.0)).clamp(0.0, 22.0);
        let is_psoas = psoas_mm > 4.0 && ellipse(x - 33.0, y, [psoas_mm, 1.2 * psoas_mm]) < 1.0;
        is_psoas || ellipse(x - 27.0, y + 38.0, [27.0, 20.0]) < 1.0
    }
}

impl Vessels {
    fn contain(&self, [x, y, z]: [f64; 3]) -> bool {
        let [first, second] = self.phases;
        let wave = (0.11 * x + first).sin() + (0.09 * y + 0.06 * z).cos() + (0.07 * z).sin();
        let other = (0.10 * y + second).sin() + (0.08 * x - 0.07 * z).cos();
        wave * wave + other * other < 0.06
    }
}
