//! Classes of packets that no cgroup hook sees: what of a capture is in no cell of a socket, held
//! against the packets that a test has provoked, against their sizes as worked out by hand, and against
//! what the tracepoints have found of them.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use traffic_agent::method::ListeningPort;
use traffic_agent::report::{self, Origin};
use traffic_lab::packet::{Direction, Packet};
use traffic_lab::topology::{CLIENT_DEVICE, UPSTREAM_DEVICE};

use crate::figures::{self, Books, Figures};
use crate::site::Counted;

/// One class in one run.
pub struct Class<'c> {
    is_member: Box<dyn Fn(&Packet) -> bool + 'c>,
    is_traced: Box<dyn Fn(&Packet) -> bool + 'c>,
    is_targets: bool,
    ingress: Vec<u32>,
    egress: Vec<u32>,
    answers: Option<u32>,
}

impl<'c> Class<'c> {
    /// The packets of a capture that are of the class: all of them are traced, and show that they are the
    /// target's.
    pub fn of(is_member: impl Fn(&Packet) -> bool + 'c) -> Self {
        Self {
            is_member: Box::new(is_member),
            is_traced: Box::new(|_| true),
            is_targets: true,
            ingress: Vec::new(),
            egress: Vec::new(),
            answers: None,
        }
    }

    /// All packets of a capture from a moment on, as [`now`] tells it.
    pub fn since(moment: u64) -> Self {
        Self::of(move |packet| packet.at_ns > moment)
    }

    /// The L3 bytes of each packet to the proxy, client's link first, by hand.
    pub fn ingress(self, sizes: impl Into<Vec<u32>>) -> Self {
        Self { ingress: sizes.into(), ..self }
    }

    /// The L3 bytes of each packet from the proxy, likewise.
    pub fn egress(self, sizes: impl Into<Vec<u32>>) -> Self {
        Self { egress: sizes.into(), ..self }
    }

    /// Every packet from the proxy has this many L3 bytes; how many there are is up to the kernel.
    pub fn answers_of(self, bytes: u32) -> Self {
        Self { answers: Some(bytes), ..self }
    }

    /// Nothing shows that they are the target's: the report tells them apart.
    pub fn anybodys(self) -> Self {
        Self { is_targets: false, ..self }
    }

    /// Only these have a tracepoint.
    pub fn traced(self, is_traced: impl Fn(&Packet) -> bool + 'c) -> Self {
        Self { is_traced: Box::new(is_traced), ..self }
    }

    /// None has one.
    pub fn untraced(self) -> Self {
        self.traced(|_| false)
    }

    /// The class is what was provoked, all that the hook did not see, and what tracing has found.
    #[track_caller]
    pub fn assert_in(&self, counted: &Counted, listening: &[ListeningPort]) {
        let members = self.members(counted);
        let sizes = |direction| -> Vec<u32> {
            let packets = members.iter().filter(|(_, packet)| packet.direction == direction);
            packets.map(|(_, packet)| packet.headers.l3_bytes).collect()
        };
        let found = (sizes(Direction::Ingress), sizes(Direction::Egress));
        let egress = match self.answers {
            Some(bytes) => vec![bytes; found.1.len()],
            None => self.egress.clone(),
        };
        assert_eq!(found, (self.ingress.clone(), egress), "captured (left), by hand");

        let ports: BTreeSet<_> = listening.iter().copied().collect();
        let (mut class, mut target, mut anybodys) = (Books::new(), Books::new(), Books::new());
        for (interface, packet) in members {
            figures::post(&mut class, packet, interface, &ports);
            if (self.is_traced)(packet) {
                let books = if self.is_targets { &mut target } else { &mut anybodys };
                figures::post(books, packet, interface, &ports);
            }
        }
        let unseen = minus(counted.captured(listening), &of_sockets(counted));
        assert_eq!(unseen, class, "in no socket's cell (left), the class (right)");

        let by_kernel = counted.report.cells.iter().filter(|cell| cell.origin != Origin::Socket);
        assert_eq!(figures::of_cells(by_kernel), target, "the kernel's cells (left), the class");
        let Some(unattributed) = counted.report.unattributed else {
            panic!("nothing is traced: {:?}", counted.report.findings);
        };
        for (direction, counters) in [
            (report::Direction::Ingress, unattributed.ingress),
            (report::Direction::Egress, unattributed.egress),
        ] {
            let expected = figures::sum(&anybodys, |key| key.direction == direction);
            assert_eq!(
                Figures::from(counters),
                expected,
                "anybody's {direction:?} (left), the class"
            );
        }
    }

    fn members<'t>(&self, counted: &'t Counted) -> Vec<(&'static str, &'t Packet)> {
        let legs = [
            (CLIENT_DEVICE, &counted.trace.client.trace),
            (UPSTREAM_DEVICE, &counted.trace.upstream.trace),
        ];
        let all = legs.into_iter().flat_map(|(interface, trace)| {
            trace.packets.iter().map(move |packet| (interface, packet))
        });
        all.filter(|(_, packet)| (self.is_member)(packet)).collect()
    }
}

/// The clock by which packets are stamped, in nanoseconds since 1970.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The books of what the hook has seen.
pub fn of_sockets(counted: &Counted) -> Books {
    figures::of_cells(counted.report.cells.iter().filter(|cell| cell.origin == Origin::Socket))
}

/// What of `all` is not in `part`, which must not hold more of anything.
#[track_caller]
pub fn minus(all: Books, part: &Books) -> Books {
    for (key, figures) in part {
        let whole = all.get(key).copied().unwrap_or_default();
        let is_part = figures.wire_packets <= whole.wire_packets
            && figures.wire_bytes <= whole.wire_bytes
            && figures.payload_bytes <= whole.payload_bytes;
        assert!(is_part, "{key:?}: {figures:?} were counted, and {whole:?} captured");
    }
    let rest = all.into_iter().map(|(key, whole)| {
        let figures = part.get(&key).copied().unwrap_or_default();
        let rest = Figures {
            wire_packets: whole.wire_packets - figures.wire_packets,
            wire_bytes: whole.wire_bytes - figures.wire_bytes,
            payload_bytes: whole.payload_bytes - figures.payload_bytes,
        };
        (key, rest)
    });
    rest.filter(|(_, figures)| *figures != Figures::default()).collect()
}
