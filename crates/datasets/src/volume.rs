use crate::{Orientation, ReadError, Side};
use ndarray::{Array3, ArrayView3, Axis};
use nifti::NiftiHeader;
use std::path::Path;

/// The most voxels that a file may have: about ten whole-body CTs.
pub const MAX_VOXELS: u64 = 1 << 30;

/// Voxels `[slices, rows, columns]` and their geometry.
#[derive(Debug, Clone, PartialEq)]
pub struct Volume<T> {
    voxels: Array3<T>,
    geometry: Option<Geometry>,
}

impl<T> Volume<T> {
    /// Creates a volume. The geometry is `None` if the source has none, such as an `.npy.h5` file.
    ///
    /// # Panics
    ///
    /// If voxels and geometry have different shapes.
    pub fn new(voxels: Array3<T>, geometry: Option<Geometry>) -> Self {
        if let Some(geometry) = &geometry {
            let shape: [usize; 3] = voxels.dim().into();
            assert_eq!(
                shape,
                geometry.shape(),
                "voxels of shape {shape:?} do not match a geometry of shape {:?}",
                geometry.shape()
            );
        }
        Self { voxels, geometry }
    }

    /// The voxels, `[slices, rows, columns]`.
    pub fn voxels(&self) -> &Array3<T> {
        &self.voxels
    }

    /// The voxels, without the geometry.
    pub fn into_voxels(self) -> Array3<T> {
        self.voxels
    }

    /// The voxels and their geometry.
    pub fn into_parts(self) -> (Array3<T>, Option<Geometry>) {
        (self.voxels, self.geometry)
    }

    /// Number of slices, rows and columns.
    pub fn shape(&self) -> [usize; 3] {
        self.voxels.dim().into()
    }

    /// The geometry, `None` if the source has none.
    pub fn geometry(&self) -> Option<&Geometry> {
        self.geometry.as_ref()
    }

    /// Millimetres between slices, rows and columns, `None` if the source has no geometry.
    pub fn spacing_mm(&self) -> Option<[f64; 3]> {
        self.geometry.as_ref().map(Geometry::spacing_mm)
    }

    /// Turns a volume that is in its file's order as the file of `geometry` is turned, and places it on
    /// that grid; `None` if the files have different shapes.
    pub(crate) fn into_order_of(self, geometry: &Geometry) -> Option<Self>
    where
        T: Clone,
    {
        let stored = self.voxels.as_standard_layout().into_owned();
        let [slices, rows, columns] = self.shape();
        if [columns, rows, slices] != spatial_dim(&geometry.header) {
            return None;
        }
        let (voxels, _) = stored.into_raw_vec_and_offset();
        let voxels = geometry.axis_mapping.to_array(voxels, [columns, rows, slices]);
        Some(Self::new(voxels, Some(geometry.clone())))
    }

    /// The volume without a geometry.
    pub(crate) fn without_geometry(self) -> Self {
        Self { geometry: None, ..self }
    }

    /// Creates a volume of other voxels with the same geometry.
    ///
    /// # Panics
    ///
    /// If `voxels` has another shape.
    pub fn with_voxels<U>(&self, voxels: Array3<U>) -> Volume<U> {
        assert_eq!(self.voxels.dim(), voxels.dim(), "voxels must have the volume's shape");
        Volume { voxels, geometry: self.geometry.clone() }
    }
}

/// The position of an array's voxels in the patient, and their order in the source file.
#[derive(Debug, Clone, PartialEq)]
pub struct Geometry {
    header: NiftiHeader,
    shape: [usize; 3],
    axis_mapping: AxisMapping,
    affine: [[f64; 4]; 3],
}

/// The file's axis for each axis of the array, and whether it is reversed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AxisMapping {
    file_axes: [usize; 3],
    reversed: [bool; 3],
}

impl AxisMapping {
    pub const STORED: Self = Self { file_axes: [2, 1, 0], reversed: [false; 3] };

