//! A capture on one device: an AF_PACKET ring that the kernel fills and a thread empties.
//!
//! The ring holds headers only and is read without waking up per packet, so the capture takes little
//! from the two processors of a small machine. A capture that dropped a frame is an error.

use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::namespace::Namespace;
use crate::packet::{Direction, parse};
use crate::trace::Trace;

/// Bytes of a slot: two headers of the kernel's (66 bytes with padding), then the frame's begin.
const SLOT_BYTES: usize = 256;
/// Slots of a ring, 64 MiB: at 100 000 frames a second the thread may sleep for 2.6 s, as it does when a
/// shared machine takes its processor away.
const SLOTS: usize = 1 << 18;
/// How much the kernel allocates at once.
const BLOCK_BYTES: usize = 1 << 18;
/// How long the thread sleeps when the ring is empty.
const PAUSE: Duration = Duration::from_millis(4);

/// Which end of the link the captured device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vantage {
    /// The device opposite the proxy: what leaves it is the proxy's ingress.
    FarEnd,
    /// The proxy's own device: what leaves it is egress.
    Proxy,
}

/// A running capture; dropped without [`Capture::stop`], it ends and forgets.
#[derive(Debug)]
pub struct Capture {
    device: String,
    stop: Arc<AtomicBool>,
    frames: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<Trace>>>,
}

impl Capture {
    /// Starts to capture all frames of a device, both directions. Needs CAP_NET_RAW.
    pub fn start(namespace: &Namespace, device: &str, vantage: Vantage) -> Result<Self> {
        let ring = namespace.run_in(|| Ring::open(device))?.with_context(|| {
            format!("cannot capture on {device} in namespace {}", namespace.name())
        })?;
        let (stop, frames) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = thread::Builder::new().name(format!("capture-{device}")).spawn({
            let (stop, frames) = (Arc::clone(&stop), Arc::clone(&frames));
            move || ring.collect(vantage, &stop, &frames)
        })?;
        let device = format!("{device} in namespace {}", namespace.name());
        Ok(Self { device, stop, frames, thread: Some(thread) })
    }

    /// Frames seen so far, noise included.
    pub fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    /// Waits until no frame has come for `quiet`, but not longer than `at_most`; says whether it is so.
    pub fn settle(&self, quiet: Duration, at_most: Duration) -> bool {
        let begin = Instant::now();
        let (mut frames, mut since) = (self.frames(), Instant::now());
        while since.elapsed() < quiet {
            if begin.elapsed() > at_most {
                return false;
            }
            thread::sleep(quiet.min(Duration::from_millis(5)));
            let now = self.frames();
            if now != frames {
                (frames, since) = (now, Instant::now());
            }
        }
        true
    }

    /// Ends the capture with all frames that have passed the device until now.
    ///
    /// An error if the ring overflowed or a frame could not be parsed: the sums would be wrong.
    pub fn stop(mut self) -> Result<Trace> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("the capture was already stopped")?;
        let trace = thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            .with_context(|| format!("the capture on {} is no truth", self.device))?;
        if let (count, Some(reason)) = trace.malformed {
            bail!("the capture on {} has {count} malformed frames: {reason}", self.device);
        }
        Ok(trace)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its result is of no interest any more, a panic was printed when it happened.
            let _ = thread.join();
        }
    }
}

/// A socket and the slots that the kernel shares with us (TPACKET_V2).
struct Ring {
    socket: OwnedFd,
    slots: NonNull<libc::c_void>,
    next: usize,
}

// SAFETY: the mapping belongs to this value alone and is valid in every thread.
unsafe impl Send for Ring {}

