//! The folder of a run: configuration, logs, and the checkpoint that the run resumes from.

use super::report::PAGE;
use super::{
    BEST, LEARNING_CURVE, PICTURES, STEPS_LOG, TrainingConfig, TrainingError, VALIDATION_LOG,
    summary,
};
use crate::model::{NetworkConfig, SegmentationNetwork};
use burn::optim::{ModuleOptimizer, OptimizerRecord};
use burn::store::ModuleRecord;
use sam_lst_datasets::{Case, DatasetError, SliceStore, Split, replace_file};
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
    /// Seconds of it in steps, with waiting for their batches. Absent in version 0.1.0, as the
    /// next.
    #[serde(default)]
    pub step_seconds: f64,
    /// Seconds of it in which embeddings were computed before the first step.
    #[serde(default)]
    pub precomputing_seconds: f64,
}

/// The folder of a run, locked against other processes.
#[derive(Debug)]
pub(super) struct RunFolder {
    folder: PathBuf,
    /// Locked as long as it is open.
    _lock: File,
}

const CHECKPOINT: &str = "checkpoint-";
/// Named as in version 0.1.0, so that its runs are resumed.
const NETWORK: &str = "ladder.bpk";
const OPTIMIZER: &str = "optimizer.bpk";
const POSITION: &str = "position.json";
/// The summary of a run in version 0.1.0.
const OLD_SUMMARY: &str = "receipt.json";
/// Files and folders that a run creates after `config.toml`, besides those that identify it.
const RESULTS: [&str; 9] = [
    PAGE,
    BEST,
    "foundation.safetensors",
    STEPS_LOG,
    VALIDATION_LOG,
    LEARNING_CURVE,
    PICTURES,
    summary::FILE,
    OLD_SUMMARY,
];

/// What a run trains on what.
#[derive(Debug)]
pub(super) struct Identity<'a, C> {
    pub config: &'a TrainingConfig<C>,
    /// The dataset's description, TOML.
    pub dataset: String,
    /// The training and validation cases.
    pub cases: Vec<IdentifiedCase<'a>>,
    /// `None` without a foundation.
    pub foundation_sha256: Option<String>,
    /// Of the file from which a part of the network was initialised, if any.
    pub pretrained_sha256: Option<String>,
}

/// A training or validation case of a run.
#[derive(Debug, Clone)]
pub(super) struct IdentifiedCase<'a> {
    pub case: &'a Case,
    /// The SHA-256 of its files; `None` if they have not been read yet.
    pub files_sha256: Option<String>,
}

impl IdentifiedCase<'_> {
    /// Split and name, as in the run's list of cases.
    fn name_in_list(&self) -> String {
        format!("{}: {}", self.case.split, self.case.name)
    }
}

impl<C> Identity<'_, C> {
    /// Adds the hashes of the cases' files, of training cases as the store read them.
    pub fn add_hashes(&mut self, store: &SliceStore<'_>) -> Result<(), TrainingError> {
        for IdentifiedCase { case, files_sha256 } in &mut self.cases {
            *files_sha256 = Some(match store.case_sha256(&case.name) {
                Some(hash) => hash.to_owned(),
                None => case.files.sha256().map_err(DatasetError::from)?,
            });
        }
        Ok(())
    }

    /// What the run's folder says of the foundation.
    fn foundation(&self) -> &str {
        self.foundation_sha256.as_deref().unwrap_or("none")
    }

    /// What the run's folder says of the file from which a part of the network was initialised.
    fn pretrained(&self) -> &str {
        self.pretrained_sha256.as_deref().unwrap_or("none")
    }

    /// The cases of a split.
    pub fn cases(&self, split: Split) -> impl Iterator<Item = &IdentifiedCase<'_>> {
        self.cases.iter().filter(move |identified| identified.case.split == split)
    }
}

const CONFIG: &str = "config.toml";
const DATASET: &str = "dataset.toml";
const CASES: &str = "cases.txt";
const FOUNDATION: &str = "foundation.sha256";
/// Absent in runs of version 0.1.0.
const PRETRAINED: &str = "pretrained.sha256";

