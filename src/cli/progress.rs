//! A bar on stderr for what takes long.

use std::io::IsTerminal;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What is done sooner shows no bar.
const PATIENCE: Duration = Duration::from_millis(400);
/// From one drawing to the next, whether there is news or not.
const TICK: Duration = Duration::from_millis(100);

/// A bar that shows itself when stderr is a terminal and the work is not done at once.
pub struct Progress {
    bar: ProgressBar,
    /// Dropped, it ends the thread that waits to show the bar.
    _done: Sender<()>,
}

impl Progress {
    /// `amount` is how indicatif's template shows the work done: `{bytes}/{total_bytes}`, `{pos}/{len} tokens`.
    pub fn new(label: &'static str, amount: &'static str) -> Self {
        let template = format!("{{msg}} {{wide_bar}} {amount} {{elapsed}}");
        let style = ProgressStyle::with_template(&template).expect("the template is valid");
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        let bar = bar.with_style(style).with_message(label);
        let (done, is_done) = channel();
        if std::io::stderr().is_terminal() {
            let bar = bar.clone();
            // Where no thread can be started, there is no bar.
            let _ = thread::Builder::new().spawn(move || {
                if is_done.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) && !bar.is_finished() {
                    bar.set_draw_target(ProgressDrawTarget::stderr());
                    bar.enable_steady_tick(TICK);
                }
            });
        }
        Progress { bar, _done: done }
    }

    pub fn update(&mut self, done: u64, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
