//! A far end without a kernel behind it: every packet is the caller's. So a peer can be as late, as
//! silent or as wrong as a test needs it, and each packet on the link is one that the test knows.
//!
//! Its addresses are on the lab's links, but no namespace has them: the far end's kernel takes what
//! comes for them for somebody else's, and answers nothing.

use std::cell::Cell;
use std::hint;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use nix::unistd::Pid;

use crate::capture::bind_to_device;
use crate::crafted::{self, Ends, Segment};
use crate::namespace::Namespace;
use crate::packet::{ACK, ETHERNET_HEADER, FIN, Family, Frame, Headers, RST, SYN, parse};
use crate::topology::{FAR_DEVICE, Lab, addresses};

/// A packet that takes longer never comes.
const PATIENCE: Duration = Duration::from_secs(60);
/// The last number of the addresses.
const HOST: u8 = 66;
/// More than a frame.
const FRAME_BYTES: usize = 2048;
/// The number of a connection's SYN.
const FIRST_SEQUENCE: u32 = 1000;
/// The clock of the far end stands still, which nobody minds.
const CLOCK: u32 = 1;

/// Which end of the lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Where the proxy's clients are.
    Client,
    /// Where the proxy's servers are.
    Upstream,
}

/// A far end: a packet socket on the far device of a link.
#[derive(Debug)]
pub struct FarEnd {
    socket: OwnedFd,
    /// One address for both ends of the link.
    hardware: [u8; 6],
    address: IpAddr,
    proxy: IpAddr,
    /// The next port that nobody has used.
    port: Cell<u16>,
    /// Whether an extension header is before the transport header, IPv6 only.
    has_options: bool,
}

/// A packet that came from the proxy.
#[derive(Debug, Clone)]
pub struct Received {
    /// What it says.
    pub headers: Headers,
    /// All of it, from the IP header on.
    pub packet: Vec<u8>,
}

impl FarEnd {
    /// Makes one at an end of the lab, for one family. Needs CAP_NET_RAW.
    pub fn new(lab: &Lab, side: Side, family: Family) -> Result<Self> {
        let addresses = addresses(family);
        let (namespace, neighbour, proxy) = match side {
            Side::Client => (&lab.client, addresses.client, addresses.proxy_client),
            Side::Upstream => (&lab.upstream, addresses.upstream, addresses.proxy_upstream),
        };
        let (socket, hardware) = open(namespace)?;
        let address = beside(neighbour);
        Ok(Self { socket, hardware, address, proxy, port: Cell::new(4000), has_options: false })
    }

    /// The same, but what it sends is for an address behind the proxy's host, which is to forward it.
    pub fn towards(self, address: IpAddr) -> Self {
        Self { proxy: address, ..self }
    }

    /// The same, but each packet that it sends has 8 bytes of destination options: IPv6 only.
    pub fn with_options(self) -> Self {
        Self { has_options: true, ..self }
    }

    /// Its address with a port.
    pub fn at(&self, port: u16) -> SocketAddr {
        (self.address, port).into()
    }

    /// A port that it has not used yet.
    pub fn fresh_port(&self) -> u16 {
        self.port.replace(self.port.get() + 1)
    }

    /// Sends a SYN and nothing else.
    pub fn syn(&self, port: u16, proxy_port: u16) -> Result<()> {
        self.connection(port, proxy_port).segment(0, SYN, &[])
    }

    /// Sends a reset that ends what a [`FarEnd::syn`] has begun.
    pub fn reset(&self, port: u16, proxy_port: u16) -> Result<()> {
        let mut connection = self.connection(port, proxy_port);
        connection.next += 1;
        connection.segment(0, RST, &[])
    }

