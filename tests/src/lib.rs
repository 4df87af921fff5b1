//! Kernel and end-to-end tests: one file in `tests/` per group of claims.
//!
//! * [`site`]: the lab with a counted cgroup, and one measurement held against its captures.
//! * [`figures`]: cells and captured packets under the same keys.
//! * [`factory`]: sockets that are born in the counted cgroup and used by the test.
//! * [`exclusive`]: a program that lets no other one into its cgroup.
//! * [`exchange`]: one short TCP connection.
//! * [`options`]: IP options and IPv6 extension headers of a socket.
//! * [`routes`]: what `ip` and the firewall do for a transparent proxy.
//! * [`rules`]: counting rules of iptables, read back without the product's help.
//! * [`matrix`]: one cell of the truth matrix: traffic of one kind through sockets of the test.
//! * [`truth`]: what a measurement is held against: captures, rules, and the applications' word.
//! * [`processors`]: on which processors all of it runs.
//! * [`proxies`]: one real proxy in the lab, measured by `traffic-agent compare`.
//! * [`unseen`]: classes of packets that no cgroup hook sees.
//! * [`frequency`]: a table of how often they occur.
//! * [`contention`]: all that can interrupt an add, on one CPU.
//! * [`seed`]: the maps of a running agent, to count what nobody can send.
//! * [`years`]: what is put there, and what the agent should say.
//! * [`background`]: a target that is looked at once a minute, and a firewall that changes.
//! * [`daemon`]: the built `traffic-agent run` with a state directory of its own.
//! * [`accounted`]: a relay that such a daemon counts, and its history held against captures.
//! * [`moments`]: proxies that send from their first moment on, and what of that may be missing.
//! * [`clock`]: a wall clock of a daemon's own, that a test can set.
//! * [`disk`]: a disk of a daemon's own, that a test can break.
//! * [`load`]: traffic for as long as something else is done.
//! * [`history`]: a history of known content, written and read by processes of their own.
//! * [`systemd`]: a real systemd with the agent and a relay as a unit.
//! * [`soak`]: traffic without end, and all that happens to an agent meanwhile.
//! * [`capabilities`]: their bits.
//! * [`agent`]: the built `traffic-agent` and its JSON.

pub mod accounted;
pub mod agent;
pub mod background;
pub mod capabilities;
pub mod clock;
pub mod contention;
pub mod daemon;
pub mod disk;
pub mod exchange;
pub mod exclusive;
pub mod factory;
pub mod figures;
pub mod frequency;
pub mod history;
pub mod load;
pub mod matrix;
pub mod moments;
pub mod options;
pub mod processors;
pub mod proxies;
pub mod routes;
pub mod rules;
pub mod seed;
pub mod service;
pub mod site;
pub mod soak;
pub mod systemd;
pub mod truth;
pub mod unseen;
pub mod years;

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use traffic_lab::role::Role;

/// The program of this package.
const HELPER: &str = "traffic-tests";

/// The program of this package, which runs the lab's roles and the socket factory.
///
/// A process must be born in a cgroup to be counted there, and a test binary with the usual harness
/// has no `main` of its own.
pub fn helper() -> Result<PathBuf> {
    let test = env::current_exe().context("cannot find the running binary")?;
    if test.file_name().is_some_and(|name| name == HELPER) {
        return Ok(test);
    }
    let target = test.parent().and_then(|deps| deps.parent()).context("no target directory")?;
    let helper = target.join(HELPER);
    ensure!(helper.is_file(), "{} is not there: run `cargo xtask test`", helper.display());
    Ok(helper)
}

/// A command that runs a role of the lab in the helper.
pub fn role(role: &Role) -> Result<Command> {
    role_of(&helper()?, role)
}

/// A command that runs a role of the lab in a copy of the helper.
pub fn role_of(program: &Path, role: &Role) -> Result<Command> {
    Ok(role.command_of(program))
}

/// A clear failure where a test lacks its rights.
pub fn require_root() -> Result<()> {
    ensure!(
        nix::unistd::Uid::effective().is_root(),
        "the kernel tests need root: run `cargo xtask test` as root"
    );
    Ok(())
}
