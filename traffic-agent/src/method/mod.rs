//! Other ways to measure the same traffic, to be held against the exact figure.
//!
//! A method reads counters that only grow. It is read at the start and at the end; the difference of
//! the two readings is what it saw. A method that cannot be read says why.
//!
//! * [`firewall`]: the counters of rules that match the target's ports (`iptables-port`).
//! * [`watch`]: the same, once a minute for months.
//! * [`added`]: counting rules of our own, for as long as a measurement takes (`--add-rules`).
//! * [`interface`]: what the interfaces count.
//! * [`classic`]: the one line of the original script.

pub mod added;
mod choice;
pub mod classic;
pub mod firewall;
mod generation;
pub mod interface;
mod iptables;
mod nft;
mod nft_rule;
mod nft_text;
mod ports;
mod reach;
mod ruleset;
mod run;
mod shadow;
#[cfg(test)]
pub(crate) mod tests;
pub mod watch;

use std::collections::BTreeSet;
use std::fmt;

use crate::report::{Direction, Family, Finding, Protocol, Severity};

/// One counter, as read at one instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleCounter {
    /// Where it was read: `iptables-nft`, `iptables-legacy`, `ip6tables-nft`, `nft`, `interface`.
    pub backend: String,
    /// Table of the rule, such as `filter`; with its family for nft: `inet filter`.
    pub table: String,
    /// Chain of the rule, such as `INPUT`.
    pub chain: String,
    /// The rule as its program prints it, without counters.
    pub rule: String,
    /// Tells two equal rules of one chain apart: how many equal ones come before it; nft's handle.
    pub occurrence: usize,
    /// Which direction it counts, seen from the proxy.
    pub direction: Direction,
    /// L3 bytes.
    pub bytes: u64,
    /// Packets as netfilter sees them.
    pub packets: u64,
    /// Whether it belongs to the sum, or counts packets that another rule of it counts too.
    pub counted: bool,
    /// Why it is not counted, or to what it is limited.
    pub reason: Option<String>,
}

/// A listening port of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListeningPort {
    /// tcp or udp.
    pub protocol: Protocol,
    /// The port, 1 to 65535.
    pub port: u16,
}

impl fmt::Display for ListeningPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Icmp => "icmp",
            Protocol::Other => "other",
        };
        write!(f, "{protocol}/{}", self.port)
    }
}

/// The part of the client leg that one rule can stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortCell {
    /// IP version.
    pub family: Family,
    /// Seen from the proxy.
    pub direction: Direction,
    /// The listening port.
    pub listening: ListeningPort,
}

impl fmt::Display for PortCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            Family::Ipv4 => "IPv4",
            Family::Ipv6 => "IPv6",
        };
        let direction = match self.direction {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        };
        write!(f, "{} {family} {direction}", self.listening)
    }
}

/// Which parts of the client leg have a rule that counts them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    ports: Vec<ListeningPort>,
    covered: BTreeSet<PortCell>,
}

impl Coverage {
    pub(crate) fn new(ports: &[ListeningPort], covered: BTreeSet<PortCell>) -> Self {
        let ports: BTreeSet<_> = ports.iter().copied().collect();
        Self { ports: ports.into_iter().collect(), covered }
    }

    /// Whether a rule counts this part.
    pub fn covers(&self, cell: &PortCell) -> bool {
        self.covered.contains(cell)
    }

    /// Whether any rule counts this direction.
    pub fn has(&self, direction: Direction) -> bool {
        self.covered.iter().any(|cell| cell.direction == direction)
    }

    /// The parts without a rule. Whether they matter depends on whether they had traffic.
    pub fn missing(&self) -> Vec<PortCell> {
        let mut missing = Vec::new();
        for &listening in &self.ports {
            for direction in [Direction::Ingress, Direction::Egress] {
                for family in [Family::Ipv4, Family::Ipv6] {
                    let cell = PortCell { family, direction, listening };
                    if !self.covers(&cell) {
                        missing.push(cell);
                    }
                }
            }
        }
        missing
    }

    /// The listening ports of which a direction has no rule in either family.
    pub fn uncovered_ports(&self, direction: Direction) -> Vec<ListeningPort> {
        let covered = |listening: &ListeningPort| {
            self.covered
                .iter()
                .any(|cell| cell.direction == direction && cell.listening == *listening)
        };
        self.ports.iter().copied().filter(|listening| !covered(listening)).collect()
    }

    /// What the rules leave out, of the directions that have any: `not-all-ports` for listening ports
    /// without a rule, `rules-miss-family` for ports with rules for the other IP version only.
    ///
    /// `traffic`: bytes which `hook-port` saw of a part; parts without traffic are left out silently.
    pub fn findings(&self, traffic: impl Fn(&PortCell) -> u64) -> Vec<Finding> {
        let mut lacking = [Vec::new(), Vec::new()];
        for cell in self.missing().into_iter().filter(|cell| self.has(cell.direction)) {
            let bytes = traffic(&cell);
            if bytes > 0 {
                let other_family = !self.uncovered_ports(cell.direction).contains(&cell.listening);
                lacking[usize::from(other_family)].push(format!("{cell}: {bytes} bytes"));
            }
        }
        let [ports, families] = lacking;
        let finding = |code, parts: Vec<String>, remedy: &str| Finding {
            severity: Severity::Warning,
            code,
            message: format!("no rule counts {}", parts.join(", ")),
            remedy: remedy.to_owned(),
            incomplete: false,
        };
        let mut findings = Vec::new();
        if !ports.is_empty() {
            let remedy = "add rules for every listening port, or measure with --add-rules";
            findings.push(finding("not-all-ports", ports, remedy));
        }
        if !families.is_empty() {
            let remedy =
                "add the same rules with ip6tables (iptables), or measure with --add-rules";
            findings.push(finding("rules-miss-family", families, remedy));
        }
        findings
    }
}
