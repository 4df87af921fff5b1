//! One frame as a capture keeps it: the lengths that are summed, and the fields of TCP by which the
//! sums are explained. Pure; frames come from anywhere and nothing in them is trusted.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Length of an Ethernet header. The lab has no VLANs.
pub const ETHERNET_HEADER: usize = 14;

/// TCP, as in the IP header.
pub const TCP: u8 = 6;
/// UDP, as in the IP header.
pub const UDP: u8 = 17;
/// ICMP over IPv4.
pub const ICMP: u8 = 1;
/// ICMP over IPv6.
pub const ICMPV6: u8 = 58;

/// TCP flag.
pub const FIN: u8 = 0x01;
/// TCP flag.
pub const SYN: u8 = 0x02;
/// TCP flag.
pub const RST: u8 = 0x04;
/// TCP flag.
pub const ACK: u8 = 0x10;

/// Seen from the proxy, wherever the capture is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// To the proxy.
    Ingress,
    /// From the proxy.
    Egress,
}

/// The IP version of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IP version 4.
    Ipv4,
    /// IP version 6.
    Ipv6,
}

/// What the IP and transport headers of a packet say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Headers {
    /// The sender's address.
    pub source: IpAddr,
    /// The receiver's address.
    pub destination: IpAddr,
    /// 0 where the protocol has none, and in fragments after the first.
    pub source_port: u16,
    /// 0 where the protocol has none, and in fragments after the first.
    pub destination_port: u16,
    /// IP protocol number behind all extension headers: [`TCP`], [`UDP`], …
    pub protocol: u8,
    /// For ICMP and ICMPv6 the type of the message.
    pub icmp_type: Option<u8>,
    /// Any fragment, the first too.
    pub fragment: bool,
    /// IP header to end of payload.
    pub l3_bytes: u32,
    /// Behind the TCP or UDP header; behind the IP headers for other protocols and late fragments.
    pub payload_bytes: u32,
    /// Sequence numbers and flags, if it is TCP.
    pub tcp: Option<Tcp>,
}

/// The fields of a TCP header by which a capture is explained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tcp {
    /// [`FIN`], [`SYN`], [`RST`], [`ACK`] and the rest of that byte.
    pub flags: u8,
    /// Number of the first byte of payload (or of the SYN).
    pub sequence: u32,
    /// Number of the next byte expected; meaningless without [`ACK`].
    pub acknowledged: u32,
}

impl Tcp {
    /// Whether all of `flags` are set.
    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }
}

/// A packet of a capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Nanoseconds since 1970, as stamped by the kernel where the capture is.
    pub at_ns: u64,
    /// To or from the proxy.
    pub direction: Direction,
    /// The parsed headers.
    pub headers: Headers,
}

impl Packet {
    /// The family by the IP header (not that of the socket, which may be v4-mapped).
    pub fn family(&self) -> Family {
        match self.headers.source {
            IpAddr::V4(_) => Family::Ipv4,
            IpAddr::V6(_) => Family::Ipv6,
        }
    }

    /// The proxy's end.
    pub fn proxy(&self) -> SocketAddr {
        match self.direction {
            Direction::Ingress => self.destination(),
            Direction::Egress => self.source(),
        }
    }

    /// The far end.
    pub fn peer(&self) -> SocketAddr {
        match self.direction {
            Direction::Ingress => self.source(),
            Direction::Egress => self.destination(),
        }
    }

    fn source(&self) -> SocketAddr {
        SocketAddr::new(self.headers.source, self.headers.source_port)
    }

    fn destination(&self) -> SocketAddr {
        SocketAddr::new(self.headers.destination, self.headers.destination_port)
    }

    /// The number behind the last byte of a TCP packet, SYN and FIN included.
    pub fn sequence_end(&self) -> Option<u32> {
        let tcp = self.headers.tcp?;
        let flags = u32::from(tcp.has(SYN)) + u32::from(tcp.has(FIN));
        Some(tcp.sequence.wrapping_add(self.headers.payload_bytes).wrapping_add(flags))
    }
}

/// `a - b` of two sequence numbers less than 2 GiB apart.
pub fn sequence_distance(a: u32, b: u32) -> i64 {
    i64::from(a.wrapping_sub(b) as i32)
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    /// IPv4 or IPv6.
    Ip(Headers),
    /// Anything else, by EtherType: 0x0806 is ARP.
    Other(u16),
}

/// A frame that contradicts itself or was captured too short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0)
    }
}

impl std::error::Error for Malformed {}

/// Parses a frame of `frame_bytes` of which at least the headers are in `captured`.
///
/// The length in the IP header must be that of the frame. It is 0 in super-packets of more than
/// 64 KiB (BIG TCP), and then the frame's is taken.
pub fn parse(captured: &[u8], frame_bytes: usize) -> Result<Frame, Malformed> {
    let ethertype = bytes(captured, 12).map(u16::from_be_bytes)?;
    let l3_bytes = frame_bytes
        .checked_sub(ETHERNET_HEADER)
        .and_then(|bytes| u32::try_from(bytes).ok())
        .ok_or(Malformed("frame shorter than its header"))?;
    let packet = &captured[ETHERNET_HEADER..];
    match ethertype {
        0x0800 => parse_ipv4(packet, l3_bytes).map(Frame::Ip),
        0x86dd => parse_ipv6(packet, l3_bytes).map(Frame::Ip),
        other => Ok(Frame::Other(other)),
    }
}

