//! What a capture has seen, and exact sums over it. Pure.

use std::collections::HashMap;
use std::net::SocketAddr;

use crate::packet::{
    Direction, Family, Frame, Headers, ICMPV6, Malformed, Packet, SYN, TCP, UDP, sequence_distance,
};

/// The packets of one link in the order of the capture, and what was left out.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    /// Every IP packet that is not noise.
    pub packets: Vec<Packet>,
    /// Frames that no program sent.
    pub noise: Noise,
    /// Frames that could not be parsed, with the reason of the first: a trace with any is no truth.
    pub malformed: (u64, Option<Malformed>),
}

/// Frames that a link carries without any program having sent them. In the lab: none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Noise {
    /// ARP and other frames without IP.
    pub not_ip: Frames,
    /// Neighbour and router discovery, and multicast listener reports.
    pub icmpv6: Frames,
}

/// A number of frames and their length together, link-layer header included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Frames {
    /// How many.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Which packets to sum. An empty filter takes all; each method narrows it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Filter {
    direction: Option<Direction>,
    protocol: Option<u8>,
    family: Option<Family>,
    proxy_port: Option<u16>,
    peer_port: Option<u16>,
}

impl Filter {
    /// Everything.
    pub fn all() -> Self {
        Self::default()
    }

    /// Only packets to the proxy.
    pub fn ingress(self) -> Self {
        self.direction(Direction::Ingress)
    }

    /// Only packets from the proxy.
    pub fn egress(self) -> Self {
        self.direction(Direction::Egress)
    }

    /// Only packets of one direction.
    pub fn direction(self, direction: Direction) -> Self {
        Self { direction: Some(direction), ..self }
    }

    /// Only TCP.
    pub fn tcp(self) -> Self {
        self.protocol(TCP)
    }

    /// Only UDP.
    pub fn udp(self) -> Self {
        self.protocol(UDP)
    }

    /// Only this IP protocol number.
    pub fn protocol(self, protocol: u8) -> Self {
        Self { protocol: Some(protocol), ..self }
    }

    /// Only one IP version, by the packet.
    pub fn family(self, family: Family) -> Self {
        Self { family: Some(family), ..self }
    }

    /// Only packets whose port at the proxy is this one.
    pub fn proxy_port(self, port: u16) -> Self {
        Self { proxy_port: Some(port), ..self }
    }

    /// Only packets whose port at the far end is this one.
    pub fn peer_port(self, port: u16) -> Self {
        Self { peer_port: Some(port), ..self }
    }

    /// Whether the packet is one of those.
    pub fn takes(&self, packet: &Packet) -> bool {
        self.direction.is_none_or(|direction| direction == packet.direction)
            && self.protocol.is_none_or(|protocol| protocol == packet.headers.protocol)
            && self.family.is_none_or(|family| family == packet.family())
            && self.proxy_port.is_none_or(|port| port == packet.proxy().port())
            && self.peer_port.is_none_or(|port| port == packet.peer().port())
    }
}

/// Exact sums over packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sum {
    /// IP packets: where the link carries MTU frames, as on the wire.
    pub packets: u64,
    /// IP header to end of payload.
    pub l3_bytes: u64,
    /// Behind the TCP or UDP header, retransmissions included.
    pub payload_bytes: u64,
}

impl Sum {
    /// Adds packets up.
    pub fn of<'p>(packets: impl IntoIterator<Item = &'p Packet>) -> Self {
        packets.into_iter().fold(Self::default(), |sum, packet| Self {
            packets: sum.packets + 1,
            l3_bytes: sum.l3_bytes + u64::from(packet.headers.l3_bytes),
            payload_bytes: sum.payload_bytes + u64::from(packet.headers.payload_bytes),
        })
    }
}

impl std::ops::Add for Sum {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            packets: self.packets + other.packets,
            l3_bytes: self.l3_bytes + other.l3_bytes,
            payload_bytes: self.payload_bytes + other.payload_bytes,
        }
    }
}

