//! Packets that the kernel exchanges for the target without its socket: they pass no hook of a cgroup.
//!
//! Late packets to a connection that is over, or to a port that nobody has, are freed by the kernel with
//! a reason; it answers some of them. Both are rare, and both have a tracepoint: an ordinary packet pays
//! nothing for being told apart here. Whose packet it was tells [`crate::whose`]; what is nobody's is counted
//! apart.

use core::mem::offset_of;

use aya_ebpf::{
    Global,
    helpers::generated::bpf_jiffies64,
    macros::{btf_tracepoint, map},
    maps::{Array, PerCpuArray},
    programs::BtfTracePointContext,
};
use traffic_ebpf::{
    ANSWERED_ELEMENTS, ANSWERED_FOLLOWS, ANSWERED_SEEN, ANSWERED_UNATTRIBUTED, CELLS_PER_INTERFACE,
    Connection, EGRESS, INGRESS, INTERFACE_SLOTS, IPV4, IPV6, InterfaceSums,
    PORT_SLOT_UPSTREAM_ICMP, PORT_SLOT_UPSTREAM_TCP, PORT_SLOT_UPSTREAM_UDP, Sums, cell_index,
    wire,
};

use crate::headers::{IPV4_HEADER, IPV6_HEADER, TCP, TCP_DATA_OFFSET, TCP_FLAGS, UDP, UDP_HEADER};
use crate::program::{ACK, SYN, add, masked, slot_of_interface, tables};
use crate::structures::*;
use crate::whose::{
    PORT_REMEMBERED_NS, REMEMBERED_NS, client_slot, in_force, is_in_target, is_ours, pointer,
    remembered, udp_port,
};

/// `SKB_DROP_REASON_NO_SOCKET` of the running kernel.
#[unsafe(no_mangle)]
static REASON_NO_SOCKET: Global<u32> = Global::new(0);

/// Drops of a packet for a TIME_WAIT socket before that has looked at it.
#[unsafe(no_mangle)]
static REASON_TCP_CSUM: Global<u32> = Global::new(0);
/// Likewise.
#[unsafe(no_mangle)]
static REASON_XFRM_POLICY: Global<u32> = Global::new(0);

/// Whether an IPv4 reset for a full socket passes the hook: since 6.13, when it began to carry that socket.
/// An IPv6 one carries it too, but is sent in the name of another, and the hook wants them to be the same.
/// Source: `__cgroup_bpf_run_filter_skb()` and its macro, include/linux/bpf-cgroup.h.
#[unsafe(no_mangle)]
static RESET_HAS_OWNER: Global<u32> = Global::new(0);

/// What was counted here: `ANSWERED_ELEMENTS` x [`InterfaceSums`], shared by all CPUs because it is rare.
#[map]
static ANSWERED: Array<InterfaceSums> = Array::with_max_entries(ANSWERED_ELEMENTS as u32, 0);

/// What this CPU did last: the events of one packet come one after the other.
#[map]
static LAST: PerCpuArray<Last> = PerCpuArray::with_max_entries(1, 0);

#[repr(C)]
struct Last {
    /// The packet that was answered by a reset.
    reset: u64,
    /// The packet that was answered by an ICMP error.
    icmp: u64,
    /// The socket that sent an acknowledgement which it may not repeat at once.
    acknowledged: u64,
    /// When, in the kernel's ticks.
    at: u64,
}

/// Source: include/net/tcp_states.h.
const TCP_TIME_WAIT: u8 = 6;

// Flags of TCP. Source: RFC 9293, section 3.1.
const FIN: u8 = 1;
const RST: u8 = 4;

/// Source: include/uapi/linux/icmp.h.
const ICMP_DEST_UNREACH: i32 = 3;
const ICMP_PORT_UNREACH: i32 = 3;
const ICMP_HEADER: u32 = 8;
/// An ICMP error is no longer than this. Source: RFC 1812, section 4.3.2.3, and `icmp_send()`.
const ICMP_LONGEST: u32 = 576;
const TCP_HEADER: u32 = 20;
/// Source: `TCPOLEN_TSTAMP_ALIGNED`, include/net/tcp.h.
const TCP_TIMESTAMPS: u32 = 12;

