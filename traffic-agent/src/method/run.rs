//! Runs the firewall's programs in a network namespace, with a time limit.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use std::{io, thread};

/// A save program answers in milliseconds; one that waits for a lock is not worth waiting for.
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// More than a firewall of 100,000 rules prints.
const OUTPUT_LIMIT: u64 = 64 << 20;

/// Where Debian, Red Hat, Alpine and hand-made installations keep them; `PATH` comes last, since a
/// user's `PATH` often lacks sbin.
const DIRECTORIES: [&str; 6] =
    ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin", "/bin", "/usr/local/bin"];

/// Why a program gave no output to read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "no right to run {program} here: run as root, or with CAP_NET_ADMIN, with CAP_NET_RAW for legacy \
         tables, and with CAP_SYS_ADMIN for another network namespace"
    )]
    NotPermitted { program: String },
    #[error("cannot run {program}")]
    Spawn {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("{program} did not answer within {} s", TIME_LIMIT.as_secs())]
    TimedOut { program: String },
    #[error("{program} printed more than {} MiB", OUTPUT_LIMIT >> 20)]
    TooLong { program: String },
    #[error("{program} failed ({status}): {message}")]
    Failed { program: String, status: ExitStatus, message: String },
    #[error("{program} printed text that is not UTF-8")]
    NotUtf8 { program: String },
}

/// Looks a program up.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = DIRECTORIES.iter().map(PathBuf::from).chain(std::env::split_paths(&path));
    directories.map(|directory| directory.join(program)).find(|path| path.is_file())
}

/// Runs it in the namespace (`None`: our own) and returns what it printed.
pub(crate) fn run(
    path: &Path,
    arguments: &[&str],
    input: &str,
    netns: Option<BorrowedFd<'_>>,
) -> Result<String, Error> {
    let program = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let mut command = Command::new(path);
    command
        .args(arguments)
        .env("LC_ALL", "C")
        .env("PATH", DIRECTORIES.join(":"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some(netns) = netns {
        let netns = netns.as_raw_fd();
        let enter = move || {
            // SAFETY: a bare system call; the descriptor stays open until the child was spawned.
            match unsafe { libc::setns(netns, libc::CLONE_NEWNET) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        };
        // SAFETY: between fork and exec the closure makes one system call and reads errno.
        unsafe { command.pre_exec(enter) };
    }
    let mut child = command.spawn().map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => Error::NotPermitted { program: program.clone() },
        _ => Error::Spawn { program: program.clone(), source },
    })?;

    // Both ends are served by threads: a full pipe would stop the program, and so would we.
    let mut to_child = child.stdin.take();
    let input = input.to_owned();
    thread::spawn(move || {
        // A program that does not read its input is judged by its exit status.
        to_child.take().map(|mut pipe| pipe.write_all(input.as_bytes()))
    });
    let output = collect(child.stdout.take());
    let errors = collect(child.stderr.take());

    let Some(status) = wait(&mut child) else {
        return Err(Error::TimedOut { program });
    };
    let output = output.join().unwrap_or_default();
    let errors = errors.join().unwrap_or_default();
    if !status.success() {
        let message = String::from_utf8_lossy(&errors);
        let refused = ["permission denied", "operation not permitted", "must be root"];
        if refused.iter().any(|words| message.to_ascii_lowercase().contains(words)) {
            return Err(Error::NotPermitted { program });
        }
        let message =
            message.trim().lines().next().unwrap_or("no message").chars().take(200).collect();
        return Err(Error::Failed { program, status, message });
    }
    if output.len() as u64 > OUTPUT_LIMIT {
        return Err(Error::TooLong { program });
    }
    String::from_utf8(output).map_err(|_| Error::NotUtf8 { program })
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(pipe) = pipe {
            // What was read before an error is judged with the exit status.
            let _ = pipe.take(OUTPUT_LIMIT + 1).read_to_end(&mut text);
        }
        text
    })
}

/// Waits up to the time limit; kills what runs longer.
fn wait(child: &mut Child) -> Option<ExitStatus> {
    let deadline = Instant::now() + TIME_LIMIT;
    let mut pause = Duration::from_micros(500);
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < deadline => {
                thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(10));
            }
            _ => {
                // It may have ended by itself; either way it must not stay a zombie.
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    }
}
