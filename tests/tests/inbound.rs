//! Inbounds that take what was meant for others: the accepted sockets of a transparent proxy (TPROXY)
//! have the original destination's address and port, those behind a REDIRECT the listener's.

use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::socket::{MsgFlags, SockaddrStorage, bind, sendmsg, setsockopt, sockopt};
use traffic_agent::report::{Direction, Leg};
use traffic_lab::Stack;
use traffic_lab::packet::Family;
use traffic_lab::relay::bind_listener;
use traffic_lab::topology::{LabTrace, addresses};
use traffic_tests::exchange::carry;
use traffic_tests::factory::{connect_to, domain, listen_on, mapped, socket_here};
use traffic_tests::figures::{self, of_capture_as};
use traffic_tests::options;
use traffic_tests::routes::{intercept, redirect};
use traffic_tests::site::{Counted, RELAY_PORT, SERVER_PORT, Site, any, tcp, udp};
use traffic_tests::truth::{Applications, Carried, Witnesses};

const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];
/// Super-packets, and more than one segment where there are none.
const BULK_BYTES: usize = 500_000;
/// Payload of a datagram.
const DATAGRAM: usize = 900;
/// Where the clients think they go.
const PUBLIC_PORT: u16 = 443;
/// An address of nobody in the lab, to which the client's default route leads through the proxy.
fn elsewhere(family: Family, host: u8) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::new(10, 99, 0, host).into(),
        Family::Ipv6 => Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, host.into()).into(),
    }
}

/// Lets a socket have addresses that are not the host's. An IPv6 socket asks for both families by one.
fn make_transparent(socket: &OwnedFd) -> Result<()> {
    options::set(socket, libc::SOL_IPV6, libc::IPV6_TRANSPARENT, &1i32.to_ne_bytes())
}

fn transparent_listener(site: &Site) -> Result<TcpListener> {
    let socket = site.factory.socket(libc::AF_INET6, libc::SOCK_STREAM, 0)?;
    make_transparent(&socket)?;
    listen_on(&socket, any(RELAY_PORT))?;
    Ok(TcpListener::from(socket))
}

/// A client connects to somebody else, is taken by the proxy, which goes upstream as itself; bulk both
/// ways on both legs.
fn through(site: &Site, family: Family, listener: &TcpListener, to: SocketAddr) -> Result<()> {
    let client = site.lab.client.run_in(|| -> Result<TcpStream> {
        let socket = socket_here(domain(to), libc::SOCK_STREAM, 0)?;
        connect_to(&socket, to)?;
        Ok(TcpStream::from(socket))
    })??;
    let (accepted, _) = listener.accept()?;
    let server: TcpListener = site.lab.upstream.run_in(|| bind_listener(any(SERVER_PORT)))??;
    let upstream = site.factory.tcp_stream((addresses(family).upstream, SERVER_PORT).into())?;
    let (served, _) = server.accept()?;
    carry(&client, &accepted, BULK_BYTES)?;
    carry(&served, &upstream, BULK_BYTES)
}

/// All of the client's link is the client leg, and all else upstream.
fn assert_legs_are_the_links(counted: &Counted) {
    let books = counted.books();
    let by_leg = |leg| figures::sum(&books, |key| key.leg == leg);
    let on = |interface: &str| figures::sum(&books, |key| key.interface == interface);
    assert!(by_leg(Leg::Client).payload_bytes > 0);
    assert_eq!((by_leg(Leg::Client), by_leg(Leg::Upstream)), (on("eth0"), on("eth1")));
}

#[test]
fn tcp_of_a_transparent_inbound_is_the_listeners_whatever_port_it_was_meant_for() -> Result<()> {
    for stack in [Stack::GsoGro, Stack::Plain] {
        let site = Site::new(stack)?;
        let witnesses = Witnesses::of(&site)?;
        intercept(&site.lab, "tcp", PUBLIC_PORT, RELAY_PORT)?;
        let listener = transparent_listener(&site)?;
        for family in FAMILIES {
            let expected =
                |trace: &LabTrace| of_capture_as(trace, tcp(PUBLIC_PORT), |_| RELAY_PORT);
            let counted = witnesses.hold_as(expected, || {
                for host in 1..=2 {
                    let to = (elsewhere(family, host), PUBLIC_PORT).into();
                    through(&site, family, &listener, to)?;
                }
                Ok(Some(Applications::both_ways(2 * BULK_BYTES, 2 * BULK_BYTES)))
            })?;
            assert_legs_are_the_links(&counted);
        }
    }
    Ok(())
}

