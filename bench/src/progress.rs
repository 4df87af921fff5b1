//! How far the bench is, on stderr.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Who waits less needs no bar.
const SHORT: Duration = Duration::from_secs(2);

/// The bar of one comparison after the other.
pub struct Progress {
    bar: ProgressBar,
    begin: Instant,
    shown: bool,
}

impl Progress {
    /// Nothing is shown yet.
    pub fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        // The template is fixed, and valid.
        if let Ok(style) = ProgressStyle::with_template("{prefix}) {msg} {bar:30} {pos}/{len}") {
            bar.set_style(style);
        }
        Self { bar, begin: Instant::now(), shown: false }
    }

    /// A comparison of so many steps begins.
    pub fn begin(&self, part: char, title: &str, steps: usize) {
        self.bar.reset();
        self.bar.set_length(steps as u64);
        self.bar.set_prefix(part.to_string());
        self.bar.set_message(title.to_owned());
    }

    /// A step is done.
    pub fn step(&mut self) {
        if !self.shown && self.begin.elapsed() > SHORT {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
            self.shown = true;
        }
        self.bar.inc(1);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
