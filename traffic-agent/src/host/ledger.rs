//! From samples of the root's counters to what was counted since the last commit. Pure.
//!
//! Differences are taken to what was last committed, and not to the sample before: a flush that fails is made
//! up for by the next one.

use std::collections::BTreeMap;

use traffic_ebpf::{Cell, HostKey};

use crate::kernel::{HostCells, HostSample};
use crate::method::interface::InterfaceCounters;

/// Whose counters they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// A cgroup, at an interface of a namespace.
    Key(HostKey),
    /// What found no place.
    Overflow,
}

/// What was counted since the last commit, by owner.
pub type Gains = BTreeMap<Owner, HostCells>;

/// Returns what two samples of the same turn differ by. Without an earlier one all is new.
fn difference(earlier: Option<&HostSample>, later: &HostSample, gains: &mut Gains) {
    let mut gain = |owner, before: Option<&HostCells>, after: &HostCells| {
        let before = before.copied().unwrap_or_default();
        let gained: HostCells = std::array::from_fn(|direction| {
            // Within a turn counters only grow, until the map is emptied: what is left of it then is known.
            minus(after[direction], before[direction])
        });
        if gained != HostCells::default() {
            let sum = gains.entry(owner).or_default();
            for (sum, gained) in sum.iter_mut().zip(gained) {
                *sum = plus(*sum, gained);
            }
        }
    };
    for (key, after) in &later.cells {
        gain(Owner::Key(*key), earlier.and_then(|earlier| earlier.cells.get(key)), after);
    }
    gain(Owner::Overflow, earlier.map(|earlier| &earlier.overflow), &later.overflow);
}

/// Returns what `samples`, one for each turn, have that `committed` has not.
pub fn gains(committed: &[HostSample], samples: &[HostSample]) -> Gains {
    let mut gains = Gains::new();
    for sample in samples {
        let earlier = committed.iter().find(|earlier| earlier.turn == sample.turn);
        difference(earlier, sample, &mut gains);
    }
    gains
}

fn minus(one: Cell, other: Cell) -> Cell {
    Cell {
        packets: one.packets.saturating_sub(other.packets),
        bytes: one.bytes.saturating_sub(other.bytes),
        wire_packets: one.wire_packets.saturating_sub(other.wire_packets),
        wire_bytes: one.wire_bytes.saturating_sub(other.wire_bytes),
        ..Cell::default()
    }
}

fn plus(one: Cell, other: Cell) -> Cell {
    Cell {
        packets: one.packets.saturating_add(other.packets),
        bytes: one.bytes.saturating_add(other.bytes),
        wire_packets: one.wire_packets.saturating_add(other.wire_packets),
        wire_bytes: one.wire_bytes.saturating_add(other.wire_bytes),
        ..Cell::default()
    }
}

/// Counters of an interface, and its number, which a new interface of the same name does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its number.
    pub index: u32,
    /// Since it was made, or since its driver set them back.
    pub counters: InterfaceCounters,
}

/// Interfaces by name.
pub type Devices = BTreeMap<String, Device>;

/// Why counters of an interface begin anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// Another interface has the name.
    Replaced,
    /// They are smaller than before: set back, or beyond what a driver with 32 bits can count.
    Backwards,
}

/// What an interface has counted since the last commit.
///
/// Counters that begin anew are taken from their beginning: what the old ones counted at last is not known, but
/// nothing is invented. An interface that is new since has counted from 0.
pub fn device_gain(
    before: Option<&Device>,
    after: &Device,
) -> (InterfaceCounters, Option<Restart>) {
    let Some(before) = before else { return (after.counters, None) };
    if before.index != after.index {
        return (after.counters, Some(Restart::Replaced));
    }
    match after.counters.since(&before.counters) {
        Some(gained) => (gained, None),
        None => (after.counters, Some(Restart::Backwards)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(cgroup: u64) -> HostKey {
        HostKey { cgroup, namespace: 7, interface: 2 }
    }

    fn cells(bytes: u64) -> HostCells {
        [Cell { packets: 1, bytes, wire_packets: 1, wire_bytes: bytes, ..Cell::default() }; 2]
    }

    fn sample(turn: u64, counted: &[(u64, u64)]) -> HostSample {
        let cells = counted.iter().map(|&(cgroup, bytes)| (key(cgroup), cells(bytes))).collect();
        HostSample { turn, cells, overflow: HostCells::default() }
    }

    fn bytes(gains: &Gains, cgroup: u64) -> u64 {
        gains.get(&Owner::Key(key(cgroup))).map_or(0, |cells| cells[0].wire_bytes)
    }

    #[test]
    fn what_was_committed_is_not_counted_again() {
        let committed = [sample(4, &[(1, 100), (2, 50)])];
        let gains = gains(&committed, &[sample(4, &[(1, 130), (2, 50), (3, 7)])]);
        assert_eq!([bytes(&gains, 1), bytes(&gains, 2), bytes(&gains, 3)], [30, 0, 7]);
        assert_eq!(gains.len(), 2);
    }

    #[test]
    fn a_turn_loses_and_doubles_nothing() {
        // Committed at 100; 20 more before the turn, 5 after it.
        let committed = [sample(4, &[(1, 100)])];
        let at_the_turn = [sample(4, &[(1, 120)]), sample(5, &[(1, 5)])];
        assert_eq!(bytes(&gains(&committed, &at_the_turn), 1), 25);
        // A flush that failed: the same again, and what came since.
        let later = [sample(4, &[(1, 120)]), sample(5, &[(1, 9)])];
        assert_eq!(bytes(&gains(&committed, &later), 1), 29);
        // Committed, and the old map emptied, in full or in part.
        for old in [sample(4, &[]), sample(4, &[(1, 120)])] {
            let after = [old, sample(5, &[(1, 11)])];
            assert_eq!(bytes(&gains(&later, &after), 1), 2);
        }
    }

    #[test]
    fn what_found_no_place_is_counted_apart() {
        let full = HostSample { overflow: cells(60), ..sample(0, &[(1, 40)]) };
        let gains = gains(&[], &[full]);
        assert_eq!(gains[&Owner::Overflow][1].wire_bytes, 60);
        assert_eq!(bytes(&gains, 1), 40);
    }

    fn device(index: u32, ingress_bytes: u64) -> Device {
        Device { index, counters: InterfaceCounters { ingress_bytes, ..Default::default() } }
    }

    #[test]
    fn interface_counters_that_begin_anew_are_a_new_epoch() {
        let gain = |before: Option<Device>, after| {
            let (gained, restart) = device_gain(before.as_ref(), &after);
            (gained.ingress_bytes, restart)
        };
        assert_eq!(gain(None, device(2, 70)), (70, None));
        assert_eq!(gain(Some(device(2, 70)), device(2, 100)), (30, None));
        // Made anew under the same name, also if it has counted more since than the old one ever did.
        assert_eq!(gain(Some(device(2, 70)), device(9, 100)), (100, Some(Restart::Replaced)));
        // A driver with 32 bits, at 4,294,967,000 and 500 bytes on: at least 204, never 2^64 and something.
        let wrapped = gain(Some(device(2, 4_294_967_000)), device(2, 204));
        assert_eq!(wrapped, (204, Some(Restart::Backwards)));
    }
}
