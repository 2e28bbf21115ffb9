//! Parity of the predictor with segment-anything's `SamPredictor` and with LiteMedSAM's inference,
//! and of weights in Hugging Face's format with `SamModel`.

use crate::support::{Cases, config, fixture, lite_medsam_pth, relative_error, sam_pth};
use burn::tensor::{Device, Int, Tensor};
use sam_lst::datasets::ndarray::{Array3, Axis};
use sam_lst::image::{DynamicImage, GrayImage, Luma, RgbImage};
use sam_lst::inference::{
    ImagePrompts, Masks, Predictor, PredictorError, VolumeBox, VolumeObjects,
};
use sam_lst::mask_decoder::{MaskDecoderConfig, PointLabel, Prompts};
use sam_lst::model::{PixelScale, Sam, SamConfig};
use std::path::Path;

/// Tolerance of logits in the image's own pixels, relative to the largest.
const LOGITS: f64 = 1e-4;

fn tiny_sam(checkpoint: &Path, pixel_scale: PixelScale) -> Sam {
    let decoder = MaskDecoderConfig { num_masks: 4, ..config().decoder };
    SamConfig::new(config().encoder)
        .with_decoder(decoder)
        .with_pixel_scale(pixel_scale)
        .with_input_size(128)
        .load(checkpoint, &Device::flex())
        .expect("load the fixture")
}

fn floats<const N: usize>(cases: &Cases, name: &str) -> [f32; N] {
    let values: Vec<f32> = cases.data(name).iter::<f32>().collect();
    values.try_into().unwrap_or_else(|values| panic!("{name}: {values:?}"))
}

fn image(cases: &Cases, name: &str) -> RgbImage {
    let data = cases.data(name);
    let [height, width] = [0, 1].map(|axis| data.shape()[axis] as u32);
    let pixels = data.iter::<u8>().collect();
    RgbImage::from_raw(width, height, pixels).expect("three values for each pixel")
}

#[test]
fn predictor_equals_segment_anythings() {
    let cases = Cases::open("predictor");
    let mut predictor = Predictor::new(tiny_sam(&sam_pth(), PixelScale::Sam));
    let size = |masks: &Masks| masks.logits.dims();
    for name in ["large", "small", "wide", "tall", "exact"] {
        let case = |part: &str| format!("{name}.{part}");
        let image = image(&cases, &case("image"));
        predictor.set_image(&DynamicImage::ImageRgb8(image.clone())).expect("an image");
        let bounding_box = Some(floats(&cases, &case("box")));
        let [x0, y0, x1, y1] = floats(&cases, &case("points"));
        let points = vec![([x0, y0], PointLabel::Foreground), ([x1, y1], PointLabel::Background)];
        let check = |part: &str, prompts: &ImagePrompts, multiple: bool| {
            let masks = predictor.predict(prompts, multiple).expect("valid prompts");
            let count = if multiple { 3 } else { 1 };
            assert_eq!(size(&masks)[0], count);
            let [_, _, height, width] = size(&masks);
            assert_eq!((width as u32, height as u32), image.dimensions());
            let logits = masks.logits.clone().squeeze_dim::<3>(1);
            cases.assert_close(&case(&format!("{part}.logits")), logits, LOGITS);
            let iou = Tensor::<1>::from_floats(masks.iou.as_slice(), &Device::flex());
            cases.assert_close(&case(&format!("{part}.iou")), iou, LOGITS);
            masks
        };
        let only_box = ImagePrompts { bounding_box, ..ImagePrompts::default() };
        check("box", &only_box, false);
        let only_points = ImagePrompts { points: points.clone(), ..ImagePrompts::default() };
        check("points", &only_points, true);
        let both = ImagePrompts { points, bounding_box, mask: None };
        let mask = Some(check("both", &both, false).low_resolution);
        check("mask", &ImagePrompts { mask, ..only_box }, false);
    }
}

