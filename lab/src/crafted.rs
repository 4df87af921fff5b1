//! IP packets put together byte by byte, with right lengths and checksums. Pure.

use std::mem;
use std::net::IpAddr;

use crate::packet::{ICMP, ICMPV6, SYN, TCP, UDP};

/// What a kernel puts at most into the quotation of an ICMP error, its own headers included: IPv4.
const ERROR_BYTES_IPV4: usize = 576;
/// Likewise, IPv6: the smallest MTU.
const ERROR_BYTES_IPV6: usize = 1280;
const HEADER_IPV4: usize = 20;
const HEADER_IPV6: usize = 40;
const HEADER_ICMP: usize = 8;
const HOPS: u8 = 64;
/// The number of an extension header. Source: RFC 8200, section 4.6.
const DESTINATION_OPTIONS: u8 = 60;
/// What follows it, not yet known; no further 8 bytes; one option of padding with 4 bytes.
const OPTIONS: [u8; 8] = [0, 0, 1, 4, 0, 0, 0, 0];

/// Where a packet comes from and goes to: two addresses of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// The sender's.
    pub source: IpAddr,
    /// The receiver's.
    pub destination: IpAddr,
}

/// A TCP segment, which has timestamps in any case, and in a SYN the other options of Linux, too:
/// its header is 32 bytes, that of a SYN 40.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment<'p> {
    /// The sender's port.
    pub source_port: u16,
    /// The receiver's port.
    pub destination_port: u16,
    /// The flags' byte.
    pub flags: u8,
    /// Number of the first byte.
    pub sequence: u32,
    /// Number of the next byte that is expected.
    pub acknowledged: u32,
    /// The clock of the sender.
    pub timestamp: u32,
    /// The last clock of the receiver that the sender has seen.
    pub echo: u32,
    /// What the segment carries.
    pub payload: &'p [u8],
}

/// A packet with this segment.
pub fn tcp(ends: Ends, segment: &Segment<'_>) -> Vec<u8> {
    let mut options = Vec::new();
    if segment.flags & SYN != 0 {
        // MSS 1440, which fits both families; SACK; timestamps; a NOP; window scale 7.
        options.extend([2, 4, 0x05, 0xa0, 4, 2, 8, 10]);
    } else {
        // Two NOPs, timestamps.
        options.extend([1, 1, 8, 10]);
    }
    options.extend(segment.timestamp.to_be_bytes());
    options.extend(segment.echo.to_be_bytes());
    if segment.flags & SYN != 0 {
        options.extend([1, 3, 3, 7]);
    }
    let mut body = Vec::new();
    body.extend(segment.source_port.to_be_bytes());
    body.extend(segment.destination_port.to_be_bytes());
    body.extend(segment.sequence.to_be_bytes());
    body.extend(segment.acknowledged.to_be_bytes());
    body.extend([(((20 + options.len()) / 4) << 4) as u8, segment.flags]);
    // A window of 64,000 bytes, no checksum yet, no urgent data.
    body.extend([0xfa, 0, 0, 0, 0, 0]);
    body.extend(options);
    body.extend(segment.payload);
    let start = pseudo_header_sum(ends, TCP, body.len());
    set_checksum(&mut body, 16, start);
    ip(ends, TCP, &body)
}

/// A packet with a UDP datagram between two ports.
pub fn udp(ends: Ends, source_port: u16, destination_port: u16, payload: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(source_port.to_be_bytes());
    body.extend(destination_port.to_be_bytes());
    body.extend(((8 + payload.len()) as u16).to_be_bytes());
    body.extend([0, 0]);
    body.extend(payload);
    let start = pseudo_header_sum(ends, UDP, body.len());
    set_checksum(&mut body, 6, start);
    ip(ends, UDP, &body)
}

/// An ICMP echo request, as `ping` sends it.
pub fn echo_request(ends: Ends, number: u16, payload: &[u8]) -> Vec<u8> {
    let kind = if ends.source.is_ipv4() { 8 } else { 128 };
    let [high, low] = number.to_be_bytes();
    icmp(ends, [kind, 0, 0, 0, 0x1a, 0xb0, high, low], payload)
}

/// The ICMP error "port unreachable" in answer to a packet, which it quotes as a kernel does.
pub fn port_unreachable(ends: Ends, original: &[u8]) -> Vec<u8> {
    let (kind, code, at_most) = if ends.source.is_ipv4() {
        (3, 3, ERROR_BYTES_IPV4 - HEADER_IPV4 - HEADER_ICMP)
    } else {
        (1, 4, ERROR_BYTES_IPV6 - HEADER_IPV6 - HEADER_ICMP)
    };
    icmp(ends, [kind, code, 0, 0, 0, 0, 0, 0], &original[..original.len().min(at_most)])
}

/// The same IPv6 packet with an extension header: 8 bytes of destination options, which ask for nothing.
pub fn with_options(packet: &[u8]) -> Vec<u8> {
    let (header, rest) = packet.split_at(HEADER_IPV6);
    let mut header = header.to_vec();
    let length = (OPTIONS.len() + rest.len()) as u16;
    header[4..6].copy_from_slice(&length.to_be_bytes());
    let mut options = OPTIONS;
    // No checksum covers any of that.
    options[0] = mem::replace(&mut header[6], DESTINATION_OPTIONS);
    [&header, &options[..], rest].concat()
}

