//! The self-test's books: what the hook counted held against what the far ends captured, row by row,
//! and names for differences that are known. Pure.
//!
//! The types are the JSON format of `selftest`, as those of [`crate::report`] are of reports.

use std::collections::HashMap;
use std::net::SocketAddr;

use serde::Serialize;
use traffic_lab::answered::classify;
use traffic_lab::packet::{FIN, Packet, SYN};
use traffic_lab::trace::{Sum, Trace};

use crate::report::{CellReport, Counters, Direction, Family, Leg, Origin};

/// The result of `selftest`.
#[derive(Clone, Debug, Serialize)]
pub struct SelftestReport {
    /// [`crate::report::FORMAT`].
    pub format: u32,
    /// `selftest`.
    pub command: &'static str,
    /// The agent's version.
    pub version: &'static str,
    /// The kernel, as `uname -r` prints it.
    pub kernel: String,
    /// Whether every byte was counted once, or is of a class that is known not to be.
    pub passed: bool,
    /// How long it took.
    pub seconds: f64,
    /// One element per kind of traffic.
    pub cases: Vec<Case>,
}

/// One kind of traffic.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// Short name, such as `tcp-bulk`.
    pub name: &'static str,
    /// In words.
    pub description: String,
    /// IP version.
    pub family: Family,
    /// Whether the stack works on super-packets (GSO out, GRO in), or on one packet per frame.
    pub offload: bool,
    /// What the applications passed to their sockets and got from them, and what the far ends saw of
    /// that: one element per leg with traffic.
    pub payloads: Vec<Payload>,
    /// One element per leg and direction.
    pub rows: Vec<Row>,
}

/// The bytes that the programs themselves know of, on one leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Payload {
    /// Side of the proxy.
    pub leg: Leg,
    /// Passed to sockets and got from them at the far end.
    pub application_bytes: u64,
    /// Behind the transport headers of the captured packets.
    pub captured_bytes: u64,
    /// Of those, sent again.
    pub resent_bytes: u64,
}

impl Payload {
    /// Whether the capture shows what the applications know.
    pub fn agrees(&self) -> bool {
        self.captured_bytes == self.application_bytes + self.resent_bytes
    }
}

/// One leg and direction of a case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Side of the proxy.
    pub leg: Leg,
    /// Seen from the cgroup.
    pub direction: Direction,
    /// What the hook counted: packets of sockets.
    pub hook: Counters,
    /// What was counted of packets that the kernel exchanged without a socket; only where there are
    /// such, and this kernel shows them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Counters>,
    /// What the far end captured.
    pub capture: Figures,
    /// Counted less captured.
    pub difference: Difference,
    /// Packets of known classes that make up the difference.
    pub explained: Vec<Explanation>,
    /// Whether nothing of the difference is without a name.
    pub holds: bool,
}

/// What a capture shows of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// IP packets.
    pub wire_packets: u64,
    /// L3 bytes.
    pub wire_bytes: u64,
    /// Behind the transport headers.
    pub payload_bytes: u64,
}

impl From<Sum> for Figures {
    fn from(sum: Sum) -> Self {
        Self {
            wire_packets: sum.packets,
            wire_bytes: sum.l3_bytes,
            payload_bytes: sum.payload_bytes,
        }
    }
}

impl Figures {
    fn times(self, count: u64) -> Self {
        Self {
            wire_packets: self.wire_packets * count,
            wire_bytes: self.wire_bytes * count,
            payload_bytes: self.payload_bytes * count,
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            wire_packets: self.wire_packets + other.wire_packets,
            wire_bytes: self.wire_bytes + other.wire_bytes,
            payload_bytes: self.payload_bytes + other.payload_bytes,
        }
    }
}

/// Counted less captured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// IP packets as on the wire.
    pub wire_packets: i64,
    /// L3 bytes as on the wire.
    pub wire_bytes: i64,
    /// Behind the transport headers.
    pub payload_bytes: i64,
}

impl Difference {
    fn of(counted: Counters, captured: Figures) -> Self {
        let less = |counted: u64, captured: u64| counted as i64 - captured as i64;
        Self {
            wire_packets: less(counted.wire_packets, captured.wire_packets),
            wire_bytes: less(counted.wire_bytes, captured.wire_bytes),
            payload_bytes: less(counted.payload_bytes, captured.payload_bytes),
        }
    }

