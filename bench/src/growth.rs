//! Part c: what grows and must not cost more: targets, ports, interfaces, connections. (CPUs: part a.)
//!
//! Small packets from as many sockets in turns, and run time statistics on the way out. What the caches
//! forget between two turns of a socket is the kernel's cost for the empty program too: the difference
//! is ours.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use anyhow::{Context, Result};
use aya::sys::{Stats, enable_stats};
use traffic_lab::link::{End, connect};
use traffic_lab::packet::Family;
use traffic_lab::topology::addresses;
use traffic_lab::{CountedCgroup, Lab, Namespace, Stack};

use crate::bench::Bench;
use crate::comparison::{Against, Comparison, order};
use crate::connections::Connections;
use crate::cost::cost_of;
use crate::sockets::{Turns, born_in, connected_udp};
use crate::subject::{self, ANDROID, Direction, EMPTY, Loaded, OURS, SYSTEMD, Subject};

/// The far end's first port.
const PORT: u16 = 8080;
/// The first of many listening ports.
const FIRST_PORT: u16 = 2000;
/// Listening ports: one, all that have slots, and more than that.
const PORTS: [u16; 3] = [1, 58, 80];
/// Interfaces: one, all that have slots, and more than that.
const INTERFACES: [u8; 3] = [1, 6, 10];
/// Targets, each with an instance of its own.
const TARGETS: [usize; 2] = [1, 64];

const SUBJECTS: [Subject; 4] = [EMPTY, SYSTEMD, ANDROID, OURS];

/// One comparison for all that grows.
pub fn run(bench: &mut Bench) -> Result<Vec<Comparison>> {
    let _statistics = enable_stats(Stats::RunTime).context("no run time statistics")?;
    Ok(vec![targets(bench)?, ports(bench)?, interfaces(bench)?, connections(bench)?])
}

fn question(what: &str, scenarios: Vec<String>) -> Comparison {
    let title = format!("growth of {what}, run time under small packets out");
    let names = subject::names(&SUBJECTS);
    Comparison::new('c', title, "ns per packet", Against::Difference, scenarios, names)
}

/// One round: every subject in turn on the same cgroup with the same traffic.
fn round(
    bench: &mut Bench,
    round: usize,
    (comparison, scenario): (&mut Comparison, usize),
    (cgroup, send): (&CountedCgroup, &dyn Fn(usize) -> Result<()>),
    prepare: &dyn Fn(&mut Loaded) -> Result<()>,
) -> Result<()> {
    for subject in order(round, SUBJECTS.len()) {
        let mut loaded = SUBJECTS[subject].load(&bench.programs)?;
        prepare(&mut loaded)?;
        loaded.attach(cgroup.path())?;
        // Every socket once: the first packet of a port or an interface claims its slot.
        send(1)?;
        let packets = bench.plan.packets;
        let cost = cost_of(&loaded, &[Direction::Egress], || send(packets))?;
        comparison.push(scenario, subject, cost[0]);
    }
    bench.progress.step();
    Ok(())
}

fn unprepared(_: &mut Loaded) -> Result<()> {
    Ok(())
}

/// Many instances on sibling cgroups; one has traffic.
fn targets(bench: &mut Bench) -> Result<Comparison> {
    let mut comparison =
        question("targets", TARGETS.map(|count| format!("targets {count}")).to_vec());
    let lab = Lab::new(Stack::Plain)?;
    let cgroup = CountedCgroup::new("bench")?;
    let to = SocketAddr::from((addresses(Family::Ipv4).upstream, PORT));
    let traffic = Turns::one_udp(&cgroup, (&lab.proxy, &lab.upstream), to)?;
    let rounds = bench.plan.rounds;
    bench.progress.begin('c', "targets", rounds * TARGETS.len());
    for (scenario, count) in TARGETS.into_iter().enumerate() {
        let mut siblings = Vec::new();
        for _ in 1..count {
            let sibling = CountedCgroup::new("sibling")?;
            let mut loaded = OURS.load(&bench.programs)?;
            loaded.attach(sibling.path())?;
            siblings.push((loaded, sibling));
        }
        let send = |packets| traffic.send(packets).map(drop);
        for number in 0..rounds {
            round(bench, number, (&mut comparison, scenario), (&cgroup, &send), &unprepared)?;
        }
    }
    Ok(comparison)
}

