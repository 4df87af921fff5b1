//! A program started in a namespace and a cgroup, with its output in a log, killed in `Drop`.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::libc;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid};
use tempfile::TempDir;

use crate::cgroup::CountedCgroup;
use crate::namespace::Namespace;
use crate::sockets::{Transport, open_ports};

/// Where a program shall run. By default: where the caller runs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Place<'a> {
    /// Its network namespace.
    pub namespace: Option<&'a Namespace>,
    /// Its cgroup.
    pub cgroup: Option<&'a CountedCgroup>,
    /// Its user and group id, without further groups.
    pub user: Option<u32>,
}

/// A running program. Dropped, it is killed and reaped.
///
/// It also dies with the thread that started it, so that not even `kill -9` of the lab leaves it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    exit: Option<ExitStatus>,
    directory: TempDir,
}

impl Process {
    /// Starts `command` in `place`. Its stdin is empty; stdout and stderr go to [`Process::log`].
    pub fn spawn(mut command: Command, place: Place<'_>) -> Result<Self> {
        let name = Path::new(command.get_program())
            .file_name()
            .map_or_else(|| "program".into(), |name| name.to_string_lossy().into_owned());
        let directory = TempDir::with_prefix("ta-lab-").context("no place for a log")?;
        let log = File::create(directory.path().join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // The namespace first: whoever looks at the members of the cgroup finds none of the host's.
        if let Some(namespace) = place.namespace {
            namespace.command_in(&mut command)?;
        }
        if let Some(cgroup) = place.cgroup {
            cgroup.enter(&mut command)?;
        }
        let maker = Pid::this();
        let user = place.user;
        let last = move || {
            // Behind the namespace, which needs rights, unlike `Command::uid`, which comes before.
            if let Some(id) = user {
                nix::unistd::setgroups(&[])?;
                nix::unistd::setgid(Gid::from_raw(id))?;
                nix::unistd::setuid(Uid::from_raw(id))?;
            }
            // Last, because a change of user clears it.
            set_pdeathsig(Signal::SIGKILL)?;
            if nix::unistd::getppid() != maker {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes plain system calls only; the C library's
        // setuid and setgid take no lock in a process of one thread.
        unsafe { command.pre_exec(last) };
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name, child, exit: None, directory })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A directory that is removed with the process: for its configuration.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// What it has written to stdout and stderr so far.
    pub fn log(&self) -> String {
        let bytes = fs::read(self.directory.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until a TCP port is listened on in its namespace. No packet is sent for that.
    ///
    /// An error with the log's end if the program ends before, or `at_most` is over.
    pub fn wait_for_port(&mut self, port: u16, at_most: Duration) -> Result<()> {
        self.wait_for(Transport::Tcp, port, at_most)
    }

    /// As [`Process::wait_for_port`], for TCP or UDP.
    pub fn wait_for(&mut self, transport: Transport, port: u16, at_most: Duration) -> Result<()> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.poll()? {
                bail!(
                    "{} ended with {status} before it opened port {port}{}",
                    self.name,
                    self.tail()
                );
            }
            // It may end between the two, and then the next pass says so.
            let open = open_ports(self.pid(), transport).unwrap_or_default();
            if open.contains(&port) {
                return Ok(());
            }
            if begin.elapsed() > at_most {
                bail!(
                    "{} does not listen on port {port} after {at_most:?}, but on {open:?}{}",
                    self.name,
                    self.tail()
                );
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for its end; an error if that takes longer than `at_most`.
    pub fn wait(&mut self, at_most: Duration) -> Result<ExitStatus> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.poll()? {
                return Ok(status);
            }
            if begin.elapsed() > at_most {
                bail!("{} still runs after {at_most:?}{}", self.name, self.tail());
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits as [`Process::wait`] does and returns the log; an error unless it exited with 0.
    pub fn output(mut self, at_most: Duration) -> Result<String> {
        let status = self.wait(at_most)?;
        if !status.success() {
            bail!("{} ended with {status}{}", self.name, self.tail());
        }
        Ok(self.log())
    }

    /// Sends a signal, unless it has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.poll()?.is_none() {
            kill(self.raw_pid(), signal).with_context(|| format!("cannot signal {}", self.name))?;
        }
        Ok(())
    }

    /// Its exit status, if it has ended.
    pub fn poll(&mut self) -> Result<Option<ExitStatus>> {
        if self.exit.is_none() {
            self.exit = self.child.try_wait()?;
        }
        Ok(self.exit)
    }

    fn raw_pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// The last lines of the log, for an error message.
    fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(10)..].join("\n    ");
        if last.is_empty() {
            ", and wrote nothing".into()
        } else {
            format!("; its last lines:\n    {last}")
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Looks a program up in `PATH`.
pub fn find_program(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|file| {
        file.is_file()
            && file.to_str().and_then(|file| CString::new(file).ok()).is_some_and(|file| {
                nix::unistd::access(&*file, nix::unistd::AccessFlags::X_OK).is_ok()
            })
    })
}

/// The signal that ended a program, if one did.
pub fn ended_by(status: ExitStatus) -> Option<Signal> {
    status.signal().and_then(|number| Signal::try_from(number).ok())
}
