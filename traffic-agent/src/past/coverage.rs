//! How much of a span of time was observed, and what happened in it.

use jiff::{SignedDuration, Timestamp};

use super::{Coverage, Extent, Note};
use crate::{
    calendar::{Calendar, Span},
    history::{Event, EventKind},
};

/// A history that is older than this is not kept up: the agent writes traffic every ten seconds, and that
/// time went by without any once a minute.
pub const CURRENT_WITHIN: SignedDuration = SignedDuration::from_secs(150);

/// Time that may be missing although nothing was missed: what an attachment takes to be timed, and the
/// difference between two clocks. NTP corrects a clock by 500 ppm at most (adjtime(3), "slew rate").
const SLACK_MILLISECONDS: u64 = 1_000;
const SLACK_AT_MOST_MILLISECONDS: u64 = 60_000;
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
    let slack = observable / 1_000_000 * SLACK_PER_MILLION;
    let slack = (SLACK_MILLISECONDS + slack).min(SLACK_AT_MOST_MILLISECONDS);
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

/// What happened in a span that takes nothing from its figures: what was done to the rules that estimates are
/// made of, and why a method could not be read.
pub fn asides(events: &[Event], span: Span, calendar: &Calendar) -> Vec<Note> {
    let asides = events.iter().filter(|event| !is_noted(event.kind) && touches(event, span));
    asides.map(|event| note(event, calendar)).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        format!("2026-11-{text}Z").parse().unwrap()
    }

    fn span(start: &str, end: &str) -> Span {
        Span { start: at(start), end: at(end) }
    }

    fn known(since: &str, last_flush: &str, now: &str) -> Known {
        Known { since: at(since), last_flush: at(last_flush), now: at(now) }
    }

    fn covered(span: Span, observed: u64, known: &Known, events: &[Event]) -> Coverage {
        cover(span, observed, known, events, &Calendar::named("UTC").unwrap())
    }

    fn event(kind: EventKind, start: &str, end: &str) -> Event {
        Event { start: at(start), end: at(end), kind, message: "it happened".to_owned() }
    }

    const DAY: u64 = 86_400_000;

    #[test]
    fn time_before_the_target_and_after_now_is_not_missing() {
        let day = span("24T00:00", "25T00:00");
        // Known since 06:00; the history goes to 10:00:00, five seconds ago.
        let known = known("24T06:00", "24T10:00:00", "24T10:00:05");
        let coverage = covered(day, 4 * 3_600_000, &known, &[]);
        assert_eq!((coverage.observed_seconds, coverage.observable_seconds), (14_400.0, 14_400.0));
        assert!(coverage.complete);
        assert_eq!(coverage.percent(), Some(100.0));
        let before = covered(span("23T00:00", "24T00:00"), 0, &known, &[]);
        assert_eq!((before.observable_seconds, before.percent()), (0.0, None));
    }

    #[test]
    fn time_since_an_old_flush_is_missing() {
        let known = known("20T00:00", "24T10:00:00", "24T12:00:00");
        let coverage = covered(span("24T00:00", "25T00:00"), 10 * 3_600_000, &known, &[]);
        assert_eq!(coverage.observable_seconds, 12.0 * 3_600.0);
        assert!(!coverage.complete);
    }

    #[test]
    fn difference_of_two_clocks_is_not_missing_time() {
        let (known, day) =
            (known("20T00:00", "26T00:00", "26T00:00"), span("24T00:00", "25T00:00"));
        // A second, and 500 ppm of a day: 43.2 s.
        assert!(covered(day, DAY - 44_000, &known, &[]).complete);
        assert!(!covered(day, DAY - 44_300, &known, &[]).complete);
        assert!(covered(day, DAY + 500_000, &known, &[]).complete);
    }

    #[test]
    fn gap_makes_its_span_incomplete_however_short() {
        let known = known("20T00:00", "26T00:00", "26T00:00");
        let gap = [event(EventKind::Gap, "24T08:00:00", "24T08:00:00.2")];
        let coverage = covered(span("24T00:00", "25T00:00"), DAY - 200, &known, &gap);
        assert_eq!((coverage.complete, coverage.notes[0].kind), (false, "gap"));
        assert!(covered(span("23T00:00", "24T00:00"), DAY, &known, &gap).complete);
    }

    #[test]
    fn late_traffic_and_clock_steps_are_noted_and_take_nothing() {
        let known = known("20T00:00", "26T00:00", "26T00:00");
        let events = [
            event(EventKind::Late, "23T23:00", "24T01:00"),
            event(EventKind::ClockStep, "24T00:00", "24T00:00"),
            event(EventKind::Note, "24T02:00", "24T02:00"),
        ];
        let kinds = |span| -> Vec<_> {
            let coverage = covered(span, DAY, &known, &events);
            assert!(coverage.complete);
            coverage.notes.iter().map(|note| note.kind).collect()
        };
        assert_eq!(kinds(span("23T00:00", "24T00:00")), ["late"]);
        assert_eq!(kinds(span("24T00:00", "25T00:00")), ["late", "clock-step"]);
        assert!(kinds(span("25T00:00", "26T00:00")).is_empty());
    }
}
