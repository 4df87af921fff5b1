//! The books balance: the sum of all cells is every packet that reached the hooks, under load on all
//! processors, while connections, ports and looks at the target come and go.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use traffic_agent::ledger;
use traffic_agent::measure::Measurement;
use traffic_agent::report::{Direction, Protocol};
use traffic_lab::link::{self, DeviceCounters, End};
use traffic_lab::packet::Family;
use traffic_lab::topology::{MTU, addresses};
use traffic_lab::workload::Workload;
use traffic_lab::{Namespace, Stack};
use traffic_tests::exchange::with_listener;
use traffic_tests::figures::{Books, Figures, Key};
use traffic_tests::site::{Counting, RELAY_PORT, SERVER_PORT, Site, any, tcp};

const FIRST_PORT: u16 = 2000;
/// Of which 57 have slots beside the relay.
const PORTS: u16 = 80;

const BULK: Workload = Workload {
    name: "bulk",
    connections: 12,
    parallel: 3,
    upload_bytes: 1_000_000,
    download_bytes: 2_000_000,
    at_once: true,
};
const SHORT: Workload = Workload {
    name: "short",
    connections: 400,
    parallel: 4,
    upload_bytes: 200,
    download_bytes: 2000,
    at_once: false,
};

/// Looks at the target and reads the counters, far more often than the agent does.
fn watch(counting: &mut Counting<'_>, done: &AtomicBool) -> Result<()> {
    while !done.load(Ordering::Relaxed) {
        counting.measurement.follow()?;
        counting.so_far()?;
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn check(stack: Stack) -> Result<()> {
    let site = Site::new(stack)?;
    let _relay = site.relay()?;
    // A server is one workload's at a time: it tells how much it carried.
    let server = site.server()?;
    let mut counting = site.count()?;
    let done = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        // Ports come and go; their first SYN claims a slot while packets pass on the other processor.
        let ports = scope.spawn(|| -> Result<()> {
            for port in FIRST_PORT..FIRST_PORT + PORTS {
                let family = if port % 2 == 0 { Family::Ipv4 } else { Family::Ipv6 };
                let listener = site.factory.tcp_listener(any(port))?;
                let to = (addresses(family).proxy_client, port).into();
                with_listener(&site.lab.client, to, &listener)?;
            }
            Ok(())
        });
        let load = scope.spawn(|| -> Result<()> {
            for workload in [BULK, SHORT] {
                for family in [Family::Ipv4, Family::Ipv6] {
                    site.drive(&workload, family, &server)?;
                }
            }
            Ok(())
        });
        let watching = scope.spawn(|| watch(&mut counting, &done));
        let results = [ports.join(), load.join()];
        done.store(true, Ordering::Relaxed);
        for result in results.into_iter().chain([watching.join()]) {
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(())
    })?;

    let counted = counting.finish()?;
    let ports: Vec<_> =
        [RELAY_PORT].into_iter().chain(FIRST_PORT..FIRST_PORT + PORTS).map(tcp).collect();
    assert_eq!(counted.books_without_ports(), counted.captured_without_ports(&ports));
    // The devices agree: LabTrace::check, in `finish`, has held the captures against them.
    let billed = counted.report.totals.billed;
    if stack == Stack::Plain {
        let (client, upstream) = (counted.trace.client.device, counted.trace.upstream.device);
        assert_eq!(
            [billed.ingress.packets, billed.egress.packets],
            [
                client.ingress_packets + upstream.ingress_packets,
                client.egress_packets + upstream.egress_packets
            ]
        );
    }
    Ok(())
}

#[test]
fn sums_balance_under_load_with_super_packets() -> Result<()> {
    check(Stack::GsoGro)
}

#[test]
fn sums_balance_under_load_packet_by_packet() -> Result<()> {
    check(Stack::Plain)
}

/// More than the 42 that can have slots of their own.
const UDP_PORTS: u16 = 50;
const FIRST_UDP_PORT: u16 = 3000;
/// Payload of a datagram.
const PAYLOAD: usize = 300;

/// Binds a UDP port in the counted cgroup, and has datagrams sent to it and back.
fn serve_datagrams(site: &Site, port: u16, datagrams: u32) -> Result<()> {
    let family = if port.is_multiple_of(2) { Family::Ipv4 } else { Family::Ipv6 };
    let to = SocketAddr::from((addresses(family).proxy_client, port));
    let server = site.factory.udp(to)?;
    let from = SocketAddr::from((addresses(family).client, 0));
    let client = site.lab.client.run_in(|| UdpSocket::bind(from))??;
    echo(&client, &server, to, datagrams)
}

/// Datagrams to an address where the second socket is, and back.
fn echo(one: &UdpSocket, other: &UdpSocket, to: SocketAddr, datagrams: u32) -> Result<()> {
    for socket in [one, other] {
        socket.set_read_timeout(Some(Duration::from_secs(60)))?;
    }
    for _ in 0..datagrams {
        one.send_to(&[1; PAYLOAD], to)?;
        let (length, from) = other.recv_from(&mut [0; 2 * PAYLOAD])?;
        other.send_to(&vec![2; length], from)?;
        one.recv(&mut [0; 2 * PAYLOAD])?;
    }
    Ok(())
}

/// The figures by interface, direction, protocol and family: what a packet is whoever listens.
fn without_legs(books: Books) -> BTreeMap<(String, Direction, Protocol, String), Figures> {
    let mut merged = BTreeMap::new();
    for (Key { interface, direction, protocol, family, .. }, figures) in books {
        let sum: &mut Figures =
            merged.entry((interface, direction, protocol, format!("{family:?}"))).or_default();
        *sum = *sum + figures;
    }
    merged
}

#[test]
fn ports_that_appear_and_vanish_under_load_lose_no_packet() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let _relay = site.relay()?;
    let server = site.server()?;
    let mut counting = site.count()?;
    let done = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        // Twice each: a port that was taken out of the client leg comes back.
        let udp = scope.spawn(|| -> Result<()> {
            for port in (FIRST_UDP_PORT..FIRST_UDP_PORT + UDP_PORTS).cycle().take(2 * 50) {
                serve_datagrams(&site, port, 20)?;
            }
            Ok(())
        });
        let tcp = scope.spawn(|| -> Result<()> {
            for port in (FIRST_PORT..FIRST_PORT + 20).cycle().take(2 * 20) {
                let listener = site.factory.tcp_listener(any(port))?;
                let to = (addresses(Family::Ipv4).proxy_client, port).into();
                with_listener(&site.lab.client, to, &listener)?;
            }
            Ok(())
        });
        let load = scope.spawn(|| site.drive(&BULK, Family::Ipv6, &server).map(drop));
        let watching = scope.spawn(|| watch(&mut counting, &done));
        let results = [udp.join(), tcp.join(), load.join()];
        done.store(true, Ordering::Relaxed);
        for result in results.into_iter().chain([watching.join()]) {
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(())
    })?;

    let counted = counting.finish()?;
    // What became of a port while it changed hands is a matter of the leg, not of the sum.
    assert_eq!(without_legs(counted.books()), without_legs(counted.captured(&[])));
    counted.expect_finding("port-without-slot")?;
    Ok(())
}

