//! Which quarters make a day: the calendar of the configured time zone, and cutting all days again when it is
//! another one than they were cut by.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::{
    SignedDuration, Timestamp,
    civil::{Date, date},
    tz::{Offset, TimeZone},
};
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, TransactionBehavior};

use super::{Error, schema};
use crate::history::Quarter;

/// The name under which a zone is kept: its own, or the seconds east of UTC with their sign.
pub(super) fn zone_name(zone: &TimeZone) -> Result<String, Error> {
    match (zone.iana_name(), zone.to_fixed_offset()) {
        (Some(name), _) => Ok(name.to_owned()),
        (None, Ok(Offset::UTC)) => Ok("UTC".to_owned()),
        (None, Ok(offset)) => Ok(format!("{:+}", offset.seconds())),
        (None, Err(_)) => Err(Error::NamelessZone),
    }
}

/// The zone of a name.
pub(super) fn zone_of(name: &str) -> Option<TimeZone> {
    match name.parse() {
        Ok(seconds) => Offset::from_seconds(seconds).ok().map(TimeZone::fixed),
        Err(_) => TimeZone::get(name).ok(),
    }
}

const EPOCH: Date = date(1970, 1, 1);
const HOURS_PER_DAY: i64 = 24;

/// Days since 1970-01-01.
pub(super) fn number(date: Date) -> i64 {
    date.duration_since(EPOCH).as_hours() / HOURS_PER_DAY
}

/// The date of a number of days; the nearest that there is.
pub(super) fn date_of(number: i64) -> Date {
    let hours = SignedDuration::from_hours(number.saturating_mul(HOURS_PER_DAY));
    EPOCH.checked_add(hours).unwrap_or(if number < 0 { Date::MIN } else { Date::MAX })
}

/// A day and its quarters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Day {
    /// Days since 1970-01-01.
    pub day: i64,
    /// Its first quarter.
    pub first: i64,
    /// The first one after it.
    pub after: i64,
}

/// Cuts quarters into days.
#[derive(Debug)]
pub(super) struct Calendar {
    zone: TimeZone,
    /// The last day whose quarters are no longer kept: it and all before it stay as they are.
    frozen: Option<Day>,
    /// The day that was asked for last.
    latest: Option<Day>,
}

impl Calendar {
    pub fn new(zone: TimeZone, frozen: Option<Day>) -> Self {
        Self { zone, frozen, latest: None }
    }

    /// The day that a quarter belongs to.
    ///
    /// Behind the frozen days this is the calendar's, but for the first one: it takes all quarters from
    /// there on which no frozen day holds, which is up to a day more or less where the zone was changed.
    pub fn day_of(&mut self, quarter: Quarter) -> Day {
        if let Some(day) = self.latest.filter(|day| (day.first..day.after).contains(&quarter.0)) {
            return day;
        }
        let natural = natural_day_of(quarter, &self.zone);
        let day = match self.frozen {
            None => natural,
            // The clock was set far back. What is posted there is not cut again either.
            Some(frozen) if quarter.0 < frozen.after => {
                Day { day: natural.day.min(frozen.day), ..natural }
            }
            Some(frozen) if natural.day > frozen.day => {
                let first = match natural.day == frozen.day + 1 {
                    true => frozen.after,
                    false => natural.first.max(frozen.after),
                };
                Day { first, ..natural }
            }
            Some(frozen) => {
                let day = frozen.day + 1;
                let after = first_quarter(date_of(day + 1), &self.zone);
                Day { day, first: frozen.after, after }
            }
        };
        self.latest = Some(day);
        day
    }

    /// From now on nothing up to the end of this day is cut again.
    pub fn freeze(&mut self, last: Day) {
        self.frozen = Some(last);
        self.latest = None;
    }

    /// Whether a quarter is of a day that is no longer cut.
    pub fn is_frozen(&self, quarter: Quarter) -> bool {
        self.frozen.is_some_and(|frozen| quarter.0 < frozen.after)
    }
}

/// The first quarter that begins on a date or later.
///
/// Offsets in use are multiples of a quarter, so that this is the date's first instant.
fn first_quarter(date: Date, zone: &TimeZone) -> i64 {
    let start = date
        .to_zoned_datetime(zone.clone())
        .and_then(|noon| noon.start_of_day())
        .map(|start| start.timestamp().as_second());
    // Only the ends of what jiff can tell have no beginning.
    let otherwise = if date < EPOCH { Timestamp::MIN } else { Timestamp::MAX };
    let seconds = start.unwrap_or(otherwise.as_second());
    seconds.div_euclid(Quarter::SECONDS) + i64::from(seconds.rem_euclid(Quarter::SECONDS) != 0)
}

/// The day of a quarter by the calendar alone.
///
/// By the days' beginnings, not by the date at the quarter: where a clock is set back over midnight, a date
/// comes twice.
fn natural_day_of(quarter: Quarter, zone: &TimeZone) -> Day {
    let mut date = zone.to_datetime(quarter.start()).date();
    while quarter.0 < first_quarter(date, zone)
        && let Ok(yesterday) = date.yesterday()
    {
        date = yesterday;
    }
    loop {
        let tomorrow = date.tomorrow();
        let after = tomorrow.as_ref().map_or(i64::MAX, |&date| first_quarter(date, zone));
        match tomorrow {
            Ok(tomorrow) if quarter.0 >= after => date = tomorrow,
            _ => return Day { day: number(date), first: first_quarter(date, zone), after },
        }
    }
}

pub(super) fn read_day(row: &Row<'_>) -> rusqlite::Result<Day> {
    Ok(Day { day: row.get("day")?, first: row.get("first")?, after: row.get("after")? })
}

