//! What people write for a time: `--from` and `--to`.

use jiff::{
    Timestamp,
    civil::{Date, DateTime},
    fmt::temporal::DateTimeParser,
};

use super::{Calendar, Span, Unit};
use crate::history::Quarter;

/// What is understood as a time, in words.
pub const UNDERSTOOD: &str = "2026-11-24, 2026-11, 2026, 2026-11-24T10:15 (also with Z or +08:00 behind it), \
     now, today, yesterday, this-week, last-week, this-month, last-month, this-year, last-year, or how long ago: \
     24h, 7d, 4w, 3mo, 1y";

/// What cannot be understood as a time or span of time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// No form of a time.
    #[error("`{0}` is not a time; write {UNDERSTOOD}")]
    NotATime(String),
    /// A time between the quarters.
    #[error(
        "`{text}` is not on a quarter of an hour, and the history is kept in quarters; write {before} or \
         {after}"
    )]
    NotAQuarter {
        /// What was written.
        text: String,
        /// The quarter before it.
        before: DateTime,
        /// The quarter after it.
        after: DateTime,
    },
    /// A span of no length.
    #[error(
        "from {from} to {to} is no time at all: the end itself is not included, so --to must be later than \
         --from"
    )]
    Empty {
        /// The beginning, with its offset.
        from: String,
        /// The end, with its offset.
        to: String,
    },
    /// A zone that nobody knows.
    #[error(
        "no time zone is called `{0}`; write a name such as Asia/Shanghai, an offset such as +08:00, or \
         UTC (names come with the package tzdata)"
    )]
    NoSuchZone(String),
}

impl Calendar {
    /// The calendar of a zone that is written as its IANA name, as an offset or as `UTC`.
    pub fn named(name: &str) -> Result<Self, ParseError> {
        static PARSER: DateTimeParser = DateTimeParser::new();
        let zone = PARSER.parse_time_zone(name);
        zone.map(Self::new).map_err(|_| ParseError::NoSuchZone(name.to_owned()))
    }

    /// Reads a time, as seen at `now`. What names a longer span means its first instant.
    ///
    /// A wall-clock time that comes twice is the first one; one that is skipped is as much later as was
    /// skipped (RFC 5545, 3.3.5).
    pub fn parse(&self, text: &str, now: Timestamp) -> Result<Timestamp, ParseError> {
        let not_a_time = || ParseError::NotATime(text.to_owned());
        if let Some(word) = self.word(text, now) {
            return Ok(word);
        }
        if let Some(ago) = self.ago(text, now) {
            return Ok(ago);
        }
        if let Some(date) = date(text) {
            return Ok(self.start_of(date));
        }
        // A date or less is behind us. What has a time also says `T` or a space, and perhaps an offset.
        if !text.contains(['T', 't', ' ']) {
            return Err(not_a_time());
        }
        let instant = match text.parse::<Timestamp>() {
            Ok(instant) => instant,
            Err(_) => {
                let civil: DateTime = text.parse().map_err(|_| not_a_time())?;
                self.zone.to_timestamp(civil).map_err(|_| not_a_time())?
            }
        };
        let before = Quarter::of(instant);
        if before.start() != instant {
            return Err(ParseError::NotAQuarter {
                text: text.to_owned(),
                before: self.zone.to_datetime(before.start()),
                after: self.zone.to_datetime(before.next().start()),
            });
        }
        Ok(instant)
    }

    /// Reads both ends of a span; the ends that are not given are `otherwise`.
    pub fn parse_span(
        &self,
        from: Option<&str>,
        to: Option<&str>,
        otherwise: Span,
        now: Timestamp,
    ) -> Result<Span, ParseError> {
        let end = |text: Option<&str>, otherwise| {
            text.map_or(Ok(otherwise), |text| self.parse(text, now))
        };
        let span = Span { start: end(from, otherwise.start)?, end: end(to, otherwise.end)? };
        if span.start >= span.end {
            let shown = |instant| self.zoned(instant).strftime("%Y-%m-%d %H:%M %:z").to_string();
            return Err(ParseError::Empty { from: shown(span.start), to: shown(span.end) });
        }
        Ok(span)
    }

    fn word(&self, text: &str, now: Timestamp) -> Option<Timestamp> {
        let this = |unit| Some(self.containing(unit, now).span.start);
        let last = |unit| Some(self.before(unit, now).span.start);
        match text {
            // The quarter that we are in is part of what was until now.
            "now" => Some(Quarter::of(now).next().start()),
            "today" => this(Unit::Day),
            "yesterday" => last(Unit::Day),
            "this-week" => this(Unit::Week),
            "last-week" => last(Unit::Week),
            "this-month" => this(Unit::Month),
            "last-month" => last(Unit::Month),
            "this-year" => this(Unit::Year),
            "last-year" => last(Unit::Year),
            _ => None,
        }
    }

    /// The beginning of the hour so many hours ago, or of the day so many days, weeks, months, years ago.
    fn ago(&self, text: &str, now: Timestamp) -> Option<Timestamp> {
        let digits = text.find(|c: char| !c.is_ascii_digit())?;
        let (number, unit) = text.split_at(digits);
        let number: i64 = number.parse().ok()?;
        let date = self.date_of(now);
        let span = match unit {
            "h" => {
                let then = now.checked_sub(jiff::Span::new().try_hours(number).ok()?).ok()?;
                return Some(self.containing(Unit::Hour, then).span.start);
            }
            "d" => jiff::Span::new().try_days(number),
            "w" => jiff::Span::new().try_weeks(number),
            "mo" => jiff::Span::new().try_months(number),
            "y" => jiff::Span::new().try_years(number),
            _ => return None,
        };
        Some(self.start_of(date.checked_sub(span.ok()?).ok()?))
    }
}

/// Reads a date, a month or a year as its first date.
fn date(text: &str) -> Option<Date> {
    let mut parts = text.split('-');
    let mut number = |digits: usize| {
        let part = parts.next()?;
        let fits = part.len() == digits && part.bytes().all(|byte| byte.is_ascii_digit());
        fits.then(|| part.parse::<i16>().ok())?
    };
    let year = number(4)?;
    let dashes = text.bytes().filter(|&byte| byte == b'-').count();
    let month = if dashes >= 1 { number(2)? } else { 1 };
    let day = if dashes >= 2 { number(2)? } else { 1 };
    if dashes > 2 {
        return None;
    }
    Date::new(year, month as i8, day as i8).ok()
}
