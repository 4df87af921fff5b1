//! The kernel's own list of sockets, with the cgroup that owns each.
//!
//! Only sock_diag tells the cgroup of a socket; /proc/net/tcp does not. The messages are parsed by
//! netlink-packet-sock-diag 0.5: it does not know the two attributes needed here, but hands unknown
//! ones on as they are (and the kernel sends both unasked). The loop around it is ours, because the
//! interesting part is what goes wrong: a truncated or interrupted dump must not pass as a list.

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    Nla as _,
};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags,
};
use netlink_sys::{Socket as Netlink, SocketAddr as NetlinkAddr, protocols::NETLINK_SOCK_DIAG};

use super::Error;
use crate::report::{Family, Protocol};

/// Since Linux 5.8; include/uapi/linux/inet_diag.h.
const INET_DIAG_CGROUP_ID: u16 = 21;
/// Since Linux 5.10; struct inet_diag_sockopt, whose first byte is made of single bits.
const INET_DIAG_SOCKOPT: u16 = 22;
/// The bit of IP_TRANSPARENT in that first byte, counted from the least significant.
const SOCKOPT_TRANSPARENT: u8 = 1 << 5;

/// How often an interrupted dump is repeated before giving up.
const TRIES: usize = 10;

/// State of a socket, with TCP's numbers, which UDP borrows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct State(pub u8);

impl State {
    /// TCP: has a peer. UDP: connected.
    pub const ESTABLISHED: Self = Self(1);
    /// UDP: not connected.
    pub const CLOSE: Self = Self(7);
    /// TCP: waits for clients.
    pub const LISTEN: Self = Self(10);
}

/// A TCP or UDP socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// tcp or udp.
    pub protocol: Protocol,
    /// The socket's, not its packets': an IPv6 socket can carry IPv4.
    pub family: Family,
    /// Local address and port.
    pub local: SocketAddr,
    /// The peer; port 0 where there is none.
    pub remote: SocketAddr,
    /// State.
    pub state: State,
    /// What /proc/PID/fd shows as `socket:[N]`; 0 for what has no file: TIME_WAIT, connections that
    /// are not yet accepted, orphans.
    pub inode: u64,
    /// Owner of the file.
    pub uid: u32,
    /// The cgroup that it was made in; none for TIME_WAIT and half-open connections, and none at all
    /// before Linux 5.8.
    pub cgroup_id: Option<u64>,
    /// IP_TRANSPARENT (TPROXY); false before Linux 5.10.
    pub transparent: bool,
}

/// Which sockets to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// TCP in LISTEN, and all UDP.
    Bound,
    /// TCP in every state, and all UDP.
    All,
}

/// Lists the sockets of the calling thread's network namespace.
///
/// For another one: `NetNs::run(|| dump(..))`.
pub fn dump(which: Which) -> Result<Vec<Socket>, Error> {
    let tcp = match which {
        Which::Bound => StateFlags::LISTEN,
        Which::All => StateFlags::all(),
    };
    let mut sockets = Vec::new();
    for (protocol, states) in [(Protocol::Tcp, tcp), (Protocol::Udp, StateFlags::all())] {
        for family in [Family::Ipv4, Family::Ipv6] {
            let found = dump_one(protocol, family, &states)
                .map_err(|source| refused(protocol, family, source))?;
            sockets.extend(found);
        }
    }
    require_cgroup_ids(sockets)
}

/// Whether something is wrong with the kernel rather than with single sockets: then every one that
/// has a file lacks the id.
fn require_cgroup_ids(sockets: Vec<Socket>) -> Result<Vec<Socket>, Error> {
    let mut whole = sockets.iter().filter(|socket| socket.inode != 0).peekable();
    if whole.peek().is_some() && whole.all(|socket| socket.cgroup_id.is_none()) {
        return Err(Error::NoCgroupIds);
    }
    Ok(sockets)
}

fn refused(protocol: Protocol, family: Family, source: io::Error) -> Error {
    let (name, module) = match protocol {
        Protocol::Udp => ("udp", "load it with `modprobe udp_diag`"),
        _ => ("tcp", "load it with `modprobe tcp_diag`"),
    };
    let family = match family {
        Family::Ipv4 => "ipv4",
        Family::Ipv6 => "ipv6",
    };
    let remedy = match source.raw_os_error() {
        Some(libc::ENOENT | libc::EPROTONOSUPPORT) => module,
        Some(libc::EPERM | libc::EACCES) => "run as root, outside of a restricted container",
        Some(libc::EINTR) => "the sockets change faster than they can be listed: try again",
        _ => "try again, and look at the kernel's log",
    };
    Error::SockDiag { what: format!("{name} {family}"), remedy, source }
}

