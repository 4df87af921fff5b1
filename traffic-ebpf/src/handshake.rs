//! The last packet of a handshake, which the kernel can deliver twice.

use core::{ffi::c_void, mem::MaybeUninit};

use aya_ebpf::{Global, bindings::__sk_buff, helpers::generated::bpf_probe_read_kernel};
use traffic_ebpf::PORT_SLOT_UPSTREAM_TCP;

use crate::headers::{Headers, TCP_FLAGS, read_transport};
use crate::program::{ACK, SYN, TCP_LISTEN, TCP_SEQUENCE};

/// Whether packets may be asked what TCP has left in them. A constant at load, because a kernel that is locked
/// down for confidentiality refuses programs that read its memory.
#[unsafe(no_mangle)]
static DELIVERED_AGAIN: Global<u32> = Global::new(0);

/// Whether an incoming packet is one that passed just before.
///
/// A packet that is to complete a handshake passes on the listener. When another CPU makes a socket of the
/// request at the same moment, the kernel takes it back and delivers it again, to that socket: the hook sees
/// it twice. Source: `req_stolen` in `tcp_v4_rcv()`, net/ipv4/tcp_ipv4.c, and likewise for IPv6. (Now and then to the
/// listener once more: a lookup can miss a socket that is just taking the request's place.)
///
/// `handshake`: this CPU's and interface's; between the two nothing else passes there.
#[inline(always)]
pub fn delivered_again(skb: *mut __sk_buff, handshake: *mut u64, headers: Headers) -> bool {
    // SAFETY: the kernel hands a valid context to the program.
    let sk = unsafe { (*skb).__bindgen_anon_2.sk };
    if DELIVERED_AGAIN.load() == 0
        || headers.protocol() != u64::from(PORT_SLOT_UPSTREAM_TCP)
        || sk.is_null()
    {
        return false;
    }
    // SAFETY: `sk` is not null; `handshake` lies in a live map value.
    let (state, before) = unsafe { ((*sk).state, handshake.read_volatile()) };
    if state != TCP_LISTEN && before == 0 {
        return false;
    }
    is_again(skb, handshake, headers, u64::from(state == TCP_LISTEN)) != 0
}

/// Runs at the end of a handshake only.
#[inline(never)]
fn is_again(skb: *mut __sk_buff, handshake: *mut u64, headers: Headers, on_listener: u64) -> u64 {
    // What follows the ports: numbers, flags, window and checksum.
    let Some(fields) = read_transport::<16>(skb, headers, TCP_SEQUENCE) else { return 0 };
    let [low, high] =
        [0, 8].map(|at| u64::from_ne_bytes(core::array::from_fn(|index| fields[at + index])));
    // SAFETY: the kernel hands a valid context to the program.
    let fingerprint = low ^ high.wrapping_add(u64::from(unsafe { (*skb).len }));
    let flags = fields[(TCP_FLAGS - TCP_SEQUENCE) as usize];
    // A SYN that acknowledges is wrong there, and delivered again, to the listener.
    let completes = on_listener != 0 && flags & (SYN | ACK) != SYN;
    // SAFETY: `handshake` lies in a live map value.
    let before = unsafe { handshake.read_volatile() };
    // SAFETY: as above.
    unsafe { handshake.write_volatile(if completes { fingerprint } else { 0 }) };
    // Another packet may say the same, as when a peer acknowledges twice.
    u64::from(before == fingerprint && was_looked_at(skb))
}

/// Whether TCP has looked at this very packet before, and given it back: then a copy of what IP has noted in it
/// stands behind that. In any other packet there is nothing, or something else.
///
/// Source: `tcp_v4_fill_cb()` and `tcp_v4_restore_cb()`, net/ipv4/tcp_ipv4.c; `struct tcp_skb_cb`, include/net/tcp.h;
/// `struct sk_buff`, include/linux/skbuff.h: all at these places in Linux 5.10 to 6.18. Where they are not, a packet
/// is counted twice that is delivered twice.
#[inline(always)]
fn was_looked_at(skb: *mut __sk_buff) -> bool {
    const BYTES: usize = 72;
    /// `cb` of the packet: begins with the number of the interface that it came by.
    const NOTED: usize = 40;
    /// `header` in it.
    const COPY: usize = NOTED + 24;
    let mut packet = MaybeUninit::<[u64; BYTES / 8]>::uninit();
    // SAFETY: the helper checks the address that it reads itself, and writes `packet` in full.
    unsafe {
        bpf_probe_read_kernel(
            packet.as_mut_ptr().cast(),
            BYTES as u32,
            skb.cast_const().cast::<c_void>(),
        )
    };
    // SAFETY: written as above.
    let packet = unsafe { packet.assume_init() };
    packet[NOTED / 8] != 0 && packet[NOTED / 8] == packet[COPY / 8]
}
