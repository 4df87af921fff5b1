//! The method `interface`: what the network interfaces of a namespace count.
//!
//! Everything is in it, whoever sent it: other programs, ARP, scans. Bytes are those of the link
//! layer, headers included, as the driver counts them.

use std::collections::BTreeMap;
use std::{fs, io};

use crate::report::{Covers, Direction, Layer, MethodReport, RuleReport};

/// Counters of one interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterfaceCounters {
    /// Bytes received.
    pub ingress_bytes: u64,
    /// Frames received.
    pub ingress_packets: u64,
    /// Bytes sent.
    pub egress_bytes: u64,
    /// Frames sent.
    pub egress_packets: u64,
}

impl InterfaceCounters {
    /// What was counted since; `None` if one of them is smaller than before.
    pub fn since(&self, earlier: &Self) -> Option<Self> {
        Some(Self {
            ingress_bytes: self.ingress_bytes.checked_sub(earlier.ingress_bytes)?,
            ingress_packets: self.ingress_packets.checked_sub(earlier.ingress_packets)?,
            egress_bytes: self.egress_bytes.checked_sub(earlier.egress_bytes)?,
            egress_packets: self.egress_packets.checked_sub(earlier.egress_packets)?,
        })
    }
}

/// All interfaces at one instant, by name.
pub type Interfaces = BTreeMap<String, InterfaceCounters>;

/// The loopback interface: both ends of one exchange are on it, and nobody bills it.
pub const LOOPBACK: &str = "lo";

/// Why the interfaces could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read.
    #[error("cannot read /proc/net/dev of the target's network namespace")]
    Read(#[source] io::Error),
    /// It holds something else.
    #[error("/proc/net/dev, line {line}: not an interface with 16 counters: {text}")]
    Malformed {
        /// Counted from 1.
        line: usize,
        /// Its beginning.
        text: String,
    },
}

/// Reads /proc/net/dev of the calling thread's network namespace; for another one: `NetNs::run(read)`.
///
/// # Errors
///
/// [`Error`].
pub fn read() -> Result<Interfaces, Error> {
    parse(&fs::read_to_string("/proc/thread-self/net/dev").map_err(Error::Read)?)
}

/// Parses /proc/net/dev.
///
/// # Errors
///
/// [`Error::Malformed`] names the line.
pub fn parse(text: &str) -> Result<Interfaces, Error> {
    let mut interfaces = Interfaces::new();
    for (index, line) in text.lines().enumerate().skip(2) {
        let malformed =
            || Error::Malformed { line: index + 1, text: line.chars().take(60).collect() };
        // A name may hold a colon (an old alias), the counters never do.
        let (name, numbers) = line.rsplit_once(':').ok_or_else(malformed)?;
        let numbers: Vec<u64> = numbers
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map_err(|_| malformed())?;
        let &[
            ingress_bytes,
            ingress_packets,
            _,
            _,
            _,
            _,
            _,
            _,
            egress_bytes,
            egress_packets,
            _,
            _,
            _,
            _,
            _,
            _,
        ] = numbers.as_slice()
        else {
            return Err(malformed());
        };
        let counters =
            InterfaceCounters { ingress_bytes, ingress_packets, egress_bytes, egress_packets };
        interfaces.insert(name.trim().to_owned(), counters);
    }
    Ok(interfaces)
}

/// What the interfaces counted between two readings. The sums leave out loopback.
///
/// # Errors
///
/// In words, if a counter decreased or an interface that had traffic vanished.
pub fn difference(start: &Interfaces, end: &Interfaces) -> Result<MethodReport, String> {
    let mut rules = Vec::new();
    let (mut ingress, mut egress) = (0_u64, 0_u64);
    if let Some(gone) = start.keys().find(|name| !end.contains_key(*name)) {
        return Err(format!("interface {gone} vanished while measuring"));
    }
    for (name, after) in end {
        // A new interface began at 0.
        let before = start.get(name).copied().unwrap_or_default();
        let gained = |after: u64, before: u64| {
            after
                .checked_sub(before)
                .ok_or_else(|| format!("the counters of interface {name} were set back"))
        };
        let counted = name != LOOPBACK;
        for (direction, bytes, packets) in [
            (
                Direction::Ingress,
                gained(after.ingress_bytes, before.ingress_bytes)?,
                gained(after.ingress_packets, before.ingress_packets)?,
            ),
            (
                Direction::Egress,
                gained(after.egress_bytes, before.egress_bytes)?,
                gained(after.egress_packets, before.egress_packets)?,
            ),
        ] {
            if counted {
                let sum = if direction == Direction::Ingress { &mut ingress } else { &mut egress };
                *sum = sum.saturating_add(bytes);
            }
            rules.push(RuleReport {
                backend: "interface".to_owned(),
                table: String::new(),
                chain: String::new(),
                rule: name.clone(),
                direction,
                bytes,
                packets,
                counted,
                reason: (!counted).then(|| "loopback never leaves the host".to_owned()),
            });
        }
    }
    Ok(MethodReport {
        name: "interface",
        covers: Covers::Interfaces,
        layer: Layer::L2,
        available: true,
        reason: None,
        ingress_bytes: Some(ingress),
        egress_bytes: Some(egress),
        rules,
    })
}

/// The row of the table of methods where there is no reading.
pub fn unavailable(reason: String) -> MethodReport {
    MethodReport {
        name: "interface",
        covers: Covers::Interfaces,
        layer: Layer::L2,
        available: false,
        reason: Some(reason),
        ingress_bytes: None,
        egress_bytes: None,
        rules: Vec::new(),
    }
}
