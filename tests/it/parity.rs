//! Parity of each module and of the whole model with segment-anything and torchvision.

use crate::support::{Cases, config, ladder_model, relative_error, sam_pth};
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use sam_lst::mask_decoder::{PointLabel, Points, PromptEmbeddings, Prompts};
use sam_lst::model::{PixelScale, SamConfig, SideNetwork};
use sam_lst::sam_encoder::SamEncoder;
use sam_lst::{Fusion, Sam, SamLstConfig};

/// Tolerance for one module.
const MODULE: f64 = 1e-5;
/// Tolerance for the whole model.
const MODEL: f64 = 3e-5;

/// The unmodified SAM of the fixture.
pub fn sam(device: &Device) -> Sam {
    let SamLstConfig { encoder, mut decoder, .. } = config();
    decoder.num_masks = 4;
    SamConfig::new(encoder)
        .with_decoder(decoder)
        .with_pixel_scale(PixelScale::Unit)
        .load(sam_pth(), device)
        .expect("load the fixture")
}

#[test]
fn encoder_and_its_modules() {
    let device = Device::flex();
    let cases = Cases::open("sam_tiny");
    let sam = sam(&device);
    let encoder = sam.foundation.encoder::<SamEncoder>().expect("a ViT");
    // The pretraining grid, whose 8 tokens are not a multiple of the window size 5, and two grids
    // with resized position embeddings.
    for grid in [8, 13, 3] {
        let case = |name: &str| format!("encoder.{grid}.{name}");
        let input = |name: &str| cases.tensor::<4>(&case(name), &device);
        let assert_close =
            |name: &str, actual: Tensor<4>| cases.assert_close(&case(name), actual, MODULE);
        assert_close("embed", encoder.embed(input("image")));
        assert_close("windowed_block", encoder.blocks[0].forward(input("tokens")));
        assert_close("global_block", encoder.blocks[1].forward(input("tokens")));
        assert_close("neck", encoder.neck.forward(input("tokens")));
        assert_close("embedding", encoder.forward(input("image")));
    }
}

/// The prompts of a case of the fixture: three images, or three prompts for one image.
pub fn prompts(cases: &Cases, name: &str, device: &Device) -> Prompts {
    use PointLabel::{Background, Foreground, Padding};
    let labels = [
        [Foreground, Background, Padding, Foreground],
        [Background, Background, Foreground, Foreground],
        [Foreground, Padding, Padding, Background],
    ];
    let [points, boxes, masks] = match name {
        "points" => [true, false, false],
        "boxes" => [false, true, false],
        "points_boxes" => [true, true, false],
        "masks" => [false, false, true],
        "all" => [true; 3],
        "none" => [false; 3],
        other => panic!("unknown case: {other}"),
    };
    Prompts {
        points: points.then(|| {
            Points::new(cases.tensor("prompt.coordinates", device), labels.as_flattened())
        }),
        boxes: boxes.then(|| cases.tensor("prompt.boxes", device)),
        masks: masks.then(|| cases.tensor("prompt.masks", device)),
    }
}

#[test]
fn prompt_encoder_and_mask_decoder_with_each_kind_of_prompt() {
    let device = Device::flex();
    let cases = Cases::open("sam_tiny");
    let Sam { prompt_encoder, mask_decoder, .. } = sam(&device);
    let positions = prompt_encoder.image_positions(8);
    cases.assert_close("prompt.image_positions", positions.clone(), MODULE);
    for name in ["points", "boxes", "points_boxes", "masks", "all", "none"] {
        let PromptEmbeddings { sparse, dense } =
            prompt_encoder.forward(&prompts(&cases, name, &device), 8);
        let sparse_case = format!("prompt.{name}.sparse");
        assert_eq!(sparse.is_some(), cases.has(&sparse_case), "{name}");
        if let Some(sparse) = sparse.clone() {
            cases.assert_close(&sparse_case, sparse, MODULE);
        }
        // Without a mask we have one dense embedding for all prompts, SAM one for each of them.
        let expected = cases.tensor::<4>(&format!("prompt.{name}.dense"), &device);
        let expanded = dense.clone().expand(expected.dims());
        let error = relative_error(expanded.into_data(), expected.into_data());
        assert!(error <= MODULE, "prompt.{name}.dense: {error:.2e}");

        let embedding = cases.tensor::<4>("decoder.embedding", &device);
        let logits = format!("decoder.{name}.logits");
        let batch = mask_decoder.forward(
            embedding.clone(),
            positions.clone(),
            PromptEmbeddings { sparse: sparse.clone(), dense: dense.clone() },
        );
        cases.assert_close(&logits, batch.logits, MODULE);
        cases.assert_close(&format!("decoder.{name}.iou"), batch.iou, MODULE);

        let single = mask_decoder.forward(
            embedding.narrow(0, 0, 1),
            positions.clone(),
            PromptEmbeddings {
                sparse: sparse.map(|sparse| sparse.narrow(0, 0, 1)),
                dense: dense.narrow(0, 0, 1), // of one or three
            },
        );
        let expected = cases.tensor::<4>(&logits, &device).narrow(0, 0, 1);
        let error = relative_error(single.logits.into_data(), expected.into_data());
        assert!(error <= MODULE, "decoder.{name}, one image: {error:.2e}");
    }
}

