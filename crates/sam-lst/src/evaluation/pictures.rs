use embedded_graphics::Drawable;
use embedded_graphics::mono_font::MonoTextStyle;
use embedded_graphics::mono_font::iso_8859_1::{FONT_9X15, FONT_9X15_BOLD};
use embedded_graphics::pixelcolor::{Rgb888, RgbColor};
use embedded_graphics::prelude::{DrawTarget, OriginDimensions, Pixel, Point, Size};
use embedded_graphics::text::{Baseline, Text};
use image::{ImageBuffer, ImageFormat, PixelWithColorType, Rgb, RgbImage};
use sam_lst_datasets::ndarray::{ArrayView, ArrayView2, ArrayView3, Axis, Dimension};
use sam_lst_datasets::{DatasetDescription, Geometry};
use std::collections::BTreeSet;
use std::io::{self, Cursor};
use std::path::Path;

/// Writes a picture as PNG.
///
/// `image`'s own `save` does not report an error of the last write, so that on a full disk it
/// leaves an empty file.
///
/// # Errors
///
/// The operating system's error.
pub fn write_png<P>(picture: &ImageBuffer<P, Vec<u8>>, file: impl AsRef<Path>) -> io::Result<()>
where
    P: PixelWithColorType<Subpixel = u8>,
{
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, ImageFormat::Png).map_err(io::Error::other)?;
    std::fs::write(file, bytes.into_inner())
}

/// Turns an axial slice the way radiologists look at it, with the patient's front up and the patient's
/// right on the left, where the geometry gives the directions; without geometry it stays as it is.
///
/// # Shapes
///
/// - slice and output: `[rows, columns]` or `[channels, rows, columns]`
pub fn radiological<'a, T, D: Dimension>(
    mut slice: ArrayView<'a, T, D>,
    geometry: Option<&Geometry>,
) -> ArrayView<'a, T, D> {
    if let Some(geometry) = geometry {
        let [right, front, _] = geometry.affine_mm();
        if front[1] > 0.0 {
            slice.invert_axis(Axis(slice.ndim() - 2));
        }
        if right[0] > 0.0 {
            slice.invert_axis(Axis(slice.ndim() - 1));
        }
    }
    slice
}

/// Draws a slice with the outlines of its organs in their colours, `scale` screen pixels to a pixel.
///
/// Pixels are grey from black at 0 to white at 1 or, with three channels, have their colours. An outline
/// lies within its organ, along every pixel edge that borders on another class.
///
/// # Shapes
///
/// - image: `[channels, rows, columns]`, with one channel or three
/// - label: `[rows, columns]`
///
/// # Panics
///
/// If the label has another shape or a class that `description` does not have, or `scale` is zero.
pub fn outlined(
    image: ArrayView3<'_, f32>,
    label: ArrayView2<'_, u8>,
    description: &DatasetDescription,
    scale: u32,
) -> RgbImage {
    let (channels, rows, columns) = image.dim();
    assert_eq!((rows, columns), label.dim(), "image and label of one shape");
    assert!(scale > 0, "at least one screen pixel to a pixel");
    let class = |row: i64, column: i64| -> Option<u8> {
        let row = usize::try_from(row).ok()?;
        let column = usize::try_from(column).ok()?;
        label.get((row, column)).copied()
    };
    // One screen pixel, and more on wide pictures, on which one is hardly seen.
    let thickness = ((columns as u32 * scale + 256) / 512).max(1);
    RgbImage::from_fn(columns as u32 * scale, rows as u32 * scale, |x, y| {
        let (row, column) = ((y / scale) as usize, (x / scale) as usize);
        let own = label[(row, column)];
        let is_other = |x: i64, y: i64| {
            let scale = i64::from(scale);
            class(y.div_euclid(scale), x.div_euclid(scale)) != Some(own)
        };
        // A screen pixel is part of the outline if one near it has another class.
        let border = (1..=i64::from(thickness)).any(|step| {
            let (x, y) = (i64::from(x), i64::from(y));
            [(x - step, y), (x + step, y), (x, y - step), (x, y + step)]
                .into_iter()
                .any(|(x, y)| is_other(x, y))
        });
        if own != 0 && border {
            return Rgb(description.color(own).0);
        }
        let value = |channel: usize| image[(channel.min(channels - 1), row, column)];
        Rgb([0, 1, 2].map(|channel| (value(channel).clamp(0.0, 1.0) * 255.0).round() as u8))
    })
}

/// A picture of a slice: a title, titled panels side by side, and a legend of the organs in them.
///
/// Slices are turned to the [radiological] convention and enlarged to about 512 pixels.
#[derive(Debug, Clone)]
pub struct Picture<'a> {
    description: &'a DatasetDescription,
    geometry: Option<&'a Geometry>,
    title: String,
    panels: Vec<(String, RgbImage)>,
    classes: BTreeSet<u8>,
}

