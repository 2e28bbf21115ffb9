use crate::WriteError;
use std::path::Path;

/// Creates or replaces a file atomically, and its folder if needed.
///
/// `write` receives the path of a file called `name` in a temporary folder next to `file`, and
/// writes it. That file is then renamed to `file`, so an interrupted write leaves the previous file
/// unchanged.
///
/// # Errors
///
/// The error of `write`, or that of the operating system.
pub fn replace_file(
    file: &Path,
    name: &str,
    write: impl FnOnce(&Path) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let parent = match file.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(parent)?;
    // A temporary folder rather than a temporary file, which only its owner could read.
    let folder = tempfile::Builder::new().prefix(".writing-").tempdir_in(parent)?;
    let temporary = folder.path().join(name);
    write(&temporary)?;
    std::fs::File::open(&temporary)?.sync_all()?;
    std::fs::rename(&temporary, file)
}

/// Calls [`replace_file`] and names the file in the error.
pub(crate) fn write_file(
    file: &Path,
    name: &str,
    write: impl FnOnce(&Path) -> std::io::Result<()>,
) -> Result<(), WriteError> {
    replace_file(file, name, write)
        .map_err(|source| WriteError::Io { file: file.to_owned(), source })
}
