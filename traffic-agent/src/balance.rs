//! The ledger that must balance: what an interface counted is what the targets used, what all other cgroups
//! used, and a remainder, which is printed and never hidden. Pure.
//!
//! Devices differ in what they count. An ordinary card counts what is on the wire, one frame per segment;
//! veth and virtio count super-packets. Some count the link-layer header, and some do not. All of it is
//! computed; what the device's counters follow is named, and used.

use serde::Serialize;

use crate::report::{Counters, Direction};

/// Frames, and their bytes as far as the device counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Frames {
    /// How many.
    pub packets: u64,
    /// Their bytes together.
    pub bytes: u64,
}

impl std::ops::Add for Frames {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            packets: self.packets.saturating_add(other.packets),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }
}

/// What is left of the device's counters, below zero if the sockets had more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Remainder {
    /// Frames.
    pub packets: i64,
    /// Bytes.
    pub bytes: i64,
}

impl Remainder {
    /// Whether there are frames of so many bytes: as a remainder of wrong headers is not.
    fn is_of_frames(self) -> bool {
        let size = self.bytes.checked_div(self.packets);
        size.map_or(self.bytes == 0, |size| (SMALLEST_FRAME..=LARGEST_FRAME).contains(&size))
    }
}

/// ARP without a link-layer header.
const SMALLEST_FRAME: i64 = 28;
/// A super-packet of BIG TCP. Source: `GSO_MAX_SIZE`, include/linux/netdevice.h.
const LARGEST_FRAME: i64 = 8 * 65_536;

/// What a device counts as one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Model {
    /// A frame for each segment, as on the wire.
    Segments,
    /// A frame for each packet of the stack, before it is split or after it was merged.
    SuperPackets,
}

impl Model {
    /// In words, for tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Segments => "segments",
            Self::SuperPackets => "super-packets",
        }
    }

    /// What the counters of sockets are in frames of such a device.
    fn frames(self, counters: &Counters, link_header: u32) -> Frames {
        let (packets, bytes) = match self {
            Self::Segments => (counters.wire_packets, counters.wire_bytes),
            Self::SuperPackets => (counters.packets, counters.bytes),
        };
        let headers = packets.saturating_mul(link_header.into());
        Frames { packets, bytes: bytes.saturating_add(headers) }
    }
}

/// One direction of an interface, over some time.
#[derive(Clone, Debug, Default)]
pub struct Side {
    /// What the interface counted.
    pub device: Frames,
    /// What sockets of the targets sent or received.
    pub targets: Counters,
    /// What the kernel exchanged for the targets without their sockets.
    pub kernel: Counters,
    /// What all other cgroups sent or received, and the kernel through sockets of its own.
    pub others: Counters,
}

/// Where a remainder may come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "cause", rename_all = "kebab-case")]
pub enum Explanation {
    /// So short on average that nothing else fits: ARP (28 bytes), neighbour discovery (64 to 72), reports
    /// of multicast groups, and the link-layer header.
    SmallFrames {
        /// Bytes of a frame on average.
        average_bytes: u64,
    },
    /// Up to so much was sent by the kernel for the targets. Most of it passes the hook of the root, which
    /// has it among the others; what the kernel sends for a connection that is over passes none.
    KernelAnswers {
        /// At most.
        at_most: Frames,
    },
    /// Packets that no socket of this namespace had: forwarded, as for containers and other network
    /// namespaces; to ports that nobody has; dropped by the firewall on their way in; sent by AF_PACKET.
    NoSocket,
    /// Sockets had more than the interface: what the firewall or the queue of the interface dropped behind
    /// the hook, or a multicast packet that several sockets received.
    NotOnInterface,
}

impl Explanation {
    /// In words.
    pub fn message(&self) -> String {
        match self {
            Self::SmallFrames { average_bytes } => format!(
                "frames of {average_bytes} B on average: ARP, neighbour discovery, multicast reports"
            ),
            Self::KernelAnswers { at_most } => format!(
                "up to {} B in {} frames are the kernel's answers for the targets",
                at_most.bytes, at_most.packets
            ),
            Self::NoSocket => "packets of no socket here: forwarded (containers, other network \
                               namespaces), unwanted, dropped on the way in, or of AF_PACKET"
                .to_owned(),
            Self::NotOnInterface => "sockets had more than the interface: dropped behind the hook by \
                                     the firewall or the interface's queue, or multicast to several \
                                     sockets"
                .to_owned(),
        }
    }
}

