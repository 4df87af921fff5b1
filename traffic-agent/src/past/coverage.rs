//! How much of a span of time was observed, and what happened in it.

use jiff::{SignedDuration, Timestamp};

use super::{Coverage, Extent, Note};
use crate::{
    calendar::{Calendar, Span},
    history::{Event, EventKind},
};

/// A history that is older than this is not kept up: the agent writes every ten seconds.
pub const CURRENT_WITHIN: SignedDuration = SignedDuration::from_secs(60);

/// Time that may be missing although nothing was missed: what an attachment takes to be timed, and the
/// difference between two clocks. NTP corrects a clock by 500 ppm at most (adjtime(3), "slew rate").
const SLACK_MILLISECONDS: u64 = 1_000;
const SLACK_PER_MILLION: u64 = 500;

/// When a target was counted, as far as the history knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// From when on.
    pub since: Timestamp,
    /// Until when it is in the history.
    pub last_flush: Timestamp,
    /// Now.
    pub now: Timestamp,
}

impl Known {
    /// Whether the history is kept up.
    pub fn is_current(&self) -> bool {
        self.now.duration_since(self.last_flush) <= CURRENT_WITHIN
    }

    /// The span in which the target could have been observed: until the last flush, if that was just now,
    /// because what was counted since is not in the figures either.
    pub fn span(&self) -> Span {
        let end = if self.is_current() { self.last_flush } else { self.now };
        Span { start: self.since, end }
    }
}

/// Returns how much of a span was observed.
pub fn cover(
    span: Span,
    observed_milliseconds: u64,
    known: &Known,
    events: &[Event],
    calendar: &Calendar,
) -> Coverage {
    let observable = span.common(&known.span()).map_or(0, |span| span.milliseconds());
    let notes: Vec<&Event> =
        events.iter().filter(|event| is_noted(event.kind) && touches(event, span)).collect();
    let slack = SLACK_MILLISECONDS + observable / 1_000_000 * SLACK_PER_MILLION;
    let gap = notes.iter().any(|event| event.kind == EventKind::Gap);
    Coverage {
        observed_seconds: seconds(observed_milliseconds),
        observable_seconds: seconds(observable),
        complete: !gap && observed_milliseconds.saturating_add(slack) >= observable,
        notes: notes.into_iter().map(|event| note(event, calendar)).collect(),
    }
}

/// Whether an event says something about the figures of its span.
fn is_noted(kind: EventKind) -> bool {
    match kind {
        EventKind::Gap | EventKind::Late | EventKind::ClockStep => true,
        EventKind::Note => false,
    }
}

/// Whether an event has an instant in a span.
fn touches(event: &Event, span: Span) -> bool {
    event.start < span.end && (event.end > span.start || event.start >= span.start)
}

/// An event as it is printed.
pub fn note(event: &Event, calendar: &Calendar) -> Note {
    let extent = Extent { start: calendar.zoned(event.start), end: calendar.zoned(event.end) };
    Note { kind: event.kind.name(), extent, message: event.message.clone() }
}

fn seconds(milliseconds: u64) -> f64 {
    milliseconds as f64 / 1e3
}
