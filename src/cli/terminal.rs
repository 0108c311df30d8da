//! What a person at a terminal gets: Ctrl-C that stops a generation, and progress of what takes long.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::SIGINT;
use signal_hook::flag;

use super::INTERRUPTED;

/// Ctrl-C ends the program at once: outside of a generation, and when asked twice.
static AT_ONCE: LazyLock<Arc<AtomicBool>> = LazyLock::new(|| Arc::new(AtomicBool::new(true)));
/// Ctrl-C has asked the generation to stop. It stays in force for the rest of a batch.
static INTERRUPT: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// From here on Ctrl-C asks a running generation to stop, and otherwise ends the program.
pub fn catch_interrupt() {
    // In this order: the first Ctrl-C of a generation finds AT_ONCE false and leaves it true for the second.
    let registered = flag::register_conditional_shutdown(SIGINT, INTERRUPTED.into(), AT_ONCE.clone())
        .and_then(|_| flag::register(SIGINT, AT_ONCE.clone()))
        .and_then(|_| flag::register(SIGINT, INTERRUPT.clone()));
    if let Err(error) = registered {
        log::warn!("Ctrl-C will not stop cleanly: {error}");
    }
}

/// A generation begins.
pub fn begin_generation() {
    AT_ONCE.store(false, Ordering::SeqCst);
}

/// A generation has ended.
pub fn end_generation() {
    AT_ONCE.store(true, Ordering::SeqCst);
}

/// Whether Ctrl-C asked the generation to stop.
pub fn interrupted() -> bool {
    INTERRUPT.load(Ordering::SeqCst)
}

/// A bar on stderr, when that is a terminal and the work is not done at once.
pub struct Progress {
    label: &'static str,
    style: &'static str,
    started: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// For a load: bytes.
    pub fn bytes(label: &'static str) -> Self {
        Progress::new(label, "{msg} {wide_bar} {bytes}/{total_bytes}")
    }

    /// For a prefill: tokens.
    pub fn tokens(label: &'static str) -> Self {
        Progress::new(label, "{msg} {wide_bar} {pos}/{len} tokens")
    }

    fn new(label: &'static str, style: &'static str) -> Self {
        Progress { label, style, started: Instant::now(), bar: None }
    }

    pub fn update(&mut self, done: usize, total: usize) {
        if self.bar.is_none() {
            if self.started.elapsed() < Duration::from_millis(500) || !std::io::stderr().is_terminal() {
                return;
            }
            let style = ProgressStyle::with_template(self.style).expect("the template is valid");
            self.bar = Some(ProgressBar::new(total as u64).with_style(style).with_message(self.label));
        }
        if let Some(bar) = &self.bar {
            bar.set_position(done as u64);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
