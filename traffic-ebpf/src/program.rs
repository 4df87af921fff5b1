//! The program: every packet that reaches or leaves a socket of the cgroup is added to one cell.
//!
//! It observes, adds and returns PASS. Names, time, policy and rounding are the agent's.
//! Kernel-side `unsafe` is in this file and those that it uses.
//!
//! What an ordinary packet costs: two array lookups, which the verifier inlines, two bytes of a table, the
//! bounds checks of its headers, and three adds. Claiming a slot, what is no ordinary packet, and
//! everything that logs is out of line and rare. `cargo xtask bench` says how much it is.

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

use crate::headers::{Headers, TCP_FLAGS, UDP, load_u16, parse, read_transport};
use crate::{handshake::delivered_again, retransmission};
use traffic_ebpf::{
    CELLS_PER_INTERFACE, EGRESS, FAMILIES, INGRESS, INTERFACE_SLOT_LOOPBACK, INTERFACE_SLOT_OTHER,
    INTERFACE_SLOTS, IPV4, InterfaceSums, LOOPBACK_IFINDEX, PORT_EXCLUDED, PORT_SLOT_UPSTREAM_TCP,
    PORT_SLOT_UPSTREAM_UDP, PORT_SLOTS, PacketRecord, SLOT_NONE, SLOT_OWNERS_ENTRIES, SlotRange,
    Sums, TABLE_BYTES, TABLE_INTERFACE, TABLE_TCP, TABLE_UDP, TABLES, cell_index, slot_key,
    slot_owner, slot_range, wire,
};

/// Verdict of both hooks, whatever happens: the packet goes on.
pub const PASS: i32 = 1;

/// Source: include/uapi/linux/if_packet.h.
pub const PACKET_LOOPBACK: u32 = 5;

/// Offset of the sequence number in a TCP header.
pub const TCP_SEQUENCE: u64 = 4;
/// Source: `TCP_LISTEN`, include/net/tcp_states.h.
pub const TCP_LISTEN: u32 = 10;
/// Of the flags of TCP. Source: RFC 9293, section 3.1.
pub const SYN: u8 = 2;
/// Likewise.
pub const ACK: u8 = 16;

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
static CELLS: PerCpuArray<InterfaceSums> = PerCpuArray::with_max_entries(INTERFACE_SLOTS as u32, 0);

/// The slot of a number: one byte table each for TCP ports, UDP ports and interfaces. Mapped into
/// the agent, so that both sides write single bytes and neither undoes the other's.
#[map]
static SLOTS: Array<[u8; TABLES * TABLE_BYTES]> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Who holds a slot. A slot is claimed by inserting its owner where there is none. The agent removes the
/// owner when that was an interface, and is gone.
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

