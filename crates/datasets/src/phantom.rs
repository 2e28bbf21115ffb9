//! Synthetic abdominal phantoms, for demos and tests that may not use patient data.
//!
//! A phantom is a CT in Hounsfield units with Synapse's labels: a body with skin, fat, muscle,
//! spine and ribs, bowel loops that resemble organs, and eight organs whose position, size, shape
//! and contrast vary between patients and overlap with those of other organs and the bowel. Some
//! patients lack an organ. It is not a model of anatomy.

use crate::description::CASE_PLACEHOLDER;
use crate::random::{Purpose, generator};
use crate::{DatasetDescription, Geometry, Layout, NiftiLayout, Volume, WriteError, write_nifti};
use ndarray::{Array3, ArrayViewMut2, Axis};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal, StandardUniform};
use rayon::prelude::*;
use std::path::Path;

/// Generates phantoms.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PhantomConfig {
    /// Seed of all random choices.
    pub seed: u64,
    /// Number of slices, rows and columns.
    pub shape: [usize; 3],
    /// Millimetres between slices, rows and columns.
    pub spacing_mm: [f64; 3],
}

impl PhantomConfig {
    /// Small phantoms, generated in a fraction of a second each: 24 slices of 96 x 96 at 8 x 4 x 4
    /// mm.
    pub fn small(seed: u64) -> Self {
        Self { seed, shape: [24, 96, 96], spacing_mm: [8.0, 4.0, 4.0] }
    }

    /// Phantoms as large as a case of Synapse: 148 slices of 512 x 512 at 1.3 x 0.78 x 0.78 mm.
    pub fn full_size(seed: u64) -> Self {
        Self { seed, shape: [148, 512, 512], spacing_mm: [1.3, 0.78, 0.78] }
    }

    /// Generates one patient: Hounsfield units, and labels as in Synapse's files.
    ///
    /// # Panics
    ///
    /// If an axis has no voxels or more than 32,767, or a spacing is not positive.
    pub fn patient(&self, number: u64) -> (Volume<i16>, Volume<u8>) {
        assert!(
            self.spacing_mm.iter().all(|spacing| spacing.is_finite() && *spacing > 0.0),
            "spacing must be positive and finite, found {:?}",
            self.spacing_mm
        );
        let anatomy = Anatomy::sample(&mut generator(Purpose::Phantom, self.seed, number, 0));
        let [slices, rows, columns] = self.shape;
        let mut image = Array3::<i16>::zeros(self.shape);
        let mut label = Array3::<u8>::zeros(self.shape);
        let planes = image.axis_iter_mut(Axis(0)).zip(label.axis_iter_mut(Axis(0)));
        let planes: Vec<_> = planes.enumerate().collect();
        planes.into_par_iter().for_each(|(slice, (image, label))| {
            let z = (slice as f64 - (slices as f64 - 1.0) / 2.0) * self.spacing_mm[0];
            let mut noise = generator(Purpose::Phantom, self.seed, number, 1 + slice as u64);
            self.fill_slice(&anatomy, z, &mut noise, image, label);
        });
        let centred = |axis: usize| -self.spacing_mm[axis] * (self.shape[axis] as f64 - 1.0) / 2.0;
        let [dz, dy, dx] = self.spacing_mm;
        let affine =
            [[dx, 0.0, 0.0, centred(2)], [0.0, dy, 0.0, centred(1)], [0.0, 0.0, dz, centred(0)]];
        let geometry = Geometry::new([slices, rows, columns], affine);
        (Volume::new(image, Some(geometry.clone())), Volume::new(label, Some(geometry)))
    }

