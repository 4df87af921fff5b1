//! How long things are kept, and forgetting them.

use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior};

use super::days::{self, Calendar, Day};
use super::host;
use super::readings;
use crate::history::{Quarter, Retention};

/// The most events that are kept of one target, or of the host: some 10 MB.
pub const EVENTS: i64 = 100_000;

/// Days whose quarters one transaction forgets.
const DAYS_AT_ONCE: i64 = 7;
/// Transactions of one call.
const STEPS: usize = 8;
/// Pages that nothing uses are given back to the file system beyond this part of the file; below, they are
/// used again.
const FREE_PART: i64 = 10;
/// Pages that one call gives back at most: 16 MiB.
const PAGES_AT_ONCE: i64 = 4096;

/// Forgets what is too much; false when there may be more to forget.
pub(super) fn prune(
    connection: &mut Connection,
    calendar: &mut Calendar,
    retention: &Retention,
) -> rusqlite::Result<bool> {
    let finished = match retention.quarters_days {
        Some(kept) => freeze(connection, calendar, kept)?,
        None => true,
    };
    if let (Some(quarters), Some(days)) = (retention.quarters_days, retention.days_days) {
        forget_days(connection, quarters.max(days))?;
    }
    forget_events(connection, retention.events_days)?;
    let host = retention.quarters_days.unwrap_or(u32::MAX).min(host::DAYS);
    if let Some(beyond) = last_beyond(connection, host)? {
        host::forget(connection, Quarter(beyond.after))?;
    }
    forget_readings(connection, retention)?;
    give_back(connection)?;
    Ok(finished)
}

/// The newest day that is not among the newest so many.
fn last_beyond(connection: &Connection, kept: u32) -> rusqlite::Result<Option<Day>> {
    let query = "SELECT day, first, after FROM cut ORDER BY day DESC LIMIT 1 OFFSET ?1";
    connection.query_row(query, [kept], days::read_day).optional()
}

/// Forgets the quarters of all but the newest so many days.
fn freeze(
    connection: &mut Connection,
    calendar: &mut Calendar,
    kept: u32,
) -> rusqlite::Result<bool> {
    for _ in 0..STEPS {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let Some(beyond) = last_beyond(&transaction, kept)? else { return Ok(true) };
        let frozen = transaction.execute(
            "UPDATE cut SET frozen = 1 WHERE day IN
                (SELECT day FROM cut WHERE frozen = 0 AND day <= ?1 ORDER BY day LIMIT ?2)",
            (beyond.day, DAYS_AT_ONCE),
        )?;
        let Some(last) = days::last_frozen(&transaction)? else { return Ok(true) };
        // Also what came since for days that are frozen already, when the clock was set far back.
        for table in ["quarter", "observed"] {
            let by_key = "target IN (SELECT id FROM target) AND quarter < ?1";
            transaction.execute(&format!("DELETE FROM {table} WHERE {by_key}"), [last.after])?;
        }
        transaction.commit()?;
        calendar.freeze(last);
        if frozen < DAYS_AT_ONCE as usize {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Forgets all but the newest so many days, if their quarters are gone. The last one stays known as frozen,
/// so that no later one is cut into it.
fn forget_days(connection: &mut Connection, kept: u32) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let frozen = days::last_frozen(&transaction)?;
    let (Some(beyond), Some(frozen)) = (last_beyond(&transaction, kept)?, frozen) else {
        return Ok(());
    };
    let last = beyond.day.min(frozen.day);
    let mut forgotten = 0;
    for table in ["day", "observed_day"] {
        let by_key = "target IN (SELECT id FROM target) AND day <= ?1";
        forgotten += transaction.execute(&format!("DELETE FROM {table} WHERE {by_key}"), [last])?;
    }
    transaction.execute("DELETE FROM cut WHERE day < ?1", [last])?;
    if forgotten > 0 {
        // Every series of a quarter is in its day, too.
        transaction
            .execute("DELETE FROM series WHERE id NOT IN (SELECT DISTINCT series FROM day)", [])?;
    }
    transaction.commit()
}

/// Forgets the oldest events, up to the first one that is to be kept: so it need not look at all of them.
fn forget_events(connection: &Connection, kept: Option<u32>) -> rusqlite::Result<()> {
    let beyond = kept.map(|kept| last_beyond(connection, kept)).transpose()?.flatten();
    let before = beyond.map_or(i64::MIN, |day| Quarter(day.after).start().as_millisecond());
    limit_events(connection)?;
    // Where none is to be kept, the newest one is.
    let first_kept = "SELECT min(id) FROM event
        WHERE \"end\" >= ?1 OR id = (SELECT max(id) FROM event)";
    connection.execute(&format!("DELETE FROM event WHERE id < ({first_kept})"), [before]).map(drop)
}

/// Forgets what one target, or the host, has too many of: notes first, gaps last, of either the oldest. Nobody's
/// events make room for another's, and no note outlives a gap: a day would be complete without it.
fn limit_events(connection: &Connection) -> rusqlite::Result<()> {
    // Mostly this is the end of it, without looking at them.
    let ids = "SELECT coalesce(max(id) - min(id), 0) FROM event";
    if connection.query_row(ids, (), |row| row.get::<_, i64>(0))? < EVENTS {
        return Ok(());
    }
    let owners: Vec<(i64, i64)> = connection
        .prepare("SELECT target, count(*) FROM event GROUP BY target")?
        .query_map((), |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    for (target, count) in owners.into_iter().filter(|&(_, count)| count > EVENTS) {
        connection.execute(
            "DELETE FROM event WHERE id IN (SELECT id FROM event WHERE target = ?1
                ORDER BY kind = 'gap', kind <> 'note', \"start\" LIMIT ?2)",
            (target, count - EVENTS),
        )?;
    }
    Ok(())
}

fn forget_readings(connection: &Connection, retention: &Retention) -> rusqlite::Result<()> {
    let beyond = |kept: Option<u32>| -> rusqlite::Result<Option<Quarter>> {
        let day = kept.map(|kept| last_beyond(connection, kept)).transpose()?.flatten();
        Ok(day.map(|day| Quarter(day.after)))
    };
    let minutes = beyond(retention.estimates_minutes_days)?.map(Quarter::start);
    readings::forget(connection, minutes, beyond(retention.estimates_quarters_days)?)
}

fn give_back(connection: &Connection) -> rusqlite::Result<()> {
    let pages = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let (free, all) = (pages("freelist_count")?, pages("page_count")?);
    let surplus = free - all / FREE_PART;
    if surplus <= 0 {
        return Ok(());
    }
    let pages = surplus.min(PAGES_AT_ONCE);
    connection.pragma(None, "incremental_vacuum", pages, |_| Ok(()))
}