/// The kernel frees a packet that it could not deliver.
#[btf_tracepoint(function = "kfree_skb")]
pub fn count_dropped(ctx: BtfTracePointContext) -> i32 {
    let (skb, reason, sk): (u64, u32, u64) = (pointer(&ctx, 0), ctx.arg(2), pointer(&ctx, 3));
    // A full socket, or one that was being made: the hook has seen the packet.
    let time_wait = sk != 0 && field::<u8>(sk, SOCK_STATE.load()) == TCP_TIME_WAIT;
    if (!time_wait && reason != REASON_NO_SOCKET.load()) || !in_force() {
        return 0;
    }
    let known = if time_wait { Some(TCP) } else { None };
    let Some(packet) = Packet::read(skb, sk, known) else { return 0 };
    let slot = packet.slot();
    let next = if time_wait { Some(field(sk, TIME_WAIT_RCV_NXT.load())) } else { None };
    packet.count(slot, ANSWERED_SEEN, next);
    let Some(last) = LAST.get_ptr_mut(0) else { return 0 };
    // SAFETY: a live value, of this CPU alone: packets are handled where nothing interrupts them but what
    // handles none.
    let last = unsafe { &mut *last };
    if time_wait {
        let looked_at = reason != REASON_TCP_CSUM.load() && reason != REASON_XFRM_POLICY.load();
        if looked_at && answered_by_ack(&packet, last, skb, sk) {
            // With timestamps if the connection had them. Source: `tcp_v4_timewait_ack()`.
            let timestamps = match field::<u32>(sk, TIME_WAIT_TS_RECENT.load()) {
                0 => 0,
                _ => TCP_TIMESTAMPS,
            };
            packet.count_answer(slot, ANSWERED_FOLLOWS, TCP_HEADER + timestamps);
        }
    } else if last.icmp == skb {
        last.icmp = 0;
        let quoted = packet.bytes.min(ICMP_LONGEST - IPV4_HEADER as u32 - ICMP_HEADER);
        let slot = Slot { port: PORT_SLOT_UPSTREAM_ICMP, ..slot };
        packet.count_answer(slot, ANSWERED_SEEN, ICMP_HEADER + quoted);
    }
    0
}

/// The kernel answers a packet with a reset.
#[btf_tracepoint(function = "tcp_send_reset")]
pub fn count_reset(ctx: BtfTracePointContext) -> i32 {
    if !in_force() {
        return 0;
    }
    let (sk, skb) = (pointer(&ctx, 0), pointer(&ctx, 1));
    let Some(packet) = Packet::read(skb, sk, Some(TCP)) else { return 0 };
    let mut slot = packet.slot();
    if sk != 0 {
        if field::<u8>(sk, SOCK_STATE.load()) == TCP_TIME_WAIT {
            if let Some(last) = LAST.get_ptr_mut(0) {
                // SAFETY: as in `count_dropped`.
                unsafe { (*last).reset = skb };
            }
        } else if (packet.family == IPV4 && RESET_HAS_OWNER.load() != 0) || !is_in_target(sk) {
            return 0;
        } else {
            slot.attributed = true;
        }
    }
    packet.count_answer(slot, ANSWERED_SEEN, TCP_HEADER);
    0
}

/// The kernel answers a packet with an ICMP error, IPv4 only. So does the firewall, in anybody's name:
/// which it was shows when the packet is freed.
#[btf_tracepoint(function = "icmp_send")]
pub fn note_icmp(ctx: BtfTracePointContext) -> i32 {
    let (skb, kind, code): (u64, i32, i32) = (pointer(&ctx, 0), ctx.arg(1), ctx.arg(2));
    if kind == ICMP_DEST_UNREACH
        && code == ICMP_PORT_UNREACH
        && in_force()
        && let Some(last) = LAST.get_ptr_mut(0)
    {
        // SAFETY: as in `count_dropped`.
        unsafe { (*last).icmp = skb };
    }
    0
}

