//! Holds cells against a capture: the difference must be packets that the kernel exchanged without
//! the proxy's socket, found in the capture packet by packet. Pure.

use std::collections::HashMap;
use std::fmt;
use std::ops::Add;

use anyhow::{Result, bail, ensure};
use traffic_lab::answered::{self, AnsweredByKernel, Cause, TimeWaitCandidate};
use traffic_lab::packet::{Direction, Packet};
use traffic_lab::{Filter, Sum, Trace};

/// What the cells of one leg and direction say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    pub packets: u64,
    pub bytes: u64,
    pub wire_packets: u64,
    pub wire_bytes: u64,
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
    pub packets: u64,
    pub bytes: u64,
}

/// Why capture and cells differ; ingress first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    /// What passed no hook.
    pub named: [Named; 2],
    /// The same as the firewall's rules see it, which merged packets make smaller.
    pub rules_minus_hook: [u64; 2],
    resets: usize,
    triggers: usize,
    silent: usize,
    repeated: usize,
    /// Of so many.
    time_wait: (usize, usize),
    /// Of so many.
    orphans: (usize, usize),
    /// Resets by orphans that were counted, but under the wrong leg.
    portless: usize,
}

impl fmt::Display for Account {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::default() {
            return formatter.write_str("nothing");
        }
        let [ingress, egress] = self.named;
        write!(
            formatter,
            "{} resets for {} packets, {} silent, {} repeated, {} of {} TIME_WAIT pairs, {} of \
             {} resets by orphans = {} packets {} B in, {} packets {} B out; {} resets by orphans \
             counted as upstream",
            self.resets,
            self.triggers,
            self.silent,
            self.repeated,
            self.time_wait.0,
            self.time_wait.1,
            self.orphans.0,
            self.orphans.1,
            ingress.packets,
            ingress.bytes,
            egress.packets,
            egress.bytes,
            self.portless
        )
    }
}

/// Packets, bytes and payload of both directions, ingress first.
type Figures = [i64; 6];

/// Names every packet of the capture that is not in the cells, or says what remains.
///
/// `counted` are the cells of the leg, ingress first; `portless` is what the link's egress has in
/// upstream cells although it is the client's link: a socket that has just been destroyed has lost
/// its port when it sends its reset, so its leg is not known any more.
pub fn balance(trace: &Trace, counted: [Counted; 2], portless: Counted) -> Result<Account> {
    let captured = [Direction::Ingress, Direction::Egress]
        .map(|direction| trace.sum(Filter::all().direction(direction)));
    let found = answered::classify(trace);
    let certain = figures([found.ingress(), found.egress()]);
    let [ingress, egress] = counted.map(on_the_wire);
    let difference = minus(figures(captured), figures([ingress, egress + on_the_wire(portless)]));
    let rest = minus(difference, certain);
    let parts = compose(rest, uncertain(&found));
    let orphans = uncertain(&found).filter(|uncertain| !uncertain.time_wait);
    let misplaced = compose(figures([Sum::default(), on_the_wire(portless)]), orphans);
    let resets = || found.resets.iter().filter(|reset| reset.cause != Cause::Orphan);
    let of = found.resets.len() - resets().count();
    let (Some((time_wait, orphans)), Some((_, misplaced))) = (parts, misplaced) else {
        bail!(
            "captured {captured:?}\ncounted  {counted:?}, {portless:?} without a port\ndifference \
             {difference:?} [packets, bytes, payload in; the same out]\nof which {certain:?} were \
             answered by the kernel; {rest:?} are not made of TIME_WAIT pairs and orphans' resets, or \
             what had no port is not made of the latter\n{found:#?}"
        );
    };
    ensure!(
        orphans + misplaced <= of,
        "{orphans} missing and {misplaced} misplaced of {of} resets"
    );
    let named =
        |at: usize| Named { packets: difference[at] as u64, bytes: difference[at + 1] as u64 };
    Ok(Account {
        named: [named(0), named(3)],
        rules_minus_hook: [
            (difference[1] - merged_away(&found)) as u64,
            difference[4] as u64 + portless.bytes,
        ],
        resets: resets().count(),
        triggers: resets().map(|reset| reset.triggers.len()).sum(),
        silent: found.silent.len(),
        repeated: found.repeated.len(),
        time_wait: (time_wait, found.time_wait.len()),
        orphans: (orphans, of),
        portless: misplaced,
    })
}

