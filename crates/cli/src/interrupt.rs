//! Ctrl-C and termination signals.
//!
//! While a run trains or computes embeddings, the first signal lets the current step end and the
//! run be saved. At any other time, and for a second signal, the program ends at once, without
//! partial output.

use crate::{progress, staging, terminal};
use anyhow::{Context, Result};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// Exit status of a stopped program.
pub const EXIT_STATUS: u8 = 130;
/// How to continue a stopped run.
pub const RESUME: &str = "run the same command again to resume";

static STOP_REQUESTED: AtomicBool = AtomicBool::new(false);
static FINISHES_STEP: AtomicBool = AtomicBool::new(false);
/// Signals since the program started.
static SIGNALS: AtomicUsize = AtomicUsize::new(0);
static FINISHES_CHILD: AtomicBool = AtomicBool::new(false);
static RESUMABLE: AtomicBool = AtomicBool::new(false);
static KEEPS_OUTPUT: AtomicBool = AtomicBool::new(false);
static EXITING: AtomicBool = AtomicBool::new(false);
static WRITING: Mutex<()> = Mutex::new(());
/// Longer than writing a file takes; a file system that hangs must not keep the program running.
const LONGEST_WRITE: Duration = Duration::from_secs(10);

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

/// Whether signals only request a stop: the caller waits for a process, to which it passes each of
/// them on.
pub fn set_finishes_child(finishes: bool) {
    FINISHES_CHILD.store(finishes, Ordering::SeqCst);
}

/// The number of signals since the program started.
pub fn signals() -> usize {
    SIGNALS.load(Ordering::SeqCst)
}

/// Whether a stop was requested.
pub fn stop_requested() -> bool {
    STOP_REQUESTED.load(Ordering::SeqCst)
}

/// Until the guard is dropped, a signal does not end the program: what belongs together is written
/// together, and no temporary file is left.
pub fn hold() -> MutexGuard<'static, ()> {
    WRITING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for the end of what [`hold`] protects and keeps it from beginning again.
fn wait_for_writing() -> Option<MutexGuard<'static, ()>> {
    let started = Instant::now();
    loop {
        match WRITING.try_lock() {
            Ok(guard) => return Some(guard),
            Err(TryLockError::Poisoned(error)) => return Some(error.into_inner()),
            Err(TryLockError::WouldBlock) if started.elapsed() > LONGEST_WRITE => return None,
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
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
    SIGNALS.fetch_add(1, Ordering::SeqCst);
    if FINISHES_CHILD.load(Ordering::SeqCst) {
        return;
    }
    if is_first && FINISHES_STEP.load(Ordering::SeqCst) {
        if !terminal::is_full_screen() {
            progress::note("stopping after this step; press Ctrl-C again to stop at once");
        }
        return;
    }
    let _writing = wait_for_writing();
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
