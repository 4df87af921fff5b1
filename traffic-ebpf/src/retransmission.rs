//! How much of a TCP packet's payload was carried before: sent again, or received again.
//!
//! Egress needs no memory: the socket knows what it has sent. Ingress keeps a few numbers per socket,
//! because the socket itself is behind while packets wait in its backlog.

use core::ptr;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock, bpf_spin_lock},
    btf_maps::SkStorage,
    helpers::generated::{bpf_sk_storage_get, bpf_spin_lock, bpf_spin_unlock, bpf_tcp_sock},
    macros::btf_map,
};
use traffic_ebpf::{EGRESS, sequence::Received};

use crate::program::TCP_LISTEN;

/// What a connection has received. Its packets may come on several CPUs at once, as over a veth, which has
/// a queue for each.
#[repr(C)]
struct Stored {
    lock: bpf_spin_lock,
    received: Received,
}

/// By connection.
#[btf_map]
static RECEIVED: SkStorage<Stored> = SkStorage::new();

/// Returns how many bytes of a TCP packet's payload, which begins at `sequence`, were carried before.
#[inline(always)]
pub fn carried_again(skb: *mut __sk_buff, direction: u32, sequence: u32, payload: u32) -> u32 {
    // SAFETY: the kernel hands a valid context to the program.
    let sk = unsafe { (*skb).__bindgen_anon_2.sk };
    if sk.is_null() {
        return 0;
    }
    if direction == EGRESS {
        sent_again(sk, sequence, payload)
    } else {
        received_again(sk, sequence, payload)
    }
}

/// What lies before `snd_nxt` was sent before: the kernel moves it behind new data only after these have
/// passed the hook. Source: `tcp_write_xmit()`, net/ipv4/tcp_output.c.
#[inline(always)]
fn sent_again(sk: *mut bpf_sock, sequence: u32, payload: u32) -> u32 {
    // SAFETY: `sk` is not null, as the caller has checked.
    let tcp = unsafe { bpf_tcp_sock(sk) };
    if tcp.is_null() {
        return 0;
    }
    // SAFETY: `tcp` is not null, as just checked.
    let next = unsafe { (*tcp).snd_nxt };
    let before = next.wrapping_sub(sequence) as i32;
    if before <= 0 { 0 } else { payload.min(before as u32) }
}

#[inline(always)]
fn received_again(sk: *mut bpf_sock, sequence: u32, payload: u32) -> u32 {
    // SAFETY: `sk` is not null, as the caller has checked.
    if unsafe { (*sk).state } == TCP_LISTEN {
        // Data of a SYN or of the packet that completes a handshake: of no connection yet.
        return 0;
    }
    let map = (&raw const RECEIVED).cast_mut().cast();
    let create = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
    // SAFETY: `sk` is a socket of the context; since 5.10 the helper itself refuses what is no full one.
    let stored = unsafe { bpf_sk_storage_get(map, sk.cast(), ptr::null_mut(), create) };
    let stored = stored.cast::<Stored>();
    if stored.is_null() {
        return 0;
    }
    // SAFETY: `stored` is not null, as just checked: the live value of this socket.
    let (lock, received) = unsafe { (&raw mut (*stored).lock, &raw mut (*stored).received) };
    // SAFETY: as above; what another CPU does at this moment shows when the lock is held.
    let socket = if unsafe { (*received).is_new() } { so_far(sk) } else { None };
    // SAFETY: a lock in a live map value, which this program does not hold.
    unsafe { bpf_spin_lock(lock) };
    // SAFETY: nobody else touches it while the lock is held.
    let again = unsafe {
        if let Some((next, bytes)) = socket {
            (*received).begin(sequence, next, bytes);
        }
        (*received).take(sequence, payload)
    };
    // SAFETY: held since above.
    unsafe { bpf_spin_unlock(lock) };
    again
}

/// What a socket has received before its first packet here: what completed its handshake, and what came
/// before the program was attached. The next number that it expects, and its bytes.
#[inline(always)]
fn so_far(sk: *mut bpf_sock) -> Option<(u32, u64)> {
    // SAFETY: `sk` is not null, as the callers have checked.
    let tcp = unsafe { bpf_tcp_sock(sk) };
    if tcp.is_null() {
        return None;
    }
    // SAFETY: `tcp` is not null, as just checked.
    Some(unsafe { ((*tcp).rcv_nxt, (*tcp).bytes_received) })
}
