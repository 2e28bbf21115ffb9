//! Ctrl-C and termination signals.
//!
//! While a run trains or computes embeddings, the first signal lets the current step end and the
//! run be saved. At any other time, and for a second signal, the program ends at once, without
//! partial output.

use crate::{progress, staging, terminal};
use anyhow::{Context, Result};
use std::sync::atomic::{AtomicBool, Ordering};

/// Exit status of a stopped program.
pub const EXIT_STATUS: u8 = 130;
/// How to continue a stopped run.
pub const RESUME: &str = "run the same command again to resume";

static STOP_REQUESTED: AtomicBool = AtomicBool::new(false);
static FINISHES_STEP: AtomicBool = AtomicBool::new(false);
static RESUMABLE: AtomicBool = AtomicBool::new(false);
static KEEPS_OUTPUT: AtomicBool = AtomicBool::new(false);
static EXITING: AtomicBool = AtomicBool::new(false);

/// Starts to handle signals.
pub fn install() -> Result<()> {
    ctrlc::set_handler(on_signal).context("cannot handle Ctrl-C")
}

/// States that the command can be resumed, which a stopped program then says.
pub fn set_resumable() {
    RESUMABLE.store(true, Ordering::SeqCst);
}

/// States that outputs are written one by one, which a stopped program then says.
pub fn set_keeps_output() {
    KEEPS_OUTPUT.store(true, Ordering::SeqCst);
}

/// Whether the first signal only requests a stop, which the caller obeys after the current step.
pub fn set_finishes_step(finishes: bool) {
    FINISHES_STEP.store(finishes, Ordering::SeqCst);
}

/// Whether a stop was requested.
pub fn stop_requested() -> bool {
    STOP_REQUESTED.load(Ordering::SeqCst)
}

/// Never returns if the program is exiting after a signal, so that its exit status is that of a
/// stop.
pub fn wait_if_exiting() {
    while EXITING.load(Ordering::SeqCst) {
        std::thread::park();
    }
}

fn on_signal() {
    let is_first = !STOP_REQUESTED.swap(true, Ordering::SeqCst);
    if is_first && FINISHES_STEP.load(Ordering::SeqCst) {
        if !terminal::is_full_screen() {
            progress::note("stopping after this step; press Ctrl-C again to stop at once");
        }
        return;
    }
    EXITING.store(true, Ordering::SeqCst);
    terminal::restore();
    progress::clear();
    staging::remove_all();
    if RESUMABLE.load(Ordering::SeqCst) {
        progress::note(&format!("stopped; {RESUME}"));
    } else if KEEPS_OUTPUT.load(Ordering::SeqCst) {
        progress::note(
            "stopped; the labels that are complete were written, --skip-existing continues",
        );
    } else {
        progress::note("stopped; no output was written");
    }
    std::process::exit(EXIT_STATUS.into());
}
