//! UDP far ends: a sender, plain or with UDP_SEGMENT, from one socket or many, and a receiver that
//! may merge (UDP_GRO) and may echo.
//!
//! UDP has no back-pressure, and a veth's ring has 256 frames: the sender keeps a pace that a small
//! machine follows, or waits for each burst's echo.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{setsockopt, sockopt};

use crate::namespace::Namespace;

/// Datagrams between two pauses: well below the ring.
const BURST: u64 = 32;
/// Between bursts, without echo: 32 datagrams per millisecond are 300 Mbit/s.
const PAUSE: Duration = Duration::from_millis(1);
/// An echo that takes longer is lost.
const ECHO_WITHIN: Duration = Duration::from_secs(60);
/// Most segments of one send: UDP_MAX_SEGMENTS was 64 until 6.2, and a send has less than 64 KiB.
const SEGMENTS: u64 = 40;
/// Asked of the kernel for a receiver, which may be asleep for some milliseconds.
const RECEIVE_BUFFER: usize = 16 << 20;

/// A receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receive {
    /// Where it listens; `[::]` for both families.
    pub listen: SocketAddr,
    /// Sends every datagram back, merged ones as one send with UDP_SEGMENT.
    pub echo: bool,
    /// Takes merged datagrams (UDP_GRO).
    pub gro: bool,
}

/// A sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Send {
    /// Where to.
    pub target: SocketAddr,
    /// From how many sockets, each with a port of the kernel's choice, in turns.
    pub sockets: u32,
    /// Payload per datagram.
    pub datagram_bytes: u16,
    /// Payload together; the last datagram may be short.
    pub total_bytes: u64,
    /// Many datagrams per send (UDP_SEGMENT).
    pub segmented: bool,
    /// Waits for the echo of every burst.
    pub await_echo: bool,
}

/// What a socket, or all of a sender's together, have carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Datagrams, each segment counted.
    pub sent_packets: u64,
    /// Their payload.
    pub sent_bytes: u64,
    /// Datagrams received; merged ones are counted singly.
    pub received_packets: u64,
    /// Their payload.
    pub received_bytes: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent_packets, sent_bytes, received_packets, received_bytes } = self;
        write!(formatter, "udp {sent_packets} {sent_bytes} {received_packets} {received_bytes}")
    }
}

impl Report {
    /// Finds the line of a sender's report in its output.
    pub fn parse(output: &str) -> Result<Self> {
        let line = output.lines().find_map(|line| line.strip_prefix("udp "));
        let numbers = line.context("the output has no report")?.split(' ').map(str::parse);
        let numbers: Vec<u64> = numbers.collect::<Result<_, _>>().context("no numbers")?;
        let &[sent_packets, sent_bytes, received_packets, received_bytes] = numbers.as_slice()
        else {
            bail!("a report has four numbers, not {}", numbers.len());
        };
        Ok(Self { sent_packets, sent_bytes, received_packets, received_bytes })
    }
}

impl Receive {
    pub(crate) fn to_words(&self) -> String {
        format!("{} {} {}", self.listen, self.echo, self.gro)
    }

    pub(crate) fn from_words(words: &[&str]) -> Result<Self> {
        let &[listen, echo, gro] = words else { bail!("three words are needed") };
        Ok(Self { listen: listen.parse()?, echo: echo.parse()?, gro: gro.parse()? })
    }

    /// Receives until it fails, or in a thread: until the process ends. `progress` gets the totals
    /// after every datagram.
    pub fn run(&self, mut progress: impl FnMut(Report)) -> Result<()> {
        let socket = self.bind()?;
        let mut report = Report::default();
        loop {
            self.receive_one(&socket, &mut report)?;
            progress(report);
        }
    }

