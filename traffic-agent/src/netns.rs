//! Looking at the host from inside another network namespace.
//!
//! A thread of its own enters the namespace and ends there: `setns` changes only the calling thread,
//! and a thread that cannot come back must not be one that anybody else uses.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;

use nix::sched::{CloneFlags, setns};

/// A network namespace, held open.
#[derive(Debug)]
pub struct NetNs {
    file: File,
    path: PathBuf,
    inode: u64,
}

/// Why a namespace could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its file under /proc cannot be opened.
    #[error(
        "cannot open the network namespace {}; run as root, or with CAP_SYS_PTRACE",
        path.display()
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It was opened but not entered.
    #[error(
        "cannot enter the network namespace {}; run as root, or with CAP_SYS_ADMIN",
        path.display()
    )]
    Enter {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl NetNs {
    /// Opens the namespace of the calling thread.
    pub fn current() -> Result<Self, Error> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Opens the namespace of a process.
    pub fn of_process(proc: &Path, pid: i32) -> Result<Self, Error> {
        Self::open(&proc.join(pid.to_string()).join("ns/net"))
    }

    /// Opens a namespace file, such as one below /run/netns.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let open = || {
            let file = File::open(path)?;
            let inode = file.metadata()?.ino();
            Ok((file, inode))
        };
        let (file, inode) =
            open().map_err(|source| Error::Open { path: path.to_owned(), source })?;
        Ok(Self { file, path: path.to_owned(), inode })
    }

    /// Opens it a second time.
    pub fn try_clone(&self) -> Result<Self, Error> {
        let file = self
            .file
            .try_clone()
            .map_err(|source| Error::Open { path: self.path.clone(), source })?;
        Ok(Self { file, path: self.path.clone(), inode: self.inode })
    }

    /// Its inode: two namespaces are the same if and only if theirs are.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Runs `look` inside the namespace, and in the calling thread if that is already there.
    pub fn run<T: Send>(&self, look: impl FnOnce() -> T + Send) -> Result<T, Error> {
        if Self::current().is_ok_and(|current| current.inode == self.inode) {
            return Ok(look());
        }
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|errno| Error::Enter {
                        path: self.path.clone(),
                        source: errno.into(),
                    })?;
                    Ok(look())
                })
                .join()
                .unwrap_or_else(|panic| resume_unwind(panic))
        })
    }
}
