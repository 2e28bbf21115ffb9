//! Progress and messages on standard error: a bar on a terminal, otherwise a line now and then.

use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Time between two lines of progress where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(30);
const BAR_LENGTH: u64 = 1000;

/// The bar on the terminal, above which [`note`] writes.
static CURRENT: Mutex<Option<ProgressBar>> = Mutex::new(None);

fn current() -> MutexGuard<'static, Option<ProgressBar>> {
    CURRENT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes a line to standard error, above the progress bar.
pub fn note(line: &str) {
    // A closed standard error is no reason to fail.
    let write = || _ = writeln!(std::io::stderr(), "{line}");
    let bar = current().clone();
    match bar {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}

/// Removes the progress bar from the terminal.
pub fn clear() {
    if let Some(bar) = current().take() {
        bar.finish_and_clear();
    }
}

/// Progress of one or several kinds of work, with an estimate of the time left for each.
pub struct Progress {
    bar: ProgressBar,
    works: BTreeMap<&'static str, Work>,
}

/// One kind of work since it began, or since this process resumed it.
struct Work {
    began: Instant,
    first_fraction: f64,
    fraction: f64,
    last_line: Instant,
}

impl Progress {
    /// Creates a bar, which appears with the first update.
    pub fn new() -> Self {
        let style = ProgressStyle::with_template("{prefix:11} {bar:30} {percent:>3} %  {msg}");
        let bar = ProgressBar::new(BAR_LENGTH).with_style(style.expect("a valid template"));
        *current() = Some(bar.clone());
        Self { bar, works: BTreeMap::new() }
    }

    /// Shows `done` of `total` items of a kind of work.
    pub fn count(&mut self, work: &'static str, done: usize, total: usize, unit: &str) {
        let fraction = if total == 0 { 1.0 } else { done as f64 / total as f64 };
        self.update(work, fraction, &format!("{done}/{total} {unit}"));
    }

    /// Shows that a fraction of a kind of work is done. A fraction below the last one begins it
    /// anew.
    pub fn update(&mut self, work: &'static str, fraction: f64, text: &str) {
        let now = Instant::now();
        let begin = || Work { began: now, first_fraction: fraction, fraction, last_line: now };
        let state = self.works.entry(work).or_insert_with(begin);
        if fraction < state.fraction {
            *state = begin();
        }
        state.fraction = fraction;
        let message = match state.time_left(now) {
            Some(left) => format!("{text}, {} left", HumanDuration(left)),
            None => text.to_owned(),
        };
        if self.bar.is_hidden() {
            if now.duration_since(state.last_line) >= LINE_INTERVAL {
                state.last_line = now;
                note(&format!("{work}: {message}"));
            }
            return;
        }
        self.bar.set_prefix(work);
        self.bar.set_message(message);
        self.bar.set_position((fraction * BAR_LENGTH as f64) as u64);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        clear();
    }
}

impl Work {
    fn time_left(&self, now: Instant) -> Option<Duration> {
        let done = self.fraction - self.first_fraction;
        let left = 1.0 - self.fraction;
        (done > 0.0 && left > 0.0).then(|| {
            Duration::try_from_secs_f64(now.duration_since(self.began).as_secs_f64() * left / done)
                .unwrap_or(Duration::MAX)
        })
    }
}

/// Progress over cases that are processed slice by slice, one after the other.
pub struct CaseProgress {
    progress: Progress,
    work: &'static str,
    cases: usize,
    case: String,
    completed: usize,
}

impl CaseProgress {
    /// Creates a bar for so many cases.
    pub fn new(work: &'static str, cases: usize) -> Self {
        Self { progress: Progress::new(), work, cases, case: String::new(), completed: 0 }
    }

    /// Shows the number of slices of a case that are done.
    pub fn update(&mut self, case: &str, done: usize, slices: usize) {
        if self.case != case {
            self.completed += usize::from(!self.case.is_empty());
            self.case = case.to_owned();
        }
        let of_case = done as f64 / slices.max(1) as f64;
        let fraction = (self.completed as f64 + of_case) / self.cases.max(1) as f64;
        let text = format!("case {case}, {}/{}", self.completed + 1, self.cases);
        self.progress.update(self.work, fraction.min(1.0), &text);
    }
}

/// Shows that something without measurable progress is under way, until dropped.
pub struct Spinner;

impl Spinner {
    /// Shows a text with the time that has passed.
    pub fn new(text: String) -> Self {
        let style = ProgressStyle::with_template("{spinner} {msg}, {elapsed}");
        let bar = ProgressBar::new_spinner().with_style(style.expect("a valid template"));
        if bar.is_hidden() {
            note(&text);
        }
        bar.set_message(text);
        bar.enable_steady_tick(Duration::from_millis(100));
        *current() = Some(bar);
        Self
    }

    /// Shows that a file is being loaded.
    pub fn loading(file: &Path) -> Self {
        let metadata = std::fs::metadata(file).ok().filter(std::fs::Metadata::is_file);
        let size = metadata.map(|metadata| format!(" ({})", HumanBytes(metadata.len())));
        Self::new(format!("loading {}{}", file.display(), size.unwrap_or_default()))
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        clear();
    }
}
