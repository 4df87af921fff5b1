//! The writer: one transaction per flush.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{Timestamp, tz::TimeZone};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Transaction, TransactionBehavior};

use super::days::{self, Calendar};
use super::names::Named as _;
use super::{Error, LIMIT, absolute, files, host, prune, readings, schema, timestamp};
use crate::{
    history::{Absolute, Event, Flush, Quarter, Retention, Series, TargetFlush},
    report::Counters,
};

/// How long a flush waits for another program's lock. Nobody should hold one; the daemon tries again.
const PATIENCE: Duration = Duration::from_secs(1);

/// Pages that SQLite keeps in memory. A flush uses some dozens; the default is 2 MB, a fifth of all that the
/// agent may take.
const CACHE_KIB: i32 = 512;

/// Adds the counters of a row that is there already. They stand still at the limit: `a + b` beyond it would
/// be a float.
macro_rules! add_counters {
    () => {
        "ON CONFLICT DO UPDATE SET
            packets = packets + min(excluded.packets, 9223372036854775807 - packets),
            bytes = bytes + min(excluded.bytes, 9223372036854775807 - bytes),
            wire_packets =
                wire_packets + min(excluded.wire_packets, 9223372036854775807 - wire_packets),
            wire_bytes = wire_bytes + min(excluded.wire_bytes, 9223372036854775807 - wire_bytes),
            payload_bytes =
                payload_bytes + min(excluded.payload_bytes, 9223372036854775807 - payload_bytes),
            retransmitted_bytes = retransmitted_bytes
                + min(excluded.retransmitted_bytes, 9223372036854775807 - retransmitted_bytes)"
    };
}
const _: () = assert!(LIMIT == 9_223_372_036_854_775_807);

const ADD_TO_QUARTER: &str =
    concat!("INSERT INTO quarter VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ", add_counters!());
const ADD_TO_DAY: &str =
    concat!("INSERT INTO day VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ", add_counters!());

const ADD_OBSERVED: &str = "INSERT INTO observed VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET
    milliseconds = milliseconds + min(excluded.milliseconds, 9223372036854775807 - milliseconds)";
const ADD_OBSERVED_DAY: &str =
    "INSERT INTO observed_day VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET
    milliseconds = milliseconds + min(excluded.milliseconds, 9223372036854775807 - milliseconds)";

/// The only writer of a history.
///
/// It takes no lock against other writers (the daemon holds one on its state directory).
#[derive(Debug)]
pub struct Store {
    connection: Connection,
    path: PathBuf,
    /// What was at the path when it was opened: what is written to a file without a name is lost.
    opened: files::Identity,
    calendar: Calendar,
    /// Ids of series that were used, so that they are not looked up at each flush.
    series: BTreeMap<i64, BTreeMap<Series, i64>>,
}

impl Store {
    /// Opens the history in the state directory, or begins one. Cuts its days in the zone, if they are not.
    ///
    /// # Errors
    ///
    /// When the directory or a file in it belongs to somebody else or may be written by others, when the
    /// database is damaged, another program's or of a newer schema, and when it cannot be written.
    pub fn open(state_dir: &Path, zone: &TimeZone) -> Result<Self, Error> {
        let path = files::prepare(state_dir)?;
        let failed = |source| Error::of(&path, source);
        let [before, ..] = files::identity(&path);
        let mut connection = connect(&path).map_err(failed)?;
        schema::migrate(&mut connection, &path)?;
        let calendar = days::cut_in(&mut connection, zone, &path)?;
        let opened = files::identity(&path);
        if before.is_none() || before != opened[0] {
            return Err(Error::Displaced { path });
        }
        Ok(Self { connection, path, opened, calendar, series: BTreeMap::new() })
    }

    /// Keeps the link-layer bytes per packet that are configured, for those who read the history.
    pub fn keep_link_overhead(&mut self, bytes: u32) -> Result<(), Error> {
        const KEY: &str = schema::key::LINK_OVERHEAD;
        let value = bytes.to_string();
        let kept = schema::meta(&self.connection, KEY).map_err(|source| self.failed(source))?;
        if kept.as_deref() == Some(&value) {
            return Ok(());
        }
        schema::set_meta(&self.connection, KEY, &value).map_err(|source| self.failed(source))
    }