impl Trace {
    /// Adds a frame: to the packets, or to what was left out.
    pub fn push(
        &mut self,
        at_ns: u64,
        direction: Direction,
        frame: Result<Frame, Malformed>,
        frame_bytes: u64,
    ) {
        let noise = match frame {
            Ok(Frame::Ip(headers)) if !is_neighbour_discovery(&headers) => {
                self.packets.push(Packet { at_ns, direction, headers });
                return;
            }
            Ok(Frame::Ip(_)) => &mut self.noise.icmpv6,
            Ok(Frame::Other(_)) => &mut self.noise.not_ip,
            Err(reason) => {
                self.malformed.0 += 1;
                self.malformed.1.get_or_insert(reason);
                return;
            }
        };
        noise.frames += 1;
        noise.bytes += frame_bytes;
    }

    /// The packets that the filter takes, in order.
    pub fn select(&self, filter: Filter) -> impl Iterator<Item = &Packet> {
        self.packets.iter().filter(move |packet| filter.takes(packet))
    }

    /// Sums over the packets that the filter takes.
    pub fn sum(&self, filter: Filter) -> Sum {
        Sum::of(self.select(filter))
    }

    /// All frames of a direction, noise included only in sum: what a device counter is held against.
    pub fn frames(&self, direction: Direction) -> u64 {
        self.sum(Filter::all().direction(direction)).packets
    }

    /// TCP payload among the packets that the filter takes which the capture had already seen: bytes
    /// sent again, exact also when holes are filled late.
    ///
    /// A probe of a zero window or a keepalive that repeats a byte counts as that byte.
    pub fn retransmitted_payload(&self, filter: Filter) -> u64 {
        let mut streams: HashMap<(Direction, SocketAddr, SocketAddr), Stream> = HashMap::new();
        let mut again = 0;
        for packet in self.select(filter.tcp()) {
            let Some(tcp) = packet.headers.tcp else { continue };
            let key = (packet.direction, packet.proxy(), packet.peer());
            let first = tcp.sequence.wrapping_add(u32::from(tcp.has(SYN)));
            let stream = match streams.entry(key) {
                // The same ports once more are another stream.
                std::collections::hash_map::Entry::Occupied(entry) if !tcp.has(SYN) => {
                    entry.into_mut()
                }
                entry => entry.insert_entry(Stream::starting_at(first)).into_mut(),
            };
            let length = u64::from(packet.headers.payload_bytes);
            again += length - stream.cover(first, length);
        }
        again
    }
}

/// Router and neighbour discovery, redirects, multicast listener queries and reports.
fn is_neighbour_discovery(headers: &Headers) -> bool {
    headers.protocol == ICMPV6
        && headers.icmp_type.is_some_and(|kind| matches!(kind, 130..=137 | 143))
}

/// Which bytes of one direction of a connection have been seen, as numbers that do not wrap.
struct Stream {
    /// Up to here everything was seen.
    seen: u64,
    /// `seen` as it stands in the header.
    seen_sequence: u32,
    /// What was seen beyond, as sorted, disjoint ranges.
    islands: Vec<(u64, u64)>,
}

impl Stream {
    fn starting_at(sequence: u32) -> Self {
        // Far from zero, so that a byte before the first one does not underflow.
        Self { seen: 1 << 33, seen_sequence: sequence, islands: Vec::new() }
    }

