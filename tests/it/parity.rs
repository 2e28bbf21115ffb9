//! Each module and the whole model against segment-anything and torchvision.

use crate::support::{Cases, config, ladder_model, relative_error, sam_pth};
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use sam_lst::rooms::mask_decoder::PromptEmbeddings;
use sam_lst::{Fusion, PointLabel, Points, Prompts, Sam, SamConfig, SamLstConfig};

/// Tolerance for one module.
const MODULE: f64 = 1e-5;
/// Tolerance for the whole model.
const MODEL: f64 = 3e-5;

pub fn sam(device: &Device) -> Sam {
    let SamLstConfig {
        encoder,
        mut decoder,
        ..
    } = config();
    decoder.num_masks = 4;
    SamConfig::new(encoder, decoder)
        .load(sam_pth(), device)
        .expect("fixture loads")
}

#[test]
fn encoder_and_its_modules() {
    let device = Device::flex();
    let cases = Cases::open("sam_tiny");
    let encoder = sam(&device).image_encoder;
    // The training grid, whose 8 tokens do not fill windows of 5, then two with resized positions.
    for grid in [8, 13, 3] {
        let case = |name: &str| format!("encoder.{grid}.{name}");
        let input = |name: &str| cases.tensor::<4>(&case(name), &device);
        let close = |name: &str, ours: Tensor<4>| cases.assert_close(&case(name), ours, MODULE);
        close("embed", encoder.embed(input("image")));
        close("windowed_block", encoder.blocks[0].forward(input("tokens")));
        close("global_block", encoder.blocks[1].forward(input("tokens")));
        close("neck", encoder.neck.forward(input("tokens")));
        close("embedding", encoder.forward(input("image")));
    }
}

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
        other => panic!("no such case: {other}"),
    };
    Prompts {
        points: points.then(|| {
            Points::new(
                cases.tensor("prompt.coordinates", device),
                labels.as_flattened(),
            )
        }),
        boxes: boxes.then(|| cases.tensor("prompt.boxes", device)),
        masks: masks.then(|| cases.tensor("prompt.masks", device)),
    }
}

#[test]
fn prompt_encoder_and_decoder_with_each_kind_of_prompt() {
    let device = Device::flex();
    let cases = Cases::open("sam_tiny");
    let Sam {
        prompt_encoder,
        mask_decoder,
        ..
    } = sam(&device);
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
        // Where no mask is given ours is one for all, SAM's one for each of the other prompts.
        let theirs = cases.tensor::<4>(&format!("prompt.{name}.dense"), &device);
        let error = relative_error(
            dense.clone().expand(theirs.dims()).into_data(),
            theirs.into_data(),
        );
        assert!(error <= MODULE, "prompt.{name}.dense: {error:.2e}");

        let embedding = cases.tensor::<4>("decoder.embedding", &device);
        let logits = format!("decoder.{name}.logits");
        let three = mask_decoder.forward(
            embedding.clone(),
            positions.clone(),
            PromptEmbeddings {
                sparse: sparse.clone(),
                dense: dense.clone(),
            },
        );
        cases.assert_close(&logits, three.logits, MODULE);
        cases.assert_close(&format!("decoder.{name}.iou"), three.iou, MODULE);

        let alone = mask_decoder.forward(
            embedding.narrow(0, 0, 1),
            positions.clone(),
            PromptEmbeddings {
                sparse: sparse.map(|sparse| sparse.narrow(0, 0, 1)),
                dense: dense.narrow(0, 0, 1), // of one or of three
            },
        );
        let theirs = cases.tensor::<4>(&logits, &device).narrow(0, 0, 1);
        let error = relative_error(alone.logits.into_data(), theirs.into_data());
        assert!(error <= MODULE, "decoder.{name}, one image: {error:.2e}");
    }
}

#[test]
fn two_way_transformer() {
    let device = Device::flex();
    let cases = Cases::open("sam_tiny");
    let flat = |name: &str| {
        cases
            .tensor::<4>(name, &device)
            .flatten::<3>(2, 3)
            .swap_dims(1, 2)
    };
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
    let image = cases
        .tensor::<4>("encoder.8.image", &device)
        .narrow(0, 0, 1);
    // One image for three prompts, as SAM's own `forward` has it.
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
            let gate = model.ladder.gate_value().expect("a gate");
            assert!((gate - 1.0 / (1.0 + (-0.3_f32).exp())).abs() < 1e-6);
        } else {
            assert_eq!(model.ladder.gate_value(), None);
        }
    }
}

#[test]
fn side_network_in_both_modes() {
    let device = Device::flex().autodiff();
    let cases = Cases::open("ladder_tiny");
    let model = ladder_model(&cases, &config(), &device);
    let side = model.ladder.side.expect("a side network");
    let image = cases.tensor::<4>("image", &Device::flex());
    cases.assert_close("side.eval", side.valid().forward(image.clone()), MODULE);

    // One forward pass in training mode, which leaves its mark on the running statistics.
    side.forward(image.clone().autodiff());
    let evaluated = side.valid();
    for (ours, name) in [
        (&evaluated.bn1.running_mean, "bn1.running_mean"),
        (&evaluated.bn1.running_var, "bn1.running_var"),
        (
            &evaluated.layer3[1].bn2.running_mean,
            "layer3.1.bn2.running_mean",
        ),
        (
            &evaluated.layer3[1].bn2.running_var,
            "layer3.1.bn2.running_var",
        ),
    ] {
        cases.assert_close(&format!("statistics.side.{name}"), ours.value(), MODULE);
    }
    cases.assert_close("side.eval_after_step", evaluated.forward(image), MODULE);
}
