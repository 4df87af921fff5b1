//! The two far ends of a proxy: a server, a client, and the traffic between them, of which both ends
//! tell exactly how many bytes they passed to and got from their sockets.
//!
//! A connection begins with 16 bytes: how many bytes will be uploaded, and how many the server shall
//! send, as big-endian u64; the top bit of the first says "both at once". The client closes its
//! sending side after the upload, the server after the download: nothing is reset, nothing is late.
//! Proxies that pass on no half that ends need [`Closing::WhenDone`] instead.

mod server;

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

pub use self::server::Server;
use crate::namespace::Namespace;

/// Length of the header that begins a connection.
pub const HEADER_BYTES: u64 = 16;
/// In the first field of the header.
const AT_ONCE: u64 = 1 << 63;
/// Likewise.
const WHEN_DONE: u64 = 1 << 62;
/// Longest silence of a socket.
const SILENCE: Duration = Duration::from_secs(15);
/// Bytes moved by one system call.
const CHUNK: usize = 64 * 1024;

/// Traffic to be driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workload {
    /// For reports.
    pub name: &'static str,
    /// How many connections, one exchange each.
    pub connections: u32,
    /// How many of them at a time.
    pub parallel: u32,
    /// Bytes from the client to the server per connection, the header not included.
    pub upload_bytes: u64,
    /// Bytes from the server to the client per connection.
    pub download_bytes: u64,
    /// Whether both directions go at once; else the server answers when it has all.
    pub at_once: bool,
}

impl Workload {
    /// The four of the demo: download-heavy, upload-heavy, symmetric, and short connections.
    pub const DEMO: [Self; 4] = [
        Self {
            name: "download",
            connections: 4,
            parallel: 2,
            upload_bytes: 500,
            download_bytes: 10_000_000,
            at_once: false,
        },
        Self {
            name: "upload",
            connections: 4,
            parallel: 2,
            upload_bytes: 10_000_000,
            download_bytes: 500,
            at_once: false,
        },
        Self {
            name: "symmetric",
            connections: 4,
            parallel: 2,
            upload_bytes: 5_000_000,
            download_bytes: 5_000_000,
            at_once: true,
        },
        Self {
            name: "short",
            connections: 1000,
            parallel: 8,
            upload_bytes: 200,
            download_bytes: 2_000,
            at_once: false,
        },
    ];

    /// The application bytes of all connections: what a proxy is asked to carry, once.
    pub fn total_bytes(&self) -> u64 {
        u64::from(self.connections) * (self.upload_bytes + self.download_bytes)
    }
}

/// What one side's sockets have taken and given, to the byte.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// Connections carried to their end.
    pub connections: u64,
    /// Bytes written to sockets: headers and the talk with the relay included.
    pub sent_bytes: u64,
    /// Bytes read from sockets, likewise.
    pub received_bytes: u64,
}

/// Both sides of a workload. They agree, less the talk with the relay, or [`run`] fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// The client's side; less `greeting_*` it is the mirror of the server's.
    pub client: Endpoint,
    /// The server's side.
    pub server: Endpoint,
    /// Of the client's bytes sent: the talk with the relay.
    pub greeting_sent_bytes: u64,
    /// Of the client's bytes received: the talk with the relay.
    pub greeting_received_bytes: u64,
    /// From the first connection to the last.
    pub duration: Duration,
}

/// The way from the client to the server.
#[derive(Debug, Clone, Copy)]
pub struct Route<'a> {
    /// Where the client is.
    pub client: &'a Namespace,
    /// A SOCKS5 relay to go through; without, the client connects to the target itself.
    pub relay: Option<SocketAddr>,
    /// The server, or what stands for it (a port that a proxy forwards).
    pub target: SocketAddr,
}

/// Who closes a connection when.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Closing {
    /// Each side when it has sent all: a relay must pass on that one direction has ended, and leave
    /// the other going.
    #[default]
    ByHalves,
    /// Both sides, as soon as both directions are through, as with HTTP. xray, v2ray and sing-box,
    /// some of them with some protocols, tell the other side nothing of a half that ends, or soon end
    /// the other half, too.
    WhenDone,
}

