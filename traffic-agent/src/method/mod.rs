//! Other ways to measure the same traffic, to be held against the exact figure.
//!
//! A method reads counters that only grow. It is read at the start and at the end; the difference of
//! the two readings is what it saw. A method that cannot be read says why.

use crate::report::{Direction, Protocol};

/// One counter, as read at one instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleCounter {
    /// Where it was read: `iptables-nft`, `iptables-legacy`, `ip6tables-nft`, `nft`, `interface`.
    pub backend: String,
    /// Table of the rule, such as `filter`.
    pub table: String,
    /// Chain of the rule, such as `INPUT`.
    pub chain: String,
    /// The rule as its program prints it, without counters.
    pub rule: String,
    /// Tells two equal rules of one chain apart: how many equal ones come before it.
    pub occurrence: usize,
    /// Which direction it counts, seen from the proxy.
    pub direction: Direction,
    /// L3 bytes.
    pub bytes: u64,
    /// Packets as netfilter sees them.
    pub packets: u64,
    /// Whether it belongs to the sum, or counts packets that another rule of it counts too.
    pub counted: bool,
}

/// A listening port of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListeningPort {
    /// tcp or udp.
    pub protocol: Protocol,
    /// The port, 1 to 65535.
    pub port: u16,
}
