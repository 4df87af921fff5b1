//! The program: every packet that reaches or leaves a socket of the cgroup is added to one cell.
//!
//! It observes, adds and returns PASS. Names, time, policy and rounding are the agent's. All
//! kernel-side `unsafe` is in this file.
//!
//! What an ordinary packet costs: three array lookups, which the verifier inlines, the bounds checks
//! of its headers, and five adds. Claiming a slot and everything that logs is out of line and rare.

use core::{arch::asm, mem::offset_of, ptr};

use aya_ebpf::{
    Global,
    bindings::{
        __sk_buff, BPF_F_CLONE, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_NOEXIST,
        BPF_SK_STORAGE_GET_F_CREATE, bpf_map_type::BPF_MAP_TYPE_SK_STORAGE, bpf_sock,
    },
    helpers::generated::{bpf_sk_fullsock, bpf_sk_storage_get},
    macros::{btf_map, cgroup_skb, cgroup_sock_addr, map},
    maps::{Array, HashMap, PerCpuArray, RingBuf},
    programs::{SkBuffContext, SockAddrContext},
};
use aya_log_ebpf::warn;

use crate::retransmission;
use traffic_ebpf::{
    CELLS_PER_INTERFACE, Cell, EGRESS, INGRESS, INTERFACE_SLOT_LOOPBACK, INTERFACE_SLOT_OTHER,
    INTERFACE_SLOTS, IPV4, IPV6, InterfaceCells, LOOPBACK_IFINDEX, PORT_EXCLUDED,
    PORT_SLOT_UPSTREAM_ICMP, PORT_SLOT_UPSTREAM_OTHER, PORT_SLOT_UPSTREAM_TCP,
    PORT_SLOT_UPSTREAM_UDP, PacketRecord, SLOT_NONE, SLOT_OWNERS_ENTRIES, TABLE_BYTES,
    TABLE_INTERFACE, TABLE_UDP, TABLES, cell_index, slot_key, slot_owner, slot_range, wire,
};

/// Verdict of both hooks, whatever happens: the packet goes on.
pub const PASS: i32 = 1;

// Protocol numbers. Source: IANA "Assigned Internet Protocol Numbers".
const HOP_BY_HOP: u8 = 0;
const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const ICMPV6: u8 = 58;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;

/// Source: `ETH_P_IPV6`, include/uapi/linux/if_ether.h.
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Source: include/uapi/linux/if_packet.h.
const PACKET_LOOPBACK: u32 = 5;

pub const IPV4_HEADER: usize = 20;
pub const IPV6_HEADER: usize = 40;
pub const UDP_HEADER: u32 = 8;
/// Offset of the byte that holds the length of a TCP header.
pub const TCP_DATA_OFFSET: usize = 12;
/// Offset of the byte that holds the flags of a TCP header.
pub const TCP_FLAGS: usize = 13;
/// More extension headers than any packet carries that a socket sends or accepts.
const EXTENSION_HEADERS: u32 = 8;
/// Hop-by-hop option "jumbo payload". Source: RFC 2675.
const OPTION_JUMBO: u8 = 0xc2;
/// Source: `TCP_LISTEN`, include/net/tcp_states.h.
pub const TCP_LISTEN: u32 = 10;

/// Describe each of the first packets. A constant at load: at 0 the verifier removes the branch.
#[unsafe(no_mangle)]
static TRACE_PACKETS: Global<u32> = Global::new(0);

/// Accepted sockets inherit the port slot of their listener, because their own port is the original
/// destination's (TPROXY). A constant at load, as above.
#[unsafe(no_mangle)]
static TRANSPARENT: Global<u32> = Global::new(0);

/// Count TCP payload that is carried again. A constant at load, as above.
#[unsafe(no_mangle)]
static RETRANSMISSIONS: Global<u32> = Global::new(0);

#[map]
static CELLS: PerCpuArray<InterfaceCells> =
    PerCpuArray::with_max_entries(INTERFACE_SLOTS as u32, 0);

