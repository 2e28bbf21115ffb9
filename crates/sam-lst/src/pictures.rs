use datasets::DatasetDescription;
use datasets::ndarray::ArrayView2;
use image::{Rgb, RgbImage};

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
        let beside = |place: u32| match (place % scale == 0, place % scale == scale - 1) {
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
