//! The host's ledger: every cgroup has what the captures show, the interfaces' counters balance, and cgroups
//! that come and go lose nothing.

use std::collections::BTreeMap;
use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;
use traffic_agent::balance::{Balance, Frames, Model, Remainder, Side};
use traffic_agent::host::{HostFlush, HostLedger, HostTarget};
use traffic_agent::kernel::pins::PinRoot;
use traffic_agent::kernel::{HostCells, HostCounter};
use traffic_agent::netns::NetNs;
use traffic_agent::report::{Counters, Direction};
use traffic_agent::target::Hierarchy;
use traffic_ebpf::{EGRESS, INGRESS};
use traffic_lab::kernel::Kernel;
use traffic_lab::packet::{self, Family};
use traffic_lab::topology::{CLIENT_DEVICE, LabTrace, LegTrace, UPSTREAM_DEVICE, addresses};
use traffic_lab::trace::{Filter, Sum};
use traffic_lab::workload::Workload;
use traffic_lab::{CountedCgroup, Stack};
use traffic_tests::exchange::carry;
use traffic_tests::factory::Factory;
use traffic_tests::routes::ip;
use traffic_tests::site::{Site, any};

/// Where the other cgroup's peer listens.
const OTHER_PORT: u16 = 8090;
const BULK: Workload = Workload {
    name: "bulk",
    connections: 6,
    parallel: 3,
    upload_bytes: 1_000_000,
    download_bytes: 2_000_000,
    at_once: true,
};
const DIRECTIONS: [(Direction, packet::Direction); 2] = [
    (Direction::Ingress, packet::Direction::Ingress),
    (Direction::Egress, packet::Direction::Egress),
];

/// The namespace of the proxy, as the ledger wants it.
fn proxy_namespace(site: &Site) -> Result<NetNs> {
    Ok(NetNs::of_process(Path::new("/proc"), i32::try_from(site.factory.pid())?)?)
}

/// A ledger that begins now: on the root, or on any other cgroup as if it were the root.
fn ledger(site: &Site, root: Hierarchy, counter: HostCounter) -> Result<HostLedger> {
    let mut ledger = HostLedger::with(counter, root, proxy_namespace(site)?, "this-boot", None)?;
    let begin = ledger.sample(&[])?;
    ledger.committed(&begin)?;
    Ok(ledger)
}

/// Waits for silence and ends the captures, less what this kernel's hooks do not show.
/// What was captured, and what this kernel's hooks did not see of it.
fn captured(capture: traffic_lab::topology::LabCapture<'_>) -> Result<(LabTrace, Sum)> {
    let mut trace = capture.stop()?;
    trace.check()?;
    let unseen = Kernel::running()?.take_unseen(&mut trace);
    Ok((trace, unseen))
}

fn of_cgroup(flush: &HostFlush, cgroup: &str, interface: &str, direction: Direction) -> Counters {
    let wanted = flush.postings.iter().filter(|(series, _)| {
        series.cgroup == cgroup && series.interface == interface && series.direction == direction
    });
    wanted.map(|(_, counters)| *counters).sum()
}

fn on_wire(counters: Counters) -> (u64, u64) {
    (counters.wire_packets, counters.wire_bytes)
}

fn in_capture(sum: Sum) -> (u64, u64) {
    (sum.packets, sum.l3_bytes)
}