/// Reads the last day that is no longer cut.
pub(super) fn last_frozen(connection: &Connection) -> rusqlite::Result<Option<Day>> {
    connection
        .query_row(
            "SELECT day, first, after FROM cut WHERE frozen = 1 ORDER BY day DESC LIMIT 1",
            [],
            read_day,
        )
        .optional()
}

/// Makes sure that all days are cut in the zone, and remembers it. Returns the calendar to go on with.
pub(super) fn cut_in(
    connection: &mut Connection,
    zone: &TimeZone,
    path: &Path,
) -> Result<Calendar, Error> {
    let name = zone_name(zone)?;
    let failed = |source| Error::of(path, source);
    let frozen = last_frozen(connection).map_err(failed)?;
    let mut calendar = Calendar::new(zone.clone(), frozen);
    let as_it_is = is_cut_by(connection, &mut calendar).map_err(failed)?;
    let named = schema::meta(connection, schema::key::ZONE).map_err(failed)?;
    if as_it_is && named.as_deref() == Some(&name) {
        return Ok(calendar);
    }
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    schema::set_meta(&transaction, schema::key::ZONE, &name)
        .and_then(|()| if as_it_is { Ok(()) } else { cut_again(&transaction, &mut calendar) })
        .and_then(|()| transaction.commit())
        .map_err(failed)?;
    if !as_it_is {
        log::info!("the days of the history are now those of {name}");
    }
    Ok(calendar)
}

/// Whether every day that can be cut again has the quarters that the calendar gives it. The zone's name
/// does not tell: its rules may have been others.
fn is_cut_by(connection: &Connection, calendar: &mut Calendar) -> rusqlite::Result<bool> {
    let mut days = connection.prepare("SELECT day, first, after FROM cut WHERE frozen = 0")?;
    let mut rows = days.query([])?;
    while let Some(row) = rows.next()? {
        let kept = read_day(row)?;
        if calendar.day_of(Quarter(kept.first)) != kept {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Throws the days away and sums them up from the quarters.
///
/// Summed up here and not by SQL, whose `sum()` is an error beyond an i64.
fn cut_again(transaction: &Transaction<'_>, calendar: &mut Calendar) -> rusqlite::Result<()> {
    let kept = calendar.frozen.map_or(i64::MIN, |frozen| frozen.day);
    let from = calendar.frozen.map_or(i64::MIN, |frozen| frozen.after);
    for table in ["day", "observed_day", "cut"] {
        transaction.execute(&format!("DELETE FROM {table} WHERE day > ?1"), [kept])?;
    }
    cut_counters(transaction, calendar, from)?;
    cut_observed(transaction, calendar, from)
}

fn cut_counters(
    transaction: &Transaction<'_>,
    calendar: &mut Calendar,
    from: i64,
) -> rusqlite::Result<()> {
    let mut quarters = transaction.prepare(
        "SELECT target, quarter, series, packets, bytes, wire_packets, wire_bytes, payload_bytes,
                retransmitted_bytes
         FROM quarter WHERE quarter >= ?1 ORDER BY target, quarter",
    )?;
    let mut rows = quarters.query([from])?;
    let mut sums: BTreeMap<i64, [i64; 6]> = BTreeMap::new();
    let mut at = None;
    while let Some(row) = rows.next()? {
        let here = (row.get(0)?, calendar.day_of(Quarter(row.get(1)?)));
        if at.is_some_and(|at| at != here) {
            post_day(transaction, at, &mut sums)?;
        }
        at = Some(here);
        let sum = sums.entry(row.get(2)?).or_default();
        for (column, sum) in (3..).zip(sum) {
            *sum = sum.saturating_add(row.get(column)?);
        }
    }
    post_day(transaction, at, &mut sums)
}

/// Writes the sums of one day of one target, and empties them.
fn post_day(
    transaction: &Transaction<'_>,
    at: Option<(i64, Day)>,
    sums: &mut BTreeMap<i64, [i64; 6]>,
) -> rusqlite::Result<()> {
    let Some((target, day)) = at else { return Ok(()) };
    remember(transaction, day)?;
    let mut insert = transaction
        .prepare_cached("INSERT INTO day VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")?;
    while let Some((series, [a, b, c, d, e, f])) = sums.pop_first() {
        insert.execute((target, day.day, series, a, b, c, d, e, f))?;
    }
    Ok(())
}

fn cut_observed(
    transaction: &Transaction<'_>,
    calendar: &mut Calendar,
    from: i64,
) -> rusqlite::Result<()> {
    let mut quarters = transaction
        .prepare("SELECT target, quarter, milliseconds FROM observed WHERE quarter >= ?1")?;
    let mut rows = quarters.query([from])?;
    let mut sums: BTreeMap<(i64, i64), i64> = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let day = calendar.day_of(Quarter(row.get(1)?));
        remember(transaction, day)?;
        let sum = sums.entry((row.get(0)?, day.day)).or_default();
        *sum = sum.saturating_add(row.get(2)?);
    }
    for ((target, day), milliseconds) in sums {
        transaction.prepare_cached("INSERT INTO observed_day VALUES (?1, ?2, ?3)")?.execute((
            target,
            day,
            milliseconds,
        ))?;
    }
    Ok(())
}

/// Keeps the quarters of a day, once.
pub(super) fn remember(connection: &Connection, day: Day) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO cut (day, first, after, frozen) VALUES (?1, ?2, ?3, 0)
             ON CONFLICT DO NOTHING",
        )?
        .execute((day.day, day.first, day.after))
        .map(drop)
}
