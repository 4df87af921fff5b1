//! `packets` and `bytes` of the client leg are what two iptables rules count: `hook-port` needs no rule.

use anyhow::Result;
use traffic_agent::report::{Direction, Leg};
use traffic_lab::packet::Family;
use traffic_lab::topology::addresses;
use traffic_lab::udp::{Receive, Send};
use traffic_lab::workload::Workload;
use traffic_lab::{Lab, Stack};
use traffic_tests::rules::{self, RuleCount};
use traffic_tests::site::{Counted, RELAY_PORT, Site, any};

const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];
const UDP_PORT: u16 = 8443;

/// The published pair of rules.
fn add_pair(lab: &Lab, protocol: &str, port: u16) -> Result<()> {
    for family in FAMILIES {
        rules::add(&lab.proxy, family, &format!("INPUT -p {protocol} --dport {port}"))?;
        rules::add(&lab.proxy, family, &format!("OUTPUT -p {protocol} --sport {port}"))?;
    }
    Ok(())
}

fn assert_rules_equal_hook(lab: &Lab, counted: &Counted) -> Result<()> {
    use traffic_agent::report::Family as Version;
    for (family, version) in [(Family::Ipv4, Version::Ipv4), (Family::Ipv6, Version::Ipv6)] {
        for (chain, direction) in [("INPUT", Direction::Ingress), ("OUTPUT", Direction::Egress)] {
            let mut hook = RuleCount::default();
            let cells = counted.report.cells.iter().filter(|cell| {
                cell.leg == Leg::Client && cell.direction == direction && cell.family == version
            });
            for cell in cells {
                hook.packets += cell.counters.packets;
                hook.bytes += cell.counters.bytes;
            }
            let rule = rules::read(&lab.proxy, family, chain)?;
            assert!(hook.bytes > 0, "nothing was counted");
            assert_eq!(hook, rule, "hook (left) and rule in {chain} (right), {family:?}");
        }
    }
    Ok(())
}

fn check_tcp(stack: Stack) -> Result<()> {
    let site = Site::new(stack)?;
    let _relay = site.relay()?;
    let server = site.server()?;
    add_pair(&site.lab, "tcp", RELAY_PORT)?;
    let counting = site.count()?;
    let bulk = Workload {
        name: "both",
        connections: 2,
        parallel: 2,
        upload_bytes: 2_000_000,
        download_bytes: 4_000_000,
        at_once: true,
    };
    let short = Workload {
        name: "short",
        connections: 100,
        parallel: 4,
        upload_bytes: 200,
        download_bytes: 2000,
        at_once: false,
    };
    for family in FAMILIES {
        site.drive(&bulk, family, &server)?;
        site.drive(&short, family, &server)?;
    }
    assert_rules_equal_hook(&site.lab, &counting.finish()?)
}

#[test]
fn tcp_rules_equal_hook_port_with_super_packets() -> Result<()> {
    check_tcp(Stack::GsoGro)
}

#[test]
fn tcp_rules_equal_hook_port_without_offloads() -> Result<()> {
    check_tcp(Stack::Plain)
}

#[test]
fn udp_rules_equal_hook_port_with_merged_datagrams() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    add_pair(&site.lab, "udp", UDP_PORT)?;
    let counting = site.count()?;
    let _server = site.udp_receiver(Receive { listen: any(UDP_PORT), echo: true, gro: true })?;
    for family in FAMILIES {
        let send = Send {
            target: (addresses(family).proxy_client, UDP_PORT).into(),
            sockets: 3,
            datagram_bytes: 1200,
            total_bytes: 300_000,
            segmented: true,
            await_echo: true,
        };
        site.lab.client.run_in(|| send.run(|| true))??;
    }
    assert_rules_equal_hook(&site.lab, &counting.finish()?)
}
