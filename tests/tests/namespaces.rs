//! Interface numbers belong to a network namespace and repeat in the next, as between containers: what
//! is counted, and under which name, is the target's own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::net::if_::if_nametoindex;
use traffic_agent::ledger;
use traffic_agent::measure::{Measurement, Plan};
use traffic_agent::network::Networks;
use traffic_agent::report::{Directions, Protocol, TargetReport};
use traffic_agent::target::{Cgroup, PortFilter, Value};
use traffic_lab::link::{End, connect};
use traffic_lab::packet::Family;
use traffic_lab::process::Place;
use traffic_lab::topology::{CLIENT_DEVICE, MTU, addresses};
use traffic_lab::{CountedCgroup, Filter, Namespace, Process, Stack};
use traffic_tests::exchange::{EXCHANGED_BYTES, with_listener};
use traffic_tests::factory::Factory;
use traffic_tests::site::{RELAY_PORT, Site, any, tcp};
use traffic_tests::truth::{Applications, Carried, Witnesses};

/// Payload of a datagram, and what it is with its headers.
const PAYLOAD: usize = 500;
const L3_BYTES: u64 = PAYLOAD as u64 + 28;
const DATAGRAMS: u64 = 11;
/// The device of the second container.
const UPLINK: &str = "uplink";

/// A second container, whose first device has the number of the proxy's first.
struct Container {
    factory: Factory,
    outside: Namespace,
}

impl Container {
    /// Makes it, its processes in a cgroup.
    fn new(site: &Site, cgroup: &CountedCgroup) -> Result<Self> {
        let (namespace, outside) = (Namespace::new("container")?, Namespace::new("outside")?);
        let at = |host| [(IpAddr::V4(Ipv4Addr::new(10, 88, 1, host)), 24)];
        let near = End { namespace: &namespace, name: UPLINK, addresses: &at(2) };
        let far = End { namespace: &outside, name: "far", addresses: &at(1) };
        connect(near, far, MTU)?;
        let number = |namespace: &Namespace, device| -> Result<u32> {
            Ok(namespace.run_in(|| if_nametoindex(device))??)
        };
        assert_eq!(number(&namespace, UPLINK)?, number(&site.lab.proxy, CLIENT_DEVICE)?);
        let factory = Factory::start(&namespace, cgroup)?;
        // The namespace lives as long as the factory's process.
        Ok(Self { factory, outside })
    }

    /// Sends datagrams out of it and has each sent back.
    fn exchange(&self) -> Result<()> {
        let there = SocketAddr::from((Ipv4Addr::new(10, 88, 1, 1), 7000));
        let server = self.outside.run_in(|| UdpSocket::bind(there))??;
        let client = self.factory.udp_unbound(there)?;
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(Duration::from_secs(60)))?;
        }
        for _ in 0..DATAGRAMS {
            client.send_to(&[1; PAYLOAD], there)?;
            let (length, from) = server.recv_from(&mut [0; 2 * PAYLOAD])?;
            server.send_to(&vec![2; length], from)?;
            client.recv(&mut [0; 2 * PAYLOAD])?;
        }
        Ok(())
    }
}

/// A connection from the lab's client to the site's proxy.
fn call(site: &Site) -> Result<Option<Applications>> {
    let listener = site.factory.tcp_listener(any(RELAY_PORT))?;
    let to = (addresses(Family::Ipv4).proxy_client, RELAY_PORT).into();
    with_listener(&site.lab.client, to, &listener)?;
    let bytes = EXCHANGED_BYTES as u64;
    let client = Carried { to_proxy: bytes, from_proxy: bytes };
    Ok(Some(Applications { client, ..Applications::default() }))
}

fn plan(name: &str, cgroup: &CountedCgroup) -> Result<Plan> {
    let path = cgroup.cgroup_path();
    Ok(Plan {
        name: name.to_owned(),
        selector: format!("cgroup:{path}"),
        selectors: vec![Value::Cgroup(path.clone())],
        cgroups: vec![Cgroup { path, dir: cgroup.path().to_owned(), id: cgroup.id()? }],
        notes: Vec::new(),
        ports: PortFilter::default(),
        unbilled: Vec::new(),
        trace_packets: 0,
    })
}

fn of_interface(report: &TargetReport, name: &str) -> Directions {
    ledger::sum(&report.cells, |cell| cell.interface == name)
}

