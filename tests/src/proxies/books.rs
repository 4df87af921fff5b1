//! Holds cells against a capture: the difference must be packets that the kernel exchanged without
//! the proxy's socket, found in the capture packet by packet. Pure.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Add;

use anyhow::{Result, bail, ensure};
use traffic_lab::answered::{self, AnsweredByKernel, Cause, KernelReset, TimeWaitCandidate};
use traffic_lab::packet::{Direction, Packet};
use traffic_lab::{Filter, Sum, Trace};

use crate::unseen::TRACED;

/// What the cells of one leg and direction say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// As the hook saw them.
    pub packets: u64,
    /// Their L3 length.
    pub bytes: u64,
    /// As on the wire.
    pub wire_packets: u64,
    /// Their L3 length.
    pub wire_bytes: u64,
    /// Behind the transport header.
    pub payload_bytes: u64,
}

impl Add for Counted {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            packets: self.packets + other.packets,
            bytes: self.bytes + other.bytes,
            wire_packets: self.wire_packets + other.wire_packets,
            wire_bytes: self.wire_bytes + other.wire_bytes,
            payload_bytes: self.payload_bytes + other.payload_bytes,
        }
    }
}

/// Packets of a direction that passed no hook.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Named {
    /// How many.
    pub packets: u64,
    /// Their L3 length.
    pub bytes: u64,
}

/// Why capture and cells differ; ingress first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    /// What passed no hook.
    pub named: [Named; 2],
    /// Headers that GRO may have removed before the rules saw the packets that are missing.
    pub merged_at_most: u64,
    /// SYNs to closed ports, ingress; their resets and what TIME_WAIT sockets repeated, egress.
    certain: [i64; 2],
    /// What became of the others.
    fates: Tally,
}

impl Account {
    /// The kernel's cells hold exactly what passed no hook, or nothing where nothing is traced.
    pub fn check_answered(&self, cells: [Counted; 2]) -> Result<()> {
        let answered =
            cells.map(|cell| Named { packets: cell.wire_packets, bytes: cell.wire_bytes });
        let expected = if TRACED { self.named } else { Default::default() };
        ensure!(answered == expected, "they hold {answered:?} instead of {expected:?}: {self}");
        Ok(())
    }
}

impl fmt::Display for Account {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::default() {
            return formatter.write_str("nothing");
        }
        let [ingress, egress] = self.named;
        let Self { fates, certain, .. } = self;
        write!(formatter, "{} + {} B missing, {fates:?}", ingress.bytes, egress.bytes)?;
        if *certain != [0; 2] {
            write!(formatter, ", {certain:?} packets to closed ports or repeated in TIME_WAIT")?;
        }
        Ok(())
    }
}

/// Packets, bytes and payload of both directions, ingress first.
type Figures = [i64; 6];

/// Names every packet of the capture that is not in the cells, or says what remains.
///
/// `counted` are the cells of the leg, ingress first.
pub fn balance(trace: &Trace, counted: [Counted; 2]) -> Result<Account> {
    let captured = [Direction::Ingress, Direction::Egress]
        .map(|direction| trace.sum(Filter::all().direction(direction)));
    let found = answered::classify(trace);
    let difference = minus(figures(captured), figures(counted.map(on_the_wire)));
    let closed = || found.resets.iter().filter(|reset| reset.cause == Cause::ClosedPort);
    let certain = figures([
        Sum::of(closed().flat_map(|reset| &reset.triggers)),
        Sum::of(closed().map(|reset| &reset.reset).chain(&found.repeated)),
    ]);
    let rest = minus(difference, certain);
    let Some(fates) = compose(rest, &maybe_missing(&found)) else {
        bail!(
            "captured {captured:?}\ncounted  {counted:?}\n\
             difference {difference:?} [packets, bytes, payload in; the same out]\n\
             of which {certain:?} were answered by the kernel\n\
             and {rest:?} are not made of whole packets of these:\n{}",
            list(&found)
        );
    };
    let named =
        |at: usize| Named { packets: difference[at] as u64, bytes: difference[at + 1] as u64 };
    Ok(Account {
        named: [named(0), named(3)],
        merged_at_most: merged_at_most(&found),
        certain: [certain[0], certain[3]],
        fates,
    })
}

