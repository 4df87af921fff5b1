//! The far end behind the proxy: a server that does what the headers of connections ask for.

use std::io::{self, Read as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::{
    AT_ONCE, Endpoint, HEADER_BYTES, WHEN_DONE, exchange, field, finish, prepare, receive,
    receive_some, send,
};
use crate::namespace::Namespace;
use crate::relay::bind_listener;

/// How long the server may take to finish what the client has finished.
const FINISHED_WITHIN: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct Tally {
    connections: AtomicU64,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
}

impl Tally {
    fn read(&self) -> Endpoint {
        Endpoint {
            connections: self.connections.load(Ordering::Acquire),
            sent_bytes: self.sent_bytes.load(Ordering::Acquire),
            received_bytes: self.received_bytes.load(Ordering::Acquire),
        }
    }
}

/// A server that does what the headers ask for. Dropped, it stops accepting.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    tally: Arc<Tally>,
    failure: Arc<Mutex<Option<io::Error>>>,
    acceptor: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on `address` in a namespace; on `[::]`, for both families.
    pub fn start(namespace: &Namespace, address: SocketAddr) -> Result<Self> {
        let listener = namespace
            .run_in(|| bind_listener(address))?
            .with_context(|| format!("cannot listen on {address} in {}", namespace.name()))?;
        let address = listener.local_addr()?;
        // So that the acceptor looks up now and then whether it shall stop.
        listener.set_nonblocking(true)?;
        let (stop, tally) = (Arc::new(AtomicBool::new(false)), Arc::new(Tally::default()));
        let failure = Arc::new(Mutex::new(None));
        let acceptor = thread::Builder::new().name("lab-server".into()).spawn({
            let (stop, tally, failure) =
                (Arc::clone(&stop), Arc::clone(&tally), Arc::clone(&failure));
            move || accept(&listener, &stop, &tally, &failure)
        })?;
        Ok(Self { address, stop, tally, failure, acceptor: Some(acceptor) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// All that its sockets have carried in connections that are over.
    pub fn totals(&self) -> Endpoint {
        self.tally.read()
    }

    /// Waits until so many connections are over since it started.
    pub(super) fn wait_for_connections(&self, connections: u64) -> Result<()> {
        let begin = Instant::now();
        while self.totals().connections < connections {
            let failure = self.failure.lock().map_or(None, |mut failure| failure.take());
            if let Some(error) = failure {
                return Err(error).context("the server's side of a connection failed");
            }
            if begin.elapsed() > FINISHED_WITHIN {
                bail!(
                    "the server has finished {} of {connections} connections {FINISHED_WITHIN:?} \
                     after the client",
                    self.totals().connections
                );
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(acceptor) = self.acceptor.take() {
            // A panic was printed when it happened.
            let _ = acceptor.join();
        }
    }
}

fn accept(
    listener: &TcpListener,
    stop: &AtomicBool,
    tally: &Arc<Tally>,
    failure: &Arc<Mutex<Option<io::Error>>>,
) {
    while !stop.load(Ordering::Relaxed) {
        let Ok((stream, _)) = listener.accept() else {
            wait_readable(listener);
            continue;
        };
        let (tally, failure) = (Arc::clone(tally), Arc::clone(failure));
        let served = thread::Builder::new().name("lab-serve".into()).spawn(move || {
            if let Err(error) = serve(stream, &tally)
                && let Ok(mut failure) = failure.lock()
            {
                failure.get_or_insert(error);
            }
        });
        // Without a thread the connection is dropped, and the client tells.
        drop(served);
    }
}

/// Waits for a connection, but not longer than it takes to notice the order to stop.
fn wait_readable(listener: &TcpListener) {
    use nix::libc;
    use std::os::fd::AsRawFd;
    let mut poll = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one live `pollfd`, and the count says one.
    let _ = unsafe { libc::poll(&mut poll, 1, 50) };
}

/// Serves one connection.
fn serve(stream: TcpStream, tally: &Tally) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    prepare(&stream)?;
    let mut header = [0; HEADER_BYTES as usize];
    (&stream).read_exact(&mut header)?;
    let (upload, download) = (field(&header, 0), field(&header, 8));
    let (at_once, when_done) = (upload & AT_ONCE != 0, upload & WHEN_DONE != 0);
    let upload = upload & !(AT_ONCE | WHEN_DONE);
    let (sent, received) = exchange(
        at_once,
        || {
            let sent = send(&stream, download, &|_| {})?;
            if !when_done {
                stream.shutdown(Shutdown::Write)?;
            }
            Ok(sent)
        },
        || match when_done {
            true => receive_some(&stream, upload, &|_| {}),
            false => receive(&stream, upload, &|_| {}),
        },
    )?;
    if when_done {
        finish(&stream)?;
    }
    tally.sent_bytes.fetch_add(sent, Ordering::Release);
    tally.received_bytes.fetch_add(received + HEADER_BYTES, Ordering::Release);
    tally.connections.fetch_add(1, Ordering::Release);
    Ok(())
}