/// The slot of a number: one byte table each for TCP ports, UDP ports and interfaces. Mapped into
/// the agent, so that both sides write single bytes and neither undoes the other's.
#[map]
static SLOTS: Array<[u8; TABLE_BYTES]> = Array::with_max_entries(TABLES as u32, BPF_F_MMAPABLE);

/// Who holds a slot. A slot is claimed by inserting its owner where there is none.
#[map]
static SLOT_OWNERS: HashMap<u32, u32> = HashMap::with_max_entries(SLOT_OWNERS_ENTRIES, 0);

/// How many packets were traced. Not exact: CPUs may pass the limit together, and the agent stops
/// printing at N.
#[map]
static TRACED: Array<u64> = Array::with_max_entries(1, 0);

/// The traced packets. One page; the agent asks for more when it traces.
#[map]
static PACKET_RECORDS: RingBuf = RingBuf::with_byte_size(4096, 0);

/// Definition of a socket storage map whose values are cloned from a listener to the sockets it
/// accepts. aya-ebpf's `SkStorage` fixes its flags without that one.
#[repr(C)]
struct InheritedSlots {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const u32,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
}

// SAFETY: the pointers describe the map to the loader; nobody reads through them.
unsafe impl Sync for InheritedSlots {}

/// The port slot that a transparent listener hands down to its accepted sockets.
#[btf_map]
static INHERITED: InheritedSlots = InheritedSlots {
    r#type: ptr::null(),
    key: ptr::null(),
    value: ptr::null(),
    max_entries: ptr::null(),
    map_flags: ptr::null(),
};

/// Declares what `bpf_sk_storage_get` and the other helpers ask of a program that uses them.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cgroup_skb(ingress)]
pub fn count_ingress(ctx: SkBuffContext) -> i32 {
    count(&ctx, INGRESS);
    PASS
}

#[cgroup_skb(egress)]
pub fn count_egress(ctx: SkBuffContext) -> i32 {
    count(&ctx, EGRESS);
    PASS
}

#[cgroup_sock_addr(bind4)]
pub fn announce_bind4(ctx: SockAddrContext) -> i32 {
    announce_bind(&ctx);
    PASS
}

#[cgroup_sock_addr(bind6)]
pub fn announce_bind6(ctx: SockAddrContext) -> i32 {
    announce_bind(&ctx);
    PASS
}

/// What the headers of a packet say.
#[derive(Clone, Copy)]
struct Headers {
    /// [`IPV4`] or [`IPV6`].
    family: u32,
    /// The packet's upstream port slot: its protocol.
    protocol: u8,
    /// Bytes of the IP header with options or extension headers.
    l3_bytes: u32,
    /// Bytes of the transport header.
    l4_bytes: u32,
    /// Bytes that the kernel takes out again before the wire (BIG TCP).
    unsent_bytes: u32,
    /// Sequence number of TCP.
    sequence: u32,
}

