//! The sums over pixels that cross entropy and soft Dice consist of, in one pass over the logits,
//! and their gradient in another.

use crate::autodiff::{FlexTensor, Operation, apply, contiguous, shape, tensor, values};
use crate::buffer;
use crate::math::{LANES, exp};
use burn::tensor::Tensor;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::sync::Arc;

/// Pixels that are processed together: their values of one class stay in the cache.
const PIXELS: usize = 512;
/// Rows of the output.
const SUMS: usize = 4;

/// Sums over the pixels of a batch, with softmax probabilities `p` of the logits:
///
/// | row | for each class |
/// |---|---|
/// | 0 | the sum of `p` over the pixels of the class |
/// | 1 | the sum of `p^2` over all pixels |
/// | 2 | the sum of `-log p` over the pixels of the class |
/// | 3 | the number of pixels of the class |
///
/// Pixels whose class is `K + 1` are left out; those of class `K` belong to no class and count in
/// row 1 only. Logits are clamped to `largest` in magnitude; gradients are those of the clamped
/// values.
///
/// # Shapes
///
/// - logits: `[B, K, H, W]`
/// - classes: `B H W` values, each at most `K + 1`
/// - output: `[4, K]`
///
/// # Panics
///
/// If the logits are not supported ([`is_supported`](crate::is_supported)), or `classes` has another
/// length or a larger value.
pub fn class_sums(logits: Tensor<4>, classes: Vec<u32>, largest: f32) -> Tensor<2> {
    let [batch, count, height, width] = logits.dims();
    assert_eq!(classes.len(), batch * height * width, "one class for each pixel");
    let highest = classes.iter().copied().max().unwrap_or(0) as usize;
    assert!(highest <= count + 1, "class {highest} of {count} classes");
    let sums = ClassSums { count, pixels: height * width, classes: Arc::new(classes), largest };
    apply(sums, [logits.into()])
}

#[derive(Debug, Clone)]
struct ClassSums {
    /// Number of classes.
    count: usize,
    /// Pixels of an image.
    pixels: usize,
    classes: Arc<Vec<u32>>,
    largest: f32,
}

impl Operation<1> for ClassSums {
    /// Probabilities, as the logits.
    type Saved = FlexTensor;

    fn forward(&self, [logits]: [FlexTensor; 1], _: [bool; 1]) -> (FlexTensor, Self::Saved) {
        let logits = contiguous(logits);
        let arch = Arch::new();
        // Parts of images, in their order.
        let parts: Vec<(Vec<f32>, Vec<f64>)> = self
            .parts()
            .into_par_iter()
            .map(|part| {
                let mut probabilities = vec![0.0; self.count * part.pixels];
                let mut sums = vec![0.0; SUMS * self.count];
                arch.dispatch(Forward {
                    logits: &values(&logits)[part.image * self.count * self.pixels..],
                    stride: self.pixels,
                    start: part.start,
                    largest: self.largest,
                    classes: self.classes_of(part),
                    probabilities: &mut probabilities,
                    sums: &mut sums,
                });
                (probabilities, sums)
            })
            .collect();
        let mut probabilities = Vec::with_capacity(values(&logits).len());
        let mut sums = vec![0.0; SUMS * self.count];
        for (part, part_sums) in &parts {
            probabilities.extend_from_slice(part);
            for (sum, part) in sums.iter_mut().zip(part_sums) {
                *sum += part;
            }
        }
        let sums = sums.into_iter().map(|sum| sum as f32).collect();
        (tensor(sums, [SUMS, self.count]), tensor(probabilities, shape::<4>(&logits)))
    }

    fn backward(
        &self,
        probabilities: Self::Saved,
        gradient: FlexTensor,
        _: [bool; 1],
    ) -> [Option<FlexTensor>; 1] {
        let gradient = contiguous(gradient);
        let arch = Arch::new();
        let parts: Vec<Vec<f32>> = self
            .parts()
            .into_par_iter()
            .map(|part| {
                let before = (part.image * self.pixels + part.start) * self.count;
                let mut out = vec![0.0; self.count * part.pixels];
                arch.dispatch(Backward {
                    probabilities: &values(&probabilities)[before..][..self.count * part.pixels],
                    gradient: values(&gradient),
                    classes: self.classes_of(part),
                    out: &mut out,
                });
                out
            })
            .collect();
        let mut logits = buffer::zeros(values(&probabilities).len());
        for (part, gradients) in self.parts().into_iter().zip(parts) {
            let image = part.image * self.count * self.pixels;
            for (class, gradients) in gradients.chunks_exact(part.pixels).enumerate() {
                logits[image + class * self.pixels + part.start..][..part.pixels]
                    .copy_from_slice(gradients);
            }
        }
        [Some(tensor(logits, shape::<4>(&probabilities)))]
    }
}

/// Consecutive pixels of an image.
#[derive(Debug, Clone, Copy)]
struct Part {
    image: usize,
    start: usize,
    pixels: usize,
}

impl ClassSums {
    fn parts(&self) -> Vec<Part> {
        let images = self.classes.len().checked_div(self.pixels).unwrap_or(0);
        let starts = (0..self.pixels).step_by(PIXELS);
        (0..images)
            .flat_map(|image| {
                starts.clone().map(move |start| Part {
                    image,
                    start,
                    pixels: PIXELS.min(self.pixels - start),
                })
            })
            .collect()
    }

