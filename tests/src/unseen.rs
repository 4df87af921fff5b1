//! Classes of packets that no cgroup hook sees: what of a capture is in no cell of a socket, held
//! against the packets that a test has provoked, and against their sizes as worked out by hand.

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
    ingress: Vec<u32>,
    egress: Vec<u32>,
    traced: Traced,
}

/// What the tracepoints make of a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Traced {
    /// All is counted as the target's.
    Target,
    /// All is seen, but may be anybody's: the report tells it apart.
    Anybody,
    /// What comes in is counted as the target's; the answer has no tracepoint.
    IngressOnly,
    /// Nothing is seen.
    Nothing,
}

impl<'c> Class<'c> {
    /// The packets of a capture that are of the class.
    pub fn of(is_member: impl Fn(&Packet) -> bool + 'c) -> Self {
        let is_member = Box::new(is_member);
        Self { is_member, ingress: Vec::new(), egress: Vec::new(), traced: Traced::Target }
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

    /// Nothing shows that it is the target's.
    pub fn anybodys(self) -> Self {
        Self { traced: Traced::Anybody, ..self }
    }

    /// The kernel's answer has no tracepoint.
    pub fn answered_untraced(self) -> Self {
        Self { traced: Traced::IngressOnly, ..self }
    }

    /// There is no tracepoint.
    pub fn untraced(self) -> Self {
        Self { traced: Traced::Nothing, ..self }
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
        assert_eq!(found, (self.ingress.clone(), self.egress.clone()), "captured (left), by hand");

        let listening: BTreeSet<_> = listening.iter().copied().collect();
        let mut class = Books::new();
        for (interface, packet) in members {
            figures::post(&mut class, packet, interface, &listening);
        }
        let listening: Vec<_> = listening.into_iter().collect();
        let unseen = minus(counted.captured(&listening), &of_origin(counted, Origin::Socket));
        assert_eq!(unseen, class, "in no socket's cell (left), the class (right)");

        let (target, anybody) = match self.traced {
            Traced::Target => (class, Books::new()),
            Traced::Anybody => (Books::new(), class),
            Traced::IngressOnly => {
                class.retain(|key, _| key.direction == report::Direction::Ingress);
                (class, Books::new())
            }
            Traced::Nothing => (Books::new(), Books::new()),
        };
        let by_kernel = counted.report.cells.iter().filter(|cell| cell.origin != Origin::Socket);
        assert_eq!(figures::of_cells(by_kernel), target, "the kernel's cells (left), the class");
        let Some(unattributed) = counted.report.unattributed else {
            panic!("nothing is traced: {:?}", counted.report.findings);
        };
        for (direction, counters) in [
            (report::Direction::Ingress, unattributed.ingress),
            (report::Direction::Egress, unattributed.egress),
        ] {
            let expected = figures::sum(&anybody, |key| key.direction == direction);
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

/// The books of one origin's cells.
pub fn of_origin(counted: &Counted, origin: Origin) -> Books {
    figures::of_cells(counted.report.cells.iter().filter(|cell| cell.origin == origin))
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
