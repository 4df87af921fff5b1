//! A small but real proxy to be measured where no other is installed: SOCKS5 and HTTP CONNECT on one
//! port, told apart by the first byte.
//!
//! It keeps no state, so it may be killed at any time. One thread serves all connections. Closing is
//! passed on by halves: the end of one direction leaves the other going.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, listen,
    setsockopt, socket, sockopt,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::net::{TcpStream, lookup_host};

/// How long a client may take to say what it wants, and a connection to the upstream to be made.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes taken at once, of each direction.
const BUFFER_BYTES: usize = 64 * 1024;
/// Longest head of an HTTP request.
const HEAD_BYTES: usize = 8 * 1024;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// The version byte with which a SOCKS5 client begins.
const SOCKS5: u8 = 5;
/// Replies of RFC 1928.
const SUCCEEDED: u8 = 0;
const REFUSED: u8 = 5;
const COMMAND_NOT_SUPPORTED: u8 = 7;

/// Where a client wants to go.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Destination {
    Address(SocketAddr),
    Name(String, u16),
}

/// Listens on `address`, calls `ready` and serves until the process is killed.
///
/// On `[::]` it listens for both families.
pub fn main_loop(address: SocketAddr, ready: impl FnOnce()) -> io::Result<()> {
    let listener = bind_listener(address)?;
    ready();
    serve(listener)
}

/// Makes a listening socket; one on `[::]` accepts both families whatever the sysctl says.
pub fn bind_listener(address: SocketAddr) -> io::Result<TcpListener> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let socket: OwnedFd =
        socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, SockProtocol::Tcp)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen(&socket, Backlog::new(BACKLOG)?)?;
    // SAFETY: the descriptor is a listening TCP socket that nobody else owns any more.
    Ok(unsafe { TcpListener::from_raw_fd(socket.into_raw_fd()) })
}

/// Serves a listening socket; returns only if it fails.
pub fn serve(listener: TcpListener) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            match listener.accept().await {
                // A connection that fails is the affair of its two ends.
                Ok((client, _)) => drop(tokio::spawn(relay(client))),
                // The client has gone already, or there are no descriptors: others may follow.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    })
}

/// Serves one client.
async fn relay(mut client: TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut upstream = tokio::time::timeout(PATIENCE * 2, greet(&mut client)).await??;
    copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER_BYTES, BUFFER_BYTES).await?;
    Ok(())
}

/// Learns where the client wants to go, connects there and tells the client so.
async fn greet(client: &mut TcpStream) -> io::Result<TcpStream> {
    if client.read_u8().await? == SOCKS5 {
        greet_socks5(client).await
    } else {
        greet_http(client).await
    }
}

async fn greet_socks5(client: &mut TcpStream) -> io::Result<TcpStream> {
    let methods = client.read_u8().await?;
    let mut offered = vec![0; usize::from(methods)];
    client.read_exact(&mut offered).await?;
    if !offered.contains(&0) {
        client.write_all(&[SOCKS5, 0xff]).await?;
        return Err(invalid("the client offers no method without authentication"));
    }
    client.write_all(&[SOCKS5, 0]).await?;
    let mut request = [0; 4];
    client.read_exact(&mut request).await?;
    let [_, command, _, kind] = request;
    let destination = match kind {
        1 => {
            let mut address = [0; 4];
            client.read_exact(&mut address).await?;
            let port = client.read_u16().await?;
            Destination::Address((Ipv4Addr::from(address), port).into())
        }
        3 => {
            let mut name = vec![0; usize::from(client.read_u8().await?)];
            client.read_exact(&mut name).await?;
            let name = String::from_utf8(name).map_err(|_| invalid("the name is not UTF-8"))?;
            Destination::Name(name, client.read_u16().await?)
        }
        4 => {
            let mut address = [0; 16];
            client.read_exact(&mut address).await?;
            let port = client.read_u16().await?;
            Destination::Address((Ipv6Addr::from(address), port).into())
        }
        _ => return Err(invalid("unknown kind of address")),
    };
    if command != 1 {
        client.write_all(&socks5_reply(COMMAND_NOT_SUPPORTED, unspecified())).await?;
        return Err(invalid("only CONNECT is supported"));
    }
    match connect(&destination).await {
        Ok(upstream) => {
            client.write_all(&socks5_reply(SUCCEEDED, upstream.local_addr()?)).await?;
            Ok(upstream)
        }
        Err(error) => {
            client.write_all(&socks5_reply(REFUSED, unspecified())).await?;
            Err(error)
        }
    }
}

