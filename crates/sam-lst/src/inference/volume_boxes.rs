//! Segmentation of a volume from boxes, as LiteMedSAM's published inference does it: from the middle
//! slice of a box outwards, each slice with the box of the mask before.

use super::predictor::{EmbeddedImage, bounding_box};
use super::{ImagePrompts, Predictor, PredictorError, resize};
use image::{GrayImage, Luma, Rgb, RgbImage};
use sam_lst_datasets::ndarray::{Array3, ArrayView2, ArrayView3, Axis};
use std::collections::HashMap;
use std::ops::{Range, RangeInclusive};

/// Pixels of the model's input by which the box of a mask is enlarged on each side for the next
/// slice.
const MARGIN: u32 = 3;

/// A box around an object in a volume.
#[derive(Debug, Clone, PartialEq)]
pub struct VolumeBox {
    /// x0, y0, x1, y1: columns and rows of the slices, in pixels.
    pub corners: [f32; 4],
    /// The first and the last slice of the object.
    pub slices: RangeInclusive<usize>,
}

/// The segmented objects of a volume.
#[derive(Debug, Clone, PartialEq)]
pub struct VolumeObjects {
    /// The number of the box of each voxel's object, from 1; 0 outside. `[slices, rows, columns]`.
    pub labels: Array3<u8>,
    /// The objects in the order of the boxes.
    pub objects: Vec<VolumeObject>,
}

/// A segmented object.
#[derive(Debug, Clone, PartialEq)]
pub struct VolumeObject {
    /// Predicted intersection over union of the mask on each slice of the box, from the first.
    pub iou: Vec<f32>,
    /// Voxels of its masks that belong to later objects in the labels.
    pub hidden_voxels: usize,
}

impl VolumeBox {
    /// The slice whose mask is predicted first.
    fn middle(&self) -> usize {
        let (first, last) = (self.slices.start(), self.slices.end());
        first + (last - first) / 2
    }
}

/// The two parts of a box, in the order in which they are predicted.
#[derive(Debug, Clone, Copy)]
enum Part {
    /// From the middle slice to the last.
    Upper,
    /// From the slice before the middle to the first.
    Lower,
}

impl Part {
    fn slices(self, prompt: &VolumeBox) -> Range<usize> {
        match self {
            Self::Upper => prompt.middle()..prompt.slices.end() + 1,
            Self::Lower => *prompt.slices.start()..prompt.middle(),
        }
    }
}

impl Predictor {
    /// Segments objects of a volume, each from one box. Labels are 1, 2, ... in the order of the
    /// boxes; where objects overlap, the later one stands.
    ///
    /// The mask of an object's middle slice is predicted from the box's corners. From there to the
    /// last and to the first slice, each mask is predicted from the box around the mask before,
    /// enlarged by 3 pixels of the model's input, or from the given corners if that mask is empty.
    /// So the box has to fit the object on the middle slice only. Source: LiteMedSAM's 3D inference.
    ///
    /// Each slice is embedded once, whatever the number of boxes. Embeddings of slices that one box
    /// needs above and another below its middle are kept in memory in between.
    ///
    /// `progress` receives the number of predicted masks and that of all masks, before the first and
    /// after each.
    ///
    /// # Shapes
    ///
    /// - slices: `[slices, rows, columns]`; of a CT, a window of Hounsfield units as 0 to 255
    ///
    /// # Errors
    ///
    /// [`PredictorError`] if there are no boxes or more than 255, if a box has slices outside the
    /// volume or coordinates that are not finite, or if the slices have no pixels.
    pub fn segment_volume_with_boxes(
        &self,
        slices: ArrayView3<'_, u8>,
        boxes: &[VolumeBox],
        progress: impl FnMut(usize, usize),
    ) -> Result<VolumeObjects, PredictorError> {
        check(boxes, slices.len_of(Axis(0)))?;
        let mut run = Propagation {
            predictor: self,
            slices,
            boxes,
            labels: Array3::zeros(slices.dim()),
            iou: boxes.iter().map(|prompt| vec![0.0; prompt.slices.clone().count()]).collect(),
            voxels: vec![0; boxes.len()],
            embedded: HashMap::new(),
            done: 0,
            progress,
        };
        run.report();
        let middles = run.predict(Part::Upper, vec![None; boxes.len()])?;
        run.predict(Part::Lower, middles)?;
        Ok(run.finish())
    }
}

fn check(boxes: &[VolumeBox], count: usize) -> Result<(), PredictorError> {
    if boxes.is_empty() {
        return Err(PredictorError::NoPrompt);
    }
    if boxes.len() > usize::from(u8::MAX) {
        return Err(PredictorError::TooManyBoxes(boxes.len()));
    }
    for (number, prompt) in (1..).zip(boxes) {
        let slices = prompt.slices.clone();
        if slices.is_empty() || *slices.end() >= count {
            return Err(PredictorError::Slices { number, slices, count });
        }
        // Before any slice is embedded.
        if let Some(&coordinate) = prompt.corners.iter().find(|value| !value.is_finite()) {
            return Err(PredictorError::Coordinate(coordinate));
        }
    }
    Ok(())
}