    /// Opens a connection to the proxy from a fresh port.
    pub fn connect(&self, proxy_port: u16) -> Result<Connection<'_>> {
        let mut connection = self.half_open(proxy_port)?;
        connection.send(ACK, &[])?;
        Ok(connection)
    }

    /// The same, but for the last of three packets.
    pub fn half_open(&self, proxy_port: u16) -> Result<Connection<'_>> {
        let mut connection = self.connection(self.fresh_port(), proxy_port);
        connection.send(SYN, &[])?;
        connection.expect(SYN | ACK)?;
        Ok(connection)
    }

    /// Takes the SYN of a connection that the proxy opens to a port; the SYN-ACK is up to the caller.
    pub fn take_syn(&self, port: u16) -> Result<Connection<'_>> {
        let syn = self.receive(|headers| {
            headers.destination_port == port && headers.tcp.is_some_and(|tcp| tcp.has(SYN))
        })?;
        let mut connection = self.connection(port, syn.headers.source_port);
        connection.take(&syn)?;
        Ok(connection)
    }

    /// Accepts a connection that the proxy opens to a port.
    pub fn accept(&self, port: u16) -> Result<Connection<'_>> {
        let mut connection = self.take_syn(port)?;
        connection.send(SYN | ACK, &[])?;
        connection.expect(ACK)?;
        Ok(connection)
    }

    /// Sends a datagram to the proxy.
    pub fn datagram(&self, port: u16, proxy_port: u16, payload: &[u8]) -> Result<()> {
        self.emit(&crafted::udp(self.ends(), port, proxy_port, payload))
    }

    /// Sends a datagram to the proxy that was spoiled on its way: its checksum is wrong.
    pub fn spoiled_datagram(&self, port: u16, proxy_port: u16, payload: &[u8]) -> Result<()> {
        let mut packet = crafted::udp(self.ends(), port, proxy_port, payload);
        let last = packet.len() - 1;
        packet[last] ^= 1;
        self.emit(&packet)
    }

    /// Sends an echo request with 56 bytes, as `ping` does.
    pub fn ping(&self, number: u16) -> Result<()> {
        self.emit(&crafted::echo_request(self.ends(), number, &[0; 56]))
    }

    /// Answers a packet of the proxy with "port unreachable".
    pub fn refuse(&self, packet: &Received) -> Result<()> {
        self.emit(&crafted::port_unreachable(self.ends(), &packet.packet))
    }

    /// Waits for a packet of the proxy; those before that are not wanted are gone.
    pub fn receive(&self, wanted: impl Fn(&Headers) -> bool) -> Result<Received> {
        let begin = Instant::now();
        let mut frame = [0; FRAME_BYTES];
        while begin.elapsed() < PATIENCE {
            let length = match recv(self.socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                Ok(length) => length,
                Err(Errno::EAGAIN | Errno::EINTR) => continue,
                Err(error) => return Err(error).context("cannot receive at a handmade far end"),
            };
            let Ok(Frame::Ip(headers)) = parse(&frame[..length], length) else { continue };
            if headers.destination == self.address && wanted(&headers) {
                return Ok(Received { headers, packet: frame[ETHERNET_HEADER..length].to_vec() });
            }
        }
        bail!("the packet that {} waits for has not come within {PATIENCE:?}", self.address)
    }

    fn connection(&self, port: u16, proxy_port: u16) -> Connection<'_> {
        let (next, expected, echo) = (FIRST_SEQUENCE, 0, 0);
        Connection { far: self, port, proxy_port, next, expected, echo }
    }

    fn ends(&self) -> Ends {
        Ends { source: self.address, destination: self.proxy }
    }

    fn emit(&self, packet: &[u8]) -> Result<()> {
        send_frame(&self.socket, &self.frame(packet))
    }

    fn frame(&self, packet: &[u8]) -> Vec<u8> {
        let kind = if self.address.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] };
        let packet = if self.has_options { crafted::with_options(packet) } else { packet.to_vec() };
        [&self.hardware[..], &self.hardware, &kind, &packet].concat()
    }
}

/// The far end's side of a TCP connection. Dropped, it just falls silent.
#[derive(Debug)]
pub struct Connection<'f> {
    far: &'f FarEnd,
    port: u16,
    proxy_port: u16,
    /// Number of the next byte that is sent.
    next: u32,
    /// Number of the next byte that comes.
    expected: u32,
    /// The last clock of the proxy.
    echo: u32,
}

