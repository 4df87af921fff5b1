//! From reports to text: tables for people, JSON and CSV for scripts.
//!
//! Every writer takes where to write and returns what writing returned; a closed pipe is the caller's
//! to take calmly. Nothing here measures, and no figure is made that is not in the report.

use std::{env, io::IsTerminal};

use comfy_table::Table;

use crate::units::Units;

mod bar;
pub mod config;
pub mod csv;
pub mod demo;
pub mod doctor;
mod exec;
#[cfg(test)]
mod fixture;
pub mod interval;
pub mod json;
mod methods;
pub mod past;
pub mod past_csv;
pub mod past_host;
pub mod progress;
pub mod selftest;
pub mod status;
pub mod table;
mod text;
pub mod trace;

/// How wide text is where no terminal says it.
pub const DEFAULT_WIDTH: u16 = 100;

/// How a report for people looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Units of bytes.
    pub units: Units,
    /// Whether to use colours and bold type.
    pub colour: bool,
    /// Columns of the terminal. Text is wrapped to it; figures are never broken.
    pub width: u16,
    /// Whether what is not ASCII is shown as what it is: bars are drawn otherwise where it is not.
    pub unicode: bool,
    /// Whether to show all counters, the interfaces and protocols, and the rules of a method.
    pub verbose: bool,
}

/// Where a report for people goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the streams' own")]
pub enum Stream {
    Stdout,
    Stderr,
    /// A file or a pipe: plain text.
    File,
}

impl Options {
    /// Returns what suits a stream: colours only on a terminal that has some and where `NO_COLOR` does
    /// not say otherwise (no-color.org), the width of the terminal or [`DEFAULT_WIDTH`].
    pub fn detect(stream: Stream, units: Units, verbose: bool) -> Self {
        let mut table = Table::new();
        let terminal = match stream {
            Stream::Stdout => std::io::stdout().is_terminal(),
            Stream::Stderr => {
                table.use_stderr();
                std::io::stderr().is_terminal()
            }
            Stream::File => {
                table.force_no_tty();
                false
            }
        };
        let no_color = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
        // A pseudo-terminal that nobody has sized says 0.
        let width = table.width().filter(|width| *width != 0).unwrap_or(DEFAULT_WIDTH);
        Self {
            units,
            colour: terminal && !no_color && !dumb,
            width,
            unicode: is_utf8_locale(|name| env::var(name).ok()),
            verbose,
        }
    }

    /// Returns plain text of the default width.
    pub fn plain(units: Units, verbose: bool) -> Self {
        Self { units, colour: false, width: DEFAULT_WIDTH, unicode: true, verbose }
    }
}

/// Whether the locale's characters are those of UTF-8: the first of these that is set says so, as in
/// setlocale(3).
fn is_utf8_locale(variable: impl Fn(&str) -> Option<String>) -> bool {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
        .iter()
        .filter_map(|name| variable(name))
        .find(|value| !value.is_empty())
        .unwrap_or_default()
        .to_ascii_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}
