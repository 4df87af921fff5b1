//! The host's ledger: one lean instance on the root of the cgroup tree, which counts every packet of every
//! socket under the socket's cgroup, for what the rest of the host used.
//!
//! Cgroups come and go, so here the counters are hashed: two maps, of which one is in use. The agent turns to
//! the other when one fills up, waits until no program is left that knows the first, and takes that apart at
//! its leisure: no counter is ever removed while a packet may be added to it. What finds no place is added
//! to the overflow cell, so no packet is without one.

use core::{ffi::c_void, mem::MaybeUninit, mem::offset_of};

use aya_ebpf::{
    bindings::{__sk_buff, BPF_NOEXIST, bpf_sock},
    btf_maps,
    helpers::generated::{bpf_probe_read_kernel, bpf_sk_fullsock, bpf_skb_cgroup_id},
    macros::{btf_map, cgroup_skb, map},
    maps::{Array, PerCpuArray, PerCpuHashMap},
    programs::SkBuffContext,
};
use traffic_ebpf::{
    EGRESS, HOST_ENTRIES, HOST_NOBODY, HostKey, HostSums, INGRESS, LOOPBACK_IFINDEX,
};

use crate::handshake::delivered_again;
use crate::headers::{Headers, TCP, parse};
use crate::program::{PACKET_LOOPBACK, PASS, add, masked, payload, split};
use crate::structures::{NET_INUM, SOCK_NET, field};

/// How often the agent has turned to the other map: the one in use is that of the lowest bit.
#[map]
static HOST_TURN: Array<u64> = Array::with_max_entries(1, 0);

#[map]
static HOST_EVEN: PerCpuHashMap<HostKey, [HostSums; 2]> =
    PerCpuHashMap::with_max_entries(HOST_ENTRIES, 0);

#[map]
static HOST_ODD: PerCpuHashMap<HostKey, [HostSums; 2]> =
    PerCpuHashMap::with_max_entries(HOST_ENTRIES, 0);

/// What has found no place in a map: one element for each.
#[map]
static HOST_OVERFLOW: PerCpuArray<[HostSums; 2]> = PerCpuArray::with_max_entries(2, 0);

/// As in `InterfaceSums`, of all interfaces.
#[map]
static HOST_HANDSHAKE: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// No program looks into it. When the agent writes a map of maps, the kernel waits until every program has
/// ended that runs at that time. Source: `maybe_wait_bpf_programs()`, kernel/bpf/syscall.c, since 4.20.
#[btf_map]
static HOST_BARRIER: btf_maps::ArrayOfMaps<btf_maps::Array<u64, 1>, 1> =
    btf_maps::ArrayOfMaps::new();

/// What a counter begins with. In memory, because the stack has better use.
static ZERO: [HostSums; 2] = [HostSums::ZERO; 2];

/// Source: include/linux/net.h.
const SOCK_RAW: u32 = 3;
/// Source: include/net/tcp_states.h.
const TCP_CLOSE: u32 = 7;
/// The beginning of a socket that is read at once; its namespace is at 48 in all kernels so far.
const SOCKET_BYTES: usize = 64;

#[cgroup_skb(ingress)]
pub fn count_host_ingress(ctx: SkBuffContext) -> i32 {
    count(ctx.skb.skb, INGRESS);
    PASS
}

#[cgroup_skb(egress)]
pub fn count_host_egress(ctx: SkBuffContext) -> i32 {
    count(ctx.skb.skb, EGRESS);
    PASS
}

/// Adds a packet to the counters of its cgroup, namespace and interface.
#[inline(always)]
fn count(skb: *mut __sk_buff, direction: u32) {
    if direction == INGRESS && was_counted(skb) {
        return;
    }
    let key = key(skb, direction);
    // The lookups cannot fail: both maps are arrays, and have these elements.
    let Some(turn) = HOST_TURN.get_ptr(0) else { return };
    // SAFETY: a live value; the agent writes it at once.
    let turn = unsafe { turn.read_volatile() } & 1;
    let map = if turn == 0 { &HOST_EVEN } else { &HOST_ODD };
    let counters = match counters(map, &key) {
        Some(counters) => counters,
        None => match HOST_OVERFLOW.get_ptr_mut(turn as u32) {
            Some(counters) => counters,
            None => return,
        },
    };
    // SAFETY: there are two.
    let sums: *mut u8 = unsafe { counters.cast::<HostSums>().add(direction as usize) }.cast();

    // SAFETY: the kernel hands a valid context to the program.
    let (len, gso_size) = unsafe { (u64::from((*skb).len), u64::from((*skb).gso_size)) };
    // SAFETY: `sums` lies in a live map value.
    unsafe { add::<{ offset_of!(HostSums, packets) }>(sums, 1) };
    // SAFETY: as above.
    unsafe { add::<{ offset_of!(HostSums, bytes) }>(sums, len) };
    // Only a super-packet is on the wire otherwise than here, so nothing else is parsed.
    if gso_size != 0 {
        let headers = parse(skb).unwrap_or_else(|| Headers::unknown(skb));
        let (packets, bytes) = split(headers, payload(len, headers), gso_size);
        // SAFETY: as above.
        unsafe { add::<{ offset_of!(HostSums, split_packets) }>(sums, packets) };
        // SAFETY: as above.
        unsafe { add::<{ offset_of!(HostSums, split_bytes) }>(sums, bytes) };
    }
}

