//! What the eBPF program and the agent must agree on: the cells, how they are addressed, and the
//! arithmetic that turns a super-packet into what the wire carries.
//!
//! The library is `no_std` and free of dependencies, so the program uses it on the bpf target and
//! plain `cargo test` reaches it on the host. The program itself is `program.rs`, behind `main.rs`.
//!
//! # How a cell is addressed
//!
//! The map `CELLS` is a per-CPU array with one element per *interface slot*. An element holds the
//! [`CELLS_PER_INTERFACE`] cells of that interface, at [`cell_index`]: direction, port slot, family.
//! Nothing is hashed on the way of a packet, so nothing can fill up: what has no slot of its own has
//! a slot for the rest ([`INTERFACE_SLOT_OTHER`], [`PORT_SLOT_CLIENT_TCP`], [`PORT_SLOT_CLIENT_UDP`]).
//!
//! Three byte tables (map `SLOTS`, memory-mapped by the agent) give the slot of a number at once: TCP
//! ports, UDP ports and interface numbers. Who holds a slot stands in the map `SLOT_OWNERS`. Program
//! and agent claim slots by the same rule: insert the owner if there is none, then write the byte. The slot
//! of an interface that is gone is given again by the agent alone, the other way round: first the byte, then
//! the owner.

#![cfg_attr(not(test), no_std)]

pub mod sequence;
pub mod wire;

/// Version of everything in this file. Part of every pin path: a pinned map of another layout opens
/// without an error.
pub const ABI_VERSION: u32 = 1;

/// Traffic of one cell. All fields only grow; readers take differences.
///
/// * `packets`, `bytes`: as the hook saw them, before segmentation. `bytes` is L3: IP header included,
///   link-layer header not. This is what iptables, nft and systemd call packets and bytes.
/// * `wire_packets`, `wire_bytes`: as on the wire, a super-packet once per segment, each with its own
///   IP and transport header.
/// * `payload_bytes`: what follows the TCP or UDP header (the IP header for other protocols).
/// * `retransmitted_bytes`: of those, what TCP carried before: sent again, received again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    /// sk_buffs seen by the hook.
    pub packets: u64,
    /// L3 bytes as the hook saw them.
    pub bytes: u64,
    /// IP packets as on the wire.
    pub wire_packets: u64,
    /// L3 bytes as on the wire: the exact figure of every report.
    pub wire_bytes: u64,
    /// Bytes behind the transport header.
    pub payload_bytes: u64,
    /// TCP payload that was sent, or received, once more.
    pub retransmitted_bytes: u64,
}

/// What the program adds up for one cell, and what user space makes a [`Cell`] of.
///
/// An ordinary packet is on the wire as it passed the hook, so three adds do for it. Only a super-packet
/// pays for the other two.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// As in [`Cell`].
    pub packets: u64,
    /// As in [`Cell`].
    pub bytes: u64,
    /// As in [`Cell`].
    pub payload_bytes: u64,
    /// Wire packets beyond the first of each packet.
    pub split_packets: u64,
    /// Wire bytes beyond those that passed the hook. Wraps: a packet that loses a header before the wire
    /// and is not split would take bytes away.
    pub split_bytes: u64,
    /// As in [`Cell`].
    pub retransmitted_bytes: u64,
}

// Program and agent must agree on every byte: changing this also changes `ABI_VERSION`.
const _: () = assert!(size_of::<Sums>() == 48 && align_of::<Sums>() == 8);

impl Sums {
    /// Nothing counted yet.
    pub const ZERO: Self = Self {
        packets: 0,
        bytes: 0,
        payload_bytes: 0,
        split_packets: 0,
        split_bytes: 0,
        retransmitted_bytes: 0,
    };

    /// Adds another CPU's sums. They only grow, but for `split_bytes`; beyond a `u64` they stand at the
    /// limit, which the report recognises.
    #[inline(always)]
    pub const fn add(&mut self, other: &Self) {
        self.packets = self.packets.saturating_add(other.packets);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.payload_bytes = self.payload_bytes.saturating_add(other.payload_bytes);
        self.split_packets = self.split_packets.saturating_add(other.split_packets);
        self.split_bytes = self.split_bytes.wrapping_add(other.split_bytes);
        self.retransmitted_bytes =
            self.retransmitted_bytes.saturating_add(other.retransmitted_bytes);
    }

    /// Returns what the sums stand for.
    #[inline(always)]
    pub const fn cell(&self) -> Cell {
        Cell {
            packets: self.packets,
            bytes: self.bytes,
            wire_packets: self.packets.saturating_add(self.split_packets),
            wire_bytes: self.bytes.saturating_add_signed(self.split_bytes as i64),
            payload_bytes: self.payload_bytes,
            retransmitted_bytes: self.retransmitted_bytes,
        }
    }
}

