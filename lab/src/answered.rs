//! Packets that the kernel exchanged for the proxy without the proxy's socket, found in a capture
//! packet by packet. No cgroup hook sees them, so a test that holds counters against a capture takes
//! them from here.
//!
//! A full socket answers late data with `RST` and `ACK`, a missing one (closed, or TIME_WAIT) with a
//! bare `RST` whose number is the trigger's acknowledgement (`tcp_v4_send_reset()`, net/ipv4/tcp_ipv4.c).
//! Pure.

use std::collections::HashMap;
use std::net::SocketAddr;

use crate::packet::{ACK, Direction, FIN, Packet, RST, SYN, sequence_distance};
use crate::trace::{Sum, Trace};

/// Why the proxy's kernel sent a reset by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A SYN came to a port on which nobody listens.
    ClosedPort,
    /// The proxy had sent its FIN, the peer had acknowledged it: the socket is a TIME_WAIT one.
    TimeWait,
    /// The proxy had opened the connection and already reset it: there is no socket.
    AfterReset,
    /// The peer had opened the connection and the proxy reset it: the listener takes what comes, if it
    /// is still there. The hook sees that, and on IPv4, since 6.13, the reset, too.
    Listener,
    /// The proxy had sent its FIN, but not yet got it acknowledged: an orphan, still a full socket.
    /// The hook sees the trigger, and since 6.13 the reset, too.
    Orphan,
    /// None of these: the connection's beginning is not in the capture, or its socket was destroyed.
    Unknown,
}

/// A reset and the packets that caused it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelReset {
    /// Why there was no socket to answer.
    pub cause: Cause,
    /// What was answered, ingress: one packet, or several that GRO had merged. Empty if not found.
    pub triggers: Vec<Packet>,
    /// The answer, egress.
    pub reset: Packet,
}

/// A FIN of the peer that came when the proxy's own FIN was already acknowledged.
///
/// If the proxy had `close()`d, the socket was a TIME_WAIT one by then and neither packet passed a
/// hook. If it had only shut down its sending side, both did: the capture cannot tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimeWaitCandidate {
    /// The peer's FIN, ingress.
    pub fin: Packet,
    /// The proxy's answer to it, egress.
    pub ack: Option<Packet>,
}

/// The classes; each packet of the trace is in at most one of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AnsweredByKernel {
    /// Resets without a socket, with their triggers.
    pub resets: Vec<KernelReset>,
    /// Possible TIME_WAIT pairs.
    pub time_wait: Vec<TimeWaitCandidate>,
    /// What reached a connection that was over, and was dropped without an answer; ingress.
    pub silent: Vec<Packet>,
    /// Acknowledgements and resets that came behind that of the proxy's FIN and before the peer's;
    /// ingress. As with [`TimeWaitCandidate`], a TIME_WAIT socket dropped them if the proxy had
    /// `close()`d, and a full one took them if it had shut down one side. And resets that came to
    /// a listener, if it was still there.
    pub perhaps_silent: Vec<Packet>,
    /// What a TIME_WAIT socket repeated for a connection that was over; egress.
    pub repeated: Vec<Packet>,
}

impl AnsweredByKernel {
    /// All packets to the proxy that certainly passed no hook: the triggers of all causes but
    /// [`Cause::Orphan`] and [`Cause::Listener`], and the silent ones.
    pub fn ingress(&self) -> Sum {
        Sum::of(self.without_socket().flat_map(|reset| &reset.triggers).chain(&self.silent))
    }

    /// All packets from the proxy that certainly passed no hook.
    pub fn egress(&self) -> Sum {
        Sum::of(self.without_socket().map(|reset| &reset.reset).chain(&self.repeated))
    }

    /// The peers' FINs among the TIME_WAIT candidates.
    pub fn candidates_ingress(&self) -> Sum {
        Sum::of(self.time_wait.iter().map(|candidate| &candidate.fin))
    }

    /// The answers among the TIME_WAIT candidates.
    pub fn candidates_egress(&self) -> Sum {
        Sum::of(self.time_wait.iter().filter_map(|candidate| candidate.ack.as_ref()))
    }

