//! Parity of TinyViT with the code of MobileSAM and LiteMedSAM, with random weights and with
//! LiteMedSAM's own.

use crate::support::{Cases, fixture, lite_medsam_pth};
use burn::tensor::{Device, Tensor, TensorData};
use sam_lst::mask_decoder::Prompts;
use sam_lst::model::{EncoderConfig, PixelScale, SamConfig};
use sam_lst::tiny_vit::{Stage, TinyVit, TinyVitConfig};
use sam_lst::{Foundation, SamLstConfig};

/// Tolerance for one module and for a whole encoder.
const MODULE: f64 = 1e-5;
/// Tolerance for the whole model.
const MODEL: f64 = 3e-5;

#[test]
fn encoder_and_its_modules_at_sizes_that_need_padding() {
    let device = Device::flex();
    let cases = Cases::open("tiny_vit");
    for (name, file, stride, size) in
        [("lite", "lite.pth", 1, 20), ("lite", "lite.pth", 1, 36), ("mobile", "mobile.pth", 4, 80)]
    {
        let config = TinyVitConfig { patch_stride: stride, ..TinyVitConfig::tiny() };
        let path = fixture("tiny_vit").join(file);
        let recognized = EncoderConfig::recognize(&path).expect("a TinyViT");
        assert_eq!(recognized, EncoderConfig::TinyVit(config));
        let foundation = Foundation::load(&recognized, PixelScale::Unit, &path, &device)
            .expect("load the fixture");
        assert_eq!((foundation.stride(), foundation.channels()), (4 * stride, 64));
        let encoder = foundation.encoder::<TinyVit>().expect("a TinyViT");

        let case = |part: &str| format!("{name}.{size}.{part}");
        let input = |part: &str| cases.tensor::<4>(&case(part), &device);
        let assert_close =
            |part: &str, actual: Tensor<4>| cases.assert_close(&case(part), actual, MODULE);
        let image = input("image");
        let patches = encoder.patch_embed.forward(image.clone().permute([0, 2, 3, 1]));
        assert_close("patch_embed", patches);
        let mut features = input("patch_embed");
        for (index, stage) in encoder.layers.iter().enumerate() {
            let part = format!("layers.{index}");
            assert_close(&part, stage.forward(features));
            features = input(&part);
        }
        for index in [1, 2] {
            let Stage::Attention(stage) = &encoder.layers[index] else {
                panic!("stage {index} has no attention");
            };
            let tokens = input(&format!("tokens.{index}"));
            assert_close(&format!("block.{index}"), stage.blocks[0].forward(tokens));
        }
        assert_close("embedding", encoder.forward(image));
    }
}

#[test]
fn whole_model_of_stride_4_with_a_box() {
    let device = Device::flex();
    let cases = Cases::open("tiny_vit");
    let SamLstConfig { mut decoder, .. } = SamLstConfig::tiny(9);
    decoder.num_masks = 4;
    let sam = SamConfig::new(TinyVitConfig::tiny().into())
        .with_decoder(decoder)
        .with_pixel_scale(PixelScale::Unit)
        .load(fixture("tiny_vit/lite.pth"), &device)
        .expect("load the fixture");
    let image = cases.tensor::<4>("lite.36.image", &device).narrow(0, 0, 1);
    let boxes = Some(cases.tensor("sam.boxes", &device));
    let prediction = sam.forward(image, &Prompts { boxes, ..Prompts::default() });
    cases.assert_close("sam.logits", prediction.logits, MODEL);
    cases.assert_close("sam.iou", prediction.iou, MODEL);
}

/// The image of the fixture's script.
fn drawn_image(device: &Device) -> Tensor<4> {
    let pixel = |x: i32, y: i32| {
        let disc = if (x - 100).pow(2) + (y - 120).pow(2) < 60 * 60 { 90 } else { 0 };
        let bar = if x > 150 && x < 190 && y > 30 && y < 220 { 60 } else { 0 };
        (disc + bar + (x * 7 + y * 13 + x * y) % 64) as f32 / 255.0
    };
    let pixels: Vec<f32> = (0..256 * 256).map(|i| pixel(i % 256, i / 256)).collect();
    let image = Tensor::<4>::from_data(TensorData::new(pixels, [1, 1, 256, 256]), device);
    image.expand([1, 3, 256, 256])
}

#[test]
fn lite_medsam_with_its_own_weights() {
    let Some(path) = lite_medsam_pth() else { return };
    let device = Device::flex();
    let cases = Cases::open("lite_medsam");
    let recognized = EncoderConfig::recognize(&path).expect("LiteMedSAM");
    assert_eq!(recognized, EncoderConfig::TinyVit(TinyVitConfig::lite_medsam()));
    let sam = SamConfig::lite_medsam()
        .with_pixel_scale(PixelScale::Unit)
        .load(&path, &device)
        .expect("load the published weights");
    let embedding = sam.foundation.embed(drawn_image(&device));
    assert_eq!(embedding.dims(), [1, 256, 64, 64]);
    let every = |tensor: Tensor<4>, axis, step: usize| {
        let length = tensor.dims()[axis];
        let kept: Vec<i64> = (0..length).step_by(step).map(|index| index as i64).collect();
        tensor.select(axis, Tensor::<1, burn::tensor::Int>::from_data(kept.as_slice(), &device))
    };
    let part = every(every(every(embedding.clone(), 1, 4), 2, 2), 3, 2);
    cases.assert_close("embedding", part, MODULE);

    let boxes = Some(cases.tensor("box", &device));
    let prediction = sam.predict(embedding, &Prompts { boxes, ..Prompts::default() }).single();
    cases.assert_close("logits", every(every(prediction.logits, 2, 2), 3, 2), MODEL);
}

#[test]
fn ladder_over_lite_medsam_trains_the_published_parts() {
    let device = Device::flex().autodiff();
    let model = SamLstConfig::lite_medsam(9)
        .with_input_size(16)
        .init(&device)
        .expect("a valid configuration");
    let trained = model.ladder.trained_tensors();
    let sum = |prefix: &str| -> usize {
        trained.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, size)| size).sum()
    };
    // ResNet18 to `layer3`, the pyramid's three 1 x 1 convolutions, the decoder's upscaling, the gate.
    let pyramid = (64 + 128 + 256 + 3) * 256;
    assert_eq!(sum("side.pyramid."), pyramid);
    assert_eq!(sum("side."), 2_782_784 + pyramid);
    assert_eq!(sum("mask_decoder.output_upscaling."), 73_952);
    assert_eq!(sum("gate.alpha"), 1);
    assert_eq!(sum(""), 2_856_737 + pyramid);

    let image = Tensor::ones([1, 3, 16, 16], &device);
    let logits = model.forward(image).logits;
    assert_eq!(logits.dims(), [1, 9, 16, 16]);
}
