//! Warnings of the library on standard error, each once.

use crate::progress::note;
use log::{LevelFilter, Log, Metadata, Record};
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// Shows the warnings of sam-lst's crates. Files are read several times, so equal warnings are shown
/// once.
struct Warnings {
    shown: Mutex<BTreeSet<String>>,
}

static WARNINGS: Warnings = Warnings { shown: Mutex::new(BTreeSet::new()) };

/// Shows warnings from now on.
pub fn show() {
    // It fails only if there is a logger already.
    if log::set_logger(&WARNINGS).is_ok() {
        log::set_max_level(LevelFilter::Warn);
    }
}

impl Log for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("sam_lst")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = record.args().to_string();
        let is_new = self.shown.lock().unwrap_or_else(PoisonError::into_inner).insert(text.clone());
        if is_new {
            note(&format!("warning: {text}"));
        }
    }

    fn flush(&self) {}
}
