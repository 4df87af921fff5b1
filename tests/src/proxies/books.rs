//! Holds cells against a capture: the difference must be packets that the kernel exchanged without
//! the proxy's socket, found in the capture packet by packet. Pure.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Add;

use anyhow::{Result, bail};
use traffic_lab::answered::{self, AnsweredByKernel, Cause, TimeWaitCandidate};
use traffic_lab::packet::{ACK, Direction, Packet, RST};
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
    /// Resets for packets to no socket, and those packets.
    resets: usize,
    triggers: usize,
    /// Repeated by a TIME_WAIT socket.
    repeated: usize,
    /// Of the packets that may be missing, those that are.
    missing: (Tally, Tally),
    /// Of the packets that may have no port, those that have none.
    portless: (Tally, Tally),
}

impl fmt::Display for Account {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::default() {
            return formatter.write_str("nothing");
        }
        let [ingress, egress] = self.named;
        write!(
            formatter,
            "{} + {} B missing ({} resets for {} packets, {} repeated, {:?} of {:?}), {:?} of {:?} \
             without a port",
            ingress.bytes,
            egress.bytes,
            self.resets,
            self.triggers,
            self.repeated,
            self.missing.0,
            self.missing.1,
            self.portless.0,
            self.portless.1
        )
    }
}

/// Packets, bytes and payload of both directions, ingress first.
type Figures = [i64; 6];

/// Names every packet of the capture that is not in the cells, or says what remains.
///
/// `counted` are the cells of the leg, ingress first; `portless` is what the link's egress has in
/// upstream cells although it is the client's link: a socket that is closed has lost its port by the
/// time when its reset is sent, so the hook does not know the leg.
pub fn balance(trace: &Trace, counted: [Counted; 2], portless: Counted) -> Result<Account> {
    let captured = [Direction::Ingress, Direction::Egress]
        .map(|direction| trace.sum(Filter::all().direction(direction)));
    let found = answered::classify(trace);
    let [ingress, egress] = counted.map(on_the_wire);
    let portless_figures = figures([Sum::default(), on_the_wire(portless)]);
    let cells = plus(figures([ingress, egress]), portless_figures);
    let difference = minus(figures(captured), cells);
    let resets = || found.resets.iter().filter(|reset| reset.cause != Cause::Orphan);
    let certain = figures([
        Sum::of(resets().flat_map(|reset| &reset.triggers)),
        Sum::of(resets().map(|reset| &reset.reset).chain(&found.repeated)),
    ]);
    let rest = minus(difference, certain);
    let (may_be_missing, may_be_portless) = (maybe_missing(&found), maybe_portless(trace, &found));
    let composed = (compose(rest, &may_be_missing), compose(portless_figures, &may_be_portless));
    let (missing, portless_parts) = match composed {
        (Some(missing), Some(portless)) => (missing, portless),
        (missing, parts) => bail!(
            "captured {captured:?}\ncounted  {counted:?}, and without a port {portless:?}\n\
             difference {difference:?} [packets, bytes, payload in; the same out]\n\
             of which {certain:?} were answered by the kernel\n\
             and {rest:?} are {missing:?} of {:?}\n\
             what has no port is {parts:?} of {:?}\n{}",
            tally(&may_be_missing),
            tally(&may_be_portless),
            list(&found)
        ),
    };
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
        repeated: found.repeated.len(),
        missing: (missing, tally(&may_be_missing)),
        portless: (portless_parts, tally(&may_be_portless)),
    })
}

