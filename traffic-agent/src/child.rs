//! Runs a command in a fresh cgroup of its own, for `exec` and `compare -- CMD`.
//!
//! The command's process enters the cgroup before its first instruction, so every socket it makes is
//! born there. The cgroup is a child of the agent's own: limits that hold for the agent hold for the
//! command too, and a descendant that outlives it is put back there.

use std::{
    ffi::{CString, OsString},
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::{
        fd::AsFd,
        unix::{fs::MetadataExt as _, process::ExitStatusExt as _},
    },
    path::{Path, PathBuf},
    process::ExitStatus,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{SigSet, SigmaskHow, kill, sigprocmask},
    unistd::{Gid, Pid, Uid, User, getgrouplist, setgid, setgroups, setuid},
};
use tokio::process::Command;

use crate::{report, signals::Signals};

/// Exit status: the agent itself failed.
pub const AGENT_FAILED: i32 = 125;
/// Exit status: the command was found but could not be executed.
pub const NOT_EXECUTABLE: i32 = 126;
/// Exit status: the command was not found.
pub const NOT_FOUND: i32 = 127;

/// Begin of the name of every cgroup made here; the agent's pid follows.
const CGROUP_PREFIX: &str = "traffic-agent-exec-";
/// Added to an errno from before the command's `execve`, which is how the parent tells them apart.
const BEFORE_EXEC: i32 = 1 << 16;