    /// Writes `train` training and `test` test patients in the layout of
    /// [`DatasetDescription::synapse`], with Synapse's case numbers. `progress` is called with the
    /// name of each case when it is written. Returns the names.
    ///
    /// # Errors
    ///
    /// [`WriteError`] if a file cannot be written.
    ///
    /// # Panics
    ///
    /// Where [`Self::patient`] does, and if `test` is greater than 12, the number of Synapse's test
    /// cases.
    pub fn write_dataset(
        &self,
        root: impl AsRef<Path>,
        train: usize,
        test: usize,
        mut progress: impl FnMut(&str),
    ) -> Result<Vec<String>, WriteError> {
        let synapse = DatasetDescription::synapse();
        let test_names = synapse.split.test;
        assert!(
            test <= test_names.len(),
            "expected at most {} test cases, as in Synapse, found {test}",
            test_names.len()
        );
        let Layout::Nifti(NiftiLayout { images, labels }) = synapse.layout else {
            unreachable!("Synapse's raw layout is NIfTI");
        };
        // The numbers of Synapse's 30 cases come first.
        let numbers = (5..=10).chain(21..=40).chain(41..);
        let train_names =
            numbers.map(|number| format!("{number:04}")).filter(|name| !test_names.contains(name));
        let names: Vec<String> =
            test_names.iter().take(test).cloned().chain(train_names.take(train)).collect();
        for name in &names {
            let number = name.parse().expect("names are numbers");
            let (image, label) = self.patient(number);
            let path = |pattern: &str| root.as_ref().join(pattern.replace(CASE_PLACEHOLDER, name));
            write_nifti(path(&images), &image)?;
            write_nifti(path(&labels), &label)?;
            progress(name);
        }
        Ok(names)
    }

    /// Fills image and label of the slice at height `z`.
    fn fill_slice(
        &self,
        anatomy: &Anatomy,
        z: f64,
        noise: &mut ChaCha8Rng,
        mut image: ArrayViewMut2<'_, i16>,
        mut label: ArrayViewMut2<'_, u8>,
    ) {
        let [_, rows, columns] = self.shape;
        let position = |i: usize, count: usize, spacing: f64| {
            (i as f64 - (count as f64 - 1.0) / 2.0) * spacing
        };
        let organs: Vec<&Organ> =
            anatomy.organs.iter().filter(|organ| organ.intersects(z)).collect();
        let loops: Vec<&Organ> = anatomy.loops.iter().filter(|organ| organ.intersects(z)).collect();
        let mut units = vec![0.0_f64; rows * columns];
        for row in 0..rows {
            let y = position(row, rows, self.spacing_mm[1]);
            for column in 0..columns {
                let x = position(column, columns, self.spacing_mm[2]);
                let (hounsfield, organ_label) = anatomy.tissue([x, y, z], &organs, &loops);
                units[row * columns + column] = hounsfield;
                label[(row, column)] = organ_label;
            }
        }
        // Partial volume effect: voxels at an edge mix both tissues, as in a scanner.
        blur(&mut units, rows, columns);
        let mut grain: Vec<f64> =
            (0..rows * columns).map(|_| StandardNormal.sample(noise)).collect();
        blur(&mut grain, rows, columns);
        for ((voxel, units), grain) in image.iter_mut().zip(units).zip(grain) {
            // The blur reduces the noise's standard deviation to 3/8.
            *voxel =
                (units + grain * anatomy.noise * 8.0 / 3.0).clamp(-1024.0, 3071.0).round() as i16;
        }
    }
}

/// Filters each pixel with the weights 1-2-1 along both axes.
fn blur(values: &mut [f64], rows: usize, columns: usize) {
    let source = values.to_vec();
    let at = |row: usize, column: usize| source[row * columns + column];
    for row in 0..rows {
        let (above, below) = (row.saturating_sub(1), (row + 1).min(rows - 1));
        for column in 0..columns {
            let (left, right) = (column.saturating_sub(1), (column + 1).min(columns - 1));
            let line = |row| at(row, left) + 2.0 * at(row, column) + at(row, right);
            values[row * columns + column] = (line(above) + 2.0 * line(row) + line(below)) / 16.0;
        }
    }
}

/// The anatomy of one patient. Millimetres from the centre: x to the right, y to the front, z to
/// the head.
struct Anatomy {
    /// Half axes of the body's elliptic cross-section.
    body: [f64; 2],
    fat_mm: f64,
    ribs_phase: f64,
    spine: [f64; 2],
    /// Standard deviation in Hounsfield units.
    noise: f64,
    /// Where organs overlap, the first one has the voxel.
    organs: Vec<Organ>,
    /// Bowel loops.
    loops: Vec<Organ>,
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
    fn squared_distance(&self, [x, y, z]: [f64; 3]) -> f64 {
        let [dx, dy, dz] = [x - self.centre[0], y - self.centre[1], z - self.centre[2]];
        let [sin, cos] = self.rotation;
        let along = [
            (cos * dx + sin * dy) / self.radii[0],
            (cos * dy - sin * dx) / self.radii[1],
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
                [x, y, z, self.uniform(0.0, std::f64::consts::TAU)]
            }),
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
        for (label, x) in [(2, 58.0), (3, -58.0)] {
            let cortex = self.normal(150.0 + 30.0 * phase, 15.0);
            let mut kidney = self.organ(label, [x, -42.0, -22.0], [27.0, 24.0, 52.0], cortex);
            kidney.core_hounsfield = self.normal(60.0 + 90.0 * phase, 15.0);
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
        let mut pancreas = self.organ(11, [-8.0, 12.0, 2.0], [52.0, 12.0, 16.0], parenchyma);
        pancreas.rotation = {
            let angle = self.normal(-0.35, 0.15);
            [angle.sin(), angle.cos()]
        };
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
        organs.push(self.organ(6, [62.0, 14.0, 36.0], [76.0, 72.0, 66.0], liver));
        organs
    }

