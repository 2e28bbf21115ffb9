//! The folder of a run: configuration, logs, and the checkpoint that the run resumes from.

use super::{
    BEST, LAST, LEARNING_CURVE, PICTURES, STEPS_LOG, TrainingConfig, TrainingError, VALIDATION_LOG,
    summary,
};
use crate::model::{Ladder, SideEncoder};
use burn::module::Module;
use burn::optim::{ModuleOptimizer, OptimizerRecord};
use burn::store::ModuleRecord;
use sam_lst_datasets::replace_file;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// Progress of a run, as a checkpoint holds it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Position {
    /// Completed steps.
    pub steps: u64,
    /// Completed epochs, including their validation.
    pub epochs: u64,
    /// Best mean DSC of a validation so far.
    pub best_dsc: Option<f64>,
    /// Completed epochs at the best validation.
    pub best_epoch: u64,
    /// Validations since the best one.
    pub without_improvement: u64,
    /// Whether the run is complete.
    pub finished: bool,
    /// Duration in seconds without interruptions.
    pub seconds: f64,
}

/// The folder of a run, locked against other processes.
#[derive(Debug)]
pub(super) struct RunFolder {
    folder: PathBuf,
    /// Locked as long as it is open.
    _lock: File,
}

const CHECKPOINT: &str = "checkpoint-";
const LADDER: &str = "ladder.bpk";
const OPTIMIZER: &str = "optimizer.bpk";
const POSITION: &str = "position.json";
/// The summary of a run in version 0.1.0.
const OLD_SUMMARY: &str = "receipt.json";
/// Files and folders that a run creates after `config.toml`, besides those that identify it.
const RESULTS: [&str; 9] = [
    BEST,
    LAST,
    "foundation.safetensors",
    STEPS_LOG,
    VALIDATION_LOG,
    LEARNING_CURVE,
    PICTURES,
    summary::FILE,
    OLD_SUMMARY,
];