/// Whether a TIME_WAIT socket acknowledged this packet. No tracepoint tells it: it follows from the packet.
///
/// Data and FINs that are not answered by a reset are always acknowledged. Others are if they are out of the
/// window, and not too soon after the last: the socket keeps the time, in ticks, so of several in one tick
/// it does not show which. A SYN that would begin a new connection, but finds no listener, is acknowledged,
/// too. Source: `tcp_timewait_state_process()`, `tcp_oow_rate_limited()` and `tcp_v4_rcv()`, net/ipv4.
#[inline(always)]
fn answered_by_ack(packet: &Packet, last: &mut Last, skb: u64, sk: u64) -> bool {
    if last.reset == skb {
        last.reset = 0;
        return false;
    }
    if packet.flags & SYN == 0 && (packet.payload != 0 || packet.flags & FIN != 0) {
        return packet.flags & RST == 0;
    }
    let next: u32 = field(sk, TIME_WAIT_RCV_NXT.load());
    let is_new = packet.sequence.wrapping_sub(next) as i32 > 0;
    if packet.flags & (SYN | ACK | RST) == SYN && is_new {
        return true;
    }
    // SAFETY: takes nothing.
    let now = unsafe { bpf_jiffies64() };
    let acknowledged: u32 = field(sk, TIME_WAIT_LAST_ACK.load());
    if acknowledged == 0 || acknowledged != now as u32 || (last.acknowledged, last.at) == (sk, now)
    {
        return false;
    }
    (last.acknowledged, last.at) = (sk, now);
    true
}

/// Where an answered packet is counted.
#[derive(Clone, Copy)]
struct Slot {
    port: u8,
    attributed: bool,
}

/// What is known of a packet to the host.
struct Packet {
    family: u32,
    protocol: u8,
    bytes: u32,
    l3_bytes: u32,
    l4_bytes: u32,
    payload: u32,
    gso_size: u32,
    flags: u8,
    sequence: u32,
    ifindex: u32,
    connection: Connection,
}

impl Packet {
    /// Reads the headers of a packet that has come as far as its transport protocol, if that is TCP or UDP
    /// and it came in a namespace of the target. `sk` is its socket, or 0; `known` its protocol, if known.
    #[inline(always)]
    fn read(skb: u64, sk: u64, known: Option<u8>) -> Option<Self> {
        let device: u64 = field(skb, SK_BUFF_DEV.load());
        // TCP takes the device off a packet that it gives to a full socket. Source: `tcp_v4_rcv()`.
        let (namespace, ifindex) = if device != 0 {
            let namespace = field(field(device, NET_DEVICE_NET.load()), NET_INUM.load());
            (namespace, field(device, NET_DEVICE_IFINDEX.load()))
        } else {
            (namespace_of_socket(sk), field(skb, SK_BUFF_IIF.load()))
        };
        if !is_ours(namespace) {
            return None;
        }
        let head: u64 = field(skb, SK_BUFF_HEAD.load());
        let l3 = u64::from(field::<u16>(skb, SK_BUFF_NETWORK_HEADER.load()));
        let l4 = u64::from(field::<u16>(skb, SK_BUFF_TRANSPORT_HEADER.load()));
        let data: u64 = field(skb, SK_BUFF_DATA.load());
        let len: u32 = field(skb, SK_BUFF_LEN.load());
        let bytes = len.wrapping_add(data.wrapping_sub(head + l3) as u32);
        let shared_info = head + u64::from(field::<u32>(skb, SK_BUFF_END.load()));
        let gso_size = u32::from(field::<u16>(shared_info, SHARED_INFO_GSO_SIZE.load()));

        let l3_header: [u8; IPV6_HEADER] = field(head + l3, 0);
        let mut connection = Connection { namespace, ..Connection::ZERO };
        let (family, protocol) = match l3_header[0] >> 4 {
            4 => {
                connection.remote[..4].copy_from_slice(&l3_header[12..16]);
                connection.local[..4].copy_from_slice(&l3_header[16..20]);
                (IPV4, l3_header[9])
            }
            6 => {
                connection.remote.copy_from_slice(&l3_header[8..24]);
                connection.local.copy_from_slice(&l3_header[24..40]);
                let next = known.unwrap_or_else(|| transport_of(head + l3, l3_header[6]));
                (IPV6, next)
            }
            _ => return None,
        };
        let l4_header: [u8; TCP_HEADER as usize] = field(head + l4, 0);
        connection.remote_port = u16::from_be_bytes([l4_header[0], l4_header[1]]);
        connection.local_port = u16::from_be_bytes([l4_header[2], l4_header[3]]);
        let l3_bytes = (l4 - l3) as u32;
        connection.protocol = u32::from(protocol);
        let (protocol, l4_bytes, flags) = match protocol {
            TCP => {
                let length = u32::from(l4_header[TCP_DATA_OFFSET] >> 4) * 4;
                (PORT_SLOT_UPSTREAM_TCP, length, l4_header[TCP_FLAGS as usize])
            }
            UDP => (PORT_SLOT_UPSTREAM_UDP, UDP_HEADER as u32, 0),
            _ => return None,
        };
        Some(Self {
            family,
            protocol,
            bytes,
            l3_bytes,
            l4_bytes,
            payload: bytes.saturating_sub(l3_bytes + l4_bytes),
            gso_size,
            flags,
            sequence: u32::from_be_bytes([l4_header[4], l4_header[5], l4_header[6], l4_header[7]]),
            ifindex,
            connection,
        })
    }

