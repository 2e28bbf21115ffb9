//! Invalid files and values: each gives an error that names it and what was expected.

use crate::support::{config, fixture, resnet_pth, sam_pth};
use burn::tensor::{Device, Tensor};
use safetensors::tensor::{Dtype, TensorView};
use sam_lst::model::{ModelError, PixelScale};
use sam_lst::sam_encoder::SamEncoderConfig;
use sam_lst::weights::{StateDict, WeightsError};
use sam_lst::{Foundation, SamLst, SamLstConfig};
use std::collections::HashMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn folder() -> TempDir {
    tempfile::tempdir().expect("temporary folder")
}

/// Writes `bytes` to a file in `folder`.
fn file(folder: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, bytes).expect("write file");
    path
}

/// The error of loading a model, which must be about a weights file.
#[track_caller]
fn error(sam: &Path, resnet: &Path) -> WeightsError {
    match SamLst::from_official(&config(), sam, Some(resnet), &Device::flex()) {
        Err(ModelError::Weights(error)) => error,
        Err(other) => panic!("expected an error about a weights file, found: {other}"),
        Ok(_) => panic!("expected an error about a weights file, found a model"),
    }
}

/// Asserts that the message contains `parts` and names the file, on one line.
#[track_caller]
fn assert_message(error: &dyn Error, path: &Path, parts: &[&str]) {
    let message = error.to_string();
    let path = path.display().to_string();
    for part in parts.iter().copied().chain([path.as_str()]) {
        assert!(message.contains(part), "expected \"{part}\" in: {message}");
    }
    assert!(!message.contains('\n'), "more than one line: {message}");
}

#[test]
fn missing_files_are_reported() {
    let missing = Path::new("nowhere/sam_vit_b_01ec64.pth");
    assert_message(
        &error(missing, &resnet_pth()),
        missing,
        &["no such file; download it from \
             https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth"],
    );
    let missing = Path::new("nowhere/resnet18-f37072fd.pth");
    assert_message(
        &error(&sam_pth(), missing),
        missing,
        &["no such file", "https://download.pytorch.org/models/resnet18-f37072fd.pth"],
    );
    let missing = Path::new("nowhere/mine.pth");
    assert!(error(missing, &resnet_pth()).to_string().ends_with("no such file"));
    let directory = fixture("sam_tiny");
    let error = error(&directory, &resnet_pth());
    assert!(matches!(error, WeightsError::Read { .. }), "{error}");
    assert_message(&error, &directory, &["cannot load"]);
}

#[test]
fn files_that_are_not_checkpoints_are_reported() {
    let folder = folder();
    for (bytes, found) in [
        (&b""[..], "an empty file"),
        (b"<!DOCTYPE html><title>404</title>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"plain text, not a checkpoint", "begins with the bytes [70, 6c"),
    ] {
        let path = file(&folder, "model.pth", bytes);
        let error = error(&path, &resnet_pth());
        assert!(matches!(error, WeightsError::NotACheckpoint { .. }), "{error}");
        assert_message(&error, &path, &["expected a PyTorch .pth or safetensors file", found]);
    }
    // A zip file that PyTorch did not write.
    let zip = [b"PK\x05\x06".as_slice(), &[0; 18]].concat();
    let path = file(&folder, "other.pth", &zip);
    assert!(matches!(error(&path, &resnet_pth()), WeightsError::NotACheckpoint { .. }));
}

#[test]
fn truncated_files_are_reported() {
    let folder = folder();
    let safetensors = folder.path().join("sam.safetensors");
    StateDict::open(sam_pth())
        .expect("open the file")
        .save_safetensors(&safetensors)
        .expect("save weights");
    for source in [sam_pth(), safetensors] {
        let whole = fs::read(source).expect("read the file");
        for length in [10, 100, 5_000, whole.len() / 2, whole.len() - 1] {
            let path = file(&folder, "truncated", &whole[..length]);
            let error = error(&path, &resnet_pth());
            assert!(matches!(error, WeightsError::Damaged { .. }), "{length} bytes: {error}");
            assert_message(&error, &path, &["truncated or damaged"]);
        }
    }
    let legacy = fs::read(fixture("ladder_tiny/resnet_tiny_legacy.pth")).expect("read the file");
    for length in [10, 5_000, legacy.len() / 2, legacy.len() - 1] {
        let path = file(&folder, "truncated", &legacy[..length]);
        let error = error(&sam_pth(), &path);
        assert!(matches!(error, WeightsError::Damaged { .. }), "{length} bytes: {error}");
    }
}

#[test]
fn a_flipped_bit_in_a_pth_file_is_reported() {
    let folder = folder();
    let mut bytes = fs::read(sam_pth()).expect("read the file");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let path = file(&folder, "flipped.pth", &bytes);
    let error = error(&path, &resnet_pth());
    assert!(matches!(error, WeightsError::Damaged { .. }), "{error}");
}

#[test]
fn a_broken_download_of_an_official_file_is_reported() {
    let folder = folder();
    let path = folder.path().join("sam_vit_b_01ec64.pth");
    fs::copy(sam_pth(), &path).expect("copy file");
    assert_message(
        &error(&path, &resnet_pth()),
        &path,
        &["its SHA-256 is", "begins with 01ec64", "download it again from https://"],
    );
    let path = folder.path().join("resnet18-f37072fd.pth");
    fs::copy(resnet_pth(), &path).expect("copy file");
    assert_message(&error(&sam_pth(), &path), &path, &["begins with f37072fd"]);
}

type Tensors = HashMap<String, (Vec<usize>, Vec<f32>)>;

/// Writes the tiny SAM as safetensors, modified by `modify`.
fn modified(folder: &TempDir, modify: impl FnOnce(&mut Tensors)) -> PathBuf {
    let path = folder.path().join("modified.safetensors");
    StateDict::open(sam_pth())
        .expect("open the file")
        .save_safetensors(&path)
        .expect("save weights");
    let bytes = fs::read(&path).expect("read the file");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("read the file");
    let mut tensors: Tensors = file
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let values =
                view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            (name, (view.shape().to_vec(), values.collect()))
        })
        .collect();
    modify(&mut tensors);
    write_safetensors(&path, &tensors);
    path
}

