//! Installing Debian packages, as root, without starting any service.
//!
//! Nothing is ever removed or upgraded on purpose: a package that conflicts with an installed one is
//! an error, not a decision for this program.

use std::{
    ffi::OsString,
    fmt, fs,
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
    update_lists_without(&[package])?;
    Lists::own().unpack(package, directory, why)
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

/// Debian's key for its archive, all of its suites.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Package lists: the machine's own, or some of other suites that the machine knows nothing of.
pub struct Lists {
    /// What makes apt use them.
    options: Vec<OsString>,
    /// For messages.
    name: String,
}

impl fmt::Display for Lists {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.name)
    }
}

impl Lists {
    /// The machine's own.
    pub fn own() -> Self {
        Self { options: Vec::new(), name: "this machine's package lists".to_owned() }
    }

    /// Those of other suites, kept below `directory`. The machine's configuration stays as it is.
    ///
    /// Each suite comes with the ending of the machine's own suite whose mirror has it, too: `""` or
    /// `-security`.
    pub fn of_suites(directory: &Path, suites: &[(&str, &str)]) -> Result<Self> {
        let targets = command::output(Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(REPO_URI) $(CODENAME)",
            "Identifier: Packages",
        ]))?;
        let release = fs::read_to_string("/etc/os-release").context("cannot read os-release")?;
        let codename = release
            .lines()
            .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
            .context("this Debian has no code name")?;
        let lines = source_lines(&targets, codename, suites);
        let names: Vec<&str> = suites.iter().map(|&(suite, _)| suite).collect();
        let name = names.join(", ");
        if lines.is_empty() {
            bail!("no mirror of Debian is known here that could have {name}");
        }
        for below in ["lists/partial", "cache/archives/partial"] {
            let path = directory.join(below);
            fs::create_dir_all(&path)
                .with_context(|| format!("cannot create {}", path.display()))?;
        }
        let sources = directory.join("sources.list");
        fs::write(&sources, lines)
            .with_context(|| format!("cannot write {}", sources.display()))?;
        let settings = [
            ("Dir::Etc::SourceList", sources),
            ("Dir::Etc::SourceParts", "/dev/null".into()),
            ("Dir::State::Lists", directory.join("lists")),
            ("Dir::Cache", directory.join("cache")),
            ("APT::Sandbox::User", "root".into()),
        ];
        let mut options = Vec::new();
        for (setting, value) in settings {
            let mut option = OsString::from(format!("{setting}="));
            option.push(value);
            options.extend(["-o".into(), option]);
        }
        Ok(Self { options, name })
    }

    /// Fetches them.
    pub fn update(&self) -> Result<()> {
        if self.options.is_empty() {
            return update_lists();
        }
        command::run(apt_get().args(&self.options).arg("update"))
    }

    /// The names of all packages that match a regular expression.
    pub fn search(&self, pattern: &str) -> Result<Vec<String>> {
        let text = command::output(Command::new("apt-cache").args(&self.options).args([
            "search",
            "--names-only",
            pattern,
        ]))?;
        Ok(text.lines().filter_map(|line| Some(line.split_once(" - ")?.0.to_owned())).collect())
    }

    /// Unpacks a package below `directory`, without installing it: no script of it runs.
    pub fn unpack(&self, package: &str, directory: &Path, why: &str) -> Result<()> {
        announce(&format!("unpacking, needed {why}: {package}"));
        let _ = fs::remove_dir_all(directory);
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let download = || {
            // As root: apt's own user may not be able to write into the build directory.
            command::run(
                Command::new("apt-get")
                    .args(&self.options)
                    .args(["download", "-q", "-o", "APT::Sandbox::User=root", package])
                    .current_dir(directory),
            )
        };
        download()
            .or_else(|_| self.update().and_then(|()| download()))
            .with_context(|| format!("cannot download {package}, needed {why}"))?;
        let archive = fs::read_dir(directory)
            .with_context(|| format!("cannot read {}", directory.display()))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("apt-get download left no package for {package}"))?;
        command::run(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(directory))?;
        // What it holds is all that is needed of it.
        fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))
    }
}

/// Lines for apt, each a suite on the mirror that `targets` (mirror and code name of a suite, a line
/// each) has for the suite `codename` with the same ending.
fn source_lines(targets: &str, codename: &str, suites: &[(&str, &str)]) -> String {
    let mirror = |ending: &str| {
        targets
            .lines()
            .filter_map(|line| line.split_once(' '))
            .find(|(_, name)| name.strip_prefix(codename) == Some(ending))
            .map(|(mirror, _)| mirror)
    };
    suites
        .iter()
        .filter_map(|&(suite, ending)| {
            Some(format!("deb [signed-by={KEYRING}] {} {suite} main\n", mirror(ending)?))
        })
        .collect()
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
    fn a_suite_is_looked_for_where_the_machine_has_its_like() {
        let targets = "http://a.example/debian/ bookworm\n\
                       http://a.example/debian/ bookworm-updates\n\
                       http://b.example/security/ bookworm-security\n\
                       http://c.example/ nodistro\n";
        assert_eq!(
            source_lines(
                targets,
                "bookworm",
                &[("trixie", ""), ("bullseye-security", "-security")]
            ),
            format!(
                "deb [signed-by={KEYRING}] http://a.example/debian/ trixie main\n\
                 deb [signed-by={KEYRING}] http://b.example/security/ bullseye-security main\n"
            )
        );
        assert_eq!(source_lines(targets, "sid", &[("trixie", "")]), "");
    }

    #[test]
    fn a_package_without_candidate_is_not_counted() {
        let policy = "ufw:\n  Installed: (none)\n  Candidate: 0.36.2-1\n  Version table:\n\
                      nosuch:\n  Installed: (none)\n  Candidate: (none)\n";
        assert_eq!(candidates(policy), 1);
        assert_eq!(candidates(""), 0);
    }
}
