//! Resizing of 8-bit images as the published programs do it.

use image::{Rgb, RgbImage};

/// The size of an image whose longest side becomes `longest`, in pixels: width and height.
pub(super) fn longest_side_size([width, height]: [u32; 2], longest: u32) -> [u32; 2] {
    let scale = f64::from(longest) / f64::from(width.max(height));
    [width, height].map(|side| ((f64::from(side) * scale + 0.5) as u32).max(1))
}

/// Resizes bilinearly with antialiasing, as Pillow's `Image.resize` does; SAM's images are resized
/// with it.
///
/// Equal to Pillow 12 in every bit: first along the rows, then along the columns, each pass with
/// weights of 22 bits and rounded to 8 bits. (Pillow 13 begins with the columns at some sizes, so
/// that single values differ by 1.) With `fast_image_resize`, 5 % of the pixels differ by 1, and
/// the logits of the tests' model by 3 % of the largest.
pub(super) fn bilinear(image: &RgbImage, [width, height]: [u32; 2]) -> RgbImage {
    let (from_width, from_height) = image.dimensions();
    let mut image = image.clone();
    if from_width != width {
        let taps = triangles(from_width, width);
        image = RgbImage::from_fn(width, from_height, |x, y| {
            let (first, weights) = &taps[x as usize];
            weighted(weights, |i| image.get_pixel(first + i, y))
        });
    }
    if from_height != height {
        let taps = triangles(from_height, height);
        image = RgbImage::from_fn(width, height, |x, y| {
            let (first, weights) = &taps[y as usize];
            weighted(weights, |i| image.get_pixel(x, first + i))
        });
    }
    image
}

/// Bits of Pillow's weights after the binary point.
const PILLOW_BITS: u32 = 22;

/// For each target pixel, the first source pixel and the weights of it and of those after it: a
/// triangle as wide as two pixels of the coarser of the two grids.
fn triangles(from: u32, to: u32) -> Vec<(u32, Vec<i64>)> {
    let scale = f64::from(from) / f64::from(to);
    let support = scale.max(1.0);
    let taps = |target: u32| {
        let centre = (f64::from(target) + 0.5) * scale;
        let first = (centre - support + 0.5).max(0.0) as u32;
        let end = ((centre + support + 0.5) as u32).min(from);
        let weights: Vec<f64> = (first..end)
            .map(|source| 1.0 - ((f64::from(source) + 0.5 - centre) / support).abs())
            .map(|weight| weight.max(0.0))
            .collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |weight: f64| (weight / sum * f64::from(1 << PILLOW_BITS) + 0.5) as i64;
        (first, weights.into_iter().map(fixed).collect())
    };
    (0..to).map(taps).collect()
}

/// The weighted mean of source pixels, in fixed-point numbers.
fn weighted<'a>(weights: &[i64], pixel: impl Fn(u32) -> &'a Rgb<u8>) -> Rgb<u8> {
    let mut sums = [1 << (PILLOW_BITS - 1); 3];
    for (i, weight) in (0..).zip(weights) {
        for (sum, value) in sums.iter_mut().zip(pixel(i).0) {
            *sum += weight * i64::from(value);
        }
    }
    Rgb(sums.map(|sum| (sum >> PILLOW_BITS).clamp(0, 255) as u8))
}

/// Resizes as OpenCV's `INTER_AREA`, which LiteMedSAM's images are resized with: each pixel is the
/// mean of the area that it covers. An image that is enlarged is interpolated between the edges of
/// its pixels.
pub(super) fn area(image: &RgbImage, [width, height]: [u32; 2]) -> RgbImage {
    let (from_width, from_height) = image.dimensions();
    if (from_width, from_height) == (width, height) {
        return image.clone();
    }
    if width > from_width || height > from_height {
        return between_edges(image, [width, height]);
    }
    let (columns, rows) = (covered(from_width, width), covered(from_height, height));
    // OpenCV adds up the four pixels as integers if both sides are halved, and rounds halves up.
    let is_halved = from_width == 2 * width && from_height == 2 * height;
    let round =
        |value: f64| if is_halved { (value + 0.5).floor() } else { value.round_ties_even() };
    RgbImage::from_fn(width, height, |x, y| {
        let mut sums = [0.0; 3];
        for &(row, row_weight) in &rows[y as usize] {
            for &(column, column_weight) in &columns[x as usize] {
                let weight = row_weight * column_weight;
                for (sum, value) in sums.iter_mut().zip(image.get_pixel(column, row).0) {
                    *sum += weight * f64::from(value);
                }
            }
        }
        Rgb(sums.map(|sum| round(sum) as u8))
    })
}

