use super::official_name;
use burn::module::Module;
use burn::store::burn_pack::Tensor as PackTensor;
use burn::store::{BurnToPyTorchAdapter, ModuleSnapshot};
use sha2::{Digest, Sha256};

/// Returns a module's tensors in PyTorch's layout, named `prefix` followed by the official name.
/// The values are read lazily.
pub(crate) fn collect<M: Module>(module: &M, prefix: &str) -> Vec<PackTensor> {
    let mut tensors = module.collect(None, Some(Box::new(BurnToPyTorchAdapter)), true);
    for tensor in &mut tensors {
        tensor.name = format!("{prefix}{}", official_name(&tensor.name));
    }
    tensors
}

/// Computes the SHA-256 of tensors: name, zero byte and values of each, in the order of the names.
///
/// # Panics
///
/// If a tensor cannot be read back from its device.
pub(crate) fn sha256(mut tensors: Vec<PackTensor>) -> String {
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let mut digest = Sha256::new();
    for tensor in tensors {
        digest.update(tensor.name.as_bytes());
        digest.update([0]);
        let bytes = tensor
            .into_bytes()
            .unwrap_or_else(|error| panic!("cannot read a tensor from its device: {error}"));
        digest.update(&bytes[..]);
    }
    hex(digest)
}

fn hex(digest: Sha256) -> String {
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