    fn without_socket(&self) -> impl Iterator<Item = &KernelReset> {
        let has_socket = |cause| matches!(cause, Cause::Orphan | Cause::Listener);
        self.resets.iter().filter(move |reset| !has_socket(reset.cause))
    }
}

/// Finds them in a capture of one link.
pub fn classify(trace: &Trace) -> AnsweredByKernel {
    let mut connections: HashMap<(SocketAddr, SocketAddr), Connection> = HashMap::new();
    let mut found = AnsweredByKernel::default();
    for packet in &trace.packets {
        let Some(tcp) = packet.headers.tcp else { continue };
        let connection = connections.entry((packet.proxy(), packet.peer())).or_default();
        // A SYN that is no retransmission begins another connection with the same ports.
        if tcp.has(SYN) && !tcp.has(ACK) && connection.syn != Some(tcp.sequence) {
            std::mem::take(connection).finish(&mut found);
            connection.syn = Some(tcp.sequence);
            connection.accepted = packet.direction == Direction::Ingress;
        }
        match packet.direction {
            Direction::Ingress => connection.ingress(packet, &mut found),
            Direction::Egress => connection.egress(packet, &mut found),
        }
    }
    let mut rest: Vec<_> = connections.into_iter().collect();
    rest.sort_by_key(|&(ends, _)| ends);
    for (_, connection) in rest {
        connection.finish(&mut found);
    }
    found
}

