//! The self-test's books: what the hook counted held against what the far ends captured, row by row,
//! and names for differences that are known. Pure.
//!
//! The types are the JSON format of `selftest`, as those of [`crate::report`] are of reports.

use serde::Serialize;
use traffic_lab::answered::AnsweredByKernel;
use traffic_lab::trace::Sum;

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
    /// Whether every byte was counted, or is of a class that is known not to be.
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
    pub super_packets: bool,
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
    /// What was counted of packets that the kernel answered without a socket; only where the agent
    /// counts them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Counters>,
    /// What the far end captured.
    pub capture: Figures,
    /// Counted less captured.
    pub difference: Difference,
    /// Packets that are known to pass no hook, and make up the difference.
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

    fn without(self, explained: Figures) -> Self {
        Self {
            wire_packets: self.wire_packets + explained.wire_packets as i64,
            wire_bytes: self.wire_bytes + explained.wire_bytes as i64,
            payload_bytes: self.payload_bytes + explained.payload_bytes as i64,
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

/// SYN-ACKs of inbound IPv6 connections on a kernel whose hook does not see them.
pub const SYN_ACK_IPV6: (&str, &str) =
    ("syn-ack-ipv6", "SYN-ACKs of inbound IPv6 connections, which this kernel's hook does not see");
/// What reached connections that were over, and the kernel's answers.
pub const ANSWERED: (&str, &str) =
    ("answered-by-kernel", "packets of connections that were over, answered without a socket");
/// The end of a connection that the proxy closed first.
pub const TIME_WAIT: (&str, &str) =
    ("time-wait", "last FIN or ACK of connections that the proxy closed first (TIME_WAIT)");

/// Packets of a row's capture that the hook may not have seen.
#[derive(Clone, Debug, Default)]
pub struct Unseen {
    /// Certainly none of them, by class.
    pub certain: Vec<((&'static str, &'static str), Sum)>,
    /// Perhaps some of these, which are of one size.
    pub perhaps: Sum,
}

impl Unseen {
    /// Those of one direction, from what was found in the capture of a link.
    pub fn of(answered: &AnsweredByKernel, direction: Direction, syn_acks: Sum) -> Self {
        let (by_kernel, perhaps) = match direction {
            Direction::Ingress => (answered.ingress(), answered.candidates_ingress()),
            Direction::Egress => (answered.egress(), answered.candidates_egress()),
        };
        Self { certain: vec![(SYN_ACK_IPV6, syn_acks), (ANSWERED, by_kernel)], perhaps }
    }

    /// Names for a whole difference; nothing if a part has none.
    fn explain(&self, difference: Difference) -> Option<Vec<Explanation>> {
        if difference == Difference::default() {
            return Some(Vec::new());
        }
        let explanation =
            |(class, what), sum: Sum| Explanation { class, what, packets: sum.into() };
        // Any of the classes may be counted by now, so each with and without.
        let choices = 1u32 << self.certain.len();
        (0..choices).find_map(|choice| {
            let mut explained: Vec<Explanation> = self
                .certain
                .iter()
                .enumerate()
                .filter(|(index, (_, sum))| choice >> index & 1 == 1 && sum.packets > 0)
                .map(|(_, (class, sum))| explanation(*class, *sum))
                .collect();
            let rest = explained.iter().fold(difference, |rest, one| rest.without(one.packets));
            if rest != Difference::default() {
                explained.push(explanation(TIME_WAIT, self.of_one_size(rest)?));
            }
            Some(explained)
        })
    }

    /// Some of the packets that the hook perhaps did not see, if they make up what is missing.
    fn of_one_size(&self, rest: Difference) -> Option<Sum> {
        let packets = u64::try_from(-rest.wire_packets).ok()?;
        let each = self.perhaps.l3_bytes.checked_div(self.perhaps.packets)?;
        let sum = Sum { packets, l3_bytes: packets * each, payload_bytes: 0 };
        let possible = packets <= self.perhaps.packets && self.perhaps.payload_bytes == 0;
        (possible && rest.without(sum.into()) == Difference::default()).then_some(sum)
    }
}

/// Makes a row of what was counted, captured, and known not to be seen.
pub fn row(
    cells: &[CellReport],
    leg: Leg,
    direction: Direction,
    captured: Sum,
    unseen: &Unseen,
) -> Row {
    let of = |origin| -> Vec<Counters> {
        let mine = |cell: &&CellReport| {
            cell.leg == leg && cell.direction == direction && cell.origin == origin
        };
        cells.iter().filter(mine).map(|cell| cell.counters).collect()
    };
    let hook: Counters = of(Origin::Socket).into_iter().sum();
    let kernel = of(Origin::Kernel);
    let kernel = (!kernel.is_empty()).then(|| kernel.into_iter().sum());
    let capture = Figures::from(captured);
    let difference = Difference::of([hook].into_iter().chain(kernel).sum(), capture);
    let explained = unseen.explain(difference);
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

    fn classes(unseen: &Unseen, difference: Difference) -> Option<Vec<(&'static str, u64)>> {
        let explained = unseen.explain(difference)?;
        Some(explained.iter().map(|one| (one.class, one.packets.wire_bytes)).collect())
    }

    #[test]
    fn no_difference_needs_no_name_whatever_could_be_missing() {
        let unseen = Unseen { certain: vec![(SYN_ACK_IPV6, sum(50, 4000))], perhaps: sum(3, 216) };
        assert_eq!(classes(&unseen, Difference::default()), Some(vec![]));
    }

    #[test]
    fn fifty_ipv6_syn_acks_and_two_of_three_last_acks_are_named() {
        let unseen = Unseen {
            certain: vec![(SYN_ACK_IPV6, sum(50, 4000)), (ANSWERED, sum(0, 0))],
            perhaps: sum(3, 216),
        };
        let found = classes(&unseen, missing(52, 4144)).unwrap();
        assert_eq!(found, [("syn-ack-ipv6", 4000), ("time-wait", 144)]);
        assert_eq!(classes(&unseen, missing(50, 4000)).unwrap(), [("syn-ack-ipv6", 4000)]);
    }

    #[test]
    fn a_difference_of_which_a_part_has_no_name_is_not_explained() {
        let unseen = Unseen { certain: vec![(SYN_ACK_IPV6, sum(50, 4000))], perhaps: sum(3, 216) };
        for other in [missing(50, 4001), missing(54, 4288), missing(-1, -72), missing(49, 3920)] {
            assert_eq!(classes(&unseen, other), None, "{other:?}");
        }
        let payload = Difference { payload_bytes: -1, ..missing(50, 4000) };
        assert_eq!(classes(&unseen, payload), None);
        assert_eq!(classes(&Unseen::default(), missing(1, 52)), None);
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
        let one = row(&cells, client, ingress, sum(3, 190), &Unseen::default());
        assert_eq!((one.hook.wire_bytes, one.kernel), (150, None));
        assert_eq!(one.difference, missing(1, 40));
        assert!(!one.holds);
        // What the kernel answered is counted, too.
        cells.push(cell(client, ingress, Origin::Kernel, 40));
        let one = row(&cells, client, ingress, sum(3, 190), &Unseen::default());
        assert_eq!(one.kernel.map(|counters| counters.wire_bytes), Some(40));
        assert!(one.holds && one.explained.is_empty());
    }
}
