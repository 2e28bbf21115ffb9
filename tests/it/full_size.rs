//! Parity at the published sizes, with files that `tests/full_size.py` creates. The script also
//! runs these tests.

#![expect(clippy::print_stderr, reason = "the measurements are the result")]

use crate::support::{norm_error, relative_error};
use burn::store::{ModuleStore, SafetensorsStore, bridge};
use burn::tensor::{Device, Tensor, TensorData};
use sam_lst::model::PixelScale;
use sam_lst::sam_encoder::{SamEncoder, SamEncoderConfig};
use sam_lst::{
    Foundation, FoundationPrecision, SamLst, SamLstConfig, SideEncoder, peak_memory_bytes,
};
use std::path::PathBuf;

fn folder() -> PathBuf {
    std::env::var_os("SAM_LST_FULL_SIZE")
        .expect("tests/full_size.py sets SAM_LST_FULL_SIZE to the folder of its files")
        .into()
}

/// A tensor that PyTorch computed.
fn expected(name: &str) -> TensorData {
    let mut store = SafetensorsStore::from_file(folder().join("cases.safetensors"));
    let tensor = store.get_tensor(name).expect("read the file").expect("a tensor");
    bridge::to_data(tensor).expect("read the tensor")
}

#[test]
#[ignore = "needs files of 400 MB; tests/full_size.py creates them and runs this test"]
fn vit_b_and_resnet18_equal_pytorchs() {
    let device = Device::flex();
    let model = SamLst::from_official(
        &SamLstConfig::vit_b(9),
        folder().join("sam_vit_b_random.pth"),
        Some(&folder().join("resnet18_random.pth")),
        &device,
    )
    .expect("load the checkpoint");
    for size in [512, 1024] {
        let image = Tensor::<4>::from_data(expected(&format!("image_{size}")), &device);
        let embedding = model.foundation.embed(image);
        let error = relative_error(embedding.into_data(), expected(&format!("embedding_{size}")));
        eprintln!("ViT-B at {size}: relative error {error:.1e}");
        assert!(error <= 1e-4, "ViT-B at {size}: {error:.2e}");
    }
    let image = Tensor::<4>::from_data(expected("image_512"), &device);
    let side = model.network.side.as_ref().expect("a side network").forward(image);
    let error = relative_error(side.into_data(), expected("side_512"));
    eprintln!("ResNet18 at 512: relative error {error:.1e}");
    assert!(error <= 1e-5, "ResNet18 at 512: {error:.2e}");
}

#[test]
#[ignore = "needs files of 400 MB; tests/full_size.py creates them and runs this test"]
fn vit_b_in_half_precision_is_close_to_pytorchs() {
    let path = folder().join("sam_vit_b_random.pth");
    let image = Tensor::<4>::from_data(expected("image_512"), &Device::flex());
    for (precision, limit) in [(FoundationPrecision::F16, 1e-2), (FoundationPrecision::BF16, 5e-2)]
    {
        let foundation = Foundation::load(
            &SamEncoderConfig::vit_b().into(),
            PixelScale::Unit,
            &path,
            &Device::flex(),
        );
        let mut foundation = foundation.expect("load the checkpoint");
        foundation.set_precision(precision).expect("the CPU supports it");
        let embedding = foundation.embed(image.clone()).into_data();
        let error = norm_error(&embedding, &expected("embedding_512"));
        eprintln!("ViT-B at 512 in {precision:?}: relative error {error:.1e} in the norm");
        assert!(error <= limit, "ViT-B in {precision:?}: {error:.2e}");
    }
}

#[test]
#[ignore = "needs files of 400 MB; tests/full_size.py creates them and runs this test"]
fn loading_needs_little_more_memory_than_the_file_size() {
    let peak_bytes = || peak_memory_bytes().expect("a Linux system");
    let path = folder().join("sam_vit_b_random.pth");
    let file_bytes = std::fs::metadata(&path).expect("the checkpoint").len();
    let before = peak_bytes();
    let foundation = Foundation::load(
        &SamEncoderConfig::vit_b().into(),
        PixelScale::Unit,
        &path,
        &Device::flex(),
    )
    .expect("load the checkpoint");
    let ratio = (peak_bytes() - before) as f64 / file_bytes as f64;
    eprintln!("loading {} MB: peak memory is {ratio:.2} times that", file_bytes / 1_000_000);
    assert!(ratio <= 1.5, "{ratio:.2}");
    assert_eq!(foundation.encoder::<SamEncoder>().expect("a ViT").blocks.len(), 12);
}
