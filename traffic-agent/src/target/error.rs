//! Why a target could not be found or looked at.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::selector::Selector;
use crate::netns;

/// Commands to paste, one per line, after an error message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidates(pub Vec<String>);

impl fmt::Display for Candidates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return write!(
                f,
                "no known proxy runs in a cgroup of its own; name a running unit with \
                 `--target unit:NAME.service`, or start one with `traffic-agent exec -- CMD`"
            );
        }
        write!(f, "try one of")?;
        self.0.iter().try_for_each(|command| write!(f, "\n  {command}"))
    }
}

/// Why a target could not be found or looked at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine has no cgroup v2 tree.
    #[error(
        "no cgroup v2 tree is mounted (looked in /proc/self/mountinfo); mount one with \
         `mount -t cgroup2 none /sys/fs/cgroup`, or boot with systemd.unified_cgroup_hierarchy=1"
    )]
    NoCgroup2,
    /// A file or directory that must be there could not be read.
    #[error("cannot read {}; run as root", path.display())]
    Read {
        /// What was read.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The cgroup does not exist.
    #[error("cannot find cgroup {path} below {}: it does not exist; {candidates}", mount.display())]
    NoSuchCgroup {
        /// As given.
        path: String,
        /// The cgroup v2 mount.
        mount: PathBuf,
        /// What could have been meant.
        candidates: Candidates,
        /// Why.
        source: io::Error,
    },
    /// The target would be the whole machine.
    #[error(
        "cannot count {selector}: {what}, and every socket of the host would be counted; \
         start the program with `traffic-agent exec -- CMD`, or run it as a systemd unit of its own"
    )]
    WholeHost {
        /// What was asked for.
        selector: String,
        /// Why it is the root.
        what: String,
    },
    /// No running unit has that name.
    #[error(
        "cannot find unit {unit} in the cgroup tree below {}: it is not running (see \
         `systemctl status {unit}`) or has another name; {candidates}",
        mount.display()
    )]
    NoSuchUnit {
        /// Its name.
        unit: String,
        /// The cgroup v2 mount.
        mount: PathBuf,
        /// What could have been meant.
        candidates: Candidates,
    },
    /// More than one thing has that name.
    #[error("{selector} is ambiguous: {count} match; {candidates}")]
    Ambiguous {
        /// What was asked for.
        selector: String,
        /// How many match.
        count: usize,
        /// Each of them.
        candidates: Candidates,
    },
    /// No container has that name or id.
    #[error(
        "cannot find container {container}: {reason}; looked at {looked_at}; \
         list the running ones with `docker ps` or `podman ps`"
    )]
    NoSuchContainer {
        /// As given.
        container: String,
        /// What is missing.
        reason: String,
        /// Files and trees that were searched.
        looked_at: String,
    },
    /// No process has that name or number.
    #[error("cannot find {selector}: no such process is running; {candidates}")]
    NoSuchProcess {
        /// As given.
        selector: String,
        /// What could have been meant.
        candidates: Candidates,
    },
    /// The process is in no cgroup that can be seen from here.
    #[error(
        "cannot count {selector}: process {pid} is in cgroup {named}, which the mount at {} does \
         not show; run the agent in the host's cgroup namespace (for docker: --cgroupns=host)",
        mount.display()
    )]
    NotVisible {
        /// What was asked for.
        selector: String,
        /// The process.
        pid: i32,
        /// Its cgroup as the kernel names it.
        named: String,
        /// The cgroup v2 mount.
        mount: PathBuf,
    },
    /// Nothing was asked for, and the machine does not say what is meant.
    #[error("no target was named, and {count} known proxies are running; {candidates}")]
    NoDefault {
        /// How many run, each in a cgroup of its own.
        count: usize,
        /// Each of them.
        candidates: Candidates,
    },
    /// Nothing was asked for, and no known proxy runs.
    #[error(
        "no target was named, and none of the known proxies is running ({known}); name a running \
         unit with `--target unit:NAME.service`, or start one with `traffic-agent exec -- CMD`"
    )]
    NoProxy {
        /// Their names.
        known: String,
    },
    /// Two different selectors would have the same name.
    #[error(
        "{first} and {second} would both be named {name}; give one of them another name: \
         `--target other={plain}`, or give both the same to count them together",
        plain = second.value
    )]
    NameCollision {
        /// The name.
        name: String,
        /// The one that came first.
        first: Box<Selector>,
        /// The other one.
        second: Box<Selector>,
    },
    /// A network namespace could not be used.
    #[error("cannot look into the target's network namespace")]
    Namespace(#[from] netns::Error),
    /// The kernel did not answer sock_diag.
    #[error("cannot list the {what} sockets by sock_diag; {remedy}")]
    SockDiag {
        /// tcp or udp, ipv4 or ipv6.
        what: String,
        /// What to do.
        remedy: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The kernel's sock_diag does not tell the cgroup of a socket.
    #[error(
        "cannot tell which sockets belong to the target: the kernel's sock_diag has no cgroup ids; \
         they need Linux 5.8 or later with CONFIG_SOCK_CGROUP_DATA"
    )]
    NoCgroupIds,
}

impl Error {
    /// Proposes these, if what was asked for is not there.
    pub(super) fn or_one_of(mut self, those: impl FnOnce() -> Candidates) -> Self {
        if let Self::NoSuchCgroup { candidates, .. }
        | Self::NoSuchUnit { candidates, .. }
        | Self::NoSuchProcess { candidates, .. } = &mut self
        {
            *candidates = those();
        }
        self
    }

    /// Whether what was asked for is simply not there (yet): a unit is stopped, a container not made.
    pub fn is_absence(&self) -> bool {
        matches!(
            self,
            Self::NoSuchCgroup { .. }
                | Self::NoSuchUnit { .. }
                | Self::NoSuchContainer { .. }
                | Self::NoSuchProcess { .. }
        )
    }
}
