//! Multipath TCP with a second subflow: the kernel itself makes sockets for the proxy, of which no
//! process knows, and their packets are the proxy's.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{SockaddrStorage, bind, setsockopt, sockopt};
use traffic_agent::report::Leg;
use traffic_lab::packet::{Family, SYN};
use traffic_lab::topology::{FAR_DEVICE, LegTrace, UPSTREAM_DEVICE, addresses};
use traffic_lab::{Namespace, Stack, link};
use traffic_tests::exchange::carry;
use traffic_tests::factory::{connect_to, domain, listen_on, socket_here};
use traffic_tests::figures;
use traffic_tests::routes::ip;
use traffic_tests::site::{Counted, RELAY_PORT, SERVER_PORT, Site, any, tcp};
use traffic_tests::truth::{Applications, Witnesses};

const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];
/// Enough that both subflows are used.
const BULK_BYTES: usize = 3_000_000;
/// A second subflow that takes longer does not come.
const JOINED_WITHIN: Duration = Duration::from_secs(60);

/// The second address of the end that makes subflows.
fn second(family: Family, net: u8) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::new(10, 77, net, 9).into(),
        Family::Ipv6 => Ipv6Addr::new(0xfd77, net.into(), 0, 0, 0, 0, 0, 9).into(),
    }
}

/// Gives the end that connects a second address per family, from which it makes a second subflow, and
/// lets the other end take it.
fn allow_second_subflow(
    connects: &Namespace,
    device: &str,
    net: u8,
    accepts: &Namespace,
) -> Result<()> {
    for family in FAMILIES {
        let address = second(family, net);
        link::add_address(connects, device, address, if address.is_ipv4() { 24 } else { 64 })?;
        ip(connects, &format!("mptcp endpoint add {address} dev {device} subflow"))?;
    }
    [connects, accepts]
        .into_iter()
        .try_for_each(|namespace| ip(namespace, "mptcp limits set subflow 2 add_addr_accepted 2"))
}

/// Waits until a connection has a second subflow. No packet is sent for that.
fn wait_for_second_subflow(stream: &TcpStream) -> Result<()> {
    // struct mptcp_info begins with the number of additional subflows, a byte.
    const SOL_MPTCP: i32 = 284;
    const MPTCP_INFO: i32 = 1;
    let begin = Instant::now();
    loop {
        let mut info = [0u8; 256];
        let mut length = info.len() as libc::socklen_t;
        // SAFETY: the pointers are those of live values, and `length` is the size of the first.
        let result = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                SOL_MPTCP,
                MPTCP_INFO,
                info.as_mut_ptr().cast(),
                &mut length,
            )
        };
        nix::errno::Errno::result(result).context("MPTCP_INFO: it is TCP after all")?;
        if info[0] > 0 {
            return Ok(());
        }
        ensure!(begin.elapsed() < JOINED_WITHIN, "no second subflow came");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn mptcp(family: i32) -> Result<OwnedFd> {
    Ok(socket_here(family, libc::SOCK_STREAM, libc::IPPROTO_MPTCP)?)
}

/// Connects from the first address: IPv6 would take the second, which came last.
fn connect_from(socket: &OwnedFd, first: IpAddr, to: SocketAddr) -> Result<()> {
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(first, 0)))?;
    connect_to(socket, to)
}

/// By the address of the connecting end: payload, and the SYNs as port and number, which one that is sent again
/// has in common with the first.
type Subflows = BTreeMap<IpAddr, (u64, BTreeSet<(u16, u32)>)>;

fn by_subflow(
    leg: &LegTrace,
    connects: impl Fn(&traffic_lab::packet::Packet) -> IpAddr,
) -> Subflows {
    let mut subflows = Subflows::new();
    for packet in &leg.trace.packets {
        let entry = subflows.entry(connects(packet)).or_default();
        entry.0 += u64::from(packet.headers.payload_bytes);
        if let Some(tcp) = packet.headers.tcp.filter(|tcp| tcp.has(SYN)) {
            entry.1.insert((packet.headers.source_port, tcp.sequence));
        }
    }
    subflows
}