    /// The mapping to `orientation` from a file whose `affine` maps voxel indices to millimetres.
    fn new(orientation: Orientation, affine: &[[f64; 4]; 3]) -> Self {
        let columns_rows_slices: [(usize, Option<bool>); 3] = match orientation {
            Orientation::Stored => return Self::STORED,
            Orientation::Axial => [(0, None), (1, None), (2, None)],
            Orientation::Towards(sides) => sides.map(|side| {
                let (axis, negative) = side.world_axis();
                (axis, Some(negative))
            }),
        };
        let file_axis = closest_axes(affine);
        let mut mapping = Self::STORED;
        for (i, (world, negative)) in columns_rows_slices.into_iter().enumerate() {
            let axis = file_axis[world];
            mapping.file_axes[2 - i] = axis;
            mapping.reversed[2 - i] =
                negative.is_some_and(|negative| negative != (affine[world][axis] < 0.0));
        }
        mapping
    }

    fn reversed_axes(&self) -> impl Iterator<Item = Axis> {
        (0..3).filter(|&axis| self.reversed[axis]).map(Axis)
    }

    /// Converts voxels in the file's order, with the first axis fastest, to the array.
    pub fn to_array<T: Clone>(self, stored: Vec<T>, dim: [usize; 3]) -> Array3<T> {
        let stored =
            Array3::from_shape_vec([dim[2], dim[1], dim[0]], stored).expect("checked length");
        if self == Self::STORED {
            return stored;
        }
        let mut array = stored.permuted_axes(self.file_axes.map(|axis| 2 - axis));
        self.reversed_axes().for_each(|axis| array.invert_axis(axis));
        array.as_standard_layout().into_owned()
    }