fn dump_one(protocol: Protocol, family: Family, states: &StateFlags) -> io::Result<Vec<Socket>> {
    for _ in 0..TRIES {
        match dump_once(protocol, family, states) {
            // The list changed under the dump, or the kernel ran out of room.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::ENOBUFS)) => {}
            result => return result,
        }
    }
    Err(io::Error::from_raw_os_error(libc::EINTR))
}

fn dump_once(protocol: Protocol, family: Family, states: &StateFlags) -> io::Result<Vec<Socket>> {
    let netlink = Netlink::new(NETLINK_SOCK_DIAG)?;
    netlink.connect(&NetlinkAddr::new(0, 0))?;
    netlink.send(&request(protocol, family, states), 0)?;
    let mut dump = Dump::new(protocol);
    let mut buffer = Vec::with_capacity(64 * 1024);
    while !dump.done {
        buffer.clear();
        let length = match netlink.recv(&mut buffer, libc::MSG_TRUNC) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result?,
        };
        if length > buffer.len() {
            // With MSG_TRUNC the length is the message's. Half a message is no list: once more, with
            // room for it. (The kernel sizes its messages by what was asked for before.)
            return Err(io::Error::other(format!("message of {length} bytes was truncated")));
        }
        dump.take(&buffer)?;
    }
    Ok(dump.sockets)
}

fn request(protocol: Protocol, family: Family, states: &StateFlags) -> Vec<u8> {
    let (family, socket_id) = match family {
        Family::Ipv4 => (libc::AF_INET, SocketId::new_v4()),
        Family::Ipv6 => (libc::AF_INET6, SocketId::new_v6()),
    };
    let protocol = match protocol {
        Protocol::Udp => libc::IPPROTO_UDP,
        _ => libc::IPPROTO_TCP,
    };
    let request = InetRequest {
        family: family as u8,
        protocol: protocol as u8,
        extensions: ExtensionFlags::empty(),
        states: states.clone(),
        socket_id,
    };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    header.sequence_number = 1;
    let payload = NetlinkPayload::from(SockDiagMessage::InetRequest(request));
    let mut message = NetlinkMessage::new(header, payload);
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// The answer to one request, as far as it has come.
struct Dump {
    protocol: Protocol,
    sockets: Vec<Socket>,
    done: bool,
}

impl Dump {
    fn new(protocol: Protocol) -> Self {
        Self { protocol, sockets: Vec::new(), done: false }
    }

    /// Takes one datagram: any number of messages.
    ///
    /// A message that is not understood is an error, never a socket that is silently missing.
    fn take(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(bytes)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            if message.header.flags & NLM_F_DUMP_INTR != 0 {
                return Err(io::Error::from_raw_os_error(libc::EINTR));
            }
            match message.payload {
                NetlinkPayload::Done(done) if done.code < 0 => {
                    return Err(io::Error::from_raw_os_error(done.code.saturating_neg()));
                }
                NetlinkPayload::Done(_) => {
                    self.done = true;
                    return Ok(());
                }
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::Overrun(_) => {
                    return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
                }
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                    self.sockets.push(socket(self.protocol, &response));
                }
                _ => {}
            }
            let length = (message.header.length as usize).next_multiple_of(4);
            bytes = bytes.get(length..).unwrap_or_default();
        }
        Ok(())
    }
}

fn socket(protocol: Protocol, response: &InetResponse) -> Socket {
    let header = &response.header;
    let id = &header.socket_id;
    let family = match id.source_address {
        IpAddr::V4(_) => Family::Ipv4,
        IpAddr::V6(_) => Family::Ipv6,
    };
    let mut socket = Socket {
        protocol,
        family,
        local: SocketAddr::new(id.source_address, id.source_port),
        remote: SocketAddr::new(id.destination_address, id.destination_port),
        state: State(header.state),
        inode: header.inode.into(),
        uid: header.uid,
        cgroup_id: None,
        transparent: false,
    };
    for nla in &response.nlas {
        let Nla::Other(nla) = nla else { continue };
        let mut value = vec![0; nla.value_len()];
        nla.emit_value(&mut value);
        match nla.kind() {
            INET_DIAG_CGROUP_ID => {
                socket.cgroup_id = value.try_into().ok().map(u64::from_ne_bytes);
            }
            INET_DIAG_SOCKOPT => {
                socket.transparent =
                    value.first().is_some_and(|bits| bits & SOCKOPT_TRANSPARENT != 0);
            }
            _ => {}
        }
    }
    socket
}

#[cfg(test)]
#[path = "sockets_tests.rs"]
mod tests;
