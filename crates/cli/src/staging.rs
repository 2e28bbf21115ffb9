//! Output files under construction.

use crate::output;
use anyhow::{Context, Result};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A temporary folder within an output folder. Files are written into it and moved to the output
/// folder when all of them are complete, so an error or an interruption leaves no partial output.
#[derive(Debug)]
pub struct Staging {
    target: PathBuf,
    folders: Folders,
    /// Locked as long as it is open, which tells other processes that the folder is in use.
    _lock: File,
}

/// How the names of temporary folders begin.
const PREFIX: &str = ".sam-lst-";
/// The locked file in a temporary folder.
const LOCK: &str = ".lock";

/// What to remove if the files are not published.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Folders {
    temporary: PathBuf,
    /// Folders that did not exist before, innermost first.
    created: Vec<PathBuf>,
}

/// The folders of all output under construction, for an abrupt end of the program.
static UNDER_CONSTRUCTION: Mutex<Vec<Folders>> = Mutex::new(Vec::new());

fn under_construction() -> MutexGuard<'static, Vec<Folders>> {
    UNDER_CONSTRUCTION.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes all output under construction, before the program ends: no other thread can begin or publish
/// output any more.
pub fn remove_all() {
    let mut folders = under_construction();
    folders.drain(..).for_each(|folders| folders.remove());
    std::mem::forget(folders);
}

impl Staging {
    /// Creates the folder `target` if needed, and the temporary folder in it. This proves that
    /// files can be written there.
    pub fn new(target: &Path) -> Result<Self> {
        let failed = || format!("cannot write to folder {}", target.display());
        let created: Vec<PathBuf> = target
            .ancestors()
            .take_while(|folder| *folder != Path::new("") && !folder.exists())
            .map(Path::to_owned)
            .collect();
        // Before the folder exists, so that a signal finds it among the others.
        let mut all = under_construction();
        std::fs::create_dir_all(target).with_context(failed)?;
        remove_abandoned(target);
        let temporary =
            tempfile::Builder::new().prefix(PREFIX).tempdir_in(target).with_context(failed)?;
        let folders = Folders { temporary: temporary.keep(), created };
        let lock = lock(&folders.temporary).inspect_err(|_| folders.remove());
        let lock = lock.with_context(failed)?;
        all.push(folders.clone());
        Ok(Self { target: target.to_owned(), folders, _lock: lock })
    }

    /// As [`new`](Self::new), in the folder of a file.
    pub fn for_file(file: &Path) -> Result<Self> {
        Self::new(output::folder_of(file))
    }

    /// The temporary folder.
    pub fn folder(&self) -> &Path {
        &self.folders.temporary
    }

    /// Where to write the file that becomes `file`.
    pub fn file(&self, file: &Path) -> PathBuf {
        self.folder().join(file.file_name().unwrap_or_default())
    }

    /// Moves all files to the output folder, where they replace files of the same names.
    pub fn publish(self) -> Result<()> {
        let _all = under_construction();
        move_contents(self.folder(), &self.target)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        under_construction().retain(|folders| *folders != self.folders);
        self.folders.remove();
    }
}

impl Folders {
    fn remove(&self) {
        // An error would hide the one that the program ends with. Another thread may still be writing into
        // the folder, until it is gone.
        const ATTEMPTS: usize = 10;
        let mut attempts = 0..ATTEMPTS;
        while attempts.next().is_some() && std::fs::remove_dir_all(&self.temporary).is_err() {}
        for folder in &self.created {
            let _ = std::fs::remove_dir(folder); // only if it is empty
        }
    }
}

/// Creates the locked file in a temporary folder. It gets its name when it is locked, so that no other
/// process finds it unlocked.
fn lock(folder: &Path) -> std::io::Result<File> {
    let [unnamed, named] = ["unnamed", LOCK].map(|name| folder.join(name));
    let lock = File::create(&unnamed)?;
    // A file system without locks only keeps what a killed process leaves.
    let _ = lock.lock();
    std::fs::rename(unnamed, named)?;
    Ok(lock)
}

/// Removes temporary folders of processes that were killed.
fn remove_abandoned(target: &Path) {
    for entry in std::fs::read_dir(target).into_iter().flatten().flatten() {
        let is_temporary = entry.file_name().to_string_lossy().starts_with(PREFIX);
        let lock = is_temporary.then(|| File::open(entry.path().join(LOCK)));
        // Without a lock, the other process has created the folder just now.
        if let Some(Ok(lock)) = lock
            && lock.try_lock().is_ok()
        {
            // What cannot be removed does no harm.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn move_contents(from: &Path, to: &Path) -> Result<()> {
    let entries = std::fs::read_dir(from).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    for entry in entries.with_context(|| format!("cannot read {}", from.display()))? {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let failed = || format!("cannot write {}", target.display());
        if entry.file_name() == LOCK {
            continue;
        }
        if source.is_dir() {
            std::fs::create_dir_all(&target).with_context(failed)?;
            move_contents(&source, &target)?;
        } else {
            std::fs::rename(&source, &target).with_context(failed)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_appear_when_published_and_nothing_remains_otherwise() {
        let folder = tempfile::tempdir().expect("a folder");
        let target = folder.path().join("new/deep");
        let staging = Staging::new(&target).expect("writable");
        std::fs::write(staging.folder().join("a.txt"), "a").expect("writes");
        drop(staging);
        assert!(!folder.path().join("new").exists());

        let staging = Staging::for_file(&target.join("a.txt")).expect("writable");
        std::fs::write(staging.file(&target.join("a.txt")), "a").expect("writes");
        std::fs::create_dir(staging.folder().join("sub")).expect("a folder");
        std::fs::write(staging.folder().join("sub/b.txt"), "b").expect("writes");
        assert!(!target.join("a.txt").exists());
        staging.publish().expect("published");
        assert_eq!(std::fs::read_dir(&target).expect("exists").count(), 2);
        assert!(target.join("a.txt").is_file() && target.join("sub/b.txt").is_file());

        // A killed process leaves its folder; another process uses its own.
        let in_use = Staging::new(&target).expect("writable");
        let abandoned = target.join(".sam-lst-abandoned");
        std::fs::create_dir(&abandoned).expect("a folder");
        std::fs::write(abandoned.join(LOCK), "").expect("writes");
        let other = Staging::new(&target).expect("writable");
        assert!(!abandoned.exists() && in_use.folder().exists() && other.folder().exists());
        drop((in_use, other));

        let below_a_file = Staging::new(&target.join("a.txt/c")).expect_err("not a folder");
        assert!(format!("{below_a_file}").starts_with("cannot write to folder"), "{below_a_file}");
    }
}
