//! Classes of packets that no cgroup hook sees: what of a capture is in no cell of a socket, held
//! against the packets that a test has provoked, and against their sizes as worked out by hand.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use traffic_agent::method::ListeningPort;
use traffic_agent::report::Origin;
use traffic_lab::packet::{Direction, Packet};
use traffic_lab::topology::{CLIENT_DEVICE, UPSTREAM_DEVICE};

use crate::figures::{self, Books, Figures};
use crate::site::Counted;

/// Whether the measurement counts by tracing what the kernel answers without a socket.
pub const TRACED: bool = false;

/// One class in one run.
pub struct Class<'c> {
    is_member: Box<dyn Fn(&Packet) -> bool + 'c>,
    ingress: Vec<u32>,
    egress: Vec<u32>,
    traced: bool,
}

impl<'c> Class<'c> {
    /// The packets of a capture that are of the class.
    pub fn of(is_member: impl Fn(&Packet) -> bool + 'c) -> Self {
        let is_member = Box::new(is_member);
        Self { is_member, ingress: Vec::new(), egress: Vec::new(), traced: true }
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

    /// Tracing does not find it either.
    pub fn untraced(self) -> Self {
        Self { traced: false, ..self }
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

        let traced = if TRACED && self.traced { class } else { Books::new() };
        assert_eq!(of_origin(counted, Origin::Kernel), traced, "the kernel's cells, the class");
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
