//! What the daemon keeps: traffic by quarter of an hour, and how much of it was observed. Pure types; the
//! daemon fills them, `store` keeps them, `report` reads them.
//!
//! The truth is in quarters of an hour aligned to UTC, because the days of every time zone can be cut from
//! them: all offsets in use are multiples of 15 minutes.

use std::time::Duration;

use jiff::Timestamp;
use traffic_ebpf::Cell;

use crate::estimate::PortBytes;
use crate::host::HostFlush;
use crate::report::{CellReport, Counters, Direction, Family, Leg, Origin, Protocol, Scope};

/// A quarter of an hour, counted from 1970-01-01T00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Quarter(pub i64);

impl Quarter {
    /// Its length.
    pub const SECONDS: i64 = 900;
    /// Its length.
    pub const MILLISECONDS: u32 = 900_000;

    /// The quarter that an instant is in.
    pub fn of(instant: Timestamp) -> Self {
        Self(instant.as_second().div_euclid(Self::SECONDS))
    }

    /// The one after it.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// Its first instant.
    pub fn start(self) -> Timestamp {
        let latest = Timestamp::MAX.as_second();
        Timestamp::from_second((self.0 * Self::SECONDS).min(latest)).unwrap_or(Timestamp::MIN)
    }
}

/// Coordinates under which traffic of a target is kept: those of a cell, by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Series {
    /// Name of the interface; `other` for those without a slot.
    pub interface: String,
    /// Who pays for it.
    pub scope: Scope,
    /// Who sent or took the packets.
    pub origin: Origin,
    /// Seen from the cgroup.
    pub direction: Direction,
    /// Side of the proxy.
    pub leg: Leg,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Listening port; `None` on the upstream leg and for ports without a slot.
    pub port: Option<u16>,
    /// IP version of the packets.
    pub family: Family,
}

impl From<&CellReport> for Series {
    fn from(cell: &CellReport) -> Self {
        Self {
            interface: cell.interface.clone(),
            scope: cell.scope,
            origin: cell.origin,
            direction: cell.direction,
            leg: cell.leg,
            protocol: cell.protocol,
            port: cell.port,
            family: cell.family,
        }
    }
}

/// The span in which counters only grow: one boot of the host, one map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch {
    /// /proc/sys/kernel/random/boot_id.
    pub boot_id: String,
    /// Id of the map `CELLS`, unique until reboot.
    pub map_id: u32,
}

/// What the number of an interface stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KnownInterface {
    /// Its number in its network namespace.
    pub number: u32,
    /// Its name.
    pub name: String,
    /// Who pays for it.
    pub scope: Scope,
}

/// All counters of an epoch as last read, by their place in a sample. Those that are zero are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Absolute {
    /// Whose counters.
    pub epoch: Epoch,
    /// What the interfaces were called that are counted apart: when the counters are read again, they may be
    /// gone, and nobody else would know. In the order of their numbers.
    pub interfaces: Vec<KnownInterface>,
    /// `(place in kernel::Sample::cells, counters)`, in the order of the places.
    pub cells: Vec<(u32, Cell)>,
}

/// What is known of how well a span of time was observed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its beginning; for something at one instant the same as `end`.
    pub start: Timestamp,
    /// Its end.
    pub end: Timestamp,
    /// What it is.
    pub kind: EventKind,
    /// In words, with the numbers.
    pub message: String,
}

/// Kinds of [`Event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventKind {
    /// Traffic of the span may be missing: nothing was attached.
    Gap,
    /// Nothing is missing, but what was counted in the span is kept in the quarter of its end, because the
    /// agent did not run to read it earlier.
    Late,
    /// The clock was set: rows around it may hold less or more than their length of time.
    ClockStep,
    /// Something that explains a figure and takes nothing from it: attached again, upgraded, new counters.
    Note,
}

impl EventKind {
    /// Its name in the database and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gap => "gap",
            Self::Late => "late",
            Self::ClockStep => "clock-step",
            Self::Note => "note",
        }
    }
}

/// A method that the daemon reads in the background.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Method {
    /// Rules that match the target's ports.
    IptablesPort,
    /// The client leg as the hook counts it.
    HookPort,
    /// All interfaces of the target's network namespace but loopback.
    Interface,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::IptablesPort, Self::HookPort, Self::Interface];

    /// Its name in the database and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::IptablesPort => "iptables-port",
            Self::HookPort => "hook-port",
            Self::Interface => "interface",
        }
    }
}

/// What a method counted from one look to the next, beside what is exact of the same span.
///
/// Linear: the sum of two readings that lack the same directions is a reading of both spans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MethodReading {
    /// Which method.
    pub method: Method,
    /// The look before.
    pub start: Timestamp,
    /// The look.
    pub end: Timestamp,
    /// Bytes towards the target; `None` where nothing counts them, or not all listening ports.
    pub ingress: Option<u64>,
    /// Bytes from the target; likewise.
    pub egress: Option<u64>,
    /// Billed wire bytes of the target in the same span, both legs.
    pub exact: PortBytes,
}

/// Readings of a method added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadingSum {
    /// Of how long they are.
    pub milliseconds: u64,
    /// As in [`MethodReading`].
    pub ingress: Option<u64>,
    /// As in [`MethodReading`].
    pub egress: Option<u64>,
    /// As in [`MethodReading`].
    pub exact: PortBytes,
}

