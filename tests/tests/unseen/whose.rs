//! What looks like the target's and is not, and what is although it no longer looks so: a listening
//! port's number in another place, a port that a socket has given back, a cgroup too many.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use traffic_agent::ledger;
use traffic_agent::measure::{Measurement, Plan};
use traffic_agent::report::{
    CellReport, Direction, Directions, Leg, Origin, Protocol, Scope, TargetReport,
};
use traffic_agent::target::{Cgroup, PortFilter};
use traffic_lab::handmade::{FarEnd, Side};
use traffic_lab::link::{End, connect};
use traffic_lab::packet::{ACK, FIN, Family, Headers, ICMP, ICMPV6, RST};
use traffic_lab::topology::{MTU, addresses};
use traffic_lab::{CountedCgroup, Namespace, Stack};
use traffic_tests::factory::Factory;
use traffic_tests::rules;
use traffic_tests::site::{Site, any, tcp, udp};
use traffic_tests::unseen::{Class, now};

use crate::no_socket::knock;
use crate::{FAMILIES, PORT, close, connected, ip_header, reset, segment, syn};

/// Bytes in a datagram.
const PAYLOAD: u32 = 100;
/// A packet takes its time, but not this long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes of a datagram.
fn datagram(family: Family) -> u32 {
    ip_header(family) + 8 + PAYLOAD
}

/// A plan for these cgroups instead of the site's.
fn plan(site: &Site, cgroups: &[CountedCgroup]) -> Result<Plan> {
    let cgroups = cgroups.iter().map(|cgroup| {
        let (path, dir) = (cgroup.cgroup_path(), cgroup.path().to_owned());
        Ok(Cgroup { path, dir, id: cgroup.id()? })
    });
    Ok(Plan { selectors: Vec::new(), cgroups: cgroups.collect::<Result<_>>()?, ..site.plan()? })
}

/// Wire bytes, in and out.
fn bytes(sum: Directions) -> (u64, u64) {
    (sum.ingress.wire_bytes, sum.egress.wire_bytes)
}

/// Wire bytes of the packets without a socket that are the target's, and of those that are anybody's.
fn without_socket(report: &TargetReport) -> Result<[(u64, u64); 2]> {
    let targets = ledger::sum(&report.cells, |cell| cell.origin != Origin::Socket);
    let anybodys = report.unattributed.context("nothing is traced")?;
    Ok([bytes(targets), bytes(anybodys)])
}

fn is_icmp(headers: &Headers) -> bool {
    matches!(headers.protocol, ICMP | ICMPV6)
}

/// Sends a SYN out of a namespace, to where nobody listens. Returns how many it took: if the answer is a second
/// late, the kernel asks once more.
fn refused(namespace: &Namespace, to: SocketAddr) -> Result<u32> {
    namespace.run_in(|| {
        let before = syns_again()?;
        let kind = TcpStream::connect(to).err().map(|error| error.kind());
        ensure!(kind == Some(ErrorKind::ConnectionRefused), "{to} did not refuse: {kind:?}");
        Ok(1 + syns_again()? - before)
    })?
}

/// How many SYNs and SYN-ACKs this thread's namespace has sent again.
fn syns_again() -> Result<u32> {
    let text = fs::read_to_string("/proc/thread-self/net/netstat")?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, numbers) = lines.next().zip(lines.next()).context("no TcpExt")?;
    let mut columns = names.split(' ').zip(numbers.split(' '));
    let found = columns.find(|&(name, _)| name == "TCPSynRetrans").context("no TCPSynRetrans")?;
    Ok(found.1.parse()?)
}

/// An address on one of the further links.
fn on_link(family: Family, link: u8, host: u8) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::new(10, 88, link, host).into(),
        Family::Ipv6 => Ipv6Addr::new(0xfd88, link.into(), 0, 0, 0, 0, 0, host.into()).into(),
    }
}

fn loopback(family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::LOCALHOST.into(),
        Family::Ipv6 => Ipv6Addr::LOCALHOST.into(),
    }
}

/// A datagram of the target's to an address, and one back.
fn echo(factory: &Factory, namespace: &Namespace, at: SocketAddr) -> Result<()> {
    let far = namespace.run_in(|| UdpSocket::bind(at))??;
    let near = factory.udp_unbound(at)?;
    for socket in [&near, &far] {
        socket.set_read_timeout(Some(PATIENCE))?;
    }
    near.send_to(&[7; PAYLOAD as usize], at)?;
    let (length, from) = far.recv_from(&mut [0; 200])?;
    far.send_to(&vec![7; length], from)?;
    ensure!(near.recv(&mut [0; 200])? == length, "another datagram has come");
    Ok(())
}

