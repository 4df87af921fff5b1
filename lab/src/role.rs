//! Programs of the lab as roles of one binary: a process must be born in its cgroup to be counted
//! there, so what is to be counted runs in a child that is the calling binary once more.
//!
//! The binary calls [`run_from_environment`] first thing. A test binary with the usual harness has no
//! such place; there a test does it, and the child is told to run only that test:
//!
//! ```no_run
//! #[test]
//! fn lab_role() {
//!     traffic_lab::role::run_from_environment();
//! }
//! # fn child() -> anyhow::Result<()> {
//! # let role = traffic_lab::role::Role::Relay { listen: "[::]:1080".parse()? };
//! let mut command = role.command()?;
//! command.args(["--exact", "lab_role", "--nocapture"]);
//! # Ok(())
//! # }
//! ```

use std::env;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

use anyhow::{Context, Result, bail};

use crate::relay;
use crate::systemd;
use crate::udp;

/// Holds the role of a child, in words.
const VARIABLE: &str = "TRAFFIC_LAB_ROLE";

/// What a child does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// The relay, until it is killed.
    Relay {
        /// Where it listens.
        listen: SocketAddr,
    },
    /// Receives UDP, and sends it back if told so, until it is killed.
    UdpReceive(udp::Receive),
    /// Sends UDP, then prints what [`udp::Report`] parses.
    UdpSend(udp::Send),
    /// Makes the namespaces of a systemd, starts it and waits for its end.
    Systemd {
        /// What [`systemd::Systemd`] has prepared.
        directory: PathBuf,
    },
    /// Becomes that systemd.
    SystemdInit {
        /// The same.
        directory: PathBuf,
    },
}

impl Role {
    /// A command that runs this role, unless the binary has more to be told.
    pub fn command(&self) -> Result<Command> {
        let binary = env::current_exe().context("cannot find the running binary")?;
        Ok(self.command_of(&binary))
    }

    /// The same in another binary that begins with [`run_from_environment`].
    pub fn command_of(&self, binary: &Path) -> Command {
        let mut command = Command::new(binary);
        command.env(VARIABLE, self.to_words());
        command
    }

    fn to_words(&self) -> String {
        match self {
            Self::Relay { listen } => format!("relay {listen}"),
            Self::UdpReceive(receive) => format!("udp-receive {}", receive.to_words()),
            Self::UdpSend(send) => format!("udp-send {}", send.to_words()),
            Self::Systemd { directory } => format!("systemd {}", directory.display()),
            Self::SystemdInit { directory } => format!("systemd-init {}", directory.display()),
        }
    }

    fn from_words(words: &str) -> Result<Self> {
        let words: Vec<&str> = words.split(' ').collect();
        match words.as_slice() {
            ["relay", listen] => Ok(Self::Relay { listen: listen.parse()? }),
            ["udp-receive", rest @ ..] => Ok(Self::UdpReceive(udp::Receive::from_words(rest)?)),
            ["udp-send", rest @ ..] => Ok(Self::UdpSend(udp::Send::from_words(rest)?)),
            ["systemd", directory] => Ok(Self::Systemd { directory: directory.into() }),
            ["systemd-init", directory] => Ok(Self::SystemdInit { directory: directory.into() }),
            _ => bail!("unknown role"),
        }
    }

    fn run(&self) -> Result<()> {
        match self {
            Self::Relay { listen } => Ok(relay::main_loop(*listen, || ())?),
            Self::UdpReceive(receive) => receive.run(|_| ()),
            Self::Systemd { directory } => systemd::boot::outer(directory),
            Self::SystemdInit { directory } => systemd::boot::init(directory),
            Self::UdpSend(send) => {
                // A line of its own: a test harness may have begun one.
                println!("\n{}", send.run(|| true)?);
                Ok(())
            }
        }
    }
}

/// Runs the role that the environment names, and ends the process; without one, returns at once.
pub fn run_from_environment() {
    let Ok(words) = env::var(VARIABLE) else { return };
    let result = Role::from_words(&words).and_then(|role| role.run());
    if let Err(error) = result {
        eprintln!("role {words:?}: {error:#}");
        exit(1);
    }
    exit(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_survive_the_environment() {
        let roles = [
            Role::Relay { listen: "[::]:1080".parse().unwrap() },
            Role::UdpReceive(udp::Receive {
                listen: "[::]:53".parse().unwrap(),
                echo: true,
                gro: false,
            }),
            Role::UdpSend(udp::Send {
                target: "10.77.2.1:53".parse().unwrap(),
                sockets: 500,
                datagram_bytes: 1200,
                total_bytes: 60_000,
                segmented: true,
                await_echo: false,
            }),
            Role::Systemd { directory: "/tmp/a".into() },
            Role::SystemdInit { directory: "/tmp/a".into() },
        ];
        for role in roles {
            assert_eq!(Role::from_words(&role.to_words()).unwrap(), role);
        }
        for bad in ["", "relay", "relay x", "udp-send 1", "udp-receive [::]:1 yes"] {
            assert!(Role::from_words(bad).is_err(), "{bad}");
        }
    }
}