#[inline(always)]
fn count(ctx: &SkBuffContext, direction: u32) {
    let skb = ctx.skb.skb;
    // SAFETY: the kernel hands a valid context to the program.
    let (len, gso_size, ifindex) = unsafe { ((*skb).len, (*skb).gso_size, (*skb).ifindex) };

    let headers = match parse(skb, gso_size) {
        Some(headers) => headers,
        None => unparsable(ctx),
    };
    let header_bytes = headers.l3_bytes + headers.l4_bytes;
    let len = len.wrapping_sub(headers.unsent_bytes);
    let payload_bytes = len.saturating_sub(header_bytes);
    let wire_packets = wire::wire_packets(payload_bytes, gso_size);

    let port_slot = port_slot(ctx, direction, &headers);
    let added = Cell {
        packets: 1,
        bytes: u64::from(len + headers.unsent_bytes),
        wire_packets: u64::from(wire_packets),
        wire_bytes: wire::wire_bytes(len, header_bytes, wire_packets),
        payload_bytes: u64::from(payload_bytes),
        retransmitted_bytes: 0,
    };
    // A multicast packet of one's own that comes back was never on the wire, whatever its interface.
    // SAFETY: the kernel hands a valid context to the program.
    let interface_slot = if direction == INGRESS && unsafe { (*skb).pkt_type } == PACKET_LOOPBACK {
        INTERFACE_SLOT_LOOPBACK
    } else {
        interface_slot(ifindex)
    };
    if let Some(cells) = CELLS.get_ptr_mut(u32::from(interface_slot)) {
        let index = cell_index(direction, u32::from(port_slot), headers.family);
        let index = masked::<{ CELLS_PER_INTERFACE as u64 - 1 }>(index as u64) as usize;
        // SAFETY: `index` is below `CELLS_PER_INTERFACE`.
        let cell = unsafe { cells.cast::<Cell>().add(index) };
        // SAFETY: `cell` lies in a live map value.
        unsafe { add(cell, &added) };
        if RETRANSMISSIONS.load() != 0
            && headers.protocol == PORT_SLOT_UPSTREAM_TCP
            && payload_bytes != 0
        {
            let again = retransmission::carried_again(
                ctx.skb.skb,
                direction,
                headers.sequence,
                payload_bytes,
            );
            if again != 0 {
                // SAFETY: `cell` lies in a live map value.
                unsafe { add_to(&raw mut (*cell).retransmitted_bytes, u64::from(again)) };
            }
        }
    }

    if TRACE_PACKETS.load() != 0 {
        trace(ctx, direction, &headers, port_slot, &added);
    }
}

/// Cuts a number down to the bits of `MASK`, so that the verifier knows its limit where it is used.
///
/// It changes no number: each has been made within the limit. But before 6.13 the verifier forgets
/// bounds at a change of byte order, and on 5.10 when a register is put aside on the stack, while the
/// compiler drops or moves a mask that it knows to be one too many.
#[inline(always)]
pub fn masked<const MASK: u64>(number: u64) -> u64 {
    let mut masked = number;
    // SAFETY: changes only the register that it is given.
    unsafe {
        asm!(
            "{masked} &= {mask}",
            masked = inout(reg) masked,
            mask = const MASK,
            options(pure, nomem, nostack)
        );
    }
    masked
}

/// Adds to a cell, undisturbed by an interrupt on the same CPU.
///
/// A per-CPU array alone does not give that: softirq ingress can interrupt process-context egress
/// between its load and its store, and with preemption the loss grows to thousands of packets.
/// `AtomicU64::fetch_add` does not exist on the bpf target; the instruction does.
///
/// # Safety
///
/// `cell` must lie in a live map value.
#[inline(always)]
pub unsafe fn add(cell: *mut Cell, added: &Cell) {
    macro_rules! add_field {
        ($field:ident) => {
            // The loss that it prevents, for a test that shows it.
            #[cfg(feature = "plain-adds")]
            // SAFETY: guaranteed by the caller; the field lies in the cell.
            unsafe {
                *cell.byte_add(offset_of!(Cell, $field)).cast::<u64>() += added.$field
            };
            #[cfg(not(feature = "plain-adds"))]
            // SAFETY: guaranteed by the caller; map values are aligned to 8 bytes.
            unsafe {
                asm!(
                    "lock *(u64 *)({cell} + {offset}) += {value}",
                    cell = in(reg) cell,
                    offset = const offset_of!(Cell, $field),
                    value = in(reg) added.$field,
                    options(nostack),
                )
            }
        };
    }
    add_field!(packets);
    add_field!(bytes);
    add_field!(wire_packets);
    add_field!(wire_bytes);
    add_field!(payload_bytes);
}

/// Adds to one counter, as [`add`] does.
///
/// # Safety
///
/// `counter` must lie in a live map value, aligned to 8 bytes.
#[inline(always)]
unsafe fn add_to(counter: *mut u64, added: u64) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        asm!(
            "lock *(u64 *)({counter} + 0) += {added}",
            counter = in(reg) counter,
            added = in(reg) added,
            options(nostack),
        )
    }
}