    fn classes_of(&self, part: Part) -> &[u32] {
        &self.classes[part.image * self.pixels + part.start..][..part.pixels]
    }
}

/// Probabilities of a part, class by class, and its sums.
struct Forward<'a> {
    /// From the first pixel of the image.
    logits: &'a [f32],
    /// Pixels of the image.
    stride: usize,
    start: usize,
    largest: f32,
    classes: &'a [u32],
    probabilities: &'a mut [f32],
    sums: &'a mut [f64],
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let pixels = self.classes.len();
        let count = self.probabilities.len() / pixels;
        let (limit, mut maxima, mut totals) =
            (self.largest, [f32::NEG_INFINITY; PIXELS], [0.0; PIXELS]);
        let (maxima, totals) = (&mut maxima[..pixels], &mut totals[..pixels]);
        for (class, row) in self.probabilities.chunks_exact_mut(pixels).enumerate() {
            let logits = &self.logits[class * self.stride + self.start..][..pixels];
            for ((value, &logit), largest) in row.iter_mut().zip(logits).zip(maxima.iter_mut()) {
                *value = logit.clamp(-limit, limit);
                // A NaN stays, so that the loss is NaN.
                *largest = if *value > *largest || value.is_nan() { *value } else { *largest };
            }
        }
        // The logits of the pixels' own classes, before they are replaced.
        let mut own = [0.0; PIXELS];
        for (pixel, own) in own[..pixels].iter_mut().enumerate() {
            let class = self.classes[pixel] as usize;
            if class < count {
                *own = self.probabilities[class * pixels + pixel];
            }
        }
        for row in self.probabilities.chunks_exact_mut(pixels) {
            for ((value, largest), total) in row.iter_mut().zip(&*maxima).zip(totals.iter_mut()) {
                *value = exp(*value - largest);
                *total += *value;
            }
        }
        let mut shown = [0.0; PIXELS];
        for (shown, &class) in shown[..pixels].iter_mut().zip(self.classes) {
            *shown = if class as usize <= count { 1.0 } else { 0.0 };
        }
        let (_, rest) = self.sums.split_at_mut(count);
        for (row, sum) in self.probabilities.chunks_exact_mut(pixels).zip(rest) {
            for (value, total) in row.iter_mut().zip(&*totals) {
                *value /= total;
            }
            *sum = sum_of_squares(row, &shown[..pixels]);
        }
        for (pixel, &class) in self.classes.iter().enumerate() {
            let class = class as usize;
            if class < count {
                let probability = self.probabilities[class * pixels + pixel];
                let log = own[pixel] - maxima[pixel] - totals[pixel].ln();
                self.sums[class] += f64::from(probability);
                self.sums[2 * count + class] -= f64::from(log);
                self.sums[3 * count + class] += 1.0;
            }
        }
    }
}

/// The sum of squares times weights.
#[inline(always)]
fn sum_of_squares(values: &[f32], weights: &[f32]) -> f64 {
    let mut lanes = [0.0_f32; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    let (weight_chunks, weight_rest) = weights.as_chunks::<LANES>();
    for (chunk, weights) in chunks.iter().zip(weight_chunks) {
        for ((lane, value), weight) in lanes.iter_mut().zip(chunk).zip(weights) {
            *lane += value * value * weight;
        }
    }
    let rest = rest.iter().zip(weight_rest).map(|(value, weight)| value * value * weight);
    lanes.into_iter().chain(rest).map(f64::from).sum()
}

/// Gradients of a part's logits, class by class.
struct Backward<'a> {
    probabilities: &'a [f32],
    /// Of the four sums of each class.
    gradient: &'a [f32],
    classes: &'a [u32],
    out: &'a mut [f32],
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let pixels = self.classes.len();
        let count = self.out.len() / pixels;
        let (common, rest) = self.gradient.split_at(count);
        let (squares, rest) = rest.split_at(count);
        // With dL/dp = common t + 2 squares p and the softmax, the gradient of a logit is
        // p (dL/dp - sum of p dL/dp) + negative_log (p - t) with the pixel's one-hot class t.
        let (mut dots, mut factors) = ([0.0; PIXELS], [0.0; PIXELS]);
        let (dots, factors) = (&mut dots[..pixels], &mut factors[..pixels]);
        let mut shown = [0.0; PIXELS];
        for (row, square) in self.probabilities.chunks_exact(pixels).zip(squares) {
            for (dot, value) in dots.iter_mut().zip(row) {
                *dot += 2.0 * square * value * value;
            }
        }
        for (pixel, &class) in self.classes.iter().enumerate() {
            let class = class as usize;
            shown[pixel] = if class <= count { 1.0 } else { 0.0 };
            if class < count {
                dots[pixel] += common[class] * self.probabilities[class * pixels + pixel];
                factors[pixel] = rest[class];
            }
        }
        let rows = self.probabilities.chunks_exact(pixels).zip(squares);
        for (out, (row, square)) in self.out.chunks_exact_mut(pixels).zip(rows) {
            let per_pixel = dots.iter().zip(&*factors).zip(&shown[..pixels]);
            for ((out, value), ((dot, factor), shown)) in out.iter_mut().zip(row).zip(per_pixel) {
                *out = shown * value * (2.0 * square * value - dot + factor);
            }
        }
        for (pixel, &class) in self.classes.iter().enumerate() {
            let class = class as usize;
            if class < count {
                let index = class * pixels + pixel;
                self.out[index] += common[class] * self.probabilities[index] - rest[class];
            }
        }
    }
}
