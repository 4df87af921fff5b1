//! Which leg a packet belongs to: the socket's port decides, from the first packet on, whatever
//! listens, is translated, or comes and goes.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use anyhow::Result;
use nix::sys::socket::{SockaddrStorage, bind, setsockopt, sockopt};
use traffic_agent::report::{Leg, Protocol};
use traffic_agent::target::PortFilter;
use traffic_lab::Stack;
use traffic_lab::packet::Family;
use traffic_lab::relay::bind_listener;
use traffic_lab::topology::addresses;
use traffic_tests::exchange::{EXCHANGED_BYTES, carry, with_listener, with_listener_by};
use traffic_tests::factory::{connect_to, listen_on};
use traffic_tests::figures;
use traffic_tests::site::{SERVER_PORT, Site, any, tcp, udp};

const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];
const PORT: u16 = 1171;
/// A port that the lab's kernels hand out.
const EPHEMERAL_PORT: u16 = 30_000;

/// The proxy's address as its clients know it.
fn proxy(family: Family, port: u16) -> SocketAddr {
    (addresses(family).proxy_client, port).into()
}

/// The proxy, as a client, exchanges with a server at the upstream from a socket that is not connected.
fn go_upstream(site: &Site, socket: std::os::fd::OwnedFd, to: SocketAddr) -> Result<()> {
    let server: TcpListener = site.lab.upstream.run_in(|| bind_listener(any(SERVER_PORT)))??;
    connect_to(&socket, to)?;
    let (server, _) = server.accept()?;
    carry(&server, &TcpStream::from(socket), EXCHANGED_BYTES)
}

fn upstream(family: Family) -> SocketAddr {
    (addresses(family).upstream, SERVER_PORT).into()
}

#[test]
fn a_listener_that_starts_while_measuring_has_the_client_leg_from_its_first_syn() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let mut counting = site.count()?;
    assert_eq!(counting.measurement.client_ports(), []);
    let listener = site.factory.tcp_listener(any(PORT))?;
    for family in FAMILIES {
        with_listener(&site.lab.client, proxy(family, PORT), &listener)?;
    }
    // Nobody has looked at the target since: the program found the port.
    assert_eq!(counting.measurement.client_ports(), [tcp(PORT)]);
    counting.finish()?.assert_books_equal_capture(&[tcp(PORT)]);
    Ok(())
}

#[test]
fn the_family_is_the_packets_also_on_a_dual_stack_socket() -> Result<()> {
    use traffic_agent::report::Family as Version;
    let site = Site::new(Stack::GsoGro)?;
    // Both sockets are IPv6 ones.
    let listener = site.factory.tcp_listener(any(PORT))?;
    let client = site.factory.socket(libc::AF_INET6, libc::SOCK_STREAM, 0)?;
    let counting = site.count()?;
    with_listener(&site.lab.client, proxy(Family::Ipv4, PORT), &listener)?;
    let std::net::IpAddr::V4(v4) = upstream(Family::Ipv4).ip() else { unreachable!() };
    go_upstream(&site, client, (v4.to_ipv6_mapped(), SERVER_PORT).into())?;
    let counted = counting.finish()?;
    assert!(counted.books().keys().all(|key| key.family == Version::Ipv4));
    counted.assert_books_equal_capture(&[tcp(PORT)]);
    Ok(())
}

#[test]
fn an_mptcp_listener_is_found_before_and_while_measuring() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let listen = |port| -> Result<TcpListener> {
        let socket = site.factory.socket(libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_MPTCP)?;
        listen_on(&socket, any(port))?;
        Ok(TcpListener::from(socket))
    };
    let before = listen(PORT)?;
    let mut counting = site.count()?;
    assert_eq!(counting.measurement.client_ports(), [tcp(PORT)]);
    let during = listen(PORT + 1)?;
    for (listener, port) in [(&before, PORT), (&during, PORT + 1)] {
        for family in FAMILIES {
            for protocol in [0, libc::IPPROTO_MPTCP] {
                let to = proxy(family, port);
                with_listener_by(&site.lab.client, to, listener, protocol)?;
            }
        }
    }
    counting.measurement.follow()?;
    counting.finish()?.assert_books_equal_capture(&[tcp(PORT), tcp(PORT + 1)]);
    Ok(())
}

#[test]
fn a_port_taken_away_is_upstream_whatever_listens_there() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let before = site.factory.tcp_listener(any(PORT))?;
    let mut plan = site.plan()?;
    plan.ports =
        PortFilter(vec![format!("!tcp/{PORT}").parse()?, format!("!{}", PORT + 1).parse()?]);
    let mut counting = site.count_as(plan)?;
    let during = site.factory.tcp_listener(any(PORT + 1))?;
    let other = site.factory.tcp_listener(any(PORT + 2))?;
    for (listener, port) in [(&before, PORT), (&during, PORT + 1), (&other, PORT + 2)] {
        with_listener(&site.lab.client, proxy(Family::Ipv4, port), listener)?;
        counting.measurement.follow()?;
    }
    assert_eq!(counting.measurement.client_ports(), [tcp(PORT + 2)]);
    counting.finish()?.assert_books_equal_capture(&[tcp(PORT + 2)]);
    Ok(())
}

