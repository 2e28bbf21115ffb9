use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

/// The exclusive right to compute some embeddings, held until dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    file: PathBuf,
    /// Locked as long as it is open.
    _lock: File,
}

impl Claim {
    /// Locks the file `name` in `folder`; `None` if it is locked already.
    pub(super) fn acquire(folder: &Path, name: &str) -> std::io::Result<Option<Self>> {
        std::fs::create_dir_all(folder)?;
        let file = folder.join(name);
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&file)?;
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => Ok(None),
            // An error other than "locked" means that the file system has no locks.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(Some(Self { file, _lock: lock })),
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // If it cannot be removed, an empty file remains that any process may lock.
        let _ = std::fs::remove_file(&self.file);
    }
}
