//! What `ip` sets up where a proxy is more than a server: routes and rules of a transparent proxy, and
//! whatever else it can do.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use traffic_lab::packet::Family;
use traffic_lab::topology::CLIENT_DEVICE;
use traffic_lab::{Lab, Namespace};

use crate::rules;

/// The mark of packets that are for the proxy, whoever they are meant for.
const MARK: &str = "1";
/// The table whose only route says that everything is the host's own.
const TABLE: &str = "100";

/// Runs `ip` in a namespace.
pub fn ip(namespace: &Namespace, arguments: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(arguments.split(' '));
    let output = namespace
        .command_in(&mut command)?
        .output()
        .context("cannot run ip: run `cargo xtask test`, which installs it")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {arguments}: {errors}");
    Ok(())
}

/// The set-up of a transparent proxy, both families: what comes from the clients for a port of anybody's
/// is the host's own, and goes to a port of the proxy's.
pub fn intercept(lab: &Lab, protocol: &str, port: u16, on_port: u16) -> Result<()> {
    let families = [(Family::Ipv4, "-4", "0.0.0.0/0"), (Family::Ipv6, "-6", "::/0")];
    for (family, version, all) in families {
        ip(&lab.proxy, &format!("{version} rule add fwmark {MARK} lookup {TABLE}"))?;
        ip(&lab.proxy, &format!("{version} route add local {all} dev lo table {TABLE}"))?;
        let rule = format!(
            "PREROUTING -i {CLIENT_DEVICE} -p {protocol} --dport {port} -j TPROXY --on-port \
             {on_port} --tproxy-mark {MARK}"
        );
        rules::add_to(&lab.proxy, family, "mangle", &rule)?;
    }
    Ok(())
}

/// Redirects what comes from the clients for a port of anybody's to a port of the proxy's.
pub fn redirect(lab: &Lab, family: Family, port: u16, to_port: u16) -> Result<()> {
    let rule = format!(
        "PREROUTING -i {CLIENT_DEVICE} -p tcp --dport {port} -j REDIRECT --to-ports {to_port}"
    );
    rules::add_to(&lab.proxy, family, "nat", &rule)
}
