use super::resize;
use crate::model::{EncoderConfig, PixelScale, Sam, SamConfig};
use crate::weights::{StateDict, WeightsError};
use burn::tensor::{Device, Tensor, TensorData};
use image::{DynamicImage, GrayImage, Luma, RgbImage};
use sam_lst_mask_decoder::{PointLabel, Points, Prompts};
use sam_lst_sam_nn::resize_bilinear;
use std::ops::RangeInclusive;
use std::path::Path;

/// Prompts on one image, in its own pixels.
#[derive(Debug, Clone, Default)]
pub struct ImagePrompts {
    /// Points, x then y, on or outside the object.
    pub points: Vec<([f32; 2], PointLabel)>,
    /// A box around the object: x0, y0, x1, y1.
    pub bounding_box: Option<[f32; 4]>,
    /// [`Masks::low_resolution`] of a previous prediction for the same image.
    pub mask: Option<Tensor<4>>,
}

/// Why a [`Predictor`] cannot predict.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PredictorError {
    /// [`Predictor::set_image`] has not been called.
    #[error("no image is set; call `set_image` before `predict`")]
    NoImage,
    /// The image has no pixels.
    #[error("the image has {width} x {height} pixels; expected at least one")]
    EmptyImage {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// The prompts are empty.
    #[error("no prompt is given; add a point, a box or a mask")]
    NoPrompt,
    /// A coordinate is NaN or infinite.
    #[error("a coordinate of a prompt is {0}; expected a finite number")]
    Coordinate(f32),
    /// A box has slices outside the volume, or its first slice is after its last.
    #[error(
        "box {number} covers slices {} to {}; expected the first before or at the last, and slices \
         from 0 to {}",
        slices.start(), slices.end(), count.saturating_sub(1)
    )]
    Slices {
        /// Number of the box, from 1.
        number: usize,
        /// First and last slice of the box.
        slices: RangeInclusive<usize>,
        /// Number of slices in the volume.
        count: usize,
    },
    /// There are more boxes than labels.
    #[error("{0} boxes are given, but a label volume has at most 255 labels")]
    TooManyBoxes(usize),
    /// A mask prompt has another shape than the predictor's low-resolution masks.
    #[error("the mask prompt has shape {found:?}; expected {expected:?}, as `low_resolution` has")]
    MaskShape {
        /// Shape of the predictor's low-resolution masks.
        expected: [usize; 4],
        /// Shape of the prompt.
        found: [usize; 4],
    },
}

/// Masks that were predicted for one image.
#[derive(Debug, Clone)]
pub struct Masks {
    /// Logits at the image's own size, `[masks, 1, height, width]`. A pixel belongs to the mask if
    /// its logit is positive.
    pub logits: Tensor<4>,
    /// Predicted intersection over union of each mask.
    pub iou: Vec<f32>,
    /// Logits as the decoder predicts them, `[masks, 1, 4 G, 4 G]`. One of them can be a prompt of
    /// the next prediction.
    pub low_resolution: Tensor<4>,
}

impl Masks {
    /// Index of the mask with the highest predicted quality.
    pub fn best(&self) -> usize {
        let best = self.iou.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        best.map_or(0, |(index, _)| index)
    }

    /// A mask as an image of 0 and 255, at the size of the image.
    ///
    /// # Panics
    ///
    /// If `index` is out of bounds.
    pub fn image(&self, index: usize) -> GrayImage {
        let [_, _, height, width] = self.logits.dims();
        let logits = self.logits.clone().narrow(0, index, 1).into_data().convert::<f32>();
        let values: Vec<u8> =
            logits.iter::<f32>().map(|logit| if logit > 0.0 { 255 } else { 0 }).collect();
        GrayImage::from_raw(width as u32, height as u32, values).expect("one value for each pixel")
    }

    /// The image with a mask tinted red and outlined.
    ///
    /// # Panics
    ///
    /// If `index` is out of bounds, or the size of the image differs from that of the masks.
    pub fn overlay(&self, index: usize, image: &DynamicImage) -> RgbImage {
        const RED: [u8; 3] = [230, 40, 40];
        let mask = self.image(index);
        assert_eq!(mask.dimensions(), (image.width(), image.height()), "size of mask and image");
        let is_inside = |x: i64, y: i64| {
            let pixel = u32::try_from(x).ok().zip(u32::try_from(y).ok());
            pixel.and_then(|(x, y)| mask.get_pixel_checked(x, y)) == Some(&Luma([255]))
        };
        let mut picture = image.to_rgb8();
        for (x, y, pixel) in picture.enumerate_pixels_mut() {
            let (x, y) = (i64::from(x), i64::from(y));
            if !is_inside(x, y) {
                continue;
            }
            let neighbours = [(x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1)];
            let is_border = neighbours.iter().any(|&(x, y)| !is_inside(x, y));
            for (value, red) in pixel.0.iter_mut().zip(RED) {
                let tinted = (u16::from(*value) * 3 + u16::from(red)) / 4;
                *value = if is_border { red } else { tinted as u8 };
            }
        }
        picture
    }

