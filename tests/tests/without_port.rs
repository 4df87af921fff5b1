//! What has no port is upstream: ICMP, other protocols, and packets whose headers cannot be read.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::{MsgFlags, SockaddrStorage, recv, sendto, setsockopt, sockopt};
use nix::sys::time::TimeVal;
use traffic_agent::ledger;
use traffic_agent::measure::Measurement;
use traffic_agent::report::{Directions, Leg, Protocol};
use traffic_lab::Stack;
use traffic_lab::packet::Family;
use traffic_lab::topology::addresses;
use traffic_tests::factory::{domain, socket_here};
use traffic_tests::site::{Counted, Site};

const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];
/// For experiments and tests (RFC 3692).
const EXPERIMENTAL: i32 = 253;
const TIMES: usize = 10;

fn upstream(family: Family) -> SocketAddr {
    (addresses(family).upstream, 0).into()
}

fn send(socket: &OwnedFd, bytes: &[u8], to: SocketAddr) -> Result<()> {
    let to = SockaddrStorage::from(to);
    sendto(socket.as_raw_fd(), bytes, &to, MsgFlags::empty()).context("cannot send").map(drop)
}

/// Waits for one packet, not for ever.
fn receive(socket: &OwnedFd) -> Result<usize> {
    setsockopt(socket, sockopt::ReceiveTimeout, &TimeVal::new(5, 0))?;
    recv(socket.as_raw_fd(), &mut [0; 2000], MsgFlags::empty()).context("nothing comes")
}

/// Sums of one protocol over all cells.
fn of_protocol(counted: &Counted, protocol: Protocol) -> Directions {
    ledger::sum(&counted.report.cells, |cell| cell.protocol == protocol)
}

#[test]
fn ping_from_the_cgroup_is_upstream_icmp() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    site.lab.proxy.sysctl("ipv4/ping_group_range", "0 2147483647")?;
    let counting = site.count()?;
    for (family, protocol, echo) in
        [(Family::Ipv4, libc::IPPROTO_ICMP, 8), (Family::Ipv6, libc::IPPROTO_ICMPV6, 128)]
    {
        let to = upstream(family);
        let socket = site.factory.socket(domain(to), libc::SOCK_DGRAM, protocol)?;
        for _ in 0..TIMES {
            // Type, code, checksum, identifier and sequence of an echo request, and 56 bytes.
            let mut request = [0; 64];
            request[0] = echo;
            send(&socket, &request, to)?;
            receive(&socket)?;
        }
    }
    let counted = counting.finish()?;
    counted.assert_books_equal_capture(&[]);
    assert!(counted.report.cells.iter().all(|cell| cell.leg == Leg::Upstream));
    let icmp = of_protocol(&counted, Protocol::Icmp);
    // 64 bytes behind 20 of IPv4 and 40 of IPv6.
    let expected = (TIMES * (64 + 20) + TIMES * (64 + 40)) as u64;
    assert_eq!((icmp.ingress.wire_bytes, icmp.egress.wire_bytes), (expected, expected));
    Ok(())
}

#[test]
fn another_protocol_is_upstream_other_in_both_directions() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let counting = site.count()?;
    for family in FAMILIES {
        let to = upstream(family);
        let inside = site.factory.socket(domain(to), libc::SOCK_RAW, EXPERIMENTAL)?;
        // So that the far end's kernel answers nothing.
        let make = || socket_here(domain(to), libc::SOCK_RAW, EXPERIMENTAL);
        let outside = site.lab.upstream.run_in(make)??;
        for _ in 0..TIMES {
            send(&inside, &[5; 100], to)?;
            receive(&outside)?;
            send(&outside, &[6; 300], (addresses(family).proxy_upstream, 0).into())?;
            receive(&inside)?;
        }
    }
    let counted = counting.finish()?;
    let other = of_protocol(&counted, Protocol::Other);
    assert!(other.egress.wire_bytes > 0);
    counted.assert_books_equal_capture(&[]);
    Ok(())
}

/// Sends raw bytes that begin at the IP header; the kernel leaves them as they are.
fn send_whole(site: &Site, family: Family, bytes: &[u8]) -> Result<()> {
    let to = upstream(family);
    let socket = site.factory.socket(domain(to), libc::SOCK_RAW, libc::IPPROTO_RAW)?;
    send(&socket, bytes, to).with_context(|| format!("{bytes:x?}"))
}