    /// A view of the array with the file's three axes.
    pub fn to_file<T>(self, mut array: ArrayView3<'_, T>) -> ArrayView3<'_, T> {
        self.reversed_axes().for_each(|axis| array.invert_axis(axis));
        let array_axis =
            |file_axis| self.file_axes.iter().position(|&a| a == file_axis).unwrap_or(0);
        array.permuted_axes([array_axis(0), array_axis(1), array_axis(2)])
    }
}

/// For each world axis the file axis closest to it, each file axis exactly once.
fn closest_axes(affine: &[[f64; 4]; 3]) -> [usize; 3] {
    const ORDERS: [[usize; 3]; 6] =
        [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    let cosine =
        |world: usize, axis: usize| affine[world][axis].abs() / column_length(affine, axis);
    let fit = |order: &[usize; 3]| -> f64 { (0..3).map(|world| cosine(world, order[world])).sum() };
    let mut best = ORDERS[0];
    for order in ORDERS {
        if fit(&order) > fit(&best) {
            best = order;
        }
    }
    best
}

fn column_length(affine: &[[f64; 4]; 3], axis: usize) -> f64 {
    (0..3).map(|world| affine[world][axis].powi(2)).sum::<f64>().sqrt()
}

impl Geometry {
    /// Creates a geometry without a file: `affine_mm` maps (column, row, slice, 1) to millimetres,
    /// x to the patient's right, y to the front, z to the head.
    ///
    /// # Panics
    ///
    /// If an axis has no voxels or more than NIfTI supports (32,767), or the affine is not
    /// invertible.
    pub fn new(shape: [usize; 3], affine_mm: [[f64; 4]; 3]) -> Self {
        Self::oriented(shape, affine_mm, Orientation::Stored, Path::new("geometry"))
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Creates a geometry from that of the voxels in their stored order, turned to an orientation.
    pub(crate) fn oriented(
        shape: [usize; 3],
        affine_mm: [[f64; 4]; 3],
        orientation: Orientation,
        file: &Path,
    ) -> Result<Self, ReadError> {
        let axes = shape.map(|axis| {
            u16::try_from(axis).ok().filter(|axis| (1..=i16::MAX as u16).contains(axis))
        });
        let [Some(slices), Some(rows), Some(columns)] = axes else {
            return Err(ReadError::Axes {
                file: file.to_owned(),
                found: shape.map(|axis| axis as u64).into(),
                expected: "each axis must have 1 to 32767 voxels",
            });
        };
        let mut header = NiftiHeader {
            dim: [3, columns, rows, slices, 1, 1, 1, 1],
            qform_code: 0,
            sform_code: 1,
            xyzt_units: 2, // millimetres
            ..NiftiHeader::default()
        };
        let single = |row: [f64; 4]| row.map(|value| value as f32);
        [header.srow_x, header.srow_y, header.srow_z] = affine_mm.map(single);
        for axis in 0..3 {
            header.pixdim[axis + 1] = column_length(&affine_mm, axis) as f32;
        }
        Self::from_header(header, orientation, file)
    }

    /// Creates the geometry of a header's file in an orientation.
    pub(crate) fn from_header(
        header: NiftiHeader,
        orientation: Orientation,
        file: &Path,
    ) -> Result<Self, ReadError> {
        let dim = spatial_dim(&header);
        let stored = file_affine(&header, dim, file)?;
        let axis_mapping = AxisMapping::new(orientation, &stored);
        let mut affine = [[0.0; 4]; 3];
        for world in 0..3 {
            affine[world][3] = stored[world][3];
            for array_axis in 0..3 {
                let axis = axis_mapping.file_axes[array_axis];
                let step = stored[world][axis];
                let column = 2 - array_axis;
                affine[world][column] = step;
                if axis_mapping.reversed[array_axis] {
                    affine[world][column] = -step;
                    affine[world][3] += step * (dim[axis] - 1) as f64;
                }
            }
        }
        let shape = axis_mapping.file_axes.map(|axis| dim[axis]);
        Ok(Self { header, shape, axis_mapping, affine })
    }

    /// Number of slices, rows and columns.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// The matrix that maps (column, row, slice, 1) to millimetres: x to the patient's right, y to
    /// the front, z to the head.
    pub fn affine_mm(&self) -> [[f64; 4]; 3] {
        self.affine
    }

    /// The sides of the patient that columns, rows and slices are closest to running towards.
    pub fn sides(&self) -> [Side; 3] {
        let axes = closest_axes(&self.affine);
        std::array::from_fn(|column| {
            let world = axes.iter().position(|&axis| axis == column).unwrap_or(column);
            Side::towards(world, self.affine[world][column] < 0.0)
        })
    }

    /// Millimetres between slices, rows and columns: the lengths of the affine's columns.
    pub fn spacing_mm(&self) -> [f64; 3] {
        [2, 1, 0].map(|column| column_length(&self.affine, column))
    }

    /// The largest distance between corresponding corners of two geometries with the same shape.
    pub fn max_corner_distance_mm(&self, other: &Self) -> f64 {
        let mut largest = 0.0_f64;
        for corner in 0..8 {
            let index: [f64; 3] = std::array::from_fn(|column| {
                let last = self.shape[2 - column].saturating_sub(1);
                if corner >> column & 1 == 1 { last as f64 } else { 0.0 }
            });
            let squared: f64 = (0..3)
                .map(|world| {
                    let difference = |c: usize| self.affine[world][c] - other.affine[world][c];
                    ((0..3).map(|c| difference(c) * index[c]).sum::<f64>() + difference(3)).powi(2)
                })
                .sum();
            largest = largest.max(squared.sqrt());
        }
        largest
    }

    /// Whether two geometries are the same grid: equal shapes, and corresponding corners at most a
    /// tenth of the smallest spacing apart, a tolerance for rounding in headers.
    pub fn is_same_grid(&self, other: &Self) -> bool {
        let smallest = self.spacing_mm().into_iter().fold(f64::INFINITY, f64::min);
        self.shape == other.shape && self.max_corner_distance_mm(other) <= 0.1 * smallest
    }

    pub(crate) fn header(&self) -> &NiftiHeader {
        &self.header
    }

    pub(crate) fn axis_mapping(&self) -> AxisMapping {
        self.axis_mapping
    }
}

/// Number of voxels along the file's three spatial axes; 1 for axes that do not exist.
pub(crate) fn spatial_dim(header: &NiftiHeader) -> [usize; 3] {
    let axes = usize::from(header.dim[0]);
    std::array::from_fn(|axis| if axis < axes { usize::from(header.dim[axis + 1]) } else { 1 })
}

/// The affine from the file's voxel indices to millimetres: by NIfTI's method 3 (sform) or 2
/// (qform) or, if the header has neither, from the spacing alone with nibabel's convention (x to
/// the left, origin in the centre).
fn file_affine(
    header: &NiftiHeader,
    dim: [usize; 3],
    file: &Path,
) -> Result<[[f64; 4]; 3], ReadError> {
    let unit_mm = match header.xyzt_units & 7 {
        1 => 1000.0,
        3 => 0.001,
        _ => 1.0,
    };
    // The sign of a spacing has no meaning; nibabel and ITK drop it, too.
    let pixdim: [f64; 3] = std::array::from_fn(|axis| f64::from(header.pixdim[axis + 1]).abs());
    let axes = usize::from(header.dim[0]).min(3);
    let positive = |spacing: &f64| spacing.is_finite() && *spacing > 0.0;
    let sform = [header.srow_x, header.srow_y, header.srow_z].map(|row| row.map(f64::from));
    let has_rows = sform.iter().any(|row| row[..3].iter().any(|&value| value != 0.0));
    // Some programs set the code and not the rows; ITK then takes the quaternion.
    let uses_sform = header.sform_code > 0 && (has_rows || header.qform_code <= 0);
    if !uses_sform && !pixdim[..axes].iter().all(positive) {
        let found_mm = pixdim.map(|spacing| spacing * unit_mm);
        return Err(ReadError::Spacing { file: file.to_owned(), field: "pixdim", found_mm });
    }
    let pixdim = std::array::from_fn(|axis| if axis < axes { pixdim[axis] } else { 1.0 });
    let mut affine = if uses_sform {
        sform
    } else if header.qform_code > 0 {
        qform(header, pixdim, file)?
    } else {
        let centred = |axis: usize, sign: f64| {
            let mut row = [0.0; 4];
            row[axis] = sign * pixdim[axis];
            row[3] = -row[axis] * (dim[axis] - 1) as f64 / 2.0;
            row
        };
        [centred(0, -1.0), centred(1, 1.0), centred(2, 1.0)]
    };
    affine.iter_mut().flatten().for_each(|value| *value *= unit_mm);
    let lengths: [f64; 3] = std::array::from_fn(|axis| column_length(&affine, axis));
    if !lengths.iter().all(positive) {
        let (file, field) = (file.to_owned(), "srow_x, srow_y and srow_z");
        return Err(ReadError::Spacing { file, field, found_mm: lengths });
    }
    let [x, y, z] = affine;
    let volume = x[0] * (y[1] * z[2] - y[2] * z[1]) - x[1] * (y[0] * z[2] - y[2] * z[0])
        + x[2] * (y[0] * z[1] - y[1] * z[0]);
    let skew = volume.abs() / lengths.iter().product::<f64>();
    let finite = affine.iter().flatten().all(|value| value.is_finite());
    // Axes in one plane, within single precision.
    if !finite || !skew.is_finite() || skew < 1e-4 {
        return Err(ReadError::Geometry {
            file: file.to_owned(),
            found: format!("the affine {affine:?} cannot be inverted"),
        });
    }
    Ok(affine)
}

/// The affine by NIfTI's method 2: from a unit quaternion, the spacing, and the sign of the third
/// axis.
fn qform(header: &NiftiHeader, spacing: [f64; 3], file: &Path) -> Result<[[f64; 4]; 3], ReadError> {
    let [b, c, d] = [header.quatern_b, header.quatern_c, header.quatern_d].map(f64::from);
    let a_squared = 1.0 - (b * b + c * c + d * d);
    // In single precision, the quaternion of a rotation by 180 degrees can be slightly longer than
    // 1.
    if a_squared.is_nan() || a_squared < -3.0 * f64::from(f32::EPSILON) {
        return Err(ReadError::Geometry {
            file: file.to_owned(),
            found: format!("the quaternion ({b}, {c}, {d}) is longer than 1"),
        });
    }
    let a = a_squared.max(0.0).sqrt();
    let third = if header.pixdim[0] < 0.0 { -spacing[2] } else { spacing[2] };
    let rotation = [
        [a * a + b * b - c * c - d * d, 2.0 * (b * c - a * d), 2.0 * (b * d + a * c)],
        [2.0 * (b * c + a * d), a * a + c * c - b * b - d * d, 2.0 * (c * d - a * b)],
        [2.0 * (b * d - a * c), 2.0 * (c * d + a * b), a * a + d * d - b * b - c * c],
    ];
    let offset = [header.quatern_x, header.quatern_y, header.quatern_z].map(f64::from);
    Ok(std::array::from_fn(|world| {
        let [x, y, z] = rotation[world];
        [x * spacing[0], y * spacing[1], z * third, offset[world]]
    }))
}