    /// The smallest box that contains a mask, x0, y0, x1, y1 in pixels; `None` if the mask is
    /// empty.
    ///
    /// # Panics
    ///
    /// If `index` is out of bounds.
    pub fn bounding_box(&self, index: usize) -> Option<[u32; 4]> {
        let image = self.image(index);
        let inside = image.enumerate_pixels().filter(|(_, _, value)| **value == Luma([255]));
        bounding_box(inside.map(|(x, y, _)| [x, y]))
    }
}

/// The smallest box that contains all pixels, x0, y0, x1, y1; `None` without pixels.
pub(super) fn bounding_box(pixels: impl IntoIterator<Item = [u32; 2]>) -> Option<[u32; 4]> {
    pixels.into_iter().fold(None, |around: Option<[u32; 4]>, [x, y]| {
        let [x0, y0, x1, y1] = around.unwrap_or([x, y, x, y]);
        Some([x0.min(x), y0.min(y), x1.max(x), y1.max(y)])
    })
}

/// SAM as it is used with prompts: embeds an image once, then predicts masks for any number of
/// prompts in the image's own pixels.
///
/// Images are resized and normalised as in the published programs: for SAM and MobileSAM as in
/// segment-anything's `SamPredictor`; for LiteMedSAM and MedSAM as in LiteMedSAM's inference.
///
/// ```no_run
/// use burn::tensor::Device;
/// use sam_lst::inference::{ImagePrompts, Predictor};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut predictor = Predictor::load("lite_medsam.pth", &Device::flex())?;
/// predictor.set_image(&image::open("slice.png")?)?;
/// let bounding_box = Some([120.0, 80.0, 310.0, 260.0]);
/// let masks = predictor.predict(&ImagePrompts { bounding_box, ..Default::default() }, false)?;
/// sam_lst::evaluation::write_png(&masks.image(0), "mask.png")?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Predictor {
    sam: Sam,
    image: Option<EmbeddedImage>,
}

#[derive(Debug, Clone)]
pub(super) struct EmbeddedImage {
    embedding: Tensor<4>,
    /// Width and height of the image.
    pub(super) size: [u32; 2],
    /// Width and height of the resized image in the model's input.
    pub(super) resized: [u32; 2],
}

impl EmbeddedImage {
    /// Pixels of the model's input per pixel of the image, along x and y.
    pub(super) fn scale(&self) -> [f32; 2] {
        std::array::from_fn(|axis| {
            (f64::from(self.resized[axis]) / f64::from(self.size[axis])) as f32
        })
    }
}

impl Predictor {
    /// Loads a checkpoint of SAM, MobileSAM or LiteMedSAM, `.pth` or safetensors, which is
    /// recognised by its tensors. For MedSAM, whose tensors are those of SAM, use
    /// [`SamConfig::med_sam`] and [`Predictor::new`].
    ///
    /// # Errors
    ///
    /// A [`WeightsError`] if the file cannot be read or contains no model that is supported.
    pub fn load(checkpoint: impl AsRef<Path>, device: &Device) -> Result<Self, WeightsError> {
        let source = StateDict::open(checkpoint)?;
        let encoder = EncoderConfig::in_state_dict(&source, "a SAM checkpoint")?;
        Ok(Self::new(SamConfig::for_encoder(encoder).load_state_dict(&source, device)?))
    }

    /// Creates a predictor for images whose longest side is resized to the model's
    /// [`input_size`](Sam::input_size).
    ///
    /// # Panics
    ///
    /// If the input size is not a positive multiple of the foundation's stride.
    pub fn new(sam: Sam) -> Self {
        let (stride, input_size) = (sam.foundation.stride(), sam.input_size);
        assert!(
            input_size > 0 && input_size.is_multiple_of(stride),
            "input_size must be a positive multiple of {stride}, found {input_size}"
        );
        Self { sam, image: None }
    }

    /// The model.
    pub fn sam(&self) -> &Sam {
        &self.sam
    }

    /// Embeds an image, grey or RGB; transparency is ignored. It replaces the previous image.
    ///
    /// # Errors
    ///
    /// [`PredictorError::EmptyImage`] if the image has no pixels.
    pub fn set_image(&mut self, image: &DynamicImage) -> Result<(), PredictorError> {
        self.image = Some(self.embed(&image.to_rgb8())?);
        Ok(())
    }