/// Two cgroups in one namespace, beside whatever else runs on this machine.
fn check(stack: Stack, model_of: impl Fn(Direction) -> (Model, u32)) -> Result<()> {
    let site = Site::new(stack)?;
    let other = CountedCgroup::new("other")?;
    let factory = Factory::start(&site.lab.proxy, &other)?;
    let _relay = site.relay()?;
    let server = site.server()?;
    let listener = site.lab.upstream.run_in(|| TcpListener::bind(any(OTHER_PORT)))??;
    let mut ledger = ledger(&site, site.host.cgroups.clone(), HostCounter::load()?)?;

    let capture = site.lab.capture()?;
    for family in [Family::Ipv4, Family::Ipv6] {
        site.drive(&BULK, family, &server)?;
        let to = (addresses(family).upstream, OTHER_PORT).into();
        let client = factory.tcp_stream(to)?;
        let (peer, _) = listener.accept()?;
        carry(&peer, &client, 1_500_000)?;
    }
    let (trace, unseen) = captured(capture)?;
    let target = HostTarget { name: "proxy".into(), cgroups: vec![site.cgroup.cgroup_path()] };
    let flush = ledger.sample(&[target])?;

    let (own, others) = (site.cgroup.cgroup_path(), other.cgroup_path());
    for (interface, leg) in [(CLIENT_DEVICE, &trace.client), (UPSTREAM_DEVICE, &trace.upstream)] {
        for (direction, in_trace) in DIRECTIONS {
            let of = |cgroup: &str| of_cgroup(&flush, cgroup, interface, direction);
            let all = leg.trace.sum(Filter::all().direction(in_trace));
            let theirs = Filter::all().direction(in_trace).peer_port(OTHER_PORT);
            let theirs = leg.trace.sum(theirs);
            let ours = (all.packets - theirs.packets, all.l3_bytes - theirs.l3_bytes);
            if stack != Stack::Tso {
                assert_eq!(on_wire(of(&own)), ours, "the proxy's, {interface} {direction:?}");
                let theirs = in_capture(theirs);
                assert_eq!(on_wire(of(&others)), theirs, "the other's, {interface} {direction:?}");
            }

            // And the interface has nothing that they have not.
            let counted = flush.interfaces.iter().find(|(name, _)| name == interface);
            let (_, counted) = counted.context("the interface counted nothing")?;
            let (packets, bytes) = match direction {
                Direction::Ingress => (counted.ingress_packets, counted.ingress_bytes),
                Direction::Egress => (counted.egress_packets, counted.egress_bytes),
            };
            let here = flush.postings.iter().filter(|(series, _)| {
                series.interface == interface && series.direction == direction
            });
            let sum = |is_target: bool| -> Counters {
                let here = here.clone().filter(|(one, _)| one.target.is_some() == is_target);
                here.map(|(_, counters)| *counters).sum()
            };
            let side = Side {
                device: Frames { packets, bytes },
                targets: sum(true),
                others: sum(false),
                ..Side::default()
            };
            let balance = Balance::of(&side, direction, 14);
            println!("{stack:?} {interface} {direction:?}: {balance:?}");
            // SYN-ACKs to clients, on kernels that do not show them.
            let is_to_clients = interface == CLIENT_DEVICE && direction == Direction::Egress;
            let unseen = if is_to_clients { unseen } else { Sum::default() };
            let remainder = Remainder {
                packets: unseen.packets as i64,
                bytes: (unseen.l3_bytes + 14 * unseen.packets) as i64,
            };
            assert_eq!(balance.remainder, remainder, "{interface} {direction:?}");
            let is_bulk = sum(true).packets != sum(true).wire_packets;
            if is_bulk {
                assert_eq!((balance.model, balance.link_header_bytes), model_of(direction));
            }
        }
    }
    Ok(())
}

#[test]
fn interface_counts_segments_and_balances_to_the_byte() -> Result<()> {
    check(Stack::GsoGro, |direction| match direction {
        // A veth that merges frames receives as a card does, and leaves the Ethernet header out.
        Direction::Ingress => (Model::Segments, 0),
        Direction::Egress => (Model::Segments, 14),
    })
}

#[test]
fn interface_counts_packet_by_packet_and_balances_to_the_byte() -> Result<()> {
    check(Stack::Plain, |_| (Model::Segments, 14))
}

#[test]
fn interface_counts_super_packets_and_balances_to_the_byte() -> Result<()> {
    // What was not split by the sender is not merged, and so not received in the manner of a card.
    check(Stack::Tso, |_| (Model::SuperPackets, 14))
}

/// A ledger's tree that begins at this cgroup: nobody else on this machine is in it.
fn tree_at(cgroup: &CountedCgroup) -> Hierarchy {
    Hierarchy::at(cgroup.path(), "/")
}

/// Sums by direction over all of a sample.
fn add(sums: &mut [(u64, u64); 2], cells: &HostCells) {
    for (sum, cell) in sums.iter_mut().zip(cells) {
        *sum = (sum.0 + cell.wire_packets, sum.1 + cell.wire_bytes);
    }
}

/// What both far ends have seen, by direction.
fn both_ways(trace: &LabTrace) -> [(u64, u64); 2] {
    let mut sums = [(0, 0); 2];
    sums[INGRESS as usize] = in_capture(trace.sum(Filter::all().ingress()));
    sums[EGRESS as usize] = in_capture(trace.sum(Filter::all().egress()));
    sums
}

/// While traffic passes on all processors.
const TURNS: u32 = 100;

