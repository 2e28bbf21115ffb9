//! Warnings of the library on standard error, each once, and few of one kind.

use crate::progress::note;
use log::{LevelFilter, Log, Metadata, Record};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

/// Shows the warnings of sam-lst's crates. Files are read several times, so equal warnings are shown
/// once.
struct Warnings {
    shown: Mutex<Shown>,
}

/// Warnings of one kind that are shown. A dataset of thousands of files may have one for each file.
const SHOWN_OF_A_KIND: usize = 5;

struct Shown {
    texts: BTreeSet<String>,
    /// Number of warnings by their text without the file and without numbers.
    kinds: BTreeMap<String, usize>,
}

impl Shown {
    /// The line to show for a warning; `None` if it was shown, or as many of its kind were.
    fn line(&mut self, text: &str) -> Option<String> {
        if !self.texts.insert(text.to_owned()) {
            return None;
        }
        let message = text.split_once(": ").map_or(text, |(_, message)| message);
        let kind = message.replace(|c: char| c.is_ascii_digit(), "");
        let count = self.kinds.entry(kind).or_default();
        *count += 1;
        match *count {
            count if count < SHOWN_OF_A_KIND => Some(format!("warning: {text}")),
            SHOWN_OF_A_KIND => {
                Some(format!("warning: {text} (further warnings of this kind are not shown)"))
            }
            _ => None,
        }
    }
}

static WARNINGS: Warnings =
    Warnings { shown: Mutex::new(Shown { texts: BTreeSet::new(), kinds: BTreeMap::new() }) };

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
        let line = self.shown.lock().unwrap_or_else(PoisonError::into_inner).line(&text);
        if let Some(line) = line {
            note(&line);
        }
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_shown_once_and_few_of_a_kind() {
        let mut shown = Shown { texts: BTreeSet::new(), kinds: BTreeMap::new() };
        let mut lines = Vec::new();
        for file in [1, 1, 2, 3, 4, 5, 6, 7] {
            lines.extend(shown.line(&format!("mask{file}.png: {file}2 pixels are soft")));
        }
        assert_eq!(lines.len(), SHOWN_OF_A_KIND);
        assert!(lines[4].ends_with("(further warnings of this kind are not shown)"), "{lines:?}");
        let other = shown.line("mask9.png: 3 pixels are odd");
        assert_eq!(other.as_deref(), Some("warning: mask9.png: 3 pixels are odd"));
    }
}
