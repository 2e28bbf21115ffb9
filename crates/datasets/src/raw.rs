//! Decodes voxels from a stream of bytes, whose header is not trusted.

use crate::voxel_type::{ByteOrder, VoxelType};
use crate::{IgnoredLabels, LabelMap, MAX_VOXELS, ReadError};
use std::cell::Cell;
use std::io::Read;
use std::path::Path;

/// The most bytes that deflate decodes from one byte.
pub(crate) const MAX_DEFLATE_RATIO: u64 = 1032;

/// What a file's header declares about an array.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ArrayHeader {
    pub voxel_type: VoxelType,
    pub order: ByteOrder,
    /// Voxels along each axis, the fastest axis first; 1 for axes that do not exist.
    pub dim: [usize; 3],
}

impl ArrayHeader {
    /// Checks that a file can hold the declared array, so that memory can be allocated for it.
    pub fn check(&self, file: &Path, max_bytes: u64) -> Result<(), ReadError> {
        let voxels = self.dim.iter().fold(1_u64, |n, &axis| n.saturating_mul(axis as u64));
        if voxels > MAX_VOXELS {
            return Err(ReadError::TooManyVoxels { file: file.to_owned(), voxels });
        }
        let declared_bytes = voxels * self.voxel_type.bytes() as u64;
        if declared_bytes > max_bytes {
            return Err(ReadError::HeaderSize { file: file.to_owned(), declared_bytes, max_bytes });
        }
        Ok(())
    }

    pub fn voxels(&self) -> usize {
        self.dim.iter().product()
    }

    pub fn bytes(&self) -> u64 {
        (self.voxels() * self.voxel_type.bytes()) as u64
    }

    /// Reads all voxels, and the stream to its end, so that a decompressor verifies its checksum.
    pub fn read<T: FromNumber>(
        &self,
        file: &Path,
        mut stream: impl Read,
        conversion: &T::Conversion<'_>,
    ) -> Result<Vec<T>, ReadError> {
        const CHUNK_VOXELS: usize = 1 << 15;
        let size = self.voxel_type.bytes();
        let total = self.voxels();
        let mut voxels = Vec::with_capacity(total);
        let mut bytes = vec![0; CHUNK_VOXELS * size];
        let mut numbers = Vec::with_capacity(CHUNK_VOXELS);
        while voxels.len() < total {
            let expected = CHUNK_VOXELS.min(total - voxels.len()) * size;
            let found = read_up_to(&mut stream, &mut bytes[..expected])
                .map_err(|source| self.stream_error(file, source, (voxels.len() * size) as u64))?;
            if found < expected {
                return Err(ReadError::Truncated {
                    file: file.to_owned(),
                    expected_bytes: self.bytes(),
                    found_bytes: (voxels.len() * size + found) as u64,
                });
            }
            numbers.clear();
            self.voxel_type.decode(self.order, &bytes[..expected], &mut numbers);
            let start = voxels.len();
            T::append(conversion, &numbers, &mut voxels).map_err(|invalid| {
                let voxel = self.voxel_indices(start + invalid.index);
                invalid.into_error(file, voxel)
            })?;
        }
        // A decompressor checks its sum after the last voxel.
        let rest = read_up_to(&mut stream, &mut bytes[..1])
            .map_err(|source| decode_error(file, source))?;
        if rest > 0 {
            return Err(ReadError::TooLong { file: file.to_owned(), expected_bytes: self.bytes() });
        }
        Ok(voxels)
    }

    /// The indices along the three axes of voxel `index` of the stream.
    fn voxel_indices(&self, index: usize) -> [usize; 3] {
        let [x, y, _] = self.dim;
        [index % x, index / x % y, index / (x * y)]
    }

    fn stream_error(&self, file: &Path, source: std::io::Error, found_bytes: u64) -> ReadError {
        match source.kind() {
            std::io::ErrorKind::UnexpectedEof => ReadError::Truncated {
                file: file.to_owned(),
                expected_bytes: self.bytes(),
                found_bytes,
            },
            _ => decode_error(file, source),
        }
    }
}

/// Converts an error of a stream: errors of a decompressor mean a damaged file, others come from
/// the operating system.
pub(crate) fn decode_error(file: &Path, source: std::io::Error) -> ReadError {
    match source.kind() {
        std::io::ErrorKind::InvalidData
        | std::io::ErrorKind::InvalidInput
        | std::io::ErrorKind::UnexpectedEof => ReadError::Format {
            file: file.to_owned(),
            expected: "compressed file",
            found: match source.kind() {
                std::io::ErrorKind::UnexpectedEof => "it is truncated".to_owned(),
                _ => source.to_string(),
            },
            remedy: "copy or download it again",
        },
        _ => ReadError::io(file)(source),
    }
}

/// Checks that image and label of one file have the same shape.
pub(crate) fn check_shapes(file: &Path, image: &[usize], label: &[usize]) -> Result<(), ReadError> {
    if image == label {
        return Ok(());
    }
    Err(ReadError::ArrayShapes {
        file: file.to_owned(),
        image: image.to_vec(),
        label: label.to_vec(),
    })
}

