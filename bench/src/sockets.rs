//! Sockets that are born in a counted cgroup, and traffic through them.
//!
//! A socket belongs for ever to the cgroup that its maker was in: so this process enters, makes it, and
//! leaves again. The far end's sockets are made outside, and nobody counts them.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{MsgFlags, send, setsockopt, sockopt};
use traffic_lab::{CountedCgroup, Namespace, cgroup};

/// Longest silence of a socket.
const SILENCE: Duration = Duration::from_secs(10);
/// Bytes moved by one system call in bulk.
const CHUNK: usize = 64 * 1024;
/// Payload of a small datagram.
pub const SMALL: usize = 64;
/// Bytes of the request and of the answer of a short connection.
const REQUEST: usize = 200;
const ANSWER: usize = 2000;
/// Small writes to one connection before the far end's buffer is emptied.
const BURST: usize = 100;

/// Runs `make` in a namespace and inside a cgroup: the sockets it makes are counted there.
pub fn born_in<T: Send>(
    cgroup: &CountedCgroup,
    namespace: &Namespace,
    make: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    let before = own_cgroup()?;
    cgroup.add(std::process::id())?;
    let made = namespace.run_in(make);
    // Before all else: the cgroup kills its members when it is dropped.
    fs::write(before.join("cgroup.procs"), std::process::id().to_string())
        .with_context(|| format!("cannot go back to {}", before.display()))?;
    made?
}

/// The cgroup that this process is in.
fn own_cgroup() -> Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").context("cannot read /proc/self/cgroup")?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"));
    let path = path.context("this process is in no cgroup v2")?;
    Ok(cgroup::mount()?.join(path))
}

/// What was carried, and in what time.
#[derive(Debug, Clone, Copy)]
pub struct Carried {
    /// Bytes, datagrams or connections.
    pub units: u64,
    /// From the first to the last.
    pub time: Duration,
}

impl Carried {
    /// Units per second.
    pub fn rate(self) -> f64 {
        self.units as f64 / self.time.as_secs_f64()
    }
}

/// A TCP connection whose near end is counted.
#[derive(Debug)]
pub struct Bulk {
    near: TcpStream,
    far: TcpStream,
}

impl Bulk {
    /// Connects a counted socket to a far listener.
    ///
    /// With buffers of a real machine: the lab's are small, so that no frame is lost before a capture.
    pub fn new(
        cgroup: &CountedCgroup,
        (near, far): (&Namespace, &Namespace),
        to: SocketAddr,
    ) -> Result<Self> {
        // Some kernels have BBR as default, which paces: then timers would be measured.
        near.sysctl("ipv4/tcp_congestion_control", "reno")?;
        near.sysctl("ipv4/tcp_wmem", "4096 1048576 1048576")?;
        far.sysctl("ipv4/tcp_rmem", "4096 4194304 4194304")?;
        let listener = far.run_in(|| TcpListener::bind(to))??;
        let near = born_in(cgroup, near, || Ok(TcpStream::connect(to)?))?;
        let (far, _) = listener.accept()?;
        // Or its reader would be woken by every segment.
        set_low_water_mark(&far, CHUNK)?;
        near.set_write_timeout(Some(SILENCE))?;
        far.set_read_timeout(Some(Duration::from_millis(20)))?;
        Ok(Self { near, far })
    }

    /// Sends bulk data from the counted end for so long.
    pub fn run(&self, time: Duration) -> Result<Carried> {
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let reader = scope.spawn(|| drain(&self.far, &done));
            let sent = send_for(&self.near, time);
            done.store(true, Ordering::Relaxed);
            reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            Ok(sent?)
        })
    }
}

fn send_for(mut stream: &TcpStream, time: Duration) -> io::Result<Carried> {
    let data = vec![0xa5; CHUNK];
    let (begin, mut units) = (Instant::now(), 0);
    while begin.elapsed() < time {
        stream.write_all(&data)?;
        units += CHUNK as u64;
    }
    Ok(Carried { units, time: begin.elapsed() })
}

