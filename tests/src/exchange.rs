//! One short TCP exchange between a socket of the test and one of a far end, closed by the far end first:
//! so nothing stays in TIME_WAIT at the proxy, where packets would come that no socket takes.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Result, ensure};
use traffic_lab::Namespace;

use crate::factory::{connect_to, domain, socket_here};

/// An exchange that takes longer is stuck.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is carried, each way.
pub const EXCHANGED_BYTES: usize = 3000;

/// A client in a namespace connects to a listener, which may be known under another address there.
pub fn with_listener(client: &Namespace, to: SocketAddr, listener: &TcpListener) -> Result<()> {
    with_listener_by(client, to, listener, 0)
}

/// As [`with_listener`], by another protocol than TCP, such as MPTCP.
pub fn with_listener_by(
    client: &Namespace,
    to: SocketAddr,
    listener: &TcpListener,
    protocol: i32,
) -> Result<()> {
    let client = client.run_in(|| connect(to, protocol))??;
    let (server, _) = listener.accept()?;
    carry(&client, &server, EXCHANGED_BYTES)
}

/// A socket that is connected already exchanges with its peer: bytes there, as many back, and the end.
pub fn carry(closes_first: &TcpStream, closes_last: &TcpStream, bytes: usize) -> Result<()> {
    for stream in [closes_first, closes_last] {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
    }
    one_way(closes_first, closes_last, bytes)?;
    one_way(closes_last, closes_first, bytes)?;
    end(closes_first, closes_last)
}

/// Closes a connection by halves, on which nothing is under way.
pub fn end(closes_first: &TcpStream, closes_last: &TcpStream) -> Result<()> {
    closes_first.shutdown(Shutdown::Write)?;
    ensure!((&*closes_last).read(&mut [0])? == 0, "more came than was sent");
    closes_last.shutdown(Shutdown::Write)?;
    ensure!((&*closes_first).read(&mut [0])? == 0, "more came than was sent");
    Ok(())
}

/// Carries so many bytes from one to the other.
pub fn one_way(mut from: &TcpStream, mut to: &TcpStream, bytes: usize) -> Result<()> {
    std::thread::scope(|scope| {
        let sending = scope.spawn(move || from.write_all(&vec![7; bytes]));
        let mut received = vec![0; bytes];
        to.read_exact(&mut received)?;
        sending.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(())
    })
}

/// A connected socket of the calling thread's namespace.
fn connect(to: SocketAddr, protocol: i32) -> Result<TcpStream> {
    let socket = socket_here(domain(to), libc::SOCK_STREAM, protocol)?;
    connect_to(&socket, to)?;
    Ok(TcpStream::from(socket))
}

/// A client of the lab's server: uploads, then downloads, so many bytes, and closes by halves.
pub fn fetch(to: SocketAddr, upload: u64, download: u64) -> Result<()> {
    let mut server = TcpStream::connect_timeout(&to, PATIENCE)?;
    server.set_read_timeout(Some(PATIENCE))?;
    server.write_all(&upload.to_be_bytes())?;
    server.write_all(&download.to_be_bytes())?;
    std::io::copy(&mut std::io::repeat(7).take(upload), &mut server)?;
    server.shutdown(Shutdown::Write)?;
    let received = std::io::copy(&mut server, &mut std::io::sink())?;
    ensure!(received == download, "{received} bytes of {download} came");
    Ok(())
}