fn write_safetensors(path: &Path, tensors: &Tensors) {
    let bytes: HashMap<_, Vec<u8>> = tensors
        .iter()
        .map(|(name, (_, values))| (name, values.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let views = tensors.iter().map(|(name, (shape, _))| {
        (
            name,
            TensorView::new(Dtype::F32, shape.clone(), &bytes[name])
                .expect("as many bytes as the shape has"),
        )
    });
    safetensors::serialize_to_file(views, None, path).expect("write file");
}

#[test]
fn missing_unknown_misshaped_and_non_finite_tensors_are_reported() {
    let folder = folder();
    let with = |modify: &dyn Fn(&mut Tensors)| {
        let path = modified(&folder, modify);
        (error(&path, &resnet_pth()), path)
    };

    let (missing, path) = with(&|tensors| {
        tensors.remove("image_encoder.neck.1.bias");
        tensors.remove("image_encoder.blocks.2.norm2.weight");
    });
    assert!(matches!(missing, WeightsError::Missing { .. }), "{missing}");
    assert_message(
        &missing,
        &path,
        &["2 tensors missing: image_encoder.blocks.2.norm2.weight, image_encoder.neck.1.bias"],
    );

    for name in ["image_encoder.extra.weight", "mask_decoder.extra", "teacher.weight"] {
        let (unknown, path) = with(&|tensors| {
            tensors.insert(name.into(), (vec![1], vec![0.0]));
        });
        assert!(matches!(unknown, WeightsError::Unused { .. }), "{unknown}");
        assert_message(&unknown, &path, &["1 tensor not in the model", name]);
    }

    // Burn stores the weight of a linear layer transposed; the message has the file's order.
    let name = "image_encoder.blocks.0.mlp.lin1.weight";
    let (shape, path) = with(&|tensors| {
        tensors.insert(name.into(), (vec![100, 32], vec![0.0; 3200]));
    });
    assert_message(&shape, &path, &[name, "has shape [100, 32], expected [128, 32]"]);
    let name = "mask_decoder.output_upscaling.0.bias";
    let (shape, path) = with(&|tensors| {
        tensors.insert(name.into(), (vec![3], vec![0.0; 3]));
    });
    assert_message(&shape, &path, &[name, "has shape [3], expected [16]"]);

    let name = "prompt_encoder.no_mask_embed.weight";
    for value in [f32::NAN, f32::INFINITY] {
        let (not_finite, path) = with(&|tensors| {
            if let Some((_, values)) = tensors.get_mut(name) {
                values[7] = value;
            }
        });
        assert_message(&not_finite, &path, &[name, &format!("holds {value} at index 7")]);
    }
}

#[test]
fn missing_parts_of_a_model_are_named() {
    let folder = folder();
    let path = modified(&folder, |tensors| {
        tensors.retain(|name, _| name.starts_with("image_encoder."));
    });
    let error = error(&path, &resnet_pth());
    assert!(matches!(error, WeightsError::Missing { .. }), "{error}");
    assert_message(&error, &path, &["tensors missing: prompt_encoder."]);
}

#[test]
fn a_resnet_of_another_width_is_reported() {
    let folder = folder();
    let path = folder.path().join("wide.safetensors");
    let narrow = StateDict::open(resnet_pth()).expect("open the file");
    let wide: Tensors = narrow
        .tensors()
        .filter(|tensor| tensor.dtype == "F32")
        .map(|tensor| {
            let shape: Vec<_> = tensor.shape.iter().map(|axis| 2 * axis).collect();
            let values = vec![0.0; shape.iter().product()];
            (tensor.name, (shape, values))
        })
        .collect();
    write_safetensors(&path, &wide);
    let error = error(&sam_pth(), &path);
    assert!(matches!(error, WeightsError::Shape { .. }), "{error}");
    assert_message(&error, &path, &["tensor ", "has shape", "expected"]);
}

#[test]
fn another_variant_of_sam_is_named() {
    // The tensors by which a ViT-L is recognised.
    let folder = folder();
    let mut tensors = Tensors::new();
    tensors.insert("image_encoder.pos_embed".into(), (vec![1, 1, 1, 1024], vec![0.0; 1024]));
    for block in 0..24 {
        let name = format!("image_encoder.blocks.{block}.norm1.weight");
        tensors.insert(name, (vec![1], vec![0.0]));
    }
    let path = folder.path().join("mine.safetensors");
    write_safetensors(&path, &tensors);
    let error = Foundation::load(
        &SamEncoderConfig::vit_b().into(),
        PixelScale::Unit,
        &path,
        &Device::flex(),
    )
    .expect_err("another variant");
    assert_message(&error, &path, &["expected SAM ViT-B, found SAM ViT-L"]);
}

#[test]
fn another_kind_of_checkpoint_is_named() {
    let folder = folder();
    assert_message(&error(&resnet_pth(), &resnet_pth()), &resnet_pth(), &["found a ResNet"]);
    assert_message(
        &error(&sam_pth(), &sam_pth()),
        &sam_pth(),
        &["expected a torchvision ResNet, found a SAM checkpoint"],
    );
    let ladder = folder.path().join("ladder.safetensors");
    let mut model = config().init(&Device::flex()).expect("a valid configuration");
    model.save_network(&ladder).expect("save weights");
    assert_message(
        &error(&ladder, &resnet_pth()),
        &ladder,
        &["found a trained network of the method `ladder`"],
    );
    let not_a_ladder = model.load_network(sam_pth()).expect_err("not a ladder");
    assert_message(
        &not_a_ladder,
        &sam_pth(),
        &["expected a trained network", "found a SAM checkpoint"],
    );
}

#[test]
fn a_ladder_of_another_model_is_rejected() {
    let folder = folder();
    let device = Device::flex();
    let ladder = folder.path().join("ladder.safetensors");
    let load = |sam: &Path| {
        SamLst::from_official(&config(), sam, Some(&resnet_pth()), &device).expect("load weights")
    };
    load(&sam_pth()).save_network(&ladder).expect("save weights");
    for (name, part) in [
        ("image_encoder.neck.1.bias", "another foundation"),
        ("mask_decoder.iou_token.weight", "another mask decoder"),
    ] {
        let other = modified(&folder, |tensors| {
            if let Some((_, values)) = tensors.get_mut(name) {
                values[0] += 1.0;
            }
        });
        let error = load(&other).load_network(&ladder).expect_err("another foundation");
        assert_message(
            &error,
            &ladder,
            &["was trained with", part, "load the SAM checkpoint that it was"],
        );
        let error =
            SamLst::from_pretrained(&other, &ladder, &device).expect_err("another foundation");
        assert!(matches!(error, ModelError::WrongFoundation { .. }), "{error}");
    }
    let more_classes = SamLstConfig::tiny(10);
    let mut model =
        SamLst::from_official(&more_classes, sam_pth(), None, &device).expect("load weights");
    let error = model.load_network(&ladder).expect_err("another number of classes");
    assert_message(&error, &ladder, &["its `decoder` is", "\"num_masks\":9"]);
}

#[test]
fn an_unwritable_path_is_reported() {
    let model = config().init(&Device::flex()).expect("a valid configuration");
    let folder = folder();
    let path = file(&folder, "a file", b"").join("ladder.safetensors");
    let error = model.save_network(&path).expect_err("the parent is a file");
    assert_message(&error, &path, &["cannot write"]);
}

#[test]
fn invalid_values_are_reported() {
    for (config, expected) in [
        (SamLstConfig::tiny(0), "`num_classes` is 0; expected at least 1"),
        (config().with_input_size(100), "`input_size` is 100; expected a positive multiple of 16"),
    ] {
        let error = SamLst::from_official(&config, sam_pth(), None, &Device::flex())
            .expect_err("an invalid value");
        assert!(error.to_string().starts_with(expected), "{error}");
        let error = config.init(&Device::flex()).expect_err("an invalid value");
        assert!(error.to_string().starts_with(expected), "{error}");
    }
}

#[test]
#[should_panic(
    expected = "the foundation's embedding is [1, 64, 4, 4], but the image [1, 3, 80, 80] needs [1, 64, 5, 5]"
)]
fn an_embedding_of_another_size_panics() {
    let device = Device::flex();
    let model = config().init(&device).expect("a valid configuration");
    let embedding = Tensor::<4>::zeros([1, 64, 4, 4], &device);
    model.network.forward(Tensor::zeros([1, 3, 80, 80], &device), embedding);
}