    /// A socket as described; [`Receive::receive_one`] uses it.
    pub fn bind(&self) -> Result<UdpSocket> {
        let socket = UdpSocket::bind(self.listen)
            .with_context(|| format!("cannot bind UDP {}", self.listen))?;
        if self.gro {
            setsockopt(&socket, sockopt::UdpGroSegment, &true).context("UDP_GRO")?;
        }
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)
            .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER))
            .context("SO_RCVBUF")?;
        Ok(socket)
    }

    /// Receives one datagram or merged ones, echoes it if so told, and adds it to the report.
    pub fn receive_one(&self, socket: &UdpSocket, report: &mut Report) -> Result<()> {
        let mut buffer = vec![0; 65_536];
        let (bytes, segment, from) = receive_merged(socket, &mut buffer)?;
        let packets = match (bytes, segment) {
            (0, _) | (_, 0) => 1,
            _ => bytes.div_ceil(segment) as u64,
        };
        report.received_packets += packets;
        report.received_bytes += bytes as u64;
        if self.echo {
            let size = if packets > 1 { segment } else { 0 };
            send_segmented(socket, &buffer[..bytes], size, Some(from))?;
            report.sent_packets += packets;
            report.sent_bytes += bytes as u64;
        }
        Ok(())
    }
}

/// A receiver in a thread of this process. Dropped, it ends.
#[derive(Debug)]
pub struct Receiver {
    stop: Arc<AtomicBool>,
    report: Arc<Mutex<Report>>,
    thread: Option<JoinHandle<()>>,
}

impl Receiver {
    /// Starts to receive in a namespace; the socket is bound on return.
    pub fn start(namespace: &Namespace, receive: Receive) -> Result<Self> {
        let socket = namespace.run_in(|| receive.bind())??;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let (stop, report) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::default()));
        let thread = thread::Builder::new().name("lab-udp".into()).spawn({
            let (stop, shared) = (Arc::clone(&stop), Arc::clone(&report));
            move || {
                let mut report = Report::default();
                while !stop.load(Ordering::Relaxed) {
                    // An error is the timeout, after which it looks whether to stop, or an ICMP
                    // error for an echo that nobody wanted.
                    if receive.receive_one(&socket, &mut report).is_ok()
                        && let Ok(mut shared) = shared.lock()
                    {
                        *shared = report;
                    }
                }
            }
        })?;
        Ok(Self { stop, report, thread: Some(thread) })
    }

    /// What it has received and sent so far.
    pub fn totals(&self) -> Report {
        self.report.lock().map_or_else(|poisoned| *poisoned.into_inner(), |report| *report)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic was printed when it happened.
            let _ = thread.join();
        }
    }
}

impl Send {
    pub(crate) fn to_words(&self) -> String {
        let Self { target, sockets, datagram_bytes, total_bytes, segmented, await_echo } = self;
        format!("{target} {sockets} {datagram_bytes} {total_bytes} {segmented} {await_echo}")
    }

    pub(crate) fn from_words(words: &[&str]) -> Result<Self> {
        let &[target, sockets, datagram_bytes, total_bytes, segmented, await_echo] = words else {
            bail!("six words are needed");
        };
        Ok(Self {
            target: target.parse()?,
            sockets: sockets.parse()?,
            datagram_bytes: datagram_bytes.parse()?,
            total_bytes: total_bytes.parse()?,
            segmented: segmented.parse()?,
            await_echo: await_echo.parse()?,
        })
    }

