//! A real xray as a transparent proxy, by TPROXY and by REDIRECT: its clients know nothing of it, and the
//! wire shows the port that they meant.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use traffic_agent::report::Leg;
use traffic_lab::packet::Family;
use traffic_lab::proxy::Program;
use traffic_lab::topology::{LabTrace, addresses};
use traffic_lab::workload::{Closing, Route, Workload, run_closing};
use traffic_lab::{Process, Stack};
use traffic_tests::figures::{self, of_capture_as};
use traffic_tests::proxies;
use traffic_tests::routes::{intercept, redirect};
use traffic_tests::site::{RELAY_PORT, SERVER_PORT, Site, tcp};
use traffic_tests::truth::{Applications, Carried, Witnesses};

const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];
const BULK: Workload = Workload {
    name: "bulk",
    connections: 2,
    parallel: 2,
    upload_bytes: 2_000_000,
    download_bytes: 2_000_000,
    at_once: false,
};
const SHORT: Workload = Workload {
    name: "short",
    connections: 20,
    parallel: 10,
    upload_bytes: 200,
    download_bytes: 2_000,
    at_once: false,
};
/// A large program on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// xray takes about a second to close a connection that it spliced.
const CLOSED_WITHIN: Duration = Duration::from_secs(60);

/// Starts an xray that takes what the firewall gives it: `tproxy` or `redirect`.
fn start(site: &Site, by: &str) -> Result<Process> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("config.json");
    let configuration = json!({
        "log": { "loglevel": "warning" },
        "inbounds": [{
            "listen": "::",
            "port": RELAY_PORT,
            "protocol": "dokodemo-door",
            "settings": { "network": "tcp", "followRedirect": true },
            "streamSettings": { "sockopt": { "tproxy": by } },
        }],
        "outbounds": [{ "protocol": "freedom" }],
    });
    fs::write(&file, configuration.to_string())?;
    let mut command = Command::new(proxies::find(Program::Xray)?);
    command.args(["run", "-c"]).arg(&file);
    let mut xray = Process::spawn(command, site.place())?;
    xray.wait_for_port(RELAY_PORT, READY_WITHIN)?;
    Ok(xray)
}

/// Drives both workloads from clients that connect to the server itself.
fn check(site: &Site, by: &str) -> Result<()> {
    let witnesses = Witnesses::of(site)?;
    let xray = start(site, by)?;
    let server = site.server()?;
    for (workload, family) in [BULK, SHORT].iter().flat_map(|one| FAMILIES.map(|by| (one, by))) {
        let target = (addresses(family).upstream, SERVER_PORT).into();
        let route = Route { client: &site.lab.client, relay: None, target };
        let expected = |trace: &LabTrace| of_capture_as(trace, tcp(SERVER_PORT), |_| RELAY_PORT);
        let counted = witnesses.hold_as(expected, || {
            let outcome = run_closing(Closing::WhenDone, workload, route, &server, &|_| ())?;
            traffic_lab::proxy::wait_until_closed(xray.pid(), None, CLOSED_WITHIN)?;
            let [client, server] = [outcome.client, outcome.server];
            Ok(Some(Applications {
                client: Carried { to_proxy: client.sent_bytes, from_proxy: client.received_bytes },
                upstream: Carried {
                    to_proxy: server.sent_bytes,
                    from_proxy: server.received_bytes,
                },
            }))
        });
        let counted = counted
            .with_context(|| format!("{by}, {family:?}, {}: {}", workload.name, xray.log()))?;
        let books = counted.books();
        for (leg, interface) in [(Leg::Client, "eth0"), (Leg::Upstream, "eth1")] {
            let of_leg = figures::sum(&books, |key| key.leg == leg);
            assert!(of_leg.payload_bytes >= workload.total_bytes());
            assert_eq!(of_leg, figures::sum(&books, |key| key.interface == interface));
        }
    }
    Ok(())
}

#[test]
fn a_real_xray_behind_tproxy_is_counted_to_the_byte() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    intercept(&site.lab, "tcp", SERVER_PORT, RELAY_PORT)?;
    check(&site, "tproxy")
}

#[test]
fn a_real_xray_behind_redirect_is_counted_to_the_byte() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    FAMILIES.iter().try_for_each(|&one| redirect(&site.lab, one, SERVER_PORT, RELAY_PORT))?;
    check(&site, "redirect")
}