/// What one interface slot has: the value of the maps `CELLS` and `ANSWERED`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct InterfaceSums {
    /// The sums of its cells, by [`cell_index`].
    pub cells: [Sums; CELLS_PER_INTERFACE],
    /// The program's own: fingerprint of the packet before, if that was to complete a handshake; else 0.
    pub handshake: u64,
}

impl InterfaceSums {
    /// Nothing counted yet.
    pub const ZERO: Self = Self { cells: [Sums::ZERO; CELLS_PER_INTERFACE], handshake: 0 };
}

/// Elements of the map `CELLS`.
pub const INTERFACE_SLOTS: usize = 8;
/// Interface slot of the loopback interface, which has number 1 in every network namespace.
pub const INTERFACE_SLOT_LOOPBACK: u8 = 0;
/// First interface slot that an interface can claim.
pub const INTERFACE_SLOT_FIRST: u8 = 1;
/// Interface slot shared by all interfaces that found no slot of their own.
pub const INTERFACE_SLOT_OTHER: u8 = 7;
/// Number of the loopback interface. Source: `LOOPBACK_IFINDEX`, include/net/flow.h.
pub const LOOPBACK_IFINDEX: u32 = 1;

/// Directions, seen from the cgroup.
pub const DIRECTIONS: usize = 2;
/// Delivered to a socket of the cgroup.
pub const INGRESS: u32 = 0;
/// Sent by a socket of the cgroup.
pub const EGRESS: u32 = 1;

/// IP versions of the packet (not of the socket, which may carry IPv4 on an IPv6 socket).
pub const FAMILIES: usize = 2;
/// The packet is IPv4.
pub const IPV4: u32 = 0;
/// The packet is IPv6.
pub const IPV6: u32 = 1;

/// Port slots of one interface and direction.
pub const PORT_SLOTS: usize = 64;
/// Upstream leg, TCP. Also the number of the TCP port table.
pub const PORT_SLOT_UPSTREAM_TCP: u8 = 0;
/// Upstream leg, UDP. Also the number of the UDP port table.
pub const PORT_SLOT_UPSTREAM_UDP: u8 = 1;
/// ICMP and ICMPv6, which have no port: upstream.
pub const PORT_SLOT_UPSTREAM_ICMP: u8 = 2;
/// Every other protocol, and what could not be parsed: upstream.
pub const PORT_SLOT_UPSTREAM_OTHER: u8 = 3;
/// First port slot that a listening port can claim.
pub const PORT_SLOT_FIRST: u8 = 4;
/// Last port slot that a UDP port can claim.
pub const PORT_SLOT_LAST_UDP: u8 = 45;
/// Client leg of all listening TCP ports that found no slot of their own.
pub const PORT_SLOT_CLIENT_TCP: u8 = 62;
/// Client leg of all listening UDP ports that found no slot of their own.
pub const PORT_SLOT_CLIENT_UDP: u8 = 63;
/// In a port table: never the client leg, whatever listens there (`--port '!tcp/443'`).
pub const PORT_EXCLUDED: u8 = 255;

/// Cells in one element of the map `CELLS`.
pub const CELLS_PER_INTERFACE: usize = DIRECTIONS * PORT_SLOTS * FAMILIES;

/// Table of the map `SLOTS` that is indexed by TCP port.
pub const TABLE_TCP: u32 = PORT_SLOT_UPSTREAM_TCP as u32;
/// Table of the map `SLOTS` that is indexed by UDP port.
pub const TABLE_UDP: u32 = PORT_SLOT_UPSTREAM_UDP as u32;
/// Table of the map `SLOTS` that is indexed by interface number.
pub const TABLE_INTERFACE: u32 = 2;
/// Elements of the map `SLOTS`.
pub const TABLES: usize = 3;
/// Bytes of one table: one per number. An interface number beyond it shares [`INTERFACE_SLOT_OTHER`].
pub const TABLE_BYTES: usize = 1 << 16;
/// In a table: this number has no slot (yet). For a port that means the upstream leg.
pub const SLOT_NONE: u8 = 0;
/// Capacity of the map `SLOT_OWNERS`: more than there are slots, so an insert fails only for a slot
/// that is taken.
pub const SLOT_OWNERS_ENTRIES: u32 = 128;

