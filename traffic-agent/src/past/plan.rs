//! Which spans of time a report is about.

use jiff::{Timestamp, ToSpan as _, civil::Date};

use super::tally::Slice;
use crate::calendar::{Calendar, ParseError, Period, Span, Unit};

/// What is to be reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Everything that is reported of.
    pub whole: Slice,
    /// The rows, in the order in which they are printed. They overlap in the overview.
    pub rows: Vec<Slice>,
    /// The month that is projected; only in the overview.
    pub month: Option<Period>,
}

impl Plan {
    /// All slices, the whole first.
    pub fn slices(&self) -> Vec<Slice> {
        [&self.whole].into_iter().chain(&self.rows).cloned().collect()
    }
}

/// What was asked for, as far as time goes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked<'a> {
    /// Beginning.
    pub from: Option<&'a str>,
    /// End.
    pub to: Option<&'a str>,
    /// Rows by hour, day, ...
    pub unit: Option<Unit>,
    /// Whether rows are divided by something else than time.
    pub divided: bool,
}

/// Makes the plan: of what was asked for, or today, yesterday, this month and the last.
///
/// * `first`: when the first target was first counted; from there on goes a report by year.
pub fn plan(
    asked: Asked<'_>,
    calendar: &Calendar,
    now: Timestamp,
    first: Timestamp,
) -> Result<Plan, ParseError> {
    if asked.from.is_none() && asked.to.is_none() && asked.unit.is_none() && !asked.divided {
        return Ok(overview(calendar, now));
    }
    let otherwise = usual_span(asked.unit, calendar, now, first);
    let span = calendar.parse_span(asked.from, asked.to, otherwise, now)?;
    let whole = Slice { name: "interval".to_owned(), span, day: day_of(span, calendar) };
    let rows = match asked.unit {
        None => vec![whole.clone()],
        Some(unit) => {
            // What is to come has no rows.
            let until = span.end.min(calendar.containing(unit, now).span.end);
            let past = Span { start: span.start, end: until };
            calendar.periods(unit, past).into_iter().map(slice_of).collect()
        }
    };
    Ok(Plan { whole, rows, month: None })
}

fn overview(calendar: &Calendar, now: Timestamp) -> Plan {
    let (today, yesterday) = (calendar.containing(Unit::Day, now), calendar.before(Unit::Day, now));
    let (month, last) = (calendar.containing(Unit::Month, now), calendar.before(Unit::Month, now));
    let named = |name: &str, period: Period| Slice { name: name.to_owned(), ..slice_of(period) };
    let span = Span { start: last.span.start, end: month.span.end };
    Plan {
        whole: Slice { name: "interval".to_owned(), span, day: None },
        rows: vec![
            named("today", today),
            named("yesterday", yesterday),
            named("this-month", month),
            named("last-month", last),
        ],
        month: Some(month),
    }
}

fn slice_of(period: Period) -> Slice {
    Slice { name: period.name(), span: period.span, day: period.day() }
}

/// The date that a span is, or is a part of.
fn day_of(span: Span, calendar: &Calendar) -> Option<Date> {
    let day = calendar.containing(Unit::Day, span.start);
    (span.end <= day.span.end).then(|| day.begins.date())
}