/// What the container exchanged.
fn assert_exchanged(counted: Directions) {
    for counters in [counted.ingress, counted.egress] {
        assert_eq!((counters.packets, counters.bytes), (DATAGRAMS, DATAGRAMS * L3_BYTES));
        assert_eq!((counters.wire_packets, counters.wire_bytes), (DATAGRAMS, DATAGRAMS * L3_BYTES));
        assert_eq!(counters.payload_bytes, DATAGRAMS * PAYLOAD as u64);
    }
}

#[test]
fn two_containers_with_the_same_interface_numbers_are_counted_apart_by_their_own_names()
-> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let witnesses = Witnesses::of(&site)?;
    let second = CountedCgroup::new("second")?;
    let container = Container::new(&site, &second)?;
    let mut measurement = Measurement::start(&site.host, plan("second", &second)?)?;
    let start = measurement.sample()?;
    // Both at once: the first's figures are its own, by all witnesses.
    witnesses.hold(&[tcp(RELAY_PORT)], || {
        container.exchange()?;
        let carried = call(&site)?;
        container.exchange()?;
        Ok(carried)
    })?;
    let end = measurement.sample()?;
    let report = measurement.report(&start, &end)?;
    assert!(report.complete, "{:?}", report.findings);
    assert!(report.cells.iter().all(|cell| cell.interface == UPLINK), "{:?}", report.cells);
    let counted = of_interface(&report, UPLINK);
    for counters in [counted.ingress, counted.egress] {
        assert_eq!(counters.wire_bytes, 2 * DATAGRAMS * L3_BYTES);
    }
    drop(container);
    Ok(())
}

#[test]
fn one_target_in_two_namespaces_is_right_in_sum_and_not_complete() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let container = Container::new(&site, &site.cgroup)?;
    let counting = site.count()?;
    container.exchange()?;
    call(&site)?;
    let counted = counting.finish()?;
    // By number its device is the proxy's first; by protocol and in sum it is known all the same.
    let of = |protocol| ledger::sum(&counted.report.cells, |cell| cell.protocol == protocol);
    assert_exchanged(of(Protocol::Udp));
    let tcp = of(Protocol::Tcp);
    for (filter, counters) in
        [(Filter::all().ingress(), tcp.ingress), (Filter::all().egress(), tcp.egress)]
    {
        let wire = counted.trace.sum(filter);
        assert_eq!((counters.wire_packets, counters.wire_bytes), (wire.packets, wire.l3_bytes));
    }
    assert!(!counted.report.complete);
    let finding = counted.expect_finding("several-namespaces")?;
    assert!(finding.message.contains("2 network namespaces"), "{}", finding.message);
    assert!(finding.remedy.contains("targets of their own"), "{}", finding.remedy);
    drop(container);
    Ok(())
}

/// Containers come and go for months: what is held open of them stays in the kernel, with its interfaces.
#[test]
fn a_namespace_that_was_left_is_let_go_and_its_names_are_kept_for_a_while() -> Result<()> {
    traffic_tests::require_root()?;
    let proc = Path::new("/proc");
    let mut networks = Networks::default();
    let mut numbers = Vec::new();
    for devices in [&["one", "two", "uplink"][..], &["other"][..]] {
        let namespace = Namespace::new("container")?;
        let add =
            |name: &&str| Command::new("ip").args(["link", "add", name, "type", "veth"]).status();
        for made in namespace.run_in(|| devices.iter().map(add).collect::<Vec<_>>())? {
            ensure!(made?.success(), "cannot make a device");
        }
        let last = devices[devices.len() - 1];
        numbers.push((namespace.run_in(|| if_nametoindex(last))??, last));
        let mut sleep = Command::new("sleep");
        sleep.arg("60");
        let place = Place { namespace: Some(&namespace), cgroup: None, user: None };
        let process = Process::spawn(sleep, place)?;
        let pid = process.pid() as i32;
        let inodes = networks.note_processes(proc, [pid]);
        networks.learn_interfaces()?;
        networks.keep_only(&inodes);
        assert_eq!(networks.inodes()?.len(), 1);
        for (number, name) in &numbers {
            assert_eq!(networks.interface(*number), Some(*name));
        }
        assert!(networks.finding().is_none());
        drop(process);
    }
    Ok(())
}