/// An IPv4 header of 20 bytes with this version and protocol, to the upstream, with nothing behind it.
fn ipv4_header(version: u8, protocol: u8) -> [u8; 20] {
    let (IpAddr::V4(from), IpAddr::V4(to)) =
        (addresses(Family::Ipv4).proxy_upstream, addresses(Family::Ipv4).upstream)
    else {
        unreachable!("they are IPv4 addresses");
    };
    let mut header = [0; 20];
    (header[0], header[3], header[8], header[9]) = (version << 4 | 5, 20, 64, protocol);
    header[12..16].copy_from_slice(&from.octets());
    header[16..].copy_from_slice(&to.octets());
    header
}

/// An IPv6 header whose next header is `next`, to the upstream, with nothing behind it.
fn ipv6_header(next: u8) -> [u8; 40] {
    let (IpAddr::V6(from), IpAddr::V6(to)) =
        (addresses(Family::Ipv6).proxy_upstream, addresses(Family::Ipv6).upstream)
    else {
        unreachable!("they are IPv6 addresses");
    };
    let mut header = [0; 40];
    (header[0], header[6], header[7]) = (6 << 4, next, 64);
    header[8..24].copy_from_slice(&from.octets());
    header[24..].copy_from_slice(&to.octets());
    header
}

#[test]
fn a_packet_that_cannot_be_read_is_counted_and_reported() -> Result<()> {
    use traffic_agent::report::Family as Version;
    let site = Site::new(Stack::GsoGro)?;
    // Without captures, which would call these frames malformed, too.
    let mut measurement = Measurement::start(&site.host, site.plan()?)?;
    let start = measurement.sample()?;
    let tcp = libc::IPPROTO_TCP as u8;
    // A version that does not exist; TCP of no bytes. (A length of the header below 20 bytes is refused
    // by the kernel.)
    send_whole(&site, Family::Ipv4, &ipv4_header(9, tcp))?;
    send_whole(&site, Family::Ipv4, &ipv4_header(4, tcp))?;
    // TCP of no bytes; an extension header that is not there.
    send_whole(&site, Family::Ipv6, &ipv6_header(tcp))?;
    send_whole(&site, Family::Ipv6, &ipv6_header(0))?;
    // One that can be read, so that not everything is odd.
    let good = site.factory.udp_unbound(upstream(Family::Ipv4))?;
    UdpSocket::send_to(&good, &[0; 100], (addresses(Family::Ipv4).upstream, 9))?;
    std::thread::sleep(Duration::from_millis(50));

    let end = measurement.sample()?;
    let report = measurement.report(&start, &end)?;
    let of = |family| {
        ledger::sum(&report.cells, |cell| {
            cell.protocol == Protocol::Other && cell.leg == Leg::Upstream && cell.family == family
        })
    };
    let (v4, v6) = (of(Version::Ipv4).egress, of(Version::Ipv6).egress);
    assert_eq!((v4.wire_packets, v4.wire_bytes, v4.bytes), (2, 2 * 20, 2 * 20));
    assert_eq!((v6.wire_packets, v6.wire_bytes, v6.bytes), (2, 2 * 40, 2 * 40));
    assert_eq!(report.totals.billed.egress.wire_bytes, 2 * 20 + 2 * 40 + 128);
    let finding = report.findings.iter().find(|finding| finding.code == "unparsable-packets");
    let message = &finding.context("no finding unparsable-packets")?.message;
    assert!(message.starts_with("at least 4 packets"), "{message}");
    Ok(())
}

#[test]
fn thousands_of_packets_that_cannot_be_read_are_all_counted() -> Result<()> {
    const MANY: u64 = 5000;
    let site = Site::new(Stack::GsoGro)?;
    let mut measurement = Measurement::start(&site.host, site.plan()?)?;
    let start = measurement.sample()?;
    let to = upstream(Family::Ipv4);
    let socket = site.factory.socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
    for _ in 0..MANY {
        send(&socket, &ipv4_header(9, 6), to)?;
    }
    let end = measurement.sample()?;
    let report = measurement.report(&start, &end)?;
    assert_eq!(report.totals.billed.egress.wire_packets, MANY);
    let finding = report.findings.iter().find(|finding| finding.code == "unparsable-packets");
    let message = &finding.context("no finding unparsable-packets")?.message;
    // The log has room for a few hundred lines.
    assert!(message.starts_with("at least "), "{message}");
    Ok(())
}
