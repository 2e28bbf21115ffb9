//! The innermost loops of matrix products: a block of rows times a panel of columns, with sums that
//! stay in registers.

use pulp::{Arch, Simd, WithSimd};

/// Rows of a block on a machine with 32 vector registers.
const ROWS: usize = 8;
/// Vectors in a row of a panel: 8 rows of 2 are 16 sums, enough to hide the latency of a
/// multiply-add. Panels for so few columns that they fit one vector have one.
pub const VECTORS: usize = 2;

/// Sums of `R` rows times one panel.
pub type Sums<S, const R: usize, const V: usize = VECTORS> = [[<S as Simd>::f32s; V]; R];

/// Number of columns of a panel.
pub fn panel_width<S: Simd>() -> usize {
    VECTORS * S::F32_LANES
}

/// Number of vectors of the panels for this number of columns, and the panels' number of columns.
pub fn panel_vectors(columns: usize) -> (usize, usize) {
    let lanes = Arch::new().dispatch(Lanes);
    let vectors = if columns <= lanes { 1 } else { VECTORS };
    (vectors, vectors * lanes)
}

struct Lanes;

impl WithSimd for Lanes {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        S::F32_LANES
    }
}

/// A computation over many rows that handles a block of them at once.
pub trait BlockKernel {
    /// Computes rows `first` to `first + R`.
    fn block<S: Simd, const R: usize>(&mut self, simd: S, first: usize);
}

/// Computes `count` rows in blocks as large as the registers allow.
#[inline(always)]
pub fn for_each_block<S: Simd>(simd: S, count: usize, kernel: &mut impl BlockKernel) {
    let mut first = 0;
    // Machines with narrower vectors have 16 registers, which hold the sums of half as many rows.
    if S::F32_LANES >= 16 {
        while first + ROWS <= count {
            kernel.block::<S, ROWS>(simd, first);
            first += ROWS;
        }
    }
    while first + ROWS / 2 <= count {
        kernel.block::<S, { ROWS / 2 }>(simd, first);
        first += ROWS / 2;
    }
    while first < count {
        kernel.block::<S, 1>(simd, first);
        first += 1;
    }
}

/// Zero sums.
#[inline(always)]
pub fn zeros<S: Simd, const R: usize, const V: usize>(simd: S) -> Sums<S, R, V> {
    [[simd.splat_f32s(0.0); V]; R]
}

/// Adds each row's product with the panel to its sums: `sums[r] += rows[r] * panel`. The panel is
/// stored row by row.
#[inline(always)]
pub fn multiply_add<S: Simd, const R: usize, const V: usize>(
    simd: S,
    rows: [&[f32]; R],
    panel: &[f32],
    sums: &mut Sums<S, R, V>,
) {
    let (panel, _) = S::as_simd_f32s(panel);
    let (panel, _) = panel.as_chunks::<V>();
    let rows = rows.map(|row| &row[..panel.len()]);
    // In this form, no bound is checked and the sums stay in registers.
    let mut local = *sums;
    for (k, columns) in panel.iter().enumerate() {
        for r in 0..R {
            let value = simd.splat_f32s(rows[r][k]);
            for v in 0..V {
                local[r][v] = simd.mul_add_f32s(value, columns[v], local[r][v]);
            }
        }
    }
    *sums = local;
}

/// Adds, for each pixel, the outer product of its `R` values and its columns. The values of one
/// pixel start `step` after those of the previous one.
#[inline(always)]
pub fn add_outer_products<S: Simd, const R: usize, const V: usize>(
    simd: S,
    values: &[f32],
    step: usize,
    columns: impl Iterator<Item = [S::f32s; V]>,
    sums: &mut Sums<S, R, V>,
) {
    let mut local = *sums; // stays in registers
    for (pixel, columns) in columns.enumerate() {
        let Some(values) = values[pixel * step..].first_chunk::<R>() else {
            unreachable!("each pixel has R values");
        };
        for r in 0..R {
            let value = simd.splat_f32s(values[r]);
            for v in 0..V {
                local[r][v] = simd.mul_add_f32s(value, columns[v], local[r][v]);
            }
        }
    }
    *sums = local;
}

/// Loads a panel's width of values.
///
/// # Panics
///
/// If there are fewer.
#[inline(always)]
pub fn load_full<S: Simd, const V: usize>(values: &[f32]) -> [S::f32s; V] {
    let (vectors, _) = S::as_simd_f32s(values);
    *vectors.first_chunk().expect("a panel's width")
}

/// Loads up to a panel's width of values, followed by zeros.
#[inline(always)]
pub fn load<S: Simd, const V: usize>(simd: S, values: &[f32]) -> [S::f32s; V] {
    let (vectors, _) = S::as_simd_f32s(values);
    match vectors.first_chunk::<V>() {
        Some(&vectors) => vectors,
        None => std::array::from_fn(|vector| {
            let start = (vector * S::F32_LANES).min(values.len());
            let end = (start + S::F32_LANES).min(values.len());
            simd.partial_load_f32s(&values[start..end])
        }),
    }
}

/// Stores as many sums as `out` holds.
#[inline(always)]
pub fn store<S: Simd, const V: usize>(simd: S, sums: &[S::f32s; V], out: &mut [f32]) {
    let (vectors, _) = S::as_mut_simd_f32s(out);
    if let Some(vectors) = vectors.first_chunk_mut::<V>() {
        *vectors = *sums;
        return;
    }
    for (out, &sum) in out.chunks_mut(S::F32_LANES).zip(sums) {
        simd.partial_store_f32s(out, sum);
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    /// Without pulp's feature for an instruction set, kernels fall back to scalar code, in which
    /// each fused multiply-add is a function call: tens of times slower.
    #[test]
    fn vector_instructions_of_the_cpu_are_used() {
        let lanes = if is_x86_feature_detected!("avx512f") {
            16
        } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            8
        } else {
            return;
        };
        assert_eq!(Arch::new().dispatch(Lanes), lanes);
        // Both sets are compiled in, whichever this machine has.
        assert!(matches!(Arch::new(), Arch::V3(_) | Arch::V4(_)));
    }
}
