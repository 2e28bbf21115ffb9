//! The terminal under burn-train's full screen, which is in raw mode and on the alternate screen.

use crossterm::cursor::Show;
use crossterm::event::DisableMouseCapture;
use crossterm::terminal::{LeaveAlternateScreen, disable_raw_mode};
use std::sync::atomic::{AtomicBool, Ordering};

static FULL_SCREEN: AtomicBool = AtomicBool::new(false);

/// Records whether the full screen has the terminal.
pub fn set_full_screen(full_screen: bool) {
    FULL_SCREEN.store(full_screen, Ordering::SeqCst);
}

/// Whether the full screen has the terminal.
pub fn is_full_screen() -> bool {
    FULL_SCREEN.load(Ordering::SeqCst)
}

/// Takes the terminal back from the full screen, if it has it, before the program ends abruptly.
pub fn restore() {
    if FULL_SCREEN.swap(false, Ordering::SeqCst) {
        // The program ends: nothing can be done about a terminal that fails.
        let _ = disable_raw_mode();
        let _ =
            crossterm::execute!(std::io::stdout(), DisableMouseCapture, LeaveAlternateScreen, Show);
    }
}

/// Lets Ctrl-C send its signal in raw mode, in which it would be an ordinary key. The renderer's
/// thread enters raw mode at some time after it was started, so this is called with each event.
#[cfg(unix)]
pub fn enable_ctrl_c() {
    use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, tcgetattr, tcsetattr};
    let stdin = std::io::stdin();
    let Ok(mut settings) = tcgetattr(&stdin) else { return };
    let is_raw = !settings.local_modes.contains(LocalModes::ICANON);
    if is_raw && !settings.local_modes.contains(LocalModes::ISIG) {
        settings.local_modes.insert(LocalModes::ISIG);
        // A suspended or aborted program would leave the terminal in raw mode.
        settings.special_codes[SpecialCodeIndex::VSUSP] = 0;
        settings.special_codes[SpecialCodeIndex::VQUIT] = 0;
        // Without it the full screen still has its own key to stop.
        let _ = tcsetattr(&stdin, OptionalActions::Now, &settings);
    }
}

/// Raw mode has other rules on other systems; the full screen's own key stops the run there.
#[cfg(not(unix))]
pub fn enable_ctrl_c() {}