const MARGIN: u32 = 8;
const TITLE_HEIGHT: u32 = 24;
const LINE_HEIGHT: u32 = 20;
const CHARACTER_WIDTH: u32 = 9;
const SWATCH: u32 = 12;
/// Width in screen pixels that a panel is enlarged to, if its slice is smaller.
const PANEL_WIDTH: usize = 512;

impl<'a> Picture<'a> {
    /// Creates a picture without panels.
    pub fn new(
        title: impl Into<String>,
        description: &'a DatasetDescription,
        geometry: Option<&'a Geometry>,
    ) -> Self {
        let (title, panels, classes) = (title.into(), Vec::new(), BTreeSet::new());
        Self { description, geometry, title, panels, classes }
    }

    /// Adds a panel: a slice, pixels in `[0, 1]`, with the outlines of `label`'s organs.
    ///
    /// # Shapes
    ///
    /// As [`outlined`].
    ///
    /// # Panics
    ///
    /// As [`outlined`]; and if the panels' heights differ.
    pub fn panel(
        mut self,
        title: impl Into<String>,
        image: ArrayView3<'_, f32>,
        label: ArrayView2<'_, u8>,
    ) -> Self {
        let scale = (PANEL_WIDTH / label.ncols().max(1)).max(1) as u32;
        self.classes.extend(label.iter().filter(|&&class| class != 0));
        let image = radiological(image, self.geometry);
        let label = radiological(label, self.geometry);
        let panel = outlined(image, label, self.description, scale);
        if let Some((_, first)) = self.panels.first() {
            assert_eq!(first.height(), panel.height(), "panels of one height");
        }
        self.panels.push((title.into(), panel));
        self
    }

    /// Draws the picture.
    pub fn render(&self) -> RgbImage {
        let panels_width: u32 =
            self.panels.iter().map(|(_, panel)| panel.width() + MARGIN).sum::<u32>() + MARGIN;
        let width = panels_width.max(2 * MARGIN + self.title.len() as u32 * CHARACTER_WIDTH);
        let panels_height = self.panels.iter().map(|(_, panel)| panel.height()).max().unwrap_or(0);
        let legend = self.legend(width);
        let panels_top = MARGIN + TITLE_HEIGHT + LINE_HEIGHT;
        let legend_top = panels_top + panels_height + MARGIN;
        let mut canvas =
            Canvas(RgbImage::new(width, legend_top + legend.len() as u32 * LINE_HEIGHT + MARGIN));
        canvas.text(MARGIN, MARGIN, &self.title, true);
        let mut left = MARGIN;
        for (title, panel) in &self.panels {
            canvas.text(left, MARGIN + TITLE_HEIGHT, title, false);
            image::imageops::replace(&mut canvas.0, panel, i64::from(left), i64::from(panels_top));
            left += panel.width() + MARGIN;
        }
        for (row, classes) in (0..).zip(legend) {
            let (mut left, top) = (MARGIN, legend_top + row * LINE_HEIGHT);
            for class in classes {
                canvas.swatch(left, top, Rgb(self.description.color(class).0));
                let name = &self.description.organ(class).name;
                canvas.text(left + SWATCH + MARGIN, top, name, false);
                left += entry_width(name);
            }
        }
        canvas.0
    }

    /// The classes of each line of the legend.
    fn legend(&self, width: u32) -> Vec<Vec<u8>> {
        let mut lines: Vec<Vec<u8>> = Vec::new();
        let mut left = width;
        for &class in &self.classes {
            let entry = entry_width(&self.description.organ(class).name);
            if left + entry > width {
                lines.push(Vec::new());
                left = MARGIN;
            }
            left += entry;
            if let Some(line) = lines.last_mut() {
                line.push(class);
            }
        }
        lines
    }
}

fn entry_width(name: &str) -> u32 {
    SWATCH + 3 * MARGIN + name.chars().count() as u32 * CHARACTER_WIDTH
}

/// Lets `embedded-graphics` draw text into an image.
struct Canvas(RgbImage);

impl Canvas {
    fn text(&mut self, left: u32, top: u32, text: &str, bold: bool) {
        let font = if bold { &FONT_9X15_BOLD } else { &FONT_9X15 };
        let style = MonoTextStyle::new(font, Rgb888::WHITE);
        let place = Point::new(left as i32, top as i32);
        // The only error of a canvas is `Infallible`.
        let Ok(_) = Text::with_baseline(text, place, style, Baseline::Top).draw(self);
    }

    fn swatch(&mut self, left: u32, top: u32, color: Rgb<u8>) {
        for (x, y) in (0..SWATCH).flat_map(|x| (0..SWATCH).map(move |y| (x, y))) {
            if let Some(pixel) = self.0.get_pixel_mut_checked(left + x, top + y) {
                *pixel = color;
            }
        }
    }
}

impl OriginDimensions for Canvas {
    fn size(&self) -> Size {
        Size::new(self.0.width(), self.0.height())
    }
}

