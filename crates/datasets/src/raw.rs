//! Voxels from a stream of bytes whose length a header merely announces.

use crate::voxel_type::{ByteOrder, VoxelType};
use crate::{LabelMap, MAX_VOXELS, ReadError};
use std::io::Read;
use std::path::Path;

/// Deflate never makes more than this of one byte.
pub(crate) const LARGEST_DEFLATE_RATIO: u64 = 1032;

/// What a header announces.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Announced {
    pub voxel_type: VoxelType,
    pub order: ByteOrder,
    /// Voxels along each axis, the first running fastest; ones beyond the last.
    pub dim: [usize; 3],
}

impl Announced {
    /// Checks that a file can hold what is announced, so that memory can be taken for it.
    pub fn check(&self, file: &Path, possible_bytes: u64) -> Result<(), ReadError> {
        let voxels = self
            .dim
            .iter()
            .fold(1_u64, |n, &axis| n.saturating_mul(axis as u64));
        if voxels > MAX_VOXELS {
            return Err(ReadError::TooManyVoxels {
                file: file.to_owned(),
                voxels,
            });
        }
        let announced_bytes = voxels * self.voxel_type.bytes() as u64;
        if announced_bytes > possible_bytes {
            return Err(ReadError::HeaderSize {
                file: file.to_owned(),
                announced_bytes,
                possible_bytes,
            });
        }
        Ok(())
    }

    pub fn voxels(&self) -> usize {
        self.dim.iter().product()
    }

    pub fn bytes(&self) -> u64 {
        (self.voxels() * self.voxel_type.bytes()) as u64
    }

    /// Reads all voxels, and the stream to its end, which lets it check its checksum.
    pub fn read<T: FromNumber>(
        &self,
        file: &Path,
        mut stream: impl Read,
        sink: &T::Sink<'_>,
    ) -> Result<Vec<T>, ReadError> {
        const PIECE: usize = 1 << 15;
        let size = self.voxel_type.bytes();
        let total = self.voxels();
        let mut voxels = Vec::with_capacity(total);
        let mut bytes = vec![0; PIECE * size];
        let mut numbers = Vec::with_capacity(PIECE);
        while voxels.len() < total {
            let wanted = PIECE.min(total - voxels.len()) * size;
            let found = read_up_to(&mut stream, &mut bytes[..wanted])
                .map_err(|source| self.stream_error(file, source, (voxels.len() * size) as u64))?;
            if found < wanted {
                return Err(ReadError::Truncated {
                    file: file.to_owned(),
                    expected_bytes: self.bytes(),
                    found_bytes: (voxels.len() * size + found) as u64,
                });
            }
            numbers.clear();
            self.voxel_type
                .decode(self.order, &bytes[..wanted], &mut numbers);
            let start = voxels.len();
            T::append(sink, &numbers, &mut voxels).map_err(|bad| {
                let voxel = self.place(start + bad.index);
                bad.at(file, voxel)
            })?;
        }
        let rest = read_up_to(&mut stream, &mut bytes[..1])
            .map_err(|source| self.stream_error(file, source, self.bytes()))?;
        if rest > 0 {
            return Err(ReadError::TooLong {
                file: file.to_owned(),
                expected_bytes: self.bytes(),
            });
        }
        Ok(voxels)
    }

    fn place(&self, index: usize) -> [usize; 3] {
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
            _ => damaged(file, source),
        }
    }
}

/// A failed read: what a decompressor complains of is the file's fault, anything else the machine's.
pub(crate) fn damaged(file: &Path, source: std::io::Error) -> ReadError {
    match source.kind() {
        std::io::ErrorKind::InvalidData
        | std::io::ErrorKind::InvalidInput
        | std::io::ErrorKind::UnexpectedEof => ReadError::Format {
            file: file.to_owned(),
            expected: "compressed file",
            found: source.to_string(),
        },
        _ => ReadError::io(file)(source),
    }
}

/// Image and label of one file have one shape.
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

/// A number that cannot be a voxel, by its place in the piece.
#[derive(Debug)]
pub(crate) struct Bad {
    pub index: usize,
    value: f64,
    expected: Option<Box<LabelMap>>,
}

impl Bad {
    pub fn at(self, file: &Path, voxel: [usize; 3]) -> ReadError {
        let file = file.to_owned();
        let value = self.value;
        match self.expected {
            None => ReadError::NonFinite { file, value, voxel },
            Some(expected) => ReadError::Label {
                file,
                value,
                voxel,
                expected,
            },
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
    pub const NONE: Self = Self {
        slope: 1.0,
        intercept: 0.0,
    };

    fn apply(self, number: f64) -> f64 {
        number * self.slope + self.intercept
    }
}

/// What numbers of a file become.
pub(crate) trait FromNumber: Clone {
    type Sink<'a>;

    fn append(sink: &Self::Sink<'_>, numbers: &[f64], voxels: &mut Vec<Self>) -> Result<(), Bad>;
}

/// Intensities.
impl FromNumber for f32 {
    type Sink<'a> = Scaling;

    fn append(scaling: &Scaling, numbers: &[f64], voxels: &mut Vec<Self>) -> Result<(), Bad> {
        let start = voxels.len();
        voxels.extend(numbers.iter().map(|&number| scaling.apply(number) as f32));
        match voxels[start..].iter().position(|voxel| !voxel.is_finite()) {
            None => Ok(()),
            Some(index) => Err(Bad {
                index,
                value: scaling.apply(numbers[index]),
                expected: None,
            }),
        }
    }
}

/// Classes, by way of labels.
impl FromNumber for u8 {
    type Sink<'a> = (Scaling, &'a LabelMap);

    fn append(
        (scaling, map): &Self::Sink<'_>,
        numbers: &[f64],
        voxels: &mut Vec<Self>,
    ) -> Result<(), Bad> {
        for (index, &number) in numbers.iter().enumerate() {
            let value = scaling.apply(number);
            // Saturates, so that what is no byte is unequal.
            let label = value as u8;
            match map.class_of(label) {
                Some(class) if f64::from(label) == value => voxels.push(class),
                _ => {
                    return Err(Bad {
                        index,
                        value,
                        expected: Some(Box::new((*map).clone())),
                    });
                }
            }
        }
        Ok(())
    }
}