/// Fills `buffer` unless the stream ends before; returns the number of bytes read.
fn read_up_to(stream: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match stream.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// A number that is not a valid voxel.
#[derive(Debug)]
pub(crate) struct InvalidVoxel {
    /// Index in the chunk of numbers.
    pub index: usize,
    value: f64,
    /// For labels, the valid ones.
    expected: Option<Box<LabelMap>>,
}

impl InvalidVoxel {
    /// The error for this voxel at indices `voxel` of `file`.
    pub fn into_error(self, file: &Path, voxel: [usize; 3]) -> ReadError {
        let file = file.to_owned();
        let value = self.value;
        match self.expected {
            None => ReadError::NonFinite { file, value, voxel },
            Some(expected) => ReadError::Label { file, value, voxel, expected },
        }
    }
}

/// Slope and intercept of stored intensities.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scaling {
    pub slope: f64,
    pub intercept: f64,
}

impl Scaling {
    pub const NONE: Self = Self { slope: 1.0, intercept: 0.0 };

    fn apply(self, number: f64) -> f64 {
        number * self.slope + self.intercept
    }
}

/// A voxel that is converted from a number in a file.
pub(crate) trait FromNumber: Clone {
    /// The parameters of the conversion.
    type Conversion<'a>;

    /// Converts `numbers` and appends them to `voxels`; fails on the first invalid one.
    fn append(
        conversion: &Self::Conversion<'_>,
        numbers: &[f64],
        voxels: &mut Vec<Self>,
    ) -> Result<(), InvalidVoxel>;
}

/// How stored numbers become intensities.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Intensities {
    pub scaling: Scaling,
    /// What a voxel without a value (NaN) becomes; without it, such a voxel is an error.
    pub fill: Option<f32>,
}

impl Intensities {
    /// Numbers as they are stored.
    pub const STORED: Self = Self { scaling: Scaling::NONE, fill: None };
}

/// An intensity.
impl FromNumber for f32 {
    type Conversion<'a> = Intensities;

    fn append(
        Intensities { scaling, fill }: &Intensities,
        numbers: &[f64],
        voxels: &mut Vec<Self>,
    ) -> Result<(), InvalidVoxel> {
        let start = voxels.len();
        voxels.extend(numbers.iter().map(|&number| match fill {
            Some(fill) if number.is_nan() => *fill,
            _ => scaling.apply(number) as f32,
        }));
        match voxels[start..].iter().position(|voxel| !voxel.is_finite()) {
            None => Ok(()),
            Some(index) => {
                let value = scaling.apply(numbers[index]);
                Err(InvalidVoxel { index, value, expected: None })
            }
        }
    }
}

/// How stored numbers become labels.
#[derive(Debug)]
pub(crate) struct LabelNumbers {
    scaling: Scaling,
    /// The first number that was rounded.
    rounded: Cell<Option<f64>>,
}

impl LabelNumbers {
    /// The largest difference of a label from a whole number. Labels that a program scaled in 32
    /// bits, or stored with a slope, are that close; averages of two labels are not.
    const TOLERANCE: f64 = 0.02;

    pub fn new(scaling: Scaling) -> Self {
        Self { scaling, rounded: Cell::new(None) }
    }

    /// The label of a number; `Err` with its value if it is not a label.
    fn label(&self, number: f64) -> Result<u16, f64> {
        let value = self.scaling.apply(number);
        let label = value.round() as u16; // saturates, so other values differ from their label
        let difference = (value - f64::from(label)).abs();
        if difference > Self::TOLERANCE || value.is_nan() {
            return Err(value);
        }
        if difference > 0.0 && self.rounded.get().is_none() {
            self.rounded.set(Some(value));
        }
        Ok(label)
    }

    /// Says that labels of a file were rounded, if they were.
    pub fn report(&self, file: &Path) {
        if let Some(value) = self.rounded.get() {
            log::warn!(
                "{}: labels are not whole numbers, such as {value}; they are rounded",
                file.display()
            );
        }
    }
}

/// A label.
impl FromNumber for u16 {
    type Conversion<'a> = LabelNumbers;

    fn append(
        labels: &LabelNumbers,
        numbers: &[f64],
        voxels: &mut Vec<Self>,
    ) -> Result<(), InvalidVoxel> {
        for (index, &number) in numbers.iter().enumerate() {
            let label = labels.label(number).map_err(|value| InvalidVoxel {
                index,
                value,
                expected: Some(Box::new(LabelMap::new(&[], &IgnoredLabels::Others))),
            })?;
            voxels.push(label);
        }
        Ok(())
    }
}

/// A class, by its label.
impl FromNumber for u8 {
    type Conversion<'a> = (LabelNumbers, &'a LabelMap);

    fn append(
        (labels, map): &Self::Conversion<'_>,
        numbers: &[f64],
        voxels: &mut Vec<Self>,
    ) -> Result<(), InvalidVoxel> {
        for (index, &number) in numbers.iter().enumerate() {
            let label = labels.label(number);
            let class = label.and_then(|label| map.class_of(label).ok_or(label.into()));
            let class = class.map_err(|value| {
                let expected = Some(Box::new((*map).clone()));
                InvalidVoxel { index, value, expected }
            })?;
            voxels.push(class);
        }
        Ok(())
    }
}