impl Ring {
    fn open(device: &str) -> Result<Self> {
        let index = if_nametoindex(device).with_context(|| format!("there is no {device}"))?;
        // Protocol 0 receives nothing: frames of other devices must not come in before `bind`.
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
        let version = libc::tpacket_versions::TPACKET_V2 as libc::c_int;
        set_option(&socket, libc::PACKET_VERSION, &version).context("PACKET_VERSION")?;
        let request = libc::tpacket_req {
            tp_block_size: BLOCK_BYTES as u32,
            tp_block_nr: (SLOTS * SLOT_BYTES / BLOCK_BYTES) as u32,
            tp_frame_size: SLOT_BYTES as u32,
            tp_frame_nr: SLOTS as u32,
        };
        set_option(&socket, libc::PACKET_RX_RING, &request).context("PACKET_RX_RING")?;
        let length = (SLOTS * SLOT_BYTES).try_into().context("an empty ring")?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice; the length is the ring's.
        let slots = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, &socket, 0) }?;
        let ring = Self { socket, slots, next: 0 };
        bind_to_device(&ring.socket, index)?;
        Ok(ring)
    }

    /// Empties the ring until it is told to stop, and then once more.
    fn collect(mut self, vantage: Vantage, stop: &AtomicBool, frames: &AtomicU64) -> Result<Trace> {
        let mut trace = Trace::default();
        loop {
            // Read before the ring, so that the last pass sees all that came before the order.
            let last = stop.load(Ordering::Relaxed);
            let mut taken = 0;
            while self.take(vantage, &mut trace) {
                taken += 1;
            }
            frames.fetch_add(taken, Ordering::Relaxed);
            if last {
                break;
            }
            if taken == 0 {
                thread::sleep(PAUSE);
            }
        }
        let dropped = self.dropped()?;
        if dropped > 0 {
            bail!("the ring of {SLOTS} frames overflowed and {dropped} frames were dropped");
        }
        Ok(trace)
    }

    /// Takes the next frame into the trace; false if there is none.
    fn take(&mut self, vantage: Vantage, trace: &mut Trace) -> bool {
        // SAFETY: `next` is below SLOTS, so the slot lies within the mapping.
        let slot = unsafe { self.slots.cast::<u8>().add(self.next * SLOT_BYTES) };
        // SAFETY: a slot begins with the status word, 256-byte aligned; the kernel writes it atomically.
        let status = unsafe { AtomicU32::from_ptr(slot.as_ptr().cast()) };
        if status.load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
            return false;
        }
        // SAFETY: the status says that the slot is ours, and the kernel has filled in this header.
        let header = unsafe { slot.cast::<libc::tpacket2_hdr>().read() };
        // The link-layer address follows the header, aligned to 16 bytes.
        let offset = size_of::<libc::tpacket2_hdr>().next_multiple_of(16);
        // SAFETY: still within the slot, see SLOT_BYTES.
        let address = unsafe { slot.add(offset) };
        // SAFETY: the kernel has filled it in, too.
        let address = unsafe { address.cast::<libc::sockaddr_ll>().read() };
        let begin = usize::from(header.tp_mac).min(SLOT_BYTES);
        let captured = (header.tp_snaplen as usize).min(SLOT_BYTES - begin);
        // SAFETY: `begin` is at most the slot's size.
        let begin = unsafe { slot.add(begin) };
        // SAFETY: `begin + captured` is within the slot, which is ours until the status is reset.
        let bytes = unsafe { std::slice::from_raw_parts(begin.as_ptr(), captured) };
        let outgoing = address.sll_pkttype == libc::PACKET_OUTGOING;
        let direction = match (vantage, outgoing) {
            (Vantage::FarEnd, true) | (Vantage::Proxy, false) => Direction::Ingress,
            (Vantage::FarEnd, false) | (Vantage::Proxy, true) => Direction::Egress,
        };
        let at_ns = u64::from(header.tp_sec) * 1_000_000_000 + u64::from(header.tp_nsec);
        let frame = parse(bytes, header.tp_len as usize);
        trace.push(at_ns, direction, frame, u64::from(header.tp_len));
        status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.next = (self.next + 1) % SLOTS;
        true
    }

    /// How many frames found the ring full.
    fn dropped(&self) -> Result<u32> {
        // struct tpacket_stats: packets, drops.
        let mut statistics = [0u32; 2];
        let mut length = size_of_val(&statistics) as libc::socklen_t;
        // SAFETY: the pointers are those of live values, and `length` is the size of the first.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                statistics.as_mut_ptr().cast(),
                &mut length,
            )
        };
        Errno::result(result).context("PACKET_STATISTICS")?;
        Ok(statistics[1])
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this length and nothing points into it any more.
        let _ = unsafe { munmap(self.slots, SLOTS * SLOT_BYTES) };
    }
}

/// Makes a packet socket take every frame of a device, by its index.
pub(crate) fn bind_to_device(socket: &OwnedFd, index: u32) -> Result<()> {
    // SAFETY: every bit pattern is a valid `sockaddr_ll`.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index as i32;
    // SAFETY: the pointer and the length are those of a live `sockaddr_ll`.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    Errno::result(bound).map(drop).context("bind")
}

/// setsockopt at the level of packet sockets.
fn set_option<T>(socket: &OwnedFd, option: libc::c_int, value: &T) -> Result<()> {
    // SAFETY: the pointer and the length are those of a live value, which the kernel only reads.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            (&raw const *value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    Errno::result(result).map(drop).map_err(Into::into)
}