/// Issue: one that was opened again while the agent looked, such as a proxy's that restarts, was
/// upstream from then on.
#[test]
fn a_udp_port_that_comes_back_is_the_client_leg_again() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let mut measurement = Measurement::start(&site.host, site.plan()?)?;
    let port = traffic_tests::site::udp(FIRST_UDP_PORT);
    let mut socket = site.factory.udp(any(port.port))?;
    for pause in 0..150 {
        // Each look sees it come back at another moment: one of them between a last sight of it closed
        // and what follows from that.
        let (bound, looked) = thread::scope(|scope| {
            let bound = scope.spawn(|| {
                drop(socket);
                thread::sleep(Duration::from_micros(20 * pause));
                site.factory.udp(any(port.port))
            });
            let looked = measurement.follow();
            (bound.join(), looked)
        });
        looked?;
        socket = bound.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        measurement.follow()?;
        assert!(measurement.client_ports().contains(&port), "after {pause} looks");
    }
    Ok(())
}

/// Half of them on each leg of the relay.
const CONNECTIONS: usize = 10_000;

#[test]
fn ten_thousand_short_connections_are_counted_to_the_byte() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let _relay = site.relay()?;
    let server = site.server()?;
    let mut counting = site.count()?;
    let workload = Workload { connections: CONNECTIONS as u32 / 2, ..SHORT };
    for family in [Family::Ipv4, Family::Ipv6] {
        let outcome = site.drive(&workload, family, &server)?;
        assert_eq!(outcome.server.connections, u64::from(workload.connections));
        counting.measurement.follow()?;
    }
    counting.finish()?.assert_books_equal_capture(&[tcp(RELAY_PORT)]);
    Ok(())
}

