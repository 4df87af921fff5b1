//! Network namespaces without a name: they live as long as a file descriptor, so nothing can be left
//! behind, not even by `kill -9`.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns, unshare};

/// An anonymous network namespace, gone when this and the last socket or process in it are.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    fd: OwnedFd,
}

impl Namespace {
    /// Makes a namespace with its loopback device up. `name` is for messages only.
    ///
    /// Needs CAP_SYS_ADMIN and CAP_NET_ADMIN.
    pub fn new(name: &str) -> Result<Self> {
        // In a thread of its own, because `unshare` moves the calling thread.
        let made = thread::scope(|scope| {
            let made = scope.spawn(|| -> Result<OwnedFd> {
                unshare(CloneFlags::CLONE_NEWNET)?;
                // Not /proc/self/ns/net, which is the namespace of the main thread.
                Ok(File::open("/proc/thread-self/ns/net")?.into())
            });
            made.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        let fd = made.with_context(|| {
            format!(
                "cannot make the network namespace {name}: run it as root, and outside of a \
                     container that forbids unshare(CLONE_NEWNET)"
            )
        })?;
        let namespace = Self { name: name.to_owned(), fd };
        crate::link::bring_up(&namespace, "lo")?;
        Ok(namespace)
    }

    /// The name given to [`Namespace::new`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The namespace as `setns` and netlink want it.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Runs `work` in a thread inside the namespace and waits for it.
    ///
    /// A thread started by `work` is inside, too. A panic of `work` goes on in the caller.
    /// `/proc/net` is that of the main thread: read `/proc/thread-self/net` instead.
    pub fn run_in<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = thread::Builder::new().name(format!("lab-{}", self.name)).spawn_scoped(
                scope,
                || -> Result<T> {
                    self.enter()?;
                    Ok(work())
                },
            )?;
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a thread inside the namespace that runs `work`; entering it has succeeded on return.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<thread::JoinHandle<T>> {
        let inside = Self { name: self.name.clone(), fd: self.fd.try_clone()? };
        let (report, entered) = mpsc::sync_channel(1);
        let thread =
            thread::Builder::new().name(format!("lab-{}", self.name)).spawn(move || {
                let result = inside.enter();
                let failed = result.is_err();
                // The receiver waits for exactly this message.
                let _ = report.send(result);
                drop(inside);
                // Never seen: the caller drops the handle of a thread that could not enter.
                assert!(!failed, "cannot enter the network namespace");
                work()
            })?;
        entered.recv().context("the thread inside a namespace died at once")??;
        Ok(thread)
    }

    /// Makes `command` start inside the namespace. Nothing else of its environment changes.
    pub fn command_in<'c>(&self, command: &'c mut Command) -> Result<&'c mut Command> {
        let fd = self.fd.try_clone()?;
        let enter = move || setns(&fd, CloneFlags::CLONE_NEWNET).map_err(Into::into);
        // SAFETY: between fork and exec the closure only calls setns(2), which is async-signal-safe;
        // the descriptor was duplicated before and is closed by exec.
        Ok(unsafe { command.pre_exec(enter) })
    }

    /// Writes `value` to `/proc/sys/net/<path>` of this namespace, e.g. `ipv4/tcp_rmem`.
    pub fn sysctl(&self, path: &str, value: &str) -> Result<()> {
        let file = format!("/proc/sys/net/{path}");
        // The directory shows the namespace of the thread that looks, so the thread must be inside.
        self.run_in(|| fs::write(&file, value))?
            .with_context(|| format!("cannot write {value:?} to {file} in namespace {}", self.name))
    }

    /// Moves the calling thread into the namespace.
    fn enter(&self) -> Result<()> {
        setns(self.fd(), CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("cannot enter the network namespace {}", self.name))
    }
}
