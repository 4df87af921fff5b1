//! The calendar of a time zone, cut out of quarters of an hour: hours, days, weeks, months, years. Pure.
//!
//! A day begins where its date first does: an hour later where the clock is set forward at midnight, and it
//! lasts 23 or 25 hours where the clock is set within it. An hour ends at the next full hour of the wall
//! clock, or where the offset changes; so the hour that comes twice in autumn is two hours, told apart by
//! their offset. Spans are half-open.
//!
//! All offsets in use are multiples of 15 minutes, so that every cut falls between two quarters. In a zone
//! made up otherwise, a quarter belongs to the span in which it begins.

mod parse;
#[cfg(test)]
mod tests;

use std::ops::Range;

use jiff::{
    SignedDuration, Timestamp, ToSpan as _, ZonedDateTime,
    civil::{Date, DateTime},
    tz::{Offset, TimeZone},
};
pub use parse::{ParseError, UNDERSTOOD};

use crate::history::Quarter;

/// A span of time, half-open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// Its first instant.
    pub start: Timestamp,
    /// The first instant after it.
    pub end: Timestamp,
}

impl Span {
    /// The quarters that begin in it.
    pub fn quarters(&self) -> Range<Quarter> {
        first_quarter(self.start)..first_quarter(self.end)
    }

    /// What it has in common with another; `None` where that is nothing.
    pub fn common(&self, other: &Self) -> Option<Self> {
        let common = Self { start: self.start.max(other.start), end: self.end.min(other.end) };
        (common.start < common.end).then_some(common)
    }

    /// Its length.
    pub fn milliseconds(&self) -> u64 {
        let length = self.end.as_millisecond().saturating_sub(self.start.as_millisecond());
        u64::try_from(length).unwrap_or(0)
    }
}

/// The first quarter that begins at an instant or later.
fn first_quarter(instant: Timestamp) -> Quarter {
    let quarter = Quarter::of(instant);
    if quarter.start() < instant { quarter.next() } else { quarter }
}

/// A part of the calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Unit {
    Hour,
    Day,
    /// From Monday on, as in ISO 8601.
    Week,
    Month,
    Year,
}

/// One hour, day, week, month or year, or what a range leaves of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    /// What it is one of.
    pub unit: Unit,
    /// Its beginning on the wall clock, whatever the range leaves of it.
    pub begins: DateTime,
    /// When it is.
    pub span: Span,
}

impl Period {
    /// Its name: `2026-11-24T10`, `2026-11-24`, `2026-W48`, `2026-11`, `2026`.
    pub fn name(&self) -> String {
        let date = self.begins.date();
        match self.unit {
            Unit::Hour => format!("{date}T{:02}", self.begins.hour()),
            Unit::Day => date.to_string(),
            Unit::Week => {
                let week = date.iso_week_date();
                format!("{:04}-W{:02}", week.year(), week.week())
            }
            Unit::Month => format!("{:04}-{:02}", date.year(), date.month()),
            Unit::Year => format!("{:04}", date.year()),
        }
    }

    /// The date that it lies in; `None` where it is longer than a day.
    pub fn day(&self) -> Option<Date> {
        matches!(self.unit, Unit::Hour | Unit::Day).then(|| self.begins.date())
    }
}

/// The calendar of a time zone.
#[derive(Clone, Debug)]
pub struct Calendar {
    zone: TimeZone,
}

impl Calendar {
    /// The calendar of this zone.
    pub fn new(zone: TimeZone) -> Self {
        Self { zone }
    }

    /// The zone.
    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// The zone's name, or its offset.
    pub fn zone_name(&self) -> String {
        match (self.zone.iana_name(), self.zone.to_fixed_offset()) {
            (Some(name), _) => name.to_owned(),
            (None, Ok(Offset::UTC)) => "UTC".to_owned(),
            (None, Ok(offset)) => offset.to_string(),
            (None, Err(_)) => "the system's".to_owned(),
        }
    }

    /// An instant with the zone's offset.
    pub fn zoned(&self, instant: Timestamp) -> ZonedDateTime {
        instant.to_zoned_datetime(self.zone.clone())
    }