#[test]
fn scans_of_six_further_interfaces_take_no_slot_from_the_targets_own() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    // As many as are told apart, and the target's.
    let targets = 7;
    for link in 1..=targets {
        let (near, far) = (format!("n{link}"), format!("f{link}"));
        let at = |host| {
            let at = |family| on_link(family, link, host);
            [(at(Family::Ipv4), 24), (at(Family::Ipv6), 64)]
        };
        let near = End { namespace: &site.lab.proxy, name: &near, addresses: &at(2) };
        let far = End { namespace: &site.lab.upstream, name: &far, addresses: &at(1) };
        connect(far, near, MTU)?;
    }
    for family in FAMILIES {
        let mut measurement = Measurement::start(&site.host, site.plan()?)?;
        let start = measurement.sample()?;
        let mut syns = 0;
        for link in 1..targets {
            syns += refused(&site.lab.upstream, (on_link(family, link, 2), 9).into())?;
        }
        echo(&site.factory, &site.lab.upstream, (on_link(family, targets, 1), PORT).into())?;
        let end = measurement.sample()?;
        let report = measurement.report(&start, &end)?;

        let own = ledger::sum(&report.cells, |cell| cell.interface == "n7");
        let echoed = u64::from(datagram(family));
        assert_eq!(bytes(own), (echoed, echoed), "{family:?}");
        assert!(report.cells.iter().all(|cell| cell.interface == "n7"), "{:?}", report.cells);
        ensure!(syns >= 6, "{syns} SYNs to six interfaces");
        let scans = ((syns * syn(family)).into(), (syns * reset(family)).into());
        assert_eq!(without_socket(&report)?, [(0, 0), scans], "{family:?}");
    }
    Ok(())
}

#[test]
fn the_agents_own_namespace_is_none_of_the_targets_once_that_has_one() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let own = Namespace::new("agent")?;
    for family in FAMILIES {
        let cgroups = [CountedCgroup::new("empty")?];
        let plan = plan(&site, &cgroups)?;
        let (report, syns) = own.run_in(|| -> Result<(TargetReport, u32)> {
            // The cgroup has no process yet.
            let mut measurement = Measurement::start(&site.host, plan)?;
            let factory = Factory::start(&site.lab.proxy, &cgroups[0])?;
            let listener = factory.tcp_listener(any(PORT))?;
            measurement.follow()?;
            ensure!(measurement.client_ports() == [tcp(PORT)], "the listener was not found");
            let start = measurement.sample()?;
            drop(listener);
            for _ in 0..3 {
                refused(&own, (loopback(family), PORT).into())?;
            }
            let syns = refused(&site.lab.client, (addresses(family).proxy_client, PORT).into())?;
            let end = measurement.sample()?;
            Ok((measurement.report(&start, &end)?, syns))
        })??;
        // The one SYN to the proxy, and none of those in the agent's namespace.
        let one = ((syns * syn(family)).into(), (syns * reset(family)).into());
        assert_eq!(without_socket(&report)?, [one, (0, 0)], "{family:?}");
        let is_clients = |cell: &CellReport| {
            (cell.leg, cell.port, cell.scope) == (Leg::Client, Some(PORT), Scope::Billed)
        };
        assert!(report.cells.iter().all(is_clients), "{:?}", report.cells);
    }
    Ok(())
}

#[test]
fn what_is_answered_from_a_processs_first_socket_on_is_the_targets() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let own = Namespace::new("agent")?;
    for family in FAMILIES {
        let cgroups = [CountedCgroup::new("empty")?];
        let plan = plan(&site, &cgroups)?;
        let (report, syns) = own.run_in(|| -> Result<(TargetReport, u32)> {
            let far = FarEnd::new(&site.lab, Side::Client, family)?;
            let mut measurement = Measurement::start(&site.host, plan)?;
            let start = measurement.sample()?;
            // Nobody has looked where the process is.
            let factory = Factory::start(&site.lab.proxy, &cgroups[0])?;
            let listener = factory.tcp_listener(any(PORT))?;
            let (mut connection, stream) = connected(&far, &listener)?;
            close(&mut connection, stream)?;
            connection.send(FIN | ACK, &[])?;
            connection.expect(ACK)?;
            drop(listener);
            refused(&own, (loopback(family), PORT).into())?;
            let syns = refused(&site.lab.client, (addresses(family).proxy_client, PORT).into())?;
            let end = measurement.sample()?;
            // It is still the target's when the process has been found.
            measurement.follow()?;
            let found = measurement.sample()?;
            connection.send_again(1, FIN | ACK, &[])?;
            connection.see(ACK)?;
            let once_more = measurement.report(&found, &measurement.sample()?)?;
            let header = segment(family, 0).into();
            assert_eq!(without_socket(&once_more)?, [(header, header), (0, 0)], "{family:?}");
            Ok((measurement.report(&start, &end)?, syns))
        })??;
        // A FIN and its acknowledgement, a SYN and its reset.
        let header = segment(family, 0);
        let both = ((header + syns * syn(family)).into(), (header + syns * reset(family)).into());
        assert_eq!(without_socket(&report)?, [both, (0, 0)], "{family:?}");
    }
    Ok(())
}