#[test]
fn ten_thousand_connections_open_at_once_are_counted_to_the_byte() -> Result<()> {
    have_descriptors(CONNECTIONS + 500)?;
    let site = Site::new(Stack::GsoGro)?;
    let _relay = site.relay()?;
    let server = site.lab.upstream.run_in(|| TcpListener::bind(any(SERVER_PORT)))??;
    let mut counting = site.count()?;

    // A client at the relay, and the server's end of what the relay has made of it.
    let tunnels = site.lab.client.run_in(|| -> Result<Vec<_>> {
        let families = [Family::Ipv4, Family::Ipv6].into_iter().cycle();
        families.take(CONNECTIONS / 2).map(|family| tunnel(family, &server)).collect()
    })??;
    counting.measurement.follow()?;
    for (client, server) in &tunnels {
        carry_some(client, server)?;
        carry_some(server, client)?;
    }
    counting.measurement.follow()?;
    for (client, server) in &tunnels {
        for (from, mut to) in [(client, server), (server, client)] {
            from.shutdown(Shutdown::Write)?;
            ensure!(to.read(&mut [0])? == 0, "more came than was sent");
        }
    }
    counting.settle()?;
    drop(tunnels);
    counting.measurement.follow()?;
    counting.finish()?.assert_books_equal_capture(&[tcp(RELAY_PORT)]);
    Ok(())
}

/// Raises the number of files that this process, and what it starts, may have open.
fn have_descriptors(wanted: usize) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = wanted as u64;
    ensure!(hard >= wanted, "{wanted} open files are needed, {hard} allowed: raise `ulimit -Hn`");
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(wanted), hard).context("cannot raise ulimit -n")
}