/// What is known of a connection, seen from the proxy.
#[derive(Default)]
struct Connection<'t> {
    /// Number of the SYN that began it.
    syn: Option<u32>,
    /// The peer sent that.
    accepted: bool,
    /// Number behind the proxy's FIN.
    proxy_fin: Option<u32>,
    /// The peer has acknowledged the proxy's FIN.
    proxy_fin_acknowledged: bool,
    /// Number behind the peer's FIN.
    peer_fin: Option<u32>,
    /// The proxy has acknowledged the peer's FIN.
    peer_fin_acknowledged: bool,
    /// The last number that the proxy acknowledged.
    acknowledged: Option<u32>,
    /// The proxy has sent a reset of any kind.
    reset: bool,
    /// Packets to the proxy that may be triggers, each with the cause that it would have, and
    /// whether the connection was over before it.
    ingress: Vec<(&'t Packet, Cause, bool)>,
    /// Resets that wait for their triggers.
    resets: Vec<(&'t Packet, bool)>,
    /// The place in the list of candidates, while the answer is awaited.
    candidate: Option<usize>,
}

impl<'t> Connection<'t> {
    /// Both directions are closed and acknowledged: no full socket is left.
    fn over(&self) -> bool {
        self.proxy_fin_acknowledged && self.peer_fin_acknowledged
    }

    fn ingress(&mut self, packet: &'t Packet, found: &mut AnsweredByKernel) {
        let Some(tcp) = packet.headers.tcp else { return };
        let cause = if self.reset && self.accepted {
            Cause::Listener
        } else if self.reset {
            Cause::AfterReset
        } else if self.proxy_fin_acknowledged {
            Cause::TimeWait
        } else if self.proxy_fin.is_some() {
            Cause::Orphan
        } else {
            Cause::Unknown
        };
        self.ingress.push((packet, cause, self.over()));
        if tcp.has(FIN) && self.peer_fin.is_none() {
            if self.proxy_fin_acknowledged && !self.reset {
                self.candidate = Some(found.time_wait.len());
                found.time_wait.push(TimeWaitCandidate { fin: *packet, ack: None });
            }
            self.peer_fin = packet.sequence_end();
        }
        if tcp.has(ACK)
            && self.proxy_fin.is_some_and(|fin| sequence_distance(tcp.acknowledged, fin) >= 0)
        {
            self.proxy_fin_acknowledged = true;
        }
    }

    fn egress(&mut self, packet: &'t Packet, found: &mut AnsweredByKernel) {
        let Some(tcp) = packet.headers.tcp else { return };
        if tcp.has(RST) {
            // With ACK it comes from a socket, or it answers a SYN, which acknowledges nothing.
            let answers_syn = self.syn.is_some_and(|syn| {
                tcp.has(ACK) && tcp.sequence == 0 && tcp.acknowledged == syn.wrapping_add(1)
            });
            if answers_syn || !tcp.has(ACK) {
                self.resets.push((packet, answers_syn));
            }
            self.reset = true;
        } else if self.over() {
            found.repeated.push(*packet);
        } else if tcp.has(FIN) {
            self.proxy_fin = packet.sequence_end();
        }
        if !tcp.has(ACK) {
            return;
        }
        self.acknowledged = Some(match self.acknowledged {
            Some(before) if sequence_distance(before, tcp.acknowledged) > 0 => before,
            _ => tcp.acknowledged,
        });
        if self.peer_fin.is_some_and(|fin| sequence_distance(tcp.acknowledged, fin) >= 0) {
            self.peer_fin_acknowledged = true;
            if let Some(place) = self.candidate.take()
                && !tcp.has(RST)
            {
                found.time_wait[place].ack = Some(*packet);
            }
        }
    }

    /// Assigns triggers to resets, last to first: once a socket is gone every packet is answered, so
    /// the last resets answer the last packets.
    fn finish(mut self, found: &mut AnsweredByKernel) {
        let mut resets = Vec::new();
        for &(reset, answers_syn) in self.resets.iter().rev() {
            let Some(number) = reset.headers.tcp.map(|tcp| tcp.sequence) else { continue };
            let place = self.ingress.iter().rposition(|(packet, ..)| {
                packet.headers.tcp.is_some_and(|tcp| {
                    !tcp.has(RST)
                        && (if answers_syn {
                            tcp.has(SYN)
                        } else {
                            tcp.has(ACK) && tcp.acknowledged == number
                        })
                })
            });
            let (cause, triggers) = match place {
                Some(place) => {
                    let (trigger, cause, _) = self.ingress.remove(place);
                    (if answers_syn { Cause::ClosedPort } else { cause }, vec![*trigger])
                }
                None => (Cause::Unknown, Vec::new()),
            };
            resets.push((place.unwrap_or(0), KernelReset { cause, triggers, reset: *reset }));
        }
        // In the order of the capture. A place is that among the packets left before the removal of
        // later ones, which does not change it.
        resets.reverse();
        self.absorb_merged(&mut resets);
        // A FIN that was answered by a reset is a trigger and no TIME_WAIT pair.
        found.time_wait.retain(|candidate| {
            !resets.iter().any(|(_, reset)| reset.triggers.contains(&candidate.fin))
        });
        for &(packet, cause, over) in &self.ingress {
            let has = |flag| packet.headers.tcp.is_some_and(|tcp| tcp.has(flag));
            if over || (has(RST) && cause == Cause::AfterReset) {
                found.silent.push(*packet);
                continue;
            }
            let is_empty = packet.headers.payload_bytes == 0 && !has(FIN);
            if (cause == Cause::TimeWait && is_empty) || (cause == Cause::Listener && has(RST)) {
                found.perhaps_silent.push(*packet);
            }
        }
        found.resets.extend(resets.into_iter().map(|(_, reset)| reset));
    }

    /// GRO merges late segments, and the merged one gets a single reset: what the proxy never
    /// acknowledged and stands right before a trigger belongs to it.
    fn absorb_merged(&mut self, resets: &mut [(usize, KernelReset)]) {
        let Some(acknowledged) = self.acknowledged else { return };
        for (place, reset) in resets.iter_mut().rev() {
            let mut at = (*place).min(self.ingress.len());
            while at > 0 {
                let Some(&following) = reset.triggers.first() else { break };
                let (packet, cause, _) = self.ingress[at - 1];
                let merged = packet.headers.payload_bytes > 0
                    && cause == reset.cause
                    && packet.sequence_end() == following.headers.tcp.map(|tcp| tcp.sequence)
                    && packet
                        .sequence_end()
                        .is_some_and(|end| sequence_distance(end, acknowledged) > 0);
                if !merged {
                    break;
                }
                reset.triggers.insert(0, *packet);
                self.ingress.remove(at - 1);
                at -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::tests::{packet, trace};

    use Direction::{Egress, Ingress};

    /// Handshake from the peer: next numbers are 1001 (peer) and 5001 (proxy).
    fn opened() -> Vec<Packet> {
        vec![
            packet(Ingress, SYN, 1000, 0, 0),
            packet(Egress, SYN | ACK, 5000, 1001, 0),
            packet(Ingress, ACK, 1001, 5001, 0),
        ]
    }

    fn with(rest: &[Packet]) -> AnsweredByKernel {
        classify(&trace([opened(), rest.to_vec()].concat()))
    }

    #[test]
    fn passive_close_has_no_such_packet() {
        let found = with(&[
            packet(Ingress, ACK | FIN, 1001, 5001, 0),
            packet(Egress, ACK, 5001, 1002, 0),
            packet(Egress, ACK | FIN, 5001, 1002, 0),
            packet(Ingress, ACK, 1002, 5002, 0),
        ]);
        assert_eq!(found, AnsweredByKernel::default());
    }

    #[test]
    fn fin_after_the_acknowledged_fin_is_a_candidate_with_its_answer() {
        let fin = packet(Ingress, ACK | FIN, 1001, 5002, 0);
        let ack = packet(Egress, ACK, 5002, 1002, 0);
        let found = with(&[
            packet(Egress, ACK | FIN, 5001, 1001, 0),
            packet(Ingress, ACK, 1001, 5002, 0),
            fin,
            ack,
        ]);
        assert_eq!(found.time_wait, [TimeWaitCandidate { fin, ack: Some(ack) }]);
        // FACTS: 52 bytes each way on IPv4 with timestamps.
        assert_eq!(found.candidates_ingress().l3_bytes, 52);
        assert_eq!(found.candidates_egress().l3_bytes, 52);
        assert_eq!((found.ingress(), found.egress()), (Sum::default(), Sum::default()));
    }

    #[test]
    fn fin_that_acknowledges_the_fin_meets_a_full_socket() {
        let found = with(&[
            packet(Egress, ACK | FIN, 5001, 1001, 0),
            packet(Ingress, ACK | FIN, 1001, 5002, 0),
            packet(Egress, ACK, 5002, 1002, 0),
        ]);
        assert_eq!(found, AnsweredByKernel::default());
    }

    #[test]
    fn an_acknowledgement_between_both_fins_may_have_met_time_wait() {
        let (again, reset) =
            (packet(Ingress, ACK, 1001, 5002, 0), packet(Ingress, RST, 1001, 0, 0));
        let found = with(&[
            packet(Egress, ACK | FIN, 5001, 1001, 0),
            packet(Ingress, ACK, 1001, 5002, 0),
            again,
            reset,
        ]);
        assert_eq!(found.perhaps_silent, [again, reset]);
        assert_eq!((found.ingress(), found.silent), (Sum::default(), vec![]));
    }

    #[test]
    fn data_after_the_end_is_answered_by_a_bare_reset() {
        let late = packet(Ingress, ACK, 1001, 5002, 8);
        let reset = packet(Egress, RST, 5002, 0, 0);
        let found = with(&[
            packet(Egress, ACK | FIN, 5001, 1001, 0),
            packet(Ingress, ACK, 1001, 5002, 0),
            late,
            reset,
        ]);
        let expected = KernelReset { cause: Cause::TimeWait, triggers: vec![late], reset };
        assert_eq!(found.resets, [expected]);
        assert_eq!((found.ingress().l3_bytes, found.egress().l3_bytes), (60, 52));
    }

    #[test]
    fn late_fin_answered_by_a_reset_is_not_also_a_time_wait_pair() {
        let data = packet(Ingress, ACK, 1001, 5002, 8);
        let fin = packet(Ingress, ACK | FIN, 1009, 5002, 0);
        let reset = packet(Egress, RST, 5002, 0, 0);
        let found = with(&[
            packet(Egress, ACK | FIN, 5001, 1001, 0),
            packet(Ingress, ACK, 1001, 5002, 0),
            data,
            fin,
            reset,
            reset,
        ]);
        assert_eq!(found.time_wait, []);
        assert_eq!(found.ingress().packets, 2);
        assert_eq!(found.resets[0].triggers, [data]);
        assert_eq!(found.resets[1].triggers, [fin]);
    }

    #[test]
    fn late_segments_merged_by_gro_share_a_reset() {
        let first = packet(Ingress, ACK, 1001, 5002, 1448);
        let second = packet(Ingress, ACK, 2449, 5002, 1448);
        let found = with(&[
            packet(Egress, ACK | FIN, 5001, 1001, 0),
            packet(Ingress, ACK, 1001, 5002, 0),
            first,
            second,
            packet(Egress, RST, 5002, 0, 0),
        ]);
        assert_eq!(found.resets.len(), 1);
        assert_eq!(found.resets[0].triggers, [first, second]);
        assert_eq!(found.ingress().l3_bytes, 3000);
    }

    /// The proxy's reset, and what was in flight to it, answered one by one; then the peer's reset.
    fn reset_in_flight() -> Vec<Packet> {
        let flight = packet(Ingress, ACK, 1101, 5001, 0);
        vec![
            packet(Ingress, ACK, 1001, 5001, 100),
            // The socket's own has ACK.
            packet(Egress, RST | ACK, 5001, 1101, 0),
            flight,
            flight,
            packet(Egress, RST, 5001, 0, 0),
            packet(Egress, RST, 5001, 0, 0),
            packet(Ingress, RST, 1101, 0, 0),
        ]
    }

    #[test]
    fn packets_in_flight_when_the_proxy_resets_its_connection_are_answered_one_by_one() {
        let opened = [
            packet(Egress, SYN, 5000, 0, 0),
            packet(Ingress, SYN | ACK, 1000, 5001, 0),
            packet(Egress, ACK, 5001, 1001, 0),
        ];
        let found = classify(&trace([&opened[..], &reset_in_flight()].concat()));
        assert_eq!(found.resets.len(), 2);
        assert!(found.resets.iter().all(|reset| reset.cause == Cause::AfterReset));
        assert_eq!((found.ingress().packets, found.egress().packets), (3, 2));
        assert_eq!(found.silent.len(), 1);
    }

    #[test]
    fn what_comes_for_a_connection_that_the_proxy_had_accepted_and_reset_meets_its_listener() {
        let found = with(&reset_in_flight());
        assert_eq!(found.resets.len(), 2);
        assert!(found.resets.iter().all(|reset| reset.cause == Cause::Listener));
        assert_eq!((found.ingress(), found.egress()), (Sum::default(), Sum::default()));
        assert_eq!(found.perhaps_silent.len(), 1);
    }

    #[test]
    fn syn_to_a_closed_port_is_answered_by_the_kernel() {
        let syn = packet(Ingress, SYN, 1000, 0, 0);
        let reset = packet(Egress, RST | ACK, 0, 1001, 0);
        let found = classify(&trace(vec![syn, reset]));
        let expected = KernelReset { cause: Cause::ClosedPort, triggers: vec![syn], reset };
        assert_eq!(found.resets, [expected]);
    }

    #[test]
    fn data_to_an_orphan_that_waits_for_the_ack_of_its_fin_is_seen_by_the_hook() {
        let found = with(&[
            packet(Egress, ACK | FIN, 5001, 1001, 0),
            packet(Ingress, ACK, 1001, 5001, 8),
            packet(Egress, RST, 5001, 0, 0),
        ]);
        assert_eq!(found.resets[0].cause, Cause::Orphan);
        assert_eq!((found.ingress(), found.egress()), (Sum::default(), Sum::default()));
    }

    #[test]
    fn same_ports_once_more_are_another_connection() {
        let closed = [
            packet(Egress, ACK | FIN, 5001, 1001, 0),
            packet(Ingress, ACK | FIN, 1001, 5002, 0),
            packet(Egress, ACK, 5002, 1002, 0),
        ];
        let again = [
            packet(Ingress, SYN, 9000, 0, 0),
            packet(Egress, SYN | ACK, 7000, 9001, 0),
            packet(Ingress, ACK, 9001, 7001, 10),
            packet(Egress, ACK, 7001, 9011, 0),
        ];
        let found = with(&[closed.as_slice(), &again].concat());
        assert_eq!(found, AnsweredByKernel::default());
    }
}