impl Connection<'_> {
    /// The port of this side.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Sends a segment in its turn, which acknowledges all that was taken.
    pub fn send(&mut self, flags: u8, payload: &[u8]) -> Result<()> {
        self.segment(0, flags, payload)?;
        self.next = self.next.wrapping_add(payload.len() as u32);
        self.next = self.next.wrapping_add(u32::from(flags & (SYN | FIN) != 0));
        Ok(())
    }

    /// Sends a segment that begins `back` bytes before its turn, as one that was sent before or came
    /// late. The connection goes on as if nothing had been.
    pub fn send_again(&self, back: u32, flags: u8, payload: &[u8]) -> Result<()> {
        self.segment(back, flags, payload)
    }

    /// Sends a segment that begins `ahead` bytes after its turn, as one that has overtaken others. The
    /// connection goes on as if nothing had been.
    pub fn send_ahead(&self, ahead: u32, flags: u8, payload: &[u8]) -> Result<()> {
        self.segment(ahead.wrapping_neg(), flags, payload)
    }

    /// Sends two segments in their turn from two CPUs at the same time, so that the proxy's kernel takes
    /// both at once: one without payload, one with.
    pub fn send_at_once(&mut self, payload: &[u8]) -> Result<()> {
        let frames = [&[], payload].map(|it| self.far.frame(&self.crafted(0, ACK, it)));
        let (socket, ready) = (&self.far.socket, AtomicUsize::new(0));
        thread::scope(|scope| {
            let senders = [0, 1].map(|cpu| {
                let (frame, ready) = (&frames[cpu], &ready);
                scope.spawn(move || -> Result<()> {
                    let mut only = CpuSet::new();
                    only.set(cpu)?;
                    sched_setaffinity(Pid::from_raw(0), &only)
                        .with_context(|| format!("CPU {cpu} is not allowed here"))?;
                    ready.fetch_add(1, Ordering::SeqCst);
                    while ready.load(Ordering::SeqCst) < 2 {
                        hint::spin_loop();
                    }
                    send_frame(socket, frame)
                })
            });
            for sender in senders {
                sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            Ok::<_, anyhow::Error>(())
        })?;
        self.next = self.next.wrapping_add(payload.len() as u32);
        Ok(())
    }

    /// Answers the proxy's SYN with the acknowledgement of something that it has never sent.
    pub fn answer_wrongly(&self) -> Result<()> {
        let wrong = Self { expected: self.expected.wrapping_add(1000), ..*self };
        wrong.segment(0, SYN | ACK, &[])
    }

    /// Begins a connection between the same ports, while the proxy still remembers this one: sends its
    /// SYN.
    pub fn begin_again(self) -> Result<Self> {
        // Far beyond the old one's numbers, by which the proxy knows that it is new.
        let next = self.next.wrapping_add(1_000_000);
        let mut again = Self { next, expected: 0, ..self };
        again.send(SYN, &[])?;
        Ok(again)
    }

    /// The same, to the end of the handshake.
    pub fn reopen(self) -> Result<Self> {
        let mut again = self.begin_again()?;
        again.expect(SYN | ACK)?;
        again.send(ACK, &[])?;
        Ok(again)
    }

    /// Waits for a segment with these flags, and takes it: what is sent from now on acknowledges it.
    pub fn expect(&mut self, flags: u8) -> Result<Received> {
        let received = self.see(flags)?;
        self.take(&received)?;
        Ok(received)
    }

    /// Waits for a segment with these flags, and does not take it.
    pub fn see(&self, flags: u8) -> Result<Received> {
        self.wait_for(|headers| headers.tcp.is_some_and(|tcp| tcp.has(flags)))
    }

    /// Waits for so many bytes of payload, and takes them. What was taken before and comes again, because
    /// its acknowledgement was late, is left aside.
    pub fn expect_payload(&mut self, bytes: u32) -> Result<()> {
        let expected = self.expected;
        let is_new = |sequence: u32| sequence.wrapping_sub(expected) as i32 >= 0;
        let received = self.wait_for(|headers| {
            headers.payload_bytes > 0 && headers.tcp.is_some_and(|tcp| is_new(tcp.sequence))
        })?;
        let came = received.headers.payload_bytes;
        ensure!(came == bytes, "{came} bytes came instead of {bytes}");
        self.take(&received)
    }

    fn wait_for(&self, wanted: impl Fn(&Headers) -> bool) -> Result<Received> {
        let ports = (self.proxy_port, self.port);
        self.far.receive(|headers| {
            (headers.source_port, headers.destination_port) == ports && wanted(headers)
        })
    }

    fn take(&mut self, received: &Received) -> Result<()> {
        let Headers { tcp: Some(tcp), payload_bytes, .. } = received.headers else {
            bail!("this is no TCP: {:?}", received.headers);
        };
        // What comes again changes nothing.
        if tcp.has(SYN) || tcp.sequence == self.expected {
            let flags = u32::from(tcp.has(SYN)) + u32::from(tcp.has(FIN));
            self.expected = tcp.sequence.wrapping_add(payload_bytes).wrapping_add(flags);
        }
        self.echo = clock(received).unwrap_or(self.echo);
        Ok(())
    }

    fn segment(&self, back: u32, flags: u8, payload: &[u8]) -> Result<()> {
        self.far.emit(&self.crafted(back, flags, payload))
    }

    fn crafted(&self, back: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let segment = Segment {
            source_port: self.port,
            destination_port: self.proxy_port,
            flags,
            sequence: self.next.wrapping_sub(back),
            acknowledged: self.expected,
            timestamp: CLOCK,
            echo: self.echo,
            payload,
        };
        crafted::tcp(self.far.ends(), &segment)
    }
}