/// Reads the headers, or `None` if the packet is too short for what it says it is.
#[inline(always)]
fn parse(skb: *mut __sk_buff, gso_size: u32) -> Option<Headers> {
    // SAFETY: the kernel hands a valid context to the program.
    let (data, end) = unsafe { ((*skb).data as usize, (*skb).data_end as usize) };
    // The shorter of the two headers, so that the version can be read.
    let [version_and_length, ..] = read::<IPV4_HEADER>(data, end)?;
    match version_and_length >> 4 {
        4 => parse_ipv4(data, end),
        6 => parse_ipv6(data, end, gso_size),
        _ => None,
    }
}

#[inline(always)]
fn parse_ipv4(data: usize, end: usize) -> Option<Headers> {
    let header = read::<IPV4_HEADER>(data, end)?;
    let l3 = usize::from(header[0] & 0x0f) * 4;
    if l3 < IPV4_HEADER {
        return None;
    }
    // Only the first fragment has a transport header. (Fragments do not reach a cgroup hook but
    // from raw sockets: it sits before fragmentation and behind reassembly.)
    let fragment_offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
    let protocol = if fragment_offset == 0 { header[9] } else { FRAGMENT };
    transport(data + l3, end, l3, protocol, IPV4, 0)
}

#[inline(always)]
fn parse_ipv6(data: usize, end: usize, gso_size: u32) -> Option<Headers> {
    let next = read::<IPV6_HEADER>(data, end)?[6];
    if next == TCP || next == UDP || next == ICMPV6 {
        return transport(data + IPV6_HEADER, end, IPV6_HEADER, next, IPV6, 0);
    }
    let walked = extension_headers(data, end, next, gso_size);
    if walked == 0 {
        return None;
    }
    // The mask changes nothing: eight headers of at most 2,048 bytes behind the first 40. It bounds the
    // offset for the verifier.
    let l3 = walked as usize & 0x7fff;
    let (next, unsent) = ((walked >> 16) as u8, (walked >> 24) as u8 & 8);
    transport(data + l3 + usize::from(unsent), end, l3, next, IPV6, u32::from(unsent))
}

/// Walks the extension headers: where the transport header begins (bits 0-15), its protocol (16-23),
/// and how many bytes before it never reach the wire (24-31). 0 if the packet is too short.
///
/// Out of line, and its result in one scalar, because the verifier follows every way through it with
/// all that comes after: 0.3 s of loading against 0.02.
#[inline(never)]
fn extension_headers(data: usize, end: usize, mut next: u8, gso_size: u32) -> u64 {
    let mut l3 = IPV6_HEADER;
    for _ in 0..EXTENSION_HEADERS {
        if !matches!(
            next,
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS | MOBILITY
        ) {
            break;
        }
        let Some(header) = read::<8>(data + l3, end) else { return 0 };
        let units = usize::from(header[1]);
        // The kernel puts a hop-by-hop jumbo header into super-packets above 64 kB and takes it out
        // before the wire. Source: `ipv6_hopopt_jumbo_remove()`, include/net/ipv6.h, since 5.19.
        if next == HOP_BY_HOP && units == 0 && header[2] == OPTION_JUMBO && gso_size != 0 {
            return walked(l3, header[0], 8);
        }
        if next == FRAGMENT && u16::from_be_bytes([header[2], header[3]]) & 0xfff8 != 0 {
            return walked(l3 + 8, FRAGMENT, 0);
        }
        // Source of the units: RFC 8200, section 4; for AH: RFC 4302, section 2.2.
        l3 += match next {
            FRAGMENT => 8,
            AUTHENTICATION => (units + 2) * 4,
            _ => (units + 1) * 8,
        };
        next = header[0];
    }
    walked(l3, next, 0)
}

#[inline(always)]
fn walked(l3: usize, next: u8, unsent: u8) -> u64 {
    l3 as u64 | u64::from(next) << 16 | u64::from(unsent) << 24
}