impl RunFolder {
    /// Creates or opens the folder and locks it. The configuration and `others`, names and contents
    /// of files, identify the run; files that exist already must have the same content.
    pub fn open(
        folder: &Path,
        config: &TrainingConfig,
        others: &[(&str, String)],
    ) -> Result<Self, TrainingError> {
        let write = |path: &Path| TrainingError::write(path);
        std::fs::create_dir_all(folder).map_err(write(folder))?;
        let lock_file = folder.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_file)
            .map_err(write(&lock_file))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(TrainingError::InUse { folder: folder.to_owned() });
            }
            Err(TryLockError::Error(source)) => return Err(write(&lock_file)(source)),
        }
        let run = Self { folder: folder.to_owned(), _lock: lock };
        run.check_results()?;
        run.rename_old_summary().map_err(write(folder))?;
        run.write_or_compare("config.toml", &config.to_toml(), |found| {
            config.normalized_for_resume(found)
        })?;
        for (name, contents) in others {
            run.write_or_compare(name, contents, str::to_owned)?;
        }
        Ok(run)
    }

    /// Checks that files with names of a run's results belong to a run, whose settings are known.
    fn check_results(&self) -> Result<(), TrainingError> {
        if self.file("config.toml").exists() {
            return Ok(());
        }
        let error = TrainingError::read(&self.folder);
        let entries =
            std::fs::read_dir(&self.folder).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        for entry in entries.map_err(error)? {
            let name = entry.file_name().to_string_lossy().into_owned();
            if RESULTS.contains(&name.as_str()) || name.starts_with(CHECKPOINT) {
                return Err(TrainingError::NoRun { folder: self.folder.clone(), found: name });
            }
        }
        Ok(())
    }

    /// Renames the summary of a run of version 0.1.0.
    fn rename_old_summary(&self) -> std::io::Result<()> {
        let (old, new) = (self.file(OLD_SUMMARY), self.file(summary::FILE));
        if old.is_file() && !new.exists() { std::fs::rename(old, new) } else { Ok(()) }
    }

    /// Writes a file that identifies the run, or compares it with the existing one, normalized by
    /// `normalize`.
    fn write_or_compare(
        &self,
        name: &str,
        requested: &str,
        normalize: impl FnOnce(&str) -> String,
    ) -> Result<(), TrainingError> {
        let file = self.file(name);
        match std::fs::read_to_string(&file) {
            Ok(found) if found == requested => return Ok(()),
            Ok(found) => {
                let found = normalize(&found);
                if found != requested {
                    let mut lines = found.lines().zip(requested.lines());
                    let (found, requested) = lines
                        .find(|(found, requested)| found != requested)
                        .unwrap_or(("another number of lines", "all of its lines"));
                    return Err(TrainingError::OtherSettings {
                        file,
                        found: found.to_owned(),
                        requested: requested.to_owned(),
                    });
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(TrainingError::read(&file)(error)),
        }
        self.write_file(name, requested.as_bytes())
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Writes a file under a temporary name and renames it.
    pub fn write_file(&self, name: &str, contents: &[u8]) -> Result<(), TrainingError> {
        let file = self.file(name);
        replace_file(&file, name, |temporary| std::fs::write(temporary, contents))
            .map_err(TrainingError::write(&file))
    }

    /// Writes a checkpoint and removes the previous one.
    pub fn save_checkpoint<S: SideEncoder>(
        &self,
        ladder: &Ladder<S>,
        optimizer: &ModuleOptimizer,
        position: &Position,
    ) -> Result<(), TrainingError> {
        // The checkpoint of a step and the one after its epoch's validation have different names, so
        // no checkpoint is ever overwritten.
        let name = format!("{CHECKPOINT}{:010}-{:06}", position.steps, position.epochs);
        let place = self.file(&name);
        if place.is_dir() {
            return Ok(()); // an earlier process stopped here
        }
        let temporary = tempfile::Builder::new()
            .prefix(".checkpoint-")
            .tempdir_in(&self.folder)
            .map_err(TrainingError::write(&place))?;
        let file = |name: &str| temporary.path().join(name);
        let record = |error: burn::store::RecordError| TrainingError::WriteCheckpoint {
            path: place.clone(),
            reason: error.to_string(),
        };
        // `valid` gathers the running statistics, which belong to the thread that trained.
        let module = ladder.valid().into_record();
        module.save(file(LADDER)).map_err(record)?;
        optimizer.save(file(OPTIMIZER)).map_err(record)?;
        let text = serde_json::to_vec_pretty(position).expect("plain data");
        let write = || {
            std::fs::write(file(POSITION), text)?;
            for name in [LADDER, OPTIMIZER, POSITION] {
                File::open(file(name))?.sync_all()?;
            }
            let older = self.checkpoints()?;
            std::fs::rename(temporary.path(), &place)?;
            older.into_iter().try_for_each(std::fs::remove_dir_all)
        };
        write().map_err(TrainingError::write(&place))
    }

    /// Checkpoint folders, ordered by step.
    fn checkpoints(&self) -> std::io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(CHECKPOINT) {
                found.push(entry.path());
            }
        }
        found.sort();
        Ok(found)
    }

    /// Loads ladder, optimizer and position of the last checkpoint, or returns them unchanged if
    /// there is none. Removes temporary files of an interrupted process.
    pub fn load_checkpoint<S: SideEncoder>(
        &self,
        ladder: Ladder<S>,
        optimizer: ModuleOptimizer,
    ) -> Result<(Ladder<S>, ModuleOptimizer, Position), TrainingError> {
        let read = |path: &Path| TrainingError::read(path);
        let mut found = self.checkpoints().map_err(read(&self.folder))?;
        for entry in std::fs::read_dir(&self.folder).map_err(read(&self.folder))? {
            let entry = entry.map_err(read(&self.folder))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(".checkpoint-") || name.starts_with(".writing-") {
                std::fs::remove_dir_all(entry.path())
                    .map_err(TrainingError::write(&entry.path()))?;
            }
        }
        let Some(last) = found.pop() else {
            return Ok((ladder, optimizer, Position::default()));
        };
        let damaged = |reason: String| TrainingError::ReadCheckpoint { path: last.clone(), reason };
        let file = last.join(POSITION);
        let text = std::fs::read_to_string(&file).map_err(read(&file))?;
        let position = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        let record = |error: burn::store::RecordError| damaged(error.to_string());
        let module = ModuleRecord::load(last.join(LADDER)).map_err(record)?;
        let ladder = ladder.try_load_record(module).map_err(record)?;
        let state = OptimizerRecord::load(last.join(OPTIMIZER)).map_err(record)?;
        Ok((ladder, optimizer.load_record(state), position))
    }

    /// Opens a log for appending after its first `rows` rows; later rows are removed.
    pub fn log(&self, name: &str, header: &[&str], rows: u64) -> Result<Log, TrainingError> {
        let file = self.file(name);
        let mut text = csv_line(header);
        match File::open(&file) {
            Ok(found) => {
                let earlier_rows = BufReader::new(found).lines().skip(1).take(rows as usize);
                for line in earlier_rows {
                    let line = line.map_err(TrainingError::read(&file))?;
                    text.push_str(&line);
                    text.push('\n');
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(TrainingError::read(&file)(error)),
        }
        self.write_file(name, text.as_bytes())?;
        let opened = OpenOptions::new().append(true).open(&file);
        let opened = opened.map_err(TrainingError::write(&file))?;
        Ok(Log { file, opened })
    }
}

/// A CSV file whose rows are written immediately.
#[derive(Debug)]
pub(super) struct Log {
    file: PathBuf,
    opened: File,
}

impl Log {
    pub fn row(&mut self, cells: &[String]) -> Result<(), TrainingError> {
        self.opened.write_all(csv_line(cells).as_bytes()).map_err(TrainingError::write(&self.file))
    }
}

fn csv_line(cells: &[impl AsRef<str>]) -> String {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let cells = cells.iter().map(AsRef::as_ref).map(str::as_bytes);
    writer.write_record(cells).expect("memory");
    String::from_utf8(writer.into_inner().expect("memory")).expect("text")
}