/// Adds a packet to its cell.
///
/// What calls a helper comes first, and leaves one register each: after that, an ordinary packet is
/// parsed and added without a call, so little has to be put aside on the stack.
#[inline(always)]
pub fn count(ctx: &SkBuffContext, direction: u32) {
    let skb = ctx.skb.skb;
    // Neither lookup can fail: both maps are arrays, and have these elements.
    let Some(tables) = tables() else { return };
    let Some(cells) = CELLS.get_ptr_mut(interface_slot(skb, tables, direction)) else { return };

    let headers = headers(skb);
    // As `cell_index` does it, in 64 bits.
    let index = cell_index(direction, 0, 0) as u64 + cell_of(skb, tables, direction, headers);
    let index = masked::<{ CELLS_PER_INTERFACE as u64 - 1 }>(index);
    // SAFETY: `index` is below `CELLS_PER_INTERFACE`.
    let cell = unsafe { cells.cast::<Sums>().add(index as usize) };

    // SAFETY: the kernel hands a valid context to the program.
    let (len, gso_size) = unsafe { (u64::from((*skb).len), u64::from((*skb).gso_size)) };
    let payload_bytes = payload(len, headers);
    // SAFETY: inside of the value.
    let handshake = unsafe { &raw mut (*cells).handshake };
    if direction == INGRESS && delivered_again(skb, handshake, headers) {
        // Its bytes are in the cell. What its connection has received it could not tell the first time.
    } else {
        // SAFETY: `cell` lies in a live map value.
        unsafe { add::<{ offset_of!(Sums, packets) }>(cell.cast(), 1) };
        // SAFETY: as above.
        unsafe { add::<{ offset_of!(Sums, bytes) }>(cell.cast(), len) };
        // SAFETY: as above.
        unsafe { add::<{ offset_of!(Sums, payload_bytes) }>(cell.cast(), payload_bytes) };
        if gso_size != 0 {
            let (packets, bytes) = split(headers, payload_bytes, gso_size);
            // SAFETY: as above.
            unsafe { add::<{ offset_of!(Sums, split_packets) }>(cell.cast(), packets) };
            // SAFETY: as above.
            unsafe { add::<{ offset_of!(Sums, split_bytes) }>(cell.cast(), bytes) };
        }
    }

    if RETRANSMISSIONS.load() != 0
        && headers.protocol() == u64::from(PORT_SLOT_UPSTREAM_TCP)
        && payload_bytes != 0
    {
        let again = carried_again(skb, direction, headers, payload_bytes);
        if again != 0 {
            // SAFETY: as above.
            unsafe { add::<{ offset_of!(Sums, retransmitted_bytes) }>(cell.cast(), again) };
        }
    }
    if TRACE_PACKETS.load() != 0 {
        trace(ctx, direction, index as u32);
    }
}

/// Returns what is behind the headers.
#[inline(always)]
pub fn payload(len: u64, headers: Headers) -> u64 {
    let header_bytes = headers.bytes() + headers.unsent_bytes();
    // Not `saturating_sub`, for which the compiler makes twice as much.
    if len > header_bytes { len - header_bytes } else { 0 }
}

/// Returns by how many packets and bytes a super-packet is more on the wire.
#[inline(always)]
pub fn split(headers: Headers, payload_bytes: u64, gso_size: u64) -> (u64, u64) {
    let packets = wire::split_packets(payload_bytes, gso_size);
    (packets, (packets * headers.bytes()).wrapping_sub(headers.unsent_bytes()))
}

/// Returns how many bytes of a TCP packet's payload were carried before.
#[inline(always)]
fn carried_again(skb: *mut __sk_buff, direction: u32, headers: Headers, payload: u64) -> u64 {
    let Some(&sequence) = read_transport::<4>(skb, headers, TCP_SEQUENCE) else { return 0 };
    let sequence = u32::from_be_bytes(sequence);
    u64::from(retransmission::carried_again(skb, direction, sequence, payload as u32))
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

/// Adds to the counter at an offset, undisturbed by an interrupt on the same CPU.
///
/// A per-CPU array alone does not give that: softirq ingress can interrupt process-context egress
/// between its load and its store, and with preemption the loss grows to thousands of packets.
/// `AtomicU64::fetch_add` does not exist on the bpf target; the instruction does.
///
/// # Safety
///
/// The counter must lie in a live map value, aligned to 8 bytes.
#[inline(always)]
pub unsafe fn add<const OFFSET: usize>(value: *mut u8, added: u64) {
    // The loss that it prevents, for a test that shows it.
    #[cfg(feature = "plain-adds")]
    // SAFETY: guaranteed by the caller.
    unsafe {
        *value.add(OFFSET).cast::<u64>() += added
    };
    #[cfg(not(feature = "plain-adds"))]
    // SAFETY: guaranteed by the caller.
    unsafe {
        asm!(
            "lock *(u64 *)({value} + {offset}) += {added}",
            value = in(reg) value,
            offset = const OFFSET,
            added = in(reg) added,
            options(nostack),
        )
    }
}

/// Reads the headers. What should never happen: of some packet nothing is known but its length.
#[inline(always)]
fn headers(skb: *mut __sk_buff) -> Headers {
    match parse(skb) {
        Some(headers) => headers,
        None => {
            log_unparsable(skb);
            Headers::unknown(skb)
        }
    }
}

/// A global function, as [`claim_in`] is: the verifier follows the formatting but once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn log_unparsable(skb: *mut __sk_buff) -> u32 {
    let ctx = SkBuffContext::new(skb);
    // SAFETY: the kernel hands a valid context to the program.
    let ethertype = u16::from_be(unsafe { (*skb).protocol } as u16);
    warn!(&ctx, "unparsable packet: {} bytes, ethertype 0x{:x}", ctx.len(), ethertype);
    // A global function must return a number.
    0
}

