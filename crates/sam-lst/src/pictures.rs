use datasets::ndarray::{ArrayView2, Axis};
use datasets::{DatasetDescription, Geometry};
use image::{Rgb, RgbImage};

/// An axial slice as radiologists look at it, the patient's front up and the patient's right on the left, where the
/// geometry says which way it lies; as it is without.
pub fn radiological<'a, T>(
    mut slice: ArrayView2<'a, T>,
    geometry: Option<&Geometry>,
) -> ArrayView2<'a, T> {
    if let Some(geometry) = geometry {
        let [right, front, _] = geometry.affine_mm();
        if front[1] > 0.0 {
            slice.invert_axis(Axis(0));
        }
        if right[0] > 0.0 {
            slice.invert_axis(Axis(1));
        }
    }
    slice
}

/// A slice with the outlines of its organs in their colours, `scale` screen pixels to a pixel.
///
/// Pixels are grey from black at 0 to white at 1. An outline runs within its organ, along every pixel that borders on
/// another class.
///
/// # Panics
///
/// If the label has another shape or a class that `description` does not have, or `scale` is zero.
pub fn outlined(
    image: ArrayView2<'_, f32>,
    label: ArrayView2<'_, u8>,
    description: &DatasetDescription,
    scale: u32,
) -> RgbImage {
    assert_eq!(image.dim(), label.dim(), "image and label of one shape");
    assert!(scale > 0, "at least one screen pixel to a pixel");
    let (rows, columns) = image.dim();
    let class = |row: i64, column: i64| -> Option<u8> {
        let row = usize::try_from(row).ok()?;
        let column = usize::try_from(column).ok()?;
        label.get((row, column)).copied()
    };
    RgbImage::from_fn(columns as u32 * scale, rows as u32 * scale, |x, y| {
        let (row, column) = ((y / scale) as usize, (x / scale) as usize);
        let own = label[(row, column)];
        // A screen pixel belongs to the outline if the pixel that it touches is another's.
        let beside = |place: u32| match (
            place.is_multiple_of(scale),
            (place + 1).is_multiple_of(scale),
        ) {
            (true, true) => &[-1, 1][..],
            (true, false) => &[-1],
            (false, true) => &[1],
            (false, false) => &[],
        };
        let (row_at, column_at) = (row as i64, column as i64);
        let border = beside(y)
            .iter()
            .any(|step| class(row_at + step, column_at) != Some(own))
            || beside(x)
                .iter()
                .any(|step| class(row_at, column_at + step) != Some(own));
        if own != 0 && border {
            return Rgb(description.color(own).0);
        }
        Rgb([(image[(row, column)].clamp(0.0, 1.0) * 255.0).round() as u8; 3])
    })
}

/// Pictures of one height beside each other, a few black columns between them.
///
/// # Panics
///
/// If there is none, or their heights differ.
pub fn side_by_side(pictures: &[RgbImage]) -> RgbImage {
    const GAP: u32 = 8;
    let height = pictures
        .first()
        .map(RgbImage::height)
        .expect("at least one picture");
    assert!(
        pictures.iter().all(|picture| picture.height() == height),
        "pictures of one height"
    );
    let width: u32 =
        pictures.iter().map(RgbImage::width).sum::<u32>() + GAP * (pictures.len() as u32 - 1);
    let mut whole = RgbImage::new(width, height);
    let mut left = 0;
    for picture in pictures {
        image::imageops::replace(&mut whole, picture, i64::from(left), 0);
        left += picture.width() + GAP;
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use datasets::ndarray::Array2;

    #[test]
    fn the_front_is_up_and_the_right_is_left() {
        let slice = Array2::from_shape_fn((2, 3), |(row, column)| row * 3 + column);
        let geometry = |right: f64, front: f64| {
            let affine = [
                [right, 0.0, 0.0, 0.0],
                [0.0, front, 0.0, 0.0],
                [0.0, 0.0, 3.0, 0.0],
            ];
            Geometry::new([1, 2, 3], affine)
        };
        let shown = |geometry: Option<Geometry>| -> Vec<usize> {
            radiological(slice.view(), geometry.as_ref())
                .iter()
                .copied()
                .collect()
        };
        assert_eq!(shown(None), [0, 1, 2, 3, 4, 5]);
        assert_eq!(shown(Some(geometry(-1.0, -1.0))), [0, 1, 2, 3, 4, 5]);
        assert_eq!(shown(Some(geometry(1.0, -1.0))), [2, 1, 0, 5, 4, 3]);
        assert_eq!(shown(Some(geometry(1.0, 1.0))), [5, 4, 3, 2, 1, 0]);
    }

    #[test]
    fn an_outline_is_the_border_of_its_organ_in_its_colour() {
        let synapse = DatasetDescription::synapse();
        let image = Array2::from_elem((5, 6), 0.5_f32);
        // A liver of 3 x 4.
        let label = Array2::from_shape_fn((5, 6), |(row, column)| {
            if (1..4).contains(&row) && (1..5).contains(&column) {
                5_u8
            } else {
                0
            }
        });
        let color = Rgb(synapse.color(5).0);
        let picture = outlined(image.view(), label.view(), &synapse, 1);
        assert_eq!(picture.dimensions(), (6, 5));
        for (x, y, pixel) in picture.enumerate_pixels() {
            let inside = (1..5).contains(&x) && (1..4).contains(&y);
            let middle = (2..4).contains(&x) && y == 2;
            let expected = if inside && !middle {
                color
            } else {
                Rgb([128; 3])
            };
            assert_eq!(*pixel, expected, "({x}, {y})");
        }
        // Enlarged, the line stays one screen pixel wide.
        let picture = outlined(image.view(), label.view(), &synapse, 4);
        let count = picture.pixels().filter(|pixel| **pixel == color).count();
        assert_eq!(count, 2 * (4 * 4 + 3 * 4) - 4);
        let both = side_by_side(&[picture.clone(), picture]);
        assert_eq!(both.dimensions(), (2 * 24 + 8, 20));
    }
}
