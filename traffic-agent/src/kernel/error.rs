//! Why the kernel's side of counting does not work, and what to do about it.

use std::{
    io,
    path::{Path, PathBuf},
};

use aya::{EbpfError, maps::MapError};

use super::{
    links::{AttachError, LinkError},
    pins,
};

/// Why the kernel's side of counting does not work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Creating the maps or loading the programs was refused.
    #[error("cannot load the eBPF program: {}", load_remedy(.source))]
    Load {
        /// What aya says.
        #[source]
        source: EbpfError,
    },
    /// The object lacks something that the agent asks for: agent and object do not belong together.
    #[error(
        "the eBPF object has no {kind} `{name}`: it was built from other sources than this agent"
    )]
    Foreign {
        /// `program` or `map`.
        kind: &'static str,
        /// Its name.
        name: &'static str,
    },
    /// `TRAFFIC_AGENT_OBJECT` names a file that cannot be read.
    #[error("cannot read the eBPF object {}, which TRAFFIC_AGENT_OBJECT names", path.display())]
    Object {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The cgroup does not exist, or cannot be opened.
    #[error("cannot open cgroup {}: is it still there? `traffic-agent doctor` lists what is", path.display())]
    OpenCgroup {
        /// Its directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refused to attach.
    #[error("cannot attach {program} to cgroup {}: {}", path.display(), attach_remedy(.source))]
    Attach {
        /// The program.
        program: &'static str,
        /// The cgroup's directory.
        path: PathBuf,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// A link could not be pinned or changed.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The pins are not usable.
    #[error(transparent)]
    Pins(#[from] pins::Error),
    /// A map could not be read or written.
    #[error("cannot {action} the eBPF map {map}")]
    Map {
        /// `read`, `write` or `map into memory`.
        action: &'static str,
        /// The map.
        map: &'static str,
        /// What aya says.
        #[source]
        source: MapError,
    },
    /// The port tables could not be mapped into memory.
    #[error("cannot map the eBPF map {map} into memory")]
    MapMemory {
        /// The map.
        map: &'static str,
        /// The errno.
        #[source]
        source: nix::Error,
    },
    /// More cgroups are selected than there is room for.
    #[error(
        "more than {0} cgroups are counted by hooks on one above them: connections of that many former ones are \
         still going on"
    )]
    TooManySelected(u32),
    /// They are at more levels of the tree than there is room for.
    #[error("cgroups at more than 16 levels of the tree are counted by hooks on one above them")]
    TooManyLevels,
    /// aya-log found no ring buffer in the object.
    #[error("cannot read the log of the eBPF program")]
    Log(#[from] aya_log::Error),
}

impl AttachError {
    /// The error with the program and the cgroup.
    pub(super) fn of(self, program: &'static str, path: &Path) -> Error {
        match self {
            Self::Refused(source) => Error::Attach { program, path: path.to_owned(), source },
            Self::Pin(error) => error.into(),
        }
    }
}

impl Error {
    /// What the kernel answered, if it was the kernel that refused.
    pub fn errno(&self) -> Option<i32> {
        errno(self)
    }
}

/// Returns the errno of an error chain, if there is one in it.
pub(super) fn errno(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return io.raw_os_error();
        }
        next = error.source();
    }
    None
}

fn load_remedy(source: &EbpfError) -> &'static str {
    match errno(source) {
        Some(libc::EPERM | libc::EACCES) => {
            "not permitted; run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
        }
        Some(libc::ENOSYS) => "this kernel has no bpf() system call",
        Some(libc::EINVAL) => {
            "the kernel lacks a feature; Linux 5.10 or later is needed, see `traffic-agent doctor`"
        }
        Some(libc::ENOMEM) => "not enough memory for the maps",
        _ => "see `traffic-agent doctor` for what this kernel lacks",
    }
}

fn attach_remedy(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "not permitted; either CAP_NET_ADMIN is missing, or another program holds the cgroup \
             exclusively (as systemd before 249 does for a unit with IPAccounting= or \
             IPAddressDeny=): `traffic-agent doctor TARGET` says which"
        }
        Some(libc::ENOENT) => "it was removed meanwhile",
        Some(libc::EBADF | libc::EINVAL) => "it is not a cgroup v2 directory",
        Some(libc::E2BIG) => "64 programs are attached to it already, which is the kernel's limit",
        _ => "see `traffic-agent doctor`",
    }
}
