use sha2::{Digest, Sha256};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// Computes the SHA-256, in hexadecimal, of the concatenated contents of files.
///
/// # Errors
///
/// The file that cannot be read, and the operating system's error.
pub fn files_sha256(
    files: impl IntoIterator<Item = impl AsRef<Path>>,
) -> Result<String, (PathBuf, io::Error)> {
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
        let file = file.as_ref();
        let copy = |mut opened| io::copy(&mut opened, &mut digest);
        File::open(file).and_then(copy).map_err(|error| (file.to_owned(), error))?;
    }
    Ok(digest.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
