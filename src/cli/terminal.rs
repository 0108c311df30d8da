//! Ctrl-C that stops a load or a generation, and otherwise the program; and text that a terminal may show.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::Duration;

use nix::sys::termios::{InputFlags, LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use super::process::INTERRUPTED;

/// Ctrl-C ends the program at once: outside of a load or a generation, and when asked twice.
static AT_ONCE: LazyLock<Arc<AtomicBool>> = LazyLock::new(|| Arc::new(AtomicBool::new(true)));
/// Ctrl-C has asked the work to stop. It stays in force for the rest of a batch.
static INTERRUPT: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// From here on Ctrl-C, or SIGTERM, asks a running load or generation to stop, and otherwise ends the program.
pub fn catch_interrupt() {
    // In this order: the first one of a generation finds AT_ONCE false and leaves it true for the second.
    let catch = |signal| {
        flag::register_conditional_shutdown(signal, INTERRUPTED.into(), AT_ONCE.clone())?;
        flag::register(signal, AT_ONCE.clone())?;
        flag::register(signal, INTERRUPT.clone()).map(drop)
    };
    if let Err(error) = [SIGINT, SIGTERM].into_iter().try_for_each(catch) {
        log::warn!("Ctrl-C will not stop cleanly: {error}");
    }
}

/// From here on Ctrl-C asks a load or a generation to stop, any number of times, and never ends the program.
pub fn only_catch_interrupt() {
    if let Err(error) = flag::register(SIGINT, INTERRUPT.clone()) {
        log::warn!("Ctrl-C will not stop cleanly: {error}");
    }
}

/// While it lives, the first Ctrl-C asks the load or the generation to stop.
pub struct Generation;

impl Generation {
    pub fn begin() -> Self {
        AT_ONCE.store(false, Ordering::SeqCst);
        Generation
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        AT_ONCE.store(true, Ordering::SeqCst);
    }
}

/// What Ctrl-C sets, for whoever cannot ask [`interrupted`].
pub fn interrupt() -> &'static Arc<AtomicBool> {
    &INTERRUPT
}

/// Whether Ctrl-C asked the work to stop.
pub fn interrupted() -> bool {
    INTERRUPT.load(Ordering::SeqCst)
}

/// While it lives, what is typed does not show, since it would stand in the midst of an answer. It is read afterwards.
pub struct Quiet(Option<Termios>);

impl Quiet {
    pub fn begin() -> Self {
        let before = tcgetattr(io::stdin()).ok();
        if let Some(before) = &before {
            let mut quiet = before.clone();
            quiet.local_flags.remove(LocalFlags::ECHO | LocalFlags::ICANON);
            quiet.input_flags.remove(InputFlags::ICRNL); // Enter stays what it is
            let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &quiet);
        }
        Quiet(before)
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, before);
        }
    }
}

/// What was asked to stop has stopped.
pub fn forget_interrupt() {
    INTERRUPT.store(false, Ordering::SeqCst);
}

/// While it lives, a computation that does not stop soon after Ctrl-C (MLX's own, which nothing can interrupt) is ended with the
/// program.
pub struct LastResort(#[allow(dead_code)] Sender<()>); // dropped, it ends the thread

impl LastResort {
    pub fn begin() -> Self {
        let (done, is_done) = channel();
        // Where no thread can be started, the second Ctrl-C ends the program.
        let _ = thread::Builder::new().spawn(move || {
            let goes_on = |time| is_done.recv_timeout(time) == Err(RecvTimeoutError::Timeout);
            while goes_on(Duration::from_millis(50)) {
                if interrupted() && goes_on(Duration::from_millis(500)) {
                    note!("interrupted");
                    signal_hook::low_level::exit(INTERRUPTED.into());
                }
            }
        });
        LastResort(done)
    }
}

/// Text without characters that control a terminal or reorder what it shows; line ends stay, and tabs are spaces.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push(c),
            '\t' => out.push_str("    "),
            '\r' => {}
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                out.push(char::REPLACEMENT_CHARACTER)
            }
            c if c.is_control() => out.push(char::REPLACEMENT_CHARACTER),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_no_control_characters() {
        let all: String = (0..0x250).filter_map(char::from_u32).collect();
        let controls: Vec<char> = printable(&all).chars().filter(|c| c.is_control()).collect();
        assert_eq!(controls, ['\n']);
        assert_eq!(printable("a\tb\r\n\x1b[2J\u{9b}é"), "a    b\n\u{fffd}[2J\u{fffd}é");
        assert_eq!(printable("a\u{200f}b\u{61c}"), "a\u{fffd}b\u{fffd}");
        assert_eq!(printable("a\u{202e}b\u{2066}c\u{200d}d"), "a\u{fffd}b\u{fffd}c\u{200d}d");
    }
}