/// Whether it is the second time that the kernel delivers an incoming packet.
#[inline(always)]
fn was_counted(skb: *mut __sk_buff) -> bool {
    let Some(handshake) = HOST_HANDSHAKE.get_ptr_mut(0) else { return false };
    let Some(headers) = parse(skb) else { return false };
    delivered_again(skb, handshake, headers)
}

/// Returns the counters of a key, new ones if it has none yet.
#[inline(always)]
fn counters(
    map: &PerCpuHashMap<HostKey, [HostSums; 2]>,
    key: &HostKey,
) -> Option<*mut [HostSums; 2]> {
    if let Some(known) = map.get_ptr_mut(key) {
        return Some(known);
    }
    // Another CPU may be first, hence never over what is there; it fails if the map is full, too.
    let _ = map.insert(key, &ZERO, u64::from(BPF_NOEXIST));
    map.get_ptr_mut(key)
}

/// Whose packet it is, and where.
#[inline(always)]
fn key(skb: *mut __sk_buff, direction: u32) -> HostKey {
    // SAFETY: the kernel hands a valid context to the program.
    let (kind, ifindex, sk) =
        unsafe { ((*skb).pkt_type, (*skb).ifindex, (*skb).__bindgen_anon_2.sk) };
    // A multicast packet of one's own that comes back was never on the wire, whatever its interface.
    let is_echo = direction == INGRESS && kind == PACKET_LOOPBACK;
    let interface = if is_echo { LOOPBACK_IFINDEX } else { ifindex };
    if sk.is_null() {
        return HostKey { cgroup: HOST_NOBODY, namespace: 0, interface };
    }
    let cgroup = if direction == EGRESS && is_the_kernels(sk) {
        HOST_NOBODY
    } else {
        // Also on the way in: there the hook has put the socket into the packet.
        // SAFETY: the context is the packet's. It is 0, `HOST_NOBODY`, for what is no full socket.
        unsafe { bpf_skb_cgroup_id(skb) }
    };
    HostKey { cgroup, namespace: namespace(sk), interface }
}

/// Whether the kernel sends resets and the like through this socket, for nobody in particular: its cgroup is the
/// one that the namespace was made in.
#[inline(always)]
fn is_the_kernels(sk: *mut bpf_sock) -> bool {
    // A raw socket has its protocol for a port. It is asked at once whether it can be one at all.
    // SAFETY: `sk` is not null.
    let (port, state) = unsafe { ((*sk).src_port, (*sk).state) };
    if port != u32::from(TCP) || state != TCP_CLOSE {
        return false;
    }
    // SAFETY: `sk` is a socket of the context.
    let full = unsafe { bpf_sk_fullsock(sk) };
    if full.is_null() {
        return false;
    }
    // SAFETY: `full` is not null.
    let (kind, protocol) = unsafe { ((*full).type_, (*full).protocol) };
    kind == SOCK_RAW && protocol == u32::from(TCP)
}

/// Returns the inode of a socket's namespace, without which an interface's number says nothing; 0 where the
/// running kernel's structures are not known.
#[inline(always)]
fn namespace(sk: *mut bpf_sock) -> u32 {
    if SOCK_NET.load() == 0 {
        return 0;
    }
    let mut socket = MaybeUninit::<[u64; SOCKET_BYTES / 8]>::uninit();
    // Its address as a number would need one more call: so its beginning is read, which the verifier allows.
    // SAFETY: the helper checks the address that it reads itself, and writes `socket` in full.
    unsafe {
        bpf_probe_read_kernel(
            socket.as_mut_ptr().cast(),
            SOCKET_BYTES as u32,
            sk.cast_const().cast::<c_void>(),
        )
    };
    let offset = masked::<{ SOCKET_BYTES as u64 - 8 }>(u64::from(SOCK_NET.load()));
    // SAFETY: written as above; eight bytes inside of it, at a multiple of eight.
    let net = unsafe { socket.as_ptr().cast::<u8>().add(offset as usize).cast::<u64>().read() };
    field(net, NET_INUM.load())
}