#[test]
fn what_the_firewall_refuses_to_forward_is_not_the_targets_whatever_its_port() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    site.lab.proxy.sysctl("ipv4/ip_forward", "1")?;
    site.lab.proxy.sysctl("ipv6/conf/all/forwarding", "1")?;
    let _listener = site.factory.tcp_listener(any(PORT))?;
    let _socket = site.factory.udp(any(PORT))?;
    for family in FAMILIES {
        for protocol in ["tcp", "udp"] {
            let rule = format!("FORWARD -p {protocol} --dport {PORT} -j REJECT");
            rules::add(&site.lab.proxy, family, &rule)?;
        }
        let far = FarEnd::new(&site.lab, Side::Client, family)?.towards(addresses(family).upstream);
        let mut counting = site.count()?;
        far.syn(far.fresh_port(), PORT)?;
        far.receive(is_icmp)?;
        far.datagram(far.fresh_port(), PORT, &[7; PAYLOAD as usize])?;
        far.receive(is_icmp)?;
        // Not held against the captures: a router talks to other routers when it likes.
        assert_eq!(counting.so_far()?, [], "{family:?}");
    }
    Ok(())
}

#[test]
fn a_connected_udp_socket_that_was_closed_leaves_its_port_to_its_peer_only() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    for family in FAMILIES {
        let far = FarEnd::new(&site.lab, Side::Upstream, family)?;
        let counting = site.count()?;
        let socket = site.factory.udp_unbound(far.at(PORT))?;
        socket.connect(far.at(PORT))?;
        let port = socket.local_addr()?.port();
        drop(socket);
        // The peer, which was sent nothing, and two strangers.
        for from in [PORT, far.fresh_port(), far.fresh_port()] {
            far.datagram(from, port, &[7; PAYLOAD as usize])?;
            far.receive(is_icmp)?;
        }
        let report = counting.finish()?.report;
        let datagram = u64::from(datagram(family));
        // Errors over IPv6 have no tracepoint.
        let error = match family {
            Family::Ipv4 => datagram + 28,
            Family::Ipv6 => 0,
        };
        let expected = [(datagram, error), (2 * datagram, 2 * error)];
        assert_eq!(without_socket(&report)?, expected, "{family:?}");
        assert!(report.cells.iter().all(|cell| cell.leg == Leg::Upstream), "{:?}", report.cells);
    }
    Ok(())
}

#[test]
fn syns_to_a_port_that_was_taken_away_are_anybodys() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    for family in FAMILIES {
        let far = FarEnd::new(&site.lab, Side::Client, family)?;
        let listener = site.factory.tcp_listener(any(PORT))?;
        let ports = PortFilter(vec![format!("!tcp/{PORT}").parse()?]);
        let counting = site.count_as(Plan { ports, ..site.plan()? })?;
        drop(listener);
        knock(&far, PORT)?;
        let class = Class::of(|_| true).ingress([syn(family); 10]).egress([reset(family); 10]);
        class.anybodys().assert_in(&counting.finish()?, &[]);
    }
    Ok(())
}

/// Origin and wire bytes of the cells of the listening port that met no socket, in before out.
fn of_port(report: &TargetReport) -> Vec<(Direction, Origin, u64)> {
    let of_port = |cell: &&CellReport| {
        (cell.leg, cell.protocol, cell.port) == (Leg::Client, Protocol::Tcp, Some(PORT))
            && cell.origin != Origin::Socket
    };
    let cells = report.cells.iter().filter(of_port);
    let mut found: Vec<_> =
        cells.map(|cell| (cell.direction, cell.origin, cell.counters.wire_bytes)).collect();
    found.sort_unstable();
    found
}

