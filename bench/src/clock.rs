//! Time that was worked, not waited.

use std::time::Duration;

use anyhow::{Result, ensure};

/// What the calling thread has worked since a moment: other programs' time on the processor is not in it.
#[derive(Debug, Clone, Copy)]
pub struct ThreadClock(Duration);

impl ThreadClock {
    /// From now on.
    pub fn start() -> Self {
        Self(read(libc::CLOCK_THREAD_CPUTIME_ID))
    }

    /// The thread's work since the start.
    pub fn elapsed(self) -> Duration {
        read(libc::CLOCK_THREAD_CPUTIME_ID).saturating_sub(self.0)
    }
}

/// What all threads of this process have worked, soft interrupts in their time included: the kernel
/// charges those to whom they interrupt (unless CONFIG_IRQ_TIME_ACCOUNTING).
pub fn process_time() -> Duration {
    read(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// What another process has worked.
pub fn time_of(pid: u32) -> Result<Duration> {
    let mut clock: libc::clockid_t = 0;
    // SAFETY: writes one `clockid_t`, which lives.
    let error = unsafe { libc::clock_getcpuclockid(pid as libc::pid_t, &raw mut clock) };
    ensure!(error == 0, "process {pid} has no clock: it has ended");
    Ok(read(clock))
}

fn read(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one `timespec`, which lives; a clock that does not exist is an error.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    // It was zeroed: a process that has ended meanwhile has worked no time.
    debug_assert!(result == 0 || clock < 0, "a clock that exists can be read");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Keeps the calling thread on one processor.
pub fn pin(cpu: usize) -> nix::Result<()> {
    let mut cpus = nix::sched::CpuSet::new();
    cpus.set(cpu)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &cpus)
}
