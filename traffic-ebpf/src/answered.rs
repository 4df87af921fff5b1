//! Packets that the kernel exchanges for the target without its socket: they pass no hook of a cgroup.
//!
//! Late packets to a connection that is over, or to a port that nobody has, are freed by the kernel with
//! a reason; it answers some of them. Both are rare, and both have a tracepoint: an ordinary packet pays
//! nothing for being told apart here. Whose packet it was is told by its port, if that is one of the
//! target's listening ports, or by its connection, if a socket of the target had that lately. What is
//! neither is counted apart, and never guessed.

use core::mem::offset_of;

use aya_ebpf::{
    EbpfContext as _, Global,
    helpers::generated::{bpf_get_smp_processor_id, bpf_jiffies64, bpf_ktime_get_ns},
    macros::{btf_tracepoint, cgroup_sock, map},
    maps::{Array, HashMap, LruHashMap, PerCpuArray},
    programs::{BtfTracePointContext, SockContext},
};
use traffic_ebpf::{
    ANSWERED_ELEMENTS, ANSWERED_FOLLOWS, ANSWERED_SEEN, ANSWERED_UNATTRIBUTED, CELLS_PER_INTERFACE,
    Connection, EGRESS, INGRESS, INTERFACE_SLOTS, IPV4, IPV6, InterfaceSums, MOST_CGROUPS,
    MOST_CONNECTIONS, MOST_NAMESPACES, PORT_EXCLUDED, PORT_SLOT_UPSTREAM_ICMP,
    PORT_SLOT_UPSTREAM_TCP, PORT_SLOT_UPSTREAM_UDP, SLOT_NONE, Sums, TABLE_BYTES, cell_index, wire,
};

use crate::headers::{IPV4_HEADER, IPV6_HEADER, TCP, TCP_DATA_OFFSET, TCP_FLAGS, UDP, UDP_HEADER};
use crate::program::{ACK, PASS, SYN, add, masked, port_entry, slot_at, slot_of_interface, tables};
use crate::structures::*;

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

/// Network namespaces of the target, by their inode: when it made a socket there, by the clock that a suspended
/// machine stops; 0 if the agent has found it there. What happens in others is none of its business.
#[map]
static TARGET_NAMESPACES: HashMap<u32, u64> = HashMap::with_max_entries(MOST_NAMESPACES, 0);

/// Cgroups of the target, by id, without those below them.
#[map]
static CGROUPS: HashMap<u64, u32> = HashMap::with_max_entries(MOST_CGROUPS, 0);

/// Connections of the target that are over, or are being closed. The oldest give way.
#[map]
static CONNECTIONS: LruHashMap<Connection, Closed> =
    LruHashMap::with_max_entries(MOST_CONNECTIONS, 0);

/// What this CPU did last: the events of one packet come one after the other.
#[map]
static LAST: PerCpuArray<Last> = PerCpuArray::with_max_entries(1, 0);

/// Which generation of these programs is in force on each CPU. A tracepoint has no way to put one program in
/// another's place: when the agent starts anew, the next generation is attached beside the last, looks away
/// until the agent has written its number here, and from that moment on the last one does.
#[map]
static GENERATIONS: Array<u32> = Array::with_max_entries(1, 0);

/// The generation that these programs are of. A constant at load.
#[unsafe(no_mangle)]
static GENERATION: Global<u32> = Global::new(0);

/// Whether these programs are in force. The agent changes it for the CPU it runs on itself, where it comes
/// before or after an event, and never in the middle of one: so each is counted once.
#[inline(always)]
fn in_force() -> bool {
    // SAFETY: takes nothing.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    GENERATIONS.get(cpu).is_some_and(|generation| *generation == GENERATION.load())
}

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

/// When a connection was closed, and in which port slot it was counted.
#[repr(C)]
#[derive(Clone, Copy)]
struct Closed {
    at_ns: u64,
    slot: u64,
}

/// Longest time after its end in which a packet is taken for one of a connection. TIME_WAIT takes a minute,
/// from its last packet on.
const REMEMBERED_NS: u64 = 300_000_000_000;
/// The same for a UDP port of which nothing is known but its number: another program may have it by then.
const PORT_REMEMBERED_NS: u64 = 30_000_000_000;

// Source: include/net/tcp_states.h.
const TCP_ESTABLISHED: i32 = 1;
const TCP_FIN_WAIT1: i32 = 4;
const TCP_TIME_WAIT: u8 = 6;
const TCP_CLOSE: i32 = 7;

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
/// A cgroup deeper than this is not looked for. (systemd nests services of users six deep.)
const MOST_LEVELS: u32 = 16;

/// Returns an argument that points to a kernel structure, as a number: what the verifier thinks of it,
/// which is not the same in all kernels, and wrong in some, does not matter then.
#[inline(always)]
fn pointer(ctx: &BtfTracePointContext, argument: u32) -> u64 {
    field(ctx.as_ptr() as u64, argument * 8)
}

