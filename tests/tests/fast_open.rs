//! TCP fast open: the first bytes come with the SYN, before there is a connection, and are counted.

use std::io::IoSlice;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{MsgFlags, SockaddrStorage, sendmsg};
use traffic_lab::packet::{Direction, Family, SYN};
use traffic_lab::relay::bind_listener;
use traffic_lab::topology::{LegTrace, addresses};
use traffic_lab::{Lab, Stack};
use traffic_tests::exchange::carry;
use traffic_tests::factory::{domain, socket_here};
use traffic_tests::options;
use traffic_tests::site::{RELAY_PORT, SERVER_PORT, Site, any, tcp};
use traffic_tests::truth::{Applications, Carried, Witnesses};

/// What comes with the SYN.
const EARLY_BYTES: usize = 700;
/// What follows, each way.
const LATER_BYTES: usize = 300_000;
/// Client and server, both without a cookie. Source: Documentation/networking/ip-sysctl.rst.
const WITHOUT_COOKIES: &str = "519";

fn allow(lab: &Lab) -> Result<()> {
    [&lab.client, &lab.proxy, &lab.upstream]
        .into_iter()
        .try_for_each(|namespace| namespace.sysctl("ipv4/tcp_fastopen", WITHOUT_COOKIES))
}

/// Lets a listener take bytes with a SYN, from up to 16 at a time.
fn take_early(listener: &TcpListener) -> Result<()> {
    options::set(listener, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, &16i32.to_ne_bytes())
}

/// Connects with bytes in the SYN.
fn connect_early(socket: OwnedFd, to: SocketAddr) -> Result<TcpStream> {
    let early = [7; EARLY_BYTES];
    let flags = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
    let to = SockaddrStorage::from(to);
    let sent = sendmsg(socket.as_raw_fd(), &[IoSlice::new(&early)], &[], flags, Some(&to))
        .context("MSG_FASTOPEN")?;
    ensure!(sent == EARLY_BYTES, "{sent} bytes were taken with the SYN");
    Ok(TcpStream::from(socket))
}

/// Accepts, takes what came early, and goes on both ways; the far end closes first.
fn go_on(listener: &TcpListener, early: &TcpStream, closes_first: Closes) -> Result<()> {
    use std::io::Read;
    let (accepted, _) = listener.accept()?;
    (&accepted).read_exact(&mut [0; EARLY_BYTES])?;
    match closes_first {
        Closes::Accepted => carry(&accepted, early, LATER_BYTES),
        Closes::Early => carry(early, &accepted, LATER_BYTES),
    }
}

enum Closes {
    Accepted,
    Early,
}

/// Bytes that a SYN brought.
fn early_bytes(leg: &LegTrace, direction: Direction) -> usize {
    let packets = leg.trace.packets.iter();
    packets
        .filter(|packet| packet.direction == direction)
        .filter(|packet| packet.headers.tcp.is_some_and(|tcp| tcp.has(SYN)))
        .map(|packet| packet.headers.payload_bytes as usize)
        .sum()
}

#[test]
fn bytes_that_come_and_go_with_a_syn_are_counted_on_both_legs() -> Result<()> {
    for stack in [Stack::GsoGro, Stack::Plain] {
        let site = Site::new(stack)?;
        allow(&site.lab)?;
        let witnesses = Witnesses::of(&site)?;
        let proxy = site.factory.tcp_listener(any(RELAY_PORT))?;
        let server: TcpListener =
            site.lab.upstream.run_in(|| bind_listener(any(SERVER_PORT)))??;
        take_early(&proxy)?;
        take_early(&server)?;
        for family in [Family::Ipv4, Family::Ipv6] {
            let counted = witnesses.hold(&[tcp(RELAY_PORT)], || {
                let to = (addresses(family).proxy_client, RELAY_PORT).into();
                let client = site.lab.client.run_in(|| -> Result<TcpStream> {
                    connect_early(socket_here(domain(to), libc::SOCK_STREAM, 0)?, to)
                })??;
                go_on(&proxy, &client, Closes::Early)?;

                let to = (addresses(family).upstream, SERVER_PORT).into();
                let upstream = site.factory.socket(domain(to), libc::SOCK_STREAM, 0)?;
                go_on(&server, &connect_early(upstream, to)?, Closes::Accepted)?;

                let (early, later) = (EARLY_BYTES as u64, LATER_BYTES as u64);
                Ok(Some(Applications {
                    client: Carried { to_proxy: early + later, from_proxy: later },
                    upstream: Carried { to_proxy: later, from_proxy: early + later },
                }))
            })?;
            // Or nothing was early about it.
            let trace = &counted.trace;
            assert_eq!(early_bytes(&trace.client, Direction::Ingress), EARLY_BYTES);
            assert_eq!(early_bytes(&trace.upstream, Direction::Egress), EARLY_BYTES);
        }
    }
    Ok(())
}