/// Many listening UDP ports, each with traffic in turn.
fn ports(bench: &mut Bench) -> Result<Comparison> {
    let mut comparison = question("ports", PORTS.map(|count| format!("ports {count}")).to_vec());
    let lab = Lab::new(Stack::Plain)?;
    let cgroup = CountedCgroup::new("bench")?;
    let addresses = addresses(Family::Ipv4);
    let to = SocketAddr::from((addresses.upstream, PORT));
    let rounds = bench.plan.rounds;
    bench.progress.begin('c', "ports", rounds * PORTS.len());
    for (scenario, count) in PORTS.into_iter().enumerate() {
        let listening = FIRST_PORT..FIRST_PORT + count;
        let sockets = born_in(&cgroup, &lab.proxy, || {
            let ports = listening.clone();
            ports.map(|port| connected_udp((addresses.proxy_upstream, port).into(), to)).collect()
        })?;
        let sink = lab.upstream.run_in(|| UdpSocket::bind(to))??;
        let traffic = Turns::of_udp(sockets, sink);
        let claim = |loaded: &mut Loaded| -> Result<()> {
            let Some(counter) = loaded.counter() else { return Ok(()) };
            for port in listening.clone() {
                counter.slots().claim_port(traffic_agent::method::ListeningPort {
                    protocol: traffic_agent::report::Protocol::Udp,
                    port,
                })?;
            }
            Ok(())
        };
        let send = |packets| traffic.send(packets).map(drop);
        for number in 0..rounds {
            round(bench, number, (&mut comparison, scenario), (&cgroup, &send), &claim)?;
        }
    }
    Ok(comparison)
}

/// Many interfaces, each with traffic in turn.
fn interfaces(bench: &mut Bench) -> Result<Comparison> {
    let scenarios = INTERFACES.map(|count| format!("interfaces {count}")).to_vec();
    let mut comparison = question("interfaces", scenarios);
    let cgroup = CountedCgroup::new("bench")?;
    let (near, far) = (Namespace::new("near")?, Namespace::new("far")?);
    let most = INTERFACES.into_iter().max().unwrap_or(1);
    let address = |link: u8, host: u8| IpAddr::V4(Ipv4Addr::new(10, 78, link, host));
    for link in 0..most {
        let name = format!("bench{link}");
        let end = |namespace, addresses| End { namespace, name: &name, addresses };
        connect(end(&near, &[(address(link, 2), 24)]), end(&far, &[(address(link, 1), 24)]), 1500)?;
    }
    let rounds = bench.plan.rounds;
    bench.progress.begin('c', "interfaces", rounds * INTERFACES.len());
    for (scenario, count) in INTERFACES.into_iter().enumerate() {
        let sockets = born_in(&cgroup, &near, || {
            let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
            (0..count).map(|link| connected_udp(any, (address(link, 1), PORT).into())).collect()
        })?;
        let sink = far.run_in(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)))??;
        let traffic = Turns::of_udp(sockets, sink);
        let send = |packets| traffic.send(packets).map(drop);
        for number in 0..rounds {
            round(bench, number, (&mut comparison, scenario), (&cgroup, &send), &unprepared)?;
        }
    }
    Ok(comparison)
}

/// Many TCP connections, each with a small segment in turn.
fn connections(bench: &mut Bench) -> Result<Comparison> {
    let counts = [1, bench.plan.connections];
    let scenarios = counts.map(|count| format!("connections {count}")).to_vec();
    let mut comparison = question("connections", scenarios);
    let lab = Lab::new(Stack::Plain)?;
    let cgroup = CountedCgroup::new("bench")?;
    let to = addresses(Family::Ipv4).upstream;
    let rounds = bench.plan.rounds;
    bench.progress.begin('c', "connections", rounds * counts.len());
    for (scenario, count) in counts.into_iter().enumerate() {
        let traffic = Connections::new(&cgroup, (&lab.proxy, &lab.upstream), to, count)?;
        let send = |packets| traffic.send(packets);
        for number in 0..rounds {
            round(bench, number, (&mut comparison, scenario), (&cgroup, &send), &unprepared)?;
        }
    }
    Ok(comparison)
}
