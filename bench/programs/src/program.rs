//! Three pairs of programs: nothing, what systemd counts, and what Android counts.
//!
//! Written for the comparison after how those two work, not copied: what matters is which maps are
//! looked up, and how often something is added.

use core::arch::asm;

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::generated::{bpf_get_socket_cookie, bpf_get_socket_uid},
    macros::{cgroup_skb, map},
    maps::{Array, HashMap},
    programs::SkBuffContext,
};

/// Verdict: the packet goes on.
const PASS: i32 = 1;

const INGRESS: usize = 0;
const EGRESS: usize = 1;

/// Bytes of an Ethernet packet, which Android takes for granted when it counts segments.
const MTU: u32 = 1500;
const IPV4_HEADER: u32 = 20;
const IPV6_HEADER: u32 = 40;
/// A TCP header with timestamps, likewise taken for granted.
const TCP_HEADER: u32 = 32;
/// Source: `ETH_P_IPV6`, include/uapi/linux/if_ether.h.
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Packets and bytes as systemd keeps them: one array per direction, shared by all CPUs.
#[map]
static SHARED_INGRESS: Array<u64> = Array::with_max_entries(2, 0);
#[map]
static SHARED_EGRESS: Array<u64> = Array::with_max_entries(2, 0);

/// What Android keeps per user, tag and interface.
#[repr(C)]
#[derive(Clone, Copy)]
struct Stats {
    packets: [u64; 2],
    bytes: [u64; 2],
}

/// Whose traffic it is.
#[repr(C)]
#[derive(Clone, Copy)]
struct StatsKey {
    uid: u32,
    tag: u32,
    counter_set: u32,
    ifindex: u32,
}

/// A socket's user and tag, by the socket's cookie: filled by an app that tags its sockets.
#[map]
static COOKIE_TAGS: HashMap<u64, [u32; 2]> = HashMap::with_max_entries(10_000, 0);
#[map]
static UID_COUNTER_SETS: HashMap<u32, u32> = HashMap::with_max_entries(2_000, 0);
#[map]
static STATS: HashMap<StatsKey, Stats> = HashMap::with_max_entries(5_000, 0);
#[map]
static UID_STATS: HashMap<u32, Stats> = HashMap::with_max_entries(10_000, 0);

/// Declares what the helpers ask of a program that uses them.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cgroup_skb(ingress)]
pub fn empty_ingress(_: SkBuffContext) -> i32 {
    PASS
}

#[cgroup_skb(egress)]
pub fn empty_egress(_: SkBuffContext) -> i32 {
    PASS
}

#[cgroup_skb(ingress)]
pub fn shared_ingress(ctx: SkBuffContext) -> i32 {
    count_shared(&SHARED_INGRESS, ctx.len());
    PASS
}

#[cgroup_skb(egress)]
pub fn shared_egress(ctx: SkBuffContext) -> i32 {
    count_shared(&SHARED_EGRESS, ctx.len());
    PASS
}

#[cgroup_skb(ingress)]
pub fn android_ingress(ctx: SkBuffContext) -> i32 {
    count_by_user(&ctx, INGRESS);
    PASS
}

#[cgroup_skb(egress)]
pub fn android_egress(ctx: SkBuffContext) -> i32 {
    count_by_user(&ctx, EGRESS);
    PASS
}

/// Two lookups, two adds. Source of the shape: `bpf_firewall_compile_bpf()`, systemd.
#[inline(always)]
fn count_shared(counters: &Array<u64>, bytes: u32) {
    for (index, n) in [(0, 1), (1, u64::from(bytes))] {
        if let Some(counter) = counters.get_ptr_mut(index) {
            // SAFETY: `counter` points to a live map value.
            unsafe { add(counter, n) };
        }
    }
}

/// Whose socket it is, by two helpers and up to four hashes, and segments by a fixed MTU. Source of the
/// shape: `bpf_traffic_account()`, Android's Connectivity module.
#[inline(always)]
fn count_by_user(ctx: &SkBuffContext, direction: usize) {
    let skb = ctx.skb.skb;
    // SAFETY: the kernel hands a valid context to the program.
    let (len, protocol, ifindex) = unsafe { ((*skb).len, (*skb).protocol, (*skb).ifindex) };
    // SAFETY: as above.
    let socket_uid = unsafe { bpf_get_socket_uid(skb) };
    // SAFETY: as above.
    let cookie = unsafe { bpf_get_socket_cookie(skb.cast()) };
    // SAFETY: the value is only read, and at once.
    let [uid, tag] = match unsafe { COOKIE_TAGS.get(cookie) } {
        Some(tagged) => *tagged,
        None => [socket_uid, 0],
    };
    // SAFETY: as above.
    let counter_set = unsafe { UID_COUNTER_SETS.get(uid) }.copied().unwrap_or(0);

    let ipv6 = u16::from_be(protocol as u16) == ETHERTYPE_IPV6;
    let header = if ipv6 { IPV6_HEADER } else { IPV4_HEADER } + TCP_HEADER;
    let (mut packets, mut bytes) = (1, u64::from(len));
    if len > MTU {
        let payload = len - header;
        packets = u64::from(payload.div_ceil(MTU - header));
        bytes = packets * u64::from(header) + u64::from(payload);
    }
    let key = StatsKey { uid, tag, counter_set, ifindex };
    add_stats(&STATS, &key, direction, packets, bytes);
    add_stats(&UID_STATS, &uid, direction, packets, bytes);
}

#[inline(always)]
fn add_stats<K>(map: &HashMap<K, Stats>, key: &K, direction: usize, packets: u64, bytes: u64) {
    let stats = match map.get_ptr_mut(key) {
        Some(stats) => stats,
        None => {
            let zero = Stats { packets: [0; 2], bytes: [0; 2] };
            // Fails if another CPU was faster.
            let _ = map.insert(key, zero, u64::from(BPF_NOEXIST));
            let Some(stats) = map.get_ptr_mut(key) else { return };
            stats
        }
    };
    // SAFETY: `stats` points to a live map value, of which this takes an address.
    let packets_at = unsafe { &raw mut (*stats).packets[direction] };
    // SAFETY: as above.
    let bytes_at = unsafe { &raw mut (*stats).bytes[direction] };
    // SAFETY: in a live map value.
    unsafe { add(packets_at, packets) };
    // SAFETY: in a live map value.
    unsafe { add(bytes_at, bytes) };
}

/// Adds atomically.
///
/// # Safety
///
/// `counter` must lie in a live map value.
#[inline(always)]
unsafe fn add(counter: *mut u64, n: u64) {
    // SAFETY: guaranteed by the caller; map values are aligned to 8 bytes.
    unsafe {
        asm!("lock *(u64 *)({at} + 0) += {n}", at = in(reg) counter, n = in(reg) n, options(nostack))
    };
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}
