//! A real systemd as PID 1 of namespaces of its own: up in less than a second, without a machine.
//!
//! It sees the host's files through an overlay whose writable layer is memory, a bpffs and a `/run` of
//! its own, and a cgroup of the lab as the root of its tree. Its network is a [`Namespace`], so a unit's
//! traffic can be captured at the far ends of a [`crate::Lab`]. Nothing of the host is changed, and all of
//! it, pins included, is gone when [`Systemd`] is dropped or the test that holds it is killed.
//!
//! What runs inside up to the start of systemd is in [`boot`].

pub mod boot;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::cgroup::CountedCgroup;
use crate::namespace::Namespace;
use crate::process::{Place, Process, find_program};
use crate::role::Role;

/// How long systemd may take to come up on a machine that does other things: usually 0.6 s.
const UP_WITHIN: Duration = Duration::from_secs(60);

/// How long what was killed may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// What is there when systemd starts, besides the host's own files.
#[derive(Debug, Clone, Copy)]
pub struct Setup<'a> {
    /// A program that begins with [`crate::role::run_from_environment`], and does so before it has threads.
    pub program: &'a Path,
    /// The network of systemd and of all its units.
    pub namespace: &'a Namespace,
    /// Files by their absolute path inside, and their content: units below `/etc/systemd/system`.
    pub files: &'a [(&'a str, &'a str)],
    /// Programs of the host, and where they are to be seen inside.
    pub programs: &'a [(&'a Path, &'a str)],
}

/// A running systemd. Dropped, it is killed with all its units, and nothing of it is left.
#[derive(Debug)]
pub struct Systemd {
    /// Before the cgroup, which can only be removed when it is empty.
    outer: Process,
    pid: u32,
    cgroup: CountedCgroup,
    /// Removed with it.
    _directory: TempDir,
}

impl Systemd {
    /// Starts it and waits until it has reached its default target, which has no unit but systemd's own:
    /// those of [`Setup::files`] are there, and not started.
    ///
    /// Needs root, and the programs of the packages systemd and util-linux.
    pub fn start(setup: Setup<'_>) -> Result<Self> {
        for (program, package) in [("systemctl", "systemd"), ("nsenter", "util-linux")] {
            ensure!(
                find_program(program).is_some(),
                "{program} is not here: install the package {package}"
            );
        }
        let directory = TempDir::with_prefix("ta-systemd-").context("no place for its files")?;
        for (inside, content) in setup.files {
            let file = beneath(&directory.path().join(boot::FILES), inside)?;
            fs::create_dir_all(file.parent().context("a file without a directory")?)?;
            fs::write(&file, content)?;
        }
        let programs = setup.programs.iter().map(|(outside, inside)| {
            let outside = outside.to_str().context("a program's path is not UTF-8")?;
            Ok(format!("{outside}\t{inside}\n"))
        });
        fs::write(directory.path().join(boot::PROGRAMS), programs.collect::<Result<String>>()?)?;

        let cgroup = CountedCgroup::new("systemd")?;
        let role = Role::Systemd { directory: directory.path().to_owned() };
        let command = role.command_of(setup.program);
        let place =
            Place { namespace: Some(setup.namespace), cgroup: Some(&cgroup), ..Place::default() };
        let mut outer = Process::spawn(command, place)?;
        let pid = boot::wait_for_pid(&mut outer, directory.path())?;
        let mut systemd = Self { outer, pid, cgroup, _directory: directory };
        systemd.wait_until_up()?;
        Ok(systemd)
    }

