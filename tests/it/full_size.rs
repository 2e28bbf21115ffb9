//! The published sizes, against files that `tests/full_size.py` makes; it also runs these tests.

#![expect(clippy::print_stderr, reason = "the figures are what they are run for")]

use crate::support::{norm_error, relative_error};
use burn::store::{ModuleStore, SafetensorsStore, bridge};
use burn::tensor::{Device, Tensor, TensorData};
use sam_lst::{
    Foundation, FoundationPrecision, PixelScale, SamEncoderConfig, SamLst, SamLstConfig,
    peak_memory_bytes,
};
use std::path::PathBuf;

fn folder() -> PathBuf {
    std::env::var_os("SAM_LST_FULL_SIZE")
        .expect("python tests/full_size.py sets SAM_LST_FULL_SIZE to the folder of its files")
        .into()
}

fn theirs(name: &str) -> TensorData {
    let mut store = SafetensorsStore::from_file(folder().join("cases.safetensors"));
    let tensor = store.get_tensor(name).expect("a file").expect("a tensor");
    bridge::to_data(tensor).expect("reads")
}

#[test]
#[ignore = "needs files of 400 MB: python tests/full_size.py makes them and runs this"]
fn vit_b_and_the_whole_model() {
    let device = Device::flex();
    let model = SamLst::from_official(
        &SamLstConfig::vit_b(9),
        folder().join("sam_vit_b_random.pth"),
        Some(&folder().join("resnet18_random.pth")),
        &device,
    )
    .expect("loads");
    for size in [512, 1024] {
        let image = Tensor::<4>::from_data(theirs(&format!("image_{size}")), &device);
        let embedding = model.foundation.embed(image);
        let error = relative_error(embedding.into_data(), theirs(&format!("embedding_{size}")));
        eprintln!("ViT-B at {size}: relative error {error:.1e}");
        assert!(error <= 1e-4, "ViT-B at {size}: {error:.2e}");
    }
    let image = Tensor::<4>::from_data(theirs("image_512"), &device);
    let side = model
        .ladder
        .side
        .as_ref()
        .expect("a side network")
        .forward(image);
    let error = relative_error(side.into_data(), theirs("side_512"));
    eprintln!("ResNet18 at 512: relative error {error:.1e}");
    assert!(error <= 1e-5, "ResNet18 at 512: {error:.2e}");
}

#[test]
#[ignore = "needs files of 400 MB: python tests/full_size.py makes them and runs this"]
fn vit_b_in_half_precision() {
    let path = folder().join("sam_vit_b_random.pth");
    let image = Tensor::<4>::from_data(theirs("image_512"), &Device::flex());
    for (precision, at_most) in [
        (FoundationPrecision::F16, 1e-2),
        (FoundationPrecision::BF16, 5e-2),
    ] {
        let foundation = Foundation::load(
            &SamEncoderConfig::vit_b(),
            PixelScale::Unit,
            &path,
            &Device::flex(),
        );
        let mut foundation = foundation.expect("loads");
        foundation.set_precision(precision).expect("the CPU has it");
        let embedding = foundation.embed(image.clone()).into_data();
        let error = norm_error(&embedding, &theirs("embedding_512"));
        eprintln!("ViT-B at 512 in {precision:?}: {error:.1e} of the norm");
        assert!(error <= at_most, "ViT-B in {precision:?}: {error:.2e}");
    }
}

#[test]
#[ignore = "needs files of 400 MB: python tests/full_size.py makes them and runs this"]
fn loading_takes_little_more_memory_than_the_file() {
    let peak_bytes = || peak_memory_bytes().expect("Linux");
    let path = folder().join("sam_vit_b_random.pth");
    let file_bytes = std::fs::metadata(&path).expect("a file").len();
    let before = peak_bytes();
    let foundation = Foundation::load(
        &SamEncoderConfig::vit_b(),
        PixelScale::Unit,
        &path,
        &Device::flex(),
    )
    .expect("loads");
    let ratio = (peak_bytes() - before) as f64 / file_bytes as f64;
    eprintln!(
        "loading {} MB: peak memory {ratio:.2} of that",
        file_bytes / 1_000_000
    );
    assert!(ratio <= 1.5, "{ratio:.2}");
    assert_eq!(foundation.encoder().blocks.len(), 12);
}