/// One direction of an interface, balanced: `device` = `targets` + `others` + `remainder`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Balance {
    /// What the interface counted.
    pub device: Frames,
    /// What it counts as one frame.
    pub model: Model,
    /// Bytes of each frame's link-layer header that it counts, too.
    pub link_header_bytes: u32,
    /// The targets' share, with what the kernel received for them.
    pub targets: Frames,
    /// That of all other cgroups.
    pub others: Frames,
    /// What is left.
    pub remainder: Remainder,
    /// What would be left by the other model, with the same link-layer header.
    pub remainder_of_other_model: Remainder,
    /// Where it may come from. Empty if there is none.
    pub explanations: Vec<Explanation>,
}

/// Frames that are no longer than this on average are taken for ARP and the like: neighbour discovery with an
/// option (72 bytes) behind a link-layer header with a VLAN tag (18).
const SMALL_FRAME: u64 = 90;

impl Balance {
    /// Balances one direction of an interface. `link_header`: bytes of a frame before its IP header, 14 for
    /// Ethernet.
    pub fn of(side: &Side, direction: Direction, link_header: u32) -> Self {
        // Ingress without a socket passes no hook, so it is nowhere else. On the way out the root's hook sees
        // what the kernel sends, resets above all: it is among the others already.
        let mut targets = side.targets;
        if direction == Direction::Ingress {
            targets += side.kernel;
        }
        let mut all = targets;
        all += side.others;

        // By the frames alone, which no header blurs; if both give the same, the wire it is.
        let distance = |model: Model| model.frames(&all, 0).packets.abs_diff(side.device.packets);
        let (model, other) = match distance(Model::SuperPackets) < distance(Model::Segments) {
            true => (Model::SuperPackets, Model::Segments),
            false => (Model::Segments, Model::SuperPackets),
        };
        // veth counts no link-layer header of what it receives in the manner of an ordinary card (NAPI).
        // Source: `veth_xdp_rcv()`, drivers/net/veth.c.
        let left = |header| rest(side.device, model.frames(&all, header));
        let (with, without) = (left(link_header), left(0));
        let is_nearer = without.bytes.unsigned_abs() < with.bytes.unsigned_abs();
        let leaves_out = !with.is_of_frames() && (without.is_of_frames() || is_nearer);
        let link_header = if leaves_out { 0 } else { link_header };

        let frames = |model: Model| {
            model.frames(&targets, link_header) + model.frames(&side.others, link_header)
        };
        let remainder = rest(side.device, frames(model));
        let answers = match direction {
            Direction::Ingress => Frames::default(),
            Direction::Egress => model.frames(&side.kernel, link_header),
        };
        Self {
            device: side.device,
            model,
            link_header_bytes: link_header,
            targets: model.frames(&targets, link_header),
            others: model.frames(&side.others, link_header),
            remainder,
            remainder_of_other_model: rest(side.device, frames(other)),
            explanations: explain(remainder, answers),
        }
    }
}

fn rest(device: Frames, known: Frames) -> Remainder {
    let minus = |one: u64, other: u64| {
        let difference = i128::from(one) - i128::from(other);
        difference.clamp(i64::MIN.into(), i64::MAX.into()) as i64
    };
    Remainder {
        packets: minus(device.packets, known.packets),
        bytes: minus(device.bytes, known.bytes),
    }
}