#[test]
fn turning_under_load_loses_and_doubles_nothing() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let _relay = site.relay()?;
    let server = site.server()?;
    let mut counter = HostCounter::load()?;
    counter.attach(site.cgroup.path())?;
    let capture = site.lab.capture()?;
    let done = AtomicBool::new(false);
    let mut sums = [(0, 0); 2];
    thread::scope(|scope| -> Result<()> {
        let load = scope.spawn(|| -> Result<()> {
            while !done.load(Ordering::Relaxed) {
                for family in [Family::Ipv4, Family::Ipv6] {
                    site.drive(&BULK, family, &server)?;
                }
            }
            Ok(())
        });
        // Everything is taken out of the old map at once: what would still be added to it would be lost.
        let mut turn = || -> Result<()> {
            counter.turn()?;
            let at_rest = counter.previous()?.context("there was no turn before")?;
            at_rest.cells.values().for_each(|cells| add(&mut sums, cells));
            assert_eq!(at_rest.overflow, HostCells::default());
            Ok(counter.clear_previous()?)
        };
        let turned = (0..TURNS).try_for_each(|_| turn());
        done.store(true, Ordering::Relaxed);
        load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        turned
    })?;
    let (trace, _) = captured(capture)?;
    counter.sample()?.cells.values().for_each(|cells| add(&mut sums, cells));
    assert_eq!(sums, both_ways(&trace));
    Ok(())
}

#[test]
fn what_finds_no_place_is_in_the_overflow() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let _relay = site.relay()?;
    let server = site.server()?;
    // One place, for two interfaces.
    let mut counter = HostCounter::load_with(1)?;
    counter.attach(site.cgroup.path())?;
    let capture = site.lab.capture()?;
    site.drive(&BULK, Family::Ipv4, &server)?;
    let (trace, _) = captured(capture)?;
    let sample = counter.sample()?;
    assert_eq!(sample.cells.len(), 1);
    let mut sums = [(0, 0); 2];
    add(&mut sums, &sample.overflow);
    assert!(sums.iter().all(|(packets, _)| *packets > 0), "nothing overflowed: {sums:?}");
    sample.cells.values().for_each(|cells| add(&mut sums, cells));
    assert_eq!(sums, both_ways(&trace));
    Ok(())
}

/// More cgroups than both maps have room for at a time.
const SHORT_LIVED: u64 = 1000;
const ROOM: u32 = 128;

#[test]
fn a_thousand_cgroups_that_come_and_go_lose_nothing() -> Result<()> {
    let site = Site::new(Stack::Plain)?;
    let mut ledger = ledger(&site, tree_at(&site.cgroup), HostCounter::load_with(ROOM)?)?;
    let to = (addresses(Family::Ipv4).upstream, OTHER_PORT).into();
    let _receiver = site.lab.upstream.run_in(|| UdpSocket::bind(any(OTHER_PORT)))??;
    let mut expected = (0, 0);
    let mut found = BTreeMap::<String, (u64, u64)>::new();
    let mut post = |flush: &HostFlush| {
        for (series, counters) in &flush.postings {
            assert_eq!(
                (series.interface.as_str(), series.direction),
                (UPSTREAM_DEVICE, Direction::Egress)
            );
            let sum = found.entry(series.cgroup.clone()).or_default();
            *sum = (sum.0 + counters.wire_packets, sum.1 + counters.wire_bytes);
        }
    };
    let mut orphan: Option<UdpSocket> = None;
    for number in 0..SHORT_LIVED {
        let cgroup = site.cgroup.child(&format!("short-{number}"))?;
        cgroup.add(site.factory.pid())?;
        let socket = site.factory.udp_unbound(to)?;
        site.cgroup.add(site.factory.pid())?;
        let mut send = |socket: &UdpSocket, payload: u64| -> Result<()> {
            socket.send_to(&vec![1; payload as usize], to)?;
            expected = (expected.0 + 1, expected.1 + payload + 28);
            Ok(())
        };
        send(&socket, 1 + number)?;
        if number % 10 == 0 {
            let flush = ledger.sample(&[])?;
            post(&flush);
            ledger.committed(&flush)?;
        }
        // Gone, and its socket speaks up once more; and again when the next cgroup is gone, too.
        cgroup.remove()?;
        send(&socket, 7)?;
        if let Some(earlier) = orphan.replace(socket) {
            send(&earlier, 9)?;
        }
    }
    let flush = ledger.sample(&[])?;
    post(&flush);
    let sum = found.values().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    assert_eq!(sum, expected);
    assert!(!found.contains_key("(overflow)"), "{:?}", found.get("(overflow)"));
    // Those that were looked at in their lifetime have their name.
    assert!(found.contains_key("/short-990"), "{:?}", found.keys().take(5).collect::<Vec<_>>());
    Ok(())
}

