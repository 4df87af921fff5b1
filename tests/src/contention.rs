//! The worst that one CPU can do to a counter: every thread of both ends on the same CPU, of different
//! priority, small packets both ways, and timers that send from softirqs in between.
//!
//! All sockets are of one counted cgroup and talk over loopback in a namespace of their own, so the
//! device has counted every packet once that the hooks have counted twice, out and in. Super-packets are
//! off there: the device counts them once, whatever they hold.
//!
//! What interrupts what:
//! * A thread of real-time priority wakes up hundreds of times a second and sends in the middle of
//!   whatever another thread does, where the kernel preempts threads inside of the kernel.
//! * Connections with a pacing rate are sent by a timer, in a softirq: in the middle of whatever any
//!   thread sends, on every kernel.

use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use traffic_lab::link::{self, DeviceCounters};
use traffic_lab::{CountedCgroup, Namespace};

use crate::factory::{Factory, connect_to};
use crate::options;

/// The device that all goes over.
const DEVICE: &str = "lo";
/// Payload of a datagram.
const DATAGRAM: usize = 16;
/// Datagrams of one call.
const BURST: usize = 64;
/// Most payload of a TCP segment: the least that the kernel accepts is 88.
const SEGMENT: i32 = 128;
/// Connections whose packets a timer sends.
const PACED: usize = 8;
/// Bytes per second of each: 8,000 segments, and as many interrupts.
const PACE: u32 = 1_000_000;
/// How long the one that wakes up sleeps.
const NAP: Duration = Duration::from_micros(500);
/// Nothing has come for so long: a delayed ACK takes 40 ms.
const QUIET: Duration = Duration::from_millis(300);
/// Longer than that nobody waits for silence.
const QUIET_WITHIN: Duration = Duration::from_secs(20);

/// Two ends of a TCP connection.
type Connection = (TcpStream, TcpStream);

/// Sockets in a counted cgroup that are ready to talk to each other. No packet passes until
/// [`Contention::run`].
#[derive(Debug)]
pub struct Contention {
    namespace: Namespace,
    /// Datagrams go both ways, and nobody reads them: they are counted before they are dropped.
    datagrams: (UdpSocket, UdpSocket),
    talks: [Connection; 2],
    paced: Vec<Connection>,
    /// Last, because its sockets are in use.
    _factory: Factory,
}

/// How a thread is scheduled.
#[derive(Clone, Copy)]
enum Priority {
    RealTime,
    Nice(i32),
}

impl Contention {
    /// Makes the namespace and the sockets, connected.
    pub fn new(cgroup: &CountedCgroup) -> Result<Self> {
        let namespace = Namespace::new("contention")?;
        link::set_gso_max_segments(&namespace, DEVICE, 1)?;
        let factory = Factory::start(&namespace, cgroup)?;
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let datagrams = (factory.udp(any)?, factory.udp(any)?);
        datagrams.0.connect(datagrams.1.local_addr()?)?;
        datagrams.1.connect(datagrams.0.local_addr()?)?;
        let talks = [connection(&factory)?, connection(&factory)?];
        let mut paced = Vec::new();
        for _ in 0..PACED {
            let (fed, read) = connection(&factory)?;
            let rate = PACE.to_ne_bytes();
            options::set(&fed, libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, &rate)?;
            paced.push((fed, read));
        }
        Ok(Self { namespace, datagrams, talks, paced, _factory: factory })
    }

    /// What the device has counted.
    pub fn counters(&self) -> Result<DeviceCounters> {
        link::counters(&self.namespace, DEVICE)
    }

    /// Sends until the device has carried so many packets, and waits until it is silent.
    ///
    /// Nothing is closed: the kernel answers by itself for a connection that is over.
    pub fn run(&self, packets: u64, within: Duration) -> Result<()> {
        let cpu = last_cpu()?;
        let stop = AtomicBool::new(false);
        let enough = self.counters()?.egress_packets + packets;
        let begin = Instant::now();
        thread::scope(|scope| -> Result<()> {
            let go_on = || !stop.load(Ordering::Relaxed);
            let mut threads = Vec::new();
            let (one, other) = &self.datagrams;
            let (one, other) = (one, other);
            threads.push(scope.spawn(move || flood(one, cpu, Priority::Nice(0), &go_on)));
            threads.push(scope.spawn(move || flood(other, cpu, Priority::Nice(5), &go_on)));
            threads.push(scope.spawn(move || wake_and_send(other, cpu, &go_on)));
            for talk in &self.talks {
                threads.push(scope.spawn(move || converse(talk, cpu, &go_on)));
            }
            threads.push(scope.spawn(move || feed(&self.paced, cpu, &go_on)));
            let mut watched = Ok(());
            while threads.iter().all(|thread| !thread.is_finished()) {
                match self.counters() {
                    Ok(now) if now.egress_packets >= enough => break,
                    Ok(now) if begin.elapsed() > within => {
                        let left = enough.saturating_sub(now.egress_packets);
                        watched = Err(anyhow::anyhow!(
                            "{left} of {packets} packets were not sent within {within:?}"
                        ));
                        break;
                    }
                    Ok(_) => thread::sleep(Duration::from_millis(50)),
                    Err(error) => {
                        watched = Err(error);
                        break;
                    }
                }
            }
            stop.store(true, Ordering::Relaxed);
            for thread in threads {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            watched
        })?;
        self.settle()
    }

    /// Reads what is still under way, until nothing is.
    fn settle(&self) -> Result<()> {
        let begin = Instant::now();
        let mut quiet_since = (begin, self.counters()?);
        while quiet_since.0.elapsed() < QUIET {
            ensure!(begin.elapsed() < QUIET_WITHIN, "there is still traffic on {DEVICE}");
            for (one, other) in self.talks.iter().chain(&self.paced) {
                read_all(one)?;
                read_all(other)?;
            }
            thread::sleep(Duration::from_millis(10));
            let now = self.counters()?;
            if now != quiet_since.1 {
                quiet_since = (Instant::now(), now);
            }
        }
        Ok(())
    }
}

/// A connection of small segments, both ends non-blocking.
fn connection(factory: &Factory) -> Result<Connection> {
    let listener = factory.socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
    let client = factory.socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
    for socket in [&listener, &client] {
        options::set(socket, libc::IPPROTO_TCP, libc::TCP_MAXSEG, &SEGMENT.to_ne_bytes())?;
    }
    crate::factory::listen_on(&listener, (Ipv4Addr::LOCALHOST, 0).into())?;
    let listener = std::net::TcpListener::from(listener);
    connect_to(&client, listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    let client = TcpStream::from(client);
    for stream in [&server, &client] {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
    }
    Ok((client, server))
}

/// The last of the CPUs that this process may use: the first is everybody's.
fn last_cpu() -> Result<usize> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).context("sched_getaffinity")?;
    let mut cpus = (0..CpuSet::count()).rev();
    cpus.find(|&cpu| allowed.is_set(cpu).unwrap_or(false)).context("no CPU is allowed")
}

