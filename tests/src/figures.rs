//! What was counted and what was captured, under the same keys: equal maps are equal books. Pure.

use std::collections::{BTreeMap, BTreeSet};

use traffic_agent::method::ListeningPort;
use traffic_agent::report::{CellReport, Counters, Direction, Family, Leg, Protocol};
use traffic_lab::packet::{self, ICMP, ICMPV6, Packet, TCP, UDP};
use traffic_lab::topology::{CLIENT_DEVICE, LabTrace, UPSTREAM_DEVICE};

/// The coordinates of a cell, as a capture shows them too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The proxy's device.
    pub interface: String,
    /// Seen from the proxy.
    pub direction: Direction,
    /// By the port at the proxy.
    pub leg: Leg,
    /// By the packet.
    pub protocol: Protocol,
    /// The listening port.
    pub port: Option<u16>,
    /// By the packet.
    pub family: Family,
}

/// What the wire shows of a cell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// IP packets.
    pub wire_packets: u64,
    /// L3 bytes.
    pub wire_bytes: u64,
    /// Behind the transport header.
    pub payload_bytes: u64,
}

impl std::ops::Add for Figures {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            wire_packets: self.wire_packets + other.wire_packets,
            wire_bytes: self.wire_bytes + other.wire_bytes,
            payload_bytes: self.payload_bytes + other.payload_bytes,
        }
    }
}

impl From<Counters> for Figures {
    fn from(counters: Counters) -> Self {
        let Counters { wire_packets, wire_bytes, payload_bytes, .. } = counters;
        Self { wire_packets, wire_bytes, payload_bytes }
    }
}

impl std::iter::Sum for Figures {
    fn sum<I: Iterator<Item = Self>>(figures: I) -> Self {
        figures.fold(Self::default(), std::ops::Add::add)
    }
}

/// Figures by key; without those that are nothing.
pub type Books = BTreeMap<Key, Figures>;

/// The books of cells.
pub fn of_cells<'c>(cells: impl IntoIterator<Item = &'c CellReport>) -> Books {
    let mut books = Books::new();
    for cell in cells {
        let key = Key {
            interface: cell.interface.clone(),
            direction: cell.direction,
            leg: cell.leg,
            protocol: cell.protocol,
            port: cell.port,
            family: cell.family,
        };
        let sum = books.entry(key).or_default();
        *sum = *sum + cell.counters.into();
    }
    books
}

/// The books of what both far ends captured, if these ports at the proxy are the client leg.
pub fn of_capture(trace: &LabTrace, listening: &[ListeningPort]) -> Books {
    let listening: BTreeSet<_> = listening.iter().copied().collect();
    let mut books = Books::new();
    for (leg, interface) in [(&trace.client, CLIENT_DEVICE), (&trace.upstream, UPSTREAM_DEVICE)] {
        for packet in &leg.trace.packets {
            post(&mut books, packet, interface, &listening);
        }
    }
    books
}

/// Adds a captured packet to the books.
pub fn post(
    books: &mut Books,
    packet: &Packet,
    interface: &str,
    listening: &BTreeSet<ListeningPort>,
) {
    let figures = Figures {
        wire_packets: 1,
        wire_bytes: packet.headers.l3_bytes.into(),
        payload_bytes: packet.headers.payload_bytes.into(),
    };
    let sum = books.entry(key(packet, interface, listening)).or_default();
    *sum = *sum + figures;
}

fn key(packet: &Packet, interface: &str, listening: &BTreeSet<ListeningPort>) -> Key {
    let protocol = match packet.headers.protocol {
        TCP => Protocol::Tcp,
        UDP => Protocol::Udp,
        ICMP | ICMPV6 => Protocol::Icmp,
        _ => Protocol::Other,
    };
    let local = ListeningPort { protocol, port: packet.proxy().port() };
    let is_client = listening.contains(&local);
    Key {
        interface: interface.to_owned(),
        direction: match packet.direction {
            packet::Direction::Ingress => Direction::Ingress,
            packet::Direction::Egress => Direction::Egress,
        },
        leg: if is_client { Leg::Client } else { Leg::Upstream },
        protocol,
        port: is_client.then_some(local.port),
        family: match packet.family() {
            packet::Family::Ipv4 => Family::Ipv4,
            packet::Family::Ipv6 => Family::Ipv6,
        },
    }
}

/// The sum of the entries that `keep` selects.
pub fn sum(books: &Books, keep: impl Fn(&Key) -> bool) -> Figures {
    books.iter().filter(|(key, _)| keep(key)).map(|(_, figures)| *figures).sum()
}

/// What two books have together.
pub fn together(one: &Books, other: &Books) -> Books {
    let mut both = one.clone();
    for (key, figures) in other {
        let sum = both.entry(key.clone()).or_default();
        *sum = *sum + *figures;
    }
    both
}

/// What one book has beyond another.
pub fn since(now: &Books, before: &Books) -> Books {
    let mut difference = Books::new();
    for (key, figures) in now {
        let before = before.get(key).copied().unwrap_or_default();
        let added = Figures {
            wire_packets: figures.wire_packets - before.wire_packets,
            wire_bytes: figures.wire_bytes - before.wire_bytes,
            payload_bytes: figures.payload_bytes - before.payload_bytes,
        };
        if added != Figures::default() {
            difference.insert(key.clone(), added);
        }
    }
    difference
}

/// The books of captures in which the wire shows another port than the proxy's socket has: of the client
/// leg, if that is `public`, and under the port that `port_of` says.
pub fn of_capture_as(
    trace: &LabTrace,
    public: ListeningPort,
    port_of: impl Fn(Direction) -> u16,
) -> Books {
    of_capture(trace, &[public])
        .into_iter()
        .map(|(key, figures)| {
            let port = key.port.map(|_| port_of(key.direction));
            (Key { port, ..key }, figures)
        })
        .collect()
}

/// The same figures with the ports forgotten.
pub fn without_ports(books: Books) -> Books {
    let mut merged = Books::new();
    for (key, figures) in books {
        let sum = merged.entry(Key { port: None, ..key }).or_default();
        *sum = *sum + figures;
    }
    merged
}