#[test]
fn wrong_prompts_are_reported() {
    let mut predictor = Predictor::new(tiny_sam(&sam_pth(), PixelScale::Sam));
    let prompts = ImagePrompts { bounding_box: Some([0.0, 0.0, 5.0, 5.0]), ..Default::default() };
    let error = |predictor: &Predictor, prompts: &ImagePrompts| {
        predictor.predict(prompts, false).expect_err("an error")
    };
    assert_eq!(error(&predictor, &prompts), PredictorError::NoImage);
    let empty = DynamicImage::ImageRgb8(RgbImage::new(0, 4));
    let found = predictor.set_image(&empty).expect_err("an empty image");
    assert_eq!(found, PredictorError::EmptyImage { width: 0, height: 4 });
    // Grey images of 16 bits are images too.
    predictor.set_image(&DynamicImage::new_luma16(40, 30)).expect("an image");
    predictor.predict(&prompts, false).expect("valid prompts");
    assert_eq!(error(&predictor, &ImagePrompts::default()), PredictorError::NoPrompt);
    let infinite = ImagePrompts { bounding_box: Some([0.0, f32::INFINITY, 5.0, 5.0]), ..prompts };
    assert_eq!(error(&predictor, &infinite), PredictorError::Coordinate(f32::INFINITY));
    let mask = Some(Tensor::zeros([1, 1, 16, 16], &Device::flex()));
    let wrong_mask = ImagePrompts { mask, ..ImagePrompts::default() };
    let expected = PredictorError::MaskShape { expected: [1, 1, 32, 32], found: [1, 1, 16, 16] };
    assert_eq!(error(&predictor, &wrong_mask), expected);
}

#[test]
fn masks_have_boxes_and_pictures() {
    let mut logits = vec![-1.0; 12];
    logits[5] = 2.0; // of 4 columns: row 1, column 1
    logits[10] = 2.0; // row 2, column 2
    let device = Device::flex();
    let tensor = Tensor::<1>::from_floats(logits.as_slice(), &device).reshape([1, 1, 3, 4]);
    let masks = Masks { logits: tensor.clone(), iou: vec![0.5], low_resolution: tensor };
    assert_eq!(masks.bounding_box(0), Some([1, 1, 2, 2]));
    assert_eq!(masks.image(0).get_pixel(1, 1), &Luma([255]));
    let grey = DynamicImage::ImageLuma8(GrayImage::from_pixel(4, 3, Luma([100])));
    let overlay = masks.overlay(0, &grey);
    assert_eq!(overlay.get_pixel(0, 0).0, [100; 3]);
    assert_ne!(overlay.get_pixel(2, 2).0, [100; 3]);
}

#[test]
fn lite_medsam_segments_a_volume_from_a_box_as_it_was_published() {
    let Some(path) = lite_medsam_pth() else { return };
    let cases = Cases::open("lite_medsam");
    let volume = |name: &str| {
        let data = cases.data(name);
        let shape: [usize; 3] = data.shape().to_vec().try_into().expect("a volume");
        Array3::from_shape_vec(shape, data.iter::<u8>().collect()).expect("a volume")
    };
    let (slices, expected) = (volume("volume.slices"), volume("volume.masks"));
    let predictor = Predictor::load(path, &Device::flex()).expect("the published weights");
    let object = VolumeBox { corners: [30.0, 20.0, 88.0, 72.0], slices: 1..=6 };
    let mut progress = Vec::new();
    let labels = predictor
        .segment_volume_with_boxes(slices.view(), &[object], |done, total| {
            progress.push((done, total));
        })
        .expect("a valid box")
        .labels;
    let differ = labels.iter().zip(&expected).filter(|(found, expected)| found != expected).count();
    let inside = expected.iter().filter(|&&label| label > 0).count();
    assert!(inside > 4000 && differ * 1000 <= inside, "{differ} of {inside} pixels differ");
    assert_eq!(progress, (0..=6).map(|done| (done, 6)).collect::<Vec<_>>());
}

#[test]
fn objects_of_a_volume_are_independent_and_the_later_stands() {
    let predictor = Predictor::new(tiny_sam(&sam_pth(), PixelScale::Sam));
    let slices = Array3::from_shape_fn([5, 30, 40], |(z, y, x)| (z * 31 + y * 7 + x * 5) as u8);
    let segment = |boxes: &[VolumeBox]| {
        predictor.segment_volume_with_boxes(slices.view(), boxes, |_, _| {}).expect("valid")
    };
    let boxes = [
        VolumeBox { corners: [3.0, 2.0, 30.0, 25.0], slices: 0..=4 },
        VolumeBox { corners: [10.0, 12.0, 38.0, 28.0], slices: 2..=2 },
        VolumeBox { corners: [1.0, 5.0, 15.0, 28.0], slices: 1..=4 },
    ];
    let mut expected = Array3::zeros(slices.dim());
    let (mut iou, mut voxels) = (Vec::new(), Vec::new());
    for (label, object) in (1..).zip(&boxes) {
        let VolumeObjects { labels: alone, objects } = segment(std::slice::from_ref(object));
        assert_eq!(objects[0].iou.len(), object.slices.clone().count());
        assert_eq!(objects[0].hidden_voxels, 0);
        iou.push(objects[0].iou.clone());
        voxels.push(alone.iter().filter(|&&found| found == 1).count());
        let inside = |slice: usize| {
            alone.index_axis(Axis(0), slice).iter().filter(|&&found| found == 1).count()
        };
        for slice in 0..5 {
            assert_eq!(inside(slice) > 0, object.slices.contains(&slice), "{label} on {slice}");
        }
        expected.zip_mut_with(&alone, |stored, &found| {
            if found > 0 {
                *stored = label;
            }
        });
    }
    let found = segment(&boxes);
    assert_eq!(found.labels, expected);
    for (index, object) in found.objects.iter().enumerate() {
        assert_eq!(object.iou, iou[index], "object {index}");
        let shown = expected.iter().filter(|&&label| usize::from(label) == index + 1).count();
        assert_eq!(object.hidden_voxels, voxels[index] - shown, "object {index}");
    }
    assert!(found.objects[0].hidden_voxels > 0 && found.objects[2].hidden_voxels == 0);
}