/// Checks that a folder has no run or one of these settings.
pub fn check_settings<C: NetworkConfig>(
    folder: &Path,
    config: &TrainingConfig<C>,
) -> Result<(), TrainingError> {
    let file = folder.join(CONFIG);
    let Some(found) = read_if_exists(&file)? else { return Ok(()) };
    let requested = config.to_toml();
    if found == requested {
        return Ok(());
    }
    let found = config.normalized_for_resume(&found);
    if found == requested { Ok(()) } else { Err(other_settings(file, &found, &requested)) }
}

fn read_if_exists(file: &Path) -> Result<Option<String>, TrainingError> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(TrainingError::read(file)(error)),
    }
}

impl RunFolder {
    /// Creates or opens the folder and locks it. `last_network` is the file of the last step's
    /// network.
    pub fn open(folder: &Path, last_network: &str) -> Result<Self, TrainingError> {
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
        run.check_results(last_network)?;
        run.rename_old_summary().map_err(write(folder))?;
        Ok(run)
    }

    /// Checks that the folder is empty or contains the run of this identity. Cases without a hash
    /// are compared by name.
    pub fn check_identity<C: NetworkConfig>(
        &self,
        identity: &Identity<'_, C>,
    ) -> Result<(), TrainingError> {
        check_settings(&self.folder, identity.config)?;
        self.compare(DATASET, &identity.dataset)?;
        self.compare_cases(&identity.cases)?;
        self.compare(PRETRAINED, identity.pretrained())?;
        self.compare(FOUNDATION, identity.foundation())
    }

