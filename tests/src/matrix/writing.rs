//! The ways in which a program hands bytes to a socket. To the kernel they are different packets: copied
//! bytes lie in pages of the socket's, sent files and pipes in pages of theirs, zero-copied ones in the
//! program's own memory; a parser that expects more than the headers to be readable meets each.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::sendfile::sendfile;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg};

use crate::options;

/// Bytes moved by one call.
pub const CHUNK: usize = 64 * 1024;
/// A kernel that has not given zero-copied memory back by then will not.
const GIVEN_BACK_WITHIN: Duration = Duration::from_secs(10);
/// Source: include/uapi/linux/errqueue.h.
const SO_EE_ORIGIN_ZEROCOPY: u8 = 5;

/// What is sent. Never written to: zero-copied, it is read until the last packet is acknowledged.
pub static CONTENT: [u8; CHUNK] = [0x5a; CHUNK];

/// The same as a file in memory.
static FILE: LazyLock<io::Result<OwnedFd>> = LazyLock::new(|| {
    let file = memfd_create("content", MFdFlags::MFD_CLOEXEC)?;
    let mut file = std::fs::File::from(file);
    file.write_all(&CONTENT)?;
    Ok(file.into())
});

/// How a proxy writes to its TCP sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writing {
    /// write(2), as much as there is.
    Copy,
    /// write(2) of one to seven bytes at a time, without Nagle's delay.
    Tiny,
    /// sendfile(2).
    Sendfile,
    /// splice(2) from socket to socket by a pipe, as xray does.
    Splice,
    /// MSG_ZEROCOPY.
    ZeroCopy,
}

/// Forwards one direction of a connection to its end, and passes the end on.
///
/// Returns how many zero-copied sends the kernel has given back.
pub fn forward(mut from: &TcpStream, to: &TcpStream, writing: Writing) -> Result<u64> {
    let mut zero_copies = ZeroCopy::new(to);
    match writing {
        Writing::Splice => splice_all(from, to)?,
        _ => {
            if writing == Writing::ZeroCopy {
                zero_copies.enable()?;
            }
            let mut buffer = vec![0; CHUNK];
            loop {
                let bytes = from.read(&mut buffer).context("the proxy cannot receive")?;
                if bytes == 0 {
                    break;
                }
                write(to, bytes, writing, &mut zero_copies)
                    .with_context(|| format!("the proxy cannot send by {writing:?}"))?;
            }
        }
    }
    let given_back = zero_copies.finish()?;
    to.shutdown(std::net::Shutdown::Write)?;
    Ok(given_back)
}

/// Writes so many bytes.
fn write(mut to: &TcpStream, bytes: usize, how: Writing, zero_copies: &mut ZeroCopy) -> Result<()> {
    let content = &CONTENT[..bytes];
    match how {
        Writing::Tiny => {
            let mut rest = content;
            for size in (1..=7).cycle() {
                let (now, later) = rest.split_at(size.min(rest.len()));
                to.write_all(now)?;
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
        }
        Writing::Sendfile => {
            let mut left = bytes;
            while left > 0 {
                left -= send_file(to, left)?;
            }
        }
        Writing::ZeroCopy => {
            let mut rest = content;
            while !rest.is_empty() {
                rest = &rest[zero_copies.send(rest, None)?..];
            }
        }
        Writing::Copy | Writing::Splice => to.write_all(content)?,
    }
    Ok(())
}

/// Sends the beginning of the file; a datagram if the socket is a UDP one.
pub fn send_file(to: &impl AsFd, bytes: usize) -> Result<usize> {
    let file = FILE.as_ref().map_err(|error| anyhow::anyhow!("no file in memory: {error}"))?;
    sendfile(to, file, Some(&mut 0), bytes).context("sendfile")
}

fn splice_all(from: &TcpStream, to: &TcpStream) -> Result<()> {
    let (outlet, inlet) = nix::unistd::pipe().context("no pipe")?;
    let flags = SpliceFFlags::SPLICE_F_MOVE;
    loop {
        let mut held = splice(from, None, &inlet, None, CHUNK, flags).context("splice in")?;
        if held == 0 {
            return Ok(());
        }
        while held > 0 {
            held -= splice(&outlet, None, to, None, held, flags).context("splice out")?;
        }
    }
}

/// The zero-copied sends of a socket, and those whose memory the kernel has given back.
pub struct ZeroCopy<'s> {
    socket: BorrowedFd<'s>,
    sent: u64,
    given_back: u64,
}