    /// What is left when these packets were not counted, or were counted twice.
    fn without(self, explained: Figures, twice: bool) -> Self {
        let sign = if twice { -1 } else { 1 };
        Self {
            wire_packets: self.wire_packets + sign * explained.wire_packets as i64,
            wire_bytes: self.wire_bytes + sign * explained.wire_bytes as i64,
            payload_bytes: self.payload_bytes + sign * explained.payload_bytes as i64,
        }
    }
}

/// A named part of a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The class, such as `syn-ack-ipv6`.
    pub class: &'static str,
    /// In words.
    pub what: &'static str,
    /// What of the capture it is.
    pub packets: Figures,
}

/// A class of packets that a hook does not see, or sees twice: its name, and what it is in words.
pub type Class = (&'static str, &'static str);

/// SYN-ACKs of inbound IPv6 connections on a kernel whose hook does not see them.
pub const SYN_ACK_IPV6: Class =
    ("syn-ack-ipv6", "SYN-ACKs of inbound IPv6 connections, which this kernel's hook does not see");
/// What reached connections that were over, and the kernel's answers.
pub const ANSWERED: Class =
    ("answered-by-kernel", "packets of connections that were over, and the kernel's own answers");
/// The end of a connection that the proxy closed first.
pub const TIME_WAIT: Class =
    ("time-wait", "the last FIN or ACK of connections that the proxy closed first (TIME_WAIT)");
/// Two packets of one handshake on two processors at once.
pub const HANDSHAKE_TWICE: Class = (
    "handshake-twice",
    "counted twice: another packet of the handshake was handled on another processor at that moment, \
     and the kernel shows the later one to the hook again",
);
/// Of how many connections one may have been counted twice: it is a race, no rule.
const RARE: u64 = 50;

/// Packets of one size that the hook may not have seen, or have seen twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Suspects {
    class: Class,
    /// What one of them is. Usually a packet, but packets that are missing together or not at all are
    /// one.
    each: Sum,
    /// How many there are.
    count: u64,
    /// Seen twice.
    twice: bool,
}

/// All packets of a row that the hook may not have seen, or have seen twice.
#[derive(Clone, Debug, Default)]
pub struct Known(Vec<Suspects>);

impl Known {
    /// What a link has carried that no socket may have seen.
    pub fn of(trace: &Trace, direction: Direction) -> Self {
        let answered = classify(trace);
        let mut known = Self::default();
        let candidates = &answered.time_wait;
        match direction {
            Direction::Ingress => {
                let mut late = after_the_end(trace);
                let triggers = answered.resets.iter().flat_map(|reset| &reset.triggers);
                for packet in triggers.chain(&answered.silent) {
                    if !late.contains(&packet) {
                        late.push(packet);
                    }
                }
                known.each(ANSWERED, late);
                // Each answer that TIME_WAIT repeats has a cause, which may have been sent before the
                // end and been overtaken: an acknowledgement as long as the answer.
                known.each(ANSWERED, &answered.repeated);
                known.each(TIME_WAIT, candidates.iter().map(|candidate| &candidate.fin));
            }
            Direction::Egress => {
                known.each(ANSWERED, answered.resets.iter().map(|reset| &reset.reset));
                known.each(ANSWERED, &answered.repeated);
                known.each(TIME_WAIT, candidates.iter().filter_map(|one| one.ack.as_ref()));
            }
        }
        known
    }