// The program cuts its indices to the bits below.
const _: () = assert!(CELLS_PER_INTERFACE.is_power_of_two() && TABLE_BYTES.is_power_of_two());
const _: () = assert!(size_of::<InterfaceSums>() == 12_288 + 8);
const _: () = assert!(INTERFACE_SLOT_OTHER as usize == INTERFACE_SLOTS - 1);
const _: () = assert!(PORT_SLOT_CLIENT_UDP as usize == PORT_SLOTS - 1);
const _: () = assert!(SLOT_OWNERS_ENTRIES as usize > INTERFACE_SLOTS + PORT_SLOTS);

/// What the map `ANSWERED` tells apart, `INTERFACE_SLOTS` elements each: packets that a tracepoint showed.
pub const ANSWERED_SEEN: usize = 0;
/// Answers that no tracepoint shows, but that follow from a packet that one showed.
pub const ANSWERED_FOLLOWS: usize = 1;
/// The last element of the map `ANSWERED`: packets of the target's network namespaces that may be anybody's,
/// on whatever interface.
pub const ANSWERED_UNATTRIBUTED: usize = 2 * INTERFACE_SLOTS;
/// Elements of the map `ANSWERED`.
pub const ANSWERED_ELEMENTS: usize = ANSWERED_UNATTRIBUTED + 1;

/// Capacity of the map `TARGET_NAMESPACES`.
pub const MOST_NAMESPACES: u32 = 64;
/// Capacity of the map `CGROUPS`.
pub const MOST_CGROUPS: u32 = 64;
/// Capacity of the map `SELECTED`.
pub const MOST_SELECTED: u32 = 1024;
/// Levels of the tree in the map `SELECTED_LEVELS`.
pub const MOST_SELECTED_LEVELS: usize = 16;
/// Capacity of the map `CONNECTIONS`, which forgets the oldest. At 100 bytes each.
pub const MOST_CONNECTIONS: u32 = 16_384;

/// A TCP connection that is over, or a UDP port that was given back: the key of the map `CONNECTIONS`.
///
/// Addresses in network byte order, an IPv4 address in the first four bytes; all else in the host's.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Inode of the network namespace.
    pub namespace: u32,
    /// IP protocol number.
    pub protocol: u32,
    /// Port of the socket.
    pub local_port: u16,
    /// Port of its peer.
    pub remote_port: u16,
    /// Address of the socket.
    pub local: [u8; 16],
    /// Address of its peer.
    pub remote: [u8; 16],
}

// The kernel hashes every byte of a key: there is no padding.
const _: () = assert!(size_of::<Connection>() == 44 && align_of::<Connection>() == 4);

impl Connection {
    /// Nothing known yet.
    pub const ZERO: Self = Self {
        namespace: 0,
        protocol: 0,
        local_port: 0,
        remote_port: 0,
        local: [0; 16],
        remote: [0; 16],
    };
}

/// Elements of each of the maps `HOST_EVEN` and `HOST_ODD`. At 64 bytes for each CPU, and some 130 more.
pub const HOST_ENTRIES: u32 = 4096;
/// In a [`HostKey`]: the packet has no owner.
pub const HOST_NOBODY: u64 = 0;

/// Whose traffic it is, and where: the key of the maps `HOST_EVEN` and `HOST_ODD`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostKey {
    /// Id of the socket's cgroup; [`HOST_NOBODY`] for what the kernel itself sends.
    pub cgroup: u64,
    /// Inode of the socket's network namespace; 0 if the kernel does not tell.
    pub namespace: u32,
    /// Number of the interface there.
    pub interface: u32,
}

// The kernel hashes every byte of a key: there is no padding.
const _: () = assert!(size_of::<HostKey>() == 16 && align_of::<HostKey>() == 8);

/// What is added up for a [`HostKey`] in one direction. As in [`Sums`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostSums {
    /// As in [`Cell`].
    pub packets: u64,
    /// As in [`Cell`].
    pub bytes: u64,
    /// As in [`Sums`].
    pub split_packets: u64,
    /// As in [`Sums`]: wraps.
    pub split_bytes: u64,
}

const _: () = assert!(size_of::<HostSums>() == 32 && align_of::<HostSums>() == 8);

impl HostSums {
    /// Nothing yet.
    pub const ZERO: Self = Self { packets: 0, bytes: 0, split_packets: 0, split_bytes: 0 };

    /// Adds another CPU's sums.
    pub const fn add(&mut self, other: &Self) {
        self.packets = self.packets.saturating_add(other.packets);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.split_packets = self.split_packets.saturating_add(other.split_packets);
        self.split_bytes = self.split_bytes.wrapping_add(other.split_bytes);
    }