/// Completes the headers by the transport's, which begins at `at`.
///
/// `unsent` bytes stand before it that are part of neither header.
#[inline(always)]
fn transport(
    at: usize,
    end: usize,
    l3: usize,
    protocol: u8,
    family: u32,
    unsent: u32,
) -> Option<Headers> {
    let mut sequence = 0;
    let (protocol, l4_bytes) = match protocol {
        TCP => {
            let header = read::<{ TCP_DATA_OFFSET + 1 }>(at, end)?;
            sequence = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
            (PORT_SLOT_UPSTREAM_TCP, u32::from(header[TCP_DATA_OFFSET] >> 4) * 4)
        }
        UDP => (PORT_SLOT_UPSTREAM_UDP, UDP_HEADER),
        ICMP | ICMPV6 => (PORT_SLOT_UPSTREAM_ICMP, 0),
        _ => (PORT_SLOT_UPSTREAM_OTHER, 0),
    };
    Some(Headers {
        family,
        protocol,
        l3_bytes: l3 as u32,
        l4_bytes,
        unsent_bytes: unsent,
        sequence,
    })
}

/// Returns the `N` bytes of the packet at an address, or `None` if its linear part ends before.
///
/// One check for a whole header: the verifier learns nothing from a check of a single byte.
#[inline(always)]
fn read<'a, const N: usize>(at: usize, end: usize) -> Option<&'a [u8; N]> {
    if at + N > end {
        return None;
    }
    // SAFETY: inside the packet, as just checked; bytes have no alignment.
    Some(unsafe { &*(at as *const [u8; N]) })
}

/// What should never happen: the packet is counted with its length, but nothing is known of it.
#[inline(always)]
fn unparsable(ctx: &SkBuffContext) -> Headers {
    // SAFETY: the kernel hands a valid context to the program.
    let ethertype = u16::from_be(unsafe { (*ctx.skb.skb).protocol } as u16);
    log_unparsable(ctx, ethertype);
    Headers {
        family: if ethertype == ETHERTYPE_IPV6 { IPV6 } else { IPV4 },
        protocol: PORT_SLOT_UPSTREAM_OTHER,
        l3_bytes: 0,
        l4_bytes: 0,
        unsent_bytes: 0,
        sequence: 0,
    }
}

#[inline(never)]
fn log_unparsable(ctx: &SkBuffContext, ethertype: u16) {
    warn!(ctx, "unparsable packet: {} bytes, ethertype 0x{:x}", ctx.len(), ethertype);
}

/// Returns the slot of an interface.
#[inline(always)]
pub fn interface_slot(ifindex: u32) -> u8 {
    if ifindex == LOOPBACK_IFINDEX {
        return INTERFACE_SLOT_LOOPBACK;
    }
    if ifindex >= TABLE_BYTES as u32 {
        return INTERFACE_SLOT_OTHER;
    }
    slot_of(TABLE_INTERFACE, ifindex).unwrap_or_else(|| claim(TABLE_INTERFACE, ifindex) as u8)
}

/// Returns the slot that stands in a table for a number.
#[inline(always)]
pub fn slot_of(table: u32, number: u32) -> Option<u8> {
    let table = SLOTS.get_ptr(table)?;
    let offset = masked::<{ TABLE_BYTES as u64 - 1 }>(u64::from(number)) as usize;
    // SAFETY: `offset` is inside of the table.
    let slot = unsafe { table.cast::<u8>().add(offset).read_volatile() };
    (slot != SLOT_NONE).then_some(slot)
}