/// Source pixels and their weights.
type Taps = Vec<(u32, f64)>;

/// For each target pixel, the source pixels that it covers.
fn covered(from: u32, to: u32) -> Vec<Taps> {
    let scale = f64::from(from) / f64::from(to);
    let taps = |target: u32| {
        let (start, end) = (f64::from(target) * scale, f64::from(target + 1) * scale);
        let last = (end.ceil() as u32).min(from);
        (start as u32..last)
            .map(|source| {
                let (left, right) = (f64::from(source), f64::from(source + 1));
                (source, (right.min(end) - left.max(start)) / scale)
            })
            .filter(|&(_, weight)| weight > 1e-9)
            .collect()
    };
    (0..to).map(taps).collect()
}

/// Enlarges an image in OpenCV's fixed-point numbers: weights of 11 bits, four bits dropped between
/// the rows and the columns.
fn between_edges(image: &RgbImage, [width, height]: [u32; 2]) -> RgbImage {
    let columns = edge_weights(image.width(), width);
    let rows = edge_weights(image.height(), height);
    RgbImage::from_fn(width, height, |x, y| {
        let ([left, right], [left_weight, right_weight]) = columns[x as usize];
        let ([top, bottom], [top_weight, bottom_weight]) = rows[y as usize];
        Rgb(std::array::from_fn(|channel| {
            let row = |y: u32| {
                let value = |x: u32| i32::from(image.get_pixel(x, y).0[channel]);
                value(left) * left_weight + value(right) * right_weight
            };
            let part = |row: i32, weight: i32| (weight * (row >> 4)) >> 16;
            let sum = part(row(top), top_weight) + part(row(bottom), bottom_weight);
            ((sum + 2) >> 2).clamp(0, 255) as u8
        }))
    })
}

/// For each target pixel, the source pixel under its left edge and the next one, and their weights:
/// the next one's is the part of the target pixel that it covers.
fn edge_weights(from: u32, to: u32) -> Vec<([u32; 2], [i32; 2])> {
    let scale = f64::from(from) / f64::from(to);
    let taps = |target: u32| {
        let source = ((f64::from(target) * scale) as u32).min(from - 1);
        let covered = (f64::from(target + 1) - f64::from(source + 1) / scale) as f32;
        let is_last = source + 1 >= from;
        let fraction = if covered <= 0.0 || is_last { 0.0 } else { covered.fract() };
        let fixed = |weight: f32| (weight * 2048.0).round_ties_even() as i32;
        ([source, (source + 1).min(from - 1)], [fixed(1.0 - fraction), fixed(fraction)])
    };
    (0..to).map(taps).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_side_is_scaled_and_the_other_rounded() {
        assert_eq!(longest_side_size([640, 480], 1024), [1024, 768]);
        assert_eq!(longest_side_size([3, 1000], 256), [1, 256]);
        assert_eq!(longest_side_size([500, 1], 256), [256, 1]);
        assert_eq!(longest_side_size([333, 512], 256), [167, 256]);
    }

    #[test]
    fn an_area_is_a_mean() {
        let image = RgbImage::from_fn(4, 2, |x, y| Rgb([(10 * x + y) as u8, 7, (x % 2) as u8]));
        let halved = area(&image, [2, 1]);
        assert_eq!(halved.get_pixel(0, 0).0, [6, 7, 1]); // 5.5 and 0.5 are rounded up
        assert_eq!(halved.get_pixel(1, 0).0, [26, 7, 1]);
        // Three pixels become two: each covers one and a half.
        let row = RgbImage::from_fn(3, 1, |x, _| Rgb([(30 * x) as u8; 3]));
        assert_eq!(area(&row, [2, 1]).as_raw()[..6], [10, 10, 10, 50, 50, 50]);
    }
}