    /// Adds all of a flush, or on error nothing; then the same can be tried again, or later with more.
    ///
    /// # Errors
    ///
    /// Also when the database is not at its path any more: then open the store again, and flush into that.
    pub fn flush(&mut self, flush: &Flush) -> Result<(), Error> {
        self.require_in_place()?;
        let result = self.write(flush);
        if result.is_err() {
            // Series that the transaction made are gone with it.
            self.series.clear();
        }
        result.map_err(|source| self.failed(source))?;
        // It may have been taken away meanwhile, and this flush with it.
        self.require_in_place()
    }

    /// Whether the database, and its log, are still where they were opened. If not, what is written there is
    /// in nobody's history.
    pub fn is_in_place(&self) -> bool {
        files::is_in_place(&self.opened, &self.path)
    }

    fn require_in_place(&self) -> Result<(), Error> {
        match self.is_in_place() {
            true => Ok(()),
            false => Err(Error::Displaced { path: self.path.clone() }),
        }
    }

    /// The counters that the last flush took, of every epoch that was not closed.
    pub fn absolutes(&self, target: &str) -> Result<Vec<Absolute>, Error> {
        absolute::read(&self.connection, target).map_err(|source| self.failed(source))
    }

    /// When the counters of the last flush of a target were read; `None` before the first.
    pub fn last_flush(&self, target: &str) -> Result<Option<Timestamp>, Error> {
        self.connection
            .query_row("SELECT flushed_at FROM target WHERE name = ?1", [target], |row| row.get(0))
            .optional()
            .map(|at| at.map(timestamp))
            .map_err(|source| self.failed(source))
    }

    /// Until when a target was observed before its last flush ended, by the clock of that boot; `None` where
    /// that is not known.
    pub fn observed_until(&self, target: &str) -> Result<Option<Duration>, Error> {
        const UNTIL: &str = "SELECT observed_until FROM target WHERE name = ?1";
        self.connection
            .query_row(UNTIL, [target], |row| row.get::<_, Option<i64>>(0))
            .optional()
            .map(|until| until.flatten().map(|until| Duration::from_millis(until.cast_unsigned())))
            .map_err(|source| self.failed(source))
    }

    /// What a target was selected by at its last flush; `None` before the first.
    pub fn selector(&self, target: &str) -> Result<Option<String>, Error> {
        self.connection
            .query_row("SELECT selector FROM target WHERE name = ?1", [target], |row| row.get(0))
            .optional()
            .map_err(|source| self.failed(source))
    }

    /// Forgets what is more than is to be kept.
    ///
    /// Does a few weeks at a time, each in a transaction of its own; returns whether it has come to the end.
    /// Takes no clock: see [`Retention`].
    pub fn prune(&mut self, retention: &Retention) -> Result<bool, Error> {
        let result = prune::prune(&mut self.connection, &mut self.calendar, retention);
        // Series that nothing uses any more may be gone.
        self.series.clear();
        result.map_err(|source| Error::of(&self.path, source))
    }