fn tally(candidates: &[Uncertain]) -> Tally {
    candidates.iter().fold(Tally::new(), |mut tally, (kind, _)| {
        *tally.entry(*kind).or_default() += 1;
        tally
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
    lines.extend(found.repeated.iter().map(|packet| line("repeated", packet)));
    lines
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

/// What a packet is of which the capture cannot tell whether, or where, it was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Kind {
    /// A FIN to a TIME_WAIT socket and its answer: together, because each such FIN is answered.
    TimeWaitPair,
    /// To a connection that is over. It was counted if the socket was still being closed.
    Silent,
    /// The reset by which an orphan answers data. IPv4: the hook sees it, without a port; IPv6: it
    /// does not, since the kernel names no owner.
    OrphanReset,
    /// The reset by which a socket was closed. The hook sees it, without a port.
    OwnReset,
}

/// One such packet or pair, and what it is in the books.
type Uncertain = (Kind, Figures);

/// What may be missing from the cells.
fn maybe_missing(found: &AnsweredByKernel) -> Vec<Uncertain> {
    let pairs = found.time_wait.iter().map(|TimeWaitCandidate { fin, ack }| {
        (Kind::TimeWaitPair, figures([Sum::of([fin]), Sum::of(ack)]))
    });
    let silent = found
        .silent
        .iter()
        .map(|packet| (Kind::Silent, figures([Sum::of([packet]), Sum::default()])));
    pairs.chain(silent).chain(orphan_resets(found)).collect()
}

/// What may be counted without a port.
fn maybe_portless(trace: &Trace, found: &AnsweredByKernel) -> Vec<Uncertain> {
    let own = trace.select(Filter::all().egress()).filter(|packet| {
        packet.headers.tcp.is_some_and(|tcp| tcp.has(RST | ACK))
            && !found.resets.iter().any(|reset| reset.reset == **packet)
    });
    let own = own.map(|reset| (Kind::OwnReset, figures([Sum::default(), Sum::of([reset])])));
    own.chain(orphan_resets(found)).collect()
}

fn orphan_resets(found: &AnsweredByKernel) -> impl Iterator<Item = Uncertain> {
    found
        .resets
        .iter()
        .filter(|reset| reset.cause == Cause::Orphan)
        .map(|reset| (Kind::OrphanReset, figures([Sum::default(), Sum::of([&reset.reset])])))
}

/// How many of each kind.
type Tally = BTreeMap<Kind, usize>;

/// Finds whole ones that sum up to `target`.
fn compose(target: Figures, candidates: &[Uncertain]) -> Option<Tally> {
    let mut sums = HashMap::from([([0; 6], Tally::new())]);
    for (kind, figures) in candidates {
        for (sum, tally) in sums.clone() {
            let sum = std::array::from_fn(|at| sum[at] + figures[at]);
            if sum.iter().zip(&target).all(|(sum, target)| sum <= target) {
                sums.entry(sum).or_insert_with(|| {
                    let mut tally = tally;
                    *tally.entry(*kind).or_default() += 1;
                    tally
                });
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

fn plus(a: Figures, b: Figures) -> Figures {
    std::array::from_fn(|at| a[at] + b[at])
}

fn minus(a: Figures, b: Figures) -> Figures {
    std::array::from_fn(|at| a[at] - b[at])
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use traffic_lab::packet::{FIN, Headers, SYN, TCP, Tcp};

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
        assert_eq!((all.named, all.missing.0), ([Named::default(); 2], Tally::new()));
        let without = books(&trace, [counted(3), counted(2)]).unwrap();
        assert_eq!(without.named, [Named { packets: 1, bytes: 52 }; 2]);
        let pair = Tally::from([(Kind::TimeWaitPair, 1)]);
        assert_eq!((without.rules_minus_hook, without.missing.0), ([52, 52], pair));
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
        let reset = Tally::from([(Kind::OrphanReset, 1)]);
        assert_eq!((&one.portless.0, &one.missing.0), (&reset, &Tally::new()));
        assert_eq!((one.named, one.rules_minus_hook), ([Named::default(); 2], [0, 52]));
        let none = balance(&trace, [ingress, counted(2)], Counted::default()).unwrap();
        assert_eq!((&none.portless.0, &none.missing.0), (&Tally::new(), &reset));
        assert!(balance(&trace, [ingress, counted(1)], counted(2)).is_err());
    }

    #[test]
    fn a_byte_too_few_is_not_explained() {
        let mut one_less = counted(4);
        one_less.wire_bytes -= 1;
        assert!(books(&closed_by_the_proxy(), [one_less, counted(3)]).is_err());
    }
}