/// Connects through the relay, from the calling thread's namespace: client's end, server's end.
fn tunnel(family: Family, server: &TcpListener) -> Result<(TcpStream, TcpStream)> {
    let addresses = addresses(family);
    let mut client = TcpStream::connect((addresses.proxy_client, RELAY_PORT))?;
    client.set_read_timeout(Some(Duration::from_secs(60)))?;
    let target = SocketAddr::from((addresses.upstream, SERVER_PORT));
    client.write_all(format!("CONNECT {target} HTTP/1.1\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte)?;
        answer.extend(byte);
    }
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    Ok((client, server.accept()?.0))
}

/// A few bytes from one end to the other.
fn carry_some(mut from: &TcpStream, mut to: &TcpStream) -> Result<()> {
    to.set_read_timeout(Some(Duration::from_secs(60)))?;
    from.write_all(&[3; 100])?;
    Ok(to.read_exact(&mut [0; 100])?)
}

/// Interfaces that live for a moment, three names in turns.
const SHORT_LIVED: u8 = 12;
/// Those stay: together with the two of the lab more than have slots.
const STAY: u8 = 3;

#[test]
fn interfaces_that_come_and_go_and_run_out_of_slots_lose_no_packet() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let _relay = site.relay()?;
    let server = site.server()?;
    let mut counting = site.count()?;
    // The lab's own two have slots before the others come.
    site.drive(&Workload { connections: 1, parallel: 1, ..SHORT }, Family::Ipv4, &server)?;
    let done = AtomicBool::new(false);
    let devices = thread::scope(|scope| -> Result<Vec<DeviceCounters>> {
        let links = scope.spawn(|| -> Result<Vec<DeviceCounters>> {
            let mut stay = Vec::new();
            let mut devices = Vec::new();
            for number in 1..=SHORT_LIVED {
                let (far, device) = short_lived(&site, number, 0)?;
                devices.push(link::counters(&site.lab.proxy, &device)?);
                if number <= STAY {
                    stay.push(far);
                }
            }
            Ok(devices)
        });
        let load = scope.spawn(|| site.drive(&BULK, Family::Ipv4, &server).map(drop));
        let watching = scope.spawn(|| watch(&mut counting, &done));
        let (devices, load) = (links.join(), load.join());
        done.store(true, Ordering::Relaxed);
        for result in [load, watching.join()] {
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        devices.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;

    let counted = counting.finish()?;
    let lab = |name: &str| name == link_name(true) || name == link_name(false);
    let mut books = counted.books();
    books.retain(|key, _| lab(&key.interface));
    assert_eq!(books, counted.captured(&[tcp(RELAY_PORT)]), "the lab's own links");

    let others = ledger::sum(&counted.report.cells, |cell| !lab(&cell.interface));
    let datagrams: u64 = (1..=SHORT_LIVED).map(u64::from).sum();
    let by_device = |packets: fn(&DeviceCounters) -> u64| devices.iter().map(packets).sum::<u64>();
    for (direction, device) in [
        (others.ingress, by_device(|device| device.ingress_packets)),
        (others.egress, by_device(|device| device.egress_packets)),
    ] {
        assert_eq!([direction.packets, direction.wire_packets, device], [datagrams; 3]);
        assert_eq!(direction.wire_bytes, datagrams * (PAYLOAD as u64 + 28));
    }
    // Six have slots, two of them the lab's: those behind the fourth share one.
    let shared = ledger::sum(&counted.report.cells, |cell| cell.interface == "other");
    let behind: u64 = (5..=SHORT_LIVED).map(u64::from).sum();
    assert_eq!([shared.ingress.packets, shared.egress.packets], [behind; 2]);
    counted.expect_finding("interface-without-slot")?;
    Ok(())
}

#[test]
fn interface_numbers_beyond_the_table_share_a_slot() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let mut counting = site.count()?;
    // The last that is in the table, the first that is not, and one whose low bits are loopback's.
    let mut links = Vec::new();
    for (number, index) in [(1, 65_535), (2, 65_536), (3, 65_537)] {
        links.push(short_lived(&site, number, index)?);
    }
    counting.measurement.follow()?;
    let counted = counting.finish()?;
    let of = |name: &str| {
        let sum = ledger::sum(&counted.report.cells, |cell| cell.interface == name);
        (sum.ingress.packets, sum.egress.packets)
    };
    assert_eq!([of("stay1"), of("other"), of("lo")], [(1, 1), (5, 5), (0, 0)]);
    Ok(())
}

/// The lab's device towards the client or the upstream.
fn link_name(client: bool) -> &'static str {
    match client {
        true => traffic_lab::topology::CLIENT_DEVICE,
        false => traffic_lab::topology::UPSTREAM_DEVICE,
    }
}

/// The kernel takes links down some time after their namespace: then their names are free.
fn wait_until_gone(site: &Site, device: &str) -> Result<()> {
    for _ in 0..1000 {
        if link::counters(&site.lab.proxy, device).is_err() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(10));
    }
    anyhow::bail!("{device} is still there after ten seconds")
}

/// Makes a link, and has as many datagrams go over it and back as its number says.
///
/// It ends with the namespace that is returned. 0 is an index of the kernel's choice.
fn short_lived(site: &Site, number: u8, index: u32) -> Result<(Namespace, String)> {
    let far = Namespace::new("short-lived")?;
    far.sysctl("ipv6/conf/default/disable_ipv6", "1")?;
    let device = if number <= STAY { format!("stay{number}") } else { format!("n{}", number % 3) };
    wait_until_gone(site, &device)?;
    let address = |host| Ipv4Addr::new(10, 88, number, host);
    let at = |host| [(IpAddr::V4(address(host)), 24)];
    link::connect_as(
        End { namespace: &far, name: "far", addresses: &at(1) },
        End { namespace: &site.lab.proxy, name: &device, addresses: &at(2) },
        MTU,
        index,
    )?;
    let to = SocketAddr::from((address(1), 7000));
    let server = far.run_in(|| UdpSocket::bind(to))??;
    let client = site.factory.udp_unbound(to)?;
    echo(&client, &server, to, number.into()).with_context(|| format!("link {number}"))?;
    Ok((far, device))
}
