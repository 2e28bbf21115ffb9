use crate::WriteError;
use std::path::Path;

/// Lets `write` make a file in a fresh folder beside `file`, then puts it in place: an interrupted write leaves what
/// was there.
pub(crate) fn write_beside(
    file: &Path,
    name: &str,
    write: impl FnOnce(&Path) -> std::io::Result<()>,
) -> Result<(), WriteError> {
    let parent = match file.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let write_and_move = || {
        std::fs::create_dir_all(parent)?;
        let folder = tempfile::Builder::new()
            .prefix(".writing-")
            .tempdir_in(parent)?;
        let beside = folder.path().join(name);
        write(&beside)?;
        std::fs::File::open(&beside)?.sync_all()?;
        std::fs::rename(&beside, file)
    };
    write_and_move().map_err(|source| WriteError::Io {
        file: file.to_owned(),
        source,
    })
}
