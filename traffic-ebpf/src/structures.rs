//! Reading the kernel's own structures, at offsets that the agent looks up in the running kernel's BTF.
//!
//! All of them are read by the helper that cannot fault: the verifier of some kernels takes an argument that
//! can be null for one that cannot.

use core::{ffi::c_void, mem::MaybeUninit};

use aya_ebpf::{Global, helpers::generated::bpf_probe_read_kernel};
use traffic_ebpf::Connection;

use crate::headers::{EXTENSION_HEADERS, Extension, IPV6_HEADER};

/// Declares offsets that the agent fills in at load. Source of the names: `traffic_ebpf::OFFSETS`.
macro_rules! offsets {
    ($($name:ident),* $(,)?) => {
        $(#[unsafe(no_mangle)] pub static $name: Global<u32> = Global::new(0);)*
    };
}

offsets!(
    SK_BUFF_LEN,
    SK_BUFF_HEAD,
    SK_BUFF_DATA,
    SK_BUFF_END,
    SK_BUFF_NETWORK_HEADER,
    SK_BUFF_TRANSPORT_HEADER,
    SK_BUFF_DEV,
    SK_BUFF_IIF,
    SHARED_INFO_GSO_SIZE,
    NET_DEVICE_IFINDEX,
    NET_DEVICE_NET,
    NET_INUM,
    SOCK_FAMILY,
    SOCK_STATE,
    SOCK_DPORT,
    SOCK_DADDR,
    SOCK_RCV_SADDR,
    SOCK_V6_DADDR,
    SOCK_V6_RCV_SADDR,
    SOCK_NET,
    SOCK_PROTOCOL,
    SOCK_CGROUP,
    INET_SPORT,
    CGROUP_LEVEL,
    CGROUP_ANCESTORS,
    CGROUP_KN,
    KERNFS_ID,
    TIME_WAIT_RCV_NXT,
    TIME_WAIT_TS_RECENT,
    TIME_WAIT_LAST_ACK,
);

/// Source: include/linux/socket.h.
const AF_INET6: u16 = 10;
/// Reads a field of a kernel structure, an integer or an array of bytes; what cannot be read is 0.
#[inline(always)]
pub fn field<T: Copy>(base: u64, offset: u32) -> T {
    let at = base.wrapping_add(u64::from(offset));
    let mut value = MaybeUninit::<T>::uninit();
    if size_of::<T>() <= size_of::<u64>() {
        let number = number(at, size_of::<T>() as u32);
        // SAFETY: `T` is no longer than a number, whose first bytes are its lowest.
        return unsafe { (&raw const number).cast::<T>().read() };
    }
    // SAFETY: the helper checks the address that it reads itself, and the one that it writes is `value`'s.
    unsafe {
        bpf_probe_read_kernel(value.as_mut_ptr().cast(), size_of::<T>() as u32, at as *const c_void)
    };
    // SAFETY: written, as in `number`.
    unsafe { value.assume_init() }
}

/// Reads up to eight bytes.
///
/// Without a branch for failure, which the verifier would follow: 0.11 s of loading against 0.02. Out of
/// line, because the compiler gives each value that a helper writes a place of its own, of the 512 bytes
/// that there are.
#[inline(never)]
fn number(at: u64, bytes: u32) -> u64 {
    let mut value = 0u64;
    // SAFETY: the helper checks the address that it reads itself, and writes no more than the value; zeros if
    // it could not read. Source: `bpf_probe_read_kernel_common()`, kernel/trace/bpf_trace.c.
    unsafe { bpf_probe_read_kernel((&raw mut value).cast(), bytes & 15, at as *const c_void) };
    value
}

/// Returns the inode of a socket's network namespace.
#[inline(always)]
pub fn namespace_of_socket(sk: u64) -> u32 {
    field(field(sk, SOCK_NET.load()), NET_INUM.load())
}

/// Returns the addresses and ports of a socket.
#[inline(always)]
pub fn connection_of(sk: u64, namespace: u32, protocol: u8) -> Connection {
    // Closing has given `skc_num` back already; this one stays.
    let local_port = u16::from_be(field(sk, INET_SPORT.load()));
    let remote_port = u16::from_be(field(sk, SOCK_DPORT.load()));
    let mut connection = Connection {
        namespace,
        protocol: u32::from(protocol),
        local_port,
        remote_port,
        ..Connection::ZERO
    };
    let is_v6 = field::<u16>(sk, SOCK_FAMILY.load()) == AF_INET6;
    let remote: [u8; 16] = field(sk, SOCK_V6_DADDR.load());
    if is_v6 && !is_mapped(&remote) {
        connection.remote = remote;
        connection.local = field(sk, SOCK_V6_RCV_SADDR.load());
    } else {
        // An IPv6 socket that carries IPv4 has both.
        let remote: [u8; 4] = field(sk, SOCK_DADDR.load());
        let local: [u8; 4] = field(sk, SOCK_RCV_SADDR.load());
        connection.remote[..4].copy_from_slice(&remote);
        connection.local[..4].copy_from_slice(&local);
    }
    connection
}

/// Whether an address is an IPv4 one in IPv6. Source: RFC 4291, section 2.5.5.2.
#[inline(always)]
fn is_mapped(address: &[u8; 16]) -> bool {
    address[..10] == [0; 10] && address[10] == 0xff && address[11] == 0xff
}

/// Returns the transport protocol behind the extension headers of an IPv6 packet.
#[inline(always)]
pub fn transport_of(l3: u64, first: u8) -> u8 {
    let (mut next, mut at) = (first, l3 + IPV6_HEADER as u64);
    for _ in 0..EXTENSION_HEADERS {
        let Some(extension) = Extension::of(next) else { break };
        let header: [u8; 2] = field(at, 0);
        at += extension.bytes(header[1]);
        next = header[0];
    }
    next
}
