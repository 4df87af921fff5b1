//! Manual pages: one for each command, and one for the configuration, made of the default file.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use clap::{Command, CommandFactory as _};
use roff::{Inline, Roff, bold, line_break, roman};

use super::DONE;
use super::config::DEFAULT_TEXT;
use crate::cli::Cli;

/// Name of the page of the configuration, in section 5.
const CONFIGURATION: &str = "traffic-agent-config";

/// Prints the page of the program, or writes all pages into a directory; returns the exit status.
pub fn run(directory: Option<&Path>) -> Result<i32> {
    match directory {
        None => {
            let mut text = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut text)?;
            io::stdout().write_all(&text)?;
        }
        Some(directory) => write(directory)
            .with_context(|| format!("cannot write into {}", directory.display()))?,
    }
    Ok(DONE)
}

fn write(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    // `help` repeats what each page says.
    let command = Cli::command().disable_help_subcommand(true).mut_subcommands(without_help);
    clap_mangen::generate_to(command, directory)?;
    fs::write(directory.join(format!("{CONFIGURATION}.5")), configuration())
}

fn without_help(command: Command) -> Command {
    command.disable_help_subcommand(true).mut_subcommands(without_help)
}

/// The default file as a manual page: its headings, and its settings with what stands above each.
fn configuration() -> String {
    let version = concat!("traffic-agent ", env!("CARGO_PKG_VERSION"));
    let mut page = Roff::new();
    page.control("TH", [CONFIGURATION, "5", "", version]);
    page.control("SH", ["NAME"]);
    page.text([roman(format!(
        "{CONFIGURATION} - configuration of the daemon, `traffic-agent run`"
    ))]);
    page.control("SH", ["DESCRIPTION"]);
    for block in DEFAULT_TEXT.split("\n\n") {
        block_of(&mut page, block);
    }
    page.control("SH", ["SEE ALSO"]);
    page.text([
        bold("traffic-agent"),
        roman("(1), "),
        bold("traffic-agent-run"),
        roman("(1), "),
        bold("traffic-agent-config-check"),
        roman("(1)"),
    ]);
    page.render()
}

/// Lines without an empty one between them: a heading, or text and the settings that it is about.
fn block_of(page: &mut Roff, block: &str) {
    let mut settings = Vec::new();
    let mut text: Vec<Inline> = Vec::new();
    for line in block.lines() {
        let comment = line.strip_prefix("# ").or_else(|| (line == "#").then_some(""));
        match (line.strip_prefix("#### "), comment) {
            (Some(heading), _) => {
                page.control("SH", [heading.to_uppercase().as_str()]);
            }
            (None, Some("")) => text.extend([line_break(), line_break()]),
            // What is indented, and the names of flags and variables, have lines of their own.
            (None, Some(line)) if line.starts_with("  ") || line.starts_with("--") => {
                text.extend([line_break(), roman(line.trim_start()), roman(" ")]);
            }
            (None, Some(line)) => text.push(roman(format!("{line} "))),
            (None, None) => settings.extend(line.strip_prefix('#')),
        }
    }
    match settings.as_slice() {
        [] if text.is_empty() => return,
        [] => {
            page.control("PP", []);
        }
        [first, others @ ..] => {
            page.control("TP", []);
            page.text([bold(*first)]);
            for other in others {
                page.control("TQ", []);
                page.text([bold(*other)]);
            }
        }
    }
    page.text(text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings;

    #[test]
    fn the_page_of_the_configuration_has_every_setting() {
        let page = configuration();
        for setting in settings::ALL {
            // As roff has them: a hyphen is a minus only if it says so.
            let key = setting.key.rsplit('.').next().unwrap_or_default();
            for word in [key, setting.variable, setting.flag] {
                assert!(page.replace(r"\-", "-").contains(word), "{word} is missing");
            }
        }
        assert!(
            page.contains(".TH traffic\\-agent\\-config 5")
                || page.contains(".TH traffic-agent-config 5")
        );
    }

    #[test]
    fn every_command_has_a_page() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path()).unwrap();
        for name in [
            "traffic-agent.1",
            "traffic-agent-run.1",
            "traffic-agent-config-check.1",
            "traffic-agent-config.5",
        ] {
            assert!(directory.path().join(name).is_file(), "{name} is missing");
        }
        let pages = fs::read_dir(directory.path()).unwrap().flatten();
        assert!(!pages.into_iter().any(|page| page.file_name().to_string_lossy().contains("help")));
    }
}