fn parse_ipv4(packet: &[u8], l3_bytes: u32) -> Result<Headers, Malformed> {
    let [first] = bytes(packet, 0)?;
    let header_bytes = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header_bytes < 20 {
        return Err(Malformed("no IPv4 header"));
    }
    let total = u32::from(u16::from_be_bytes(bytes(packet, 2)?));
    if total != 0 && total != l3_bytes {
        return Err(Malformed("the length in the IPv4 header is not that of the frame"));
    }
    let fragment = u16::from_be_bytes(bytes(packet, 6)?);
    let [protocol] = bytes(packet, 9)?;
    let headers = Headers {
        source: IpAddr::V4(Ipv4Addr::from(bytes::<4>(packet, 12)?)),
        destination: IpAddr::V4(Ipv4Addr::from(bytes::<4>(packet, 16)?)),
        source_port: 0,
        destination_port: 0,
        protocol,
        icmp_type: None,
        // More fragments, or an offset.
        fragment: fragment & 0x3fff != 0,
        l3_bytes,
        payload_bytes: 0,
        tcp: None,
    };
    transport(packet, header_bytes, fragment & 0x1fff == 0, headers)
}

fn parse_ipv6(packet: &[u8], l3_bytes: u32) -> Result<Headers, Malformed> {
    let [first] = bytes(packet, 0)?;
    if first >> 4 != 6 {
        return Err(Malformed("no IPv6 header"));
    }
    let length = u32::from(u16::from_be_bytes(bytes(packet, 4)?));
    if length != 0 && length + 40 != l3_bytes {
        return Err(Malformed("the length in the IPv6 header is not that of the frame"));
    }
    let [mut next] = bytes(packet, 6)?;
    let (mut offset, mut fragment, mut starts) = (40, false, true);
    // Hop-by-hop, routing, fragment, authentication and destination options; each takes 8 bytes or
    // more, so the frame's end ends the loop.
    while starts && matches!(next, 0 | 43 | 44 | 51 | 60) {
        let [following, length] = bytes(packet, offset)?;
        let length = usize::from(length);
        offset += match next {
            44 => {
                fragment = true;
                starts = u16::from_be_bytes(bytes(packet, offset + 2)?) & 0xfff8 == 0;
                8
            }
            51 => (length + 2) * 4,
            _ => (length + 1) * 8,
        };
        next = following;
    }
    let headers = Headers {
        source: IpAddr::V6(Ipv6Addr::from(bytes::<16>(packet, 8)?)),
        destination: IpAddr::V6(Ipv6Addr::from(bytes::<16>(packet, 24)?)),
        source_port: 0,
        destination_port: 0,
        protocol: next,
        icmp_type: None,
        fragment,
        l3_bytes,
        payload_bytes: 0,
        tcp: None,
    };
    transport(packet, offset, starts, headers)
}

/// Fills in what stands behind the IP headers, which end at `offset`.
fn transport(
    packet: &[u8],
    offset: usize,
    starts: bool,
    mut headers: Headers,
) -> Result<Headers, Malformed> {
    let mut header_bytes = offset;
    // A fragment after the first has the protocol's number but not its header.
    if starts {
        if matches!(headers.protocol, TCP | UDP) {
            headers.source_port = u16::from_be_bytes(bytes(packet, offset)?);
            headers.destination_port = u16::from_be_bytes(bytes(packet, offset + 2)?);
        }
        match headers.protocol {
            TCP => {
                let [length, flags] = bytes(packet, offset + 12)?;
                let length = usize::from(length >> 4) * 4;
                if length < 20 {
                    return Err(Malformed("TCP header shorter than 20 bytes"));
                }
                header_bytes += length;
                headers.tcp = Some(Tcp {
                    flags,
                    sequence: u32::from_be_bytes(bytes(packet, offset + 4)?),
                    acknowledged: u32::from_be_bytes(bytes(packet, offset + 8)?),
                });
            }
            UDP => header_bytes += 8,
            ICMP | ICMPV6 => headers.icmp_type = Some(bytes::<1>(packet, offset)?[0]),
            _ => {}
        }
    }
    headers.payload_bytes = u32::try_from(header_bytes)
        .ok()
        .and_then(|header_bytes| headers.l3_bytes.checked_sub(header_bytes))
        .ok_or(Malformed("headers longer than the packet"))?;
    Ok(headers)
}

