//! How far a measurement has come, on standard error and only on a terminal.
//!
//! A bar where the end is known, a spinner where it is not. It is gone when the measurement is: after
//! [`Progress::finish`], and whenever it is dropped.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What ends within this needs no bar.
const SHORT: Duration = Duration::from_secs(2);
/// How often the elapsed time is drawn anew.
const TICK: Duration = Duration::from_millis(200);
/// Columns of the bar itself.
const BAR: &str = "{prefix} [{bar:24}]";

/// A bar or spinner. One that has no terminal does nothing.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    /// Whether the position is the elapsed time.
    timed: bool,
}

impl Progress {
    /// Begins to show a measurement of a known length, or of one that the user ends.
    pub fn timed(label: &str, duration: Option<Duration>) -> Self {
        Self::timed_on(ProgressDrawTarget::stderr(), label, duration)
    }

    fn timed_on(target: ProgressDrawTarget, label: &str, duration: Option<Duration>) -> Self {
        let Some(duration) = duration else {
            let template = "{prefix} {spinner} {elapsed_precise}  {wide_msg}";
            return Self { bar: start(target, None, template, label), timed: false };
        };
        if duration <= SHORT {
            return Self::hidden();
        }
        let template = format!(
            "{BAR} {{elapsed_precise}} of {}  {{wide_msg}}",
            indicatif::FormattedDuration(duration)
        );
        let length = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self { bar: start(target, Some(length), &template, label), timed: true }
    }

    /// Begins to show work of a known number of steps.
    pub fn steps(label: &str, steps: u64) -> Self {
        let template = format!("{BAR} {{pos}} of {{len}}  {{elapsed_precise}}  {{wide_msg}}");
        let target = ProgressDrawTarget::stderr();
        Self { bar: start(target, Some(steps), &template, label), timed: false }
    }

    /// Returns one that shows nothing.
    pub fn hidden() -> Self {
        Self { bar: ProgressBar::hidden(), timed: false }
    }

    /// Moves a bar of a known length of time to now. To be called with every sample.
    pub fn advance(&self) {
        if self.timed {
            let elapsed = u64::try_from(self.bar.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.bar.set_position(elapsed.min(self.bar.length().unwrap_or(elapsed)));
        }
    }

    /// Moves a bar of steps by one.
    pub fn step(&self) {
        self.bar.inc(1);
    }

    /// Says beside the bar what there is so far, such as the totals.
    pub fn set_message(&self, message: impl Into<String>) {
        self.bar.set_message(message.into());
    }

    /// Takes the bar away while `write` writes to the terminal, and draws it again below.
    pub fn suspend<T>(&self, write: impl FnOnce() -> T) -> T {
        self.bar.suspend(write)
    }

    /// Takes the bar away for good.
    pub fn finish(self) {
        drop(self);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// The target draws only if it is a terminal: `indicatif` looks.
fn start(
    target: ProgressDrawTarget,
    length: Option<u64>,
    template: &str,
    label: &str,
) -> ProgressBar {
    let style = ProgressStyle::with_template(template)
        .expect("the templates of this file are well-formed, as its tests show")
        .progress_chars("=> ")
        .tick_chars("|/-\\ ");
    let bar = ProgressBar::with_draw_target(length, target)
        .with_style(style)
        .with_prefix(super::text::tame(label));
    if !bar.is_hidden() {
        bar.enable_steady_tick(TICK);
    }
    bar
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use indicatif::TermLike;

    use super::*;

    /// A terminal of one line: what stands in it, and what has ever stood there.
    #[derive(Clone, Debug, Default)]
    struct Line {
        now: Arc<Mutex<String>>,
        ever: Arc<Mutex<String>>,
    }

    impl TermLike for Line {
        fn width(&self) -> u16 {
            100
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(text)
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.now.lock().unwrap().push_str(text);
            self.ever.lock().unwrap().push_str(text);
            Ok(())
        }
        fn clear_line(&self) -> io::Result<()> {
            self.now.lock().unwrap().clear();
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    fn shown(duration: Option<Duration>) -> (Line, Progress) {
        let line = Line::default();
        let target = ProgressDrawTarget::term_like_with_hz(Box::new(line.clone()), 255);
        let progress = Progress::timed_on(target, "measuring xray", duration);
        (line, progress)
    }

    #[test]
    fn bar_shows_the_end_and_the_totals_and_goes_away_when_dropped() {
        let (line, progress) = shown(Some(Duration::from_secs(60)));
        progress.set_message("1.23 GiB");
        progress.advance();
        progress.bar.force_draw();
        let ever = line.ever.lock().unwrap().clone();
        assert!(ever.contains("measuring xray ["), "{ever:?}");
        assert!(ever.contains("] 00:00:00 of 00:01:00  1.23 GiB"), "{ever:?}");
        drop(progress);
        assert_eq!(line.now.lock().unwrap().trim(), "");
    }

    #[test]
    fn without_an_end_there_is_a_spinner() {
        let (line, progress) = shown(None);
        progress.set_message("1.23 GiB");
        progress.bar.force_draw();
        let ever = line.ever.lock().unwrap().clone();
        assert!(ever.contains(" 00:00:00  1.23 GiB") && !ever.contains('['), "{ever:?}");
        progress.finish();
        assert_eq!(line.now.lock().unwrap().trim(), "");
    }

    #[test]
    fn what_ends_at_once_has_no_bar() {
        let (line, progress) = shown(Some(SHORT));
        progress.set_message("1.23 GiB");
        progress.advance();
        progress.bar.force_draw();
        drop(progress);
        assert_eq!(*line.ever.lock().unwrap(), "");
    }

    #[test]
    fn steps_and_hidden_ones_need_no_terminal() {
        let progress = Progress::steps("demo", 4);
        progress.step();
        assert_eq!(progress.bar.position(), 1);
        assert_eq!(Progress::hidden().suspend(|| 7), 7);
    }
}