/// The classified packets, a line each, for an error's message.
fn list(found: &AnsweredByKernel) -> String {
    let line = |class: &str, packet: &Packet| {
        let tcp = packet.headers.tcp.map(|tcp| (tcp.flags, tcp.sequence, tcp.acknowledged));
        format!(
            "{class}: {:?} {} {} B, flags, sequence, acknowledged {tcp:x?}, at {}\n",
            packet.direction,
            packet.peer(),
            packet.headers.l3_bytes,
            packet.at_ns
        )
    };
    let mut lines = String::new();
    for reset in &found.resets {
        for trigger in &reset.triggers {
            lines += &line(&format!("trigger, {:?}", reset.cause), trigger);
        }
        lines += &line(&format!("reset, {:?}", reset.cause), &reset.reset);
    }
    for candidate in &found.time_wait {
        lines += &line("TIME_WAIT fin", &candidate.fin);
        lines.extend(candidate.ack.iter().map(|ack| line("TIME_WAIT ack", ack)));
    }
    lines.extend(found.silent.iter().map(|packet| line("silent", packet)));
    lines.extend(found.perhaps_silent.iter().map(|packet| line("perhaps silent", packet)));
    lines.extend(found.repeated.iter().map(|packet| line("repeated", packet)));
    lines
}

/// Late segments that GRO merged are one packet to the rules, with the headers of the first.
fn merged_at_most(found: &AnsweredByKernel) -> u64 {
    let headers = |packet: &Packet| packet.headers.l3_bytes - packet.headers.payload_bytes;
    let merged = found.resets.iter().flat_map(|reset| reset.triggers.iter().skip(1));
    merged.map(|packet| u64::from(headers(packet))).sum()
}

fn on_the_wire(counted: Counted) -> Sum {
    Sum {
        packets: counted.wire_packets,
        l3_bytes: counted.wire_bytes,
        payload_bytes: counted.payload_bytes,
    }
}

/// What became of a packet of which the capture alone cannot tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Fate {
    /// Packets to no socket, or to a TIME_WAIT one, and the reset that answers them: both missing.
    ResetWithoutSocket,
    /// A reset by a socket that was just closed, and got what it answers: only the reset is missing.
    /// So on IPv6, where the kernel names no owner.
    ResetOfOrphan,
    /// A FIN to a TIME_WAIT socket and its answer: both missing. If the socket was only half closed,
    /// neither is.
    TimeWaitPair,
    /// To a connection that is over or in TIME_WAIT, dropped: missing, unless the socket was still
    /// being closed.
    Silent,
}

/// A fate, and what it is in the books.
type Possible = (Fate, Figures);

/// What may be missing from the cells: of each at most one.
fn maybe_missing(found: &AnsweredByKernel) -> Vec<Vec<Possible>> {
    let resets = uncertain_resets(found).map(|reset| {
        let egress = Sum::of([&reset.reset]);
        vec![
            (Fate::ResetWithoutSocket, figures([Sum::of(&reset.triggers), egress])),
            (Fate::ResetOfOrphan, figures([Sum::default(), egress])),
        ]
    });
    let pairs = found.time_wait.iter().map(|TimeWaitCandidate { fin, ack }| {
        vec![(Fate::TimeWaitPair, figures([Sum::of([fin]), Sum::of(ack)]))]
    });
    let silent = found.silent.iter().chain(&found.perhaps_silent);
    let silent =
        silent.map(|packet| vec![(Fate::Silent, figures([Sum::of([packet]), Sum::default()]))]);
    resets.chain(pairs).chain(silent).collect()
}

/// Those of connections that the proxy had: its socket may have been there still, with the packet
/// waiting in its backlog while it was closed.
fn uncertain_resets(found: &AnsweredByKernel) -> impl Iterator<Item = &KernelReset> {
    found.resets.iter().filter(|reset| reset.cause != Cause::ClosedPort)
}

/// How many of each fate.
type Tally = BTreeMap<Fate, usize>;

/// Finds whole ones that sum up to `target`.
fn compose(target: Figures, candidates: &[Vec<Possible>]) -> Option<Tally> {
    let mut sums = HashMap::from([([0; 6], Tally::new())]);
    for candidate in candidates {
        for (before, tally) in sums.clone() {
            for (fate, figures) in candidate {
                let sum = std::array::from_fn(|at| before[at] + figures[at]);
                if sum.iter().zip(&target).all(|(sum, target)| sum <= target) {
                    sums.entry(sum).or_insert_with(|| {
                        let mut tally = tally.clone();
                        *tally.entry(*fate).or_default() += 1;
                        tally
                    });
                }
            }
        }
    }
    sums.remove(&target)
}

