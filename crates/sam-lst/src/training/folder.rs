//! A run's folder: its configuration, its logs, and the checkpoint that it goes on from.

use super::{TrainingConfig, TrainingError};
use crate::{Ladder, SideEncoder};
use burn::module::Module;
use burn::optim::{ModuleOptimizer, OptimizerRecord};
use burn::store::ModuleRecord;
use datasets::replace_file;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// How far a run is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Position {
    /// Steps done.
    pub steps: u64,
    /// Epochs done, validation included.
    pub epochs: u64,
    /// The best mean DSC of a validation so far.
    pub best_dsc: Option<f64>,
    /// Epochs done when it was found.
    pub best_epoch: u64,
    /// Validations since then.
    pub without_improvement: u64,
    /// Whether nothing is left to do.
    pub finished: bool,
    /// Time that it took, interruptions left out.
    pub seconds: f64,
}

/// A run's folder, which no other process has open.
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

impl RunFolder {
    /// Takes the folder for this process. The configuration, and `others`, the names and contents of files, say what the run
    /// is; those that are there must say the same.
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
                return Err(TrainingError::InUse {
                    folder: folder.to_owned(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(write(&lock_file)(source)),
        }
        let run = Self {
            folder: folder.to_owned(),
            _lock: lock,
        };
        run.settle("config.toml", &config.to_toml(), |found| {
            config.adapted(found)
        })?;
        for (name, contents) in others {
            run.settle(name, contents, str::to_owned)?;
        }
        Ok(run)
    }

    /// Writes a file that says what the run is, or compares it with what is there, of which `comparable` makes what counts.
    fn settle(
        &self,
        name: &str,
        asked: &str,
        comparable: impl FnOnce(&str) -> String,
    ) -> Result<(), TrainingError> {
        let file = self.file(name);
        match std::fs::read_to_string(&file) {
            Ok(found) if found == asked => return Ok(()),
            Ok(found) => {
                let found = comparable(&found);
                if found != asked {
                    let mut lines = found.lines().zip(asked.lines());
                    let (found, asked) = lines
                        .find(|(found, asked)| found != asked)
                        .unwrap_or(("fewer or more lines", "this"));
                    return Err(TrainingError::OtherSettings {
                        file,
                        found: found.to_owned(),
                        asked: asked.to_owned(),
                    });
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(TrainingError::read(&file)(error)),
        }
        self.write_beside(name, asked.as_bytes())
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Writes a file that is either whole or not there.
    pub fn write_beside(&self, name: &str, contents: &[u8]) -> Result<(), TrainingError> {
        let file = self.file(name);
        replace_file(&file, name, |beside| std::fs::write(beside, contents))
            .map_err(TrainingError::write(&file))
    }

    /// Puts a checkpoint in place of the one before.
    pub fn save<S: SideEncoder>(
        &self,
        ladder: &Ladder<S>,
        optimizer: &ModuleOptimizer,
        position: &Position,
    ) -> Result<(), TrainingError> {
        // A step's checkpoint and the one after its epoch's validation have different names, so none is ever replaced.
        let name = format!("{CHECKPOINT}{:010}-{:06}", position.steps, position.epochs);
        let place = self.file(&name);
        if place.is_dir() {
            return Ok(()); // the run was stopped here before
        }
        let beside = tempfile::Builder::new()
            .prefix(".checkpoint-")
            .tempdir_in(&self.folder)
            .map_err(TrainingError::write(&place))?;
        let file = |name: &str| beside.path().join(name);
        let record = |error: burn::store::RecordError| TrainingError::Checkpoint {
            path: place.clone(),
            reason: error.to_string(),
        };
        // `valid` settles the running statistics, which belong to the thread that trained.
        let module = ladder.valid().into_record();
        module.save(file(LADDER)).map_err(record)?;
        optimizer.save(file(OPTIMIZER)).map_err(record)?;
        let text = serde_json::to_vec_pretty(position).expect("plain data");
        let put = || {
            std::fs::write(file(POSITION), text)?;
            for name in [LADDER, OPTIMIZER, POSITION] {
                File::open(file(name))?.sync_all()?;
            }
            let older = self.checkpoints()?;
            std::fs::rename(beside.path(), &place)?;
            older.into_iter().try_for_each(std::fs::remove_dir_all)
        };
        put().map_err(TrainingError::write(&place))
    }

    /// Checkpoints by step.
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

    /// Ladder, optimizer and position of the last checkpoint; as they are at the start of a run. Removes what an
    /// interruption left.
    pub fn load<S: SideEncoder>(
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
        let damaged = |reason: String| TrainingError::Checkpoint {
            path: last.clone(),
            reason,
        };
        let file = last.join(POSITION);
        let text = std::fs::read_to_string(&file).map_err(read(&file))?;
        let position = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        let record = |error: burn::store::RecordError| damaged(error.to_string());
        let module = ModuleRecord::load(last.join(LADDER)).map_err(record)?;
        let ladder = ladder.try_load_record(module).map_err(record)?;
        let state = OptimizerRecord::load(last.join(OPTIMIZER)).map_err(record)?;
        Ok((ladder, optimizer.load_record(state), position))
    }

    /// A log of which the first `rows` stand, and that goes on after them.
    pub fn log(&self, name: &str, header: &[&str], rows: u64) -> Result<Log, TrainingError> {
        let file = self.file(name);
        let mut text = csv_line(header);
        match File::open(&file) {
            Ok(found) => {
                let kept = BufReader::new(found).lines().skip(1).take(rows as usize);
                for line in kept {
                    let line = line.map_err(TrainingError::read(&file))?;
                    text.push_str(&line);
                    text.push('\n');
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(TrainingError::read(&file)(error)),
        }
        self.write_beside(name, text.as_bytes())?;
        let opened = OpenOptions::new().append(true).open(&file);
        let opened = opened.map_err(TrainingError::write(&file))?;
        Ok(Log { file, opened })
    }
}

/// Rows of comma-separated values, each on disk when it is written.
#[derive(Debug)]
pub(super) struct Log {
    file: PathBuf,
    opened: File,
}

impl Log {
    pub fn row(&mut self, cells: &[String]) -> Result<(), TrainingError> {
        self.opened
            .write_all(csv_line(cells).as_bytes())
            .map_err(TrainingError::write(&self.file))
    }
}

fn csv_line(cells: &[impl AsRef<str>]) -> String {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let cells = cells.iter().map(AsRef::as_ref).map(str::as_bytes);
    writer.write_record(cells).expect("memory");
    String::from_utf8(writer.into_inner().expect("memory")).expect("text")
}