/// `N` bytes at `offset`, as long as they were captured.
fn bytes<const N: usize>(packet: &[u8], offset: usize) -> Result<[u8; N], Malformed> {
    packet
        .get(offset..)
        .and_then(|rest| rest.first_chunk::<N>())
        .copied()
        .ok_or(Malformed("a header ends beyond what was captured"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An Ethernet frame with an IPv4 packet: 10.77.1.1 to 10.77.1.2, IP options of `options` bytes.
    fn ipv4(protocol: u8, options: usize, rest: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00]);
        frame.push(0x40 | (5 + options / 4) as u8);
        frame.push(0);
        frame.extend(((20 + options + rest.len()) as u16).to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
        frame.extend([10, 77, 1, 1, 10, 77, 1, 2]);
        frame.extend(vec![0; options]);
        frame.extend(rest);
        frame
    }

    fn ipv6(next: u8, rest: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend((rest.len() as u16).to_be_bytes());
        frame.extend([next, 64]);
        frame.extend([0xfd; 16]);
        frame.extend([0xfe; 16]);
        frame.extend(rest);
        frame
    }

    /// Ports 4000 and 443, sequence 7, acknowledged 9, 12 bytes of options, 100 bytes of payload.
    fn tcp(flags: u8) -> Vec<u8> {
        let mut segment = vec![0x0f, 0xa0, 0x01, 0xbb, 0, 0, 0, 7, 0, 0, 0, 9, 0x80, flags];
        segment.extend([0; 18]);
        segment.extend([0; 100]);
        segment
    }

    fn parsed(frame: &[u8]) -> Headers {
        match parse(frame, frame.len()).unwrap() {
            Frame::Ip(headers) => headers,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn tcp_over_ipv4_with_options_in_both_headers() {
        let headers = parsed(&ipv4(TCP, 8, &tcp(ACK | FIN)));
        assert_eq!((headers.l3_bytes, headers.payload_bytes), (28 + 32 + 100, 100));
        assert_eq!((headers.source_port, headers.destination_port), (4000, 443));
        assert_eq!(headers.tcp, Some(Tcp { flags: ACK | FIN, sequence: 7, acknowledged: 9 }));
        assert!(!headers.fragment);
    }

    #[test]
    fn only_the_headers_need_to_be_captured() {
        let frame = ipv4(TCP, 0, &tcp(ACK));
        let captured = &frame[..14 + 20 + 20];
        assert_eq!(parse(captured, frame.len()), parse(&frame, frame.len()));
        assert!(parse(&frame[..14 + 20 + 10], frame.len()).is_err());
    }

    #[test]
    fn udp_over_ipv6_behind_extension_headers() {
        // Hop-by-hop of 8 bytes, destination options of 16, then UDP with 5 bytes.
        let mut rest = vec![60, 0, 1, 4, 0, 0, 0, 0];
        rest.extend([UDP, 1]);
        rest.extend([0; 14]);
        rest.extend([0, 53, 0x10, 0, 0, 13, 0, 0, 1, 2, 3, 4, 5]);
        let headers = parsed(&ipv6(0, &rest));
        assert_eq!((headers.l3_bytes, headers.payload_bytes), (40 + 24 + 13, 5));
        assert_eq!((headers.protocol, headers.source_port), (UDP, 53));
    }

    #[test]
    fn late_fragments_have_no_ports() {
        let mut frame = ipv4(UDP, 0, &[0xff; 24]);
        frame[14 + 6..14 + 8].copy_from_slice(&[0x00, 0xb9]);
        let headers = parsed(&frame);
        assert!(headers.fragment);
        assert_eq!((headers.source_port, headers.payload_bytes), (0, 24));
        // IPv6: fragment header with offset 8 bytes, the last one.
        let mut rest = vec![UDP, 0, 0, 8, 0, 0, 0, 1];
        rest.extend([0xff; 24]);
        let headers = parsed(&ipv6(44, &rest));
        assert_eq!((headers.fragment, headers.source_port, headers.payload_bytes), (true, 0, 24));
    }

    #[test]
    fn neighbour_discovery_shows_its_type_and_arp_is_no_packet() {
        assert_eq!(parsed(&ipv6(ICMPV6, &[135, 0, 0, 0])).icmp_type, Some(135));
        let mut arp = vec![0; 60];
        arp[12..14].copy_from_slice(&[0x08, 0x06]);
        assert_eq!(parse(&arp, 60), Ok(Frame::Other(0x0806)));
    }

    #[test]
    fn a_length_that_is_not_the_frames_is_refused_but_zero_is_a_big_super_packet() {
        let mut frame = ipv4(TCP, 0, &tcp(ACK));
        assert!(parse(&frame, frame.len() + 1).is_err());
        frame[16..18].copy_from_slice(&[0, 0]);
        match parse(&frame, 100_014).unwrap() {
            Frame::Ip(headers) => assert_eq!(headers.payload_bytes, 100_000 - 52),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn no_prefix_of_a_frame_and_no_changed_byte_panics() {
        for frame in [ipv4(TCP, 4, &tcp(SYN)), ipv6(0, &[44; 80]), ipv6(51, &[51; 300])] {
            for end in 0..frame.len() {
                let _ = parse(&frame[..end], frame.len());
                let _ = parse(&frame[..end], end);
                let mut changed = frame.clone();
                changed[end] ^= 0xff;
                let _ = parse(&changed, changed.len());
            }
        }
    }
}
