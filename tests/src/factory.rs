//! Sockets that are born in a cgroup and a namespace, and used from anywhere.
//!
//! A socket keeps the cgroup and the namespace that it was made in, whoever uses it. So a small process
//! in the counted cgroup makes them and hands them over, and a test does with them what it likes, with
//! the options and the timing that it needs.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{
    Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, bind, connect, listen,
    recvmsg, sendmsg,
};
use traffic_lab::{CountedCgroup, Namespace};

use crate::helper;

/// Tells the helper to be a factory.
pub const ARGUMENT: &str = "sockets";
/// `domain`, `type` and `protocol` of socket(2), as `i32`.
const REQUEST_BYTES: usize = 12;
/// Connections that may wait to be accepted: the test may be late by thousands.
const BACKLOG: i32 = 4096;
/// An answer that takes longer never comes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process in a cgroup that makes sockets. Dropped, it ends.
#[derive(Debug)]
pub struct Factory {
    child: Child,
    requests: Mutex<UnixDatagram>,
}

impl Factory {
    /// Starts one.
    pub fn start(namespace: &Namespace, cgroup: &CountedCgroup) -> Result<Self> {
        let (ours, theirs) = UnixDatagram::pair()?;
        ours.set_read_timeout(Some(PATIENCE))?;
        let mut command = Command::new(helper()?);
        command.arg(ARGUMENT).stdin(Stdio::from(OwnedFd::from(theirs)));
        // The namespace first: whoever looks at the members of the cgroup finds none of the host's.
        namespace.command_in(&mut command)?;
        cgroup.enter(&mut command)?;
        let child = command.spawn().context("cannot start the socket factory")?;
        let factory = Self { child, requests: Mutex::new(ours) };
        // Answered only when it runs where it shall.
        drop(factory.socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?);
        Ok(factory)
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Makes a socket: the arguments are those of socket(2).
    pub fn socket(&self, domain: i32, kind: i32, protocol: i32) -> Result<OwnedFd> {
        let requests = self.requests.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let request: Vec<u8> =
            [domain, kind, protocol].iter().flat_map(|number| number.to_ne_bytes()).collect();
        requests.send(&request).context("the socket factory has ended")?;
        let mut errno = [0; 4];
        let (length, socket) = receive(&requests, &mut errno)?;
        ensure!(length == errno.len(), "the socket factory has ended");
        // Its own descriptor is closed: when the caller closes the socket, it is closed.
        requests.recv(&mut [0]).context("the socket factory has ended")?;
        match socket {
            Some(socket) => Ok(socket),
            None => bail!(
                "socket({domain}, {kind}, {protocol}): {}",
                io::Error::from_raw_os_error(i32::from_ne_bytes(errno))
            ),
        }
    }

    /// A TCP socket that listens.
    pub fn tcp_listener(&self, address: SocketAddr) -> Result<TcpListener> {
        let socket = self.socket(domain(address), libc::SOCK_STREAM, 0)?;
        listen_on(&socket, address)?;
        Ok(TcpListener::from(socket))
    }

    /// A TCP socket that is connected, from a port of the kernel's choice.
    pub fn tcp_stream(&self, to: SocketAddr) -> Result<TcpStream> {
        let socket = self.socket(domain(to), libc::SOCK_STREAM, 0)?;
        connect_to(&socket, to)?;
        Ok(TcpStream::from(socket))
    }

    /// A UDP socket, not bound yet, of the family of an address.
    pub fn udp_unbound(&self, family_of: SocketAddr) -> Result<UdpSocket> {
        Ok(UdpSocket::from(self.socket(domain(family_of), libc::SOCK_DGRAM, 0)?))
    }

    /// A UDP socket bound to an address; port 0 asks the kernel for one.
    pub fn udp(&self, address: SocketAddr) -> Result<UdpSocket> {
        let socket = self.udp_unbound(address)?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(address))
            .with_context(|| format!("cannot bind UDP {address}"))?;
        Ok(socket)
    }
}

impl Drop for Factory {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Binds a TCP socket, whatever drains on the port still, and listens.
pub fn listen_on(socket: &OwnedFd, address: SocketAddr) -> Result<()> {
    use nix::sys::socket::{setsockopt, sockopt};
    setsockopt(socket, sockopt::ReuseAddr, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))
        .with_context(|| format!("cannot bind TCP {address}"))?;
    listen(socket, Backlog::new(BACKLOG)?)?;
    Ok(())
}

/// Connects a socket.
pub fn connect_to(socket: &OwnedFd, to: SocketAddr) -> Result<()> {
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to))
        .with_context(|| format!("cannot connect to {to}"))
}

/// An address as an IPv6 socket takes it.
pub fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) => (v4.to_ipv6_mapped(), address.port()).into(),
        IpAddr::V6(_) => address,
    }
}

/// AF_INET or AF_INET6.
pub fn domain(address: SocketAddr) -> i32 {
    if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }
}

/// A socket of the calling thread's namespace and cgroup: the arguments are those of socket(2).
pub fn socket_here(domain: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: socket(2) takes any numbers.
    let made = unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) };
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(made) })
}

/// Receives bytes, and a descriptor if one came with them.
fn receive(socket: &UnixDatagram, bytes: &mut [u8]) -> Result<(usize, Option<OwnedFd>)> {
    let mut slices = [IoSliceMut::new(bytes)];
    let mut control = nix::cmsg_space!(RawFd);
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut slices,
        Some(&mut control),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )
    .context("the socket factory does not answer")?;
    let descriptor = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
        _ => None,
    });
    // SAFETY: the kernel has just made this descriptor for us, and nobody else has its number.
    let socket = descriptor.map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) });
    Ok((message.bytes, socket))
}

/// Makes sockets for whoever is at the other end of stdin, until that is closed.
pub fn serve() -> Result<()> {
    // A peer that dies closes no datagram socket's reading end: die with it.
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    // SAFETY: stdin is open, and nothing else in this process uses it.
    let requests = unsafe { UnixDatagram::from_raw_fd(0) };
    loop {
        let mut request = [0; REQUEST_BYTES];
        if requests.recv(&mut request)? != REQUEST_BYTES {
            return Ok(());
        }
        let number = |at: usize| {
            i32::from_ne_bytes([request[at], request[at + 1], request[at + 2], request[at + 3]])
        };
        let made = socket_here(number(0), number(4), number(8));
        let errno = made.as_ref().err().and_then(io::Error::raw_os_error).unwrap_or(0);
        let descriptors: Vec<RawFd> = made.iter().map(AsRawFd::as_raw_fd).collect();
        let control = [ControlMessage::ScmRights(&descriptors)];
        let control = if made.is_ok() { &control[..] } else { &control[..0] };
        sendmsg::<()>(
            requests.as_raw_fd(),
            &[IoSlice::new(&errno.to_ne_bytes())],
            control,
            MsgFlags::empty(),
            None,
        )?;
        drop(made);
        requests.send(&[0])?;
    }
}