/// What a report is about when no time is said: until the end of the unit that we are in, and as many
/// before it as fit on a screen.
fn usual_span(unit: Option<Unit>, calendar: &Calendar, now: Timestamp, first: Timestamp) -> Span {
    let this = calendar.containing(unit.unwrap_or(Unit::Month), now).span;
    let date = calendar.date_of(now);
    let from_date = |unit, date| calendar.of_date(unit, date).span.start;
    let start = match unit {
        Some(Unit::Hour) => {
            let hours = jiff::SignedDuration::from_hours(23);
            this.start.checked_sub(hours).unwrap_or(this.start)
        }
        Some(Unit::Day) => from_date(Unit::Day, date.saturating_sub(29.days())),
        Some(Unit::Week) => from_date(Unit::Week, date.saturating_sub(11.weeks())),
        Some(Unit::Month) => {
            from_date(Unit::Month, date.first_of_month().saturating_sub(11.months()))
        }
        Some(Unit::Year) => calendar.containing(Unit::Year, first.min(now)).span.start,
        None => this.start,
    };
    Span { start, end: this.end }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-11-24T10:20:00Z";

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn made(asked: Asked<'_>) -> Plan {
        let calendar = Calendar::named("Asia/Shanghai").unwrap();
        plan(asked, &calendar, at(NOW), at("2024-03-01T00:00:00Z")).unwrap()
    }

    fn names(plan: &Plan) -> Vec<&str> {
        plan.rows.iter().map(|slice| slice.name.as_str()).collect()
    }

    #[test]
    fn nothing_asked_is_today_yesterday_and_two_months() {
        let plan = made(Asked::default());
        assert_eq!(names(&plan), ["today", "yesterday", "this-month", "last-month"]);
        assert_eq!(plan.month.unwrap().name(), "2026-11");
        let spans: Vec<_> = plan.rows.iter().map(|slice| slice.span).collect();
        let span = |start, end| Span { start: at(start), end: at(end) };
        assert_eq!(
            spans,
            [
                span("2026-11-23T16:00:00Z", "2026-11-24T16:00:00Z"),
                span("2026-11-22T16:00:00Z", "2026-11-23T16:00:00Z"),
                span("2026-10-31T16:00:00Z", "2026-11-30T16:00:00Z"),
                span("2026-09-30T16:00:00Z", "2026-10-31T16:00:00Z"),
            ]
        );
        assert_eq!(plan.whole.span, span("2026-09-30T16:00:00Z", "2026-11-30T16:00:00Z"));
    }

    #[test]
    fn a_unit_alone_is_as_many_as_fit_on_a_screen() {
        for (unit, rows, first, last) in [
            (Unit::Hour, 24, "2026-11-23T19", "2026-11-24T18"),
            (Unit::Day, 30, "2026-10-26", "2026-11-24"),
            (Unit::Week, 12, "2026-W37", "2026-W48"),
            (Unit::Month, 12, "2025-12", "2026-11"),
            (Unit::Year, 3, "2024", "2026"),
        ] {
            let plan = made(Asked { unit: Some(unit), ..Asked::default() });
            let names = names(&plan);
            assert_eq!((names.len(), names[0], names[rows - 1]), (rows, first, last), "{unit:?}");
        }
        let plan = made(Asked { divided: true, ..Asked::default() });
        assert_eq!(names(&plan), ["interval"]);
        assert_eq!(plan.whole.span.start, at("2026-10-31T16:00:00Z"));
    }

    #[test]
    fn a_range_ends_where_the_present_does() {
        let from = Asked { from: Some("2026-10"), unit: Some(Unit::Month), ..Asked::default() };
        assert_eq!(names(&made(from)), ["2026-10", "2026-11"]);
        let later = made(Asked { to: Some("2030"), ..from });
        assert_eq!(names(&later), ["2026-10", "2026-11"]);
        let days = Asked { from: Some("2026-11-20"), to: Some("2026-11-22"), ..Asked::default() };
        assert_eq!(
            names(&made(Asked { unit: Some(Unit::Day), ..days })),
            ["2026-11-20", "2026-11-21"]
        );
        assert_eq!(made(days).whole.day, None);
        let part =
            Asked { from: Some("2026-11-20T10:00"), to: Some("2026-11-21"), ..Asked::default() };
        assert_eq!(made(part).rows[0].day, Some("2026-11-20".parse().unwrap()));
    }

    #[test]
    fn a_report_of_the_future_has_no_rows() {
        let asked =
            Asked { from: Some("2030"), to: Some("2031"), unit: Some(Unit::Day), divided: false };
        assert!(made(asked).rows.is_empty());
    }
}
