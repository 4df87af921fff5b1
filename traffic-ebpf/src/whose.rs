//! Whose a packet without a socket is: by its port, if that is one of the target's listening ports, or by its
//! connection, if a socket of the target had that lately. What is neither is never guessed.

use aya_ebpf::{
    EbpfContext as _, Global,
    helpers::generated::{bpf_get_smp_processor_id, bpf_ktime_get_ns},
    macros::{btf_tracepoint, cgroup_sock, map},
    maps::{Array, HashMap, LruHashMap},
    programs::{BtfTracePointContext, SockContext},
};
use traffic_ebpf::{
    Connection, MOST_CGROUPS, MOST_CONNECTIONS, MOST_NAMESPACES, PORT_EXCLUDED,
    PORT_SLOT_UPSTREAM_TCP, PORT_SLOT_UPSTREAM_UDP, SLOT_NONE, TABLE_BYTES,
};

use crate::headers::{TCP, UDP};
use crate::program::{PASS, port_entry, slot_at, tables};
use crate::structures::*;

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
pub fn in_force() -> bool {
    // SAFETY: takes nothing.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    GENERATIONS.get(cpu).is_some_and(|generation| *generation == GENERATION.load())
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
pub const REMEMBERED_NS: u64 = 300_000_000_000;
/// The same for a UDP port of which nothing is known but its number: another program may have it by then.
pub const PORT_REMEMBERED_NS: u64 = 30_000_000_000;

// Source: include/net/tcp_states.h.
const TCP_ESTABLISHED: i32 = 1;
const TCP_FIN_WAIT1: i32 = 4;
const TCP_CLOSE: i32 = 7;

/// A cgroup deeper than this is not looked for. (systemd nests services of users six deep.)
const MOST_LEVELS: u32 = 16;

/// Returns an argument that points to a kernel structure, as a number: what the verifier thinks of it,
/// which is not the same in all kernels, and wrong in some, does not matter then.
#[inline(always)]
pub fn pointer(ctx: &BtfTracePointContext, argument: u32) -> u64 {
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
pub fn client_slot(upstream: u8, port: u16) -> Option<u8> {
    let table = u64::from(upstream) * TABLE_BYTES as u64;
    match slot_at(tables()?, port_entry(table, u64::from(port))) {
        SLOT_NONE | PORT_EXCLUDED => None,
        slot => Some(slot),
    }
}

/// Returns where a connection was counted that was closed at most so long ago.
#[inline(always)]
pub fn remembered(connection: &Connection, longest_ns: u64) -> Option<u8> {
    // SAFETY: the value is read at once; a torn one would be a time that is a little off.
    let &Closed { at_ns, slot } = unsafe { CONNECTIONS.get(connection) }?;
    // SAFETY: takes nothing.
    let now = unsafe { bpf_ktime_get_ns() };
    (now.wrapping_sub(at_ns) < longest_ns).then_some(slot as u8)
}

#[inline(always)]
pub fn is_ours(namespace: u32) -> bool {
    // SAFETY: the value is not read.
    unsafe { TARGET_NAMESPACES.get(&namespace) }.is_some()
}

/// Whether a full socket belongs to a cgroup of the target, or to one below.
#[inline(always)]
pub fn is_in_target(sk: u64) -> bool {
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
pub fn udp_port(namespace: u32, local_port: u16) -> Connection {
    Connection { namespace, protocol: u32::from(UDP), local_port, ..Connection::ZERO }
}