    /// Marks bytes as seen and returns how many of them are new.
    fn cover(&mut self, sequence: u32, length: u64) -> u64 {
        let start = self.seen.wrapping_add_signed(sequence_distance(sequence, self.seen_sequence));
        let (start, end) = (start.max(self.seen), start + length);
        if start >= end {
            return 0;
        }
        let overlap: u64 = self
            .islands
            .iter()
            .map(|&(from, to)| to.min(end).saturating_sub(from.max(start)))
            .sum();
        let mut merged = (start, end);
        self.islands.retain(|&(from, to)| {
            let touches = from <= merged.1 && to >= merged.0;
            if touches {
                merged = (merged.0.min(from), merged.1.max(to));
            }
            !touches
        });
        if merged.0 == self.seen {
            self.seen_sequence = self.seen_sequence.wrapping_add((merged.1 - self.seen) as u32);
            self.seen = merged.1;
        } else {
            let place = self.islands.partition_point(|&(from, _)| from < merged.0);
            self.islands.insert(place, merged);
        }
        end - start - overlap
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::packet::{ACK, Tcp};

    /// A TCP packet over IPv4 with timestamps (52 bytes of headers), proxy port 80, peer port 4000.
    pub(crate) fn packet(
        direction: Direction,
        flags: u8,
        sequence: u32,
        acknowledged: u32,
        payload_bytes: u32,
    ) -> Packet {
        let (proxy, peer) =
            ((IpAddr::from([10, 77, 1, 2]), 80), (IpAddr::from([10, 77, 1, 1]), 4000));
        let (source, destination) = match direction {
            Direction::Ingress => (peer, proxy),
            Direction::Egress => (proxy, peer),
        };
        let headers = Headers {
            source: source.0,
            destination: destination.0,
            source_port: source.1,
            destination_port: destination.1,
            protocol: TCP,
            icmp_type: None,
            fragment: false,
            l3_bytes: 52 + payload_bytes,
            payload_bytes,
            tcp: Some(Tcp { flags, sequence, acknowledged }),
        };
        Packet { at_ns: 0, direction, headers }
    }

    pub(crate) fn trace(packets: Vec<Packet>) -> Trace {
        Trace { packets, ..Trace::default() }
    }

    #[test]
    fn sums_are_those_of_the_packets_that_the_filter_takes() {
        let trace = trace(vec![
            packet(Direction::Ingress, ACK, 1, 1, 100),
            packet(Direction::Egress, ACK, 1, 101, 0),
            packet(Direction::Egress, ACK, 1, 101, 1448),
        ]);
        assert_eq!(
            trace.sum(Filter::all().egress().tcp().proxy_port(80)),
            Sum { packets: 2, l3_bytes: 52 + 1500, payload_bytes: 1448 }
        );
        assert_eq!(trace.sum(Filter::all().peer_port(4000)).packets, 3);
        assert_eq!(trace.sum(Filter::all().proxy_port(4000)), Sum::default());
        assert_eq!(trace.sum(Filter::all().udp()), Sum::default());
        assert_eq!(trace.sum(Filter::all().family(Family::Ipv6)), Sum::default());
    }

    #[test]
    fn bytes_sent_again_are_counted_and_late_ones_are_not() {
        let data = |sequence, length| packet(Direction::Egress, ACK, sequence, 1, length);
        // 0..100, hole, 200..300, the hole, then 50..350 of which 50 are new.
        let trace = trace(vec![data(0, 100), data(200, 100), data(100, 100), data(50, 300)]);
        assert_eq!(trace.retransmitted_payload(Filter::all()), 250);
        assert_eq!(trace.retransmitted_payload(Filter::all().ingress()), 0);
    }

    #[test]
    fn sequence_numbers_may_wrap_and_ports_be_used_again() {
        let data = |flags, sequence, length| packet(Direction::Egress, flags, sequence, 1, length);
        let near = u32::MAX - 50;
        let mut packets = vec![
            data(SYN, near - 1, 0),
            data(ACK, near, 100),
            data(ACK, near.wrapping_add(100), 100),
            data(ACK, near, 100),
        ];
        packets.extend([data(SYN, near - 1, 0), data(ACK, near, 100)]);
        assert_eq!(trace(packets).retransmitted_payload(Filter::all()), 100);
    }

    #[test]
    fn noise_and_malformed_frames_stay_out_of_the_sums() {
        let mut trace = Trace::default();
        trace.push(0, Direction::Ingress, Ok(Frame::Other(0x0806)), 42);
        trace.push(0, Direction::Ingress, Err(Malformed("x")), 42);
        assert_eq!(trace.sum(Filter::all()), Sum::default());
        assert_eq!(trace.noise.not_ip, Frames { frames: 1, bytes: 42 });
        assert_eq!(trace.malformed, (1, Some(Malformed("x"))));
    }
}