    /// Sends in the calling thread's namespace and cgroup; asks between bursts whether to go on.
    ///
    /// All sockets stay open to the end.
    pub fn run(&self, mut go_on: impl FnMut() -> bool) -> Result<Report> {
        if self.sockets == 0 || self.datagram_bytes == 0 {
            bail!("nothing can be sent from no socket, or in datagrams of no bytes");
        }
        let any: SocketAddr = match self.target {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let mut sockets = Vec::new();
        for _ in 0..self.sockets {
            let socket = UdpSocket::bind(any).context("cannot make a UDP socket")?;
            socket.connect(self.target).with_context(|| format!("no way to {}", self.target))?;
            socket.set_read_timeout(Some(ECHO_WITHIN))?;
            sockets.push(socket);
        }
        let size = u64::from(self.datagram_bytes);
        let at_once = if self.segmented { SEGMENTS.min(65_000 / size).max(1) } else { 1 };
        let data = vec![0xa5; (at_once * size) as usize];
        let mut report = Report::default();
        let mut burst = 0;
        let mut pending = vec![0; sockets.len()];
        for (index, socket) in sockets.iter().enumerate().cycle() {
            let left = self.total_bytes - report.sent_bytes;
            if left == 0 {
                break;
            }
            let bytes = left.min(data.len() as u64);
            let packets = bytes.div_ceil(size);
            let segment = if packets > 1 { usize::from(self.datagram_bytes) } else { 0 };
            send_segmented(socket, &data[..bytes as usize], segment, None)?;
            report.sent_packets += packets;
            report.sent_bytes += bytes;
            pending[index] += bytes;
            burst += packets;
            if burst >= BURST || report.sent_bytes == self.total_bytes {
                burst = 0;
                if self.await_echo {
                    collect_echoes(&sockets, &mut pending, &mut report)?;
                } else {
                    thread::sleep(PAUSE);
                }
                if !go_on() {
                    break;
                }
            }
        }
        Ok(report)
    }
}

/// Receives all that is still to come back.
fn collect_echoes(sockets: &[UdpSocket], pending: &mut [u64], report: &mut Report) -> Result<()> {
    let mut buffer = vec![0; 65_536];
    let begin = Instant::now();
    for (socket, pending) in sockets.iter().zip(pending) {
        while *pending > 0 {
            let bytes = socket.recv(&mut buffer).with_context(|| {
                format!("{pending} bytes were not echoed within {:?}", begin.elapsed())
            })?;
            *pending = pending.checked_sub(bytes as u64).context("more was echoed than sent")?;
            report.received_packets += 1;
            report.received_bytes += bytes as u64;
        }
    }
    Ok(())
}

/// Receives a datagram or merged ones; the second number is the size of a segment, 0 for "one".
fn receive_merged(socket: &UdpSocket, buffer: &mut [u8]) -> Result<(usize, usize, SocketAddr)> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
    use std::io::IoSliceMut;
    use std::os::fd::AsRawFd;
    let mut slices = [IoSliceMut::new(buffer)];
    let mut control = nix::cmsg_space!(i32);
    let message = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut slices,
        Some(&mut control),
        MsgFlags::empty(),
    )
    .context("cannot receive UDP")?;
    let segment = message
        .cmsgs()?
        .find_map(|control| match control {
            ControlMessageOwned::UdpGroSegments(size) => usize::try_from(size).ok(),
            _ => None,
        })
        .unwrap_or(0);
    let from = message.address.as_ref().context("a datagram without a sender")?;
    let from = match (from.as_sockaddr_in(), from.as_sockaddr_in6()) {
        (Some(v4), _) => SocketAddr::V4((*v4).into()),
        (_, Some(v6)) => SocketAddr::V6((*v6).into()),
        _ => bail!("a datagram from neither IPv4 nor IPv6"),
    };
    Ok((message.bytes, segment, from))
}

/// Sends `data` in segments of `segment` bytes by one call, or whole if that is 0.
fn send_segmented(
    socket: &UdpSocket,
    data: &[u8],
    segment: usize,
    to: Option<SocketAddr>,
) -> Result<()> {
    use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
    use std::io::IoSlice;
    use std::os::fd::AsRawFd;
    let segment = u16::try_from(segment).context("a segment of more than 64 KiB")?;
    let control = [ControlMessage::UdpGsoSegments(&segment)];
    let control = if segment == 0 { &control[..0] } else { &control[..] };
    let to = to.map(SockaddrStorage::from);
    let slices = [IoSlice::new(data)];
    let sent = sendmsg(socket.as_raw_fd(), &slices, control, MsgFlags::empty(), to.as_ref())
        .with_context(|| format!("cannot send {} bytes in segments of {segment}", data.len()))?;
    if sent != data.len() {
        bail!("{sent} of {} bytes were sent", data.len());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_found_among_other_output() {
        let report =
            Report { sent_packets: 50, sent_bytes: 60_000, received_packets: 2, received_bytes: 3 };
        assert_eq!(Report::parse(&format!("running 1 test\n\n{report}\n")).unwrap(), report);
        assert!(Report::parse("").is_err());
        assert!(Report::parse("udp 1 2 3").is_err());
        assert!(Report::parse("udp 1 2 3 x").is_err());
    }
}