/// Binds the calling thread to a CPU and gives it a priority.
fn take_place(cpu: usize, priority: Priority) -> Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &only).context("sched_setaffinity")?;
    let result = match priority {
        Priority::RealTime => {
            // The other policies of some C libraries have further fields: all of them are 0.
            // SAFETY: `sched_param` is made of integers.
            let mut parameters: libc::sched_param = unsafe { mem::zeroed() };
            parameters.sched_priority = 10;
            // SAFETY: 0 is the calling thread; the pointer is to a live value.
            unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) }
        }
        // SAFETY: plain numbers; 0 is the calling thread.
        Priority::Nice(nice) => unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) },
    };
    ensure!(result == 0, "cannot set a priority: {}", io::Error::last_os_error());
    Ok(())
}

/// Sends datagrams without a pause.
fn flood(
    socket: &UdpSocket,
    cpu: usize,
    priority: Priority,
    go_on: &dyn Fn() -> bool,
) -> Result<()> {
    take_place(cpu, priority)?;
    while go_on() {
        send_burst(socket, BURST)?;
    }
    Ok(())
}

/// Sends a few datagrams at every awakening.
fn wake_and_send(socket: &UdpSocket, cpu: usize, go_on: &dyn Fn() -> bool) -> Result<()> {
    take_place(cpu, Priority::RealTime)?;
    while go_on() {
        thread::sleep(NAP);
        send_burst(socket, 4)?;
    }
    Ok(())
}

/// Small writes both ways over one connection.
fn converse(talk: &Connection, cpu: usize, go_on: &dyn Fn() -> bool) -> Result<()> {
    take_place(cpu, Priority::Nice(0))?;
    while go_on() {
        for (from, to) in [(&talk.0, &talk.1), (&talk.1, &talk.0)] {
            for _ in 0..16 {
                write_some(from, &[7; 64])?;
            }
            read_all(to)?;
        }
    }
    Ok(())
}

/// Keeps the paced connections in work: what it writes, timers send.
fn feed(paced: &[Connection], cpu: usize, go_on: &dyn Fn() -> bool) -> Result<()> {
    take_place(cpu, Priority::RealTime)?;
    while go_on() {
        for (fed, read) in paced {
            write_some(fed, &[7; 8192])?;
            read_all(read)?;
        }
        thread::sleep(10 * NAP);
    }
    Ok(())
}

/// Sends so many datagrams, at most [`BURST`], by one call.
fn send_burst(socket: &UdpSocket, datagrams: usize) -> Result<()> {
    use std::os::fd::AsRawFd;
    let payload = [7_u8; DATAGRAM];
    let mut slice =
        libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
    // SAFETY: integers and pointers that may be null: no address, no control message.
    let mut messages: [libc::mmsghdr; BURST] = unsafe { mem::zeroed() };
    for message in &mut messages {
        message.msg_hdr.msg_iov = &raw mut slice;
        message.msg_hdr.msg_iovlen = 1;
    }
    // SAFETY: the messages and the slice that all of them share live as long as the call, which only
    // reads the payload.
    let sent = unsafe {
        libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), datagrams.min(BURST) as u32, 0)
    };
    ensure!(sent >= 0, "sendmmsg: {}", io::Error::last_os_error());
    Ok(())
}

/// Writes as much as there is room for.
fn write_some(mut stream: &TcpStream, bytes: &[u8]) -> Result<()> {
    match stream.write(bytes) {
        Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error.into()),
        _ => Ok(()),
    }
}

/// Reads what there is.
fn read_all(mut stream: &TcpStream) -> Result<()> {
    loop {
        match stream.read(&mut [0; 65_536]) {
            Ok(0) => anyhow::bail!("a connection ended"),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}