    /// Writes the files that identify the run. A run is begun when nothing is left that could
    /// refuse it, so that a mistake does not occupy the folder.
    pub fn begin<C: NetworkConfig>(&self, identity: &Identity<'_, C>) -> Result<(), TrainingError> {
        let line = |identified: &IdentifiedCase<'_>| {
            let hash = identified.files_sha256.as_deref().unwrap_or_default();
            format!("{} {hash}", identified.name_in_list()).trim_end().to_owned() + "\n"
        };
        let cases: String = identity.cases.iter().map(line).collect();
        for (name, contents) in [
            (CONFIG, identity.config.to_toml().as_str()),
            (DATASET, &identity.dataset),
            (CASES, &cases),
            (FOUNDATION, identity.foundation()),
            (PRETRAINED, identity.pretrained()),
        ] {
            let found = std::fs::read_to_string(self.file(name));
            if found.is_ok_and(|found| found == contents) {
                continue;
            }
            self.write_file(name, contents.as_bytes())?;
        }
        Ok(())
    }

    /// Compares the cases with those of the run in the folder. Runs of version 0.1.0 have no
    /// hashes.
    fn compare_cases(&self, cases: &[IdentifiedCase<'_>]) -> Result<(), TrainingError> {
        let file = self.file(CASES);
        let Some(found) = read_if_exists(&file)? else { return Ok(()) };
        let (mut names, mut requested) = (String::new(), String::new());
        let mut changed = None;
        let mut lines = found.lines();
        for identified in cases {
            let name = identified.name_in_list();
            let line = lines.next().unwrap_or_default();
            // A hash has 64 digits, and names may contain spaces.
            let is_hash =
                |hash: &str| hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
            let (found, hash) = match line.rsplit_once(' ') {
                Some((found, hash)) if is_hash(hash) => (found, Some(hash)),
                _ => (line, None),
            };
            if let (Some(hash), Some(requested)) = (hash, &identified.files_sha256)
                && found == name
                && hash != requested
                && changed.is_none()
            {
                changed = Some(identified.case.name.clone());
            }
            names += &format!("{found}\n");
            requested += &format!("{name}\n");
        }
        lines.for_each(|line| names += &format!("{line}\n"));
        if names != requested {
            return Err(other_settings(file, &names, &requested));
        }
        match changed {
            Some(case) => Err(TrainingError::OtherData { file, case }),
            None => Ok(()),
        }
    }

    /// Checks that files with names of a run's results belong to a run, whose settings are known.
    fn check_results(&self, last_network: &str) -> Result<(), TrainingError> {
        if self.file(CONFIG).exists() {
            return Ok(());
        }
        let error = TrainingError::read(&self.folder);
        let entries =
            std::fs::read_dir(&self.folder).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        for entry in entries.map_err(error)? {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_result = name == last_network || RESULTS.contains(&name.as_str());
            if is_result || name.starts_with(CHECKPOINT) {
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

    /// Compares a file that identifies the run, if it exists.
    fn compare(&self, name: &str, requested: &str) -> Result<(), TrainingError> {
        let file = self.file(name);
        match read_if_exists(&file)? {
            Some(found) if found != requested => Err(other_settings(file, &found, requested)),
            _ => Ok(()),
        }
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
    pub fn save_checkpoint<N: SegmentationNetwork>(
        &self,
        network: &N,
        optimizer: &ModuleOptimizer,
        position: &Position,
    ) -> Result<(), TrainingError> {
        // The checkpoint of a step and the one after its epoch's validation have different names,
        // so no checkpoint is ever overwritten.
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
        let module = network.valid().into_record();
        module.save(file(NETWORK)).map_err(record)?;
        optimizer.save(file(OPTIMIZER)).map_err(record)?;
        let text = serde_json::to_vec_pretty(position).expect("plain data");
        let write = || {
            std::fs::write(file(POSITION), text)?;
            for name in [NETWORK, OPTIMIZER, POSITION] {
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
            // Others may be copies that the user made.
            if is_checkpoint(&entry.file_name().to_string_lossy()) {
                found.push(entry.path());
            }
        }
        found.sort();
        Ok(found)
    }

    /// Loads network, optimizer and position of the last checkpoint, or returns them unchanged if
    /// there is none. Removes temporary files of an interrupted process.
    pub fn load_checkpoint<N: SegmentationNetwork>(
        &self,
        network: N,
        optimizer: ModuleOptimizer,
    ) -> Result<(N, ModuleOptimizer, Position), TrainingError> {
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
            return Ok((network, optimizer, Position::default()));
        };
        let damaged = |reason: String| TrainingError::ReadCheckpoint { path: last.clone(), reason };
        let file = last.join(POSITION);
        let text = std::fs::read_to_string(&file).map_err(read(&file))?;
        let position = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        let record = |error: burn::store::RecordError| damaged(error.to_string());
        let module = ModuleRecord::load(last.join(NETWORK)).map_err(record)?;
        let network = network.try_load_record(module).map_err(record)?;
        let state = OptimizerRecord::load(last.join(OPTIMIZER)).map_err(record)?;
        Ok((network, optimizer.load_record(state), position))
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

/// Whether a folder's name is `checkpoint-`, the number of steps in ten digits and that of epochs
/// in six.
fn is_checkpoint(name: &str) -> bool {
    let digits = |text: &str, count: usize| {
        text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit())
    };
    let numbers = name.strip_prefix(CHECKPOINT).and_then(|numbers| numbers.split_once('-'));
    numbers.is_some_and(|(steps, epochs)| digits(steps, 10) && digits(epochs, 6))
}

/// The error of a file of which the first different line is shown.
fn other_settings(file: PathBuf, found: &str, requested: &str) -> TrainingError {
    if let (Ok(before), Ok(now)) = (found.parse::<toml::Table>(), requested.parse::<toml::Table>())
        && let Some((found, requested)) = different_setting("", &before, &now)
    {
        return TrainingError::OtherSettings { file, found, requested };
    }
    let mut lines = found.lines().zip(requested.lines());
    let (found, requested) = lines
        .find(|(found, requested)| found != requested)
        .unwrap_or(("another number of lines", "all of its lines"));
    let (found, requested) = (found.to_owned(), requested.to_owned());
    TrainingError::OtherSettings { file, found, requested }
}

/// The first setting in which two tables differ, in both of them.
fn different_setting(
    path: &str,
    found: &toml::Table,
    requested: &toml::Table,
) -> Option<(String, String)> {
    let keys = found.keys().chain(requested.keys().filter(|key| !found.contains_key(*key)));
    for key in keys {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let shown = |value: Option<&toml::Value>| match value {
            Some(value) => format!("{path} = {value}"),
            None => format!("no {path}"),
        };
        match (found.get(key), requested.get(key)) {
            (a, b) if a == b => {}
            (Some(toml::Value::Table(a)), Some(toml::Value::Table(b))) => {
                if let Some(different) = different_setting(&path, a, b) {
                    return Some(different);
                }
            }
            (a, b) => return Some((shown(a), shown(b))),
        }
    }
    None
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
