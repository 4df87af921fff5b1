//! Figures and their coordinates: the counters of a cell, their sums, and what tells one cell from another.

use serde::Serialize;
use traffic_ebpf::Cell;

/// Sums of the six counters; the JSON twin of [`Cell`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// sk_buffs seen by the hook.
    pub packets: u64,
    /// L3 bytes as the hook saw them: what iptables counts.
    pub bytes: u64,
    /// IP packets as on the wire.
    pub wire_packets: u64,
    /// L3 bytes as on the wire: the exact figure.
    pub wire_bytes: u64,
    /// Bytes behind the transport header.
    pub payload_bytes: u64,
    /// Of these, what TCP carried before: sent again, received again.
    pub retransmitted_bytes: u64,
}

impl From<Cell> for Counters {
    fn from(cell: Cell) -> Self {
        let Cell { packets, bytes, wire_packets, wire_bytes, payload_bytes, retransmitted_bytes } =
            cell;
        Self { packets, bytes, wire_packets, wire_bytes, payload_bytes, retransmitted_bytes }
    }
}

impl Counters {
    /// Whether one of them is as large as a counter can be: the truth is that or more.
    pub fn at_limit(&self) -> bool {
        let Self { packets, bytes, wire_packets, wire_bytes, payload_bytes, retransmitted_bytes } =
            *self;
        [packets, bytes, wire_packets, wire_bytes, payload_bytes, retransmitted_bytes]
            .contains(&u64::MAX)
    }

    fn since(&self, earlier: &Self) -> Self {
        // Counters only grow; a smaller one is shown as no traffic, never as a huge number.
        Self {
            packets: self.packets.saturating_sub(earlier.packets),
            bytes: self.bytes.saturating_sub(earlier.bytes),
            wire_packets: self.wire_packets.saturating_sub(earlier.wire_packets),
            wire_bytes: self.wire_bytes.saturating_sub(earlier.wire_bytes),
            payload_bytes: self.payload_bytes.saturating_sub(earlier.payload_bytes),
            retransmitted_bytes: self
                .retransmitted_bytes
                .saturating_sub(earlier.retransmitted_bytes),
        }
    }
}

impl std::ops::AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        // A sum beyond a u64 stands at the limit, and the report says so (`Counters::at_limit`).
        self.packets = self.packets.saturating_add(other.packets);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.wire_packets = self.wire_packets.saturating_add(other.wire_packets);
        self.wire_bytes = self.wire_bytes.saturating_add(other.wire_bytes);
        self.payload_bytes = self.payload_bytes.saturating_add(other.payload_bytes);
        self.retransmitted_bytes =
            self.retransmitted_bytes.saturating_add(other.retransmitted_bytes);
    }
}

impl std::iter::Sum for Counters {
    fn sum<I: Iterator<Item = Self>>(counters: I) -> Self {
        counters.fold(Self::default(), |mut sum, counters| {
            sum += counters;
            sum
        })
    }
}

/// Both directions of something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Directions {
    /// Delivered to sockets of the target.
    pub ingress: Counters,
    /// Sent by sockets of the target.
    pub egress: Counters,
}

impl Directions {
    /// Returns the counters of one direction.
    pub fn of_mut(&mut self, direction: Direction) -> &mut Counters {
        match direction {
            Direction::Ingress => &mut self.ingress,
            Direction::Egress => &mut self.egress,
        }
    }

    /// What came since an earlier sum of the same.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            ingress: self.ingress.since(&earlier.ingress),
            egress: self.egress.since(&earlier.egress),
        }
    }

    /// Wire bytes of both directions.
    pub fn wire_bytes(&self) -> u64 {
        self.ingress.wire_bytes.saturating_add(self.egress.wire_bytes)
    }
}

/// Sums by scope.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Scopes {
    /// What a provider sees: every interface but loopback and the unbilled ones.
    pub billed: Directions,
    /// Interfaces declared free.
    pub unbilled: Directions,
    /// Loopback; a packet between two sockets of the target is in it twice, out and in.
    pub loopback: Directions,
}

impl Scopes {
    /// Both directions of one scope.
    pub fn of(&self, scope: Scope) -> Directions {
        match scope {
            Scope::Billed => self.billed,
            Scope::Unbilled => self.unbilled,
            Scope::Loopback => self.loopback,
        }
    }

    /// Both directions of one scope, to be added to.
    pub fn of_mut(&mut self, scope: Scope) -> &mut Directions {
        match scope {
            Scope::Billed => &mut self.billed,
            Scope::Unbilled => &mut self.unbilled,
            Scope::Loopback => &mut self.loopback,
        }
    }
}

impl std::iter::Sum for Scopes {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |mut sum, scopes| {
            for scope in [Scope::Billed, Scope::Unbilled, Scope::Loopback] {
                let (sum, more) = (sum.of_mut(scope), scopes.of(scope));
                sum.ingress += more.ingress;
                sum.egress += more.egress;
            }
            sum
        })
    }
}

/// Seen from the cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names are the field's own")]
pub enum Direction {
    Ingress,
    Egress,
}

/// Which side of the proxy a packet belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Leg {
    /// The socket's port is a listening port of the target.
    Client,
    /// Everything else.
    Upstream,
}

/// Transport protocol, as far as cells tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names are the field's own")]
pub enum Protocol {
    Tcp,
    Udp,
    Icmp,
    Other,
}

/// IP version of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names are the field's own")]
pub enum Family {
    Ipv4,
    Ipv6,
}

/// Who pays for an interface's traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Seen by the provider.
    Billed,
    /// Declared free (`--unbilled`).
    Unbilled,
    /// Never leaves the host.
    Loopback,
}

/// Who sent or took the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// A socket of the target: the hook saw it.
    Socket,
    /// The kernel exchanged it in the target's place, without a socket, and a tracepoint showed it.
    Kernel,
    /// The same, for what no tracepoint shows but follows from a packet that one did.
    KernelDerived,
}