    /// Adds packets each of which may be missing.
    fn each<'p>(&mut self, class: Class, packets: impl IntoIterator<Item = &'p Packet>) {
        for packet in packets {
            self.add(class, Sum::of([packet]), 1, false);
        }
    }

    /// Adds packets that are missing together, or not at all.
    pub fn together(&mut self, class: Class, packets: Sum) {
        if packets.packets > 0 {
            self.add(class, packets, 1, false);
        }
    }

    /// Adds the packets with which inbound connections begin, a few of which may be counted twice.
    pub fn few_twice<'p>(&mut self, class: Class, packets: impl IntoIterator<Item = &'p Packet>) {
        let mut known = Self::default();
        for packet in packets {
            known.add(class, Sum::of([packet]), 1, true);
        }
        for one in known.0 {
            self.add(class, one.each, one.count.div_ceil(RARE), true);
        }
    }

    fn add(&mut self, class: Class, each: Sum, count: u64, twice: bool) {
        let same =
            |one: &&mut Suspects| one.class == class && one.each == each && one.twice == twice;
        match self.0.iter_mut().find(same) {
            Some(known) => known.count += count,
            None => self.0.push(Suspects { class, each, count, twice }),
        }
    }

    /// Names for a whole difference; nothing if a part has none.
    fn explain(&self, difference: Difference) -> Option<Vec<Explanation>> {
        let mut chosen = vec![0; self.0.len()];
        let mut steps = STEPS;
        if !choose(&self.0, difference, &mut chosen, &mut steps) {
            return None;
        }
        let mut explained: Vec<Explanation> = Vec::new();
        for (suspects, count) in self.0.iter().zip(chosen).filter(|(_, count)| *count > 0) {
            let (class, what) = suspects.class;
            let packets = Figures::from(suspects.each).times(count);
            match explained.iter_mut().find(|one| one.class == class) {
                Some(one) => one.packets = one.packets.plus(packets),
                None => explained.push(Explanation { class, what, packets }),
            }
        }
        Some(explained)
    }
}

/// Packets to the proxy that a connection's peer sent after its FIN, when the proxy had sent its own: they
/// may find TIME_WAIT, or no socket. The capture, at the far end, cannot tell: packets cross.
fn after_the_end(trace: &Trace) -> Vec<&Packet> {
    // Whether the proxy, and the peer, have sent their FINs.
    let mut ended: HashMap<(SocketAddr, SocketAddr), (bool, bool)> = HashMap::new();
    let mut late = Vec::new();
    for packet in &trace.packets {
        let Some(tcp) = packet.headers.tcp else { continue };
        let (proxy, peer) = ended.entry((packet.proxy(), packet.peer())).or_default();
        if tcp.has(SYN) {
            (*proxy, *peer) = (false, false);
        }
        match packet.direction {
            traffic_lab::packet::Direction::Ingress => {
                if *peer && *proxy {
                    late.push(packet);
                }
                *peer |= tcp.has(FIN);
            }
            traffic_lab::packet::Direction::Egress => *proxy |= tcp.has(FIN),
        }
    }
    late
}

/// Longer than that no combination is looked for.
const STEPS: u32 = 1_000_000;

/// Finds how many of each make up a difference: packets, bytes and payload at once.
fn choose(all: &[Suspects], rest: Difference, chosen: &mut [u64], steps: &mut u32) -> bool {
    if rest == Difference::default() {
        return true;
    }
    let (Some((first, others)), Some((count, counts))) =
        (all.split_first(), chosen.split_first_mut())
    else {
        return false;
    };
    for tried in 0..=first.count {
        if *steps == 0 {
            return false;
        }
        *steps -= 1;
        *count = tried;
        let left = rest.without(Figures::from(first.each).times(tried), first.twice);
        if choose(others, left, counts, steps) {
            return true;
        }
    }
    *count = 0;
    false
}

/// Makes a row of what was counted, captured, and known not to be seen.
pub fn row(
    cells: &[CellReport],
    leg: Leg,
    direction: Direction,
    captured: Sum,
    known: &Known,
) -> Row {
    let of = |by_socket: bool| -> Vec<Counters> {
        let mine = |cell: &&CellReport| {
            cell.leg == leg
                && cell.direction == direction
                && (cell.origin == Origin::Socket) == by_socket
        };
        cells.iter().filter(mine).map(|cell| cell.counters).collect()
    };
    let hook: Counters = of(true).into_iter().sum();
    let kernel = of(false);
    let kernel = (!kernel.is_empty()).then(|| kernel.into_iter().sum());
    let capture = Figures::from(captured);
    let difference = Difference::of([hook].into_iter().chain(kernel).sum(), capture);
    let explained = known.explain(difference);
    let holds = explained.is_some();
    let explained = explained.unwrap_or_default();
    Row { leg, direction, hook, kernel, capture, difference, explained, holds }
}

