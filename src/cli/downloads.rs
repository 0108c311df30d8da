//! What a download shows on stderr: in a terminal a bar for each file under way and one for all, elsewhere a line for each file.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use mlx_lm::hub::{Event, HubFile, ModelName};

/// From one drawing to the next.
const TICK: Duration = Duration::from_millis(100);

pub struct Downloads {
    name: String,
    files: Vec<File>,
    bars: Option<Bars>,
}

struct File {
    name: String,
    size: u64,
    bytes: u64,
    bar: Option<ProgressBar>,
}

struct Bars {
    all: MultiProgress,
    total: ProgressBar,
}

impl Downloads {
    pub fn new(name: &ModelName) -> Self {
        let bars =
            std::io::stderr().is_terminal().then(|| Bars { all: MultiProgress::new(), total: ProgressBar::hidden() });
        Downloads { name: name.to_string(), files: Vec::new(), bars }
    }

    pub fn event(&mut self, event: Event) {
        match event {
            Event::Begin { files } => self.begin(files),
            Event::Progress { file, bytes } => self.progress(file, bytes),
            Event::Waiting { file } => {
                let text = format!("another process is downloading {}; waiting for it", self.files[file].name);
                self.say(&text);
            }
            Event::Finished { file } => self.finish(file),
        }
    }

    fn begin(&mut self, files: &[HubFile]) {
        let total = files.iter().map(|file| file.size).sum();
        let count = files.len();
        note!("downloading {}: {count} file{}, {}", self.name, if count == 1 { "" } else { "s" }, HumanBytes(total));
        self.files =
            files.iter().map(|file| File { name: file.name.clone(), size: file.size, bytes: 0, bar: None }).collect();
        if let Some(Bars { all, total: bar }) = &mut self.bars {
            *bar = all.add(bar_of(total, "{msg} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}"));
            bar.set_message("in all");
        }
    }

    fn progress(&mut self, index: usize, bytes: u64) {
        let Some(Bars { all, total }) = &self.bars else { return };
        let file = &mut self.files[index];
        file.bytes = bytes;
        let bar = file.bar.get_or_insert_with(|| {
            let bar = all.insert_before(total, bar_of(file.size, "  {msg} {wide_bar} {bytes}/{total_bytes}"));
            bar.with_message(file.name.clone())
        });
        bar.set_position(bytes);
        total.set_position(self.files.iter().map(|file| file.bytes).sum());
    }

    fn finish(&mut self, index: usize) {
        let file = &mut self.files[index];
        if let Some(bar) = file.bar.take() {
            bar.finish_and_clear();
        }
        if self.bars.is_none() {
            note!("  {} {}", file.name, HumanBytes(file.size));
        }
    }

    fn say(&self, text: &str) {
        match &self.bars {
            Some(bars) => bars.all.suspend(|| note!("{text}")),
            None => note!("{text}"),
        }
    }
}

impl Drop for Downloads {
    fn drop(&mut self) {
        if let Some(bars) = &self.bars {
            bars.total.finish_and_clear();
            let _ = bars.all.clear();
        }
    }
}

fn bar_of(length: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("the template is valid");
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::hidden()).with_style(style);
    bar.enable_steady_tick(TICK); // what came last shows while nothing comes
    bar
}