    /// Returns what the sums stand for; what is not counted here stays 0.
    pub const fn cell(&self) -> Cell {
        Cell {
            packets: self.packets,
            bytes: self.bytes,
            wire_packets: self.packets.saturating_add(self.split_packets),
            wire_bytes: self.bytes.saturating_add_signed(self.split_bytes as i64),
            payload_bytes: 0,
            retransmitted_bytes: 0,
        }
    }
}

/// Where the programs find the fields of the kernel's structures that they read: the name of the constant,
/// the structure, and the path to the member. The agent fills them in from the running kernel's BTF.
pub const OFFSETS: [(&str, &str, &str); 30] = [
    ("SK_BUFF_LEN", "sk_buff", "len"),
    ("SK_BUFF_HEAD", "sk_buff", "head"),
    ("SK_BUFF_DATA", "sk_buff", "data"),
    ("SK_BUFF_END", "sk_buff", "end"),
    ("SK_BUFF_NETWORK_HEADER", "sk_buff", "network_header"),
    ("SK_BUFF_TRANSPORT_HEADER", "sk_buff", "transport_header"),
    ("SK_BUFF_DEV", "sk_buff", "dev"),
    ("SK_BUFF_IIF", "sk_buff", "skb_iif"),
    ("SHARED_INFO_GSO_SIZE", "skb_shared_info", "gso_size"),
    ("NET_DEVICE_IFINDEX", "net_device", "ifindex"),
    ("NET_DEVICE_NET", "net_device", "nd_net.net"),
    ("NET_INUM", "net", "ns.inum"),
    ("SOCK_FAMILY", "sock_common", "skc_family"),
    ("SOCK_STATE", "sock_common", "skc_state"),
    ("SOCK_DPORT", "sock_common", "skc_dport"),
    ("SOCK_DADDR", "sock_common", "skc_daddr"),
    ("SOCK_RCV_SADDR", "sock_common", "skc_rcv_saddr"),
    ("SOCK_V6_DADDR", "sock_common", "skc_v6_daddr"),
    ("SOCK_V6_RCV_SADDR", "sock_common", "skc_v6_rcv_saddr"),
    ("SOCK_NET", "sock_common", "skc_net.net"),
    ("SOCK_PROTOCOL", "sock", "sk_protocol"),
    ("SOCK_CGROUP", "sock", "sk_cgrp_data.cgroup"),
    ("INET_SPORT", "inet_sock", "inet_sport"),
    ("CGROUP_LEVEL", "cgroup", "level"),
    ("CGROUP_ANCESTORS", "cgroup", "ancestors"),
    ("CGROUP_KN", "cgroup", "kn"),
    ("KERNFS_ID", "kernfs_node", "id"),
    ("TIME_WAIT_RCV_NXT", "sock_common", "skc_tw_rcv_nxt"),
    ("TIME_WAIT_TS_RECENT", "tcp_timewait_sock", "tw_ts_recent"),
    ("TIME_WAIT_LAST_ACK", "tcp_timewait_sock", "tw_last_oow_ack_time"),
];

/// One traced packet (`--trace-packets`), as it passes the ring buffer `PACKET_RECORDS`.
///
/// Addresses in network byte order, an IPv4 address in the first four bytes; everything else in the
/// host's. What could not be read is 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketRecord {
    /// Source address of the IP header.
    pub source: [u8; 16],
    /// Destination address of the IP header.
    pub destination: [u8; 16],
    /// Number of the interface in the socket's network namespace.
    pub ifindex: u32,
    /// Payload bytes per segment; 0 if not segmented.
    pub gso_size: u32,
    /// As in [`Cell`].
    pub bytes: u32,
    /// As in [`Cell`].
    pub payload_bytes: u32,
    /// As in [`Cell`].
    pub wire_packets: u32,
    /// As in [`Cell`].
    pub wire_bytes: u32,
    /// Source port of the transport header.
    pub source_port: u16,
    /// Destination port of the transport header.
    pub destination_port: u16,
    /// [`INGRESS`] or [`EGRESS`].
    pub direction: u8,
    /// [`IPV4`] or [`IPV6`].
    pub family: u8,
    /// Upstream port slot of the protocol.
    pub protocol: u8,
    /// Port slot that the packet was counted in.
    pub port_slot: u8,
    /// Flags byte of the TCP header.
    pub tcp_flags: u8,
    /// Zero.
    pub padding: [u8; 3],
}

const _: () = assert!(size_of::<PacketRecord>() == 68 && align_of::<PacketRecord>() == 4);