impl Case {
    /// Whether every byte is accounted for.
    pub fn holds(&self) -> bool {
        self.rows.iter().all(|row| row.holds) && self.payloads.iter().all(Payload::agrees)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(packets: u64, l3_bytes: u64) -> Sum {
        Sum { packets, l3_bytes, payload_bytes: 0 }
    }

    fn missing(packets: i64, bytes: i64) -> Difference {
        Difference { wire_packets: -packets, wire_bytes: -bytes, payload_bytes: 0 }
    }

    /// 50 SYN-ACKs that are missing together, three resets, two last ACKs, two handshakes counted twice.
    fn known() -> Known {
        let suspects = |class, each, count, twice| Suspects { class, each, count, twice };
        Known(vec![
            suspects(SYN_ACK_IPV6, sum(50, 4000), 1, false),
            suspects(ANSWERED, sum(1, 60), 3, false),
            suspects(TIME_WAIT, sum(1, 72), 2, false),
            suspects(HANDSHAKE_TWICE, sum(1, 75), 2, true),
        ])
    }

    fn classes(difference: Difference) -> Option<Vec<(&'static str, u64)>> {
        let explained = known().explain(difference)?;
        Some(explained.iter().map(|one| (one.class, one.packets.wire_bytes)).collect())
    }

    #[test]
    fn no_difference_needs_no_name_whatever_could_be_missing() {
        assert_eq!(classes(Difference::default()), Some(vec![]));
    }

    #[test]
    fn a_difference_is_made_up_of_packets_of_known_classes() {
        assert_eq!(classes(missing(50, 4000)).unwrap(), [("syn-ack-ipv6", 4000)]);
        assert_eq!(
            classes(missing(53, 4192)).unwrap(),
            [("syn-ack-ipv6", 4000), ("answered-by-kernel", 120), ("time-wait", 72)]
        );
        assert_eq!(classes(missing(-2, -150)).unwrap(), [("handshake-twice", 150)]);
        // One missing, one twice.
        assert_eq!(classes(missing(0, -3)).unwrap(), [("time-wait", 72), ("handshake-twice", 75)]);
    }

    #[test]
    fn a_difference_of_which_a_part_has_no_name_is_not_explained() {
        for other in [
            missing(50, 4001),
            missing(49, 3920),
            missing(4, 240),
            missing(-3, -225),
            missing(3, 216),
            missing(1, 52),
        ] {
            assert_eq!(classes(other), None, "{other:?}");
        }
        let payload = Difference { payload_bytes: -1, ..missing(50, 4000) };
        assert_eq!(classes(payload), None);
        assert_eq!(Known::default().explain(missing(1, 52)), None);
    }

    #[test]
    fn a_row_is_the_sum_of_the_cells_of_its_leg_and_direction() {
        use crate::report::{Protocol, Scope};
        let cell = |leg, direction, origin, wire_bytes| CellReport {
            interface: "eth0".to_owned(),
            scope: Scope::Billed,
            origin,
            direction,
            leg,
            protocol: Protocol::Tcp,
            port: None,
            family: Family::Ipv4,
            counters: Counters { packets: 1, wire_packets: 1, wire_bytes, ..Counters::default() },
        };
        let (client, ingress) = (Leg::Client, Direction::Ingress);
        let mut cells = vec![
            cell(client, ingress, Origin::Socket, 100),
            cell(client, ingress, Origin::Socket, 50),
            cell(client, Direction::Egress, Origin::Socket, 7),
            cell(Leg::Upstream, ingress, Origin::Socket, 9),
        ];
        let one = row(&cells, client, ingress, sum(3, 190), &Known::default());
        assert_eq!((one.hook.wire_bytes, one.kernel), (150, None));
        assert_eq!(one.difference, missing(1, 40));
        assert!(!one.holds);
        // What the kernel answered is counted, too.
        cells.push(cell(client, ingress, Origin::Kernel, 40));
        let one = row(&cells, client, ingress, sum(3, 190), &Known::default());
        assert_eq!(one.kernel.map(|counters| counters.wire_bytes), Some(40));
        assert!(one.holds && one.explained.is_empty());
    }
}