fn on_the_wire(counted: Counted) -> Sum {
    Sum {
        packets: counted.wire_packets,
        l3_bytes: counted.wire_bytes,
        payload_bytes: counted.payload_bytes,
    }
}

/// Bytes of headers that GRO removed before the rules saw the triggers that it merged.
fn merged_away(found: &AnsweredByKernel) -> i64 {
    let header = |packet: &Packet| packet.headers.l3_bytes - packet.headers.payload_bytes;
    found
        .resets
        .iter()
        .filter(|reset| reset.cause != Cause::Orphan)
        .flat_map(|reset| reset.triggers.iter().skip(1))
        .map(|packet| i64::from(header(packet)))
        .sum()
}

/// Packets of which the capture cannot tell whether they passed a hook.
struct Uncertain {
    time_wait: bool,
    figures: Figures,
}

/// TIME_WAIT pairs, because such a socket answers each FIN that it gets; and the resets of orphans,
/// which alone may be missing, because a full socket got their triggers.
fn uncertain(found: &AnsweredByKernel) -> impl Iterator<Item = Uncertain> {
    let pairs = found.time_wait.iter().map(|TimeWaitCandidate { fin, ack }| Uncertain {
        time_wait: true,
        figures: figures([Sum::of([fin]), Sum::of(ack)]),
    });
    let orphans = found.resets.iter().filter(|reset| reset.cause == Cause::Orphan);
    pairs.chain(orphans.map(|reset| Uncertain {
        time_wait: false,
        figures: figures([Sum::default(), Sum::of([&reset.reset])]),
    }))
}

/// Finds whole ones that sum up to `rest`; returns how many are TIME_WAIT pairs and orphans' resets.
fn compose(rest: Figures, candidates: impl Iterator<Item = Uncertain>) -> Option<(usize, usize)> {
    let mut sums = HashMap::from([([0; 6], (0, 0))]);
    for Uncertain { time_wait, figures } in candidates {
        for (sum, (pairs, orphans)) in sums.clone() {
            let sum = std::array::from_fn(|at| sum[at] + figures[at]);
            if sum.iter().zip(&rest).all(|(sum, rest)| sum <= rest) {
                let parts = if time_wait { (pairs + 1, orphans) } else { (pairs, orphans + 1) };
                sums.entry(sum).or_insert(parts);
            }
        }
    }
    sums.get(&rest).copied()
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

    fn books(trace: &Trace, counted: [Counted; 2]) -> Result<Account> {
        balance(trace, counted, Counted::default())
    }

    #[test]
    fn time_wait_pair_may_be_counted_or_not_but_only_whole() {
        let trace = closed_by_the_proxy();
        let all = books(&trace, [counted(4), counted(3)]).unwrap();
        assert_eq!((all.named, all.time_wait), ([Named::default(); 2], (0, 1)));
        let without = books(&trace, [counted(3), counted(2)]).unwrap();
        assert_eq!(without.named, [Named { packets: 1, bytes: 52 }; 2]);
        assert_eq!((without.rules_minus_hook, without.time_wait), ([52, 52], (1, 1)));
        for wrong in [[3, 3], [4, 2], [2, 1], [5, 3]] {
            assert!(books(&trace, wrong.map(counted)).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn reset_of_an_orphan_may_be_counted_as_upstream() {
        use Direction::{Egress, Ingress};
        let mut late = packet(Ingress, ACK, 1001, 5001);
        (late.headers.l3_bytes, late.headers.payload_bytes) = (60, 8);
        let mut trace = closed_by_the_proxy();
        trace.packets.truncate(4);
        trace.packets.extend([late, packet(Egress, RST, 5001, 0)]);
        let ingress = Counted { payload_bytes: 8, wire_bytes: 3 * 52 + 8, ..counted(3) };
        let one = balance(&trace, [ingress, counted(2)], counted(1)).unwrap();
        assert_eq!((one.portless, one.orphans), (1, (0, 1)));
        assert_eq!((one.named, one.rules_minus_hook), ([Named::default(); 2], [0, 52]));
        let none = balance(&trace, [ingress, counted(2)], Counted::default()).unwrap();
        assert_eq!((none.portless, none.orphans), (0, (1, 1)));
        assert!(balance(&trace, [ingress, counted(1)], counted(2)).is_err());
    }

    #[test]
    fn a_byte_too_few_is_not_explained() {
        let mut one_less = counted(4);
        one_less.wire_bytes -= 1;
        assert!(books(&closed_by_the_proxy(), [one_less, counted(3)]).is_err());
    }
}