#[test]
fn tcp_behind_a_redirect_is_the_listeners_on_both_legs() -> Result<()> {
    for stack in [Stack::GsoGro, Stack::Plain] {
        let site = Site::new(stack)?;
        let witnesses = Witnesses::of(&site)?;
        let listener = site.factory.tcp_listener(any(RELAY_PORT))?;
        for family in FAMILIES {
            redirect(&site.lab, family, PUBLIC_PORT, RELAY_PORT)?;
            let expected =
                |trace: &LabTrace| of_capture_as(trace, tcp(PUBLIC_PORT), |_| RELAY_PORT);
            let counted = witnesses.hold_as(expected, || {
                // To somebody else, as a router redirects, and to the proxy itself, as for port hopping.
                for address in [elsewhere(family, 1), addresses(family).proxy_client] {
                    through(&site, family, &listener, (address, PUBLIC_PORT).into())?;
                }
                Ok(Some(Applications::both_ways(2 * BULK_BYTES, 2 * BULK_BYTES)))
            })?;
            assert_legs_are_the_links(&counted);
        }
    }
    Ok(())
}

#[test]
fn what_was_meant_for_a_port_of_the_proxys_own_is_the_transparent_listeners() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    intercept(&site.lab, "tcp", PUBLIC_PORT, RELAY_PORT)?;
    let transparent = transparent_listener(&site)?;
    let _ordinary = site.factory.tcp_listener(any(PUBLIC_PORT))?;
    for family in FAMILIES {
        let counting = site.count()?;
        through(&site, family, &transparent, (elsewhere(family, 1), PUBLIC_PORT).into())?;
        let counted = counting.finish()?;
        let captured = of_capture_as(&counted.trace, tcp(PUBLIC_PORT), |_| RELAY_PORT);
        assert_eq!(counted.books(), captured);
        assert_legs_are_the_links(&counted);
    }
    Ok(())
}

/// A transparent UDP inbound takes datagrams for anybody with one socket, and answers each from a socket
/// that is bound to the address which the client knows: on purpose, so that it is the client leg, too.
#[test]
fn udp_of_a_transparent_inbound_is_the_client_leg_in_both_directions() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let witnesses = Witnesses::of(&site)?;
    intercept(&site.lab, "udp", PUBLIC_PORT, RELAY_PORT)?;
    let transparent = |address: SocketAddr| -> Result<UdpSocket> {
        let socket = site.factory.socket(libc::AF_INET6, libc::SOCK_DGRAM, 0)?;
        make_transparent(&socket)?;
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
        let socket = UdpSocket::from(socket);
        socket.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(socket)
    };
    let inbound = transparent(any(RELAY_PORT))?;
    for family in FAMILIES {
        // The datagrams in are the inbound's, those out the answering socket's.
        let port_of = |direction| match direction {
            Direction::Ingress => RELAY_PORT,
            Direction::Egress => PUBLIC_PORT,
        };
        let expected = |trace: &LabTrace| of_capture_as(trace, udp(PUBLIC_PORT), port_of);
        let counted = witnesses.hold_as(expected, || {
            let to: SocketAddr = (elsewhere(family, 1), PUBLIC_PORT).into();
            let client = site.lab.client.run_in(|| -> Result<UdpSocket> {
                let client = UdpSocket::from(socket_here(domain(to), libc::SOCK_DGRAM, 0)?);
                client.set_read_timeout(Some(Duration::from_secs(60)))?;
                client.send_to(&[1; DATAGRAM], to)?;
                Ok(client)
            })??;
            let (_, from) = inbound.recv_from(&mut [0; 2 * DATAGRAM])?;
            // Seven datagrams by one send, from the address that the client knows.
            let answers = transparent(mapped(to))?;
            setsockopt(&answers, sockopt::UdpGsoSegment, &(DATAGRAM as i32))?;
            let data = vec![2; 7 * DATAGRAM];
            let slices = [IoSlice::new(&data)];
            let back = SockaddrStorage::from(from);
            sendmsg(answers.as_raw_fd(), &slices, &[], MsgFlags::empty(), Some(&back))?;
            for _ in 0..7 {
                ensure!(
                    client.recv_from(&mut [0; 2 * DATAGRAM])? == (DATAGRAM, to),
                    "not the answer"
                );
            }
            let (up, down) = (DATAGRAM as u64, 7 * DATAGRAM as u64);
            let client = Carried { to_proxy: up, from_proxy: down };
            Ok(Some(Applications { client, ..Applications::default() }))
        })?;
        assert_legs_are_the_links(&counted);
    }
    Ok(())
}