#[test]
fn two_way_transformer() {
    let device = Device::flex();
    let cases = Cases::open("sam_tiny");
    let flat = |name: &str| cases.tensor::<4>(name, &device).flatten::<3>(2, 3).swap_dims(1, 2);
    let (queries, keys) = sam(&device).mask_decoder.transformer.forward(
        flat("transformer.image"),
        flat("transformer.positions"),
        cases.tensor("transformer.tokens", &device),
    );
    cases.assert_close("transformer.queries", queries, MODULE);
    cases.assert_close("transformer.keys", keys, MODULE);
}

#[test]
fn unmodified_sam() {
    let device = Device::flex();
    let cases = Cases::open("sam_tiny");
    let image = cases.tensor::<4>("encoder.8.image", &device).narrow(0, 0, 1);
    // One image with three prompts, as in SAM's own `forward`.
    let prediction = sam(&device).forward(image, &prompts(&cases, "points_boxes", &device));
    let multiple = prediction.clone().multiple();
    cases.assert_close("sam.multiple.logits", multiple.logits, MODEL);
    cases.assert_close("sam.multiple.iou", multiple.iou, MODEL);
    let single = prediction.single();
    cases.assert_close("sam.single.logits", single.logits, MODEL);
    cases.assert_close("sam.single.iou", single.iou, MODEL);
}

#[test]
fn whole_model_and_every_ablation() {
    let device = Device::flex();
    let cases = Cases::open("ladder_tiny");
    let image = || cases.tensor::<4>("image", &device);
    for (fusion, name) in [
        (Fusion::Gated, "gated"),
        (Fusion::SideOnly, "side_only"),
        (Fusion::SamOnly, "sam_only"),
        (Fusion::Untrained, "sam_only"),
    ] {
        let model = ladder_model(&cases, &config().with_fusion(fusion), &device);
        let prediction = model.forward(image());
        cases.assert_close(&format!("{name}.logits"), prediction.logits.clone(), MODEL);
        if fusion == Fusion::Gated {
            cases.assert_close("gated.full_size", prediction.full_size(64), MODEL);
            cases.assert_close("embedding", model.foundation.embed(image()), MODULE);
            let gate = model.network.gate_value().expect("a gate");
            assert!((gate - 1.0 / (1.0 + (-0.3_f32).exp())).abs() < 1e-6);
        } else {
            assert_eq!(model.network.gate_value(), None);
        }
    }
}

#[test]
fn side_network_in_both_modes() {
    let device = Device::flex().autodiff();
    let cases = Cases::open("ladder_tiny");
    let model = ladder_model(&cases, &config(), &device);
    let Some(SideNetwork::ResNet(side)) = model.network.side else { panic!("a ResNet") };
    let image = cases.tensor::<4>("image", &Device::flex());
    cases.assert_close("side.eval", side.valid().forward(image.clone()), MODULE);

    // One forward pass in training mode updates the running statistics.
    side.forward(image.clone().autodiff());
    let evaluated = side.valid();
    for (actual, name) in [
        (&evaluated.bn1.running_mean, "bn1.running_mean"),
        (&evaluated.bn1.running_var, "bn1.running_var"),
        (&evaluated.layer3[1].bn2.running_mean, "layer3.1.bn2.running_mean"),
        (&evaluated.layer3[1].bn2.running_var, "layer3.1.bn2.running_var"),
    ] {
        cases.assert_close(&format!("statistics.side.{name}"), actual.value(), MODULE);
    }
    cases.assert_close("side.eval_after_step", evaluated.forward(image), MODULE);
}
