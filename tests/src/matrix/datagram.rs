//! UDP through a proxy whose sockets are the test's: one bound on purpose for the client, and one of the
//! kernel's choice of port for the server.
//!
//! UDP has no back-pressure, and a veth's ring has 256 frames: never more than two bursts are on their
//! way, because the receiver tells the sender, inside the process, what has arrived.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use traffic_lab::Namespace;
use traffic_lab::packet::Family;
use traffic_lab::topology::addresses;

use super::writing::{CONTENT, ZeroCopy, send_file};
use super::{Ends, Variant, join};
use crate::factory::mapped;
use crate::site::{SERVER_PORT, any};
use crate::truth::{Applications, Carried};

/// Where the proxy takes datagrams: a port that the lab's kernels hand out to nobody.
pub const PORT: u16 = 8443;
/// Datagrams of a burst: one send with UDP_SEGMENT of ordinary datagrams is below 64 KiB.
const BURST: usize = 40;
/// Bursts on their way.
const BURSTS: usize = 2;
/// A datagram that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(60);
/// More than all bursts on their way.
const RECEIVE_BUFFER: usize = 8 << 20;

/// How a socket's owner sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sending {
    /// One send, one datagram.
    Plain,
    /// sendfile(2).
    Sendfile,
    /// MSG_ZEROCOPY.
    ZeroCopy,
    /// Many datagrams by one send (UDP_SEGMENT).
    Segmented,
}

/// Datagrams of one kind.
#[derive(Debug, Clone, Copy)]
pub struct Datagrams {
    /// From so many clients, one after the other, each with a socket of its own at the proxy.
    pub flows: usize,
    /// Payloads of the datagrams to the server, of each flow; at least one.
    pub up: &'static [usize],
    /// And back.
    pub down: &'static [usize],
    /// How the client and the server send.
    pub far: Sending,
    /// How the proxy sends.
    pub proxy: Sending,
    /// Whether the proxy takes merged datagrams (UDP_GRO).
    pub gro: bool,
}

/// One direction: who sends where, by which two sockets of the proxy, and who receives.
struct Path<'p> {
    sender: &'p UdpSocket,
    sender_to: SocketAddr,
    proxy_in: &'p UdpSocket,
    proxy_out: &'p UdpSocket,
    proxy_to: SocketAddr,
    receiver: &'p UdpSocket,
}

impl Datagrams {
    /// Drives them; returns what both ends say, and how many zero-copied sends the proxy made.
    pub(super) fn run(&self, ends: &Ends<'_>) -> Result<(Applications, u64)> {
        let (lab, family) = (&ends.site.lab, ends.family);
        let to_proxy: SocketAddr = (addresses(family).proxy_client, PORT).into();
        let to_server = ends.server();
        let server = far_socket(&lab.upstream, any(SERVER_PORT), ends.variant)?;
        let listener = prepared(ends.factory.udp(any(PORT))?, ends.variant)?;
        setsockopt(&listener, sockopt::UdpGroSegment, &self.gro).context("UDP_GRO")?;
        let mut applications = Applications::default();
        let mut zero_copies = 0;
        for _ in 0..self.flows {
            let client = far_socket(&lab.client, unspecified(family), ends.variant)?;
            let upstream = prepared(ends.factory.udp_unbound(to_server)?, ends.variant)?;
            setsockopt(&upstream, sockopt::UdpGroSegment, &self.gro).context("UDP_GRO")?;
            upstream.connect(to_server)?;
            let client_address =
                SocketAddr::new(addresses(family).client, client.local_addr()?.port());
            let proxy_address =
                SocketAddr::new(addresses(family).proxy_upstream, upstream.local_addr()?.port());
            let up = Path {
                sender: &client,
                sender_to: to_proxy,
                proxy_in: &listener,
                proxy_out: &upstream,
                proxy_to: to_server,
                receiver: &server,
            };
            let down = Path {
                sender: &server,
                sender_to: mapped(proxy_address),
                proxy_in: &upstream,
                proxy_out: &listener,
                proxy_to: mapped(client_address),
                receiver: &client,
            };
            zero_copies += self.carry(&up, self.up).context("client to server")?;
            zero_copies += self.carry(&down, self.down).context("server to client")?;
            let [up, down] = [self.up, self.down].map(|all| all.iter().sum::<usize>() as u64);
            applications.client += Carried { to_proxy: up, from_proxy: down };
            applications.upstream += Carried { to_proxy: down, from_proxy: up };
        }
        Ok((applications, zero_copies))
    }

    /// Carries datagrams of these payloads over a path, and holds each end against it.
    fn carry(&self, path: &Path<'_>, payloads: &[usize]) -> Result<u64> {
        let (arrived, arrivals) = channel();
        thread::scope(|scope| {
            let receiver = scope.spawn(|| receive(path.receiver, payloads, arrived));
            let proxy = scope.spawn(|| self.relay(path, payloads.len()));
            let sent = self.send_all(path, payloads, &arrivals);
            let (relayed, received) = (join(proxy), join(receiver));
            sent.context("the sender")?;
            let zero_copies = relayed.context("the proxy")?;
            received.context("the receiver")?;
            Ok(zero_copies)
        })
    }