fn send_frame(socket: &OwnedFd, frame: &[u8]) -> Result<()> {
    let sent = send(socket.as_raw_fd(), frame, MsgFlags::empty())
        .context("cannot send from a handmade far end")?;
    ensure!(sent == frame.len(), "{sent} of {} bytes were sent", frame.len());
    Ok(())
}

/// The sender's clock in the timestamps option of a TCP packet.
fn clock(received: &Received) -> Option<u32> {
    // IPv4 options and extension headers do not come from the lab's proxy.
    let tcp = received.packet.get(if received.packet[0] >> 4 == 4 { 20 } else { 40 }..)?;
    let mut options = tcp.get(20..usize::from(*tcp.get(12)? >> 4) * 4)?;
    loop {
        match options {
            [8, 10, rest @ ..] => return Some(u32::from_be_bytes(*rest.first_chunk()?)),
            // The end; a NOP; any other option with its length.
            [0, ..] | [] => return None,
            [1, rest @ ..] => options = rest,
            [_, length, ..] => options = options.get(usize::from(*length).max(2)..)?,
            [_] => return None,
        }
    }
}

/// The address of a handmade far end on the link of another one.
fn beside(neighbour: IpAddr) -> IpAddr {
    match neighbour {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            Ipv4Addr::new(a, b, c, HOST).into()
        }
        IpAddr::V6(address) => {
            let mut octets = address.octets();
            octets[15] = HOST;
            Ipv6Addr::from(octets).into()
        }
    }
}

/// A packet socket on the far device of a namespace, and the device's hardware address.
fn open(namespace: &Namespace) -> Result<(OwnedFd, [u8; 6])> {
    namespace.run_in(|| {
        let index = if_nametoindex(FAR_DEVICE)?;
        // Protocol 0 receives nothing: frames of other devices must not come in before `bind`.
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
        bind_to_device(&socket, index)?;
        // So that a wait ends when it must.
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, 100_000))?;
        let hardware = hardware_address(&socket)?;
        Ok((socket, hardware))
    })?
}

/// The hardware address of the device that a packet socket is bound to.
fn hardware_address(socket: &OwnedFd) -> Result<[u8; 6]> {
    // SAFETY: every bit pattern is a valid `sockaddr_ll`.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    let mut length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the pointers are those of live values, and `length` is the size of the first.
    let result = unsafe {
        libc::getsockname(socket.as_raw_fd(), (&raw mut address).cast(), &raw mut length)
    };
    Errno::result(result).context("getsockname")?;
    let [a, b, c, d, e, f, ..] = address.sll_addr;
    Ok([a, b, c, d, e, f])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::TCP;

    fn received(options: &[u8]) -> Received {
        let mut packet = vec![0x45; 20];
        packet.extend([0; 12]);
        packet.push((((20 + options.len()) / 4) << 4) as u8);
        packet.extend([0; 7]);
        packet.extend(options);
        let headers = Headers {
            source: Ipv4Addr::LOCALHOST.into(),
            destination: Ipv4Addr::LOCALHOST.into(),
            source_port: 1,
            destination_port: 2,
            protocol: TCP,
            icmp_type: None,
            fragment: false,
            l3_bytes: packet.len() as u32,
            payload_bytes: 0,
            tcp: None,
        };
        Received { headers, packet }
    }

    #[test]
    fn the_clock_of_the_other_side_is_found_wherever_it_stands() {
        assert_eq!(clock(&received(&[1, 1, 8, 10, 0, 0, 1, 2, 9, 9, 9, 9])), Some(258));
        let syn = [2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 7, 0, 0, 0, 0, 1, 3, 3, 7];
        assert_eq!(clock(&received(&syn)), Some(7));
        for without in [&[][..], &[1, 1, 1, 1], &[0, 8, 10, 0], &[8, 10, 0, 0], &[5, 0, 0, 0]] {
            assert_eq!(clock(&received(without)), None);
        }
    }

    #[test]
    fn a_handmade_far_end_is_nobodys_address() {
        for family in [Family::Ipv4, Family::Ipv6] {
            let lab = addresses(family);
            let made = beside(lab.client);
            assert!(![lab.client, lab.proxy_client].contains(&made));
            assert_eq!(made.is_ipv4(), lab.client.is_ipv4());
        }
    }
}
