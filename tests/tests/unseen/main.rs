//! Every class of packets that the cgroup hook does not see: provoked, found in the capture, and sized
//! to the byte. What is left of a capture when these are named is in the cells.
//!
//! The peers are made by hand, packet by packet, so each test knows which packet is late and whether a
//! socket was there to take it. Sizes are those of `docs/accounting.md`: an IP header of 20 or 40
//! bytes, a TCP header of 32 with timestamps, 40 in a SYN, and 20 in a reset without a socket.

mod after_close;
mod attribution;
mod datagrams;
mod exit;
mod frequency;
mod no_socket;
mod on_the_way;
mod whose;

use std::net::{TcpListener, TcpStream};
use std::thread;

use anyhow::Result;
use traffic_lab::handmade::{Connection, FarEnd};
use traffic_lab::packet::{ACK, Direction, FIN, Family, Packet};
use traffic_tests::site::Site;

const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];
/// Where the proxy listens, or the upstream does.
const PORT: u16 = 1171;

/// Bytes of an IP header.
fn ip_header(family: Family) -> u32 {
    match family {
        Family::Ipv4 => 20,
        Family::Ipv6 => 40,
    }
}

/// Bytes of a TCP packet with timestamps and so many bytes of payload.
fn segment(family: Family, payload: u32) -> u32 {
    ip_header(family) + 32 + payload
}

/// Bytes of a SYN or SYN-ACK.
fn syn(family: Family) -> u32 {
    ip_header(family) + 40
}

/// Bytes of a reset that no socket has sent.
fn reset(family: Family) -> u32 {
    ip_header(family) + 20
}

/// Whether a TCP packet of a direction has all of these flags.
fn has(packet: &Packet, direction: Direction, flags: u8) -> bool {
    packet.direction == direction && packet.headers.tcp.is_some_and(|tcp| tcp.has(flags))
}

/// A connection to the proxy: the far end's side, and the proxy's socket.
fn connected<'f>(far: &'f FarEnd, listener: &TcpListener) -> Result<(Connection<'f>, TcpStream)> {
    let connection = far.connect(PORT)?;
    let (stream, _) = listener.accept()?;
    Ok((connection, stream))
}

/// A connection from the proxy, likewise.
fn connected_upstream<'f>(site: &Site, far: &'f FarEnd) -> Result<(Connection<'f>, TcpStream)> {
    let to = far.at(PORT);
    thread::scope(|scope| {
        let connecting = scope.spawn(move || site.factory.tcp_stream(to));
        let connection = far.accept(PORT)?;
        let stream = connecting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok((connection, stream))
    })
}

/// The proxy closes, and the far end acknowledges that: the socket is gone, and a TIME_WAIT one, which
/// still waits for the other FIN, stands for it.
fn close(connection: &mut Connection<'_>, stream: TcpStream) -> Result<()> {
    drop(stream);
    connection.expect(FIN | ACK)?;
    connection.send(ACK, &[])
}
