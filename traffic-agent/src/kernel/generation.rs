//! Which generation of the tracepoints' programs is in force.
//!
//! A cgroup's program is exchanged by the kernel, a tracepoint's cannot be. So two generations hang there
//! for a moment, and each CPU is told which of them counts: by this thread when it runs on that CPU, where
//! no event is in the middle of being handled. An event is so counted by one of them, and by one only.

use aya::{
    maps::{Array, MapData},
    util::nr_cpus,
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use super::Error;

pub(super) const MAP: &str = "GENERATIONS";

/// The generation in force on every CPU.
pub(super) struct Generations {
    map: Array<MapData, u32>,
}

impl Generations {
    pub(super) fn new(map: Array<MapData, u32>) -> Self {
        Self { map }
    }

    /// How many CPUs there can be: the size of the map.
    pub(super) fn possible_cpus() -> u32 {
        // It is read from /sys; without that, one more CPU than any machine has costs 64 kB.
        nr_cpus().map_or(16_384, |count| count as u32)
    }

    /// Puts a generation in force, CPU by CPU.
    pub(super) fn put_in_force(&mut self, generation: u32) -> Result<(), Error> {
        let map = &mut self.map;
        std::thread::scope(|scope| {
            // A thread of its own: it stays where it was put.
            let moving = scope.spawn(move || {
                for cpu in 0..map.len() {
                    let mut only = CpuSet::new();
                    // Where it cannot go, because the CPU is off or not for this service, an event that is
                    // being handled at this very moment can be seen by both generations or by none.
                    if only.set(cpu as usize).is_ok() {
                        let _ = sched_setaffinity(Pid::from_raw(0), &only);
                    }
                    map.set(cpu, generation, 0).map_err(|source| Error::Map {
                        action: "write",
                        map: MAP,
                        source,
                    })?;
                }
                Ok(())
            });
            moving.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// Returns the generation that a pinned map says is in force; the last CPU is told last.
pub(super) fn of_pinned(map: &Array<MapData, u32>) -> Result<u32, Error> {
    let last = map.len().saturating_sub(1);
    map.get(&last, 0).map_err(|source| Error::Map { action: "read", map: MAP, source })
}
