//! Parity of TinyViT with the code of MobileSAM and LiteMedSAM, with random weights and with
//! LiteMedSAM's own.

use crate::support::{Cases, fixture, lite_medsam_pth, norm_error, pattern};
use burn::tensor::{Device, Tensor, TensorData};
use sam_lst::mask_decoder::Prompts;
use sam_lst::model::{
    ConfigError, CustomEncoderConfig, EncoderConfig, PixelScale, SamConfig, SideConfig,
};
use sam_lst::resnet_side::ResNetSideConfig;
use sam_lst::tiny_vit::{Stage, TinyVit, TinyVitConfig};
use sam_lst::{Foundation, FoundationPrecision, Fusion, SamLst, SamLstConfig};

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
        let (embedding, taps) = encoder.forward_with_taps(image, &[0, 1, 2, 3]);
        assert_close("embedding", embedding);
        for (index, features) in taps.into_iter().enumerate() {
            let part = if index == 3 { "layers.3".to_owned() } else { format!("taps.{index}") };
            assert_close(&part, features);
        }
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

/// A tiny ladder over a tiny TinyViT of stride 4.
fn tiny_config() -> SamLstConfig {
    let mut config = SamLstConfig::tiny(9).with_input_size(32);
    config.encoder = TinyVitConfig::tiny().into();
    let side = ResNetSideConfig::resnet18().with_width(8).with_pyramid_channels(Some(64));
    config.with_side(SideConfig::ResNet(side))
}

#[test]
fn a_saved_model_of_stride_4_is_loaded_again() {
    let device = Device::flex();
    let model = tiny_config().init(&device).expect("a valid configuration");
    let folder = tempfile::tempdir().expect("a folder");
    let [sam, ladder] =
        ["sam.safetensors", "ladder.safetensors"].map(|name| folder.path().join(name));
    model.save_sam(&sam).expect("save the foundation");
    model.save_network(&ladder).expect("save the ladder");
    let recognized = EncoderConfig::recognize(&sam).expect("a TinyViT");
    assert_eq!(recognized, tiny_config().encoder);
    let loaded = SamLst::from_pretrained(&sam, &ladder, &device).expect("load both");
    assert_eq!(loaded.config(), &tiny_config());
    let image = pattern([1, 3, 32, 32], &device);
    let [expected, actual] =
        [&model, &loaded].map(|model| model.valid().forward(image.clone()).logits.into_data());
    actual.assert_eq(&expected, true);
    assert_eq!(actual.shape().as_slice(), [1, 9, 32, 32]);

    // The half-precision foundation is close, and another pixel scale has another cache.
    let mut half = model.foundation.clone();
    half.set_precision(FoundationPrecision::F16).expect("the CPU supports it");
    let [whole, half] = [&model.foundation, &half].map(|f| f.embed(image.clone()).into_data());
    let error = norm_error(&half, &whole);
    assert!(error <= 5e-3, "{error:.2e}");
}

/// Embeddings are cached and shared, so a last bit that depended on the other images of a batch would
/// make training depend on which process or thread computed them.
#[test]
fn an_embedding_does_not_depend_on_its_batch() {
    let device = Device::flex();
    let configs =
        [SamLstConfig::tiny(9), SamLstConfig::tiny(9).with_input_size(128), tiny_config()];
    let mut foundations: Vec<(Foundation, usize)> = configs
        .iter()
        .map(|config| {
            let model = config.init(&device).expect("a valid configuration");
            (model.foundation, config.input_size)
        })
        .collect();
    if let Some(file) = lite_medsam_pth() {
        let sam = SamConfig::lite_medsam().load(&file, &device).expect("the published weights");
        foundations.push((sam.foundation, 256));
    }
    for (foundation, size) in foundations {
        let images = pattern([8, 3, size, size], &device);
        for batch in [3, 8] {
            for start in (0..8).step_by(batch) {
                let images = images.clone().narrow(0, start, batch.min(8 - start));
                let together = foundation.embed(images.clone());
                for (i, image) in images.split(1, 0).into_iter().enumerate() {
                    let alone = foundation.embed(image).into_data();
                    let place = format!("image {i} of {batch} at {size} x {size}");
                    let together = together.clone().narrow(0, i, 1).into_data();
                    assert!(together == alone, "{place}");
                }
            }
        }
    }
}

#[test]
fn an_encoder_of_ones_own_is_a_foundation() {
    let device = Device::flex();
    let custom = |stride| CustomEncoderConfig { name: "mine".to_owned(), stride, channels: 64 };
    let mut config = tiny_config();
    config.encoder = EncoderConfig::Custom(custom(4));
    let error = config.init(&device).expect_err("an encoder of one's own");
    assert!(matches!(&error, ConfigError::CustomEncoder { name } if name == "mine"), "{error}");
    let SideConfig::ResNet(side) = config.side.clone() else { panic!("a ResNet") };
    // Of a model, whose initial weights are drawn while no other test draws any.
    let drawn = tiny_config().init(&device).expect("a valid configuration").foundation;
    let build = |config: &SamLstConfig| {
        let encoder = drawn.encoder::<TinyVit>().expect("a TinyViT").clone();
        let foundation = Foundation::new(encoder, config.pixel_scale);
        config.init_with_foundation(foundation, |device| side.init(device), &device)
    };
    let model = build(&config).expect("a valid configuration");
    let image = pattern([1, 3, 32, 32], &device);
    assert_eq!(model.forward(image).logits.dims(), [1, 9, 32, 32]);

    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("ladder.safetensors");
    model.save_network(&path).expect("save the ladder");
    let mut other = tiny_config().init(&device).expect("a valid configuration");
    let error = other.load_network(&path).expect_err("another encoder").to_string();
    assert!(error.contains("`encoder` is {\"name\":\"mine\""), "{error}");

    config.encoder = EncoderConfig::Custom(custom(16));
    config.fusion = Fusion::SamOnly;
    config.side = SideConfig::ResNet(ResNetSideConfig::resnet18().with_width(16));
    let error = build(&config).expect_err("another stride").to_string();
    assert!(
        error.contains(
            "(4, 64, Unit), but the configuration (stride, channels, pixel scale) (16, 64"
        ),
        "{error}"
    );
}

#[test]
fn ladder_over_lite_medsam_trains_the_published_parts() {
    let device = Device::flex().autodiff();
    let model = SamLstConfig::lite_medsam(9)
        .with_input_size(16)
        .init(&device)
        .expect("a valid configuration");
    let trained = model.network.trained_tensors();
    let sum = |prefix: &str| -> usize {
        trained.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, size)| size).sum()
    };
    // ResNet18 to `layer3`, the pyramid's three 1 x 1 convolutions, the decoder's upscaling, the
    // gate.
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