/// Why a command could not be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cgroup could not be made.
    #[error("cannot create cgroup {}: run as root, on a host with cgroup v2 mounted writable", path.display())]
    Create {
        /// Its directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No such user.
    #[error("there is no user `{name}`: `getent passwd` lists those there are")]
    NoSuchUser {
        /// As given.
        name: String,
    },
    /// The user database could not be read.
    #[error("cannot look up user `{name}`")]
    LookUpUser {
        /// As given.
        name: String,
        /// Why.
        #[source]
        source: nix::Error,
    },
    /// The new process could not enter the cgroup or take on the user.
    #[error("cannot move the command into its cgroup {} or give it its user", path.display())]
    Prepare {
        /// The cgroup's directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The command does not exist.
    #[error("command not found: {}", command.display())]
    NotFound {
        /// As given.
        command: OsString,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The command exists but cannot be executed.
    #[error("cannot execute {}: is it executable, and for this machine?", command.display())]
    NotExecutable {
        /// As given.
        command: OsString,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Signals or waiting failed.
    #[error("cannot wait for the command")]
    Wait(#[source] io::Error),
}

impl Error {
    /// The exit status that stands for it, as `env` and `timeout` have it.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::NotFound { .. } => NOT_FOUND,
            Self::NotExecutable { .. } => NOT_EXECUTABLE,
            _ => AGENT_FAILED,
        }
    }
}

/// A cgroup of our own, removed when dropped.
#[derive(Debug)]
pub struct FreshCgroup {
    directory: PathBuf,
    parent: PathBuf,
    id: u64,
    removed: bool,
}

/// A process that outlived the command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survivor {
    /// Its pid.
    pub pid: i32,
    /// Its name, as in /proc/PID/comm; empty if it ended meanwhile.
    pub name: String,
}

impl FreshCgroup {
    /// Makes a cgroup below `parent`, the directory of the agent's own.
    pub fn create(parent: &Path) -> Result<Self, Error> {
        remove_stale(parent);
        let directory = parent.join(format!("{CGROUP_PREFIX}{}", std::process::id()));
        let create_error = |source| Error::Create { path: directory.clone(), source };
        fs::create_dir(&directory).map_err(create_error)?;
        let id = fs::metadata(&directory).map_err(create_error)?.ino();
        Ok(Self { directory, parent: parent.to_owned(), id, removed: false })
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its id: the inode of the directory.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Removes the cgroup. Processes that are still in it go on in the parent cgroup, and are returned.
    pub fn remove(mut self) -> io::Result<Vec<Survivor>> {
        self.removed = true;
        self.evacuate()
    }

    fn evacuate(&self) -> io::Result<Vec<Survivor>> {
        let mut survivors = Vec::new();
        // Not for ever: a process that forks faster than it is moved would keep us here.
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            for directory in subtree(&self.directory) {
                for pid in members(&directory) {
                    // One that ends meanwhile needs no new place.
                    if fs::write(self.parent.join("cgroup.procs"), pid.to_string()).is_ok() {
                        let name = fs::read_to_string(format!("/proc/{pid}/comm"))
                            .map(|name| name.trim_end().to_owned())
                            .unwrap_or_default();
                        survivors.push(Survivor { pid, name });
                    }
                }
            }
            // Children first, as rmdir wants it.
            let removed = subtree(&self.directory).iter().rev().try_for_each(fs::remove_dir);
            match removed {
                Ok(()) => return Ok(survivors),
                // A process that has ended but is not gone yet keeps its cgroup busy for a moment.
                Err(error)
                    if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline =>
                {
                    thread::sleep(Duration::from_millis(5));
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for FreshCgroup {
    fn drop(&mut self) {
        if !self.removed
            && let Err(error) = self.evacuate()
        {
            // A closed stderr is nobody to tell.
            let _ = writeln!(
                io::stderr(),
                "traffic-agent: cannot remove cgroup {}: {error}",
                self.directory.display()
            );
        }
    }
}

/// Removes what a killed agent left behind, if nothing runs in it any more.
fn remove_stale(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(CGROUP_PREFIX)?.parse().ok());
        if let Some(pid) = pid
            && kill(Pid::from_raw(pid), None) == Err(nix::Error::ESRCH)
        {
            for directory in subtree(&entry.path()).iter().rev() {
                // Refused while something still runs in it, which is as it should be.
                let _ = fs::remove_dir(directory);
            }
        }
    }
}

/// Returns a directory and all below it, parents before children.
fn subtree(directory: &Path) -> Vec<PathBuf> {
    let mut found = vec![directory.to_owned()];
    let mut next = 0;
    while let Some(directory) = found.get(next) {
        if let Ok(entries) = fs::read_dir(directory) {
            let children = entries
                .flatten()
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path())
                .collect::<Vec<_>>();
            found.extend(children);
        }
        next += 1;
    }
    found
}

fn members(directory: &Path) -> Vec<i32> {
    fs::read_to_string(directory.join("cgroup.procs"))
        .map(|pids| pids.lines().filter_map(|pid| pid.parse().ok()).collect())
        .unwrap_or_default()
}

/// A user that the command runs as, looked up before anything starts.
#[derive(Debug)]
pub struct RunAs {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    name: String,
    home: PathBuf,
}

impl RunAs {
    /// Looks up a user and its groups.
    pub fn look_up(name: &str) -> Result<Self, Error> {
        let look_up = |source| Error::LookUpUser { name: name.to_owned(), source };
        let user = User::from_name(name)
            .map_err(look_up)?
            .ok_or_else(|| Error::NoSuchUser { name: name.to_owned() })?;
        let c_name = CString::new(name).map_err(|_| Error::NoSuchUser { name: name.to_owned() })?;
        let groups = getgrouplist(&c_name, user.gid).map_err(look_up)?;
        Ok(Self { uid: user.uid, gid: user.gid, groups, name: user.name, home: user.dir })
    }
}

/// A running command.
pub struct Running {
    child: tokio::process::Child,
}

impl Running {
    /// Starts a command in a cgroup. Its input, output and environment are the agent's own.
    pub fn start(
        command: &[OsString],
        cgroup: &FreshCgroup,
        user: Option<&RunAs>,
        signals: &Signals,
    ) -> Result<Self, Error> {
        let (program, arguments) = command.split_first().ok_or_else(|| Error::NotFound {
            command: OsString::new(),
            source: io::ErrorKind::NotFound.into(),
        })?;
        let prepare_error = |source| Error::Prepare { path: cgroup.directory.clone(), source };
        let procs = OpenOptions::new()
            .write(true)
            .open(cgroup.directory.join("cgroup.procs"))
            .map_err(prepare_error)?;

        let mut prepared = Command::new(program);
        prepared.args(arguments);
        if let Some(user) = user {
            prepared.env("HOME", &user.home).env("USER", &user.name).env("LOGNAME", &user.name);
        }
        let identity = user.map(|user| (user.uid, user.gid, user.groups.clone()));
        let mask = signals.previous_mask();
        let enter = move || enter(&procs, identity.as_ref(), &mask);
        // SAFETY: between fork and exec only system calls are made, on values prepared before.
        unsafe { prepared.pre_exec(enter) };

        let child = prepared.spawn().map_err(|source| spawn_error(source, program, cgroup))?;
        Ok(Self { child })
    }

    /// Waits until the command ends, passing signals on to it.
    pub async fn wait(&mut self, signals: &mut Signals) -> Result<report::ExitStatus, Error> {
        loop {
            tokio::select! {
                status = self.child.wait() => {
                    return Ok(exit_status(status.map_err(Error::Wait)?));
                }
                arrived = signals.next() => {
                    let arrived = arrived.map_err(Error::Wait)?;
                    if let Some(child) = self.child.id() {
                        arrived.pass_on(child);
                    }
                }
            }
        }
    }
}

/// Runs in the new process, before the command: into the cgroup first, while it still has the right.
fn enter(procs: &File, identity: Option<&(Uid, Gid, Vec<Gid>)>, mask: &SigSet) -> io::Result<()> {
    let marked = |errno: i32| io::Error::from_raw_os_error(BEFORE_EXEC | errno);
    // "0" is the writer itself. Source: cgroup v2 documentation, `cgroup.procs`.
    nix::unistd::write(procs.as_fd(), b"0").map_err(|errno| marked(errno as i32))?;
    if let Some((uid, gid, groups)) = identity {
        setgroups(groups).map_err(|errno| marked(errno as i32))?;
        setgid(*gid).map_err(|errno| marked(errno as i32))?;
        setuid(*uid).map_err(|errno| marked(errno as i32))?;
    }
    // The agent holds signals back; a command that inherited that could not be ended.
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(mask), None).map_err(|errno| marked(errno as i32))
}

fn spawn_error(source: io::Error, program: &OsString, cgroup: &FreshCgroup) -> Error {
    match source.raw_os_error() {
        Some(marked) if marked & BEFORE_EXEC != 0 => Error::Prepare {
            path: cgroup.directory.clone(),
            source: io::Error::from_raw_os_error(marked & !BEFORE_EXEC),
        },
        Some(libc::ENOENT) => Error::NotFound { command: program.clone(), source },
        Some(libc::EAGAIN | libc::ENOMEM) => Error::Wait(source),
        _ => Error::NotExecutable { command: program.clone(), source },
    }
}

fn exit_status(status: ExitStatus) -> report::ExitStatus {
    report::ExitStatus { code: status.code(), signal: status.signal() }
}

/// Returns the exit status of the agent that tells how the command ended.
pub fn exit_code(status: report::ExitStatus) -> i32 {
    match (status.code, status.signal) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => AGENT_FAILED,
    }
}

/// Opens the file of `--output`, so that a wrong path is an error before anything starts.
pub fn open_output(path: &Path) -> io::Result<File> {
    let mut file = File::create(path)?;
    file.flush()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_statuses_are_those_of_env_and_timeout() {
        let status = |code, signal| exit_code(report::ExitStatus { code, signal });
        assert_eq!(status(Some(0), None), 0);
        assert_eq!(status(Some(42), None), 42);
        assert_eq!(status(None, Some(9)), 137);
        assert_eq!(status(None, Some(15)), 143);
    }

    #[test]
    fn an_unknown_user_is_an_error_that_names_it() {
        let error = RunAs::look_up("no-such-user-here").unwrap_err();
        assert!(error.to_string().contains("no-such-user-here"), "{error}");
        assert_eq!(error.exit_code(), 125);
    }
}
