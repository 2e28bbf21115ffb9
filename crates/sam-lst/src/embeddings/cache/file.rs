//! The file of one embedding.

use super::EmbeddingKind;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64;

pub(super) const EXTENSION: &str = "safetensors";
const TENSOR: &str = "embedding";
const CHECKSUM: &str = "xxh3";
const TEMPORARY_PREFIX: &str = ".writing-";
/// Age from which a temporary file is taken for a leftover: writing one takes far less than a second.
const ABANDONED_AGE: Duration = Duration::from_secs(3600);

pub(super) fn is_embedding(file: &Path) -> bool {
    file.extension() == Some(OsStr::new(EXTENSION))
}

pub(super) fn is_abandoned(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let modified = || file.metadata()?.modified();
    name.starts_with(TEMPORARY_PREFIX)
        && modified().is_ok_and(|time| time.elapsed().is_ok_and(|age| age > ABANDONED_AGE))
}

/// The file's content for an embedding's values.
pub(super) fn encode(values: &[f32], kind: &EmbeddingKind) -> Vec<u8> {
    let bytes = kind.precision.encode(values);
    let view = TensorView::new(kind.precision.dtype(), kind.shape.to_vec(), &bytes)
        .expect("as many bytes as the shape has");
    let metadata = HashMap::from([(CHECKSUM.to_owned(), checksum(&bytes))]);
    safetensors::serialize([(TENSOR, view)], Some(metadata)).expect("one valid tensor")
}

/// The values of an embedding; `None` if the content is not that of an intact embedding of `kind`.
pub(super) fn decode(content: &[u8], kind: &EmbeddingKind) -> Option<Vec<f32>> {
    let (_, header) = SafeTensors::read_metadata(content).ok()?;
    let expected = header.metadata().as_ref()?.get(CHECKSUM)?;
    let file = SafeTensors::deserialize(content).ok()?;
    let tensor = file.tensor(TENSOR).ok()?;
    let intact = tensor.shape() == kind.shape
        && tensor.dtype() == kind.precision.dtype()
        && checksum(tensor.data()) == *expected;
    intact.then(|| kind.precision.decode(tensor.data()))
}

fn checksum(bytes: &[u8]) -> String {
    format!("{:016x}", xxh3_64(bytes))
}

/// Writes a file under a temporary name in `folder`, then renames it.
pub(super) fn write(folder: &Path, file: &Path, content: &[u8]) -> std::io::Result<()> {
    let (temporary, mut opened) = create_temporary(folder)?;
    let written = opened.write_all(content).and_then(|()| {
        drop(opened);
        match std::fs::rename(&temporary, file) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // The first embedding of its subfolder.
                file.parent().map_or(Ok(()), std::fs::create_dir_all)?;
                std::fs::rename(&temporary, file)
            }
            renamed => renamed,
        }
    });
    if written.is_err() {
        // The write's error is reported; a leftover is removed by a later run.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

/// Creates a file that no other thread or process has.
fn create_temporary(folder: &Path) -> std::io::Result<(PathBuf, File)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // Processes on several machines may have the same number.
        let name = format!("{TEMPORARY_PREFIX}{}-{number}", std::process::id());
        let temporary = folder.join(name);
        match File::create_new(&temporary) {
            Ok(opened) => return Ok((temporary, opened)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}
