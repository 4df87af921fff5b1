//! Where log lines go: to stderr, as the journal, a terminal or a file wants them.
//!
//! Records of the eBPF program come through the same crate `log`, under the target `traffic_ebpf`.

use std::env;
use std::io::{self, IsTerminal as _, Write as _};
use std::os::unix::fs::MetadataExt as _;

use jiff::ZonedDateTime;
use log::{Level, LevelFilter, Log, Metadata, Record};

/// Crates of this project begin so.
const OWN: &str = "traffic";

/// Sends what is logged to stderr, from `level` on. A second call changes the level alone.
pub fn start(level: LevelFilter) {
    // Fails when there is a logger: it is this one.
    let _ = log::set_boxed_logger(Box::new(Logger { form: Form::detect() }));
    set_level(level);
}

/// Changes what is logged, as a reload may.
pub fn set_level(level: LevelFilter) {
    log::set_max_level(level);
}

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// The journal has the time itself, and takes the level from a prefix: sd-daemon(3).
    Journal,
    /// With the time of day.
    Terminal { colour: bool },
    /// With the whole time, since nobody knows when it will be read.
    File,
}

impl Form {
    fn detect() -> Self {
        let id = |metadata: std::fs::Metadata| format!("{}:{}", metadata.dev(), metadata.ino());
        let stderr = std::fs::metadata("/proc/self/fd/2").map(id);
        let stream = env::var("JOURNAL_STREAM").ok();
        let terminal = io::stderr().is_terminal().then(|| {
            let no_color = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            !no_color && env::var_os("TERM").is_some_and(|term| term != "dumb")
        });
        Self::of(stream.as_deref(), stderr.ok().as_deref(), terminal)
    }

    /// `stream`: $JOURNAL_STREAM, which stays set where stderr goes elsewhere, so that `stderr` must be
    /// the same; `terminal`: whether stderr is one, and has colours.
    fn of(stream: Option<&str>, stderr: Option<&str>, terminal: Option<bool>) -> Self {
        match terminal {
            _ if stream.is_some() && stream == stderr => Self::Journal,
            Some(colour) => Self::Terminal { colour },
            None => Self::File,
        }
    }

    /// Returns the lines of a message, ready to be written at once.
    fn lines(self, level: Level, target: &str, message: &str, now: &ZonedDateTime) -> String {
        // Where somebody looks for a fault they want to know whose line it is.
        let origin = match level {
            Level::Debug | Level::Trace => format!("{target}: "),
            _ => String::new(),
        };
        let word = level.as_str().to_ascii_lowercase();
        let (prefix, further) = match self {
            Self::Journal => (format!("<{}>", priority(level)), format!("<{}>  ", priority(level))),
            Self::Terminal { colour: false } => {
                (format!("{} {word:<5} ", now.strftime("%H:%M:%S")), " ".repeat(15))
            }
            Self::Terminal { colour: true } => {
                let time = now.strftime("%H:%M:%S");
                let colour = colour_of(level);
                (format!("\x1b[2m{time}\x1b[0m \x1b[{colour}m{word:<5}\x1b[0m "), " ".repeat(15))
            }
            Self::File => {
                (format!("{} {word:<5} ", now.strftime("%Y-%m-%dT%H:%M:%S%:z")), " ".repeat(32))
            }
        };
        let mut text = String::new();
        for (index, line) in message.lines().enumerate() {
            match index {
                0 => text += &format!("{prefix}{origin}"),
                _ => text += &further,
            }
            // Names in it are chosen by others, and a terminal obeys escape sequences.
            text.extend(line.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }));
            text.push('\n');
        }
        text
    }
}

/// Syslog's number of a level: sd-daemon(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// SGR parameters. Source: ECMA-48, 8.3.117.
fn colour_of(level: Level) -> &'static str {
    match level {
        Level::Error => "31",
        Level::Warn => "33",
        Level::Info => "32",
        Level::Debug | Level::Trace => "2",
    }
}

struct Logger {
    form: Form,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        is_wanted(metadata.level(), metadata.target(), log::max_level())
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let message = record.args().to_string();
        let text =
            self.form.lines(record.level(), record.target(), &message, &ZonedDateTime::now());
        // One write per message, so that lines of two threads do not mix; a closed stderr is nobody to tell.
        let _ = io::stderr().lock().write_all(text.as_bytes());
    }

    fn flush(&self) {}
}

/// What other crates say about their insides is of use only to who wants all of it.
fn is_wanted(level: Level, target: &str, most: LevelFilter) -> bool {
    level <= most && (level <= Level::Warn || target.starts_with(OWN) || most == LevelFilter::Trace)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(form: Form, level: Level, message: &str) -> String {
        let now = "2026-11-24T17:05:09.5+01:00[Europe/Berlin]".parse().unwrap();
        form.lines(level, "traffic_agent::daemon", message, &now)
    }

    #[test]
    fn the_journal_gets_a_priority_and_no_time() {
        assert_eq!(lines(Form::Journal, Level::Error, "gone"), "<3>gone\n");
        assert_eq!(lines(Form::Journal, Level::Warn, "late"), "<4>late\n");
        assert_eq!(lines(Form::Journal, Level::Info, "ready"), "<6>ready\n");
        assert_eq!(lines(Form::Journal, Level::Debug, "x"), "<7>traffic_agent::daemon: x\n");
        assert_eq!(lines(Form::Journal, Level::Trace, "x"), "<7>traffic_agent::daemon: x\n");
    }

    #[test]
    fn each_line_of_a_message_has_its_priority_whatever_it_says() {
        assert_eq!(lines(Form::Journal, Level::Info, "a\n<0>b"), "<6>a\n<6>  <0>b\n");
        assert_eq!(lines(Form::Journal, Level::Info, ""), "");
    }

    #[test]
    fn a_terminal_gets_the_time_of_day_and_a_file_all_of_it() {
        let plain = Form::Terminal { colour: false };
        assert_eq!(lines(plain, Level::Info, "a\nb"), "17:05:09 info  a\n               b\n");
        let colour = Form::Terminal { colour: true };
        assert_eq!(
            lines(colour, Level::Error, "a"),
            "\x1b[2m17:05:09\x1b[0m \x1b[31merror\x1b[0m a\n"
        );
        assert_eq!(lines(Form::File, Level::Warn, "a"), "2026-11-24T17:05:09+01:00 warn  a\n");
    }

    #[test]
    fn escape_sequences_in_names_do_not_reach_the_terminal() {
        assert_eq!(lines(Form::Journal, Level::Info, "x\x1b[2J"), "<6>x\u{fffd}[2J\n");
    }

    #[test]
    fn the_journal_is_told_from_a_terminal_and_a_file_by_its_stream() {
        assert_eq!(Form::of(Some("9:1"), Some("9:1"), None), Form::Journal);
        assert_eq!(Form::of(Some("9:1"), Some("9:2"), None), Form::File);
        assert_eq!(Form::of(Some("9:1"), Some("9:2"), Some(true)), Form::Terminal { colour: true });
        assert_eq!(Form::of(None, None, None), Form::File);
    }

    #[test]
    fn others_are_heard_only_when_they_warn() {
        assert!(is_wanted(Level::Info, "traffic_ebpf", LevelFilter::Info));
        assert!(!is_wanted(Level::Debug, "traffic_agent", LevelFilter::Info));
        assert!(!is_wanted(Level::Info, "aya", LevelFilter::Debug));
        assert!(is_wanted(Level::Warn, "aya", LevelFilter::Info));
        assert!(is_wanted(Level::Debug, "aya", LevelFilter::Trace));
    }
}
