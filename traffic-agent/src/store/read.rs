//! The reader: any number, each with one consistent view, without the writer's help.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use jiff::{Timestamp, civil::Date, tz::TimeZone};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Row};

use super::days::{self, date_of, number};
use super::names::Named;
use super::{Error, LIMIT, files, schema, timestamp};
use crate::{
    history::{Event, Quarter, Series},
    report::Counters,
};

/// What is known of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetEntry {
    /// Its short name.
    pub name: String,
    /// How it was selected at the last flush.
    pub selector: String,
    /// When its first span began.
    pub since: Timestamp,
    /// When its last span ended.
    pub last_flush: Timestamp,
}

/// A view of the history at one moment: a later flush is not in it.
#[derive(Debug)]
pub struct Reader {
    connection: Connection,
    path: PathBuf,
    zone: TimeZone,
}

impl Reader {
    /// Opens the history in a state directory. Needs no daemon, and no rights but to read the files.
    ///
    /// # Errors
    ///
    /// When there is none, when it may not be read, is damaged, or is of another schema.
    pub fn open(state_dir: &Path) -> Result<Self, Error> {
        let path = files::find(state_dir)?;
        let failed = |source| Error::of(&path, source);
        let connection = connect(&path).map_err(failed)?;
        schema::require(&connection, &path)?;
        let name = schema::meta(&connection, schema::key::ZONE).map_err(failed)?;
        let name = name.unwrap_or_else(|| "UTC".to_owned());
        let zone = days::zone_of(&name).ok_or_else(|| Error::Unknown {
            path: path.clone(),
            what: "the time zone",
            value: name,
        })?;
        Ok(Self { connection, path, zone })
    }

    /// The database that is read.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The zone that days are cut in.
    pub fn time_zone(&self) -> &TimeZone {
        &self.zone
    }

    /// Tells this history from any other.
    pub fn store_id(&self) -> Result<String, Error> {
        let id = schema::meta(&self.connection, schema::key::STORE_ID);
        id.map(Option::unwrap_or_default).map_err(|source| self.failed(source))
    }

    /// Link-layer bytes per packet, as the daemon was told; `None` if it never was.
    pub fn link_overhead(&self) -> Result<Option<u32>, Error> {
        let kept = schema::meta(&self.connection, schema::key::LINK_OVERHEAD);
        Ok(kept.map_err(|source| self.failed(source))?.and_then(|text| text.parse().ok()))
    }