impl DrawTarget for Canvas {
    type Color = Rgb888;
    type Error = std::convert::Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(
        &mut self,
        pixels: I,
    ) -> Result<(), Self::Error> {
        for Pixel(place, color) in pixels {
            let (Ok(x), Ok(y)) = (u32::try_from(place.x), u32::try_from(place.y)) else { continue };
            if let Some(pixel) = self.0.get_pixel_mut_checked(x, y) {
                *pixel = Rgb([color.r(), color.g(), color.b()]);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sam_lst_datasets::ndarray::{Array2, Array3};

    #[test]
    fn slices_are_turned_to_the_radiological_convention() {
        let slice = Array2::from_shape_fn((2, 3), |(row, column)| row * 3 + column);
        let geometry = |right: f64, front: f64| {
            let affine = [[right, 0.0, 0.0, 0.0], [0.0, front, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0]];
            Geometry::new([1, 2, 3], affine)
        };
        let shown = |geometry: Option<Geometry>| -> Vec<usize> {
            radiological(slice.view(), geometry.as_ref()).iter().copied().collect()
        };
        assert_eq!(shown(None), [0, 1, 2, 3, 4, 5]);
        assert_eq!(shown(Some(geometry(-1.0, -1.0))), [0, 1, 2, 3, 4, 5]);
        assert_eq!(shown(Some(geometry(1.0, -1.0))), [2, 1, 0, 5, 4, 3]);
        assert_eq!(shown(Some(geometry(1.0, 1.0))), [5, 4, 3, 2, 1, 0]);
    }

    #[test]
    fn an_outline_is_the_border_of_its_organ_in_the_organs_colour() {
        let synapse = DatasetDescription::synapse();
        let image = Array3::from_elem((1, 5, 6), 0.5_f32);
        // A liver of 3 x 4.
        let label = Array2::from_shape_fn((5, 6), |(row, column)| {
            if (1..4).contains(&row) && (1..5).contains(&column) { 5_u8 } else { 0 }
        });
        let color = Rgb(synapse.color(5).0);
        let picture = outlined(image.view(), label.view(), &synapse, 1);
        assert_eq!(picture.dimensions(), (6, 5));
        for (x, y, pixel) in picture.enumerate_pixels() {
            let inside = (1..5).contains(&x) && (1..4).contains(&y);
            let middle = (2..4).contains(&x) && y == 2;
            let expected = if inside && !middle { color } else { Rgb([128; 3]) };
            assert_eq!(*pixel, expected, "({x}, {y})");
        }
        // Enlarged, the line stays one screen pixel wide.
        let picture = outlined(image.view(), label.view(), &synapse, 4);
        let count = picture.pixels().filter(|pixel| **pixel == color).count();
        assert_eq!(count, 2 * (4 * 4 + 3 * 4) - 4);
    }

    #[test]
    fn a_picture_of_three_channels_has_their_colours() {
        let synapse = DatasetDescription::synapse();
        let image = Array3::from_shape_fn((3, 1, 1), |(channel, ..)| [1.0, 0.5, 0.0][channel]);
        let picture = outlined(image.view(), Array2::zeros((1, 1)).view(), &synapse, 1);
        assert_eq!(*picture.get_pixel(0, 0), Rgb([255, 128, 0]));
    }

    #[test]
    fn a_picture_has_its_panels_and_a_legend_of_the_organs_shown() {
        let synapse = DatasetDescription::synapse();
        let image = Array3::from_elem((1, 64, 64), 0.5_f32);
        let liver = Array2::from_shape_fn((64, 64), |(row, _)| if row < 32 { 5_u8 } else { 0 });
        let nothing = Array2::zeros((64, 64));
        let picture = Picture::new("case 1, slice 2", &synapse, None)
            .panel("Prediction", image.view(), nothing.view())
            .panel("Ground truth", image.view(), liver.view());
        assert_eq!(picture.legend(1000), [[5]]);
        let drawn = picture.render();
        assert_eq!(drawn.width(), 2 * 512 + 3 * MARGIN);
        let at = |x, y| *drawn.get_pixel(x, y);
        let top = MARGIN + TITLE_HEIGHT + LINE_HEIGHT;
        let (color, grey) = (Rgb(synapse.color(5).0), Rgb([128; 3]));
        assert_eq!([at(MARGIN, top), at(2 * MARGIN + 512, top)], [grey, color]);
        assert_eq!(at(MARGIN, top + 512 + MARGIN), color, "the legend's swatch");
        // Text is white; the title has some.
        let title = drawn.enumerate_pixels().filter(|(_, y, _)| *y < MARGIN + TITLE_HEIGHT);
        assert!(title.filter(|(.., pixel)| **pixel == Rgb([255; 3])).count() > 100);
    }

    #[test]
    fn a_long_legend_is_wrapped() {
        let synapse = DatasetDescription::synapse();
        let label = Array2::from_shape_fn((64, 64), |(row, _)| (row % 9) as u8);
        let image = Array3::zeros((1, 64, 64));
        let picture = Picture::new("", &synapse, None).panel("", image.view(), label.view());
        let lines = picture.legend(300);
        assert!(lines.len() > 1, "{lines:?}");
        assert_eq!(lines.concat(), (1..9).collect::<Vec<u8>>());
    }
}