/// Both subflows carried something, and all of it is in the cells of one leg.
fn assert_both_subflows(counted: &Counted, subflows: &Subflows, leg: Leg) {
    assert_eq!(subflows.len(), 2, "{subflows:?}");
    let is_whole = |(payload, syns): &(u64, BTreeSet<_>)| *payload > 0 && syns.len() == 2;
    assert!(subflows.values().all(is_whole), "{subflows:?}");
    let carried: u64 = subflows.values().map(|(payload, _)| payload).sum();
    let cells = figures::sum(&counted.books(), |key| key.leg == leg);
    assert_eq!(cells.payload_bytes, carried);
    assert!(carried >= 2 * BULK_BYTES as u64);
}

#[test]
fn a_second_subflow_to_a_listener_is_the_listeners_client_leg() -> Result<()> {
    for stack in [Stack::GsoGro, Stack::Plain] {
        let site = Site::new(stack)?;
        let witnesses = Witnesses::of(&site)?;
        allow_second_subflow(&site.lab.client, FAR_DEVICE, 1, &site.lab.proxy)?;
        let listener =
            site.factory.socket(libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_MPTCP)?;
        listen_on(&listener, any(RELAY_PORT))?;
        let listener = TcpListener::from(listener);
        for family in FAMILIES {
            let counted = witnesses.hold(&[tcp(RELAY_PORT)], || {
                let to = (addresses(family).proxy_client, RELAY_PORT).into();
                let client = site.lab.client.run_in(|| -> Result<TcpStream> {
                    let socket = mptcp(domain(to))?;
                    connect_from(&socket, addresses(family).client, to)?;
                    Ok(TcpStream::from(socket))
                })??;
                let (accepted, _) = listener.accept()?;
                exchange(&client, &accepted)
            })?;
            let subflows = by_subflow(&counted.trace.client, |packet| packet.peer().ip());
            assert_both_subflows(&counted, &subflows, Leg::Client);
        }
    }
    Ok(())
}

#[test]
fn a_second_subflow_that_the_kernel_makes_for_the_proxy_is_counted() -> Result<()> {
    for stack in [Stack::GsoGro, Stack::Plain] {
        let site = Site::new(stack)?;
        let witnesses = Witnesses::of(&site)?;
        allow_second_subflow(&site.lab.proxy, UPSTREAM_DEVICE, 2, &site.lab.upstream)?;
        let server = site.lab.upstream.run_in(|| -> Result<TcpListener> {
            let socket = mptcp(libc::AF_INET6)?;
            setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
            listen_on(&socket, any(SERVER_PORT))?;
            Ok(TcpListener::from(socket))
        })??;
        for family in FAMILIES {
            let counted = witnesses.hold(&[], || {
                let to = (addresses(family).upstream, SERVER_PORT).into();
                let socket =
                    site.factory.socket(domain(to), libc::SOCK_STREAM, libc::IPPROTO_MPTCP)?;
                connect_from(&socket, addresses(family).proxy_upstream, to)?;
                let (accepted, _) = server.accept()?;
                exchange(&accepted, &TcpStream::from(socket))
            })?;
            let subflows = by_subflow(&counted.trace.upstream, |packet| packet.proxy().ip());
            assert_both_subflows(&counted, &subflows, Leg::Upstream);
        }
    }
    Ok(())
}

/// Waits for the second subflow, which is made when both ends have acknowledged a byte, then carries bulk
/// both ways.
///
/// What the applications say is not comparable: a byte may be sent once more by the other subflow.
fn exchange(closes_first: &TcpStream, closes_last: &TcpStream) -> Result<Option<Applications>> {
    for [mut from, mut to] in [[closes_first, closes_last], [closes_last, closes_first]] {
        from.write_all(&[1])?;
        to.read_exact(&mut [0])?;
    }
    wait_for_second_subflow(closes_first)?;
    wait_for_second_subflow(closes_last)?;
    carry(closes_first, closes_last, BULK_BYTES)?;
    Ok(None)
}
