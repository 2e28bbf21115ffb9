//! Made-up abdomens: what demos and tests are trained and scored on where no patient's data may be.
//!
//! A phantom is a CT in Hounsfield units with Synapse's labels: a body with skin, fat, muscle, spine and ribs, bowel
//! loops that look like organs, and eight organs whose place, size, shape and contrast differ from patient to patient
//! and overlap with each other's and the bowel's. Some patients lack an organ. It is no model of anatomy.

use crate::random::{Purpose, generator};
use crate::{DatasetDescription, Geometry, Layout, NiftiLayout, Volume, WriteError, write_nifti};
use ndarray::{Array3, ArrayViewMut2, Axis};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal, StandardUniform};
use rayon::prelude::*;
use std::path::Path;

/// How phantoms are made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PhantomConfig {
    /// Decides everything about every patient.
    pub seed: u64,
    /// Slices, rows, columns.
    pub shape: [usize; 3],
    /// Millimetres between slices, rows and columns.
    pub spacing_mm: [f64; 3],
}

impl PhantomConfig {
    /// 24 slices of 96 x 96 at 8 x 4 x 4 mm: a fraction of a second each.
    pub fn small(seed: u64) -> Self {
        Self {
            seed,
            shape: [24, 96, 96],
            spacing_mm: [8.0, 4.0, 4.0],
        }
    }

    /// As large as a patient of Synapse: 148 slices of 512 x 512 at 1.3 x 0.78 x 0.78 mm.
    pub fn full_size(seed: u64) -> Self {
        Self {
            seed,
            shape: [148, 512, 512],
            spacing_mm: [1.3, 0.78, 0.78],
        }
    }

    /// Makes one patient: Hounsfield units, and labels as in Synapse's files.
    ///
    /// # Panics
    ///
    /// If an axis has no voxels or more than 32,767, or a spacing is not positive.
    pub fn patient(&self, number: u64) -> (Volume<i16>, Volume<u8>) {
        assert!(
            self.spacing_mm
                .iter()
                .all(|spacing| spacing.is_finite() && *spacing > 0.0),
            "spacing must be positive, found {:?}",
            self.spacing_mm
        );
        let anatomy = Anatomy::draw(&mut generator(Purpose::Phantom, self.seed, number, 0));
        let [slices, rows, columns] = self.shape;
        let mut image = Array3::<i16>::zeros(self.shape);
        let mut label = Array3::<u8>::zeros(self.shape);
        let planes = image
            .axis_iter_mut(Axis(0))
            .zip(label.axis_iter_mut(Axis(0)));
        let planes: Vec<_> = planes.enumerate().collect();
        planes.into_par_iter().for_each(|(slice, (image, label))| {
            let z = (slice as f64 - (slices as f64 - 1.0) / 2.0) * self.spacing_mm[0];
            let mut noise = generator(Purpose::Phantom, self.seed, number, 1 + slice as u64);
            self.fill(&anatomy, z, &mut noise, image, label);
        });
        let centred = |axis: usize| -self.spacing_mm[axis] * (self.shape[axis] as f64 - 1.0) / 2.0;
        let [dz, dy, dx] = self.spacing_mm;
        let affine = [
            [dx, 0.0, 0.0, centred(2)],
            [0.0, dy, 0.0, centred(1)],
            [0.0, 0.0, dz, centred(0)],
        ];
        let geometry = Geometry::new([slices, rows, columns], affine);
        (
            Volume::new(image, Some(geometry.clone())),
            Volume::new(label, Some(geometry)),
        )
    }