fn icmp(ends: Ends, header: [u8; HEADER_ICMP], rest: &[u8]) -> Vec<u8> {
    let mut body = header.to_vec();
    body.extend(rest);
    let (protocol, start) = match ends.source {
        IpAddr::V4(_) => (ICMP, 0),
        IpAddr::V6(_) => (ICMPV6, pseudo_header_sum(ends, ICMPV6, body.len())),
    };
    set_checksum(&mut body, 2, start);
    ip(ends, protocol, &body)
}

/// Puts an IP header in front.
fn ip(ends: Ends, protocol: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    match (ends.source, ends.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            packet.extend([0x45, 0]);
            packet.extend(((HEADER_IPV4 + body.len()) as u16).to_be_bytes());
            // No identification, don't fragment.
            packet.extend([0, 0, 0x40, 0, HOPS, protocol, 0, 0]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            set_checksum(&mut packet, 10, 0);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend((body.len() as u16).to_be_bytes());
            packet.extend([protocol, HOPS]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
        }
        _ => panic!("{ends:?} are of two families"),
    }
    packet.extend(body);
    packet
}

/// Writes the internet checksum of all bytes, which begins with `start`, to an offset that is still 0.
fn set_checksum(bytes: &mut [u8], offset: usize, start: u32) {
    let sum = !fold(start + sum_of(bytes));
    bytes[offset..offset + 2].copy_from_slice(&sum.to_be_bytes());
}

/// What TCP, UDP and ICMPv6 have in their checksums besides themselves.
fn pseudo_header_sum(ends: Ends, protocol: u8, length: usize) -> u32 {
    let address = |address: IpAddr| match address {
        IpAddr::V4(address) => sum_of(&address.octets()),
        IpAddr::V6(address) => sum_of(&address.octets()),
    };
    address(ends.source) + address(ends.destination) + u32::from(protocol) + length as u32
}

/// The sum of all 16-bit words, an odd byte filled up with 0.
fn sum_of(bytes: &[u8]) -> u32 {
    let words = bytes.chunks(2);
    words.map(|word| u32::from(word[0]) << 8 | word.get(1).map_or(0, |&low| u32::from(low))).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{ACK, ETHERNET_HEADER, Frame, Headers, parse};

    const SEGMENT: Segment<'static> = Segment {
        source_port: 4000,
        destination_port: 443,
        flags: ACK,
        sequence: 7,
        acknowledged: 9,
        timestamp: 1,
        echo: 2,
        payload: &[1, 2, 3],
    };

    fn ends() -> [Ends; 2] {
        let of = |source: &str, destination: &str| Ends {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        };
        [of("10.77.1.66", "10.77.1.2"), of("fd77:1::66", "fd77:1::2")]
    }

    fn parsed(packet: &[u8]) -> Headers {
        let ethertype = if packet[0] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] };
        let mut frame = vec![0; ETHERNET_HEADER - 2];
        frame.extend(ethertype);
        frame.extend(packet);
        match parse(&frame, frame.len()).unwrap() {
            Frame::Ip(headers) => headers,
            other => panic!("{other:?}"),
        }
    }

    /// A right checksum makes the sum over all that it covers the ones' complement of zero.
    fn assert_checksum(ends: Ends, protocol: u8, body: &[u8]) {
        let start = match protocol {
            ICMP => 0,
            _ => pseudo_header_sum(ends, protocol, body.len()),
        };
        assert_eq!(fold(start + sum_of(body)), 0xffff);
    }

    #[test]
    fn packets_have_the_sizes_of_linux_and_right_checksums() {
        for (ends, header) in ends().into_iter().zip([HEADER_IPV4, HEADER_IPV6]) {
            let syn = tcp(ends, &Segment { flags: SYN, payload: &[], ..SEGMENT });
            assert_eq!(syn.len(), header + 40);
            let data = tcp(ends, &SEGMENT);
            assert_eq!((data.len(), parsed(&data).payload_bytes), (header + 32 + 3, 3));
            let datagram = udp(ends, 4000, 53, &[1, 2, 3]);
            assert_eq!((datagram.len(), parsed(&datagram).payload_bytes), (header + 8 + 3, 3));
            let ping = echo_request(ends, 1, &[0; 56]);
            assert_eq!(ping.len(), header + 8 + 56);
            let error = port_unreachable(ends, &syn);
            assert_eq!(error.len(), header + 8 + header + 40);
            for packet in [syn, data, datagram, ping, error] {
                let protocol = parsed(&packet).protocol;
                assert_checksum(ends, protocol, &packet[header..]);
            }
        }
    }

    #[test]
    fn options_make_a_packet_8_bytes_longer_and_change_nothing_behind_them() {
        let datagram = udp(ends()[1], 4000, 53, &[1, 2, 3]);
        let packet = with_options(&datagram);
        assert_eq!(packet[48..], datagram[40..]);
        let (before, headers) = (parsed(&datagram), parsed(&packet));
        let longer = Headers { l3_bytes: before.l3_bytes + 8, ..before };
        assert_eq!(headers, longer);
    }

    #[test]
    fn an_error_quotes_no_more_than_a_kernel_does() {
        let [v4, v6] = ends();
        let long = vec![0; 5000];
        assert_eq!(port_unreachable(v4, &long).len(), 576);
        assert_eq!(port_unreachable(v6, &long).len(), 1280);
    }
}