impl<'s> ZeroCopy<'s> {
    /// Of a socket, nothing yet.
    pub fn new(socket: &'s impl AsFd) -> Self {
        Self { socket: socket.as_fd(), sent: 0, given_back: 0 }
    }

    /// Lets the socket take MSG_ZEROCOPY.
    pub fn enable(&self) -> Result<()> {
        options::set(&self.socket, libc::SOL_SOCKET, libc::SO_ZEROCOPY, &1i32.to_ne_bytes())
    }

    /// Sends by one call; returns how many bytes were taken.
    pub fn send(&mut self, data: &'static [u8], to: Option<SocketAddr>) -> Result<usize> {
        let to = to.map(SockaddrStorage::from);
        let flags = MsgFlags::from_bits_retain(libc::MSG_ZEROCOPY);
        let begin = Instant::now();
        loop {
            let slices = [io::IoSlice::new(data)];
            match sendmsg(self.socket.as_raw_fd(), &slices, &[], flags, to.as_ref()) {
                Ok(bytes) => {
                    // Without payload there is nothing to give back.
                    self.sent += u64::from(bytes > 0);
                    self.take_back()?;
                    return Ok(bytes);
                }
                // Too many are on their way.
                Err(Errno::ENOBUFS) if begin.elapsed() < GIVEN_BACK_WITHIN => self.wait()?,
                Err(error) => return Err(error).context("MSG_ZEROCOPY"),
            }
        }
    }

    /// Waits until the kernel has given everything back; returns how many sends that were.
    pub fn finish(mut self) -> Result<u64> {
        let begin = Instant::now();
        while self.given_back < self.sent {
            ensure!(
                begin.elapsed() < GIVEN_BACK_WITHIN,
                "{} of {} zero-copied sends were given back",
                self.given_back,
                self.sent
            );
            self.wait()?;
        }
        Ok(self.given_back)
    }

    /// Waits a little for the kernel to give something back.
    fn wait(&mut self) -> Result<()> {
        let mut poll = libc::pollfd { fd: self.socket.as_raw_fd(), events: 0, revents: 0 };
        // SAFETY: one live `pollfd`, and the count says one.
        let result = unsafe { libc::poll(&mut poll, 1, 100) };
        Errno::result(result).context("poll")?;
        self.take_back()
    }

    /// Reads what the kernel has given back: ranges of numbers of sends.
    fn take_back(&mut self) -> Result<()> {
        loop {
            let mut nothing = [io::IoSliceMut::new(&mut [])];
            let mut control = vec![0; 128 + size_of::<libc::sock_extended_err>()];
            let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
            let message = match recvmsg::<()>(
                self.socket.as_raw_fd(),
                &mut nothing,
                Some(&mut control),
                flags,
            ) {
                Ok(message) => message,
                Err(Errno::EAGAIN) => return Ok(()),
                Err(error) => return Err(error).context("MSG_ERRQUEUE"),
            };
            for control in message.cmsgs()? {
                let error = match control {
                    ControlMessageOwned::Ipv4RecvErr(error, _) => error,
                    ControlMessageOwned::Ipv6RecvErr(error, _) => error,
                    _ => continue,
                };
                if error.ee_origin != SO_EE_ORIGIN_ZEROCOPY {
                    bail!("an error instead: {error:?}");
                }
                self.given_back += u64::from(error.ee_data - error.ee_info) + 1;
            }
        }
    }
}