    /// Writes patients where [`DatasetDescription::synapse`] expects them, `train` that train and `test` that test, under
    /// Synapse's case numbers. `progress` is told each name when it is done. Returns the names.
    ///
    /// # Errors
    ///
    /// [`WriteError`] if the disk does not take a file.
    ///
    /// # Panics
    ///
    /// As [`Self::patient`], and if `test` is more than the 12 test cases that Synapse has.
    pub fn write_dataset(
        &self,
        root: impl AsRef<Path>,
        train: usize,
        test: usize,
        mut progress: impl FnMut(&str),
    ) -> Result<Vec<String>, WriteError> {
        let synapse = DatasetDescription::synapse();
        let held_out = synapse.split.test;
        assert!(
            test <= held_out.len(),
            "Synapse has {} test cases, {test} are asked for",
            held_out.len()
        );
        let Layout::Nifti(NiftiLayout { images, labels }) = synapse.layout else {
            unreachable!("Synapse's raw layout is NIfTI");
        };
        // Synapse's own 30 numbers first.
        let numbers = (5..=10).chain(21..=40).chain(41..);
        let training = numbers
            .map(|number| format!("{number:04}"))
            .filter(|name| !held_out.contains(name));
        let names: Vec<String> = held_out
            .iter()
            .take(test)
            .cloned()
            .chain(training.take(train))
            .collect();
        for name in &names {
            let number = name.parse().expect("names are numbers");
            let (image, label) = self.patient(number);
            let path = |pattern: &str| root.as_ref().join(pattern.replace("{case}", name));
            write_nifti(path(&images), &image)?;
            write_nifti(path(&labels), &label)?;
            progress(name);
        }
        Ok(names)
    }

    fn fill(
        &self,
        anatomy: &Anatomy,
        z: f64,
        noise: &mut ChaCha8Rng,
        mut image: ArrayViewMut2<'_, i16>,
        mut label: ArrayViewMut2<'_, u8>,
    ) {
        let [_, rows, columns] = self.shape;
        let place = |i: usize, count: usize, spacing: f64| {
            (i as f64 - (count as f64 - 1.0) / 2.0) * spacing
        };
        let near: Vec<&Organ> = anatomy
            .organs
            .iter()
            .filter(|organ| organ.reaches(z))
            .collect();
        let loops: Vec<&Organ> = anatomy
            .loops
            .iter()
            .filter(|organ| organ.reaches(z))
            .collect();
        let mut units = vec![0.0_f64; rows * columns];
        for row in 0..rows {
            let y = place(row, rows, self.spacing_mm[1]);
            for column in 0..columns {
                let x = place(column, columns, self.spacing_mm[2]);
                let (hounsfield, class) = anatomy.tissue([x, y, z], &near, &loops);
                units[row * columns + column] = hounsfield;
                label[(row, column)] = class;
            }
        }
        // Edges share their voxels, as in a scanner.
        blur(&mut units, rows, columns);
        let mut grain: Vec<f64> = (0..rows * columns)
            .map(|_| StandardNormal.sample(noise))
            .collect();
        blur(&mut grain, rows, columns);
        for ((voxel, units), grain) in image.iter_mut().zip(units).zip(grain) {
            // The blur leaves 3/8 of the noise's deviation.
            *voxel = (units + grain * anatomy.noise * 8.0 / 3.0)
                .clamp(-1024.0, 3071.0)
                .round() as i16;
        }
    }
}

/// Each pixel with its neighbours, 1-2-1 along both axes.
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

/// One patient. Millimetres from the centre: x to the right, y to the front, z to the head.
struct Anatomy {
    body: [f64; 2],
    fat_mm: f64,
    ribs_phase: f64,
    spine: [f64; 2],
    noise: f64,
    /// The first that holds a voxel has it.
    organs: Vec<Organ>,
    /// Bowel.
    loops: Vec<Organ>,
}

/// A lumpy ellipsoid, turned about the z axis.
struct Organ {
    label: u8,
    centre: [f64; 3],
    radii: [f64; 3],
    turn: [f64; 2],
    /// Direction times frequency, and phase, of the waves on its surface.
    lumps: [[f64; 4]; 3],
    hounsfield: f64,
    /// Of its middle.
    core_hounsfield: f64,
    /// Gas at its front.
    gas: bool,
}

impl Organ {
    fn reaches(&self, z: f64) -> bool {
        (z - self.centre[2]).abs() <= 1.3 * self.radii[2]
    }

