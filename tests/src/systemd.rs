//! A real systemd with the built `traffic-agent` in `/usr/bin`, and the lab's relay to be a proxy's unit.

use std::path::Path;

use anyhow::Result;
use traffic_lab::role::Role;
use traffic_lab::systemd::Setup;
use traffic_lab::{Namespace, Systemd};

use crate::{agent, helper, require_root};

/// Where the lab's relay listens when it is [`relay_unit`].
pub const RELAY_PORT: u16 = 1080;

/// Where the roles of the lab are to be seen inside.
pub const HELPER: &str = "/usr/bin/traffic-tests";

/// Starts systemd in a network namespace, with these files (by their path inside, mostly units).
pub fn start(namespace: &Namespace, files: &[(&str, &str)]) -> Result<Systemd> {
    require_root()?;
    let (agent, helper) = (agent::program()?, helper()?);
    let programs = [(agent.as_path(), "/usr/bin/traffic-agent"), (&helper, HELPER)];
    Systemd::start(Setup { program: &helper, namespace, files, programs: &programs })
}

/// A unit that is the lab's relay, with these lines at the end of its `[Service]`.
pub fn relay_unit(service: &str) -> String {
    let listen = format!("[::]:{RELAY_PORT}").parse().expect("an address");
    let command = Role::Relay { listen }.command_of(Path::new(HELPER));
    let variables: String = command
        .get_envs()
        .filter_map(|(name, value)| {
            let (name, value) = (name.to_str()?, value?.to_str()?);
            Some(format!("Environment=\"{name}={value}\"\n"))
        })
        .collect();
    format!(
        "[Unit]\nDescription=relay of the lab\n\n[Service]\n{variables}ExecStart={HELPER}\n{service}\n\
         [Install]\nWantedBy=multi-user.target\n"
    )
}
