//! Signals as events: nothing here dies of Ctrl-C before it has printed its report and cleaned up.

use std::io;

use nix::{
    sys::{
        signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask},
        signalfd::{SfdFlags, SignalFd},
    },
    unistd::Pid,
};
use tokio::io::unix::AsyncFd;

/// Signals that end a program by convention, and the two for its own use.
const TAKEN: [Signal; 6] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// A signal that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// Which.
    pub signal: Signal,
    /// Whether the terminal sent it: then the whole foreground process group has it already.
    pub from_terminal: bool,
}

impl Arrived {
    /// Whether it asks to end.
    pub fn ends(self) -> bool {
        !matches!(self.signal, Signal::SIGUSR1 | Signal::SIGUSR2)
    }

    /// Whether it asks a daemon to read its configuration again.
    pub fn reloads(self) -> bool {
        self.signal == Signal::SIGHUP && !self.from_terminal
    }

    /// Sends it on to a child, unless the terminal has done so: of a hang-up it tells only the leader of
    /// the session. A child that has ended needs none.
    pub fn pass_on(self, child: u32) {
        if !self.from_terminal || self.signal == Signal::SIGHUP {
            let _ = kill(Pid::from_raw(child as i32), self.signal);
        }
    }
}

/// Holds the signals of [`TAKEN`] back and hands them out one by one.
///
/// They stay held back when it is dropped: one that comes while the report is printed must not end the
/// agent before it has returned its exit status. To be made before other threads are: they inherit the mask. So do children, which are to be given
/// [`Signals::previous_mask`].
pub struct Signals {
    fd: AsyncFd<SignalFd>,
    previous: SigSet,
}

impl Signals {
    /// Takes the signals over. Needs a tokio runtime.
    pub fn take() -> io::Result<Self> {
        let set: SigSet = TAKEN.into_iter().collect();
        let mut previous = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), Some(&mut previous))?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .map_err(io::Error::from)
            // SAFETY: the descriptor belongs to the value that is registered, and is open as long.
            .and_then(|fd| unsafe { AsyncFd::register(fd) }.map_err(io::Error::from))
            .inspect_err(|_| restore(&previous))?;
        Ok(Self { fd, previous })
    }

    /// The mask that was in force before.
    pub fn previous_mask(&self) -> SigSet {
        self.previous
    }

    /// Waits for the next signal.
    pub async fn next(&mut self) -> io::Result<Arrived> {
        loop {
            let mut ready = self.fd.readable().await?;
            match ready.get_inner().read_signal()? {
                Some(info) => {
                    if let Ok(signal) = Signal::try_from(info.ssi_signo as i32) {
                        let from_terminal = info.ssi_code == libc::SI_KERNEL;
                        return Ok(Arrived { signal, from_terminal });
                    }
                }
                None => ready.clear_ready(),
            }
        }
    }
}

fn restore(mask: &SigSet) {
    let restored = sigprocmask(SigmaskHow::SIG_SETMASK, Some(mask), None);
    debug_assert!(restored.is_ok(), "setting a mask that was in force cannot fail");
}
