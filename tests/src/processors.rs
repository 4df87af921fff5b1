//! On which processors the two ends and the proxy run.

use std::fmt;

use anyhow::{Context, Result, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The calling thread's affinity, which all threads and programs that it starts inherit.
const SELF: Pid = Pid::from_raw(0);

/// A choice of processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Processors {
    /// Everything on one: softirq interrupts the sender and the receiver, nothing runs beside them.
    One,
    /// As the scheduler likes: the same cells are added to from several at once.
    All,
}

impl fmt::Display for Processors {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::One => "one CPU",
            Self::All => "all CPUs",
        })
    }
}

impl Processors {
    /// Restricts the calling thread, and with it all that it starts from now on.
    pub fn take(self) -> Result<Taken> {
        let before = sched_getaffinity(SELF).context("cannot read the affinity")?;
        let allowed: Vec<usize> =
            (0..CpuSet::count()).filter(|&number| before.is_set(number) == Ok(true)).collect();
        match self {
            Self::One => {
                let mut one = CpuSet::new();
                one.set(*allowed.first().context("no processor is allowed")?)?;
                sched_setaffinity(SELF, &one).context("cannot set the affinity")?;
            }
            Self::All => ensure!(
                allowed.len() > 1,
                "only one processor is allowed here: packets on several at once cannot be tested"
            ),
        }
        Ok(Taken { before })
    }
}

/// The restriction. Dropped, the calling thread may run where it could before.
#[derive(Debug)]
pub struct Taken {
    before: CpuSet,
}

impl Drop for Taken {
    fn drop(&mut self) {
        // It was in force before, so the kernel takes it again.
        let _ = sched_setaffinity(SELF, &self.before);
    }
}