#[test]
#[should_panic(expected = "Fusion::Gated needs the foundation's embedding")]
fn a_missing_embedding_panics() {
    let device = Device::flex();
    let model = config().init(&device).expect("a valid configuration");
    model.network.forward(Tensor::zeros([1, 3, 80, 80], &device), None);
}

#[test]
fn a_state_dict_is_found_in_a_training_checkpoint() {
    let names = |file: &str| -> Vec<String> {
        let path = fixture("checkpoints").join(file);
        let opened = StateDict::open(path).unwrap_or_else(|error| panic!("{file}: {error}"));
        opened.names().map(str::to_owned).collect()
    };
    for file in [
        "entry_model.pth",
        "entry_state_dict.pth",
        "entry_model_state_dict.pth",
        "entry_model_state.pth",
        "entry_and_prefix.pth",
    ] {
        assert_eq!(names(file), ["bn1.running_var", "layer1.0.conv1.weight"], "{file}");
    }
    // A whole model that was saved instead of its state dict.
    let of_norm = ["bias", "num_batches_tracked", "running_mean", "running_var", "weight"];
    let expected = ["0.bias", "0.weight"].map(str::to_owned).into_iter();
    let expected = expected.chain(of_norm.map(|name| format!("1.{name}")));
    assert_eq!(names("pickled_module.pth"), Vec::from_iter(expected));
    // Prefixes of data-parallel and compiled models, and of models within models.
    for prefix in ["module.", "_orig_mod.", "sam.", "model.module."] {
        let folder = folder();
        let path = folder.path().join("prefixed.safetensors");
        let mut tensors = Tensors::new();
        tensors.insert(format!("{prefix}layer1.0.conv1.weight"), (vec![1], vec![0.0]));
        tensors.insert(format!("{prefix}fc.bias"), (vec![1], vec![0.0]));
        write_safetensors(&path, &tensors);
        let opened = StateDict::open(&path).expect("a state dict");
        assert_eq!(Vec::from_iter(opened.names()), ["fc.bias", "layer1.0.conv1.weight"]);
    }
}

#[test]
fn files_of_other_kinds_are_named() {
    for (file, parts) in [
        ("two_models.pth", ["several models", "ema., model."]),
        ("torchscript.pt", ["a TorchScript program", "model.state_dict()"]),
        ("complex.pth", ["ComplexFloatStorage", ".float()"]),
        ("float8.pth", ["float8_e4m3fn", ".float()"]),
        ("sparse.pth", ["sparse", ".float()"]),
        ("tensor.pth", ["no dictionary of tensors, but a torch.Tensor", "model.state_dict()"]),
        ("list.pth", ["no dictionary of tensors, but a list", "model.state_dict()"]),
    ] {
        let path = fixture("checkpoints").join(file);
        let error = match StateDict::open(&path) {
            Err(error) => error,
            Ok(opened) => panic!("{file}: {:?}", Vec::from_iter(opened.names())),
        };
        assert_message(&error, &path, &parts);
        assert!(!error.to_string().contains("damaged"), "{error}");
    }
}