/// The segmentation of a volume.
struct Propagation<'a, F> {
    predictor: &'a Predictor,
    slices: ArrayView3<'a, u8>,
    boxes: &'a [VolumeBox],
    labels: Array3<u8>,
    /// Predicted quality of each box's masks, from its first slice.
    iou: Vec<Vec<f32>>,
    /// Voxels of each box's masks.
    voxels: Vec<usize>,
    /// Slices that are needed again.
    embedded: HashMap<usize, EmbeddedImage>,
    done: usize,
    progress: F,
}

impl<F: FnMut(usize, usize)> Propagation<'_, F> {
    /// Predicts one part of all boxes. `masks` contains, by box, the mask of the slice before that
    /// part. Returns the masks of the middle slices that are in the part.
    fn predict(
        &mut self,
        part: Part,
        mut masks: Vec<Option<GrayImage>>,
    ) -> Result<Vec<Option<GrayImage>>, PredictorError> {
        let mut middles = vec![None; masks.len()];
        let mut order: Vec<usize> = (0..self.slices.len_of(Axis(0))).collect();
        if let Part::Lower = part {
            order.reverse();
        }
        for slice in order {
            let boxes = self.boxes.iter().enumerate();
            let boxes: Vec<_> =
                boxes.filter(|(_, prompt)| part.slices(prompt).contains(&slice)).collect();
            if boxes.is_empty() {
                continue;
            }
            let image = match self.embedded.remove(&slice) {
                Some(image) => image,
                None => self.predictor.embed(&rgb(self.slices.index_axis(Axis(0), slice)))?,
            };
            for (index, prompt) in boxes {
                let before = masks[index].as_ref();
                let corners = before.and_then(|mask| corners_around(mask, &image));
                let bounding_box = Some(corners.unwrap_or(prompt.corners));
                let prompts = ImagePrompts { bounding_box, ..ImagePrompts::default() };
                let predicted = self.predictor.predict_on(&image, &prompts, false)?;
                let mask = predicted.image(0);
                self.iou[index][slice - prompt.slices.start()] = predicted.iou[0];
                self.write(slice, index, &mask);
                if slice == prompt.middle() {
                    middles[index] = Some(mask.clone());
                }
                masks[index] = Some(mask);
                self.done += 1;
                self.report();
            }
            let is_lower = |prompt| Part::Lower.slices(prompt).contains(&slice);
            if matches!(part, Part::Upper) && self.boxes.iter().any(is_lower) {
                self.embedded.insert(slice, image);
            }
        }
        Ok(middles)
    }

    fn write(&mut self, slice: usize, index: usize, mask: &GrayImage) {
        let label = index as u8 + 1;
        let mut labels = self.labels.index_axis_mut(Axis(0), slice);
        for (stored, value) in labels.iter_mut().zip(mask.as_raw()) {
            if *value > 0 {
                *stored = label.max(*stored);
                self.voxels[index] += 1;
            }
        }
    }

    fn finish(self) -> VolumeObjects {
        let mut shown = [0; 256];
        self.labels.iter().for_each(|&label| shown[usize::from(label)] += 1);
        let objects = self.iou.into_iter().zip(self.voxels).zip(&shown[1..]);
        let objects = objects
            .map(|((iou, voxels), shown)| VolumeObject { iou, hidden_voxels: voxels - shown })
            .collect();
        VolumeObjects { labels: self.labels, objects }
    }

    fn report(&mut self) {
        let total = self.boxes.iter().map(|prompt| prompt.slices.clone().count()).sum();
        (self.progress)(self.done, total);
    }
}

fn rgb(slice: ArrayView2<'_, u8>) -> RgbImage {
    let (rows, columns) = slice.dim();
    RgbImage::from_fn(columns as u32, rows as u32, |x, y| Rgb([slice[[y as usize, x as usize]]; 3]))
}

/// The enlarged box around a mask in pixels of the image; `None` if the mask is empty at the size of
/// the model's input.
fn corners_around(mask: &GrayImage, image: &EmbeddedImage) -> Option<[f32; 4]> {
    // As upstream, the mask itself is resized: a pixel that it covers by less than half is left out.
    let of_one = RgbImage::from_fn(mask.width(), mask.height(), |x, y| {
        Rgb([u8::from(*mask.get_pixel(x, y) == Luma([255])); 3])
    });
    let resized = resize::area(&of_one, image.resized);
    let inside = resized.enumerate_pixels().filter(|(_, _, value)| value.0[0] > 0);
    let [x0, y0, x1, y1] = bounding_box(inside.map(|(x, y, _)| [x, y]))?;
    // Upstream limits the box by the padded input, which is square.
    let side = image.resized.into_iter().max()?;
    let corners = [
        x0.saturating_sub(MARGIN),
        y0.saturating_sub(MARGIN),
        (x1 + MARGIN).min(side),
        (y1 + MARGIN).min(side),
    ];
    let scale = image.scale();
    Some(std::array::from_fn(|i| corners[i] as f32 / scale[i % 2]))
}
