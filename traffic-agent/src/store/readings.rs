//! What other methods counted: written beside the traffic, read for the errors of the estimates.
//!
//! Both tables are written in the transaction of the flush. Minutes are detail, the sums by quarter
//! are what errors are made of. Measured: 47 bytes a row; a target with all three methods takes
//! 6.1 MB for 30 days of minutes and 4.9 MB for a year of quarters.

use std::ops::Range;

use jiff::Timestamp;
use rusqlite::{Connection, Row, Transaction};

use super::{Error, LIMIT, Reader, timestamp};
use crate::estimate::PortBytes;
use crate::history::{Method, MethodReading, Quarter, ReadingSum};

/// As kept; never to be changed.
fn number(method: Method) -> i64 {
    match method {
        Method::IptablesPort => 1,
        Method::HookPort => 2,
        Method::Interface => 3,
    }
}

const ADD: &str = "INSERT INTO reading VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
    ON CONFLICT DO UPDATE SET
        \"end\" = max(\"end\", excluded.\"end\"),
        ingress = ingress + min(excluded.ingress, 9223372036854775807 - ingress),
        egress = egress + min(excluded.egress, 9223372036854775807 - egress),
        exact_ingress = exact_ingress + min(excluded.exact_ingress, 9223372036854775807 - exact_ingress),
        exact_egress = exact_egress + min(excluded.exact_egress, 9223372036854775807 - exact_egress)";

const ADD_TO_QUARTER: &str = "INSERT INTO reading_quarter VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
    ON CONFLICT DO UPDATE SET
        milliseconds = milliseconds + min(excluded.milliseconds, 9223372036854775807 - milliseconds),
        ingress = ingress + min(excluded.ingress, 9223372036854775807 - ingress),
        egress = egress + min(excluded.egress, 9223372036854775807 - egress),
        exact_ingress = exact_ingress + min(excluded.exact_ingress, 9223372036854775807 - exact_ingress),
        exact_egress = exact_egress + min(excluded.exact_egress, 9223372036854775807 - exact_egress)";
const _: () = assert!(LIMIT == 9_223_372_036_854_775_807);

/// Adds the readings of a target.
pub(super) fn write(
    transaction: &Transaction<'_>,
    target: i64,
    readings: &[MethodReading],
) -> rusqlite::Result<()> {
    let column = |bytes: u64| i64::try_from(bytes).unwrap_or(LIMIT);
    for MethodReading { method, start, end, ingress, egress, exact } in readings {
        let method = number(*method);
        let (start_ms, end_ms) = (start.as_millisecond(), end.as_millisecond());
        let (exact_in, exact_out) = (column(exact.ingress), column(exact.egress));
        transaction.prepare_cached(ADD)?.execute((
            target,
            method,
            start_ms,
            end_ms,
            ingress.map(column),
            egress.map(column),
            exact_in,
            exact_out,
        ))?;
        let directions = i64::from(ingress.is_some()) | i64::from(egress.is_some()) << 1;
        transaction.prepare_cached(ADD_TO_QUARTER)?.execute((
            target,
            method,
            Quarter::of(*start).0,
            directions,
            end_ms.saturating_sub(start_ms).max(0),
            column(ingress.unwrap_or(0)),
            column(egress.unwrap_or(0)),
            exact_in,
            exact_out,
        ))?;
    }
    Ok(())
}

/// Forgets minutes that began before one instant, and sums of quarters before another.
pub(super) fn forget(
    connection: &Connection,
    minutes_before: Option<Timestamp>,
    quarters_before: Option<Quarter>,
) -> rusqlite::Result<()> {
    const BY_KEY: &str = "target IN (SELECT id FROM target) AND method IN (1, 2, 3)";
    if let Some(before) = minutes_before {
        let forget = format!("DELETE FROM reading WHERE {BY_KEY} AND \"start\" < ?1");
        connection.execute(&forget, [before.as_millisecond()])?;
    }
    if let Some(before) = quarters_before {
        let forget = format!("DELETE FROM reading_quarter WHERE {BY_KEY} AND quarter < ?1");
        connection.execute(&forget, [before.0])?;
    }
    Ok(())
}

/// At the limit the truth may be more.
fn bytes(value: i64) -> u64 {
    if value == LIMIT { u64::MAX } else { value.cast_unsigned() }
}

impl Reader {
    /// What a method counted of a target by quarter, in the order of time. A quarter comes several times if the
    /// directions that the method could count changed within it.
    pub fn readings(
        &self,
        target: &str,
        method: Method,
        range: Range<Quarter>,
    ) -> Result<Vec<(Quarter, ReadingSum)>, Error> {
        const READINGS: &str = "SELECT quarter, directions, milliseconds, ingress, egress,
                    exact_ingress, exact_egress
             FROM reading_quarter JOIN target ON target.id = reading_quarter.target
             WHERE target.name = ?1 AND method = ?2 AND quarter >= ?3 AND quarter < ?4
             ORDER BY quarter, directions";
        let read = |row: &Row<'_>| {
            let directions: i64 = row.get(1)?;
            let counted = |bit: i64, column| -> rusqlite::Result<Option<u64>> {
                Ok(if directions & bit == 0 { None } else { Some(bytes(row.get(column)?)) })
            };
            let sum = ReadingSum {
                milliseconds: row.get::<_, i64>(2)?.cast_unsigned(),
                ingress: counted(1, 3)?,
                egress: counted(2, 4)?,
                exact: PortBytes { ingress: bytes(row.get(5)?), egress: bytes(row.get(6)?) },
            };
            Ok((Quarter(row.get(0)?), sum))
        };
        self.all(READINGS, (target, number(method), range.start.0, range.end.0), read)
    }

    /// The single readings of a method that began in a span of time, as far as they are kept.
    pub fn minutes(
        &self,
        target: &str,
        method: Method,
        range: Range<Timestamp>,
    ) -> Result<Vec<MethodReading>, Error> {
        const MINUTES: &str =
            "SELECT \"start\", \"end\", ingress, egress, exact_ingress, exact_egress
             FROM reading JOIN target ON target.id = reading.target
             WHERE target.name = ?1 AND method = ?2 AND \"start\" >= ?3 AND \"start\" < ?4
             ORDER BY \"start\"";
        let (from, to) = (range.start.as_millisecond(), range.end.as_millisecond());
        let read = |row: &Row<'_>| {
            Ok(MethodReading {
                method,
                start: timestamp(row.get(0)?),
                end: timestamp(row.get(1)?),
                ingress: row.get::<_, Option<i64>>(2)?.map(bytes),
                egress: row.get::<_, Option<i64>>(3)?.map(bytes),
                exact: PortBytes { ingress: bytes(row.get(4)?), egress: bytes(row.get(5)?) },
            })
        };
        self.all(MINUTES, (target, number(method), from, to), read)
    }
}
