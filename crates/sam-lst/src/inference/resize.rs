//! Resizing of 8-bit images as the published programs do it.

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;

/// The size of an image whose longest side becomes `longest`, in pixels: width and height.
pub(super) fn longest_side_size([width, height]: [u32; 2], longest: u32) -> [u32; 2] {
    let scale = f64::from(longest) / f64::from(width.max(height));
    [width, height].map(|side| ((f64::from(side) * scale + 0.5) as u32).max(1))
}

/// Resizes bilinearly with antialiasing, as Pillow's `Image.resize` does; SAM's images are resized
/// with it.
pub(super) fn bilinear(image: &RgbImage, [width, height]: [u32; 2]) -> RgbImage {
    if image.dimensions() == (width, height) {
        return image.clone();
    }
    let source = ImageRef::new(image.width(), image.height(), image.as_raw(), PixelType::U8x3)
        .expect("an RGB image has three bytes for each pixel");
    let mut target = Image::new(width, height, PixelType::U8x3);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
    Resizer::new()
        .resize(&source, &mut target, &options)
        .expect("neither image is empty, and both have the same type");
    RgbImage::from_raw(width, height, target.into_vec()).expect("three bytes for each pixel")
}

/// Resizes as OpenCV's `INTER_AREA`, which LiteMedSAM's images are resized with: each pixel is the
/// mean of the area that it covers. An image that is enlarged is interpolated between the areas'
/// edges.
pub(super) fn area(image: &RgbImage, [width, height]: [u32; 2]) -> RgbImage {
    let (from_width, from_height) = image.dimensions();
    if (from_width, from_height) == (width, height) {
        return image.clone();
    }
    let is_reduced = width <= from_width && height <= from_height;
    let taps = if is_reduced { covered } else { between_edges };
    let columns = taps(from_width, width);
    let rows = taps(from_height, height);
    // OpenCV adds up the four pixels as integers if both sides are halved, and rounds halves up.
    let is_halved = from_width == 2 * width && from_height == 2 * height;
    let round = |value: f64| {
        if is_halved { (value + 0.5).floor() } else { value.round_ties_even() }
    };
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
        image::Rgb(sums.map(|sum| round(sum) as u8))
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

/// For each target pixel, the source pixel under its left edge, and the next one as far as the
/// target pixel covers it.
fn between_edges(from: u32, to: u32) -> Vec<Taps> {
    let scale = f64::from(from) / f64::from(to);
    let taps = |target: u32| {
        let source = ((f64::from(target) * scale) as u32).min(from - 1);
        let covered = f64::from(target + 1) - f64::from(source + 1) / scale;
        let fraction = if covered <= 0.0 { 0.0 } else { covered.fract() };
        vec![(source, 1.0 - fraction), ((source + 1).min(from - 1), fraction)]
    };
    (0..to).map(taps).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

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
