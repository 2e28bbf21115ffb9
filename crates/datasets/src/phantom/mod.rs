//! Synthetic abdominal phantoms, for demos and tests that may not use patient data.
//!
//! A phantom is a CT in Hounsfield units with Synapse's labels: a body with skin, fat, muscles,
//! vertebrae, ribs and lungs, bowel loops that resemble organs, and organs whose position, size,
//! shape and contrast vary between patients and overlap with those of other organs and the bowel.
//! Some patients lack an organ. It is not a model of anatomy.

mod anatomy;

use crate::description::CASE_PLACEHOLDER;
use crate::random::{Purpose, generator};
use crate::{DatasetDescription, FilesLayout, Geometry, Layout, Volume, WriteError, write_nifti};
use anatomy::Anatomy;
use ndarray::{Array3, ArrayViewMut2, Axis};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
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

    /// Phantoms of the demo, at which organs look like organs: 24 slices of 256 x 256 at 8 x 1.5 x
    /// 1.5 mm.
    pub fn demo(seed: u64) -> Self {
        Self { seed, shape: [24, 256, 256], spacing_mm: [8.0, 1.5, 1.5] }
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
        let anatomy = Anatomy::sample(self.seed, number);
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
        // Columns run to the left, as in Synapse's files.
        image.invert_axis(Axis(2));
        label.invert_axis(Axis(2));
        let affine =
            [[-dx, 0.0, 0.0, -centred(2)], [0.0, dy, 0.0, centred(1)], [0.0, 0.0, dz, centred(0)]];
        let geometry = Geometry::new([slices, rows, columns], affine);
        let image = image.as_standard_layout().into_owned();
        let label = label.as_standard_layout().into_owned();
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
        let Layout::Files(FilesLayout { images, labels, .. }) = synapse.layout else {
            unreachable!("Synapse's raw layout is one of files");
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
            write_nifti(path(&images[0]), &image)?;
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
        let slice = anatomy.slice(z);
        let mut units = vec![0.0_f64; rows * columns];
        for row in 0..rows {
            let y = position(row, rows, self.spacing_mm[1]);
            for column in 0..columns {
                let x = position(column, columns, self.spacing_mm[2]);
                let (hounsfield, organ_label) = slice.tissue([x, y]);
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