fn explain(remainder: Remainder, answers: Frames) -> Vec<Explanation> {
    let mut causes = Vec::new();
    if remainder == Remainder::default() {
        return causes;
    }
    if remainder.packets < 0 || remainder.bytes < 0 {
        causes.push(Explanation::NotOnInterface);
        return causes;
    }
    if answers.packets > 0 {
        causes.push(Explanation::KernelAnswers { at_most: answers });
    }
    let (packets, bytes) = (remainder.packets.unsigned_abs(), remainder.bytes.unsigned_abs());
    match bytes.checked_div(packets) {
        Some(average_bytes) if average_bytes <= SMALL_FRAME => {
            causes.push(Explanation::SmallFrames { average_bytes });
        }
        _ => causes.push(Explanation::NoSocket),
    }
    causes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(packets: u64, bytes: u64, wire_packets: u64, wire_bytes: u64) -> Counters {
        Counters { packets, bytes, wire_packets, wire_bytes, ..Counters::default() }
    }

    /// 10 super-packets of 45 segments, 1448 bytes of payload each behind headers of 52, and 100 packets of 100
    /// bytes of somebody else.
    fn bulk(device: Frames) -> Side {
        Side {
            device,
            targets: counters(10, 10 * (45 * 1448 + 52), 450, 450 * 1500),
            others: counters(100, 10_000, 100, 10_000),
            ..Side::default()
        }
    }

    #[test]
    fn an_ordinary_card_counts_segments() {
        // 450 x 1514 + 100 x 114, and 3 ARP frames of 42.
        let device = Frames { packets: 553, bytes: 681_300 + 11_400 + 126 };
        let balance = Balance::of(&bulk(device), Direction::Egress, 14);
        assert_eq!((balance.model, balance.link_header_bytes), (Model::Segments, 14));
        assert_eq!(balance.targets, Frames { packets: 450, bytes: 681_300 });
        assert_eq!(balance.others, Frames { packets: 100, bytes: 11_400 });
        assert_eq!(balance.remainder, Remainder { packets: 3, bytes: 126 });
        assert_eq!(balance.explanations, [Explanation::SmallFrames { average_bytes: 42 }]);
        // 553 - 110 frames; 692,826 - (10 x 65,226 + 11,400).
        let other = Remainder { packets: 443, bytes: 29_166 };
        assert_eq!(balance.remainder_of_other_model, other);
    }

    #[test]
    fn a_virtual_device_counts_super_packets() {
        // 10 x (65,212 + 14) + 100 x 114.
        let device = Frames { packets: 110, bytes: 652_260 + 11_400 };
        let balance = Balance::of(&bulk(device), Direction::Egress, 14);
        assert_eq!((balance.model, balance.link_header_bytes), (Model::SuperPackets, 14));
        assert_eq!(balance.remainder, Remainder::default());
        assert!(balance.explanations.is_empty());
    }

    #[test]
    fn a_device_may_leave_out_the_link_layer_header() {
        let device = Frames { packets: 550, bytes: 450 * 1500 + 10_000 };
        let balance = Balance::of(&bulk(device), Direction::Ingress, 14);
        assert_eq!((balance.model, balance.link_header_bytes), (Model::Segments, 0));
        assert_eq!(balance.remainder, Remainder::default());
    }

    #[test]
    fn what_the_kernel_received_is_the_targets_and_what_it_sent_is_not_counted_twice() {
        let kernel = counters(2, 104, 2, 104);
        let targets = counters(10, 1000, 10, 1000);
        // On the way in it passed no hook.
        let side = Side {
            device: Frames { packets: 12, bytes: 1104 + 12 * 14 },
            targets,
            kernel,
            ..Side::default()
        };
        let balance = Balance::of(&side, Direction::Ingress, 14);
        assert_eq!(balance.remainder, Remainder::default());
        assert_eq!(balance.targets.packets, 12);
        // On the way out both resets passed the root's hook, and are what the kernel sent for nobody.
        let side = Side { others: kernel, ..side };
        let balance = Balance::of(&side, Direction::Egress, 14);
        assert_eq!(balance.remainder, Remainder::default());
        assert_eq!(balance.targets.packets, 10);
        // One of them did not: TIME_WAIT answers past the hook.
        let side = Side { others: counters(1, 52, 1, 52), ..side };
        let balance = Balance::of(&side, Direction::Egress, 14);
        assert_eq!(balance.remainder, Remainder { packets: 1, bytes: 66 });
        let at_most = Frames { packets: 2, bytes: 132 };
        assert!(balance.explanations.contains(&Explanation::KernelAnswers { at_most }));
    }

    #[test]
    fn a_remainder_is_shown_whichever_sign_it_has() {
        // Forwarded: 1000 frames of 1514.
        let device = Frames { packets: 1550, bytes: 692_700 + 1_514_000 };
        let balance = Balance::of(&bulk(device), Direction::Ingress, 14);
        assert_eq!(balance.remainder, Remainder { packets: 1000, bytes: 1_514_000 });
        assert_eq!(balance.explanations, [Explanation::NoSocket]);
        // The queue dropped 50 segments of 1514 behind the hook.
        let device = Frames { packets: 500, bytes: 692_700 - 75_700 };
        let balance = Balance::of(&bulk(device), Direction::Egress, 14);
        assert_eq!(balance.remainder, Remainder { packets: -50, bytes: -75_700 });
        assert_eq!(balance.explanations, [Explanation::NotOnInterface]);
    }

    #[test]
    fn figures_at_the_limit_do_not_overflow() {
        let most = counters(u64::MAX, u64::MAX, u64::MAX, u64::MAX);
        let side = Side { targets: most, others: most, ..Side::default() };
        let balance = Balance::of(&side, Direction::Egress, 14);
        assert_eq!(balance.remainder, Remainder { packets: i64::MIN, bytes: i64::MIN });
    }
}