#[test]
fn boxes_outside_a_volume_are_reported() {
    let predictor = Predictor::new(tiny_sam(&sam_pth(), PixelScale::Sam));
    let slices = Array3::<u8>::zeros([3, 20, 20]);
    let error = |boxes: &[VolumeBox]| {
        let found = predictor.segment_volume_with_boxes(slices.view(), boxes, |_, _| {});
        found.expect_err("invalid").to_string()
    };
    let object = VolumeBox { corners: [1.0, 1.0, 9.0, 9.0], slices: 0..=2 };
    let outside = VolumeBox { slices: 1..=3, ..object.clone() };
    assert_eq!(
        error(&[object.clone(), outside]),
        "box 2 covers slices 1 to 3; expected the first before or at the last, and slices from 0 to 2"
    );
    let infinite = VolumeBox { corners: [1.0, f32::NAN, 9.0, 9.0], ..object.clone() };
    assert!(error(&[infinite]).contains("NaN"));
    assert!(error(&vec![object; 256]).contains("256 boxes"));
    assert!(error(&[]).contains("no prompt"));
}

#[test]
fn hugging_faces_weights_give_its_outputs() {
    let device = Device::flex();
    let cases = Cases::open("hugging_face");
    let sam = tiny_sam(&fixture("hugging_face/model.safetensors"), PixelScale::Unit);
    let embedding = sam.foundation.embed(cases.tensor("image", &device));
    cases.assert_close("embedding", embedding.clone(), 1e-5);
    let boxes = Some(cases.tensor("box", &device));
    let prompts = Prompts { boxes, ..Prompts::default() };
    let prediction = sam.predict(embedding, &prompts).multiple();
    cases.assert_close("logits", prediction.logits, 3e-5);
    cases.assert_close("iou", prediction.iou, 3e-5);
}

/// A grey picture of the fixture's script.
fn drawn(width: u32, height: u32) -> DynamicImage {
    let pixel = |x: u32, y: u32| {
        let (column, row) = ((x * 512 / width) as i32, (y * 512 / height) as i32);
        let is_inside = (column - 240).pow(2) + (row - 260).pow(2) < 110 * 110;
        let disc = if is_inside { 90 } else { 0 };
        Luma([(disc + (x * 7 + y * 13) % 64 + 20) as u8])
    };
    DynamicImage::ImageLuma8(GrayImage::from_fn(width, height, pixel))
}

#[test]
fn lite_medsam_is_used_as_it_was_published() {
    let Some(path) = lite_medsam_pth() else { return };
    let device = Device::flex();
    let cases = Cases::open("lite_medsam");
    let mut predictor = Predictor::load(path, &device).expect("the published weights");
    assert_eq!(predictor.sam().input_size, 256);
    for (name, width, height) in
        [("halved", 512, 512), ("reduced", 421, 300), ("enlarged", 90, 100)]
    {
        predictor.set_image(&drawn(width, height)).expect("an image");
        let bounding_box = Some(floats(&cases, &format!("{name}.box")));
        let prompts = ImagePrompts { bounding_box, ..ImagePrompts::default() };
        let masks = predictor.predict(&prompts, false).expect("a box");
        let every_fourth = |tensor: Tensor<4>, axis: usize| {
            let length = tensor.dims()[axis];
            let kept: Vec<i64> = (0..length).step_by(4).map(|index| index as i64).collect();
            tensor.select(axis, Tensor::<1, Int>::from_data(kept.as_slice(), &device))
        };
        let logits = every_fourth(every_fourth(masks.logits, 2), 3);
        let expected = cases.data(&format!("{name}.logits"));
        let error = relative_error(logits.into_data(), expected);
        assert!(error <= LOGITS, "{name}: relative error {error:.2e}, limit {LOGITS:.0e}");
    }
}
