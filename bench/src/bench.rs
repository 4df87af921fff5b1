//! What all parts share: how much is measured, and with what.

use std::path::PathBuf;
use std::time::Duration;

use crate::progress::Progress;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Rounds of test runs.
    pub test_rounds: usize,
    /// Runs per round.
    pub repeat: u32,
    /// Rounds under real traffic.
    pub rounds: usize,
    /// How long one traffic lasts in a round.
    pub time: Duration,
    /// Small packets per round, where they are counted.
    pub packets: usize,
    /// The most connections.
    pub connections: usize,
    /// How long a daemon is watched.
    pub watch: Duration,
}

impl Plan {
    /// About nine minutes.
    pub const FULL: Self = Self {
        test_rounds: 21,
        repeat: 300_000,
        rounds: 7,
        time: Duration::from_millis(300),
        packets: 60_000,
        connections: 100_000,
        watch: Duration::from_secs(60),
    };
    /// About two minutes.
    pub const QUICK: Self = Self {
        test_rounds: 7,
        repeat: 100_000,
        rounds: 5,
        time: Duration::from_millis(120),
        packets: 20_000,
        connections: 10_000,
        watch: Duration::from_secs(10),
    };
}

/// The bench.
pub struct Bench {
    /// How much is measured.
    pub plan: Plan,
    /// The object with the programs of others.
    pub programs: PathBuf,
    /// A release build of `traffic-agent`.
    pub agent: PathBuf,
    /// How far it is.
    pub progress: Progress,
}
