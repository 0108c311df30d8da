//! A bar on stderr for what takes long.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// A bar that shows itself when stderr is a terminal and the work is not done at once.
pub struct Progress {
    label: &'static str,
    amount: &'static str,
    started: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// `amount` is how indicatif's template shows the work done: `{bytes}/{total_bytes}`, `{pos}/{len} tokens`.
    pub fn new(label: &'static str, amount: &'static str) -> Self {
        Progress { label, amount, started: Instant::now(), bar: None }
    }

    pub fn update(&mut self, done: u64, total: u64) {
        if self.bar.is_none() {
            if self.started.elapsed() < Duration::from_millis(500) || !std::io::stderr().is_terminal() {
                return;
            }
            let template = format!("{{msg}} {{wide_bar}} {}", self.amount);
            let style = ProgressStyle::with_template(&template).expect("the template is valid");
            self.bar = Some(ProgressBar::new(total).with_style(style).with_message(self.label));
        }
        if let Some(bar) = &self.bar {
            bar.set_position(done);
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
