//! The number types of voxels in files.

/// An integer or float type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VoxelType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F16,
    F32,
    F64,
}

/// Expands a macro with the Rust type of a [`VoxelType`].
macro_rules! with_type {
    ($voxel_type:expr, $call:ident $(, $arguments:expr)*) => {
        match $voxel_type {
            VoxelType::U8 => $call!(u8 $(, $arguments)*),
            VoxelType::I8 => $call!(i8 $(, $arguments)*),
            VoxelType::U16 => $call!(u16 $(, $arguments)*),
            VoxelType::I16 => $call!(i16 $(, $arguments)*),
            VoxelType::U32 => $call!(u32 $(, $arguments)*),
            VoxelType::I32 => $call!(i32 $(, $arguments)*),
            VoxelType::U64 => $call!(u64 $(, $arguments)*),
            VoxelType::I64 => $call!(i64 $(, $arguments)*),
            VoxelType::F16 => $call!(half::f16 $(, $arguments)*),
            VoxelType::F32 => $call!(f32 $(, $arguments)*),
            VoxelType::F64 => $call!(f64 $(, $arguments)*),
        }
    };
}

/// A number that converts to `f64`, exactly except for 64-bit integers beyond 2^53.
trait Number: Copy {
    fn to_f64(self) -> f64;
}

macro_rules! numbers {
    ($($type:ty),*) => {
        $(impl Number for $type {
            fn to_f64(self) -> f64 {
                self as f64
            }
        })*
    };
}
numbers!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64);

impl Number for half::f16 {
    fn to_f64(self) -> f64 {
        half::f16::to_f64(self)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ByteOrder {
    Little,
    Big,
}

impl VoxelType {
    /// Size of a voxel.
    pub fn bytes(self) -> usize {
        macro_rules! size {
            ($type:ty) => {
                size_of::<$type>()
            };
        }
        with_type!(self, size)
    }

    /// Decodes `bytes`, whose length is a multiple of the voxel size, and appends the numbers.
    pub fn decode(self, order: ByteOrder, bytes: &[u8], numbers: &mut Vec<f64>) {
        macro_rules! decode {
            ($type:ty) => {{
                let chunks = bytes.as_chunks::<{ size_of::<$type>() }>().0.iter();
                match order {
                    ByteOrder::Little => {
                        numbers.extend(chunks.map(|&chunk| <$type>::from_le_bytes(chunk).to_f64()));
                    }
                    ByteOrder::Big => {
                        numbers.extend(chunks.map(|&chunk| <$type>::from_be_bytes(chunk).to_f64()));
                    }
                }
            }};
        }
        with_type!(self, decode);
    }
}
