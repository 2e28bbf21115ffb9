//! The innermost loops: products of rows with panels of columns, whose sums stay in registers.

use pulp::Simd;

/// Rows of a product that are summed at once, where there are 32 vector registers.
const ROWS: usize = 8;
/// Vectors side by side in a panel: 8 rows of 2 are 16 sums, enough to hide the latency of a multiply-add.
pub const VECTORS: usize = 2;

/// Sums of `R` rows by one panel.
pub type Sums<S, const R: usize> = [[<S as Simd>::f32s; VECTORS]; R];

/// Columns of a panel.
pub fn panel_width<S: Simd>() -> usize {
    VECTORS * S::F32_LANES
}

/// Work on many rows that is done for some of them at once.
pub trait Groups {
    /// Does rows `first` to `first + R`.
    fn group<S: Simd, const R: usize>(&mut self, simd: S, first: usize);
}

/// Does `count` rows in groups as large as the registers allow.
#[inline(always)]
pub fn in_groups<S: Simd>(simd: S, count: usize, work: &mut impl Groups) {
    let mut first = 0;
    // Narrow vectors come with 16 registers, which hold the sums of half as many rows.
    if S::F32_LANES >= 16 {
        while first + ROWS <= count {
            work.group::<S, ROWS>(simd, first);
            first += ROWS;
        }
    }
    while first + ROWS / 2 <= count {
        work.group::<S, { ROWS / 2 }>(simd, first);
        first += ROWS / 2;
    }
    while first < count {
        work.group::<S, 1>(simd, first);
        first += 1;
    }
}

/// Zero sums.
#[inline(always)]
pub fn zeros<S: Simd, const R: usize>(simd: S) -> Sums<S, R> {
    [[simd.splat_f32s(0.0); VECTORS]; R]
}

/// Adds to each row's sums the product of its values with the panel: `sums[r] += rows[r] . panel`, with the panel's values row
/// by row.
#[inline(always)]
pub fn multiply_add<S: Simd, const R: usize>(
    simd: S,
    rows: [&[f32]; R],
    panel: &[f32],
    sums: &mut Sums<S, R>,
) {
    let (panel, _) = S::as_simd_f32s(panel);
    let (panel, _) = panel.as_chunks::<VECTORS>();
    let rows = rows.map(|row| &row[..panel.len()]);
    // So written, no bound is checked and the sums stay in registers.
    let mut local = *sums;
    for (k, columns) in panel.iter().enumerate() {
        for r in 0..R {
            let value = simd.splat_f32s(rows[r][k]);
            for v in 0..VECTORS {
                local[r][v] = simd.mul_add_f32s(value, columns[v], local[r][v]);
            }
        }
    }
    *sums = local;
}

/// Adds, for each pixel, the outer product of `R` values, `step` apart from pixel to pixel, with its columns.
#[inline(always)]
pub fn add_outer_products<S: Simd, const R: usize>(
    simd: S,
    values: &[f32],
    step: usize,
    columns: impl Iterator<Item = [S::f32s; VECTORS]>,
    sums: &mut Sums<S, R>,
) {
    let mut local = *sums; // stay in registers
    for (pixel, columns) in columns.enumerate() {
        let Some(values) = values[pixel * step..].first_chunk::<R>() else {
            unreachable!("each pixel has its values");
        };
        for r in 0..R {
            let value = simd.splat_f32s(values[r]);
            for v in 0..VECTORS {
                local[r][v] = simd.mul_add_f32s(value, columns[v], local[r][v]);
            }
        }
    }
    *sums = local;
}

/// A whole panel's width of values.
///
/// # Panics
///
/// If there are fewer.
#[inline(always)]
pub fn load_whole<S: Simd>(values: &[f32]) -> [S::f32s; VECTORS] {
    let (vectors, _) = S::as_simd_f32s(values);
    *vectors.first_chunk().expect("a panel's width")
}

/// Reads up to a panel's width of values, zeros where there are no more.
#[inline(always)]
pub fn load<S: Simd>(simd: S, values: &[f32]) -> [S::f32s; VECTORS] {
    let (whole, _) = S::as_simd_f32s(values);
    match whole.first_chunk::<VECTORS>() {
        Some(&whole) => whole,
        None => std::array::from_fn(|vector| {
            let start = (vector * S::F32_LANES).min(values.len());
            let end = (start + S::F32_LANES).min(values.len());
            simd.partial_load_f32s(&values[start..end])
        }),
    }
}

/// Writes as many sums as there is room for.
#[inline(always)]
pub fn store<S: Simd>(simd: S, sums: &[S::f32s; VECTORS], out: &mut [f32]) {
    let (whole, _) = S::as_mut_simd_f32s(out);
    if let Some(whole) = whole.first_chunk_mut::<VECTORS>() {
        *whole = *sums;
        return;
    }
    for (part, &sum) in out.chunks_mut(S::F32_LANES).zip(sums) {
        simd.partial_store_f32s(part, sum);
    }
}