/// A program of the target makes a socket: from now on packets may come for it in this namespace. The agent
/// finds it a moment later, and a short-lived program never.
#[cgroup_sock(sock_create)]
pub fn note_namespace(ctx: SockContext) -> i32 {
    let namespace = namespace_of_socket(ctx.as_ptr() as u64);
    // SAFETY: takes nothing.
    let now = unsafe { bpf_ktime_get_ns() };
    match TARGET_NAMESPACES.get_ptr_mut(&namespace) {
        // SAFETY: a live value; whichever of two times stays is right.
        Some(noted) => unsafe { noted.write_volatile(now) },
        // It fails if there are too many, of which the agent has then found the more important.
        None => _ = TARGET_NAMESPACES.insert(namespace, now, 0),
    }
    PASS
}

/// A socket leaves a connection, or has left it.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn remember_connection(ctx: BtfTracePointContext) -> i32 {
    let (sk, old, new): (u64, i32, i32) = (pointer(&ctx, 0), ctx.arg(1), ctx.arg(2));
    // Packets can come without a socket as soon as it is closed; and a moment before, when a TIME_WAIT
    // socket has taken its place.
    let closing = old == TCP_ESTABLISHED && new == TCP_FIN_WAIT1;
    if (!closing && new != TCP_CLOSE) || !in_force() {
        return 0;
    }
    let namespace = namespace_of_socket(sk);
    if !is_ours(namespace) || field::<u16>(sk, SOCK_PROTOCOL.load()) != u16::from(TCP) {
        return 0;
    }
    let connection = connection_of(sk, namespace, TCP);
    if is_in_target(sk) {
        remember(&connection, PORT_SLOT_UPSTREAM_TCP);
    } else {
        // The same addresses and ports were another's now.
        let _ = CONNECTIONS.remove(connection);
    }
    0
}

/// A program of the target closes a socket. UDP has no states that a tracepoint would show.
#[cgroup_sock(sock_release)]
pub fn remember_udp(ctx: SockContext) -> i32 {
    let sk = ctx.as_ptr() as u64;
    // SAFETY: the kernel hands a valid context to the program.
    if unsafe { (*ctx.sock).protocol } == u32::from(UDP) {
        let connection = connection_of(sk, namespace_of_socket(sk), UDP);
        // Whom a socket talks to is known if it was connected; else it may be anybody.
        if connection.remote_port != 0 {
            remember(&connection, PORT_SLOT_UPSTREAM_UDP);
        } else if connection.local_port != 0 {
            let port = udp_port(connection.namespace, connection.local_port);
            remember(&port, PORT_SLOT_UPSTREAM_UDP);
        }
    }
    PASS
}

/// Notes that a socket of the target has given up its addresses, and where it was counted.
#[inline(always)]
fn remember(connection: &Connection, upstream: u8) {
    let slot = match client_slot(upstream, connection.local_port) {
        // The port may have left the client leg since its connection was last noted.
        // SAFETY: the value is read at once.
        None => match unsafe { CONNECTIONS.get(connection) } {
            Some(&Closed { slot, .. }) => slot,
            None => u64::from(upstream),
        },
        Some(slot) => u64::from(slot),
    };
    // SAFETY: takes nothing.
    let at_ns = unsafe { bpf_ktime_get_ns() };
    // It fails only for want of memory; then the packets are counted as unattributed.
    let _ = CONNECTIONS.insert(connection, Closed { at_ns, slot }, 0);
}

/// Returns the slot of a listening port of the target. `upstream`: the protocol's upstream slot, which is
/// the number of its table.
#[inline(always)]
fn client_slot(upstream: u8, port: u16) -> Option<u8> {
    let table = u64::from(upstream) * TABLE_BYTES as u64;
    match slot_at(tables()?, port_entry(table, u64::from(port))) {
        SLOT_NONE | PORT_EXCLUDED => None,
        slot => Some(slot),
    }
}

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

/// Returns where a connection was counted that was closed at most so long ago.
#[inline(always)]
fn remembered(connection: &Connection, longest_ns: u64) -> Option<u8> {
    // SAFETY: the value is read at once; a torn one would be a time that is a little off.
    let &Closed { at_ns, slot } = unsafe { CONNECTIONS.get(connection) }?;
    // SAFETY: takes nothing.
    let now = unsafe { bpf_ktime_get_ns() };
    (now.wrapping_sub(at_ns) < longest_ns).then_some(slot as u8)
}

#[inline(always)]
fn is_ours(namespace: u32) -> bool {
    // SAFETY: the value is not read.
    unsafe { TARGET_NAMESPACES.get(&namespace) }.is_some()
}

/// Whether a full socket belongs to a cgroup of the target, or to one below.
#[inline(always)]
fn is_in_target(sk: u64) -> bool {
    let cgroup: u64 = field(sk, SOCK_CGROUP.load());
    let depth = field::<u32>(cgroup, CGROUP_LEVEL.load()).min(MOST_LEVELS - 1);
    for level in 0..MOST_LEVELS {
        if level > depth {
            break;
        }
        let ancestor: u64 = field(cgroup, CGROUP_ANCESTORS.load() + level * 8);
        let id: u64 = field(field(ancestor, CGROUP_KN.load()), KERNFS_ID.load());
        // SAFETY: the value is not read.
        if unsafe { CGROUPS.get(&id) }.is_some() {
            return true;
        }
    }
    false
}

/// The key of a UDP port: whom it talked to does not matter.
#[inline(always)]
fn udp_port(namespace: u32, local_port: u16) -> Connection {
    Connection { namespace, protocol: u32::from(UDP), local_port, ..Connection::ZERO }
}