/// Lets a reader sleep until so many bytes are there (SO_RCVLOWAT).
fn set_low_water_mark(stream: &TcpStream, bytes: usize) -> io::Result<()> {
    let bytes = bytes as libc::c_int;
    let length = size_of_val(&bytes) as libc::socklen_t;
    // SAFETY: the option takes one `c_int`, which lives as long as the call.
    let set = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            (&raw const bytes).cast(),
            length,
        )
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads until nothing comes any more after `done`.
fn drain(mut stream: &TcpStream, done: &AtomicBool) -> io::Result<()> {
    let mut buffer = vec![0; 4 * CHUNK];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if done.load(Ordering::Relaxed) {
                    return Ok(());
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// Small packets from sockets in turns.
///
/// Nobody reads datagrams at the far end: they are dropped there, which costs what does not change.
#[derive(Debug)]
pub struct Turns {
    senders: Vec<OwnedFd>,
    /// Far ends of connections, to be emptied.
    readers: Vec<TcpStream>,
    _sink: Option<UdpSocket>,
}

impl Turns {
    /// Sends with these UDP sockets, which are connected, to a far socket that is kept.
    pub fn of_udp(senders: Vec<UdpSocket>, sink: UdpSocket) -> Self {
        let senders = senders.into_iter().map(OwnedFd::from).collect();
        Self { senders, readers: Vec::new(), _sink: Some(sink) }
    }

    /// One counted UDP socket, connected to a far one.
    pub fn one_udp(
        cgroup: &CountedCgroup,
        (near, far): (&Namespace, &Namespace),
        to: SocketAddr,
    ) -> Result<Self> {
        let sink = far.run_in(|| UdpSocket::bind(to))??;
        let sender = born_in(cgroup, near, || connected_udp((any(to), 0).into(), to))?;
        Ok(Self::of_udp(vec![sender], sink))
    }

    /// Sends with these TCP connections: pairs of the counted and the far end.
    pub fn of_tcp(connections: Vec<(TcpStream, TcpStream)>) -> Result<Self> {
        let (mut senders, mut readers) = (Vec::new(), Vec::new());
        for (near, far) in connections {
            near.set_nodelay(true)?;
            far.set_nonblocking(true)?;
            senders.push(near.into());
            readers.push(far);
        }
        Ok(Self { senders, readers, _sink: None })
    }

    /// Sends so many packets or a little more, the same number from every socket.
    pub fn send(&self, packets: usize) -> Result<u64> {
        let rounds = packets.div_ceil(self.senders.len());
        let bytes = if self.readers.is_empty() { SMALL } else { 1 };
        for round in 0..rounds {
            for sender in &self.senders {
                send_small(sender, bytes)?;
            }
            if round % BURST == BURST - 1 || round + 1 == rounds {
                self.empty()?;
            }
        }
        Ok((rounds * self.senders.len()) as u64)
    }

    /// Sends for so long.
    pub fn run(&self, time: Duration) -> Result<Carried> {
        let (begin, mut units) = (Instant::now(), 0);
        while begin.elapsed() < time {
            units += self.send(BURST)?;
        }
        Ok(Carried { units, time: begin.elapsed() })
    }

    /// Reads what has come to the far ends of connections.
    fn empty(&self) -> Result<()> {
        let mut buffer = [0; 4096];
        for mut reader in &self.readers {
            match reader.read(&mut buffer) {
                Ok(0) => bail!("a connection was closed"),
                Ok(_) => {}
                // On its way still: then the next time.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl Drop for Turns {
    fn drop(&mut self) {
        // Reset: a hundred thousand connections must not stay in TIME_WAIT.
        for reader in &self.readers {
            let _ = setsockopt(reader, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 });
        }
    }
}

fn send_small(sender: &OwnedFd, bytes: usize) -> Result<()> {
    match send(sender.as_raw_fd(), &[0xa5; SMALL][..bytes], MsgFlags::MSG_NOSIGNAL) {
        // An ICMP error of an earlier datagram, or no buffer: the packet was sent or will not be.
        Ok(_) | Err(nix::Error::ECONNREFUSED | nix::Error::ENOBUFS) => Ok(()),
        Err(error) => Err(error).context("cannot send a small packet"),
    }
}

/// A UDP socket of the calling thread's namespace, bound and connected.
pub fn connected_udp(from: SocketAddr, to: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(from).with_context(|| format!("cannot bind UDP {from}"))?;
    socket.connect(to).with_context(|| format!("no way to {to}"))?;
    Ok(socket)
}

/// The unspecified address of the family.
fn any(family_of: SocketAddr) -> std::net::IpAddr {
    match family_of {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// A counted listener that answers short connections of far clients.
#[derive(Debug)]
pub struct Short {
    listener: TcpListener,
    address: SocketAddr,
}

/// Clients, and threads that answer them, at a time.
const PARALLEL: usize = 2;

impl Short {
    /// Listens in the cgroup.
    pub fn new(cgroup: &CountedCgroup, near: &Namespace, address: SocketAddr) -> Result<Self> {
        let listener = born_in(cgroup, near, || Ok(TcpListener::bind(address)?))?;
        // So that its threads notice when they shall stop.
        listener.set_nonblocking(true)?;
        Ok(Self { listener, address })
    }

    /// Carries one exchange after the other for so long, from clients in a namespace.
    pub fn run(&self, clients: &Namespace, time: Duration) -> Result<Carried> {
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let servers: Vec<_> =
                (0..PARALLEL).map(|_| scope.spawn(|| self.serve(&done))).collect();
            let begin = Instant::now();
            let carried = clients.run_in(|| {
                thread::scope(|scope| -> Result<u64> {
                    let clients: Vec<_> = (0..PARALLEL)
                        .map(|_| scope.spawn(|| fetch_for(self.address, time)))
                        .collect();
                    let mut units = 0;
                    for client in clients {
                        units += client
                            .join()
                            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                    }
                    Ok(units)
                })
            });
            let elapsed = begin.elapsed();
            done.store(true, Ordering::Relaxed);
            for server in servers {
                server.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            Ok(Carried { units: carried??, time: elapsed })
        })
    }

    fn serve(&self, done: &AtomicBool) -> Result<()> {
        let mut buffer = [0; REQUEST];
        while !done.load(Ordering::Relaxed) {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    wait_readable(&self.listener);
                    continue;
                }
                Err(error) => return Err(error).context("cannot accept"),
            };
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(SILENCE))?;
            stream.read_exact(&mut buffer)?;
            stream.write_all(&[0xa5; ANSWER])?;
            // The client closes first, so that TIME_WAIT is the far end's.
            let _ = stream.read(&mut buffer);
        }
        Ok(())
    }
}

/// Waits for a connection, but not longer than it takes to notice the order to stop.
fn wait_readable(listener: &TcpListener) {
    let mut poll = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one live `pollfd`, and the count says one.
    let _ = unsafe { libc::poll(&mut poll, 1, 10) };
}

fn fetch_for(to: SocketAddr, time: Duration) -> Result<u64> {
    let (begin, mut units) = (Instant::now(), 0);
    let mut answer = [0; ANSWER];
    while begin.elapsed() < time {
        let mut stream = TcpStream::connect(to).context("a short connection was refused")?;
        stream.set_read_timeout(Some(SILENCE))?;
        stream.write_all(&[0xa5; REQUEST])?;
        stream.read_exact(&mut answer)?;
        units += 1;
    }
    Ok(units)
}
