//! The length of the headers is read from each packet: IPv4 options, IPv6 extension headers, TCP with
//! and without timestamps. A segment more or less of them would show in the capture.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};
use traffic_lab::Stack;
use traffic_lab::packet::Family;
use traffic_lab::relay::bind_listener;
use traffic_lab::topology::addresses;
use traffic_lab::udp::{Receive, Receiver};
use traffic_tests::exchange::carry;
use traffic_tests::factory::{connect_to, domain};
use traffic_tests::options::{set_ipv4_options, set_ipv6_header};
use traffic_tests::site::{Counted, SERVER_PORT, Site, any};

/// Enough for super-packets.
const BULK_BYTES: usize = 500_000;
/// Payload of a datagram.
const DATAGRAM: usize = 1000;

fn upstream(family: Family) -> SocketAddr {
    (addresses(family).upstream, SERVER_PORT).into()
}

/// A TCP connection from the counted cgroup to the upstream, both ends prepared, that carries
/// [`BULK_BYTES`] each way.
fn bulk_tcp(
    site: &Site,
    family: Family,
    prepare: impl Fn(&OwnedFd) -> Result<()>,
    prepare_server: impl Fn(&TcpListener) -> Result<()>,
) -> Result<Counted> {
    let counting = site.count()?;
    let server: TcpListener = site.lab.upstream.run_in(|| bind_listener(any(SERVER_PORT)))??;
    prepare_server(&server)?;
    let to = upstream(family);
    let socket = site.factory.socket(domain(to), libc::SOCK_STREAM, 0)?;
    prepare(&socket)?;
    connect_to(&socket, to)?;
    let (server, _) = server.accept()?;
    carry(&server, &TcpStream::from(socket), BULK_BYTES)?;
    counting.finish()
}

/// Super-packets were sent: the header was repeated, not only read.
fn assert_segmented(counted: &Counted) {
    let egress = counted.report.totals.billed.egress;
    assert!(egress.packets < egress.wire_packets, "no super-packet was sent");
}

/// Bytes of headers on the wire, per packet of the egress.
fn header_bytes(counted: &Counted) -> u64 {
    let egress = counted.report.totals.billed.egress;
    (egress.wire_bytes - egress.payload_bytes) / egress.wire_packets
}

/// `bytes` of options: NOPs, the end in the last place.
fn nops(bytes: usize) -> Vec<u8> {
    let mut options = vec![1; bytes];
    options[bytes - 1] = 0;
    options
}

/// Record route, with room for nine addresses, which every hop fills: 39 bytes and the end.
fn record_route() -> Vec<u8> {
    let mut options = vec![0; 40];
    options[..3].copy_from_slice(&[7, 39, 4]);
    options
}

#[test]
fn ipv4_options_are_part_of_every_segment_of_tcp() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    for options in [nops(4), nops(12), nops(40), record_route()] {
        let prepare = |socket: &OwnedFd| set_ipv4_options(socket, &options);
        let prepare_server = |socket: &TcpListener| set_ipv4_options(socket, &options);
        let counted = bulk_tcp(&site, Family::Ipv4, prepare, prepare_server)?;
        counted.assert_books_equal_capture(&[]);
        assert_segmented(&counted);
        // 20 IP, 20 TCP, 12 timestamps.
        assert_eq!(header_bytes(&counted), 52 + options.len() as u64);
    }
    Ok(())
}

#[test]
fn ipv6_extension_headers_are_part_of_every_segment_of_tcp() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    for (hop_by_hop, destination) in [(8, 0), (0, 8), (0, 64), (16, 24), (24, 72)] {
        let headers = [(libc::IPV6_HOPOPTS, hop_by_hop), (libc::IPV6_DSTOPTS, destination)];
        let headers: Vec<(i32, usize)> = headers.into_iter().filter(|one| one.1 > 0).collect();
        let set = |socket: &dyn std::os::fd::AsFd| -> Result<()> {
            headers
                .iter()
                .try_for_each(|&(option, bytes)| set_ipv6_header(&socket.as_fd(), option, bytes))
        };
        let counted = bulk_tcp(&site, Family::Ipv6, |socket| set(socket), |socket| set(socket))?;
        counted.assert_books_equal_capture(&[]);
        assert_segmented(&counted);
        // 40 IPv6, 20 TCP, 12 timestamps.
        assert_eq!(header_bytes(&counted), 72 + (hop_by_hop + destination) as u64);
    }
    Ok(())
}

#[test]
fn tcp_without_timestamps_has_shorter_headers() -> Result<()> {
    for (timestamps, ipv4, ipv6) in [("0", 40, 60), ("1", 52, 72)] {
        let site = Site::new(Stack::GsoGro)?;
        site.lab.proxy.sysctl("ipv4/tcp_timestamps", timestamps)?;
        for (family, expected) in [(Family::Ipv4, ipv4), (Family::Ipv6, ipv6)] {
            let counted = bulk_tcp(&site, family, |_| Ok(()), |_| Ok(()))?;
            counted.assert_books_equal_capture(&[]);
            assert_segmented(&counted);
            assert_eq!(header_bytes(&counted), expected);
        }
    }
    Ok(())
}

/// Datagrams with prepared headers, plain and segmented by the kernel, and their echoes.
fn datagrams(
    site: &Site,
    family: Family,
    prepare: impl Fn(&UdpSocket) -> Result<()>,
) -> Result<Counted> {
    let counting = site.count()?;
    let receive = Receive { listen: any(SERVER_PORT), echo: true, gro: false };
    let _server = Receiver::start(&site.lab.upstream, receive)?;
    let to = upstream(family);
    for segment in [None, Some(DATAGRAM as i32)] {
        let socket = site.factory.udp_unbound(to)?;
        prepare(&socket)?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(Duration::from_secs(60)))?;
        if let Some(segment) = segment {
            setsockopt(&socket, sockopt::UdpGsoSegment, &segment)?;
        }
        // Seven datagrams, the last one short.
        let bytes = if segment.is_some() { 6 * DATAGRAM + 1 } else { DATAGRAM };
        assert_eq!(socket.send(&vec![3; bytes])?, bytes);
        let mut echoed = 0;
        while echoed < bytes {
            echoed += socket.recv(&mut [0; 2 * DATAGRAM]).with_context(|| {
                format!("{echoed} of {bytes} bytes were echoed, in segments of {segment:?}")
            })?;
        }
    }
    counting.finish()
}

#[test]
fn options_and_extension_headers_are_part_of_every_datagram() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let by_option = |bytes: usize| {
        let options = if bytes == 40 { record_route() } else { nops(bytes) };
        datagrams(&site, Family::Ipv4, |socket| set_ipv4_options(socket, &options))
    };
    let by_header = |option, bytes| {
        datagrams(&site, Family::Ipv6, |socket| set_ipv6_header(socket, option, bytes))
    };
    let runs = [
        (by_option(4)?, 20 + 4),
        (by_option(40)?, 20 + 40),
        (by_header(libc::IPV6_DSTOPTS, 8)?, 40 + 8),
        (by_header(libc::IPV6_HOPOPTS, 32)?, 40 + 32),
    ];
    for (counted, ip_header) in runs {
        counted.assert_books_equal_capture(&[]);
        let egress = counted.report.totals.billed.egress;
        let payload = (7 * DATAGRAM + 1) as u64;
        assert_eq!((egress.packets, egress.wire_packets), (2, 1 + 7));
        assert_eq!(egress.payload_bytes, payload);
        assert_eq!(egress.wire_bytes, payload + 8 * (ip_header + 8));
    }
    Ok(())
}