fn figures([ingress, egress]: [Sum; 2]) -> Figures {
    let of = |sum: Sum| [sum.packets, sum.l3_bytes, sum.payload_bytes].map(|figure| figure as i64);
    let ([a, b, c], [d, e, f]) = (of(ingress), of(egress));
    [a, b, c, d, e, f]
}

fn minus(a: Figures, b: Figures) -> Figures {
    std::array::from_fn(|at| a[at] - b[at])
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use traffic_lab::packet::{ACK, FIN, Headers, RST, SYN, TCP, Tcp};

    use super::*;

    /// A packet over IPv4 with timestamps: 52 bytes and the payload.
    fn packet(direction: Direction, flags: u8, sequence: u32, acknowledged: u32) -> Packet {
        let mut ends =
            [(IpAddr::from([10, 77, 1, 1]), 4000), (IpAddr::from([10, 77, 1, 2]), 11710)];
        if direction == Direction::Egress {
            ends.reverse();
        }
        let headers = Headers {
            source: ends[0].0,
            source_port: ends[0].1,
            destination: ends[1].0,
            destination_port: ends[1].1,
            protocol: TCP,
            icmp_type: None,
            fragment: false,
            l3_bytes: 52,
            payload_bytes: 0,
            tcp: Some(Tcp { flags, sequence, acknowledged }),
        };
        Packet { at_ns: 0, direction, headers }
    }

    /// Four packets in, three out: the proxy closes first, the peer's FIN comes after its ACK.
    fn closed_by_the_proxy() -> Trace {
        use Direction::{Egress, Ingress};
        let packets = vec![
            packet(Ingress, SYN, 1000, 0),
            packet(Egress, SYN | ACK, 5000, 1001),
            packet(Ingress, ACK, 1001, 5001),
            packet(Egress, ACK | FIN, 5001, 1001),
            packet(Ingress, ACK, 1001, 5002),
            packet(Ingress, ACK | FIN, 1001, 5002),
            packet(Egress, ACK, 5002, 1002),
        ];
        Trace { packets, ..Trace::default() }
    }

    fn counted(packets: u64) -> Counted {
        let wire_bytes = 52 * packets;
        Counted { packets, bytes: wire_bytes, wire_packets: packets, wire_bytes, payload_bytes: 0 }
    }

    #[test]
    fn time_wait_pair_may_be_counted_or_not_but_only_whole() {
        let trace = closed_by_the_proxy();
        let all = balance(&trace, [counted(4), counted(3)]).unwrap();
        assert_eq!(all, Account::default());
        let without = balance(&trace, [counted(3), counted(2)]).unwrap();
        assert_eq!(without.named, [Named { packets: 1, bytes: 52 }; 2]);
        let pair = Tally::from([(Fate::TimeWaitPair, 1)]);
        assert_eq!(without.fates, pair);
        for wrong in [[3, 3], [4, 2], [2, 1], [5, 3]] {
            assert!(balance(&trace, wrong.map(counted)).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn late_data_may_be_missing_only_with_the_reset_that_answers_it() {
        use Direction::{Egress, Ingress};
        let mut late = packet(Ingress, ACK, 1001, 5001);
        (late.headers.l3_bytes, late.headers.payload_bytes) = (60, 8);
        let mut trace = closed_by_the_proxy();
        trace.packets.truncate(4);
        trace.packets.extend([late, packet(Egress, RST, 5001, 0)]);
        let with_late = Counted { payload_bytes: 8, wire_bytes: 2 * 52 + 60, ..counted(3) };
        let fates = |counted| balance(&trace, counted).map(|account| account.fates).ok();
        assert_eq!(fates([with_late, counted(3)]), Some(Tally::new()));
        let orphan = Tally::from([(Fate::ResetOfOrphan, 1)]);
        assert_eq!(fates([with_late, counted(2)]), Some(orphan));
        let no_socket = Tally::from([(Fate::ResetWithoutSocket, 1)]);
        assert_eq!(fates([counted(2), counted(2)]), Some(no_socket));
        assert_eq!(fates([counted(2), counted(3)]), None);
    }

    #[test]
    fn a_byte_too_few_is_not_explained() {
        let mut one_less = counted(4);
        one_less.wire_bytes -= 1;
        assert!(balance(&closed_by_the_proxy(), [one_less, counted(3)]).is_err());
    }
}