    /// Below 1 inside, and 0 in the centre.
    fn depth(&self, [x, y, z]: [f64; 3]) -> f64 {
        let [dx, dy, dz] = [x - self.centre[0], y - self.centre[1], z - self.centre[2]];
        let [sin, cos] = self.turn;
        let along = [
            (cos * dx + sin * dy) / self.radii[0],
            (cos * dy - sin * dx) / self.radii[1],
            dz / self.radii[2],
        ];
        let squared: f64 = along.iter().map(|a| a * a).sum();
        if squared > 1.7 {
            return squared;
        }
        let lump = |[kx, ky, kz, phase]: [f64; 4]| (kx * x + ky * y + kz * z + phase).sin();
        squared + 0.13 * self.lumps.iter().copied().map(lump).sum::<f64>() * squared.sqrt()
    }
}

struct Draw<'a>(&'a mut ChaCha8Rng);

impl Draw<'_> {
    fn between(&mut self, low: f64, high: f64) -> f64 {
        let share: f64 = StandardUniform.sample(self.0);
        low + (high - low) * share
    }

    fn about(&mut self, mean: f64, deviation: f64) -> f64 {
        let normal: f64 = StandardNormal.sample(self.0);
        mean + deviation * normal.clamp(-2.5, 2.5)
    }

    fn chance(&mut self, probability: f64) -> bool {
        self.between(0.0, 1.0) < probability
    }

    fn organ(&mut self, label: u8, centre: [f64; 3], radii: [f64; 3], hounsfield: f64) -> Organ {
        let size = self.about(1.0, 0.1);
        let angle = self.about(0.0, 0.25);
        let longest = radii.into_iter().fold(0.0, f64::max);
        Organ {
            label,
            centre: centre.map(|at| self.about(at, 7.0)),
            radii: radii.map(|radius| size * self.about(radius, 0.1 * radius)),
            turn: [angle.sin(), angle.cos()],
            lumps: std::array::from_fn(|_| {
                let direction: [f64; 3] = std::array::from_fn(|_| self.about(0.0, 1.0));
                let frequency = self.between(2.0, 4.0) / longest;
                let [x, y, z] = direction.map(|d| d * frequency);
                [x, y, z, self.between(0.0, std::f64::consts::TAU)]
            }),
            hounsfield,
            core_hounsfield: hounsfield,
            gas: false,
        }
    }
}

