//! Linear resampling of channels-last images along rows and columns, as in a bilinear resize.

use crate::autodiff::{FlexTensor, Operation, apply, contiguous, tensor, values};
use crate::buffer;
use crate::taps::Taps;
use burn::tensor::Tensor;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::sync::Arc;

/// Replaces the rows and the columns of images by weighted sums of them.
///
/// # Shapes
///
/// - input: `[B, H, W, C]`
/// - output: `[B, rows.to(), columns.to(), C]`
///
/// # Panics
///
/// If the input is not supported ([`is_supported`](crate::is_supported)), or has another number of
/// rows than `rows.from()` or of columns than `columns.from()`.
pub fn resample(input: Tensor<4>, rows: Taps, columns: Taps) -> Tensor<4> {
    let [batch, height, width, channels] = input.dims();
    assert_eq!([height, width], [rows.from(), columns.from()], "rows and columns of the input");
    let resample = Resample { batch, channels, rows: Arc::new(rows), columns: Arc::new(columns) };
    apply(resample, [input.into()])
}

#[derive(Debug, Clone)]
struct Resample {
    batch: usize,
    channels: usize,
    rows: Arc<Taps>,
    columns: Arc<Taps>,
}

impl Operation<1> for Resample {
    type Saved = ();

    fn forward(&self, [input]: [FlexTensor; 1], _: [bool; 1]) -> (FlexTensor, Self::Saved) {
        (self.apply(&input), ())
    }

    fn backward(
        &self,
        (): Self::Saved,
        gradient: FlexTensor,
        _: [bool; 1],
    ) -> [Option<FlexTensor>; 1] {
        let transposed = Self {
            rows: Arc::new(self.rows.transposed()),
            columns: Arc::new(self.columns.transposed()),
            ..self.clone()
        };
        [Some(transposed.apply(&gradient))]
    }
}

impl Resample {
    fn apply(&self, input: &FlexTensor) -> FlexTensor {
        let Self { batch, channels, rows, columns } = self;
        let input = contiguous(input.clone());
        let image_values = rows.from() * columns.from() * channels;
        let mut output = buffer::zeros(batch * rows.to() * columns.to() * channels);
        let arch = Arch::new();
        let rows_out = output.par_chunks_mut(columns.to() * channels);
        rows_out.enumerate().for_each_init(Vec::new, |blended, (index, out)| {
            let image = &values(&input)[index / rows.to() * image_values..][..image_values];
            arch.dispatch(Row {
                image,
                channels: *channels,
                taps: rows.of(index % rows.to()),
                columns,
                blended,
                out,
            });
        });
        tensor(output, [*batch, rows.to(), columns.to(), *channels])
    }
}

/// Computes a row of the output.
struct Row<'a> {
    image: &'a [f32],
    channels: usize,
    /// The input rows of which it is the weighted sum.
    taps: &'a [(usize, f32)],
    columns: &'a Taps,
    /// Space for that sum.
    blended: &'a mut Vec<f32>,
    out: &'a mut [f32],
}

impl WithSimd for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let row_values = self.columns.from() * self.channels;
        self.blended.clear();
        self.blended.resize(row_values, 0.0);
        let image = self.image;
        weighted_sum(self.taps, |row| &image[row * row_values..][..row_values], self.blended);
        let (blended, channels) = (&*self.blended, self.channels);
        for (column, out) in self.out.chunks_exact_mut(channels).enumerate() {
            let pixel = |column: usize| &blended[column * channels..][..channels];
            weighted_sum(self.columns.of(column), pixel, out);
        }
    }
}

/// Writes the weighted sum of slices to `out`, which is 0.
#[inline(always)]
fn weighted_sum<'a>(taps: &[(usize, f32)], values: impl Fn(usize) -> &'a [f32], out: &mut [f32]) {
    if let &[(first, first_weight), (second, second_weight)] = taps {
        let pairs = values(first).iter().zip(values(second));
        for (out, (first, second)) in out.iter_mut().zip(pairs) {
            *out = first_weight * first + second_weight * second;
        }
        return;
    }
    for &(index, weight) in taps {
        for (out, value) in out.iter_mut().zip(values(index)) {
            *out += weight * value;
        }
    }
}