    /// The first instant of a date. For one that the zone has skipped, that of the next.
    pub fn start_of(&self, date: Date) -> Timestamp {
        // Only the ends of what can be told have no beginning.
        let beyond = if date.year() < 0 { Timestamp::MIN } else { Timestamp::MAX };
        date.to_zoned_datetime(self.zone.clone())
            .and_then(|midnight| midnight.start_of_day())
            .map_or(beyond, |start| start.timestamp())
    }

    /// The date that an instant belongs to: by the beginnings of dates, because a date comes twice where
    /// the clock is set back over midnight.
    pub fn date_of(&self, instant: Timestamp) -> Date {
        let mut date = self.zone.to_datetime(instant).date();
        while instant < self.start_of(date) && date > Date::MIN {
            date = date.saturating_sub(1.day());
        }
        while instant >= self.start_of(date.saturating_add(1.day())) && date < Date::MAX {
            date = date.saturating_add(1.day());
        }
        date
    }

    /// The period of a unit that an instant is in.
    pub fn containing(&self, unit: Unit, instant: Timestamp) -> Period {
        if unit == Unit::Hour {
            return self.hour(instant);
        }
        self.of_date(unit, self.date_of(instant))
    }

    /// The day, week, month or year of a date; its first hour for [`Unit::Hour`].
    pub fn of_date(&self, unit: Unit, date: Date) -> Period {
        let (first, after) = match unit {
            Unit::Hour => return self.hour(self.start_of(date)),
            Unit::Day => (date, date.saturating_add(1.day())),
            Unit::Week => {
                let monday =
                    date.saturating_sub(i64::from(date.weekday().to_monday_zero_offset()).days());
                (monday, monday.saturating_add(7.days()))
            }
            Unit::Month => {
                let first = date.first_of_month();
                (first, first.saturating_add(1.month()))
            }
            Unit::Year => {
                let first = date.first_of_year();
                (first, first.saturating_add(1.year()))
            }
        };
        let span = Span { start: self.start_of(first), end: self.start_of(after) };
        Period { unit, begins: first.to_datetime(jiff::civil::Time::midnight()), span }
    }

    fn hour(&self, instant: Timestamp) -> Period {
        let local = self.zone.to_datetime(instant);
        let within = SignedDuration::new(
            i64::from(local.minute()) * 60 + i64::from(local.second()),
            local.subsec_nanosecond(),
        );
        let (mut start, mut end) =
            (instant - within, instant - within + SignedDuration::from_hours(1));
        // An offset that changes within the hour by the wall clock begins or ends it.
        let offset = self.zone.to_offset(instant);
        if self.zone.to_offset(start) != offset
            && let Some(change) =
                self.zone.preceding(instant + SignedDuration::from_nanos(1)).next()
        {
            start = start.max(change.timestamp());
        }
        if self.zone.to_offset(end) != offset
            && let Some(change) = self.zone.following(instant).next()
        {
            end = end.min(change.timestamp());
        }
        Period { unit: Unit::Hour, begins: self.zone.to_datetime(start), span: Span { start, end } }
    }

    /// All periods of a unit that have an instant in a span, in order, the first and the last one cut to it.
    pub fn periods(&self, unit: Unit, within: Span) -> Vec<Period> {
        let mut periods = Vec::new();
        let mut at = within.start;
        while at < within.end {
            let period = self.containing(unit, at);
            // What does not go on would be asked for forever: the ends of what can be told.
            if period.span.end <= at {
                break;
            }
            at = period.span.end;
            periods.extend(period.span.common(&within).map(|span| Period { span, ..period }));
        }
        periods
    }

    /// The dates of a span that begins and ends with one; `None` where it begins or ends within a date.
    pub fn dates(&self, span: Span) -> Option<Range<Date>> {
        let (first, after) = (self.date_of(span.start), self.date_of(span.end));
        let whole = self.start_of(first) == span.start && self.start_of(after) == span.end;
        whole.then_some(first..after)
    }

    /// The day before that of an instant. One that the zone has skipped is none.
    pub fn yesterday(&self, now: Timestamp) -> Period {
        self.before(Unit::Day, now)
    }

    /// The period before the one that an instant is in.
    pub fn before(&self, unit: Unit, now: Timestamp) -> Period {
        let start = self.containing(unit, now).span.start;
        self.containing(unit, start - SignedDuration::from_nanos(1))
    }
}
