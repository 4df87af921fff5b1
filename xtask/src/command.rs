//! Running other programs, with errors that name the program and what it was asked to do.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// Runs a program to its end; its output goes where ours goes.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| cannot_run(command))?;
    if !status.success() {
        bail!("{} ended with {status}", describe(command));
    }
    Ok(())
}

/// Runs a program and returns its standard output, without the white space at its ends.
pub fn output(command: &mut Command) -> Result<String> {
    let text = String::from_utf8(output_bytes(command)?)
        .with_context(|| format!("{} printed something other than UTF-8", describe(command)))?;
    Ok(text.trim().to_owned())
}

/// Runs a program and returns its standard output as it is.
pub fn output_bytes(command: &mut Command) -> Result<Vec<u8>> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .with_context(|| cannot_run(command))?;
    if !output.status.success() {
        bail!(
            "{} ended with {}: {}",
            describe(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(output.stdout)
}

/// Returns where a program is: `$PATH`, then the given directories.
pub fn find(program: &str, beyond: &[&str]) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(beyond.iter().map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| is_program(candidate))
}

/// Tells whether a path is a file that somebody may execute.
pub fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

/// Returns a value for `$PATH` that looks into `first` before all else.
pub fn path_with(first: &Path) -> Result<std::ffi::OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::join_paths(std::iter::once(first.to_owned()).chain(env::split_paths(&path)))
        .with_context(|| format!("{} cannot be part of $PATH", first.display()))
}

/// Prints what is about to happen, on stderr.
pub fn announce(what: &str) {
    eprintln!("xtask: {what}");
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line = words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ");
    format!("`{line}`")
}

fn cannot_run(command: &Command) -> String {
    format!("cannot run {}", describe(command))
}
