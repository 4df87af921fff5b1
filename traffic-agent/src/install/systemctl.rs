//! systemd, by `systemctl`.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use super::unit;
use crate::install::Unit;

/// Why systemd did not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is none.
    #[error(
        "systemd does not run this host, so there are no units; measure with `traffic-agent run` alone"
    )]
    NoSystemd,
    /// It could not be started.
    #[error("cannot run {program}")]
    Start {
        /// What.
        program: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It refused.
    #[error("`{command}` failed: {said}")]
    Failed {
        /// All of it.
        command: String,
        /// What it said on stderr.
        said: String,
    },
    /// The unit cannot be moved.
    #[error(transparent)]
    Unit(#[from] unit::Refusal),
}

/// Whether systemd runs here, as sd_booted(3) has it.
pub fn check_booted() -> Result<(), Error> {
    Path::new("/run/systemd/system").is_dir().then_some(()).ok_or(Error::NoSystemd)
}

/// Runs `systemctl`; returns its stdout.
pub fn systemctl(arguments: &[&str]) -> Result<String, Error> {
    run("systemctl", arguments)
}

/// Runs a program to its end; returns its stdout.
pub fn run(program: &str, arguments: &[&str]) -> Result<String, Error> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .env("SYSTEMD_PAGER", "")
        .env("SYSTEMD_COLORS", "0")
        .env("LC_ALL", "C.UTF-8")
        .output()
        .map_err(|source| Error::Start { program: program.to_owned(), source })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let said = if said.is_empty() { output.status.to_string() } else { said };
        return Err(Error::Failed { command: format!("{program} {}", arguments.join(" ")), said });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Looks a unit up.
pub fn show(name: &str) -> Result<Unit, Error> {
    let text = systemctl(&["show", "--property", unit::PROPERTIES, "--", name])?;
    Ok(unit::read(name, &text)?)
}

/// One property of a unit.
pub fn property(unit: &str, name: &str) -> Result<String, Error> {
    let text = systemctl(&["show", "--value", "--property", name, "--", unit])?;
    Ok(text.trim_end_matches('\n').to_owned())
}
