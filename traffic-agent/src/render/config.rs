//! What `config check` found: what is in force and who said so, or all that is wrong.

use std::io::{self, Write};

use super::Options;
use super::text::{Grid, Style, tame};
use crate::config::report::{ConfigReport, TargetReport};

/// Writes the problems, or settings and targets.
pub fn write(report: &ConfigReport, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    if !report.valid {
        for problem in &report.problems {
            let labels = [problem.place.as_str(), problem.key.as_str()];
            for label in labels.iter().filter(|label| !label.is_empty()) {
                write!(out, "{}: ", tame(label))?;
            }
            // A message may hold lines to paste.
            let lines: Vec<String> = problem.message.lines().map(tame).collect();
            writeln!(out, "{}", lines.join("\n"))?;
        }
        return Ok(());
    }
    let note = if report.file_exists { "" } else { " (does not exist: defaults)" };
    writeln!(out, "{}{note}\n", tame(&report.file))?;
    let mut grid = Grid::new(&[("setting", '<'), ("in force", '<'), ("from", '<')], options);
    for setting in &report.settings {
        let style = if setting.origin == "default" { Style::Dim } else { Style::Plain };
        let place = match setting.place.as_str() {
            "" => setting.origin,
            place => place,
        };
        let cells = [setting.key, setting.value.as_str(), place];
        grid.styled_row(cells.map(|cell| (cell.to_owned(), style)));
    }
    grid.write(out)?;
    writeln!(out)?;
    if report.targets.is_empty() {
        return writeln!(out, "no target: only the host is counted");
    }
    let mut grid = Grid::new(
        &[("target", '<'), ("counts", '<'), ("ports", '<'), ("estimates", '<'), ("unbilled", '<')],
        options,
    );
    report.targets.iter().for_each(|target| grid.row(row(target)));
    grid.write(out)
}

fn row(target: &TargetReport) -> [String; 5] {
    let list = |words: &[String], none: &str| match words {
        [] => none.to_owned(),
        words => words.join(", "),
    };
    [
        target.name.clone(),
        list(&target.targets, ""),
        list(&target.ports, "as found"),
        list(&target.estimate_ports, "all ports"),
        list(&target.unbilled, "none"),
    ]
}