/// Returns the slot of the packet's interface.
#[inline(always)]
fn interface_slot(skb: *mut __sk_buff, tables: *mut u8, direction: u32) -> u32 {
    // A multicast packet of one's own that comes back was never on the wire, whatever its interface.
    // SAFETY: the kernel hands a valid context to the program.
    if direction == INGRESS && unsafe { (*skb).pkt_type } == PACKET_LOOPBACK {
        return u32::from(INTERFACE_SLOT_LOOPBACK);
    }
    // SAFETY: as above.
    slot_of_interface(tables, unsafe { (*skb).ifindex })
}

/// Returns the slot of an interface.
#[inline(always)]
pub fn slot_of_interface(tables: *mut u8, ifindex: u32) -> u32 {
    if ifindex >= TABLE_BYTES as u32 {
        return u32::from(INTERFACE_SLOT_OTHER);
    }
    let entry = interface_entry(u64::from(ifindex));
    match slot_at(tables, entry) {
        SLOT_NONE if ifindex == LOOPBACK_IFINDEX => u32::from(INTERFACE_SLOT_LOOPBACK),
        SLOT_NONE => claim(tables, entry, TABLE_INTERFACE, ifindex),
        slot => u32::from(slot),
    }
}

/// Returns the tables that give the slot of a number.
#[inline(always)]
pub fn tables() -> Option<*mut u8> {
    SLOTS.get_ptr_mut(0).map(<*mut _>::cast)
}

/// Where in the tables a port's byte is. `table`: where its table begins, which is one of the first two.
#[inline(always)]
pub fn port_entry(table: u64, port: u64) -> usize {
    masked::<{ 2 * TABLE_BYTES as u64 - 1 }>(table + port) as usize
}

/// Where in the tables an interface's byte is.
#[inline(always)]
fn interface_entry(ifindex: u64) -> usize {
    let number = masked::<{ TABLE_BYTES as u64 - 1 }>(ifindex) as usize;
    TABLE_INTERFACE as usize * TABLE_BYTES + number
}

/// Returns the slot that stands in the tables.
#[inline(always)]
pub fn slot_at(tables: *mut u8, entry: usize) -> u8 {
    // SAFETY: an entry is inside of the tables, however it was made.
    unsafe { tables.add(entry).read_volatile() }
}

/// Returns the cell of a packet, of the cells of its direction: that of its listening port, or of its
/// protocol on the upstream leg.
///
/// The port is the socket's, not the packet's: behind REDIRECT or DNAT the egress header already
/// carries the translated port. Only a socket that has given its port back has none any more: an orphan
/// that the kernel resets, whose reset still passes the hook. For that one the packet is asked.
#[inline(always)]
fn cell_of(skb: *mut __sk_buff, tables: *mut u8, direction: u32, headers: Headers) -> u64 {
    let upstream = headers.upstream_cell();
    if !headers.has_ports() {
        return upstream;
    }
    // SAFETY: the kernel hands a valid context to the program.
    let sk = unsafe { (*skb).__bindgen_anon_2.sk };
    if sk.is_null() {
        return upstream;
    }
    // SAFETY: `sk` is not null.
    let mut port = u64::from(unsafe { (*sk).src_port });
    if port == 0 {
        port = port_in_packet(skb, direction, headers);
    }
    let entry = port_entry(headers.port_table(), port);
    let slot = match (inherited(sk), slot_at(tables, entry)) {
        (Some(slot), _) => u64::from(slot),
        (None, SLOT_NONE) => unknown_port(sk, tables, entry, headers, port),
        (None, slot) => {
            if TRANSPARENT.load() != 0 {
                hand_down(sk, slot);
            }
            u64::from(slot)
        }
    };
    match slot as u8 {
        SLOT_NONE | PORT_EXCLUDED => upstream,
        _ => slot * FAMILIES as u64 + headers.family(),
    }
}

