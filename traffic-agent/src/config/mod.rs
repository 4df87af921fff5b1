//! What the daemon is told: from flags, the environment, `/etc/traffic-agent/config.toml` and defaults, in
//! this order of precedence.
//!
//! `settings` lists what there is, `source` knows what was written and where, `read` makes values of it,
//! `layers` puts them on top of each other, `reload` compares two of the results. All that is wrong is said
//! at once. Nothing here looks at targets: one that does not exist yet is no mistake.

mod file;
mod layers;
mod read;
pub mod reload;
pub mod report;
pub mod settings;
pub mod source;
mod targets;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

pub use file::ConfigFile;
use jiff::tz::TimeZone;
pub use layers::parse;
use log::LevelFilter;
use source::{Given, Place, Problem};

use crate::history::Retention;
use crate::target::{PortFilter, TargetSpec};

/// Where the configuration is unless `--config` says otherwise.
pub const DEFAULT_FILE: &str = "/etc/traffic-agent/config.toml";

/// What is in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where history and lock are.
    pub state_dir: PathBuf,
    /// Where the BPF filesystem is mounted, for the pins.
    pub bpffs: PathBuf,
    /// How often counters are read.
    pub interval: Sampling,
    /// How often what was read is written to the history: the most that a power cut takes.
    pub flush_interval: Duration,
    /// In which days, months and years end.
    pub time_zone: TimeZone,
    /// Whether the whole host is counted too, by cgroup.
    pub host: bool,
    /// Interfaces whose traffic is free: for the host, and for targets that do not name their own.
    pub unbilled: Vec<String>,
    /// Link-layer bytes per packet of the modelled column: 14 for Ethernet.
    pub link_overhead: u32,
    /// What is logged.
    pub log_level: LevelFilter,
    /// For how much more than counting it keeps rights.
    pub look_into: LookInto,
    /// How long history is kept.
    pub retention: Retention,
    /// What is counted; no name twice. Empty only with `host`.
    pub targets: Vec<Target>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: PathBuf::from("/var/lib/traffic-agent"),
            bpffs: PathBuf::from("/sys/fs/bpf"),
            interval: Sampling::AUTO,
            flush_interval: Duration::from_secs(10),
            time_zone: TimeZone::system(),
            host: false,
            unbilled: Vec::new(),
            link_overhead: 14,
            log_level: LevelFilter::Info,
            look_into: LookInto::Auto,
            retention: Retention::default(),
            targets: Vec::new(),
        }
    }
}

/// How often counters are read: the pause grows from `least` to `most` while nothing new is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampling {
    /// The shortest pause.
    pub least: Duration,
    /// The longest; the same as `least` if the interval is fixed.
    pub most: Duration,
}

impl Sampling {
    /// The default.
    pub const AUTO: Self = Self { least: Duration::from_secs(1), most: Duration::from_secs(10) };

    /// Always the same pause.
    pub const fn fixed(interval: Duration) -> Self {
        Self { least: interval, most: interval }
    }
}

/// For how much more than counting the daemon keeps rights, of those that it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookInto {
    /// What was granted on purpose; of root's whole power what the targets need.
    Auto,
    /// Counting alone.
    Nothing,
    /// Whose sockets are whose.
    Processes,
    /// That, and targets in other network namespaces.
    Namespaces,
}

impl LookInto {
    /// As they are written.
    pub const WORDS: [(&'static str, Self); 4] = [
        ("auto", Self::Auto),
        ("nothing", Self::Nothing),
        ("processes", Self::Processes),
        ("namespaces", Self::Namespaces),
    ];

    /// Its word.
    pub fn word(self) -> &'static str {
        let named = Self::WORDS.iter().find(|(_, it)| *it == self);
        named.map_or("", |(word, _)| word)
    }
}

/// One target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its name and what it consists of.
    pub spec: TargetSpec,
    /// Ports of the client leg besides those found, and those that are none.
    pub ports: PortFilter,
    /// Which ports the estimate reads, if not all listening ones.
    pub estimate_ports: PortFilter,
    /// Interfaces whose traffic is free.
    pub unbilled: Vec<String>,
}

/// What is in force, and who said so.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// What is in force.
    pub config: Config,
    /// Where each setting comes from, in the order of [`settings::ALL`].
    pub origins: Vec<(settings::Setting, Place)>,
    /// The file that was read; `None` if there is none.
    pub file: Option<PathBuf>,
}

/// Everything that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Invalid {
    /// In the order of the file, then of the settings; never empty.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.as_slice() {
            [only] => write!(f, "the configuration is not valid: {only}"),
            several => {
                write!(f, "the configuration is not valid in {} places:", several.len())?;
                several.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

/// Reads the file, if there is one, and puts what was given above it.
pub fn load(file: &ConfigFile, given: &[Given]) -> Result<Loaded, Invalid> {
    let text = file.read().map_err(|problem| Invalid { problems: vec![problem] })?;
    parse(text.as_deref().map(|text| (file.path(), text)), given)
}