    pub(super) fn embed(&self, image: &RgbImage) -> Result<EmbeddedImage, PredictorError> {
        let (width, height) = image.dimensions();
        if width == 0 || height == 0 {
            return Err(PredictorError::EmptyImage { width, height });
        }
        let resized = resize::longest_side_size([width, height], self.sam.input_size as u32);
        let pixels = match self.sam.foundation.pixel_scale() {
            PixelScale::MinMax => resize::area(image, resized),
            PixelScale::Sam | PixelScale::Unit => resize::bilinear(image, resized),
        };
        let embedding = self.sam.foundation.embed(self.input(&pixels));
        Ok(EmbeddedImage { embedding, size: [width, height], resized })
    }

    /// The model's input: the image in the upper left corner, then padding that is zero after
    /// normalisation.
    fn input(&self, image: &RgbImage) -> Tensor<4> {
        let size = self.sam.input_size;
        let padding = match self.sam.foundation.pixel_scale() {
            PixelScale::Unit => [0.0; 3],
            PixelScale::Sam => PixelScale::SAM_MEAN.map(|mean| mean / 255.0),
            PixelScale::MinMax => {
                let smallest = image.as_raw().iter().copied().min().unwrap_or_default();
                [f32::from(smallest) / 255.0; 3]
            }
        };
        let mut input = Vec::with_capacity(3 * size * size);
        for (channel, padding) in padding.into_iter().enumerate() {
            for y in 0..size as u32 {
                for x in 0..size as u32 {
                    input.push(match image.get_pixel_checked(x, y) {
                        Some(pixel) => f32::from(pixel.0[channel]) / 255.0,
                        None => padding,
                    });
                }
            }
        }
        let data = TensorData::new(input, [1, 3, size, size]);
        Tensor::from_data(data, &self.sam.foundation.device())
    }

    /// Predicts masks for prompts. With `multiple`, three masks for an ambiguous prompt such as one
    /// point (whole, part, subpart), else one.
    ///
    /// # Errors
    ///
    /// [`PredictorError`] if no image is set, the prompts are empty, a coordinate is not finite, or
    /// the shape of the mask prompt differs from that of one mask of
    /// [`Masks::low_resolution`].
    pub fn predict(&self, prompts: &ImagePrompts, multiple: bool) -> Result<Masks, PredictorError> {
        self.predict_on(self.image.as_ref().ok_or(PredictorError::NoImage)?, prompts, multiple)
    }

    pub(super) fn predict_on(
        &self,
        image: &EmbeddedImage,
        prompts: &ImagePrompts,
        multiple: bool,
    ) -> Result<Masks, PredictorError> {
        let prediction = self.sam.predict(image.embedding.clone(), &self.prompts(image, prompts)?);
        let prediction = if multiple { prediction.multiple() } else { prediction.single() };
        let low_resolution = prediction.logits.swap_dims(0, 1); // [masks, 1, 4 G, 4 G]
        let iou = prediction.iou.into_data().convert::<f32>().iter::<f32>().collect();
        let input_size = self.sam.input_size;
        let [width, height] = image.resized.map(|side| side as usize);
        let logits = resize_bilinear(low_resolution.clone(), [input_size; 2])
            .narrow(2, 0, height)
            .narrow(3, 0, width);
        let [width, height] = image.size.map(|side| side as usize);
        let logits = resize_bilinear(logits, [height, width]);
        Ok(Masks { logits, iou, low_resolution })
    }

    /// Prompts in pixels of the model's input.
    fn prompts(
        &self,
        image: &EmbeddedImage,
        prompts: &ImagePrompts,
    ) -> Result<Prompts, PredictorError> {
        let ImagePrompts { points, bounding_box, mask } = prompts;
        if points.is_empty() && bounding_box.is_none() && mask.is_none() {
            return Err(PredictorError::NoPrompt);
        }
        let coordinates =
            points.iter().flat_map(|(point, _)| point).chain(bounding_box.iter().flatten());
        if let Some(&coordinate) = coordinates.into_iter().find(|value| !value.is_finite()) {
            return Err(PredictorError::Coordinate(coordinate));
        }
        let device = image.embedding.device();
        let scale = image.scale();
        let in_input = |values: &[f32]| -> Tensor<1> {
            let scaled: Vec<f32> =
                values.iter().enumerate().map(|(i, value)| value * scale[i % 2]).collect();
            Tensor::from_floats(scaled.as_slice(), &device)
        };
        let (coordinates, labels): (Vec<[f32; 2]>, Vec<PointLabel>) =
            points.iter().copied().unzip();
        let points = (!labels.is_empty()).then(|| {
            let coordinates = in_input(coordinates.as_flattened());
            Points::new(coordinates.reshape([1, labels.len(), 2]), &labels)
        });
        if let Some(mask) = mask {
            let side = 4 * image.embedding.dims()[3];
            let expected = [1, 1, side, side];
            if mask.dims() != expected {
                return Err(PredictorError::MaskShape { expected, found: mask.dims() });
            }
        }
        Ok(Prompts {
            points,
            boxes: bounding_box.map(|corners| in_input(&corners).reshape([1, 4])),
            masks: mask.clone(),
        })
    }
}
