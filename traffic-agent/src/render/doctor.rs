//! What `doctor` found: a line per check for people; for scripts see [`super::json`].

use std::io::{self, Write};

use super::{
    Options,
    text::{Style, tame, write_labelled},
};
use crate::check::{CheckStatus, DoctorReport};

/// Columns before a check's name: the longest status and two spaces.
const STATUS: usize = 9;

/// Writes a line per check, what to do below it, and the commands that measure what was found.
pub fn write(report: &DoctorReport, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    let name = report.checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
    for check in &report.checks {
        let (status, style) = match check.status {
            CheckStatus::Ok => ("ok", Style::Green),
            CheckStatus::Warning => ("warning", Style::Yellow),
            CheckStatus::Error => ("error", Style::Red),
        };
        let labels = [(status, style, STATUS), (check.name, Style::Plain, name + 2)];
        write_labelled(&labels, &check.message, options, out)?;
        if let Some(remedy) = &check.remedy {
            let indent = [("", Style::Plain, STATUS + name + 2)];
            write_labelled(&indent, &format!("remedy: {remedy}"), options, out)?;
        }
    }
    if report.candidates.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nRunning proxies that can be measured:")?;
    for candidate in &report.candidates {
        match &candidate.command {
            Some(command) => writeln!(out, "  {}", tame(command))?,
            None => writeln!(
                out,
                "  (in cgroup {}, which it shares with the rest of the host)",
                tame(&candidate.cgroup.path)
            )?,
        }
    }
    Ok(())
}
