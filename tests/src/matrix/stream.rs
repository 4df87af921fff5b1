//! TCP through a proxy whose sockets are the test's: connections from the client to the proxy's port,
//! each forwarded to the server by a socket of the counted cgroup.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use traffic_lab::relay::bind_listener;
use traffic_lab::topology::addresses;

use super::writing::{CHUNK, CONTENT, Writing, forward};
use super::{Ends, Variant, join};
use crate::factory::{Factory, connect_to, domain, socket_here};
use crate::site::{RELAY_PORT, SERVER_PORT, Site, any};
use crate::truth::{Applications, Carried};

/// Longest silence of a socket.
const SILENCE: Duration = Duration::from_secs(15);

/// Connections of one kind.
#[derive(Debug, Clone, Copy)]
pub struct Streams {
    /// How many; a multiple of `parallel`.
    pub connections: usize,
    /// How many of them at a time.
    pub parallel: usize,
    /// Bytes from the client to the server, each.
    pub up: usize,
    /// Bytes back; when all have come, unless both go at once.
    pub down: usize,
    /// Whether both directions go at once.
    pub at_once: bool,
    /// How the proxy writes, both ways.
    pub writing: Writing,
}

/// The listeners: the proxy's and the server's. They stay open from cell to cell.
#[derive(Debug)]
pub struct Listeners {
    proxy: TcpListener,
    server: TcpListener,
}

impl Listeners {
    /// Opens both.
    pub fn open(site: &Site, factory: &Factory, variant: Variant) -> Result<Self> {
        let proxy = factory.tcp_listener(any(RELAY_PORT))?;
        let server: TcpListener =
            site.lab.upstream.run_in(|| bind_listener(any(SERVER_PORT)))??;
        for listener in [&proxy, &server] {
            // An accept that waits longer waits for nobody.
            use nix::sys::socket::{setsockopt, sockopt};
            let silence = nix::sys::time::TimeVal::new(SILENCE.as_secs() as i64, 0);
            setsockopt(listener, sockopt::ReceiveTimeout, &silence)?;
            variant.dress_early(listener)?;
        }
        Ok(Self { proxy, server })
    }
}

impl Streams {
    /// Drives them; returns what both ends say, and how many zero-copied sends the proxy made.
    pub(super) fn run(
        &self,
        ends: &Ends<'_>,
        listeners: &Listeners,
    ) -> Result<(Applications, u64)> {
        let to_proxy = (addresses(ends.family).proxy_client, RELAY_PORT).into();
        thread::scope(|scope| {
            let server = scope.spawn(move || self.serve(scope, &listeners.server, ends.variant));
            let proxy = scope.spawn(move || self.relay(scope, ends, &listeners.proxy));
            let client = ends.site.lab.client.run_in(|| self.call(to_proxy, ends.variant))?;
            // All have ended before an error is returned: the proxy's first, of which the others' mostly
            // are consequences.
            let (server, proxy) = (join(server), join(proxy));
            let zero_copies = proxy.context("the proxy")?;
            let upstream = server.context("the server")?;
            let client = client.context("the client")?;
            Ok((Applications { client, upstream }, zero_copies))
        })
    }

    /// The client: sends first.
    fn call(&self, to: SocketAddr, variant: Variant) -> Result<Carried> {
        let worker = |count: usize| -> Result<Carried> {
            let mut carried = Carried::default();
            for _ in 0..count {
                let socket = socket_here(domain(to), libc::SOCK_STREAM, 0)?;
                let stream = connected(socket, to, variant)?;
                prepare(&stream, variant)?;
                carried += self.exchange(&stream, self.up, self.down, true)?;
            }
            Ok(carried)
        };
        thread::scope(|scope| {
            let share = self.connections / self.parallel;
            let workers = (0..self.parallel).map(|_| scope.spawn(move || worker(share)));
            sum(workers.collect())
        })
    }

    /// The server: receives first.
    fn serve<'s>(
        &'s self,
        scope: &'s Scope<'s, '_>,
        listener: &'s TcpListener,
        variant: Variant,
    ) -> Result<Carried> {
        let mut connections = Vec::new();
        for _ in 0..self.connections {
            let (stream, _) = listener.accept().context("nobody connects")?;
            prepare(&stream, variant)?;
            connections
                .push(scope.spawn(move || self.exchange(&stream, self.down, self.up, false)));
        }
        sum(connections)
    }

    /// The proxy: one connection to the server for each to itself.
    fn relay<'s>(
        &'s self,
        scope: &'s Scope<'s, '_>,
        ends: &'s Ends<'_>,
        listener: &'s TcpListener,
    ) -> Result<u64> {
        let mut connections = Vec::new();
        for _ in 0..self.connections {
            let (client, _) = listener.accept().context("nobody connects")?;
            connections.push(scope.spawn(move || -> Result<u64> {
                let to = ends.server();
                let socket = ends.factory.socket(domain(to), libc::SOCK_STREAM, 0)?;
                let upstream = connected(socket, to, ends.variant)?;
                prepare(&client, ends.variant)?;
                prepare(&upstream, ends.variant)?;
                thread::scope(|scope| {
                    let up = scope.spawn(|| forward(&client, &upstream, self.writing));
                    let down = forward(&upstream, &client, self.writing);
                    Ok(join(up)? + down?)
                })
            }));
        }
        connections.into_iter().map(join).sum()
    }

    /// Sends and receives so many bytes: both at once, or one after the other.
    fn exchange(
        &self,
        stream: &TcpStream,
        send: usize,
        expected: usize,
        sends_first: bool,
    ) -> Result<Carried> {
        if self.at_once {
            return thread::scope(|scope| {
                let sending = scope.spawn(|| self.send(stream, send));
                let from_proxy = receive(stream, expected);
                Ok(Carried { to_proxy: join(sending)?, from_proxy: from_proxy? })
            });
        }
        if sends_first {
            let to_proxy = self.send(stream, send)?;
            return Ok(Carried { to_proxy, from_proxy: receive(stream, expected)? });
        }
        let from_proxy = receive(stream, expected)?;
        Ok(Carried { to_proxy: self.send(stream, send)?, from_proxy })
    }

    /// Sends so many bytes, in the size of the proxy's writes if those are tiny, and ends.
    fn send(&self, mut stream: &TcpStream, bytes: usize) -> Result<u64> {
        let chunk = if self.writing == Writing::Tiny { 3 } else { CHUNK };
        let mut left = bytes;
        while left > 0 {
            let now = left.min(chunk);
            stream.write_all(&CONTENT[..now])?;
            left -= now;
        }
        stream.shutdown(Shutdown::Write)?;
        Ok(bytes as u64)
    }
}

/// Receives to the end, which is where it should be.
fn receive(mut stream: &TcpStream, expected: usize) -> Result<u64> {
    let mut buffer = vec![0; CHUNK];
    let mut received = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            bytes => received += bytes,
        }
    }
    ensure!(received == expected, "{received} bytes came instead of {expected}");
    Ok(received as u64)
}

/// Connects a socket that is dressed for it.
fn connected(socket: OwnedFd, to: SocketAddr, variant: Variant) -> Result<TcpStream> {
    variant.dress_early(&socket)?;
    connect_to(&socket, to)?;
    Ok(TcpStream::from(socket))
}

fn prepare(stream: &TcpStream, variant: Variant) -> Result<()> {
    variant.dress_late(stream)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    Ok(())
}

fn sum(threads: Vec<ScopedJoinHandle<'_, Result<Carried>>>) -> Result<Carried> {
    let mut sum = Carried::default();
    for thread in threads {
        sum += join(thread)?;
    }
    Ok(sum)
}