    /// Every target that has a history, by name.
    pub fn targets(&self) -> Result<Vec<TargetEntry>, Error> {
        const TARGETS: &str = "SELECT name, selector, since, flushed_at FROM target ORDER BY name";
        let read = |row: &Row<'_>| {
            Ok(TargetEntry {
                name: row.get(0)?,
                selector: row.get(1)?,
                since: timestamp(row.get(2)?),
                last_flush: timestamp(row.get(3)?),
            })
        };
        self.all(TARGETS, (), read)
    }

    /// The first quarter from which on all quarters are kept; `None`: all that ever were. Before it there
    /// are only days.
    pub fn quarters_from(&self) -> Result<Option<Quarter>, Error> {
        let frozen = days::last_frozen(&self.connection).map_err(|source| self.failed(source))?;
        Ok(frozen.map(|day| Quarter(day.after)))
    }

    /// Shows the traffic of a target by quarter, in the order of time.
    pub fn quarters(
        &self,
        target: &str,
        range: Range<Quarter>,
        mut visit: impl FnMut(Quarter, &Series, Counters),
    ) -> Result<(), Error> {
        const QUARTERS: &str =
            "SELECT quarter, series, packets, bytes, wire_packets, wire_bytes, payload_bytes,
                    retransmitted_bytes
             FROM quarter WHERE target = ?1 AND quarter >= ?2 AND quarter < ?3
             ORDER BY quarter, series";
        self.rows(QUARTERS, target, (range.start.0, range.end.0), |at, series, counters| {
            visit(Quarter(at), series, counters);
        })
    }

    /// Shows the traffic of a target by day of [`Reader::time_zone`], in the order of time.
    pub fn days(
        &self,
        target: &str,
        range: Range<Date>,
        mut visit: impl FnMut(Date, &Series, Counters),
    ) -> Result<(), Error> {
        const DAYS: &str =
            "SELECT day, series, packets, bytes, wire_packets, wire_bytes, payload_bytes,
                    retransmitted_bytes
             FROM day WHERE target = ?1 AND day >= ?2 AND day < ?3
             ORDER BY day, series";
        let mut latest = (i64::MIN, Date::MIN);
        self.rows(
            DAYS,
            target,
            (number(range.start), number(range.end)),
            |day, series, counters| {
                if day != latest.0 {
                    latest = (day, date_of(day));
                }
                visit(latest.1, series, counters);
            },
        )
    }

    /// Milliseconds of each quarter in which the target was observed. More than a quarter has, where the
    /// clock was set.
    pub fn observed(
        &self,
        target: &str,
        range: Range<Quarter>,
    ) -> Result<Vec<(Quarter, u64)>, Error> {
        const OBSERVED: &str = "SELECT quarter, milliseconds
             FROM observed JOIN target ON target.id = observed.target
             WHERE target.name = ?1 AND quarter >= ?2 AND quarter < ?3 ORDER BY quarter";
        self.all(OBSERVED, (target, range.start.0, range.end.0), |row| {
            Ok((Quarter(row.get(0)?), row.get::<_, i64>(1)?.cast_unsigned()))
        })
    }

    /// Milliseconds of each day of [`Reader::time_zone`] in which the target was observed.
    pub fn observed_days(
        &self,
        target: &str,
        range: Range<Date>,
    ) -> Result<Vec<(Date, u64)>, Error> {
        const OBSERVED: &str = "SELECT day, milliseconds
             FROM observed_day JOIN target ON target.id = observed_day.target
             WHERE target.name = ?1 AND day >= ?2 AND day < ?3 ORDER BY day";
        self.all(OBSERVED, (target, number(range.start), number(range.end)), |row| {
            Ok((date_of(row.get(0)?), row.get::<_, i64>(1)?.cast_unsigned()))
        })
    }

    /// What happened to a target in a span of time: events that have an instant in it.
    pub fn events(&self, target: &str, range: Range<Timestamp>) -> Result<Vec<Event>, Error> {
        let id = self.target_id(target).map_err(|source| self.failed(source))?;
        id.map_or(Ok(Vec::new()), |id| self.events_of(id, range))
    }

    pub(super) fn events_of(
        &self,
        target: i64,
        range: Range<Timestamp>,
    ) -> Result<Vec<Event>, Error> {
        const EVENTS: &str = "SELECT \"start\", \"end\", kind, message FROM event
             WHERE target = ?1 AND \"start\" < ?3 AND (\"end\" > ?2 OR \"start\" >= ?2)
             ORDER BY \"start\", id";
        let (start, end) = (range.start.as_millisecond(), range.end.as_millisecond());
        let read = |row: &Row<'_>| {
            let kind: String = row.get(2)?;
            Ok((timestamp(row.get(0)?), timestamp(row.get(1)?), kind, row.get(3)?))
        };
        self.all(EVENTS, (target, start, end), read)?
            .into_iter()
            .map(|(start, end, kind, message)| {
                Ok(Event { start, end, kind: self.named(&kind)?, message })
            })
            .collect()
    }

    fn rows(
        &self,
        query: &str,
        target: &str,
        (from, to): (i64, i64),
        mut visit: impl FnMut(i64, &Series, Counters),
    ) -> Result<(), Error> {
        let failed = |source| self.failed(source);
        let Some(target) = self.target_id(target).map_err(failed)? else { return Ok(()) };
        let dictionary = self.series(target)?;
        let mut statement = self.connection.prepare_cached(query).map_err(failed)?;
        let mut rows = statement.query((target, from, to)).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let id: i64 = row.get(1).map_err(failed)?;
            let series = dictionary.get(&id).ok_or_else(|| Error::Unknown {
                path: self.path.clone(),
                what: "the series",
                value: id.to_string(),
            })?;
            visit(row.get(0).map_err(failed)?, series, counters(row).map_err(failed)?);
        }
        Ok(())
    }

    fn target_id(&self, name: &str) -> rusqlite::Result<Option<i64>> {
        let query = "SELECT id FROM target WHERE name = ?1";
        self.connection.query_row(query, [name], |row| row.get(0)).optional()
    }

    fn series(&self, target: i64) -> Result<BTreeMap<i64, Series>, Error> {
        const SERIES: &str =
            "SELECT id, interface, port, scope, origin, direction, leg, protocol, family
             FROM series WHERE target = ?1";
        let read = |row: &Row<'_>| {
            let id: i64 = row.get(0)?;
            let (interface, port): (String, u16) = (row.get(1)?, row.get(2)?);
            let mut names: [String; 6] = Default::default();
            for (column, name) in (3..).zip(&mut names) {
                *name = row.get(column)?;
            }
            Ok((id, interface, port, names))
        };
        self.all(SERIES, [target], read)?
            .into_iter()
            .map(|(id, interface, port, [scope, origin, direction, leg, protocol, family])| {
                let series = Series {
                    interface,
                    scope: self.named(&scope)?,
                    origin: self.named(&origin)?,
                    direction: self.named(&direction)?,
                    leg: self.named(&leg)?,
                    protocol: self.named(&protocol)?,
                    port: Some(port).filter(|&port| port != 0),
                    family: self.named(&family)?,
                };
                Ok((id, series))
            })
            .collect()
    }

    pub(super) fn all<T>(
        &self,
        query: &str,
        parameters: impl rusqlite::Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, Error> {
        self.connection
            .prepare_cached(query)
            .and_then(|mut statement| statement.query_map(parameters, read)?.collect())
            .map_err(|source| self.failed(source))
    }

    pub(super) fn named<T: Named>(&self, name: &str) -> Result<T, Error> {
        T::of(name).ok_or_else(|| Error::Unknown {
            path: self.path.clone(),
            what: T::WHAT,
            value: name.to_owned(),
        })
    }

    fn failed(&self, source: rusqlite::Error) -> Error {
        Error::of(&self.path, source)
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW
        | OpenFlags::SQLITE_OPEN_URI;
    let option = match files::beside_it(path) {
        // The owner could write the index of the log, and would have to where nobody else has it open; it
        // does not, so that it reads like everybody else, also on a full disk.
        (true, true) => "?readonly_shm=1",
        (true, false) => "",
        // Without a log there is no writer, and none that a reader could make: a copy, or a medium that is
        // read-only. Then the file is all there is.
        (false, _) => "?immutable=1",
    };
    let connection = Connection::open_with_flags(uri(path) + option, flags)?;
    // Everything that is read through it is of one moment: that of the first query.
    connection.execute_batch("PRAGMA trusted_schema = OFF; BEGIN")?;
    Ok(connection)
}

fn uri(path: &Path) -> String {
    let mut uri = "file:".to_owned();
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => {
                uri.push(char::from(byte));
            }
            // Writing to a String does not fail.
            _ => drop(write!(uri, "%{byte:02x}")),
        }
    }
    uri
}

fn counters(row: &Row<'_>) -> rusqlite::Result<Counters> {
    let counter = |column: usize| -> rusqlite::Result<u64> {
        let value: i64 = row.get(column)?;
        // At the limit the truth may be more, and reports say so of a `u64::MAX`.
        Ok(if value == LIMIT { u64::MAX } else { value.cast_unsigned() })
    };
    Ok(Counters {
        packets: counter(2)?,
        bytes: counter(3)?,
        wire_packets: counter(4)?,
        wire_bytes: counter(5)?,
        payload_bytes: counter(6)?,
        retransmitted_bytes: counter(7)?,
    })
}