#[test]
fn a_port_that_was_added_is_the_client_leg() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    // Bound before, to a port that the kernel hands out: nothing shows that it was on purpose.
    let plain = site.factory.udp(any(EPHEMERAL_PORT))?;
    let added = site.factory.udp(any(EPHEMERAL_PORT + 1))?;
    let mut plan = site.plan()?;
    plan.ports = PortFilter(vec![format!("udp/{}", EPHEMERAL_PORT + 1).parse()?]);
    let mut counting = site.count_as(plan)?;
    for (socket, port) in [(&plain, EPHEMERAL_PORT), (&added, EPHEMERAL_PORT + 1)] {
        socket.set_read_timeout(Some(std::time::Duration::from_secs(60)))?;
        let to = proxy(Family::Ipv6, port);
        let client = site.lab.client.run_in(|| -> Result<_> {
            let client = std::net::UdpSocket::bind(any(0))?;
            client.send_to(&[1; 200], to)?;
            Ok(client)
        })??;
        let (length, from) = socket.recv_from(&mut [0; 300])?;
        socket.send_to(&vec![2; length], from)?;
        drop(client);
        counting.measurement.follow()?;
    }
    assert_eq!(counting.measurement.client_ports(), [udp(EPHEMERAL_PORT + 1)]);
    counting.finish()?.assert_books_equal_capture(&[udp(EPHEMERAL_PORT + 1)]);
    Ok(())
}

#[test]
fn a_listener_that_closes_gives_its_port_back_to_the_upstream_leg() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let listener = site.factory.tcp_listener(any(PORT))?;
    let mut counting = site.count()?;
    with_listener(&site.lab.client, proxy(Family::Ipv4, PORT), &listener)?;
    counting.settle()?;
    let before = figures::of_cells(&counting.so_far()?);

    drop(listener);
    counting.measurement.follow()?;
    assert_eq!(counting.measurement.client_ports(), []);
    // The port is a client's now.
    let socket = site.factory.socket(libc::AF_INET6, libc::SOCK_STREAM, 0)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(any(PORT)))?;
    go_upstream(&site, socket, upstream(Family::Ipv6))?;
    counting.measurement.follow()?;

    let counted = counting.finish()?;
    let client = |key: &figures::Key| key.leg == Leg::Client;
    assert!(figures::sum(&before, client).payload_bytes == 2 * EXCHANGED_BYTES as u64);
    assert_eq!(figures::sum(&counted.books(), client), figures::sum(&before, client));
    // What the port was for is not forgotten.
    assert_eq!(counted.report.ports.len(), 1);
    assert_eq!(counted.report.ports[0].port, Some(PORT));
    // The capture knows by the link which was which.
    let by_link = counted.captured(&[]);
    let upstream = |key: &figures::Key| key.interface == "eth1";
    let leg = |key: &figures::Key| key.leg == Leg::Upstream;
    assert_eq!(figures::sum(&counted.books(), leg), figures::sum(&by_link, upstream));
    Ok(())
}

#[test]
fn a_connection_keeps_its_listeners_port_after_the_listener_has_closed() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let listener = site.factory.tcp_listener(any(PORT))?;
    let mut counting = site.count()?;
    let client = site.lab.client.run_in(|| TcpStream::connect(proxy(Family::Ipv4, PORT)))??;
    let (server, _) = listener.accept()?;
    drop(listener);
    counting.measurement.follow()?;
    carry(&client, &server, EXCHANGED_BYTES)?;
    counting.finish()?.assert_books_equal_capture(&[tcp(PORT)]);
    Ok(())
}

#[test]
fn seventy_listening_ports_share_an_overflow_row_and_the_sums_balance() -> Result<()> {
    const PORTS: u16 = 70;
    const TOLD_APART: usize = 58;
    let site = Site::new(Stack::GsoGro)?;
    let listen = |number| site.factory.tcp_listener(any(PORT + number));
    // Half of them are there before, half come while measuring.
    let mut listeners = (0..PORTS / 2).map(listen).collect::<Result<Vec<_>>>()?;
    let mut counting = site.count()?;
    for number in PORTS / 2..PORTS {
        listeners.push(listen(number)?);
    }
    for (listener, port) in listeners.iter().zip(PORT..) {
        with_listener(&site.lab.client, proxy(Family::Ipv4, port), listener)?;
    }
    // The slots are taken: a UDP port, too, goes into the row of its protocol.
    let late = site.factory.udp(any(8443))?;
    site.lab.client.run_in(|| -> Result<()> {
        std::net::UdpSocket::bind(any(0))?.send_to(&[1; 200], proxy(Family::Ipv6, 8443))?;
        Ok(())
    })??;
    late.recv(&mut [0; 300])?;
    counting.measurement.follow()?;
    let ports: Vec<_> = (PORT..PORT + PORTS).map(tcp).chain([udp(8443)]).collect();
    assert_eq!(counting.measurement.client_ports(), ports);

    let counted = counting.finish()?;
    assert_eq!(counted.books_without_ports(), counted.captured_without_ports(&ports));
    // Each port that has a row of its own equals its own packets.
    let captured = counted.captured(&ports);
    let (own, rest): (Vec<_>, Vec<_>) =
        counted.report.ports.iter().partition(|row| row.port.is_some());
    assert_eq!(own.len(), TOLD_APART);
    for row in own {
        let of_port = figures::sum(&captured, |key| key.port == row.port);
        assert_eq!(row.ingress.wire_bytes + row.egress.wire_bytes, of_port.wire_bytes);
    }
    let protocols: Vec<_> = rest.iter().map(|row| row.protocol).collect();
    assert_eq!(protocols, [Protocol::Tcp, Protocol::Udp]);
    counted.expect_finding("port-without-slot")?;
    Ok(())
}