fn field(header: &[u8], offset: usize) -> u64 {
    header[offset..offset + 8].iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// Sends and receives: both at once, or first the one and then the other.
fn exchange<S: Send, R: Send>(
    at_once: bool,
    send: impl FnOnce() -> io::Result<S> + Send,
    receive: impl FnOnce() -> io::Result<R> + Send,
) -> io::Result<(S, R)> {
    if !at_once {
        let received = receive()?;
        return Ok((send()?, received));
    }
    thread::scope(|scope| {
        let receiver = scope.spawn(receive);
        let sent = send();
        let received = receiver.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((sent?, received?))
    })
}

/// Drives a workload and waits until both ends are done.
///
/// `progress` is called with bytes newly sent or received by the client, from several threads.
/// The server must be used by nobody else meanwhile. An error if a connection fails, falls silent
/// for 15 seconds, or carries another number of bytes than it should.
pub fn run(
    workload: &Workload,
    route: Route<'_>,
    server: &Server,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Outcome> {
    run_closing(Closing::ByHalves, workload, route, server, progress)
}

/// As [`run`], with a choice of who closes when.
pub fn run_closing(
    closing: Closing,
    workload: &Workload,
    route: Route<'_>,
    server: &Server,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Outcome> {
    let before = server.totals();
    let begin = Instant::now();
    let next = AtomicU32::new(0);
    let failed = AtomicBool::new(false);
    let work = |worker: usize| -> Result<(Endpoint, u64, u64)> {
        stay_on_one_processor(worker)?;
        let (mut total, mut greeting_sent, mut greeting_received) = (Endpoint::default(), 0, 0);
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= workload.connections || failed.load(Ordering::Relaxed) {
                return Ok((total, greeting_sent, greeting_received));
            }
            let done = one_connection(closing, workload, route, progress).with_context(|| {
                failed.store(true, Ordering::Relaxed);
                format!("connection {} of workload {}", number + 1, workload.name)
            })?;
            total.connections += 1;
            total.sent_bytes += done.greeting_sent + done.sent;
            total.received_bytes += done.greeting_received + done.received;
            greeting_sent += done.greeting_sent;
            greeting_received += done.greeting_received;
        }
    };
    let results = route.client.run_in(|| {
        thread::scope(|scope| {
            let workers: Vec<_> = (0..workload.parallel.max(1) as usize)
                .map(|worker| scope.spawn(move || work(worker)))
                .collect();
            workers
                .into_iter()
                .map(|worker| {
                    worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect::<Vec<_>>()
        })
    })?;
    let mut outcome = Outcome {
        client: Endpoint::default(),
        server: Endpoint::default(),
        greeting_sent_bytes: 0,
        greeting_received_bytes: 0,
        duration: Duration::ZERO,
    };
    for result in results {
        let (client, greeting_sent, greeting_received) = result?;
        outcome.client.connections += client.connections;
        outcome.client.sent_bytes += client.sent_bytes;
        outcome.client.received_bytes += client.received_bytes;
        outcome.greeting_sent_bytes += greeting_sent;
        outcome.greeting_received_bytes += greeting_received;
    }
    server.wait_for_connections(before.connections + u64::from(workload.connections))?;
    outcome.duration = begin.elapsed();
    let after = server.totals();
    outcome.server = Endpoint {
        connections: after.connections - before.connections,
        sent_bytes: after.sent_bytes - before.sent_bytes,
        received_bytes: after.received_bytes - before.received_bytes,
    };
    if outcome.client.sent_bytes - outcome.greeting_sent_bytes != outcome.server.received_bytes
        || outcome.client.received_bytes - outcome.greeting_received_bytes
            != outcome.server.sent_bytes
    {
        bail!("the two ends disagree: {outcome:?}");
    }
    Ok(outcome)
}

/// Keeps the calling thread, and threads that it starts, on one of the processors that it may use.
///
/// Without GRO a packet on a veth is received on the processor that sent it. If a client moves between
/// the end of the handshake and its first data, both are received at once on two processors; the kernel
/// then looks for the socket again, and runs the cgroup's hook for the same packet once more. On a real
/// link the packets of a connection come on one processor.
fn stay_on_one_processor(worker: usize) -> Result<()> {
    let own = Pid::from_raw(0);
    let may = sched_getaffinity(own).context("sched_getaffinity")?;
    let processors: Vec<usize> =
        (0..CpuSet::count()).filter(|&number| may.is_set(number).unwrap_or(false)).collect();
    let mut one = CpuSet::new();
    one.set(processors[worker % processors.len()])?;
    sched_setaffinity(own, &one).context("sched_setaffinity")
}

/// Bytes of one connection at the client.
struct Done {
    greeting_sent: u64,
    greeting_received: u64,
    sent: u64,
    received: u64,
}

fn one_connection(
    closing: Closing,
    workload: &Workload,
    route: Route<'_>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Done> {
    let first = route.relay.unwrap_or(route.target);
    let stream = TcpStream::connect_timeout(&first, SILENCE)
        .with_context(|| format!("cannot connect to {first}"))?;
    prepare(&stream)?;
    let (greeting_sent, greeting_received) = match route.relay {
        Some(_) => greet_socks5(&stream, route.target)?,
        None => (0, 0),
    };
    let by_halves = closing == Closing::ByHalves;
    let mut flag = if workload.at_once { AT_ONCE } else { 0 };
    flag |= if by_halves { 0 } else { WHEN_DONE };
    let mut header = [0; HEADER_BYTES as usize];
    header[..8].copy_from_slice(&(workload.upload_bytes | flag).to_be_bytes());
    header[8..].copy_from_slice(&workload.download_bytes.to_be_bytes());
    let upload = || -> io::Result<u64> {
        (&stream).write_all(&header)?;
        let sent = send(&stream, workload.upload_bytes, progress)?;
        if by_halves {
            stream.shutdown(Shutdown::Write)?;
        }
        Ok(sent + HEADER_BYTES)
    };
    let download = || match by_halves {
        true => receive(&stream, workload.download_bytes, progress),
        false => receive_some(&stream, workload.download_bytes, progress),
    };
    let (sent, received) = if workload.at_once {
        exchange(true, upload, download)
    } else {
        upload().and_then(|sent| Ok((sent, download()?)))
    }
    .context("the exchange with the server failed")?;
    if !by_halves {
        finish(&stream).context("the connection to the server does not end")?;
    }
    Ok(Done { greeting_sent, greeting_received, sent, received })
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))
}

/// Asks a SOCKS5 relay for a connection; returns the bytes sent and received for that.
fn greet_socks5(mut stream: &TcpStream, target: SocketAddr) -> Result<(u64, u64)> {
    let talk = "the talk with the SOCKS5 relay failed";
    stream.write_all(&[5, 1, 0]).context(talk)?;
    let mut method = [0; 2];
    stream.read_exact(&mut method).context(talk)?;
    if method != [5, 0] {
        bail!("the relay wants authentication or is no SOCKS5 relay: {method:?}");
    }
    let mut request = vec![5, 1, 0];
    match target.ip() {
        IpAddr::V4(address) => {
            request.push(1);
            request.extend(address.octets());
        }
        IpAddr::V6(address) => {
            request.push(4);
            request.extend(address.octets());
        }
    }
    request.extend(target.port().to_be_bytes());
    stream.write_all(&request).context(talk)?;
    let mut reply = [0; 4];
    stream.read_exact(&mut reply).context(talk)?;
    if reply[1] != 0 {
        bail!("the relay could not connect to {target}: SOCKS5 code {}", reply[1]);
    }
    let rest = match reply[3] {
        1 => 4 + 2,
        4 => 16 + 2,
        other => return Err(anyhow!("the relay answers with an address of kind {other}")),
    };
    let mut bound = [0; 18];
    stream.read_exact(&mut bound[..rest]).context(talk)?;
    Ok((3 + request.len() as u64, 2 + 4 + rest as u64))
}

/// Sends so many bytes.
fn send(mut stream: &TcpStream, bytes: u64, progress: &dyn Fn(u64)) -> io::Result<u64> {
    let chunk = [0x5a; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let wanted = left.min(CHUNK as u64) as usize;
        let sent = stream.write(&chunk[..wanted]).map_err(in_words)? as u64;
        if sent == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        left -= sent;
        progress(sent);
    }
    Ok(bytes)
}

/// Receives so many bytes and leaves what follows.
fn receive_some(mut stream: &TcpStream, bytes: u64, progress: &dyn Fn(u64)) -> io::Result<u64> {
    let mut chunk = [0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let wanted = left.min(CHUNK as u64) as usize;
        match stream.read(&mut chunk[..wanted]).map_err(in_words)? as u64 {
            0 => return Err(io::Error::other(format!("{left} of {bytes} bytes did not come"))),
            got => {
                left -= got;
                progress(got);
            }
        }
    }
    Ok(bytes)
}

/// Closes the sending side and waits for the other to do so, too. Nothing may come before; a reset is
/// as good an end as any, because both directions are through.
fn finish(stream: &TcpStream) -> io::Result<()> {
    let ended = match stream.shutdown(Shutdown::Write) {
        Ok(()) => receive(stream, 0, &|_| {}).map(drop),
        Err(error) => Err(error),
    };
    match ended {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        ended => ended,
    }
}

/// Receives to the end of the stream and checks that it had so many bytes.
fn receive(mut stream: &TcpStream, bytes: u64, progress: &dyn Fn(u64)) -> io::Result<u64> {
    let mut chunk = [0; CHUNK];
    let mut received = 0;
    loop {
        match stream.read(&mut chunk).map_err(in_words)? {
            0 => break,
            got => {
                received += got as u64;
                progress(got as u64);
            }
        }
    }
    if received != bytes {
        return Err(io::Error::other(format!("{received} bytes came instead of {bytes}")));
    }
    Ok(received)
}

/// "Resource temporarily unavailable" does not say that a timeout is over.
fn in_words(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => {
            io::Error::new(io::ErrorKind::TimedOut, format!("nothing moved for {SILENCE:?}"))
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_the_header_are_big_endian() {
        let mut header = [0; 16];
        header[..8].copy_from_slice(&(5u64 | AT_ONCE).to_be_bytes());
        header[8..].copy_from_slice(&0x0102_0304_0506_0708u64.to_be_bytes());
        assert_eq!(field(&header, 0), 0x8000_0000_0000_0005);
        assert_eq!(field(&header, 8), 0x0102_0304_0506_0708);
    }

    #[test]
    fn demo_moves_enough_to_be_seen_and_little_enough_to_be_quick() {
        let totals = Workload::DEMO.map(|workload| workload.total_bytes());
        assert_eq!(totals, [40_002_000, 40_002_000, 40_000_000, 2_200_000]);
    }
}