#[test]
fn interfaces_of_containers_that_come_and_go_do_not_fill_the_history() -> Result<()> {
    let site = Site::new(Stack::Plain)?;
    let mut ledger = ledger(&site, tree_at(&site.cgroup), HostCounter::load()?)?;
    let mut told = Vec::new();
    for _ in 0..20 {
        for change in ["link add near type veth peer name far", "link del near"] {
            ip(&site.lab.proxy, change)?;
            let flush = ledger.sample(&[])?;
            ledger.committed(&flush)?;
            told.extend(flush.events);
        }
    }
    // Of 40 interfaces: the first two, and if a quarter of an hour ends meanwhile, the others up to then.
    assert!(told.len() <= 2, "{told:#?}");
    // What the other end is called, an old `ip` and kernel decide themselves.
    let first = &told[0].message;
    assert!(
        first.starts_with("2 interfaces are gone, and with them what they counted last: "),
        "{first}"
    );
    assert!(first.contains("near"), "{first}");
    Ok(())
}

#[test]
fn a_ledger_that_ends_is_taken_up_where_it_was_committed() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let _relay = site.relay()?;
    let server = site.server()?;
    let state = tempfile::tempdir()?;
    let bpffs = BpfFileSystem::mount()?;
    let root = PinRoot::open(bpffs.0.path(), state.path())?;
    let start = |kept| -> Result<HostLedger> {
        let namespace = proxy_namespace(&site)?;
        let tree = tree_at(&site.cgroup);
        Ok(HostLedger::start(Some(&root), tree, namespace, "this-boot", kept)?)
    };
    let capture = site.lab.capture()?;
    let mut sums = [(0, 0); 2];
    let mut devices = (0, 0);
    let mut post = |flush: &HostFlush| {
        for (series, counters) in &flush.postings {
            let sum = &mut sums[usize::from(series.direction == Direction::Egress)];
            *sum = (sum.0 + counters.wire_packets, sum.1 + counters.wire_bytes);
        }
        for (name, counters) in &flush.interfaces {
            assert!([CLIENT_DEVICE, UPSTREAM_DEVICE].contains(&name.as_str()), "{name}");
            devices = (devices.0 + counters.ingress_packets, devices.1 + counters.egress_packets);
        }
    };

    let mut first = start(None)?;
    site.drive(&BULK, Family::Ipv4, &server)?;
    let flush = first.sample(&[])?;
    post(&flush);
    first.committed(&flush)?;
    site.drive(&BULK, Family::Ipv6, &server)?;
    // Read, but never committed: the agent is killed.
    let lost = first.sample(&[])?;
    assert!(!lost.postings.is_empty());
    drop(first);
    site.drive(&BULK, Family::Ipv4, &server)?;
    let mut second = start(Some(flush.absolute))?;
    site.drive(&BULK, Family::Ipv6, &server)?;
    let (trace, _) = captured(capture)?;
    let flush = second.sample(&[])?;
    post(&flush);
    second.committed(&flush)?;
    assert!(second.sample(&[])?.postings.is_empty(), "counted once more");
    drop(second);
    assert_eq!(root.remove_all()?, 1);

    assert_eq!(sums, both_ways(&trace));
    let device = |leg: &LegTrace| (leg.device.ingress_packets, leg.device.egress_packets);
    let (client, upstream) = (device(&trace.client), device(&trace.upstream));
    assert_eq!(devices, (client.0 + upstream.0, client.1 + upstream.1));
    Ok(())
}

/// A place for pins of its own. Dropped, it is gone with all that is pinned there.
struct BpfFileSystem(TempDir);

impl BpfFileSystem {
    fn mount() -> Result<Self> {
        let place = tempfile::tempdir()?;
        let none: Option<&str> = None;
        mount(Some("bpf"), place.path(), Some("bpf"), MsFlags::empty(), none)
            .context("cannot mount a bpf filesystem")?;
        Ok(Self(place))
    }
}

impl Drop for BpfFileSystem {
    fn drop(&mut self) {
        if let Err(error) = umount2(self.0.path(), MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {error}", self.0.path().display());
        }
    }
}