/// Returns the port slot of a packet: its listening port's, or its protocol's on the upstream leg.
///
/// The port is the socket's, not the packet's: behind REDIRECT or DNAT the egress header already
/// carries the translated port. Only a socket that has given its port back has none any more: an orphan
/// that the kernel resets, whose reset still passes the hook. For that one the packet is asked.
#[inline(always)]
fn port_slot(ctx: &SkBuffContext, direction: u32, headers: &Headers) -> u8 {
    let protocol = headers.protocol;
    if protocol > PORT_SLOT_UPSTREAM_UDP {
        return protocol;
    }
    // SAFETY: the kernel hands a valid context to the program.
    let sk = unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk };
    if sk.is_null() {
        return protocol;
    }
    // SAFETY: `sk` is not null.
    let mut port = unsafe { (*sk).src_port };
    if port == 0 {
        port = port_in_packet(ctx, direction, headers.l3_bytes + headers.unsent_bytes);
    }
    match slot_of(u32::from(protocol), port) {
        Some(PORT_EXCLUDED) => protocol,
        Some(slot) => {
            if TRANSPARENT.load() != 0 {
                hand_down(sk, slot);
            }
            slot
        }
        None => unknown_port(sk, protocol, port),
    }
}

/// Returns the local port that stands in a transport header, 0 if it cannot be read.
#[inline(never)]
fn port_in_packet(ctx: &SkBuffContext, direction: u32, l4: u32) -> u32 {
    let [source, destination] = ctx.load::<[[u8; 2]; 2]>(l4 as usize).unwrap_or_default();
    u32::from(u16::from_be_bytes(if direction == EGRESS { source } else { destination }))
}

/// The port is in no table. A TCP listener shows itself by its state, with the first SYN: so the leg
/// is right from the first packet, before the agent has seen the socket.
#[inline(always)]
fn unknown_port(sk: *mut bpf_sock, protocol: u8, port: u32) -> u8 {
    if protocol == PORT_SLOT_UPSTREAM_TCP {
        // SAFETY: `sk` is not null, as the caller has checked.
        let state = unsafe { (*sk).state };
        if state == TCP_LISTEN {
            let slot = claim(u32::from(protocol), port) as u8;
            if TRANSPARENT.load() != 0 {
                hand_down(sk, slot);
            }
            return slot;
        }
    }
    if TRANSPARENT.load() != 0 { inherited(sk).unwrap_or(protocol) } else { protocol }
}

/// Leaves the slot of a listener in its storage, which the kernel clones to the sockets it accepts.
#[inline(always)]
fn hand_down(sk: *mut bpf_sock, slot: u8) {
    // SAFETY: `sk` is not null, as the callers have checked.
    if unsafe { (*sk).state } != TCP_LISTEN {
        return;
    }
    if let Some(stored) = storage(sk, u64::from(BPF_SK_STORAGE_GET_F_CREATE)) {
        // SAFETY: `stored` points to the live value of this socket.
        unsafe { *stored = u32::from(slot) };
    }
}

/// Returns the slot that this socket inherited from its listener.
#[inline(always)]
fn inherited(sk: *mut bpf_sock) -> Option<u8> {
    // SAFETY: `storage` returns a pointer to a live value.
    storage(sk, 0).map(|stored| unsafe { *stored } as u8)
}

#[inline(always)]
fn storage(sk: *mut bpf_sock, flags: u64) -> Option<*mut u32> {
    // SAFETY: `sk` is a socket of the context.
    let full = unsafe { bpf_sk_fullsock(sk) };
    if full.is_null() {
        return None;
    }
    let map = (&raw const INHERITED).cast_mut().cast();
    // SAFETY: `full` is a full socket, and the map is a socket storage.
    let stored = unsafe { bpf_sk_storage_get(map, full.cast(), ptr::null_mut(), flags) };
    let stored = stored.cast::<u32>();
    (!stored.is_null()).then_some(stored)
}

/// UDP has no listening state. A port that a program chose is one it wants to be reached at; a
/// client's socket gets its port from the kernel and comes here with 0, or not at all.
#[inline(always)]
fn announce_bind(ctx: &SockAddrContext) {
    let address = ctx.sock_addr;
    // SAFETY: the kernel hands a valid context to the program.
    let (protocol, port) = unsafe { ((*address).protocol, (*address).user_port) };
    let port = u32::from(u16::from_be(port as u16));
    if protocol == u32::from(UDP) && port != 0 && slot_of(TABLE_UDP, port).is_none() {
        claim(TABLE_UDP, port);
    }
}