fn unspecified() -> SocketAddr {
    (Ipv4Addr::UNSPECIFIED, 0).into()
}

/// A reply of RFC 1928 with the address from which the relay connected.
fn socks5_reply(code: u8, bound: SocketAddr) -> Vec<u8> {
    let mut reply = vec![SOCKS5, code, 0];
    match bound.ip() {
        IpAddr::V4(address) => {
            reply.push(1);
            reply.extend(address.octets());
        }
        IpAddr::V6(address) => {
            reply.push(4);
            reply.extend(address.octets());
        }
    }
    reply.extend(bound.port().to_be_bytes());
    reply
}

/// The first byte is read already; a method is known by the rest.
async fn greet_http(client: &mut TcpStream) -> io::Result<TcpStream> {
    let mut head = Vec::with_capacity(512);
    let end = loop {
        if let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if head.len() > HEAD_BYTES {
            return Err(invalid("the head of the request is too long"));
        }
        if client.read_buf(&mut head).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    let Some(destination) = parse_connect(&head[..end]) else {
        client.write_all(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n").await?;
        return Err(invalid("only CONNECT is supported"));
    };
    match connect(&destination).await {
        Ok(mut upstream) => {
            client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
            // What an eager client has sent behind the head.
            upstream.write_all(&head[end..]).await?;
            Ok(upstream)
        }
        Err(error) => {
            client.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n").await?;
            Err(error)
        }
    }
}

/// The destination of a CONNECT request whose first byte is missing.
fn parse_connect(head: &[u8]) -> Option<Destination> {
    let line = std::str::from_utf8(head).ok()?.lines().next()?;
    let authority = line.strip_prefix("ONNECT ")?.split(' ').next()?;
    if let Ok(address) = authority.parse() {
        return Some(Destination::Address(address));
    }
    let (name, port) = authority.rsplit_once(':')?;
    (!name.is_empty()).then_some(())?;
    Some(Destination::Name(name.to_owned(), port.parse().ok()?))
}

/// Connects to the first address that answers.
async fn connect(destination: &Destination) -> io::Result<TcpStream> {
    let addresses = match destination {
        Destination::Address(address) => vec![*address],
        Destination::Name(name, port) => lookup_host((name.as_str(), *port)).await?.collect(),
    };
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in addresses {
        match tokio::time::timeout(PATIENCE, TcpStream::connect(address)).await {
            Ok(Ok(upstream)) => {
                upstream.set_nodelay(true)?;
                return Ok(upstream);
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

fn invalid(message: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connect_takes_names_and_both_kinds_of_addresses() {
        let parse = |line: &str| parse_connect(format!("{line}\r\nHost: x\r\n\r\n").as_bytes());
        let v6 = "[fd77:2::1]:443".parse().unwrap();
        assert_eq!(parse("ONNECT [fd77:2::1]:443 HTTP/1.1"), Some(Destination::Address(v6)));
        assert_eq!(
            parse("ONNECT example.org:443 HTTP/1.1"),
            Some(Destination::Name("example.org".into(), 443))
        );
        for bad in ["ET / HTTP/1.1", "ONNECT x HTTP/1.1", "ONNECT :1", "ONNECT x:70000", ""] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn reply_has_the_bound_address() {
        let bound = "10.77.2.2:258".parse().unwrap();
        assert_eq!(socks5_reply(SUCCEEDED, bound), [5, 0, 0, 1, 10, 77, 2, 2, 1, 2]);
    }
}