#[test]
fn what_comes_late_for_a_client_is_of_its_port_although_that_was_released() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    for family in FAMILIES {
        let listener = site.factory.tcp_listener(any(PORT))?;
        let far = FarEnd::new(&site.lab, Side::Client, family)?;
        let mut counting = site.count()?;
        let (mut connection, stream) = connected(&far, &listener)?;
        close(&mut connection, stream)?;
        drop(listener);
        counting.measurement.follow()?;
        ensure!(counting.measurement.client_ports().is_empty(), "the port was not released");
        let released = now();
        connection.send(FIN | ACK, &[])?;
        connection.expect(ACK)?;
        let counted = counting.finish()?;
        let bytes = segment(family, 0);
        let class = Class::since(released).ingress([bytes]).egress([bytes]);
        class.assert_in(&counted, &[tcp(PORT)]);
        let expected = [
            (Direction::Ingress, Origin::Kernel, bytes.into()),
            (Direction::Egress, Origin::KernelDerived, bytes.into()),
        ];
        assert_eq!(of_port(&counted.report), expected, "{family:?}");
    }
    Ok(())
}

#[test]
fn a_new_syn_into_time_wait_is_acknowledged_when_nobody_listens_any_more() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    for (family, syn, ack) in [(Family::Ipv4, 60, 52), (Family::Ipv6, 80, 72)] {
        let listener = site.factory.tcp_listener(any(PORT))?;
        let far = FarEnd::new(&site.lab, Side::Client, family)?;
        let counting = site.count()?;
        let (mut connection, stream) = connected(&far, &listener)?;
        close(&mut connection, stream)?;
        let closed = now();
        // Without the far end's FIN the SYN would be reset.
        connection.send(FIN | ACK, &[])?;
        connection.expect(ACK)?;
        drop(listener);
        connection.begin_again()?.see(ACK)?;
        let counted = counting.finish()?;
        let fin = segment(family, 0);
        let class = Class::since(closed).ingress([fin, syn]).egress([ack, ack]);
        class.assert_in(&counted, &[tcp(PORT)]);
        let expected = [
            (Direction::Ingress, Origin::Kernel, u64::from(fin + syn)),
            (Direction::Egress, Origin::KernelDerived, u64::from(ack + ack)),
        ];
        assert_eq!(of_port(&counted.report), expected, "{family:?}");
    }
    Ok(())
}

#[test]
fn an_extension_header_hides_nothing() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let far = FarEnd::new(&site.lab, Side::Client, Family::Ipv6)?.with_options();
    let (listener, socket) = (site.factory.tcp_listener(any(PORT))?, site.factory.udp(any(PORT))?);
    let counting = site.count()?;
    drop((listener, socket));
    far.syn(far.fresh_port(), PORT)?;
    far.receive(|headers| headers.tcp.is_some_and(|tcp| tcp.has(RST)))?;
    far.datagram(far.fresh_port(), PORT, &[7; PAYLOAD as usize])?;
    far.receive(is_icmp)?;
    // 8 bytes more in what comes, and in what the error quotes.
    let class = Class::of(|_| true).ingress([88, 156]).egress([60, 40 + 8 + 156]);
    // Errors over IPv6 have no tracepoint.
    let class = class.traced(|packet| !is_icmp(&packet.headers));
    class.assert_in(&counting.finish()?, &[tcp(PORT), udp(PORT)]);
    Ok(())
}

#[test]
fn with_more_cgroups_than_have_room_everything_with_a_socket_is_counted() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let parent = CountedCgroup::new("many")?;
    let cgroups: Vec<_> =
        (1..=65).map(|number| parent.child(&format!("c{number}"))).collect::<Result<_>>()?;
    for family in FAMILIES {
        let mut measurement = Measurement::start(&site.host, plan(&site, &cgroups)?)?;
        let start = measurement.sample()?;
        for cgroup in [&cgroups[0], &cgroups[63], &cgroups[64]] {
            let factory = Factory::start(&site.lab.proxy, cgroup)?;
            let at = (addresses(family).upstream, PORT).into();
            echo(&factory, &site.lab.upstream, at)?;
        }
        measurement.follow()?;
        let end = measurement.sample()?;
        let report = measurement.report(&start, &end)?;
        let echoed = 3 * u64::from(datagram(family));
        assert_eq!(bytes(report.totals.billed), (echoed, echoed), "{family:?}");
        assert_eq!(report.unattributed, None);
        let found = report.findings.iter().find(|one| one.code == "kernel-answers-not-counted");
        let finding = found.with_context(|| format!("no such finding: {:?}", report.findings))?;
        assert!(finding.message.contains("more than 64 cgroups"), "{}", finding.message);
    }
    Ok(())
}
