//! The firewall read again and again: each program that prints counters costs some milliseconds of processor
//! time, so those are run that can have news.
//!
//! * The legacy programs are left out where the kernel has no legacy table.
//! * Programs that read nf_tables are left out as long as its [generation](super::generation) stays the same
//!   and nothing that they printed counts the target's ports.

use std::os::fd::BorrowedFd;
use std::{fs, io};

use super::firewall::{self, Kind, Reading, Source};
use super::{ListeningPort, generation};

/// Cheap facts about the firewall of a network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Of nf_tables; `None` where it cannot be asked for.
    pub generation: Option<u32>,
    /// Whether there are legacy tables, for IPv4 and IPv6; `None` where that cannot be seen.
    pub legacy: [Option<bool>; 2],
}

impl Facts {
    /// Looks at the calling thread's network namespace.
    pub fn read() -> Self {
        let legacy = ["ip_tables_names", "ip6_tables_names"].map(|names| {
            match fs::read_to_string(format!("/proc/thread-self/net/{names}")) {
                Ok(names) => Some(!names.trim().is_empty()),
                // The modules are not loaded.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Some(false),
                Err(_) => None,
            }
        });
        Self { generation: generation::read().ok(), legacy }
    }
}

/// What is known of one firewall from looking at it before.
#[derive(Debug, Default)]
pub struct Watch {
    generation: Option<u32>,
    ports: Vec<ListeningPort>,
    /// What programs printed that need not be asked again at the same generation.
    idle: Vec<(Source, String)>,
}

impl Watch {
    /// Reads the firewall of a namespace (`None`: our own), in which `facts` were just found.
    ///
    /// `ports`: those of all targets in this namespace.
    pub fn read(
        &mut self,
        netns: Option<BorrowedFd<'_>>,
        facts: &Facts,
        ports: &[ListeningPort],
    ) -> Reading {
        let sources = firewall::sources();
        // Other ports may be counted by rules whose old counters must not pass for new ones.
        let unchanged = facts.generation.is_some()
            && facts.generation == self.generation
            && ports == self.ports;
        let idle = if unchanged { std::mem::take(&mut self.idle) } else { Vec::new() };
        let known = |source: &Source| {
            let idle = idle.iter().find(|(known, _)| known == source);
            match has_tables(source, facts) {
                false => Some(String::new()),
                true => idle.map(|(_, text)| text.clone()),
            }
        };
        let results = firewall::run_all(&sources, known, netns);
        let (texts, problems) = firewall::sort_out(&sources, results);
        let reading = firewall::interpret(&texts, problems, ports);
        self.generation = facts.generation;
        self.ports = ports.to_vec();
        self.idle = texts
            .into_iter()
            .filter(|(source, _)| source.is_nf_tables() && !counts(&reading, source))
            .collect();
        reading
    }
}

/// Whether a program would find anything.
fn has_tables(source: &Source, facts: &Facts) -> bool {
    match source.kind {
        Kind::Save { family: "ip", backend: "legacy", .. } => facts.legacy[0] != Some(false),
        Kind::Save { backend: "legacy", .. } => facts.legacy[1] != Some(false),
        _ => true,
    }
}

/// Whether a rule that a program printed is part of the sum.
fn counts(reading: &Reading, source: &Source) -> bool {
    let backend = match source.kind {
        Kind::Save { command, backend, .. } => format!("{command}-{backend}"),
        Kind::Nft => "nft".to_owned(),
    };
    reading.rules.iter().any(|rule| rule.counted && rule.backend == backend)
}