impl Anatomy {
    fn draw(generator: &mut ChaCha8Rng) -> Self {
        let mut draw = Draw(generator);
        let body = [draw.about(158.0, 10.0), draw.about(112.0, 8.0)];
        // How far the contrast agent has come: from the arteries to the veins.
        let phase = draw.between(0.0, 1.0);
        let fatty = draw.chance(0.2);
        let arteries = 240.0 - 90.0 * phase;
        let mut organs = Vec::new();
        let aorta_x = draw.about(-9.0, 3.0);
        let mut aorta = draw.organ(8, [aorta_x, -22.0, 0.0], [11.0, 11.0, 400.0], arteries);
        // A tube: its waves would cut it.
        aorta.lumps = [[0.0; 4]; 3];
        aorta.turn = [0.0, 1.0];
        organs.push(aorta);
        let vein = draw.about(70.0 + 80.0 * phase, 10.0);
        let mut cava = draw.organ(9, [20.0, -16.0, 0.0], [12.0, 9.0, 400.0], vein);
        cava.lumps = [[0.0; 4]; 3];
        organs.push(cava);
        organs.push(draw.organ(5, [-14.0, 0.0, 110.0], [8.0, 7.0, 45.0], 45.0));
        for (label, x) in [(2, 58.0), (3, -58.0)] {
            let cortex = draw.about(150.0 + 30.0 * phase, 15.0);
            let mut kidney = draw.organ(label, [x, -42.0, -22.0], [27.0, 24.0, 52.0], cortex);
            kidney.core_hounsfield = draw.about(60.0 + 90.0 * phase, 15.0);
            if !draw.chance(0.06) {
                organs.push(kidney);
            }
        }
        let bile = draw.about(12.0, 7.0);
        let gallbladder = draw.organ(4, [48.0, 34.0, -2.0], [14.0, 20.0, 22.0], bile);
        if !draw.chance(0.25) {
            organs.push(gallbladder);
        }
        let parenchyma = draw.about(85.0, 12.0);
        let mut pancreas = draw.organ(11, [-8.0, 12.0, 2.0], [52.0, 12.0, 16.0], parenchyma);
        pancreas.turn = {
            let angle = draw.about(-0.35, 0.15);
            [angle.sin(), angle.cos()]
        };
        organs.push(pancreas);
        for x in [32.0, -34.0] {
            let label = if x > 0.0 { 12 } else { 13 };
            organs.push(draw.organ(label, [x, -30.0, 36.0], [8.0, 11.0, 9.0], 60.0));
        }
        let pulp = draw.about(115.0, 14.0);
        let spleen = draw.organ(1, [-98.0, -22.0, 38.0], [24.0, 42.0, 44.0], pulp);
        if !draw.chance(0.06) {
            organs.push(spleen);
        }
        let wall = draw.about(55.0, 12.0);
        let mut stomach = draw.organ(7, [-52.0, 38.0, 36.0], [44.0, 32.0, 42.0], wall);
        stomach.core_hounsfield = draw.between(5.0, 60.0);
        stomach.gas = draw.chance(0.5);
        organs.push(stomach);
        let liver_units = if fatty {
            draw.about(50.0, 8.0)
        } else {
            draw.about(105.0, 12.0)
        };
        organs.push(draw.organ(6, [62.0, 14.0, 36.0], [76.0, 72.0, 66.0], liver_units));
        let loops = (0..26)
            .map(|_| {
                let centre = [
                    draw.between(-105.0, 105.0),
                    draw.between(-25.0, 75.0),
                    draw.between(-130.0, 15.0),
                ];
                let radii = std::array::from_fn(|_| draw.between(11.0, 24.0));
                let units = draw.between(20.0, 110.0);
                let mut bowel = draw.organ(0, centre, radii, units);
                bowel.core_hounsfield = draw.between(-10.0, 60.0);
                bowel.gas = draw.chance(0.2);
                bowel
            })
            .collect();
        Self {
            body,
            fat_mm: draw.between(8.0, 26.0),
            ribs_phase: draw.between(0.0, std::f64::consts::TAU),
            spine: [draw.about(0.0, 3.0), -body[1] + draw.about(48.0, 3.0)],
            noise: draw.between(10.0, 22.0),
            organs,
            loops,
        }
    }

    /// Hounsfield units and label at a place.
    fn tissue(&self, at: [f64; 3], organs: &[&Organ], loops: &[&Organ]) -> (f64, u8) {
        let [x, y, z] = at;
        let [a, b] = self.body;
        // Distance from the axis, and the body's surface in that direction.
        let radial = (x * x + y * y).sqrt();
        let share = ((x / a).powi(2) + (y / b).powi(2)).sqrt();
        if share > 1.0 {
            return (-1000.0, 0);
        }
        let depth_mm = if share > 0.0 {
            radial / share - radial
        } else {
            b
        };
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
            return (
                if rib && (4.0..11.0).contains(&in_muscle) {
                    330.0
                } else {
                    55.0
                },
                0,
            );
        }
        let texture = 6.0 * (0.21 * x + 0.13 * z).sin() * (0.17 * y - 0.11 * z).sin();
        for organ in organs.iter().chain(loops) {
            let depth = organ.depth(at);
            if depth < 1.0 {
                let gas = organ.gas && depth < 0.75 && y > organ.centre[1] + 0.25 * organ.radii[1];
                let units = match depth {
                    _ if gas => -850.0,
                    ..0.45 => organ.core_hounsfield,
                    _ => organ.hounsfield,
                };
                return (units + texture, organ.label);
            }
        }
        // Fat between the organs, with strands.
        (-95.0 + 2.0 * texture, 0)
    }
}
