//! What to count: from `--target` to cgroups, their processes, sockets and ports.
//!
//! `selector` understands what was asked for, `resolve` finds it on the machine, `survey` looks at it
//! once, `ports` and `ownership` judge what was seen. Nothing here changes anything.

pub mod cgroup2;
pub mod container;
pub mod error;
pub mod known;
pub mod ownership;
pub mod ports;
pub mod processes;
pub mod resolve;
pub mod selector;
pub mod sockets;
pub mod survey;

use std::path::PathBuf;

pub use cgroup2::{Cgroup, Hierarchy};
pub use error::{Candidates, Error};
pub use ports::{Listening, PortFilter};
pub use resolve::{Resolved, default_target, find, resolve};
pub use selector::{Selector, TargetSpec, Value, group};
pub use survey::Survey;

/// Where this machine keeps what is looked at; in tests a made-up tree.
#[derive(Clone, Debug)]
pub struct Host {
    /// Usually /proc.
    pub proc: PathBuf,
    /// The cgroup v2 tree.
    pub cgroups: Hierarchy,
    /// Where docker and podman keep their containers' names.
    pub containers: container::Stores,
}

impl Host {
    /// The machine itself.
    pub fn detect() -> Result<Self, Error> {
        Ok(Self {
            proc: PathBuf::from("/proc"),
            cgroups: Hierarchy::find()?,
            containers: container::Stores::detect(),
        })
    }
}