    fn wait_until_up(&mut self) -> Result<()> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.outer.poll()? {
                bail!("systemd ended with {status}: {}", self.outer.log());
            }
            // It answers as soon as its private socket is there.
            let state = self.output("systemctl", ["is-system-running", "--wait"])?;
            match String::from_utf8_lossy(&state.stdout).trim() {
                "running" => return Ok(()),
                "degraded" => {
                    let failed = self.systemctl(["--failed", "--no-legend", "--plain"])?;
                    bail!("units of systemd failed: {failed}");
                }
                _ => {}
            }
            if begin.elapsed() > UP_WITHIN {
                bail!("systemd is not up after {UP_WITHIN:?}: {state:?}{}", self.outer.log());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The pid of systemd, as the host sees it.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Where the host sees a file of the inside, for reading and writing.
    pub fn path(&self, inside: &str) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.pid));
        root.join(inside.trim_start_matches('/'))
    }

    /// Writes a file inside, mode 0644, and the directories above it.
    pub fn write(&self, inside: &str, content: &str) -> Result<()> {
        let path = self.path(inside);
        fs::create_dir_all(path.parent().context("a file without a directory")?)?;
        fs::write(&path, content).with_context(|| format!("cannot write {inside}"))?;
        Ok(fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?)
    }

    /// Reads a file inside.
    pub fn read(&self, inside: &str) -> Result<String> {
        fs::read_to_string(self.path(inside)).with_context(|| format!("cannot read {inside}"))
    }

    /// Where the host sees a cgroup of the inside, such as `/system.slice`.
    pub fn cgroup(&self, inside: &str) -> PathBuf {
        self.cgroup.path().join(inside.trim_start_matches('/'))
    }

    /// A command that will run inside, as root, in no unit, with an empty environment but for `PATH`.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg("--target").arg(self.pid.to_string()).args(["--all", "--"]).arg(program);
        command.env_clear().env("PATH", boot::PATH).env("LC_ALL", "C.UTF-8");
        command.env("SYSTEMD_PAGER", "").env("SYSTEMD_COLORS", "0");
        command.stdin(Stdio::null());
        command
    }

    /// Runs a program inside to its end, whatever it is.
    pub fn output<S: AsRef<OsStr>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Output> {
        let mut command = self.command(program);
        command.args(arguments).output().with_context(|| format!("cannot run {program} inside"))
    }

    /// Runs a program inside and returns its stdout; an error with its stderr unless it exits with 0.
    pub fn run<S: AsRef<OsStr>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<String> {
        let arguments: Vec<_> = arguments.into_iter().map(|one| one.as_ref().to_owned()).collect();
        let output = self.output(program, &arguments)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        ensure!(
            output.status.success(),
            "{program} {arguments:?}: {}: {}{}",
            output.status,
            text(&output.stderr),
            text(&output.stdout)
        );
        Ok(text(&output.stdout))
    }

    /// Runs `systemctl` inside and returns its stdout; an error unless it exits with 0.
    pub fn systemctl<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<String> {
        self.run("systemctl", arguments)
    }

    /// A property of a unit, as `systemctl show --property` has it.
    pub fn property(&self, unit: &str, name: &str) -> Result<String> {
        let value = self.systemctl(["show", "--value", "--property", name, unit])?;
        Ok(value.trim_end_matches('\n').to_owned())
    }

    /// The main process of a unit, as the host sees it.
    pub fn main_pid(&self, unit: &str) -> Result<u32> {
        let inside: u32 = self.property(unit, "MainPID")?.parse()?;
        ensure!(inside != 0, "{unit} has no main process\n{}", self.journal(unit)?);
        let path = self.property(unit, "ControlGroup")?;
        let members = fs::read_to_string(self.cgroup(&path).join("cgroup.procs"))?;
        let is_it = |pid: &u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            line.and_then(|pids| pids.split_whitespace().last()) == Some(&inside.to_string())
        };
        let found = members.lines().filter_map(|line| line.parse().ok()).find(is_it);
        found.with_context(|| format!("process {inside} of {unit} is not in its cgroup {path}"))
    }

    /// What a unit has written, and systemd about it.
    pub fn journal(&self, unit: &str) -> Result<String> {
        // What was written before now; journald takes its time.
        self.run("journalctl", ["--sync"])?;
        self.run("journalctl", ["--no-pager", "--output=short-precise", "--unit", unit])
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        // PID 1 first, which takes all others along, so that the outer process reaps it and ends. Until
        // that has ended the pid is nobody else's.
        if let (Ok(None), Ok(pid)) = (self.outer.poll(), i32::try_from(self.pid)) {
            // Both fail only if it is gone already; what is left is killed with the cgroup.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            let _ = self.outer.wait(GONE_WITHIN);
        }
    }
}

/// The place of an absolute path below another root.
fn beneath(root: &Path, inside: &str) -> Result<PathBuf> {
    let relative = inside.strip_prefix('/').with_context(|| format!("{inside} is not absolute"))?;
    Ok(root.join(relative))
}
