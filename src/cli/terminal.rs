//! What a person at a terminal gets: Ctrl-C that stops a generation, and progress of what takes long.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::INTERRUPTED;

const IDLE: u8 = 0;
const GENERATING: u8 = 1;
const STOPPING: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(IDLE);

/// From here on Ctrl-C asks the generation to stop; outside of one, and when asked twice, it ends the program.
pub fn catch_interrupt() {
    let handler = || {
        if STATE.compare_exchange(GENERATING, STOPPING, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            std::process::exit(INTERRUPTED.into());
        }
    };
    if let Err(error) = ctrlc::set_handler(handler) {
        log::warn!("Ctrl-C will not stop cleanly: {error}");
    }
}

/// A generation begins.
pub fn begin_generation() {
    // Only from IDLE: a request to stop stays in force for the rest of a batch.
    let _ = STATE.compare_exchange(IDLE, GENERATING, Ordering::SeqCst, Ordering::SeqCst);
}

/// Whether Ctrl-C asked the generation to stop.
pub fn interrupted() -> bool {
    STATE.load(Ordering::SeqCst) == STOPPING
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