/// Returns the local port that stands in a transport header, 0 if it cannot be read.
#[inline(always)]
fn port_in_packet(skb: *mut __sk_buff, direction: u32, headers: Headers) -> u64 {
    // Source and destination port are the first four bytes of both protocols.
    let offset = if direction == EGRESS { 0 } else { 2 };
    let Some(port) = read_transport::<2>(skb, headers, offset) else { return 0 };
    // SAFETY: two bytes, as just read.
    let port = unsafe { load_u16::<0>(port.as_ptr()) };
    u64::from(u16::from_be(port as u16))
}

/// The port is in no table. A TCP listener shows itself by its state, with the first SYN: so the leg
/// is right from the first packet, before the agent has seen the socket.
#[inline(always)]
fn unknown_port(
    sk: *mut bpf_sock,
    tables: *mut u8,
    entry: usize,
    headers: Headers,
    port: u64,
) -> u64 {
    // SAFETY: `sk` is not null, as the caller has checked.
    if headers.port_table() == 0 && unsafe { (*sk).state } == TCP_LISTEN {
        let slot = claim(tables, entry, TABLE_TCP, port as u32);
        if TRANSPARENT.load() != 0 {
            hand_down(sk, slot as u8);
        }
        return u64::from(slot);
    }
    u64::from(SLOT_NONE)
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

/// Returns the slot that an accepted socket inherited from its transparent listener. It comes before the
/// socket's own port, which is anybody's, and may be one on which the target listens, too.
#[inline(always)]
fn inherited(sk: *mut bpf_sock) -> Option<u8> {
    // A listener has what it hands down.
    // SAFETY: `sk` is not null, as the caller has checked.
    if TRANSPARENT.load() == 0 || unsafe { (*sk).state } == TCP_LISTEN {
        return None;
    }
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
    if protocol != u32::from(UDP) || port == 0 {
        return;
    }
    let Some(tables) = tables() else { return };
    let entry = port_entry(u64::from(TABLE_UDP) * TABLE_BYTES as u64, u64::from(port));
    if slot_at(tables, entry) == SLOT_NONE {
        claim(tables, entry, TABLE_UDP, port);
    }
}

/// Gives a number a slot: the one it had, a free one, or the one for the rest.
///
/// Runs once per port or interface. Another CPU, or the agent, may do the same at the same time: who
/// inserts the owner has the slot, and both write the same byte. The agent takes a slot from an interface
/// that is gone, and sees to it afterwards that nobody has claimed it for that one in between.
#[inline(always)]
fn claim(tables: *mut u8, entry: usize, table: u32, number: u32) -> u32 {
    let SlotRange { first, last, rest } = slot_range(table);
    let owner = slot_owner(table, number as u16);
    let keys = [slot_key(table, first), slot_key(table, last)].map(u64::from);
    let claimed = claim_in(u64::from(owner), keys[0], keys[1], u64::from(rest));
    // SAFETY: an entry is inside of the tables, however it was made.
    unsafe { tables.add(entry).write_volatile((claimed >> 8) as u8) };
    claimed & 0xff
}

/// Gives an owner the first slot that is free or its own, or `rest`. Returns it twice, in one byte each: that
/// of the packet, and above it what is written into the table.
///
/// A global function, because the verifier checks those once, and others anew for every way that leads
/// to them: 0.4 s of loading against 0.02. For its sake, too, the range is not looked up here, and every
/// way but one leaves the loop: 64 rounds are 1 ms so, and 7 otherwise.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn claim_in(owner: u64, first_key: u64, last_key: u64, rest: u64) -> u32 {
    let owner = owner as u32;
    let mut key = first_key;
    for _ in 0..PORT_SLOTS {
        if key > last_key {
            break;
        }
        let is_free = SLOT_OWNERS.insert(key as u32, owner, u64::from(BPF_NOEXIST)).is_ok();
        if !is_free {
            // The slot has an owner: perhaps this one. If it was removed at this very moment, the next packet
            // tries again; going on from here would double what the verifier has to go through.
            let Some(holder) = SLOT_OWNERS.get_ptr(key as u32) else {
                return u32::from(SLOT_NONE) << 8 | rest as u32;
            };
            // SAFETY: a live map value.
            if unsafe { holder.read_volatile() } != owner {
                key += 1;
                continue;
            }
        }
        // The key of a slot ends in its number.
        return (key & 0xff) as u32 * 0x101;
    }
    rest as u32 * 0x101
}