    /// The far end that sends.
    fn send_all(&self, path: &Path<'_>, payloads: &[usize], arrivals: &Receiver<()>) -> Result<()> {
        for (number, burst) in payloads.chunks(BURST).enumerate() {
            if number >= BURSTS {
                arrivals.recv_timeout(PATIENCE).context("a burst does not arrive")?;
            }
            let mut zero_copies = ZeroCopy::new(path.sender);
            send(path.sender, burst, self.far, path.sender_to, &mut zero_copies)?;
        }
        Ok(())
    }

    /// The proxy: forwards so many datagrams; merged ones, if it may, by one send again.
    fn relay(&self, path: &Path<'_>, count: usize) -> Result<u64> {
        let mut zero_copies = ZeroCopy::new(path.proxy_out);
        match self.proxy {
            Sending::ZeroCopy => zero_copies.enable()?,
            // A file goes where the socket is connected to.
            Sending::Sendfile => path.proxy_out.connect(path.proxy_to)?,
            Sending::Plain | Sending::Segmented => {}
        }
        let (mut buffer, mut held, mut left) = (vec![0; 1 << 16], Vec::new(), count);
        while left > 0 {
            let payloads = receive_merged(path.proxy_in, &mut buffer)?;
            left = left.checked_sub(payloads.len()).context("more came than was sent")?;
            held.extend(payloads);
            // Segments are all of the first one's size, but for the last.
            let full = held.len() >= BURST || held.last() != held.first();
            if self.proxy != Sending::Segmented || full || left == 0 {
                let segmented = std::mem::take(&mut held);
                send(path.proxy_out, &segmented, self.proxy, path.proxy_to, &mut zero_copies)?;
            }
        }
        zero_copies.finish()
    }
}

/// Sends datagrams of these payloads, at most a burst.
fn send(
    socket: &UdpSocket,
    payloads: &[usize],
    how: Sending,
    to: SocketAddr,
    zero_copies: &mut ZeroCopy<'_>,
) -> Result<()> {
    if how == Sending::Segmented {
        return send_segmented(socket, payloads, to);
    }
    for &bytes in payloads {
        let data = &CONTENT[..bytes];
        let sent = match how {
            Sending::Plain | Sending::Segmented => socket.send_to(data, to)?,
            // Without a byte there is no file to be sent.
            Sending::Sendfile if bytes == 0 => socket.send(data)?,
            Sending::Sendfile => send_file(socket, bytes)?,
            Sending::ZeroCopy => zero_copies.send(data, Some(to))?,
        };
        ensure!(sent == bytes, "{sent} of {bytes} bytes were sent");
    }
    Ok(())
}

fn send_segmented(socket: &UdpSocket, payloads: &[usize], to: SocketAddr) -> Result<()> {
    let segment = u16::try_from(*payloads.first().context("no datagram")?)?;
    let control = [ControlMessage::UdpGsoSegments(&segment)];
    let control = if payloads.len() > 1 { &control[..] } else { &control[..0] };
    let data = &CONTENT[..payloads.iter().sum()];
    let to = SockaddrStorage::from(to);
    let slices = [std::io::IoSlice::new(data)];
    let sent = sendmsg(socket.as_raw_fd(), &slices, control, MsgFlags::empty(), Some(&to))
        .with_context(|| format!("{} bytes in segments of {segment}", data.len()))?;
    ensure!(sent == data.len(), "{sent} of {} bytes were sent", data.len());
    Ok(())
}

/// The far end that receives: every datagram as it was sent, in its order.
fn receive(socket: &UdpSocket, payloads: &[usize], arrived: Sender<()>) -> Result<()> {
    let mut buffer = vec![0; 1 << 16];
    for burst in payloads.chunks(BURST) {
        for &expected in burst {
            let (bytes, _) = socket.recv_from(&mut buffer).context("a datagram does not come")?;
            ensure!(bytes == expected, "a datagram of {bytes} bytes came instead of {expected}");
        }
        // The sender may have sent its last burst already.
        let _ = arrived.send(());
    }
    Ok(())
}

/// Receives a datagram, or merged ones: the payload of each.
fn receive_merged(socket: &UdpSocket, buffer: &mut [u8]) -> Result<Vec<usize>> {
    let mut slices = [std::io::IoSliceMut::new(buffer)];
    let mut control = nix::cmsg_space!(i32);
    let message = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut slices,
        Some(&mut control),
        MsgFlags::empty(),
    )
    .context("a datagram does not come")?;
    let segment = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::UdpGroSegments(size) => usize::try_from(size).ok(),
        _ => None,
    });
    let mut left = message.bytes;
    let mut payloads = Vec::new();
    loop {
        let now = segment.filter(|&size| size > 0).map_or(left, |size| left.min(size));
        payloads.push(now);
        left -= now;
        if left == 0 {
            return Ok(payloads);
        }
    }
}

fn far_socket(namespace: &Namespace, address: SocketAddr, variant: Variant) -> Result<UdpSocket> {
    prepared(namespace.run_in(|| UdpSocket::bind(address))??, variant)
}

fn prepared(socket: UdpSocket, variant: Variant) -> Result<UdpSocket> {
    variant.dress_early(&socket)?;
    variant.dress_late(&socket)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).context("SO_RCVBUFFORCE")?;
    Ok(socket)
}

fn unspecified(family: Family) -> SocketAddr {
    match family {
        Family::Ipv4 => (Ipv4Addr::UNSPECIFIED, 0).into(),
        Family::Ipv6 => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}