impl PacketRecord {
    /// Nothing known yet.
    pub const ZERO: Self = Self {
        source: [0; 16],
        destination: [0; 16],
        ifindex: 0,
        gso_size: 0,
        bytes: 0,
        payload_bytes: 0,
        wire_packets: 0,
        wire_bytes: 0,
        source_port: 0,
        destination_port: 0,
        direction: 0,
        family: 0,
        protocol: 0,
        port_slot: 0,
        tcp_flags: 0,
        padding: [0; 3],
    };
}

/// Returns where in an [`InterfaceSums`] the cell of these coordinates lies.
#[inline(always)]
pub const fn cell_index(direction: u32, port_slot: u32, family: u32) -> usize {
    (direction as usize * PORT_SLOTS + port_slot as usize) * FAMILIES + family as usize
}

/// Which slots a table hands out: `first..=last`, and `rest` when all are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotRange {
    /// First slot that can be claimed.
    pub first: u8,
    /// Last slot that can be claimed.
    pub last: u8,
    /// The slot shared by whatever comes later.
    pub rest: u8,
}

/// Returns the slots that `table` hands out. The TCP and the UDP table share theirs, but that the last
/// are kept for TCP: a program that binds many UDP sockets to ports of its choice uses them up.
#[inline(always)]
pub const fn slot_range(table: u32) -> SlotRange {
    match table {
        TABLE_INTERFACE => SlotRange {
            first: INTERFACE_SLOT_FIRST,
            last: INTERFACE_SLOT_OTHER - 1,
            rest: INTERFACE_SLOT_OTHER,
        },
        TABLE_UDP => SlotRange {
            first: PORT_SLOT_FIRST,
            last: PORT_SLOT_LAST_UDP,
            rest: PORT_SLOT_CLIENT_UDP,
        },
        _ => SlotRange {
            first: PORT_SLOT_FIRST,
            last: PORT_SLOT_CLIENT_TCP - 1,
            rest: PORT_SLOT_CLIENT_TCP,
        },
    }
}

/// Returns the key of a slot in the map `SLOT_OWNERS`. Both port tables share one set of slots.
#[inline(always)]
pub const fn slot_key(table: u32, slot: u8) -> u32 {
    let interfaces = (table == TABLE_INTERFACE) as u32;
    interfaces << 8 | slot as u32
}

/// Returns what stands in `SLOT_OWNERS` for a number of a table: `(table, number)` in one `u32`.
#[inline(always)]
pub const fn slot_owner(table: u32, number: u16) -> u32 {
    table << 16 | number as u32
}

/// Takes apart what [`slot_owner`] made: `(table, number)`.
#[inline(always)]
pub const fn owner_parts(owner: u32) -> (u32, u16) {
    (owner >> 16, owner as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_coordinate_has_a_cell_of_its_own() {
        let mut seen = vec![false; CELLS_PER_INTERFACE];
        for direction in [INGRESS, EGRESS] {
            for port_slot in 0..PORT_SLOTS as u32 {
                for family in [IPV4, IPV6] {
                    let index = cell_index(direction, port_slot, family);
                    assert!(!seen[index], "cell {index} is addressed twice");
                    seen[index] = true;
                }
            }
        }
        assert!(seen.iter().all(|seen| *seen));
    }

    #[test]
    fn only_a_split_packet_is_more_on_the_wire_than_at_the_hook() {
        let ordinary = Sums { packets: 3, bytes: 4500, payload_bytes: 4344, ..Sums::default() };
        let Cell { wire_packets, wire_bytes, .. } = ordinary.cell();
        assert_eq!((wire_packets, wire_bytes), (3, 4500));
        // One super-packet of 45 segments with headers of 52 bytes, and one that lost 8 bytes whole.
        let split = Sums { packets: 2, bytes: 65_212 + 108, split_packets: 44, ..Sums::default() };
        let split = Sums { split_bytes: (44 * 52_u64).wrapping_sub(8), ..split };
        let Cell { wire_packets, wire_bytes, .. } = split.cell();
        assert_eq!((wire_packets, wire_bytes), (46, 45 * 1500 + 100));
    }

    #[test]
    fn port_and_interface_slots_do_not_share_owner_keys() {
        assert_ne!(slot_key(TABLE_TCP, 5), slot_key(TABLE_INTERFACE, 5));
        // One set of slots for both protocols, told apart by the owner.
        assert_eq!(slot_key(TABLE_TCP, 5), slot_key(TABLE_UDP, 5));
        assert_eq!(owner_parts(slot_owner(TABLE_UDP, 65_535)), (TABLE_UDP, 65_535));
    }
}