/// Hands one packet's description to the agent, while fewer than [`TRACE_PACKETS`] were.
#[inline(never)]
fn trace(ctx: &SkBuffContext, direction: u32, index: u32) {
    let Some(traced) = TRACED.get_ptr_mut(0) else { return };
    // SAFETY: `traced` points to a live map value.
    if unsafe { traced.read_volatile() } >= u64::from(TRACE_PACKETS.load()) {
        return;
    }
    // SAFETY: `traced` points to a live map value.
    unsafe { add::<0>(traced.cast(), 1) };

    let skb = ctx.skb.skb;
    // SAFETY: the kernel hands a valid context to the program.
    let (ifindex, gso_size) = unsafe { ((*skb).ifindex, (*skb).gso_size) };
    // Once more, so that nothing has to be kept in memory for a packet that is not traced.
    let headers = parse(skb).unwrap_or_else(|| Headers::unknown(skb));
    // SAFETY: the kernel hands a valid context to the program.
    let len = u64::from(unsafe { (*skb).len });
    let payload_bytes = payload(len, headers);
    let (split_packets, split_bytes) = match gso_size {
        0 => (0, 0),
        _ => split(headers, payload_bytes, u64::from(gso_size)),
    };
    let mut record = PacketRecord {
        ifindex,
        gso_size,
        bytes: len as u32,
        payload_bytes: payload_bytes as u32,
        wire_packets: 1 + split_packets as u32,
        // What overflows 32 bits has more segments than any packet.
        wire_bytes: len.wrapping_add(split_bytes) as u32,
        direction: direction as u8,
        family: headers.family() as u8,
        protocol: headers.protocol() as u8,
        port_slot: (index as usize / FAMILIES % PORT_SLOTS) as u8,
        ..PacketRecord::ZERO
    };
    // What cannot be read stays 0: the record is for people, the cells have the numbers.
    if headers.family() == u64::from(IPV4) {
        let addresses: [[u8; 4]; 2] = ctx.load(12).unwrap_or_default();
        record.source[..4].copy_from_slice(&addresses[0]);
        record.destination[..4].copy_from_slice(&addresses[1]);
    } else {
        record.source = ctx.load(8).unwrap_or_default();
        record.destination = ctx.load(24).unwrap_or_default();
    }
    let l4 = headers.transport() as usize;
    if headers.protocol() <= u64::from(PORT_SLOT_UPSTREAM_UDP) {
        let ports: [[u8; 2]; 2] = ctx.load(l4).unwrap_or_default();
        record.source_port = u16::from_be_bytes(ports[0]);
        record.destination_port = u16::from_be_bytes(ports[1]);
    }
    if headers.protocol() == u64::from(PORT_SLOT_UPSTREAM_TCP) {
        record.tcp_flags = ctx.load(l4 + TCP_FLAGS as usize).unwrap_or_default();
    }
    // A full buffer loses lines, not counts.
    let _ = PACKET_RECORDS.output::<PacketRecord>(&record, 0);
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}