    /// Whose packet it is.
    #[inline(always)]
    fn slot(&self) -> Slot {
        let own = |port| Slot { port, attributed: true };
        if let Some(slot) = client_slot(self.protocol, self.connection.local_port) {
            return own(slot);
        }
        if let Some(slot) = remembered(&self.connection, REMEMBERED_NS) {
            return own(slot);
        }
        if self.protocol == PORT_SLOT_UPSTREAM_UDP {
            let port = udp_port(self.connection.namespace, self.connection.local_port);
            if let Some(slot) = remembered(&port, PORT_REMEMBERED_NS) {
                return own(slot);
            }
        }
        Slot { port: self.protocol, attributed: false }
    }

    /// Counts the packet itself. `next`: the sequence number that its TIME_WAIT socket expects, before which
    /// everything was received.
    #[inline(always)]
    fn count(&self, slot: Slot, kind: usize, next: Option<u32>) {
        let Some(cell) = self.cell(slot, kind, INGRESS) else { return };
        add_packet(cell, self.bytes, self.payload);
        let packets = wire::split_packets(u64::from(self.payload), u64::from(self.gso_size));
        if packets != 0 {
            let bytes = packets * u64::from(self.l3_bytes + self.l4_bytes);
            // SAFETY: `cell` lies in a live map value.
            unsafe { add::<{ offset_of!(Sums, split_packets) }>(cell, packets) };
            // SAFETY: as above.
            unsafe { add::<{ offset_of!(Sums, split_bytes) }>(cell, bytes) };
        }
        let before = next.map_or(0, |next| next.wrapping_sub(self.sequence) as i32);
        if before > 0 && self.payload != 0 {
            let again = u64::from(self.payload.min(before as u32));
            // SAFETY: as above.
            unsafe { add::<{ offset_of!(Sums, retransmitted_bytes) }>(cell, again) };
        }
    }

    /// Counts an answer to the packet, with so many bytes behind its IP header. It is taken to leave where
    /// the packet came from.
    #[inline(always)]
    fn count_answer(&self, slot: Slot, kind: usize, l4_bytes: u32) {
        let l3_bytes = if self.family == IPV4 { IPV4_HEADER } else { IPV6_HEADER } as u32;
        let payload = if slot.port == PORT_SLOT_UPSTREAM_ICMP { l4_bytes } else { 0 };
        if let Some(cell) = self.cell(slot, kind, EGRESS) {
            add_packet(cell, l3_bytes + l4_bytes, payload);
        }
    }

    /// Returns the [`Sums`] that the packet, or its answer, is added to.
    #[inline(always)]
    fn cell(&self, slot: Slot, kind: usize, direction: u32) -> Option<*mut u8> {
        // What may be anybody's has one element, so that it takes no slot from the target's interfaces.
        let element = if slot.attributed {
            (kind * INTERFACE_SLOTS) as u32 + slot_of_interface(tables()?, self.ifindex)
        } else {
            ANSWERED_UNATTRIBUTED as u32
        };
        let cells = ANSWERED.get_ptr_mut(element)?;
        let index = cell_index(direction, u32::from(slot.port), self.family);
        let index = masked::<{ CELLS_PER_INTERFACE as u64 - 1 }>(index as u64) as usize;
        // SAFETY: `index` is below `CELLS_PER_INTERFACE`.
        Some(unsafe { cells.cast::<Sums>().add(index) }.cast())
    }
}

/// Adds a packet to a cell that [`Packet::cell`] returned.
#[inline(always)]
fn add_packet(cell: *mut u8, bytes: u32, payload: u32) {
    // SAFETY: `cell` lies in a live map value.
    unsafe { add::<{ offset_of!(Sums, packets) }>(cell, 1) };
    // SAFETY: as above.
    unsafe { add::<{ offset_of!(Sums, bytes) }>(cell, u64::from(bytes)) };
    // SAFETY: as above.
    unsafe { add::<{ offset_of!(Sums, payload_bytes) }>(cell, u64::from(payload)) };
}