    fn write(&mut self, flush: &Flush) -> rusqlite::Result<()> {
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for target in &flush.targets {
            let id = write_target(&transaction, target)?;
            let series = self.series.entry(id).or_default();
            write_postings(&transaction, id, target, series, &mut self.calendar)?;
            write_observed(&transaction, id, &target.observed, &mut self.calendar)?;
            for absolute in &target.absolute {
                absolute::write(&transaction, id, absolute)?;
            }
            for epoch in &target.closed {
                absolute::close(&transaction, id, epoch)?;
            }
            for event in &target.events {
                write_event(&transaction, id, event)?;
            }
            readings::write(&transaction, id, &target.readings)?;
        }
        if let Some(flush) = &flush.host {
            host::write(&transaction, flush)?;
        }
        transaction.commit()
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(super) fn failed(&self, source: rusqlite::Error) -> Error {
        Error::of(&self.path, source)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // The log goes into the database, so that a copy of that file alone has everything. If not, the next
        // opening does it.
        let folded = self.connection.pragma(None, "wal_checkpoint", "TRUNCATE", |_| Ok(()));
        if let Err(error) = folded {
            log::debug!("{}: the log is not folded: {error}", self.path.display());
        }
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(PATIENCE)?;
    // A database that somebody put there shall do nothing but hold rows.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    // Closing would delete -wal and -shm, and without them a member of the group cannot read.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // Has an effect only in an empty database.
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(connection)
}

fn write_target(transaction: &Transaction<'_>, flush: &TargetFlush) -> rusqlite::Result<i64> {
    let taken_at = flush.taken_at.as_millisecond();
    // A clock that fits: 292 million years.
    let until = flush.observed_until.map(|until| until.as_millis() as i64);
    let observed: i64 =
        flush.observed.iter().map(|&(_, milliseconds)| i64::from(milliseconds)).sum();
    transaction
        .prepare_cached(
            "INSERT INTO target (name, selector, since, flushed_at, observed_until)
             VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (name) DO UPDATE SET
                selector = excluded.selector, flushed_at = excluded.flushed_at,
                observed_until = excluded.observed_until
             RETURNING id",
        )?
        .query_row((&flush.target, &flush.selector, taken_at - observed, taken_at, until), |row| {
            row.get(0)
        })
}

fn write_postings(
    transaction: &Transaction<'_>,
    target: i64,
    flush: &TargetFlush,
    known: &mut BTreeMap<Series, i64>,
    calendar: &mut Calendar,
) -> rusqlite::Result<()> {
    let mut add_to_quarter = transaction.prepare_cached(ADD_TO_QUARTER)?;
    let mut add_to_day = transaction.prepare_cached(ADD_TO_DAY)?;
    let day = calendar.day_of(flush.quarter);
    let postings = flush.postings.iter().filter(|(_, counters)| *counters != Counters::default());
    for (count, (series, counters)) in postings.enumerate() {
        if count == 0 {
            remember(transaction, calendar, flush.quarter)?;
        }
        let id = match known.get(series) {
            Some(&id) => id,
            None => {
                let id = series_id(transaction, target, series)?;
                known.insert(series.clone(), id);
                id
            }
        };
        let [a, b, c, d, e, f] = columns(counters);
        add_to_quarter.execute((target, flush.quarter.0, id, a, b, c, d, e, f))?;
        add_to_day.execute((target, day.day, id, a, b, c, d, e, f))?;
    }
    Ok(())
}

/// The columns of counters, at the limit where they do not fit.
fn columns(counters: &Counters) -> [i64; 6] {
    let Counters { packets, bytes, wire_packets, wire_bytes, payload_bytes, retransmitted_bytes } =
        *counters;
    [packets, bytes, wire_packets, wire_bytes, payload_bytes, retransmitted_bytes]
        .map(|counter| i64::try_from(counter).unwrap_or(LIMIT))
}

fn series_id(transaction: &Transaction<'_>, target: i64, series: &Series) -> rusqlite::Result<i64> {
    let Series { interface, scope, origin, direction, leg, protocol, port, family } = series;
    transaction
        .prepare_cached(
            "INSERT INTO series
                (target, interface, scope, origin, direction, leg, protocol, port, family)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
             ON CONFLICT DO UPDATE SET target = target
             RETURNING id",
        )?
        .query_row(
            (
                target,
                interface,
                scope.name(),
                origin.name(),
                direction.name(),
                leg.name(),
                protocol.name(),
                port.unwrap_or(0),
                family.name(),
            ),
            |row| row.get(0),
        )
}

fn write_observed(
    transaction: &Transaction<'_>,
    target: i64,
    observed: &[(Quarter, u32)],
    calendar: &mut Calendar,
) -> rusqlite::Result<()> {
    let mut add = transaction.prepare_cached(ADD_OBSERVED)?;
    let mut add_to_day = transaction.prepare_cached(ADD_OBSERVED_DAY)?;
    for &(quarter, milliseconds) in observed.iter().filter(|&&(_, milliseconds)| milliseconds > 0) {
        remember(transaction, calendar, quarter)?;
        add.execute((target, quarter.0, milliseconds))?;
        add_to_day.execute((target, calendar.day_of(quarter).day, milliseconds))?;
    }
    Ok(())
}

/// Keeps how the day of a quarter is cut, if it can be cut again.
fn remember(
    transaction: &Transaction<'_>,
    calendar: &mut Calendar,
    quarter: Quarter,
) -> rusqlite::Result<()> {
    match calendar.is_frozen(quarter) {
        true => Ok(()),
        false => days::remember(transaction, calendar.day_of(quarter)),
    }
}

pub(super) fn write_event(
    transaction: &Transaction<'_>,
    target: i64,
    event: &Event,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "INSERT INTO event (target, \"start\", \"end\", kind, message)
             VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute((
            target,
            event.start.as_millisecond(),
            event.end.as_millisecond(),
            event.kind.name(),
            &event.message,
        ))
        .map(drop)
}