/// What one flush adds to the history of one target.
#[derive(Clone, Debug)]
pub struct TargetFlush {
    /// Short name of the target.
    pub target: String,
    /// How it is selected now.
    pub selector: String,
    /// When the counters below were read: this flush ends here.
    pub taken_at: Timestamp,
    /// Until when it was observed, since boot: what goes by from here on is known whatever becomes of the
    /// wall clock. `None` if it never was.
    pub observed_until: Option<Duration>,
    /// Where the traffic goes.
    pub quarter: Quarter,
    /// Traffic since the last flush, to be added.
    pub postings: Vec<(Series, Counters)>,
    /// Milliseconds that were observed since the last flush, by quarter, to be added.
    pub observed: Vec<(Quarter, u32)>,
    /// The counters that the traffic is the difference to, to take the place of those kept for their epochs.
    pub absolute: Vec<Absolute>,
    /// Epochs whose counters are gone for good: what was kept of them is forgotten.
    pub closed: Vec<Epoch>,
    /// What happened.
    pub events: Vec<Event>,
    /// What other methods counted since their last look, once a minute.
    pub readings: Vec<MethodReading>,
}

/// What one flush adds to history: all of it or nothing.
#[derive(Clone, Debug, Default)]
pub struct Flush {
    /// Each target at most once.
    pub targets: Vec<TargetFlush>,
    /// The host's ledger, where it is kept.
    pub host: Option<HostFlush>,
}

/// Returns how many milliseconds of the span from `from` to `to` lie in each quarter, in order; what is
/// less than a millisecond at either end is cut off. Empty when `to` is not after `from`.
pub fn spread(from: Timestamp, to: Timestamp) -> Vec<(Quarter, u32)> {
    let length = i64::from(Quarter::MILLISECONDS);
    let (mut at, to) = (from.as_millisecond(), to.as_millisecond());
    let mut parts = Vec::new();
    while at < to {
        let quarter = at.div_euclid(length);
        let end = to.min((quarter + 1) * length);
        // At most a quarter's length, which is far below the limit of a u32.
        parts.push((Quarter(quarter), (end - at) as u32));
        at = end;
    }
    parts
}

/// How long each level is kept, in days that have a row; `None`: for ever.
///
/// The newest so many days are kept, whatever the clock says now: a clock that is wrong for an hour must not
/// make the agent forget a year. Days without the agent take no space, and none of the number.
///
/// Measured with all six counters in use: a row of a quarter takes 43 bytes, and of a day as many. Five
/// targets with 20 series that are active in every quarter of a year: 3.5 million rows, 150 MB, and 1.6 MB
/// for the days.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Quarters of an hour. Older days stay as they were cut, whatever the time zone becomes.
    pub quarters_days: Option<u32>,
    /// Days; never fewer than those of the quarters.
    pub days_days: Option<u32>,
    /// Readings of other methods, one a minute.
    pub estimates_minutes_days: Option<u32>,
    /// Their sums by quarter.
    pub estimates_quarters_days: Option<u32>,
    /// Events. [`EVENTS`](crate::store::EVENTS) are the most that is kept of a target, and of the host.
    pub events_days: Option<u32>,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            quarters_days: Some(800),
            days_days: None,
            events_days: Some(800),
            estimates_minutes_days: Some(14),
            estimates_quarters_days: Some(800),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_span_is_spread_over_the_quarters_it_touches() {
        let start = Quarter::of(at("2026-11-24T17:00:00Z"));
        let spread = |from, to| spread(at(from), at(to));
        assert_eq!(
            spread("2026-11-24T17:14:59.5Z", "2026-11-24T17:45:00.25Z"),
            [
                (start, 500),
                (Quarter(start.0 + 1), 900_000),
                (Quarter(start.0 + 2), 900_000),
                (Quarter(start.0 + 3), 250),
            ]
        );
        assert_eq!(spread("2026-11-24T17:00:00Z", "2026-11-24T17:15:00Z"), [(start, 900_000)]);
        assert_eq!(spread("2026-11-24T17:00:00Z", "2026-11-24T17:00:00Z"), []);
        // The clock was set back.
        assert_eq!(spread("2026-11-24T17:00:00Z", "2026-11-24T16:00:00Z"), []);
        // 1969: quarters before the epoch are cut like the others.
        assert_eq!(
            spread("1969-12-31T23:59:59Z", "1970-01-01T00:00:01Z"),
            [(Quarter(-1), 1000), (Quarter(0), 1000)]
        );
    }

    #[test]
    fn quarters_are_aligned_to_utc_also_before_1970() {
        let at = |text: &str| Quarter::of(text.parse().unwrap());
        assert_eq!(at("1970-01-01T00:14:59Z"), Quarter(0));
        assert_eq!(at("1970-01-01T00:15:00Z"), Quarter(1));
        assert_eq!(at("1969-12-31T23:59:59Z"), Quarter(-1));
        // 2026-11-24T17:15Z is 1,795,540,500 s.
        assert_eq!(at("2026-11-24T17:29:59Z"), Quarter(1_795_540_500 / 900));
        assert_eq!(at("2026-11-24T17:29:59Z").start().to_string(), "2026-11-24T17:15:00Z");
    }
}