/// Gives a number a slot: the one it had, a free one, or the one for the rest.
///
/// Runs once per port or interface. Another CPU, or the agent, may do the same at the same time: who
/// inserts the owner has the slot, and both write the same byte.
///
/// A global function, because the verifier checks those once, and others anew for every way that leads
/// to them: 0.4 s of loading against 0.02.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn claim(table: u32, number: u32) -> u32 {
    let number = number as u16;
    let range = slot_range(table);
    let owner = slot_owner(table, number);
    let mut found = range.rest;
    for slot in range.first..=range.last {
        let key = slot_key(table, slot);
        // A failed insert means that the slot has an owner: perhaps this one.
        if SLOT_OWNERS.insert(key, owner, u64::from(BPF_NOEXIST)).is_ok() {
            found = slot;
            break;
        }
        // SAFETY: owners are never removed, so the value cannot become another's.
        if unsafe { SLOT_OWNERS.get(key) } == Some(&owner) {
            found = slot;
            break;
        }
    }
    if let Some(bytes) = SLOTS.get_ptr_mut(table) {
        // SAFETY: a `u16` is an index into a table of 65,536 bytes.
        unsafe { bytes.cast::<u8>().add(usize::from(number)).write_volatile(found) };
    }
    u32::from(found)
}

/// Hands one packet's description to the agent, while fewer than [`TRACE_PACKETS`] were.
#[inline(never)]
fn trace(ctx: &SkBuffContext, direction: u32, headers: &Headers, port_slot: u8, added: &Cell) {
    let Some(traced) = TRACED.get_ptr_mut(0) else { return };
    // SAFETY: `traced` points to a live map value.
    if unsafe { traced.read_volatile() } >= u64::from(TRACE_PACKETS.load()) {
        return;
    }
    // SAFETY: `traced` points to a live map value.
    unsafe { add_to(traced, 1) };

    let skb = ctx.skb.skb;
    // SAFETY: the kernel hands a valid context to the program.
    let (ifindex, gso_size) = unsafe { ((*skb).ifindex, (*skb).gso_size) };
    let mut record = PacketRecord {
        ifindex,
        gso_size,
        bytes: added.bytes as u32,
        payload_bytes: added.payload_bytes as u32,
        wire_packets: added.wire_packets as u32,
        // What overflows 32 bits has more segments than any packet.
        wire_bytes: added.wire_bytes as u32,
        direction: direction as u8,
        family: headers.family as u8,
        protocol: headers.protocol,
        port_slot,
        ..PacketRecord::ZERO
    };
    // What cannot be read stays 0: the record is for people, the cells have the numbers.
    if headers.family == IPV4 {
        let addresses: [[u8; 4]; 2] = ctx.load(12).unwrap_or_default();
        record.source[..4].copy_from_slice(&addresses[0]);
        record.destination[..4].copy_from_slice(&addresses[1]);
    } else {
        record.source = ctx.load(8).unwrap_or_default();
        record.destination = ctx.load(24).unwrap_or_default();
    }
    let l4 = (headers.l3_bytes + headers.unsent_bytes) as usize;
    if headers.protocol <= PORT_SLOT_UPSTREAM_UDP {
        let ports: [[u8; 2]; 2] = ctx.load(l4).unwrap_or_default();
        record.source_port = u16::from_be_bytes(ports[0]);
        record.destination_port = u16::from_be_bytes(ports[1]);
    }
    if headers.protocol == PORT_SLOT_UPSTREAM_TCP {
        record.tcp_flags = ctx.load(l4 + TCP_FLAGS).unwrap_or_default();
    }
    // A full buffer loses lines, not counts.
    let _ = PACKET_RECORDS.output::<PacketRecord>(&record, 0);
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}
