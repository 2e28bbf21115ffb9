use crate::WriteError;
use std::path::Path;

/// Makes a file, or replaces it, as a whole: `write` writes one of this name in a fresh folder beside `file`, which is then put
/// in place. An interrupted write leaves what was there.
///
/// # Errors
///
/// What `write` returns, or what the operating system says.
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
    // In a folder of its own, since a temporary file could be read by its owner alone.
    let folder = tempfile::Builder::new()
        .prefix(".writing-")
        .tempdir_in(parent)?;
    let beside = folder.path().join(name);
    write(&beside)?;
    std::fs::File::open(&beside)?.sync_all()?;
    std::fs::rename(&beside, file)
}

/// As [`replace_file`], naming the file in the error.
pub(crate) fn write_beside(
    file: &Path,
    name: &str,
    write: impl FnOnce(&Path) -> std::io::Result<()>,
) -> Result<(), WriteError> {
    replace_file(file, name, write).map_err(|source| WriteError::Io {
        file: file.to_owned(),
        source,
    })
}
