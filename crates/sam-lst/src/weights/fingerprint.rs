use super::official_name;
use burn::module::Module;
use burn::store::burn_pack::Tensor as PackTensor;
use burn::store::{BurnToPyTorchAdapter, ModuleSnapshot};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io;
use std::path::Path;

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

/// Computes the SHA-256 of the concatenated contents of files. The error names the file that cannot
/// be read.
pub(crate) fn files_sha256<'a>(
    files: impl IntoIterator<Item = &'a Path>,
) -> Result<String, (&'a Path, io::Error)> {
    struct HashWriter(Sha256);
    impl io::Write for HashWriter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut digest = HashWriter(Sha256::new());
    for file in files {
        let copy = |mut opened| io::copy(&mut opened, &mut digest);
        File::open(file).and_then(copy).map_err(|error| (file, error))?;
    }
    Ok(hex(digest.0))
}

fn hex(digest: Sha256) -> String {
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
