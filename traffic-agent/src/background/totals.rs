//! What was posted of a target, summed up as the other methods see it.

use std::collections::BTreeMap;

use crate::estimate::PortBytes;
use crate::method::{Coverage, ListeningPort, PortCell};
use crate::report::{CellReport, Direction, Leg, Scope};

/// Sums since the daemon's start. They only grow, whatever becomes of the counters behind them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// The client leg, loopback included: L3 bytes, super-packets as rules and hook see them.
    pub(super) client: PortBytes,
    /// Billed traffic of both legs: wire bytes.
    pub(super) exact: PortBytes,
    /// The client leg by what one rule can stand for.
    parts: BTreeMap<PortCell, Part>,
}

/// Bytes of one part of the client leg.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Part {
    all: u64,
    /// Of these, what did not stay on the host.
    outside: u64,
}

impl Totals {
    pub(super) fn add(&mut self, cell: &CellReport) {
        let add = |sum: &mut u64, bytes: u64| *sum = sum.saturating_add(bytes);
        if cell.scope == Scope::Billed {
            add(self.exact.of_mut(cell.direction), cell.counters.wire_bytes);
        }
        if cell.leg != Leg::Client {
            return;
        }
        add(self.client.of_mut(cell.direction), cell.counters.bytes);
        // Ports beyond the table have no number.
        let Some(port) = cell.port else { return };
        let listening = ListeningPort { protocol: cell.protocol, port };
        let part = PortCell { family: cell.family, direction: cell.direction, listening };
        let part = self.parts.entry(part).or_default();
        add(&mut part.all, cell.counters.bytes);
        if cell.scope != Scope::Loopback {
            add(&mut part.outside, cell.counters.bytes);
        }
    }

    /// Bytes that rules of this coverage count in a direction.
    pub(super) fn covered(&self, coverage: &Coverage, direction: Direction) -> u64 {
        self.parts
            .iter()
            .filter(|(cell, _)| cell.direction == direction && coverage.covers(cell))
            .fold(0, |sum, (_, part)| sum.saturating_add(part.all))
    }

    /// Bytes of a port in a direction that did not stay on the host.
    pub(super) fn of_port(&self, port: ListeningPort, direction: Direction) -> u64 {
        self.parts
            .iter()
            .filter(|(cell, _)| cell.direction == direction && cell.listening == port)
            .fold(0, |sum, (_, part)| sum.saturating_add(part.outside))
    }
}
