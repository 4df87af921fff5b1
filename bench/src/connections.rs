//! More connections than a process may have descriptors: held by threads with descriptor tables of their
//! own.
//!
//! The limit is per table, and not even root may always raise it.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit};
use traffic_lab::{CountedCgroup, Namespace};

use crate::sockets::{Turns, born_in};

/// Descriptors of a table that are others': the bench's own, copied when the table was.
const SPARE: u64 = 1000;
/// The far end's first port; every holder connects to one of its own.
const PORT: u16 = 8100;

/// Many TCP connections whose near ends are counted.
pub struct Connections {
    holders: Vec<Holder>,
    count: usize,
}

/// A thread that has some of them. Dropped, it ends, and they are reset.
struct Holder {
    /// How many packets each of its connections shall send.
    order: Option<SyncSender<usize>>,
    done: Receiver<Result<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Connections {
    /// Connects so many counted sockets to far ones at an address.
    pub fn new(
        cgroup: &CountedCgroup,
        (near, far): (&Namespace, &Namespace),
        to: std::net::IpAddr,
        count: usize,
    ) -> Result<Self> {
        let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
        // Both ends are in the same table.
        let most = (soft.saturating_sub(SPARE) / 2).max(1) as usize;
        let shares = (0..count).step_by(most).map(|first| most.min(count - first));
        let listening: std::io::Result<Vec<(TcpListener, usize)>> = far.run_in(|| {
            let ports = PORT..;
            ports
                .zip(shares)
                .map(|(port, share)| Ok((TcpListener::bind((to, port))?, share)))
                .collect()
        })?;
        let listeners = listening.context("cannot listen at the far end")?;
        let holders = born_in(cgroup, near, || {
            // One after the other: all are in the cgroup as long as this lasts.
            listeners.iter().map(|(listener, share)| Holder::start(listener, *share)).collect()
        })?;
        Ok(Self { holders, count })
    }

    /// Sends so many small packets or a few more, the same number from every connection.
    pub fn send(&self, packets: usize) -> Result<()> {
        let each = packets.div_ceil(self.count);
        for holder in &self.holders {
            let order = holder.order.as_ref().context("a holder has no way to be told")?;
            order.send(each).context("a holder of connections has ended")?;
            holder.done.recv().context("a holder of connections has ended")??;
        }
        Ok(())
    }
}

impl Holder {
    /// Connects so many times from the calling thread's namespace.
    fn start(listener: &TcpListener, share: usize) -> Result<Self> {
        let listener = listener.as_raw_fd();
        let (order, orders) = sync_channel(1);
        let (report, done) = sync_channel(1);
        let thread = thread::Builder::new().name("bench-holder".into()).spawn(move || {
            let connected = connect(listener, share);
            let traffic = match connected {
                Ok(traffic) => traffic,
                Err(error) => return drop(report.send(Err(error))),
            };
            // The channels end with the bench.
            let _ = report.send(Ok(()));
            for each in orders {
                let _ = report.send(traffic.send(each * share).map(drop));
            }
        })?;
        let holder = Self { order: Some(order), done, thread: Some(thread) };
        holder.done.recv().context("a holder of connections has ended")??;
        Ok(holder)
    }
}

/// Connects to a listener, which is open for as long as this takes.
fn connect(listener: RawFd, share: usize) -> Result<Turns> {
    unshare(CloneFlags::CLONE_FILES).context("no descriptor table of one's own")?;
    // SAFETY: open when the table was copied; in the copy nobody else has it.
    let listener = unsafe { TcpListener::from_raw_fd(listener) };
    let to: SocketAddr = listener.local_addr()?;
    let connections: Result<Vec<(TcpStream, TcpStream)>> = (0..share)
        .map(|number| {
            let near = TcpStream::connect(to)
                .with_context(|| format!("connection {number} of {share}"))?;
            Ok((near, listener.accept()?.0))
        })
        .collect();
    Turns::of_tcp(connections?)
}

impl Drop for Holder {
    fn drop(&mut self) {
        // Ends its loop.
        self.order = None;
        if let Some(thread) = self.thread.take() {
            // A panic was printed when it happened.
            let _ = thread.join();
        }
    }
}