    /// Aorta and vena cava: straight tubes, since waves would interrupt them.
    fn vessels(&mut self, phase: f64) -> Vec<Organ> {
        let arteries = 240.0 - 90.0 * phase;
        let aorta_x = self.normal(-9.0, 3.0);
        let mut aorta = self.organ(8, [aorta_x, -22.0, 0.0], [11.0, 11.0, 400.0], arteries);
        aorta.waves = [[0.0; 4]; 3];
        aorta.rotation = [0.0, 1.0];
        let veins = self.normal(70.0 + 80.0 * phase, 10.0);
        let mut cava = self.organ(9, [20.0, -16.0, 0.0], [12.0, 9.0, 400.0], veins);
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
    fn sample(generator: &mut ChaCha8Rng) -> Self {
        let mut sampler = Sampler(generator);
        let body = [sampler.normal(158.0, 10.0), sampler.normal(112.0, 8.0)];
        let organs = sampler.organs();
        let loops = sampler.bowel_loops();
        Self {
            body,
            fat_mm: sampler.uniform(8.0, 26.0),
            ribs_phase: sampler.uniform(0.0, std::f64::consts::TAU),
            spine: [sampler.normal(0.0, 3.0), -body[1] + sampler.normal(48.0, 3.0)],
            noise: sampler.uniform(10.0, 22.0),
            organs,
            loops,
        }
    }

    /// Hounsfield units and label at a point, of the organs and bowel loops that intersect its
    /// slice.
    fn tissue(&self, point: [f64; 3], organs: &[&Organ], loops: &[&Organ]) -> (f64, u8) {
        let [x, y, z] = point;
        let [a, b] = self.body;
        // Distance from the body's axis, and the same relative to the body's surface in that
        // direction.
        let radial = (x * x + y * y).sqrt();
        let relative = ((x / a).powi(2) + (y / b).powi(2)).sqrt();
        if relative > 1.0 {
            return (-1000.0, 0);
        }
        let depth_mm = if relative > 0.0 { radial / relative - radial } else { b };
        let spine = ((x - self.spine[0]) / 22.0).powi(2) + ((y - self.spine[1]) / 19.0).powi(2);
        if spine < 1.0 {
            return (if spine > 0.7 { 420.0 } else { 170.0 }, 0);
        }
        if depth_mm < 2.0 {
            return (20.0, 0);
        }
        if depth_mm < self.fat_mm {
            return (-105.0, 0);
        }
        if depth_mm < self.fat_mm + 14.0 {
            let in_muscle = depth_mm - self.fat_mm;
            let rib =
                (z / 5.0 + 3.0 * y / b + self.ribs_phase).sin() > 0.55 && z > -30.0 && y < 60.0;
            return (if rib && (4.0..11.0).contains(&in_muscle) { 330.0 } else { 55.0 }, 0);
        }
        let texture = 6.0 * (0.21 * x + 0.13 * z).sin() * (0.17 * y - 0.11 * z).sin();
        for organ in organs.iter().chain(loops) {
            let distance = organ.squared_distance(point);
            if distance < 1.0 {
                let gas =
                    organ.gas && distance < 0.75 && y > organ.centre[1] + 0.25 * organ.radii[1];
                let units = match distance {
                    _ if gas => -850.0,
                    ..0.45 => organ.core_hounsfield,
                    _ => organ.hounsfield,
                };
                return (units + texture, organ.label);
            }
        }
        // Fat between the organs, with texture.
        (-95.0 + 2.0 * texture, 0)
    }
}
