//! Installing Debian packages, as root, without starting any service.
//!
//! Nothing is ever removed or upgraded on purpose: a package that conflicts with an installed one is
//! an error, not a decision for this program.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::command::{self, announce};

/// Keeps packages from asking questions.
const QUIET: (&str, &str) = ("DEBIAN_FRONTEND", "noninteractive");

/// Tells whether this machine installs packages with apt.
pub fn is_here() -> bool {
    Path::new("/etc/debian_version").exists() && command::find("apt-get", &[]).is_some()
}

/// Tells whether we may install packages.
pub fn is_root() -> bool {
    nix::unistd::Uid::effective().is_root()
}

/// Tells whether a package is installed.
pub fn is_installed(package: &str) -> bool {
    command::output(Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package]))
        .is_ok_and(|status| status == "installed")
}

/// Installs what is missing of `packages`; `why` completes the sentence "needed ...".
pub fn install(packages: &[&str], why: &str) -> Result<()> {
    let missing: Vec<&str> = packages.iter().copied().filter(|name| !is_installed(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let line = missing.join(" ");
    if !is_here() {
        bail!("missing, needed {why}; install what Debian calls: {line}");
    }
    if !is_root() {
        bail!("missing, needed {why}; install it with: sudo apt-get install {line}");
    }
    announce(&format!("installing, needed {why}: {line}"));
    update_lists_without(&missing)?;
    // In two steps, since the second may see neither systemd nor its name resolution.
    let attempt = || {
        let install = ["install", "--yes", "--no-install-recommends", "--no-remove"];
        command::run(apt_get().args(install).arg("--download-only").args(&missing))?;
        command::run(
            without_services(apt_get().args(install).args(&missing))?.env(QUIET.0, QUIET.1),
        )
    };
    // The lists may name versions that the archive has replaced since: once more with fresh ones.
    attempt()
        .or_else(|_| update_lists().and_then(|()| attempt()))
        .with_context(|| format!("cannot install what is needed {why}: {line}"))
}

/// Unpacks a package below `directory`, without installing it: no script of it runs.
pub fn unpack(package: &str, directory: &Path, why: &str) -> Result<()> {
    if !is_here() {
        bail!("missing, needed {why}: {package}");
    }
    announce(&format!("unpacking, needed {why}: {package}"));
    update_lists_without(&[package])?;
    let _ = fs::remove_dir_all(directory);
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let download = || {
        // As root: apt's own user may not be able to write into the build directory.
        command::run(
            Command::new("apt-get")
                .args(["download", "-q", "-o", "APT::Sandbox::User=root", package])
                .current_dir(directory),
        )
    };
    download()
        .or_else(|_| update_lists().and_then(|()| download()))
        .with_context(|| format!("cannot download {package}, needed {why}"))?;
    let archive = fs::read_dir(directory)
        .with_context(|| format!("cannot read {}", directory.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get download left no package for {package}"))?;
    command::run(Command::new("dpkg-deb").arg("--extract").arg(archive).arg(directory))
}

/// Fetches the package lists if one of `packages` is unknown without.
fn update_lists_without(packages: &[&str]) -> Result<()> {
    let policy = command::output(Command::new("apt-cache").arg("policy").args(packages))?;
    if candidates(&policy) < packages.len() { update_lists() } else { Ok(()) }
}

fn update_lists() -> Result<()> {
    if !is_root() {
        bail!("the package lists are missing or old; run: sudo apt-get update");
    }
    command::run(apt_get().arg("update"))
}

/// How many packages `apt-cache policy` can offer.
fn candidates(policy: &str) -> usize {
    policy
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Candidate: "))
        .filter(|version| *version != "(none)")
        .count()
}

/// A call of apt-get that asks nothing.
fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.arg("-q").env(QUIET.0, QUIET.1).stdin(Stdio::null());
    command
}

/// Lets a program run where it cannot start services.
///
/// Where systemd runs, the installation of `ufw` and its like would start them. In a mount namespace
/// that hides systemd it cannot; unlike a `policy-rc.d` file this leaves nothing behind, however it
/// ends. (The package of `ufw` has its service start at boot, where it does nothing until somebody
/// says `ufw enable`.)
fn without_services(command: &Command) -> Result<Command> {
    if !Path::new("/run/systemd/system").is_dir() {
        let mut same = Command::new(command.get_program());
        same.args(command.get_args()).stdin(Stdio::null());
        return Ok(same);
    }
    if command::find("unshare", &[]).is_none() {
        bail!("unshare (package util-linux) is missing: without it services would be started");
    }
    let mut wrapped = Command::new("unshare");
    wrapped
        .args([
            "--mount",
            "--",
            "sh",
            "-euc",
            "mount -t tmpfs tmpfs /run/systemd; exec \"$@\"",
            "sh",
        ])
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::null());
    Ok(wrapped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_without_candidate_is_not_counted() {
        let policy = "ufw:\n  Installed: (none)\n  Candidate: 0.36.2-1\n  Version table:\n\
                      nosuch:\n  Installed: (none)\n  Candidate: (none)\n";
        assert_eq!(candidates(policy), 1);
        assert_eq!(candidates(""), 0);
    }
}
